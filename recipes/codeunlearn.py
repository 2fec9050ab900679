# /// script
# dependencies = ["llm-unlearn[recipes]"]
# ///
r"""CodeUnlearn, first half: put a codebook bottleneck into a model and train it.

On the embedded default, with nothing to download:

    accelerate launch recipes/codeunlearn.py

On a real model, with the data it was fine-tuned on and general text (any flag of `--help`, or a YAML file with
`--config`):

    accelerate launch recipes/codeunlearn.py --config codeunlearn-recommended --model PATH --dataset locuslab/TOFU \
        --split full --general GENERAL.jsonl --output_dir out/codeunlearn

The bottleneck goes to `OUT/codebook`, which every command takes as `--model`; the report compares the model without it
(before) and with it (after). What is to be forgotten is deleted by `codeunlearn_forget.py`, in seconds and for any
number of requests. The parts are in `llm_unlearn/codebook/`.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import DataArguments, ModelArguments, at_a_terminal, parse

from llm_unlearn.codebook.flags import CodebookFlags
from llm_unlearn.flags import EvaluationFlags


@dataclass
class CodebookArguments(CodebookFlags, EvaluationFlags, DataArguments):
    """The bottleneck, what it is trained on, and what is measured."""

    split: str = field(default="full", metadata={"help": "The model's own fine-tuning data; rows as in full[0:160]."})
    general: str | None = field(
        default=None,
        metadata={"help": "General text beside it: a split or a file. Unset on the embedded default: its background."},
    )
    eval_rows: int = field(
        default=100, metadata={"help": "Rows of the split on which the loss is compared with that without bottleneck."}
    )
    exempt_bos: bool = field(default=True, metadata={"help": "Let a leading begin token pass by unchanged."})


def main() -> None:
    """Train a bottleneck with the flags of the command line."""
    with at_a_terminal():
        from llm_unlearn.codebook.trainer import CodeUnlearnConfig

        classes = (CodebookArguments, CodeUnlearnConfig, ModelArguments)
        train(*parse("codeunlearn", sys.argv[1:], *classes, testbed=True))


def train(data_args: CodebookArguments, args: Any, model_args: ModelArguments) -> None:
    """The run: data, model, evaluation without bottleneck, first weights, training, saving, evaluation, report."""
    from rich.console import Console
    from transformers import set_seed
    from trl import get_peft_config

    import llm_unlearn.run as run
    from llm_unlearn.codebook.card import codebook_card
    from llm_unlearn.codebook.model import get_codebook_model
    from llm_unlearn.codebook.trainer import CodeUnlearnTrainer
    from llm_unlearn.data.sources import load_rows
    from llm_unlearn.data.tofu import source_or_bundled
    from llm_unlearn.evaluation.cache import evaluate_once
    from llm_unlearn.evaluation.report import EvalReport
    from llm_unlearn.forecast import forecast_line
    from llm_unlearn.models import absolute, check_source, identity, load_tokenizer
    from llm_unlearn.paths import cache_dir
    from llm_unlearn.progress import RunLog, show_live_losses

    main_process = args.process_index == 0
    console = Console(quiet=not main_process)
    out = Path(args.output_dir)
    source = model_args.model_name_or_path
    checkpoint = run.check_output(out, args.resume_from_checkpoint, data_args.overwrite, source)
    config = data_args.codebook_config(args.seed)
    bed = None if source else run.default_testbed(data_args.forget_split)
    source = source or str(bed.target)
    check_source(source)
    place = source_or_bundled(data_args.dataset)
    own = load_rows(data_args.split, place, data_args.columns)
    general = data_args.general or ("background" if bed else None)
    rows = list(own)
    if general:
        rows += load_rows(None, general) if Path(general).is_file() else load_rows(general, place, data_args.columns)
    tier = data_args.eval or ("full" if bed else "quick")
    tokenizer = load_tokenizer(source)
    evaluator = reference = None
    cache = cache_dir() / "evaluations" if data_args.eval_cache else None
    if tier != "none":
        data = run.load_data(data_args.dataset, data_args.forget_split, data_args.retain_split, data_args.columns)
        evaluator = run.make_evaluator(tokenizer, data, args, data_args.suite(tier), data_args.eval_retain_rows)
        reference = run.reference_report(data_args, data, evaluator, bed, cache)
        evaluator.require(data_args.metrics, has_before=True, has_reference=reference is not None)

    model = model_args.load(source, args.device)
    set_seed(args.seed)
    before = evaluate_once(evaluator, model.to(args.device), identity(model), None, cache) if evaluator else None
    codebook = get_codebook_model(model, config, whitened=args.init_whiten)
    codebook.config.base = {"source": absolute(source)}
    trainer = CodeUnlearnTrainer(
        codebook,
        args,
        rows,
        tokenizer,
        eval_dataset=own.select(range(min(data_args.eval_rows, len(own)))),
        peft_config=get_peft_config(model_args) if args.train == "lora" else None,
        callbacks=[RunLog(out)],
    )
    show_live_losses(trainer)
    console.print(forecast_line(trainer))
    if checkpoint is None:
        lost = trainer.make_first_weights()
        console.print(f"First weights lose {lost:.1%} of the variance of layer {config.layer}'s activations.")
        if main_process:
            run.remove_earlier(out)
    # Of a run that trains all weights, what the evaluation calls "without" is no longer the model it began with.
    start = trainer.evaluate()["without_loss"] if checkpoint is None else None
    trainer.train(resume_from_checkpoint=checkpoint)
    end = trainer.evaluate()
    gap = "" if start is None else f", {end['eval_loss'] - start:+.4f} against the model before"
    console.print(f"Loss on the model's own data {end['eval_loss']:.4f}{gap}; perplexity {end['eval_perplexity']:.2f}.")
    after = evaluator.evaluate(trainer.model, None) if evaluator else None
    report = EvalReport.compare(after, before, reference, {"max_rows": data_args.max_rows or None}) if after else None
    if main_process:
        codebook.save_pretrained(out / "codebook", codebook_card(codebook, report and report.metrics_markdown()))
        if report:
            report.save(out)
            console.print(report.table())
        console.print(f"Wrote {out / 'codebook'}")
        if report:
            report.require(data_args.metrics)
    trainer.accelerator.wait_for_everyone()


if __name__ == "__main__":
    main()
