import io
import subprocess
import sys
from dataclasses import replace

import pytest
from rich.console import Console
from sample_report import sample_report, without_reference

from llm_unlearn import cli
from llm_unlearn.evaluation.comparison import compare, distance_from_target, load_runs
from llm_unlearn.evaluation.html import comparison_page
from llm_unlearn.evaluation.svg import number


@pytest.fixture(scope="module")
def runs():
    return {
        "near": sample_report(seed=1, probability=0.13, kept=0.6),
        "collapsed": sample_report(seed=2, probability=0.01, log_ratio=1.5, kept=0.1),
        "timid": sample_report(seed=3, probability=0.6, log_ratio=-0.6, kept=0.6),
    }


def row_of(comparison, name):
    return next(row for row in comparison.rows if row.name == name)


def with_value(report, name, value, **changes):
    record = replace(report.metrics[name], value=value, **changes)
    return replace(report, metrics={**report.metrics, name: record})


def test_best_is_nearest_to_the_target_not_lowest(runs):
    comparison = compare(runs)
    row = row_of(comparison, "forget/probability")
    values = [record.value for record in row.records]
    assert values == [report.metrics["forget/probability"].value for report in runs.values()]
    assert min(values) == values[1] and row.best == {0}
    assert row.target == runs["near"].reference["forget/probability"].value == row.reference
    assert row.before == runs["near"].before["forget/probability"].value
    # The p of a collapsed model and of a timid one are far apart although 1 - p is 1.0 for both.
    assert row_of(comparison, "forget_quality").best == {0}


def test_beyond_the_target_is_fine_only_where_more_is_wanted(runs):
    report = runs["near"]
    target = report.metrics["model_utility"].target
    above = replace(report.metrics["model_utility"], value=target + 0.1)
    assert distance_from_target("model_utility", above) == 0
    below = replace(report.metrics["forget/probability"], value=0.0, target=0.1)
    assert distance_from_target("forget/probability", below) == pytest.approx(0.1)
    # Memorisation scores are better the higher, but aim at the retain model's.
    assert distance_from_target("mem", replace(above, value=0.9, target=0.8)) == pytest.approx(0.1)
    assert distance_from_target("forget/probability", replace(below, target=None)) is None


def test_nothing_is_best_without_direction_or_target_and_among_equals(runs):
    name = "forget/truth_ratio"  # the same in all samples
    assert row_of(compare(runs), name).best == frozenset()
    bare = {
        label: with_value(report, "privleak", value, target=None)
        for (label, report), value in zip(runs.items(), (-50.0, 0.0, 50.0), strict=True)
    }
    assert row_of(compare(bare), "privleak").best == frozenset()
    # Some with a target, some without: no common measure.
    mixed = {**runs, "near": with_value(runs["near"], "forget/probability", 0.1, target=None)}
    assert row_of(compare(mixed), "forget/probability").best == frozenset()
    directed = {
        label: with_value(report, "forget/probability", value, target=None)
        for (label, report), value in zip(runs.items(), (0.5, 0.2, 0.3), strict=True)
    }
    assert row_of(compare(directed), "forget/probability").best == {1}


def test_tables_show_the_same_numbers(runs):
    comparison = compare(runs)
    console = Console(width=120, file=io.StringIO())
    console.print(comparison.table())
    terminal, markdown, page = console.file.getvalue(), comparison.to_markdown(), comparison_page(comparison)
    for row in comparison.rows:
        line = next(
            line for line in markdown.splitlines() if line.startswith(f"| {row.name} ") or f"| {row.name} |" in line
        )
        shown = next(line for line in terminal.splitlines() if line.split()[:1] == [row.name])
        for position, record in enumerate(row.records):
            value = number(record.value)
            assert (f"**{value}**" in line) == (position in row.best) or value in line
            assert value in shown and f"<b>{value}</b>" in page
    assert page.count('class="best"') == sum(len(row.best) for row in comparison.rows)
    for note in comparison.notes:
        assert note in markdown
    for name in runs:
        assert f"{name}: utility" in page
    assert page.count("<svg") == 2 and "http" not in page.replace("http-equiv", "")


