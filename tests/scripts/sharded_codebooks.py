"""Trains bottlenecks with a global batch of four on however many processes there are, as part of `sharded_training`."""

import json
from pathlib import Path

import torch
from accelerate import PartialState
from codebooks import make_codebook_trainer, tiny_codebook, trained_like
from runs import losses
from safetensors.torch import save_file
from tiny import tiny_rows, tiny_tokenizer
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import TrainerCallback

from llm_unlearn.codebook.model import CodebookModel
from llm_unlearn.codebook.reading import count_codes, read_codes
from llm_unlearn.data.tokenization import ExampleTokenizer

# Steps are proportional to gradients, so that rounding is not blown up as Adam does where a gradient is almost zero.
SHARED = {"n_rows": 12, "optim": "sgd", "learning_rate": 0.05, "l1_coef": 0.1, "revive_every": 2, "num_train_epochs": 2}
RUNS = {
    "bottleneck": {"logging_steps": 6},
    "lora": {"train": "lora", "gradient_accumulation_steps": 2},
    "full": {"train": "full"},
    "resumed": {"save_strategy": "steps", "save_steps": 2, "save_total_limit": None},
}
# Codes that no token is near; what they become at the second step is drawn from its tokens.
DEAD = list(range(6))


class FirstGradients(TrainerCallback):
    """The gradients of the first step."""

    def on_pre_optimizer_step(self, args, state, control, model, **_):
        if not state.global_step:
            model = getattr(model, "module", model)
            self.found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def start(name: str, folder: Path, processes: int, callbacks=()):
    """A trainer, before its first step."""
    options = SHARED | RUNS[name]
    batch = 4 // processes // options.get("gradient_accumulation_steps", 1)
    codebook = trained_like(tiny_codebook())
    with torch.no_grad():
        codebook.bottleneck.codebook.weight[DEAD] = -1.0
    options |= {"per_device_train_batch_size": batch}
    return make_codebook_trainer(folder / f"codebook_{name}", codebook=codebook, callbacks=callbacks, **options)


def train(name: str, folder: Path, processes: int) -> tuple[dict, dict, list[dict]]:
    """First gradients, weights and log of one run."""
    gradients = FirstGradients()
    trainer = start(name, folder, processes, [gradients])
    trainer.train()
    if name == "resumed":
        trainer = start(name, folder, processes)
        trainer.train(resume_from_checkpoint=str(folder / f"codebook_{name}" / "checkpoint-2"))
    weights = {key: p.detach().clone() for key, p in trainer.model.named_parameters() if p.requires_grad}
    weights["last_used"] = trainer.codebook.bottleneck.last_used.clone()
    return {key: value.contiguous() for key, value in gradients.found.items()}, weights, losses(trainer)


def count(codebook: CodebookModel) -> dict:
    """Counts of the codes in texts of different lengths."""
    tokenizer = ExampleTokenizer(tiny_tokenizer())
    readings = read_codes(codebook, tokenizer.all(tiny_rows(21)), tokenizer, 6, progress=False)
    counts = count_codes(readings, (3, 6), codebook.config.num_codes)
    return {"tokens": counts.tokens.tolist(), "texts": counts.texts.tolist(), "n_tokens": counts.n_tokens}


def fully_sharded(own_unit: bool | None, rows: slice) -> dict:
    """Gradients under FSDP2, with the bottleneck in a unit of its own or the model's; None for one whole model."""
    codebook = trained_like(tiny_codebook())
    model = codebook.base_model
    if own_unit is not None:
        mesh = init_device_mesh("cpu", (2,))
        units = [*model.model.layers, *([codebook.bottleneck] if own_unit else []), model]
        for unit in units:
            fully_shard(unit, mesh=mesh)
    seen = []
    with codebook.bottleneck.observed(seen.append):
        logits = model(input_ids=torch.arange(5, 45).reshape(4, 10)[rows]).logits
    (logits.pow(2).mean() + (seen[0].z - seen[0].q).pow(2).mean()).backward()
    return {
        name: p.grad if own_unit is None else p.grad.full_tensor().contiguous() for name, p in model.named_parameters()
    }


def write_all(rank: int, processes: int, out: Path) -> None:
    """Everything of this process, as files."""
    for name in RUNS:
        gradients, weights, lines = train(name, out / "runs", processes)
        save_file(gradients, out / f"codebook_{name}.gradients.{rank}.safetensors")
        save_file(weights, out / f"codebook_{name}.{rank}.safetensors")
        record = {"lines": lines, "processes": PartialState().num_processes}
        (out / f"codebook_{name}.{rank}.json").write_text(json.dumps(record))
    (out / f"counts.{rank}.json").write_text(json.dumps(count(trained_like(tiny_codebook()))))
    for own_unit in (True, False):
        sharded = fully_sharded(own_unit, slice(2 * rank, 2 * rank + 2))
        save_file(sharded, out / f"fsdp_{own_unit}.{rank}.safetensors")
