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

from common import DataArguments, at_a_terminal, parse_plainly

from llm_unlearn.codebook.flags import PlanningFlags, StrengthFlags
from llm_unlearn.data.tokenization import DEFAULT_SYSTEM_PROMPT
from llm_unlearn.flags import EvaluationFlags


@dataclass
class ForgetArguments(StrengthFlags, PlanningFlags, EvaluationFlags, DataArguments):
    """Which codebook, what to forget, how strongly, and what is measured."""

    codebook: str = field(default="out/codeunlearn/codebook", metadata={"help": "Folder of the trained bottleneck."})
    output_dir: str = field(default="out/codeunlearn_forget", metadata={"help": "Folder for codebook and report."})
    use_cpu: bool = field(default=False, metadata={"help": "Stay on the CPU where there is a GPU."})
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

    from rich.console import Console

    import llm_unlearn.run as run
    from llm_unlearn.codebook.card import codebook_card
    from llm_unlearn.codebook.config import CodebookConfig
    from llm_unlearn.codebook.model import CodebookModel
    from llm_unlearn.codebook.plot import trade_off
    from llm_unlearn.codebook.tables import curve_table
    from llm_unlearn.codebook.unlearner import CodeUnlearner
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
    run.check_output(out, None, args.overwrite, args.codebook)
    if not folder.is_dir():
        raise ValueError(
            f"There is no codebook in {folder}: train one first (`accelerate launch recipes/codeunlearn.py`), or "
            "give its folder (`--codebook`)."
        )
    args.level()
    request = KnowledgeRequest.load(args.request) if args.request else None
    data = run.load_data(args.dataset, args.forget_split, args.retain_split, args.columns, request)
    control = args.control_rows(args.dataset, args.columns)
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
    began = time.perf_counter()
    plan = args.plan(unlearner, request or list(data.forget), data.retain, control, args.forget_split)
    planned = time.perf_counter()
    console.print(plan.selection.table())
    plan = unlearner.sweep(plan, (args.mode,), seed=args.seed)
    swept = time.perf_counter()
    console.print(curve_table(plan))
    name = args.apply(unlearner, plan)
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
        codebook.save_pretrained(out / "codebook", codebook_card(codebook, report and report.metrics_markdown()))
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
