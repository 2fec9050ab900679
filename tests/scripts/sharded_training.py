"""Trains small runs with a global batch of four on however many processes there are. For `test_distributed`."""

import json
import os
import sys
from pathlib import Path

from accelerate import PartialState
from runs import losses, make_trainer, trained_weights
from safetensors.torch import save_file
from scripts import sharded_codebooks
from tiny import tiny_rows, tiny_tokenizer
from transformers.trainer_utils import get_last_checkpoint

from llm_unlearn.data.pairing import ForgetRetainDataset
from llm_unlearn.data.tokenization import ExampleTokenizer
from llm_unlearn.refinement.callback import FILE_NAME

# Ten rows in steps of four: the last step of each of the two epochs has two rows that only fill it up.
SHARED = {"n_forget": 10, "num_train_epochs": 2, "learning_rate": 1e-3}
# Rows around these thresholds are forgotten at one look and not at another.
REFINEMENT = {"iur_judge": "text", "iur_bleu": 0.0, "iur_bert_f1": 0.155, "iur_beams": 1}
RUNS = {
    "npo_nll": ("npo", {"retain_loss": "nll"}),
    "npo_kl": ("npo", {"retain_loss": "kl"}),
    "idk_dpo": ("idk_dpo", {"train_sampling_strategy": "group_by_length"}),
    "grad_ascent": ("grad_ascent", {}),
    "accumulated": ("npo", {"gradient_accumulation_steps": 2}),
    "checkpointed": ("npo", {"retain_loss": "kl", "activation_checkpointing": True}),
    "full": ("npo", {"lora": False}),
    "top_k": ("icu", {"lora": False, "reference_top_k": 8}),
    "refined": ("icu", {"refine": True, "kl_mask_pad": True, "learning_rate": 1e-2, **REFINEMENT}),
    "stopped": ("npo", {"refine": True, "iur_judge": "none", "stop_ma": 0.2, "stop_el": 0.2, "el_n": 2}),
    "resumed": ("idk_dpo", {"save_strategy": "steps", "save_steps": 4, "save_total_limit": None}),
    "resumed_full": ("npo", {"lora": False, "save_strategy": "steps", "save_steps": 4, "save_total_limit": None}),
}


def evaluation_pairs() -> ForgetRetainDataset:
    """Seven pairs, in batches of four."""
    tokenize = ExampleTokenizer(tiny_tokenizer())
    return ForgetRetainDataset(tokenize.all(tiny_rows(7, first=40)), tokenize.all(tiny_rows(5, first=50)))


def train(name: str, folder: Path, processes: int) -> tuple[dict, list[dict], float | None, list[list]]:
    """Weights, log, evaluation loss and what refinement saw of one run."""
    method, options = RUNS[name]
    options = SHARED | options
    batch = 4 // processes // options.get("gradient_accumulation_steps", 1)
    options |= {"per_device_train_batch_size": batch, "per_device_eval_batch_size": 4 // processes}
    pairs = evaluation_pairs() if name == "npo_nll" else None
    trainer = make_trainer(method, folder / name, eval_dataset=pairs, **options)
    trainer.train()
    if name.startswith("resumed"):
        checkpoint = Path(get_last_checkpoint(folder / name)).with_name("checkpoint-4")
        trainer = make_trainer(method, folder / f"{name}_again", **options)
        trainer.train(resume_from_checkpoint=str(checkpoint))
    assert trainer.guard.reason is None
    weights = {key: weight.contiguous() for key, weight in trained_weights(trainer.model).items()}
    eval_loss = trainer.evaluate()["eval_loss"] if pairs else None
    looks = []
    if options.get("refine"):
        # The file is the main process's; flags and outcome are everybody's.
        rows = map(json.loads, (folder / name / FILE_NAME).read_text().splitlines())
        looks = [[row["step"], row["row"], row["active"], row["text"], row["ma"]] for row in rows]
        looks += [[*trainer.refinement.active, trainer.refinement.outcome]]
    return weights, losses(trainer), eval_loss, looks


if __name__ == "__main__":
    # Not from accelerate, which learns of the processes with the first trainer's arguments.
    rank, processes, out = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), Path(sys.argv[1])
    for name in RUNS:
        weights, lines, eval_loss, looks = train(name, out / "runs", processes)
        save_file(weights, out / f"{name}.{rank}.safetensors")
        record = {"lines": lines, "eval_loss": eval_loss, "looks": looks, "processes": PartialState().num_processes}
        (out / f"{name}.{rank}.json").write_text(json.dumps(record))
    sharded_codebooks.write_all(rank, processes, out)
    PartialState().destroy_process_group()
