# /// script
# dependencies = ["llm-unlearn[recipes]"]
# ///
r"""Fine-tune a target or retain model: on all rows, or on the rows that a retain model may know.

    accelerate launch recipes/finetune.py --model PATH --output_dir out/target --dataset locuslab/TOFU --split full
    accelerate launch recipes/finetune.py --model PATH --output_dir out/retain --dataset locuslab/TOFU --split retain90

All weights are trained, into `OUT/model`; with `--use_peft` an adapter is, into `OUT/adapter`, which the unlearning
recipes take as `--model` too. How often each fact was shown stands beside the weights in `exposures.json`. Any flag of
`--help` may stand in a YAML file (`--config`). The embedded default's target and retain model are made by
`llm-unlearn testbed`.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import DataArguments, ModelArguments, at_a_terminal, parse


@dataclass
class FinetuneArguments(DataArguments):
    """What to learn."""

    split: str = field(default="full", metadata={"help": "Split to learn; rows as in full[0:160]."})


def main() -> None:
    """Fine-tune with the flags of the command line."""
    with at_a_terminal():
        from llm_unlearn.finetune import FinetuneConfig

        classes = (FinetuneArguments, FinetuneConfig, ModelArguments)
        finetune(*parse("finetune", sys.argv[1:], *classes, use_peft=False))


def finetune(data_args: FinetuneArguments, args: Any, model_args: ModelArguments) -> None:
    """The run: data, model, training, saving."""
    from rich.console import Console
    from transformers import set_seed
    from trl import get_peft_config

    import llm_unlearn.run as run
    from llm_unlearn.data.sources import load_rows
    from llm_unlearn.exposures import Exposures
    from llm_unlearn.finetune import FinetuneTrainer
    from llm_unlearn.forecast import forecast_line
    from llm_unlearn.models import absolute, check_source, load_tokenizer
    from llm_unlearn.paths import data_dir
    from llm_unlearn.progress import RunLog, show_live_losses

    source, out = model_args.model_name_or_path, Path(args.output_dir)
    if source is None:
        raise ValueError(
            "Fine-tuning needs a model to start from: give `--model PATH_OR_HUB_ID`. The target and the retain model "
            "of the embedded default are made by `llm-unlearn testbed`."
        )
    main_process = args.process_index == 0
    console = Console(quiet=not main_process)
    checkpoint = run.check_output(out, args.resume_from_checkpoint, data_args.overwrite, source)
    check_source(source)
    shown_before = Exposures.found(source)
    rows = load_rows(data_args.split, data_args.dataset or data_dir() / "tofu", data_args.columns)
    tokenizer = load_tokenizer(source)
    model = model_args.load(source, args.device)
    set_seed(args.seed)
    trainer = FinetuneTrainer(model, args, rows, tokenizer, get_peft_config(model_args), callbacks=[RunLog(out)])
    show_live_losses(trainer)
    console.print(forecast_line(trainer))
    if main_process and checkpoint is None:
        run.remove_earlier(out)
    trainer.train(resume_from_checkpoint=checkpoint)
    if main_process:
        folder = run.save_finetuned(trainer.model, tokenizer, out, absolute(source))
        trainer.exposures().after(shown_before).write(folder)
        console.print(f"Wrote {folder}")
    trainer.accelerator.wait_for_everyone()


if __name__ == "__main__":
    main()
