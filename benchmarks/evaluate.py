"""Time, memory and values of TOFU's evaluation: the toolkit against the plain way (`plain_evaluation.py`).

    python benchmarks/evaluate.py                                              # the testbed
    python benchmarks/evaluate.py --model PATH --dataset FOLDER --json OUT     # a real model, a folder of TOFU's names

forget01 with 40, 20 and 20 rows of retain, real authors and world facts, fp32 on the CPU. `default` is what a default
run of TOFU measures; `full` is every metric, with 40 rows of `--holdout_split` (by default the last of retain90, on
which the model must not have been trained) as outsiders. Both ways generate under the same caps: in `default` 1.5
times the true answer plus 16 tokens, in `full` 200, or `--max_new_tokens`. Every variant runs in a process of its own,
and the variants take turns. Tokenisation and loading are not counted. Memory is the peak of resident memory from the
loaded model on. Values must agree to 1e-5, those of attacks but for a tie; where they do not, or a value is lacking,
that is said and the status is 1.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

from measure import machine, peak_bytes, reset_peak

VARIANTS = ("plain-default", "ours-default", "plain-full", "ours-full")
FORGET, ROWS = "forget01", (40, 20, 20)
TOLERANCE = 1e-5


# The child: one variant, once.


def measure(name: str, args: argparse.Namespace) -> dict:
    """Evaluate once and return what was measured."""
    import torch
    from plain_evaluation import PlainEvaluation
    from transformers.utils import logging

    from llm_unlearn.data.tofu import load_tofu
    from llm_unlearn.data.tokenization import ExampleTokenizer
    from llm_unlearn.evaluation.passes import Judge
    from llm_unlearn.evaluation.suites import SuiteSettings, tofu_evaluator
    from llm_unlearn.models import load_model, load_tokenizer

    logging.set_verbosity_error()
    model, tokenizer = load_model(args.model, torch.float32), load_tokenizer(args.model)
    way, _, extent = name.partition("-")
    settings = SuiteSettings(
        "quick" if extent == "default" else "full",
        max_rows=ROWS,
        holdout_split=args.holdout_split if extent == "full" else None,
        max_new_tokens=args.max_new_tokens or 200,
        progress=False,
    )
    forget = list(load_tofu(FORGET, args.dataset))[: args.rows]
    evaluator = tofu_evaluator(ExampleTokenizer(tokenizer), forget, args.dataset, settings, forget_split=FORGET)
    if extent == "default":
        evaluator.sets = [data for data in evaluator.sets if data.name != "holdout"]
    sets = {data.name: data for data in evaluator.sets}
    caps = {name: [evaluator.cap(item) for item in data.items] for name, data in sets.items()}
    clock = Clock()
    # Weights are mapped from their file and count as resident once they have been read.
    for weight in model.parameters():
        weight.sum()
    loaded = reset_peak()
    start = time.perf_counter()
    if way == "plain":
        plain = PlainEvaluation(model, evaluator.tokenizer, sets, caps)
        values = plain.default() if extent == "default" else plain.everything()
    else:
        clock.watch()
        judge = Judge("itself", lambda: nullcontext(model)) if extent == "full" else None
        report = evaluator.evaluate(model, judge)
        values = {key: record.value for key, record in report.metrics.items() if record.value is not None}
    return {
        "seconds": time.perf_counter() - start,
        "parts": clock.parts,
        "peak_gb": peak_bytes() / 1e9,
        "loaded_gb": loaded / 1e9,
        "values": {key: float(value) for key, value in values.items()},
        "scoring": scoring_work(model, evaluator),
        "threads": torch.get_num_threads(),
    }


class Clock:
    """Seconds in each kind of pass of the toolkit."""

    def __init__(self):
        self.parts: dict[str, float] = {}

    def watch(self) -> None:
        from llm_unlearn.evaluation import passes

        for name in ("score", "generate", "continue_answers", "gradient_norms"):
            setattr(passes, name, self._timed(name, getattr(passes, name)))

    def _timed(self, name, function):
        def timed(*args, **kwargs):
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.parts[name] = self.parts.get(name, 0) + time.perf_counter() - start

        return timed


def scoring_work(model, evaluator) -> dict[str, float]:
    """Tokens of the scoring pass, its floating-point operations, and how many a second the machine does at best."""
    import torch

    from llm_unlearn.evaluation.outputs.trees import common_prefix

    questions = [question for data in evaluator.sets for question in data.questions()]
    head = model.get_output_embeddings().weight
    inner = sum(p.numel() for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n and p is not head)
    shared = len(common_prefix(questions))
    fed = shared + sum(question.n_tokens - shared for question in questions)
    predicted = sum(question.n_tokens - len(question.prompt) + 1 for question in questions)
    a, b = torch.randn(4096, 576), torch.randn(576, 1536)
    a @ b
    start = time.perf_counter()
    for _ in range(20):
        a @ b
    rate = 20 * 2 * a.numel() * b.shape[1] / (time.perf_counter() - start)
    apart = sum(len(question.prompt) + len(answer) for question in questions for answer in question.answers)
    return {
        "sequences": sum(len(question.answers) for question in questions),
        "tokens": fed,
        "tokens_apart": apart,
        "operations": 2.0 * (inner * fed + head.numel() * predicted),
        "operations_per_second": rate,
    }


# The parent. It stays small (no torch): on Linux a child inherits the peak of the process that started it.


def run_children(args: argparse.Namespace) -> dict[str, list[dict]]:
    """All variants in turn, `repeats` times; the results by variant."""
    runs: dict[str, list[dict]] = {name: [] for name in args.variants}
    for repeat in range(args.repeats):
        for name in args.variants:
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "result.json"
                command = [sys.executable, __file__, "--child", name, "--json", str(out), "--model", args.model]
                command += ["--holdout_split", args.holdout_split, "--rows", str(args.rows)]
                command += ["--dataset", args.dataset] if args.dataset else []
                command += ["--max_new_tokens", str(args.max_new_tokens)] if args.max_new_tokens else []
                done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
                if done.returncode:
                    raise SystemExit(f"{done.stderr}\n{name} failed; nothing was written.")
                result = json.loads(out.read_text(encoding="utf-8"))
            runs[name].append(result)
            print(f"{name}, repeat {repeat + 1}: {result['seconds']:.1f} s, {result['peak_gb']:.2f} GB", flush=True)
    return runs


def summarise(runs: dict[str, list[dict]], pairs: int) -> dict:
    """Medians, the ratios plain / ours, the largest difference of a value, and where values do not agree.

    Args:
        runs: results by variant.
        pairs: members times outsiders of the attacks; 0 where none was run.
    """
    summary: dict = {"variants": {}, "ratios": []}
    for name, repeats in runs.items():
        summary["variants"][name] = {
            key: statistics.median(run[key] for run in repeats) for key in ("seconds", "peak_gb", "loaded_gb")
        }
        parts = repeats[0]["parts"]
        if parts:
            summary["variants"][name]["parts"] = {k: statistics.median(r["parts"][k] for r in repeats) for k in parts}
            work, seconds = repeats[0]["scoring"], summary["variants"][name]["parts"]["score"]
            summary["variants"][name]["scoring"] = {
                **work,
                "share_of_matrix_product_limit": work["operations"] / seconds / work["operations_per_second"],
            }
    for extent in ("default", "full"):
        plain, ours = (runs.get(f"{way}-{extent}") for way in ("plain", "ours"))
        if plain and ours:
            a, b = plain[0]["values"], ours[0]["values"]
            gaps = {key: abs(a[key] - b[key]) for key in a.keys() & b.keys()}
            # A not-a-number agrees with nothing.
            differing = {key: gap for key, gap in sorted(gaps.items()) if not gap <= tolerance(key, pairs)}
            worst = max(gaps, key=gaps.get, default=None)
            of = {way: summary["variants"][f"{way}-{extent}"] for way in ("plain", "ours")}
            summary["ratios"].append(
                {
                    "suite": extent,
                    "time": of["plain"]["seconds"] / of["ours"]["seconds"],
                    "memory": of["ours"]["peak_gb"] / of["plain"]["peak_gb"],
                    "memory_above_the_model": (of["ours"]["peak_gb"] - of["ours"]["loaded_gb"])
                    / (of["plain"]["peak_gb"] - of["plain"]["loaded_gb"]),
                    "values_compared": len(gaps),
                    "largest_difference": gaps.get(worst),
                    "of": worst,
                    "differing": differing,
                    "lacking": sorted(a.keys() - b.keys()),
                }
            )
    return summary


def tolerance(name: str, pairs: int) -> float:
    """By how much two ways may differ in a value.

    An attack's is an AUC, a share of `pairs`: a member and an outsider whose scores are equal up to rounding may be in
    order one way and tied or in reverse the other, which moves it by a half or by one pair. Two pairs would be no tie.
    """
    return max(TOLERANCE, 1.5 / pairs) if pairs and name.startswith("mia_") else TOLERANCE


def disagreements(summary: dict, pairs: int) -> list[str]:
    """A line for every value that differs or is lacking."""
    lines = []
    for ratio in summary["ratios"]:
        for name, gap in ratio["differing"].items():
            lines.append(f"{ratio['suite']}: {name} differs by {gap:.2g}, more than {tolerance(name, pairs):.2g}.")
        lines += [f"{ratio['suite']}: {name} is lacking in ours." for name in ratio["lacking"]]
    return lines


def pairs_of_attacks(args: argparse.Namespace) -> int:
    """Members times outsiders. Call it when all children are done: it makes this process large."""
    from llm_unlearn.data.tofu import load_tofu

    forget, outsiders = (len(load_tofu(split, args.dataset)) for split in (FORGET, args.holdout_split))
    return min(args.rows, forget) * outsiders


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="model folder or hub id; unset, the target model of the testbed")
    parser.add_argument("--dataset", help="folder or hub id with TOFU's names; unset, the bundled data")
    parser.add_argument("--holdout_split", default="retain90[-40:]", help="outsiders, for the full suite")
    parser.add_argument("--rows", type=int, default=40, help="forget rows")
    parser.add_argument("--max_new_tokens", type=int, help="one cap for all answers")
    parser.add_argument("--repeats", type=int, default=1, help="processes per variant")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--json", type=Path, help="where to write all numbers")
    parser.add_argument("--child", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        args.json.write_text(json.dumps(measure(args.child, args)), encoding="utf-8")
        return
    if args.model is None:
        from llm_unlearn.testbed import testbed

        args.model = str(testbed().target)
    runs = run_children(args)
    pairs = pairs_of_attacks(args) if any(name.endswith("-full") for name in runs) else 0
    summary = summarise(runs, pairs)
    print(json.dumps(summary, indent=2))
    if args.json:
        threads = next(iter(runs.values()))[0]["threads"]
        record = {"settings": {k: v for k, v in vars(args).items() if k not in ("json", "child")},
                  "machine": machine(threads), **summary, "runs": runs}  # fmt: skip
        args.json.write_text(json.dumps(record, indent=2, default=str) + "\n", encoding="utf-8")
        print(f"Wrote {args.json}.")
    found = disagreements(summary, pairs)
    if found:
        raise SystemExit("\n".join(["The two ways do not agree.", *found]))


if __name__ == "__main__":
    main()
