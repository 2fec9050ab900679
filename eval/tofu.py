r"""Evaluate a model or an adapter on the sets of TOFU, and write a report that can serve as a reference.

The report of a retain model, to which unlearned models are then compared:

    python eval/tofu.py --model RETAIN --output_dir out/retain --dataset tofu --forget_split forget10

An unlearned model beside it (`--model` may be the `adapter` folder of a run):

    python eval/tofu.py --model out/npo-forget10/adapter --reference out/retain --dataset tofu --output_dir out/after

Several processes: `llm-unlearn eval --num_processes 2 ...`.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from transformers import HfArgumentParser

from llm_unlearn.data.tokenization import DEFAULT_SYSTEM_PROMPT
from llm_unlearn.quiet import quiet_upstream


@dataclass
class EvalArguments:
    """What to evaluate, on which rows, and where the report goes."""

    model: str = field(metadata={"help": "Hub id, model folder, or PEFT folder such as the `adapter` of a run."})
    output_dir: str = field(metadata={"help": "Folder for report.json and report.md."})
    dataset: str | None = field(
        default=None, metadata={"help": "Hub id (locuslab/TOFU), folder of JSON lines, or unset for the bundled data."}
    )
    forget_split: str = field(default="forget10", metadata={"help": "Split to forget; rows as in forget10[0:20]."})
    retain_split: str = field(default="retain90", metadata={"help": "Split to keep; rows as in retain90[0:160]."})
    retain_rows: int = field(
        default=400, metadata={"help": "Rows of the retain split to evaluate where retain_perturbed is not used."}
    )
    eval: Literal["train", "quick", "full"] = field(default="quick", metadata={"help": "How much is generated."})
    reference: str | None = field(default=None, metadata={"help": "Report of the retain model, a file or its folder."})
    dtype: Literal["bfloat16", "float32"] | None = field(
        default=None, metadata={"help": "Weights' dtype. Unset: float32 on CPU, bfloat16 on a GPU."}
    )
    system_prompt: str = field(
        default=DEFAULT_SYSTEM_PROMPT, metadata={"help": "System message under a chat template; empty for none."}
    )
    max_length: int = field(default=512, metadata={"help": "Longest sequence in tokens."})


def main() -> None:
    """Parse the flags and evaluate; a user's mistake ends in one sentence."""
    quiet_upstream()
    try:
        evaluate(*HfArgumentParser(EvalArguments, allow_abbrev=False).parse_args_into_dataclasses())
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def evaluate(args: EvalArguments) -> None:
    """Data, model, scores and answers, report."""
    import torch
    from rich.console import Console

    from llm_unlearn import run
    from llm_unlearn.evaluation.report import EvalReport
    from llm_unlearn.models import fingerprint, load_model, load_tokenizer

    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    data = run.load_data(args.dataset, args.forget_split, args.retain_split, {})
    evaluator = run.make_evaluator(load_tokenizer(args.model), data, args, args.eval, args.retain_rows)
    reference = EvalReport.load(args.reference) if args.reference else None
    if reference:
        evaluator.require_fit(reference)
    dtype = None if args.dtype is None else getattr(torch, args.dtype)
    model = load_model(args.model, dtype).to(state.device)

    provenance = {
        "model": args.model,
        "fingerprint": fingerprint(model),
        "dataset": args.dataset or "bundled",
        "forget_split": args.forget_split,
        "retain_split": args.retain_split,
    }
    report = EvalReport.compare(evaluator.evaluate(model), reference=reference, provenance=provenance)
    if state.is_main_process:
        Path(args.output_dir).mkdir(parents=True, exist_ok=True)
        report.save(args.output_dir)
        Console().print(report.table(), report.answers_table())
        Console().print(f"Wrote {args.output_dir}/report.json")


if __name__ == "__main__":
    main()
