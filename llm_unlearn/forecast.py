"""What a run will take, said before it begins."""

from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from llm_unlearn.finetune import FinetuneTrainer
    from llm_unlearn.trainer import UnlearningTrainer

_MIB = 2**20


@dataclass(frozen=True)
class Forecast:
    """Size of a run. Counts are exact; `memory_mib` is an estimate per process.

    Attributes:
        forget_rows, retain_rows: rows of the two sets.
        batch: rows per process, accumulation steps and processes; their product is the effective batch.
        steps: optimiser steps.
        tokens: forget tokens per epoch, padding not counted; every retain half adds about as many again.
        trained, total: trainable and all parameters.
        memory_mib: weights, gradients and optimiser of what is trained, activations of one forward, logits at the
            answer positions.
    """

    forget_rows: int
    retain_rows: int
    batch: tuple[int, int, int]
    steps: int
    tokens: int
    trained: int
    total: int
    memory_mib: float

    @classmethod
    def of(cls, trainer: "UnlearningTrainer") -> "Forecast":
        """The forecast of a trainer that is about to train."""
        args, data = trainer.args, trainer.train_dataset
        steps_per_epoch = ceil(len(data) / trainer.global_batch_size)
        return cls(
            forget_rows=len(data.forget),
            retain_rows=len(data.retain),
            batch=(args.train_batch_size, args.gradient_accumulation_steps, args.world_size),
            steps=args.max_steps if args.max_steps > 0 else ceil(steps_per_epoch * args.num_train_epochs),
            tokens=sum(data.lengths),
            trained=sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
            total=sum(p.numel() for p in trainer.model.parameters()),
            memory_mib=_memory(trainer) / _MIB,
        )

    def table(self) -> "Table":
        """The forecast as a table for the terminal."""
        from rich.table import Table

        per_process, accumulation, processes = self.batch
        table = Table(title="Forecast", show_header=False, title_justify="left")
        rows = {
            "data": f"{self.forget_rows} forget rows ({self.tokens:,} tokens), {self.retain_rows} retain rows",
            "effective batch": f"{per_process * accumulation * processes} = {per_process} per process x {accumulation} "
            f"accumulated x {processes} processes",
            "optimiser steps": f"{self.steps}",
            "trained parameters": f"{self.trained:,} of {self.total:,} ({self.trained / self.total:.2%})",
            "memory per process": f"about {self.memory_mib:,.0f} MiB, framework not counted (estimate)",
        }
        for name, value in rows.items():
            table.add_row(name, value)
        return table


def forecast_line(trainer: "FinetuneTrainer") -> str:
    """What a fine-tuning run will take, in one line."""
    args, items = trainer.args, trainer.train_dataset
    batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    steps = args.max_steps if args.max_steps > 0 else ceil(ceil(len(items) / batch) * args.num_train_epochs)
    tokens = sum(len(item.input_ids) for item in items)
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    return (
        f"Forecast: {len(items)} rows ({tokens:,} tokens), effective batch {batch}, "
        f"{steps} optimiser steps, {trained:,} trained parameters."
    )


def _memory(trainer: "UnlearningTrainer") -> float:
    model, data, args = trainer.model, trainer.train_dataset, trainer.args
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    # Gradient and two AdamW moments, fp32 as the trained weights are.
    optimiser = sum(12 * p.numel() for p in model.parameters() if p.requires_grad)
    # One term at a time: the forget half with its replacement answers is the larger one.
    rows = args.train_batch_size * (1 + bool(data.alternate))
    longest = sorted((*data.lengths, *(len(item.input_ids) for item in data.retain)), reverse=True)
    length = longest[len(longest) // 20]  # the 95th percentile: a batch is as long as its longest row
    answer = sum(len(item.answer_ids) for item in data.forget) / len(data.forget)
    config = model.config
    # Saved for backward, per token and layer, in widths of the residual stream: norms, q, k, v, attention output and
    # its projection, and three tensors of the MLP's inner width.
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    per_token = config.num_hidden_layers * (10 * config.hidden_size + 4 * inner)
    activations = 4 * rows * length * per_token
    logits = 3 * 4 * rows * answer * trainer.vocab_size
    return weights + optimiser + activations + logits
