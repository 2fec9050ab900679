"""Methods at the same point: a run ends at its first epoch with the forget set known no better than by the twin.

    python benchmarks/matched_stopping.py --output_dir out/matched                 # the embedded default, three seeds
    python benchmarks/matched_stopping.py --output_dir out/matched -- --eval quick  # further flags go to every recipe

"No better known": mean MA and mean EL_10 at most those of the retain-only twin, looked at after every epoch, at most 30
epochs. Every run is a recipe with its own preset, so a run that was already made is read and not made again. The table
shows mean and standard deviation over the seeds.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Epochs with the stop rule as the only judge; ICU's two have their own judges beside it.
STOP_ONLY = ["--refine", "--iur_judge", "none"]
RUNS = {
    # The released code's losses, coefficients, flags, BLEU rule and stop rule; rate and adapter of icu-testbed.
    "icu paper": (
        "icu",
        ["--forget_loss", "ga", "--forget_token_scope", "all", "--learn_coef", "0.5", "--kl_coef", "1", "--kl_form",
         "ce", "--kl_mask_pad", "false", "--pair_rotate", "false", "--pair_max_overlap", "1000", "--iur_judge", "text",
         "--iur_beams", "2", "--iur_drop_partner", "true", "--iur_screen", "false", "--adam_beta2", "0.98",
         "--max_grad_norm", "0"],
    ),
    "icu recommended": ("icu", []),
    "grad_ascent": ("grad_ascent", STOP_ONLY),
    "grad_diff kl": ("grad_diff", [*STOP_ONLY, "--retain_loss", "kl"]),
    "npo": ("npo", STOP_ONLY),
}  # fmt: skip
METRICS = {
    "forget MA": "forget/ma",
    "forget EL_10": "forget/el_10",
    "forget ROUGE-L": "forget/rouge_l_recall",
    "forget probability": "forget/probability",
    "retain ROUGE-L": "retain/rouge_l_recall",
    "model utility": "model_utility",
}


def run(name: str, seed: int, out: Path, epochs: int, flags: list[str]) -> dict:
    """One run, or what an earlier call left of it."""
    method, own = RUNS[name]
    folder = out / f"{name.replace(' ', '-')}-{seed}"
    if not (folder / "report.json").is_file():
        command = [sys.executable, str(ROOT / "recipes" / f"{method}.py"), "--output_dir", str(folder), "--overwrite"]
        command += ["--seed", str(seed), "--num_train_epochs", str(epochs), "--save_strategy", "no", *own, *flags]
        print("$", " ".join(command), flush=True)
        subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def row(name: str, reports: list[dict]) -> list[str]:
    """A line of the table."""
    cells = [name]
    for metric in METRICS.values():
        values = [report["metrics"][metric]["value"] for report in reports]
        if any(value is None for value in values):
            cells.append("not measured")
        else:
            deviation = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.3f} ± {deviation:.3f}")
    runs = [report["provenance"]["run"] for report in reports]
    epochs = [run["refinement"]["epochs"] for run in runs]
    ends = {"stop rule": 0, "cap": 0, "none active": 0, "guard": 0}
    for one in runs:
        outcome = one["refinement"]["outcome"]
        kind = "guard" if one["stopped"] else "stop rule" if "stop rule was reached" in outcome else ""
        ends[kind or ("none active" if "active any more" in outcome else "cap")] += 1
    shares = [run["refinement"]["seconds"] for run in runs]
    share = statistics.mean(s["looking"] / (s["looking"] + s["training"]) for s in shares)
    ended = ", ".join(f"{kind} {count}" for kind, count in ends.items() if count)
    return [*cells, f"{statistics.mean(epochs):.1f}", ended, f"{share:.0%}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for the runs and the table")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=30, help="cap on the epochs of a run")
    parser.add_argument("--methods", nargs="+", choices=RUNS, default=list(RUNS), metavar="NAME")
    parser.add_argument("flags", nargs="*", help="flags for every recipe, after --")
    args = parser.parse_args()
    head = ["method", *METRICS, "epochs", "ended by", "looking"]
    lines = [head, ["---"] * len(head)]
    reports: dict[str, list[dict]] = {}
    for seed in args.seeds:
        for name in args.methods:
            reports.setdefault(name, []).append(run(name, seed, args.output_dir, args.epochs, args.flags))
    for name, own in reports.items():
        lines.append(row(name, own))
    first = next(iter(reports.values()))[0]
    for whose in ("before", "reference"):
        values = [first.get(whose, {}).get(metric, {}).get("value") for metric in METRICS.values()]
        lines.append([whose, *("not measured" if value is None else f"{value:.3f}" for value in values), "", "", ""])
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    print(table)
    (args.output_dir / "table.md").write_text(table + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
