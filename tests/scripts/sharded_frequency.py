"""Trains small runs with weights by count and buckets that stop, on however many processes there are."""

import json
import os
import sys
from pathlib import Path

from accelerate import PartialState
from runs import losses, make_trainer, trained_weights
from safetensors.torch import save_file
from tiny import tiny_rows

from llm_unlearn.frequency.callback import FrequencyHook
from llm_unlearn.frequency.plan import FrequencyPlan

# Ten rows in steps of four: the last step of each epoch has two rows that only fill it up.
COUNTS = [1, 1, 2, 2, 4, 4, 8, 8, 16, 16]
SHARED = {"n_forget": 10, "num_train_epochs": 4, "freq_counts": "count"}
REFINEMENT = {"iur_judge": "text", "iur_bleu": 0.0, "iur_bert_f1": 0.155, "iur_beams": 1}
RUNS = {
    "weighted": ("npo", {"freq_weight": 1.0, "learning_rate": 1e-3, "num_train_epochs": 2}),
    "stopped": ("grad_diff", {"freq_stop": 0.12, "freq_weight": -0.5, "learning_rate": 3e-3}),
    "refined": ("icu", {"freq_stop": 0.17, "refine": True, "learning_rate": 3e-3, **REFINEMENT}),
}


def hooked(method: str, folder: Path, counts=COUNTS, **options):
    """A trainer with its hook, over rows that have these counts."""
    trainer = make_trainer(method, folder, **(SHARED | {"n_forget": len(counts)} | options))
    rows = [{**row, "count": count} for row, count in zip(tiny_rows(len(counts)), counts, strict=True)]
    trainer.hook = FrequencyHook(trainer, FrequencyPlan.of(trainer.args, rows), progress=False)
    return trainer


def looks(trainer) -> list[dict]:
    """What the hook saw and did after each epoch."""
    return [line for line in trainer.state.log_history if "frequency/active" in line]


def train(name: str, folder: Path, processes: int) -> tuple[dict, dict]:
    """Weights and what was logged of one run."""
    method, options = RUNS[name]
    trainer = hooked(method, folder / name, per_device_train_batch_size=4 // processes, **options)
    trainer.train()
    weights = {key: weight.contiguous() for key, weight in trained_weights(trainer.model).items()}
    return weights, {"lines": losses(trainer), "looks": looks(trainer), "outcome": trainer.hook.outcome}


if __name__ == "__main__":
    # Not from accelerate, which learns of the processes with the first trainer's arguments.
    rank, processes, out = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), Path(sys.argv[1])
    for name in RUNS:
        weights, record = train(name, out / "runs", processes)
        save_file(weights, out / f"{name}.{rank}.safetensors")
        record["processes"] = PartialState().num_processes
        (out / f"{name}.{rank}.json").write_text(json.dumps(record))
    PartialState().destroy_process_group()
