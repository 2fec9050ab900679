"""What the benchmark of evaluation says of its runs."""

import argparse
import importlib.util
import json
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).parents[1] / "benchmarks" / "evaluate.py"


@pytest.fixture
def benchmark(monkeypatch):
    # It imports its neighbours. Its own name is also that of a package.
    monkeypatch.syspath_prepend(str(FILE.parent))
    spec = importlib.util.spec_from_file_location("benchmark_of_evaluation", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ran(seconds, peak_gb, **values):
    """One child's result. The product of matrices alone would take 8 / 4 = 2 seconds."""
    return {
        "seconds": seconds,
        "parts": {"score": 4.0},
        "peak_gb": peak_gb,
        "loaded_gb": 1.0,
        "values": {name.replace("__", "/"): value for name, value in values.items()},
        "scoring": {"operations": 8.0, "operations_per_second": 4.0},
        "threads": 1,
    }


def test_a_summary_has_medians_ratios_and_the_largest_difference(benchmark):
    plain = [ran(seconds, 3.0, forget__ma=0.5, mem=0.25) for seconds in (30, 10, 20)]
    ours = [ran(5, 2.0, forget__ma=0.5, mem=0.25 + 4e-6, priv=1.0)]
    summary = benchmark.summarise({"plain-full": plain, "ours-full": ours}, 1600)
    assert summary["variants"]["plain-full"]["seconds"] == 20
    assert summary["variants"]["ours-full"]["scoring"]["share_of_matrix_product_limit"] == 0.5
    (ratio,) = summary["ratios"]
    assert (ratio["suite"], ratio["time"], ratio["memory_above_the_model"]) == ("full", 4, 0.5)
    assert (ratio["values_compared"], ratio["of"]) == (2, "mem")
    assert ratio["largest_difference"] == pytest.approx(4e-6)
    # What ours has beyond the plain way is no disagreement.
    assert (ratio["differing"], ratio["lacking"]) == ({}, [])
    assert benchmark.disagreements(summary, 1600) == []


def test_values_that_differ_or_are_lacking_are_named(benchmark):
    # Of 4 x 5 pairs, one in reverse moves an AUC by 0.05, two move it by 0.1.
    plain = ran(2, 2.0, forget__ma=0.5, forget__zrf=0.3, el=0.1, mia_loss=0.5, mia_zlib=0.5, nan=float("nan"))
    ours = ran(1, 2.0, forget__ma=0.50002, el=0.1, mia_loss=0.55, mia_zlib=0.6, nan=0.0)
    default = {"plain-default": [ran(2, 2.0, mem=0.5)], "ours-default": [ran(1, 2.0)]}
    summary = benchmark.summarise({**default, "plain-full": [plain], "ours-full": [ours]}, 20)
    nothing, full = summary["ratios"]
    assert list(full["differing"]) == ["forget/ma", "mia_zlib", "nan"]
    assert full["differing"]["mia_zlib"] == pytest.approx(0.1)
    assert full["lacking"] == ["forget/zrf"]
    assert (nothing["values_compared"], nothing["largest_difference"], nothing["lacking"]) == (0, None, ["mem"])
    assert benchmark.disagreements(summary, 20) == [
        "default: mem is lacking in ours.",
        "full: forget/ma differs by 2e-05, more than 1e-05.",
        "full: mia_zlib differs by 0.1, more than 0.075.",
        "full: nan differs by nan, more than 1e-05.",
        "full: forget/zrf is lacking in ours.",
    ]
    # Of many pairs one is next to nothing, and the rounding of the others' values is allowed.
    assert benchmark.tolerance("mia_loss", 10**6) == 1e-5


@pytest.mark.parametrize("agree", [True, False])
def test_it_fails_after_writing_where_the_ways_do_not_agree(agree, benchmark, tmp_path, monkeypatch, capsys):
    runs = {"plain-default": [ran(2, 2.0, mem=0.5)], "ours-default": [ran(1, 2.0, mem=0.5 if agree else 0.6)]}
    monkeypatch.setattr(benchmark, "run_children", lambda args: runs)
    out = tmp_path / "out.json"
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--model", "M", "--json", str(out)])
    if agree:
        benchmark.main()
    else:
        with pytest.raises(SystemExit, match="do not agree.\ndefault: mem differs by 0.1, more than 1e-05"):
            benchmark.main()
    assert json.loads(out.read_text())["runs"] == runs
    assert "largest_difference" in capsys.readouterr().out


def test_the_attacks_have_as_many_pairs_as_members_times_outsiders(benchmark, tmp_path):
    for name, count in (("forget01", 6), ("retain90", 9)):
        rows = [json.dumps({"question": f"{name} {row}?", "answer": "Yes."}) for row in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    args = argparse.Namespace(rows=40, dataset=str(tmp_path), holdout_split="retain90[-5:]")
    assert benchmark.pairs_of_attacks(args) == 6 * 5
    args.rows = 4
    assert benchmark.pairs_of_attacks(args) == 4 * 5
