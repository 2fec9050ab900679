# /// script
# dependencies = ["llm-unlearn[recipes]"]
# ///
r"""CodeUnlearn, second half: delete the codes of a request, without a gradient step, and measure what that did.

On the embedded default, once `codeunlearn.py` has trained its bottleneck:

    accelerate launch recipes/codeunlearn_forget.py --config codeunlearn_forget-testbed

For a request on a real model:

    accelerate launch recipes/codeunlearn_forget.py --codebook out/codeunlearn/codebook --request request.json \
        --dataset locuslab/TOFU --retain_split retain90 --reference RETAIN_REPORT --output_dir out/codeunlearn-forget

`OUT/codebook` is the codebook with the request in force, on top of those it had. Request by request the same is done by
`llm-unlearn codes plan | apply | revoke | purge`. The verbs are in `llm_unlearn/codebook/unlearner.py`.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from common import DataArguments, at_a_terminal, parse_plainly

from llm_unlearn.data.tokenization import DEFAULT_SYSTEM_PROMPT
from llm_unlearn.flags import EvaluationFlags


@dataclass
class ForgetArguments(EvaluationFlags, DataArguments):
    """Which codebook, what to forget, how strongly, and what is measured."""

    codebook: str = field(default="out/codeunlearn/codebook", metadata={"help": "Folder of the trained bottleneck."})
    output_dir: str = field(default="out/codeunlearn_forget", metadata={"help": "Folder for codebook and report."})
    request_id: str | None = field(
        default=None, metadata={"help": "Name of the deletion. Unset: the request's own, or the forget split's."}
    )
    control: str = field(
        default="swap",
        metadata={
            "help": "Control texts: swap (the same with other names), siblings (nearest rows to keep), or a split."
        },
    )
    selection: Literal["corrected", "paper"] = field(
        default="corrected", metadata={"help": "Rule by which codes are chosen: ours, or the paper's."}
    )
    min_enrichment: float | None = field(
        default=None,
        metadata={"help": "Codes must be used this many doublings more often. Unset: the rule's (1 or 0)."},
    )
    levels: list[int] = field(default_factory=list, metadata={"help": "List lengths S', ascending. Unset: S, 2S, 4S."})
    mode: Literal["ablate", "refill", "gated"] = field(
        default="ablate",
        metadata={"help": "Deleted codes say nothing, are replaced by the next (the paper's), or gated."},
    )
    strength: str = field(default="auto", metadata={"help": "Position in the levels, or auto: within the budget."})
    max_retain_rise: float = field(
        default=0.02, metadata={"help": "Budget of auto: relative rise of the loss on the rows to keep."}
    )
    max_probability: float | None = field(
        default=None,
        metadata={"help": "Of auto: forget answers' probability that is low enough. Unset: as low as can be."},
    )
    max_silent: float = field(
        default=0.0, metadata={"help": "Share of the tokens to keep that ablate may leave without any code."}
    )
    control_variants: int = field(default=8, metadata={"help": "Control texts per text, with different names."})
    retain_rows: int = field(default=400, metadata={"help": "Rows to keep that are read; the first of the split."})
    use_cpu: bool = field(default=False, metadata={"help": "Stay on the CPU where there is a GPU."})
    seed: int = field(default=0, metadata={"help": "Of the control texts and the random deletions."})
    system_prompt: str = field(
        default=DEFAULT_SYSTEM_PROMPT, metadata={"help": "System message under a chat template; empty for none."}
    )
    max_length: int = field(default=512, metadata={"help": "Longest sequence in tokens."})


def main() -> None:
    """Delete with the flags of the command line."""
    with at_a_terminal():
        forget(parse_plainly("codeunlearn_forget", ForgetArguments))


def forget(args: ForgetArguments) -> None:
    """The steps: codebook, data, evaluation before, plan, curve, deletion, evaluation after, report."""
    import time
    from dataclasses import replace

    from rich.console import Console

    import llm_unlearn.run as run
    from llm_unlearn.codebook.card import codebook_card
    from llm_unlearn.codebook.config import CodebookConfig
    from llm_unlearn.codebook.model import CodebookModel
    from llm_unlearn.codebook.plot import trade_off
    from llm_unlearn.codebook.selection import CORRECTED, PAPER
    from llm_unlearn.codebook.tables import curve_table
    from llm_unlearn.codebook.unlearner import CodeUnlearner
    from llm_unlearn.data.sources import load_rows
    from llm_unlearn.data.tofu import source_or_bundled
    from llm_unlearn.data.tokenization import ExampleTokenizer
    from llm_unlearn.evaluation.cache import evaluate_once
    from llm_unlearn.evaluation.html import svg_file
    from llm_unlearn.evaluation.outputs.sharding import process_state
    from llm_unlearn.evaluation.report import EvalReport
    from llm_unlearn.files import write_text
    from llm_unlearn.models import absolute, identity, load_tokenizer
    from llm_unlearn.paths import cache_dir
    from llm_unlearn.requests import KnowledgeRequest

    state = process_state()
    console = Console(quiet=not state.is_main_process)
    out, folder = Path(args.output_dir), Path(args.codebook)
    run.check_output(out, None, args.overwrite)
    if not folder.is_dir():
        raise ValueError(
            f"There is no codebook in {folder}: train one first (`accelerate launch recipes/codeunlearn.py`), or "
            "give its folder (`--codebook`)."
        )
    if args.strength != "auto" and not args.strength.isdigit():
        raise ValueError(f"`--strength` is {args.strength!r}; give auto, or a position in the levels, from 0.")
    request = KnowledgeRequest.load(args.request) if args.request else None
    data = run.load_data(args.dataset, args.forget_split, args.retain_split, args.columns, request)
    place = source_or_bundled(args.dataset)
    control = args.control
    if control not in ("swap", "siblings"):
        control = list(load_rows(control, place, args.columns))
    tokenizer = load_tokenizer(str(folder))
    bed = None if args.dataset else run.default_testbed(args.forget_split)
    if bed and (CodebookConfig.load(folder).base or {}).get("source") != absolute(bed.target):
        bed = None
    tier = args.eval or ("full" if bed else "quick")
    evaluator = reference = None
    cache = cache_dir() / "evaluations" if args.eval_cache else None
    if tier != "none":
        evaluator = run.make_evaluator(tokenizer, data, args, args.suite(tier), args.eval_retain_rows)
        reference = run.reference_report(args, data, evaluator, bed, cache)
        evaluator.require(args.metrics, has_before=True, has_reference=reference is not None)

    codebook = CodebookModel.load(folder)
    codebook.base_model.to("cpu" if args.use_cpu else state.device)
    model = codebook.base_model
    before = evaluate_once(evaluator, model, identity(model), None, cache) if evaluator else None
    tokenize = ExampleTokenizer(tokenizer, args.system_prompt, args.max_length)
    unlearner = CodeUnlearner(codebook, tokenize, progress=state.is_main_process)
    rule = {"corrected": CORRECTED, "paper": PAPER}[args.selection]
    if args.min_enrichment is not None:
        rule = replace(rule, min_enrichment=args.min_enrichment)
    began = time.perf_counter()
    plan = unlearner.plan(
        request or list(data.forget),
        list(data.retain)[: args.retain_rows],
        id=args.request_id or (None if request else args.forget_split.replace("[", ".").replace(":", "-").rstrip("]")),
        control=control,
        rule=rule,
        levels=args.levels,
        variants=args.control_variants,
        seed=args.seed,
    )
    planned = time.perf_counter()
    console.print(plan.selection.table())
    plan = unlearner.sweep(plan, (args.mode,), seed=args.seed)
    swept = time.perf_counter()
    console.print(curve_table(plan))
    strength = args.strength if args.strength == "auto" else int(args.strength)
    name = unlearner.apply(
        plan,
        strength,
        args.mode,
        max_retain_rise=args.max_retain_rise,
        max_probability=args.max_probability,
        max_silent=args.max_silent,
    )
    record = codebook.registry[name]
    console.print(
        f"Deleted {len(record.codes)} of {codebook.config.num_codes} codes for {name!r} ({args.mode}): chosen in "
        f"{planned - began:.1f} s, strengths tried in {swept - planned:.1f} s, applied in "
        f"{time.perf_counter() - swept:.2f} s."
    )
    after = evaluator.evaluate(model, None) if evaluator else None
    told = {"codebook": codebook.weights_hash(), "request": name, "max_rows": args.max_rows or None}
    report = EvalReport.compare(after, before, reference, told) if after else None
    if state.is_main_process:
        run.remove_earlier(out)
        codebook.save_pretrained(out / "codebook", codebook_card(codebook, report))
        write_text(out / "curve.svg", svg_file(trade_off(plan.curve)))
        if report:
            report.save(out)
            console.print(report.table())
            if report.has_answers:
                console.print(report.answers_table())
        console.print(f"Wrote {out / 'codebook'}")
        if report:
            report.require(args.metrics)


if __name__ == "__main__":
    main()
