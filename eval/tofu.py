r"""Evaluate a model or an adapter on the sets of TOFU, and write a report that can serve as a reference.

With no flags, the embedded default. The report of a retain model, to which unlearned models are then compared:

    python eval/tofu.py --model RETAIN --output_dir out/retain --dataset tofu --forget_split forget10

An unlearned model beside it, and beside itself without its adapter:

    python eval/tofu.py --model BASE --adapter out/npo-forget10/adapter --before base --reference out/retain \
        --dataset tofu --output_dir out/after

Several processes: `llm-unlearn eval --num_processes 2 ...`.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from transformers import HfArgumentParser

from llm_unlearn.data.tokenization import DEFAULT_SYSTEM_PROMPT
from llm_unlearn.flags import DataFlags, EvaluationFlags
from llm_unlearn.quiet import quiet_upstream


@dataclass
class EvalArguments(EvaluationFlags, DataFlags):
    """What to evaluate, and where the report goes."""

    model: str | None = field(
        default=None,
        metadata={
            "help": "Hub id, model folder, or PEFT folder such as the `adapter` of a run; unset: the testbed's target."
        },
    )
    adapter: str | None = field(default=None, metadata={"help": "PEFT folder to put on --model."})
    output_dir: str = field(default="out/eval", metadata={"help": "Folder for report.json, report.md, report.html."})
    overwrite: bool = field(default=False, metadata={"help": "Replace an earlier report in --output_dir."})
    before: str | None = field(
        default=None,
        metadata={
            "help": "Report of the model before unlearning, or `base`: evaluate the model without its adapter, too."
        },
    )
    dtype: Literal["bfloat16", "float32"] | None = field(
        default=None, metadata={"help": "Weights' dtype. Unset: float32 on CPU, bfloat16 on a GPU."}
    )
    load_in_4bit: bool = field(default=False, metadata={"help": "Load the weights in 4 bits (bitsandbytes)."})
    load_in_8bit: bool = field(default=False, metadata={"help": "Load the weights in 8 bits (bitsandbytes)."})
    system_prompt: str = field(
        default=DEFAULT_SYSTEM_PROMPT, metadata={"help": "System message under a chat template; empty for none."}
    )
    max_length: int = field(default=512, metadata={"help": "Longest sequence in tokens."})


def main() -> None:
    """Parse the flags and evaluate; a user's mistake ends in one sentence."""
    quiet_upstream()
    try:
        evaluate(*HfArgumentParser(EvalArguments, allow_abbrev=False).parse_args_into_dataclasses())
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        if sys.flags.dev_mode:
            raise
        sys.exit(f"error: {error}")


def evaluate(args: EvalArguments) -> None:
    """Data, model, scores and answers, report."""
    from peft import PeftModel
    from rich.console import Console

    from llm_unlearn import run
    from llm_unlearn.adapters import newest_adapter, without_newest_adapter
    from llm_unlearn.evaluation.cache import evaluate_once
    from llm_unlearn.evaluation.report import EvalReport
    from llm_unlearn.models import adapter_layers, check_source, fingerprint, identity, load_tokenizer
    from llm_unlearn.paths import cache_dir
    from llm_unlearn.requests import KnowledgeRequest

    # Everything that can be wrong is found before a model is loaded.
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    out = Path(args.output_dir)
    if (out / "report.json").exists() and not args.overwrite:
        raise ValueError(f"{out} already holds a report: choose another `--output_dir`, or replace it: `--overwrite`.")
    if args.eval == "none":
        raise ValueError("`--eval none` measures nothing: give train, quick or full.")
    for source in filter(None, (args.model, args.adapter)):
        check_source(source)
    request = KnowledgeRequest.load(args.request) if args.request else None
    data = run.load_data(args.dataset, args.forget_split, args.retain_split, args.columns, request)
    bed = run.default_testbed(args.forget_split) if args.model is None and args.adapter is None else None
    source = str(bed.target) if bed else args.model or args.adapter
    tier = args.eval or ("full" if args.model is None and args.adapter is None else "quick")
    tokenizer = load_tokenizer(source)
    evaluator = run.make_evaluator(tokenizer, data, args, args.suite(tier), args.eval_retain_rows)
    cache = cache_dir() / "evaluations" if args.eval_cache else None
    if args.before == "base" and not args.adapter and not adapter_layers(source):
        raise ValueError("`--before base` evaluates a model without its adapter, but there is none: give `--adapter`.")
    reference = run.reference_report(args, data, evaluator, bed, cache)
    before_report = EvalReport.load(args.before) if args.before and args.before != "base" else None
    if before_report:
        evaluator.require_fit(before_report, "before")
    evaluator.require(args.metrics, has_before=bool(args.before), has_reference=reference is not None)

    model = _load(args, source, state.device)
    adapted = isinstance(model, PeftModel)
    weights = fingerprint(model, None)
    before_name = fingerprint(model, newest_adapter(model)) if adapted else weights
    judge = run.judge_of(model, before_name)
    if args.before == "base":
        with without_newest_adapter(model):
            before_report = evaluate_once(evaluator, model, identity(model, weights), judge, cache)
    after = evaluate_once(evaluator, model, identity(model, weights), judge, cache)
    provenance = {
        "model": source,
        "adapter": args.adapter,
        "fingerprint": weights,
        "dataset": args.dataset or "bundled",
        "forget_split": data.forget_split,
        "retain_split": data.retain_split,
        "max_rows": args.max_rows or None,
    }
    report = EvalReport.compare(after, before_report, reference, provenance)
    if state.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        report.save(out)
        console = Console()
        console.print(report.table())
        if report.has_answers:
            console.print(report.answers_table())
        console.print(f"Wrote {out}/report.json, report.md and report.html")
    report.require(args.metrics)


def _load(args: EvalArguments, source: str, device: Any) -> Any:
    import torch

    from llm_unlearn.adapters import load_reference_adapter
    from llm_unlearn.models import load_model

    dtype = None if args.dtype is None else getattr(torch, args.dtype)
    if args.load_in_4bit or args.load_in_8bit:
        from transformers import BitsAndBytesConfig

        quantization = BitsAndBytesConfig(load_in_4bit=args.load_in_4bit, load_in_8bit=args.load_in_8bit)
        model = load_model(source, dtype, quantization_config=quantization, device_map={"": device})
    else:
        model = load_model(source, dtype).to(device)
    return load_reference_adapter(model, args.adapter) if args.adapter and args.model else model


if __name__ == "__main__":
    main()