def test_runs_on_other_rows_definitions_or_tokens_are_refused(runs):
    near = runs["near"]
    changed = [{**item, "answer": "Another."} if item["row"] == 7 else item for item in near.items]
    tokens = [{**item, "n_tokens": item["n_tokens"] + (item["row"] == 5)} for item in near.items]
    others = {
        "40 forget rows, the other on 60": sample_report(60),
        "forget row 7 is": replace(near, items=changed),
        "forget/probability is defined as fixed in one and as open_unlearning in the other": sample_report(
            compat="open_unlearning"
        ),
        "forget row 5 has 25 tokens in one and 26 in the other": replace(near, items=tokens),
        "token ids of their forget rows differ": replace(near, provenance={**near.provenance, "forget_ids": "cd"}),
    }
    for sentence, other in others.items():
        with pytest.raises(ValueError, match=sentence) as error:
            # The odd one stands last: every pair is checked, not only neighbours.
            compare({"near": near, "timid": runs["timid"], "odd": other})
        assert "near and odd cannot stand in one table" in str(error.value)


def test_what_differs_without_forbidding_a_table_is_said(runs):
    quick = replace(runs["timid"], provenance={**runs["timid"].provenance, "tier": "quick"})
    quick = with_value(quick, "retain/rouge_l_recall", 0.5, n=20)
    comparison = compare({"near": runs["near"], "quick": quick})
    assert "The runs differ in tier. near: full; quick: quick." in comparison.notes
    assert any("different numbers of items: retain/rouge_l_recall." in note for note in comparison.notes)
    assert row_of(comparison, "retain/rouge_l_recall").counts == [40, 20]
    rules = {"near": "greedy, at most 200 new tokens", "quick": "greedy, at most 60 new tokens"}
    limited = {
        name: replace(runs["near"], provenance={**runs["near"].provenance, "generation": rule})
        for name, rule in rules.items()
    }
    assert (
        "The runs differ in generation. near: greedy, at most 200 new tokens; quick: greedy, at most 60 new tokens. "
        "Texts were cut at different lengths."
    ) in compare(limited).notes
    alone = compare({"near": runs["near"], "alone": without_reference(runs["timid"])})
    assert any("do not share their retain models" in note for note in alone.notes)
    assert row_of(alone, "forget_quality").records[1].value is None
    assert "not measured" in alone.to_markdown()


def test_names_are_folders_made_distinct(tmp_path, runs):
    for place in ("a/run", "b/run", "c"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "report.json").write_text(runs["near"].to_json())
    (tmp_path / "other.json").write_text(runs["near"].to_json())
    assert list(load_runs([tmp_path / "a/run", tmp_path / "c/report.json"])) == ["run", "c"]
    assert list(load_runs([tmp_path / "a/run", tmp_path / "b/run"])) == ["a/run", "b/run"]
    assert list(load_runs([tmp_path / "c", tmp_path / "other.json"])) == ["c", "other"]
    with pytest.raises(ValueError, match="given twice"):
        load_runs([tmp_path / "c", tmp_path / "c/../c"])
    with pytest.raises(ValueError, match="two runs, but 1 given"):
        load_runs([tmp_path / "c"])
    with pytest.raises(FileNotFoundError, match="no report"):
        load_runs([tmp_path / "c", tmp_path / "nowhere"])


def test_the_commands_write_their_pages(tmp_path, runs, monkeypatch, capsys):
    folders = [tmp_path / name for name in runs]
    for folder, report in zip(folders, runs.values(), strict=True):
        folder.mkdir()
        (folder / "report.json").write_text(report.to_json())

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["llm-unlearn", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert stopped.value.code in (0, None), stopped.value.code
        return capsys.readouterr().out

    assert "collapsed" in command("report", "compare", *folders, "--output_dir", tmp_path / "out")
    assert (tmp_path / "out/comparison.md").read_text().startswith("# Comparison of 3 runs")
    assert (tmp_path / "out/comparison.html").read_text().startswith("<!doctype html>")
    command("report", "html", folders[0])
    assert "Evaluation report" in (folders[0] / "report.html").read_text()


def test_comparing_imports_nothing_heavy(tmp_path, runs):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(runs["near"].to_json())
    code = (
        "import sys; from llm_unlearn.cli import main\n"
        "try: main()\n"
        "finally: print('IMPORTED', *sorted({name.partition('.')[0] for name in sys.modules}))\n"
    )
    arguments = ["report", "compare", tmp_path / "a", tmp_path / "b", "--output_dir", tmp_path / "out"]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    heavy = {"torch", "transformers", "peft", "datasets", "accelerate", "scipy", "pandas", "huggingface_hub"}
    assert not heavy & set(done.stdout.splitlines()[-1].split())
