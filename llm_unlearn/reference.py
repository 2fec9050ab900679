"""The reference: the model before unlearning, without a second model in memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from llm_unlearn.adapters import without_newest_adapter
from llm_unlearn.data.collator import collate
from llm_unlearn.data.tokenization import TokenizedItem
from llm_unlearn.forward import AnswerScores, answer_logits

if TYPE_CHECKING:
    from llm_unlearn.trainer import UnlearningTrainer

FILE_NAME = "reference_logps.safetensors"


@contextmanager
def reference_model(model: nn.Module, unwrapped: nn.Module, ref_model: nn.Module | None) -> Iterator[nn.Module]:
    """Yield the module to call as the reference, in eval mode (dropout would make it random).

    Args:
        model: the model in training, as wrapped.
        unwrapped: the same without wrappers.
        ref_model: a separate reference, which wins where given.

    Raises:
        ValueError: neither an adapter to switch off nor a `ref_model`.
    """
    if ref_model is not None:
        yield ref_model
        return
    if not isinstance(unwrapped, PeftModel):
        raise ValueError(
            "All weights are trained, so the model before unlearning is gone: pass `ref_model`, or train an adapter "
            "(`--use_peft`)."
        )
    was_training = unwrapped.training
    model.eval()
    try:
        with without_newest_adapter(unwrapped):
            yield model
    finally:
        model.train(was_training)


@dataclass
class ReferenceLogps:
    """Sums of the answers' log-probabilities before unlearning, by sample id. They never change during a run.

    Attributes:
        forget_sums: ``(n_forget,)``.
        alternate_sums: ``(n_forget, n_alternates)``; NaN for pairs that the run never draws.
    """

    forget_sums: Tensor
    alternate_sums: Tensor

    def forget(self, index: Tensor) -> Tensor:
        """``S_ref(y)`` of the items `index`, ``(batch,)``."""
        return self.forget_sums[index]

    def alternate(self, index: Tensor, candidate: Tensor) -> Tensor:
        """``S_ref(y')`` of candidate `candidate` of the items `index`, ``(batch,)``."""
        return self.alternate_sums[index, candidate]

    @classmethod
    def fill(cls, trainer: "UnlearningTrainer", model: nn.Module) -> "ReferenceLogps":
        """Score everything the run will draw, once, sharded over the processes.

        Called before the first step: with all weights in training and no `ref_model`, the model still is its own
        reference then.
        """
        dataset, device = trainer.train_dataset, trainer.args.device
        sampler = trainer.sampler
        steps_per_epoch = len(sampler) // trainer.global_batch_size
        epochs = range(ceil(trainer.state.max_steps / steps_per_epoch))
        pairs = {(pair.forget, pair.alternate) for epoch in epochs for pair in sampler.plan(epoch)}
        forget = sorted({index for index, _ in pairs})
        drawn = sorted(pair for pair in pairs if pair[1] is not None)

        items = [dataset.forget[i] for i in forget] + [dataset.alternate[i][j] for i, j in drawn]
        sums = _score(trainer, model, items)
        table = cls(
            torch.full((len(dataset.forget),), torch.nan, device=device),
            torch.full((len(dataset.forget), dataset.n_alternates), torch.nan, device=device),
        )
        table.forget_sums[torch.tensor(forget, device=device)] = sums[: len(forget)]
        for (i, j), value in zip(drawn, sums[len(forget) :], strict=True):
            table.alternate_sums[i, j] = value
        return table

    def save(self, folder: Path) -> None:
        """Write the table into a checkpoint folder."""
        tensors = {"forget_sums": self.forget_sums, "alternate_sums": self.alternate_sums}
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, folder / FILE_NAME)

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> "ReferenceLogps":
        """Read the table of a checkpoint folder.

        Raises:
            ValueError: the checkpoint has none.
        """
        if not (folder / FILE_NAME).is_file():
            raise ValueError(
                f"{folder} has no {FILE_NAME}, without which a run that trains all weights cannot resume: start anew, "
                "or train an adapter (`--use_peft`)."
            )
        return cls(**{name: tensor.to(device) for name, tensor in load_file(folder / FILE_NAME).items()})


def _score(trainer: "UnlearningTrainer", model: nn.Module, items: list[TokenizedItem]) -> Tensor:
    """``S_ref`` per item. Batches are formed before they are dealt to processes, so their number changes no value."""
    args = trainer.args
    # Longest first: what is allocated for the first batch is reused by all the others.
    by_length = sorted(range(len(items)), key=lambda i: len(items[i].input_ids), reverse=True)
    size = args.per_device_eval_batch_size
    batches = [by_length[at : at + size] for at in range(0, len(by_length), size)]
    rounds = ceil(len(batches) / args.world_size)
    unwrapped = trainer._unwrapped(model)
    started_from = _eval_mode(model) if not isinstance(unwrapped, PeftModel) and trainer.ref_model is None else None
    context = started_from or reference_model(model, unwrapped, trainer.ref_model)

    sums = torch.zeros(len(items), device=args.device)
    with torch.no_grad(), context as reference:
        bar = tqdm(range(rounds), desc="reference", disable=not trainer.is_world_process_zero() or rounds < 8)
        for round_ in bar:
            number = round_ * args.world_size + args.process_index
            # A process without a batch repeats the first: under FSDP every forward is a collective.
            positions = batches[number] if number < len(batches) else batches[0]
            batch = trainer._prepare_inputs(collate([items[i] for i in positions]))
            scores = AnswerScores.of(answer_logits(reference, trainer._unwrapped(reference), batch)).sums
            if number < len(batches):
                sums[torch.tensor(positions, device=args.device)] = scores
    return trainer.accelerator.reduce(sums, reduction="sum")


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[nn.Module]:
    was_training = model.training
    model.eval()
    try:
        yield model
    finally:
        model.train(was_training)
