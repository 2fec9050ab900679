import dataclasses
import io
import json
from itertools import accumulate

import numpy as np
import pytest
from rich.console import Console
from tiny import tiny_model, tiny_rows, tiny_tokenizer

from llm_unlearn.data.tokenization import ExampleTokenizer
from llm_unlearn.evaluation import evaluator as evaluator_module
from llm_unlearn.evaluation.evaluator import EvalSet, Evaluator
from llm_unlearn.evaluation.report import NO_REFERENCE, EvalReport, item_record, versions

SIZES = {"holdout": 5, "world_facts": 22, "forget": 12, "retain": 43, "real_authors": 3}


@pytest.fixture(scope="module")
def tokenizer():
    return ExampleTokenizer(tiny_tokenizer())


@pytest.fixture(scope="module")
def sets(tokenizer):
    firsts = accumulate(SIZES.values(), initial=0)
    rows = {name: tiny_rows(size, first) for (name, size), first in zip(SIZES.items(), firsts, strict=False)}
    return [EvalSet(name, rows[name], tokenizer.all(rows[name])) for name in SIZES]


@pytest.fixture(scope="module")
def reports(tokenizer, sets):
    """Quick reports of three models: after, before, retain model."""
    evaluator = Evaluator(tokenizer, sets, max_new_tokens=12, progress=False)
    return [evaluator.evaluate(tiny_model(seed=seed)) for seed in range(3)]


def rendered(table):
    console = Console(width=600, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("tier", "answered"),
    [
        ("train", {}),
        ("quick", {"forget": 12, "retain": 40, "real_authors": 3, "world_facts": 20}),
        ("full", {"forget": 12, "retain": 43, "real_authors": 3, "world_facts": 22, "holdout": 5}),
    ],
)
def test_each_pass_runs_once(tier, answered, tokenizer, sets, monkeypatch):
    passes = {"score": {}, "generate": {}}

    def counted(kind, function):
        def run(model, items, *args, name, **options):
            assert name not in passes[kind]
            passes[kind][name] = len(items)
            return function(model, items, *args, name=name, **options)

        return run

    for kind in passes:
        monkeypatch.setattr(evaluator_module, kind, counted(kind, getattr(evaluator_module, kind)))
    model = tiny_model()
    forwards = []
    model.register_forward_hook(lambda *_: forwards.append(1))
    report = Evaluator(tokenizer, sets, tier, max_new_tokens=3, progress=False).evaluate(model)

    assert passes == {"score": SIZES, "generate": answered}
    assert list(passes["score"]) == ["forget", "retain", "real_authors", "world_facts", "holdout"]
    # Every set fits into one batch, which is scored in one forward and answered in at most three steps.
    assert 5 <= len(forwards) <= 5 + 3 * len(answered)
    for name, size in SIZES.items():
        assert report.metrics[f"{name}/probability"].n == size
        assert report.metrics[f"{name}/rouge_l_recall"].n == answered.get(name, 0)
        texts = [item["text"] for item in report.items if item["set"] == name]
        assert [text is not None for text in texts] == [row < answered.get(name, 0) for row in range(size)]
    assert report.provenance["tier"] == tier


def test_the_value_of_a_metric_is_the_mean_over_its_items(reports):
    after = reports[0]
    for name, record in after.metrics.items():
        set_name, metric = name.split("/")
        values = [item[metric] for item in after.items if item["set"] == set_name and metric in item]
        assert len(values) == record.n
        if record.n:
            assert record.value == pytest.approx(np.mean(values))
            assert record.ci95[0] <= record.value <= record.ci95[1]
    item = after.items[0]
    assert item["probability"] == pytest.approx(np.exp(-item["loss"]))
    assert item["loss"] == pytest.approx(-np.mean(item["token_logprobs"]), abs=1e-5)
    assert len(item["token_logprobs"]) == item["n_tokens"]
    assert {item["set"] for item in after.items if "token_logprobs" in item} == {"forget", "holdout"}


def test_what_a_tier_does_not_run_says_how_to_get_it(tokenizer, sets, reports):
    record = reports[0].metrics["holdout/rouge_l_recall"]
    assert record.value is record.ci95 is None
    assert record.not_measured == ("not measured: the quick tier generates no answers on holdout; use `--eval full`")
    report = Evaluator(tokenizer, sets, "train", progress=False).evaluate(tiny_model())
    assert report.metrics["forget/value_recall"].not_measured.endswith("on forget; use `--eval quick`")
    assert report.provenance["generation"] == "none"
    assert len(EvalReport.compare(report, reports[1]).answers_table().rows) == 0


def test_value_recall_reads_only_rows_with_a_value(tokenizer):
    rows = tiny_rows(4)
    rows[1] = {**rows[1], "value": None}
    rows[3] = {**rows[3], "value": 1983}
    rows[2] = {"question": rows[2]["question"], "answer": rows[2]["answer"]}
    report = Evaluator(tokenizer, [EvalSet("forget", rows, tokenizer.all(rows))], progress=False).evaluate(tiny_model())
    assert report.metrics["forget/value_recall"].n == 2
    assert ["value_recall" in item for item in report.items] == [True, False, False, True]

    bare = [{"question": row["question"], "answer": row["answer"]} for row in rows]
    report = Evaluator(tokenizer, [EvalSet("forget", bare, tokenizer.all(bare))], progress=False).evaluate(tiny_model())
    assert "forget/value_recall" not in report.metrics


def test_targets_come_from_the_retain_model_and_from_before(reports):
    after, before, retain = reports
    report = EvalReport.compare(after, before, retain)
    assert report.metrics["forget/probability"].value == after.metrics["forget/probability"].value
    assert report.metrics["forget/probability"].target == retain.metrics["forget/probability"].value
    assert report.metrics["retain/probability"].target == before.metrics["retain/probability"].value
    assert report.metrics["holdout/probability"].higher_is_better is None
    assert report.before["forget/probability"].value == before.metrics["forget/probability"].value
    assert report.reference["retain/probability"].value == retain.metrics["retain/probability"].value
    for block in (report.before, report.reference):
        assert {name: record.target for name, record in block.items()} == {
            name: record.target for name, record in report.metrics.items()
        }
    item = report.items[3]
    assert item["before"] == {key: before.items[3][key] for key in ("text", "probability", "loss")}
    assert item["reference"]["text"] == retain.items[3]["text"]
    assert "before" not in after.items[3]


def test_without_a_reference_the_report_says_how_to_make_one(reports):
    report = EvalReport.compare(*reports[:2], provenance={"command": "recipes/npo.py"})
    assert report.metrics["forget/probability"].target is None
    assert report.metrics["retain/probability"].target is not None
    for record in report.reference.values():
        assert record.value is None
        assert record.not_measured == NO_REFERENCE
    stored = json.loads(report.to_json())["reference"]["forget/probability"]
    assert stored["value"] is None
    assert stored["not_measured"].startswith("not measured: no reference report; make one with `llm-unlearn eval")
    assert report.to_markdown().count(NO_REFERENCE) == 1
    assert str(report.table().caption).count(NO_REFERENCE) == 1
    assert report.provenance["command"] == "recipes/npo.py"


def test_a_reference_of_a_smaller_tier_leaves_a_gap_with_a_reason(reports, tokenizer, sets):
    small = Evaluator(tokenizer, sets, "train", progress=False).evaluate(tiny_model(seed=2))
    report = EvalReport.compare(*reports[:2], small)
    assert report.metrics["forget/probability"].target is not None
    assert report.metrics["forget/rouge_l_recall"].target is None
    assert "use `--eval quick`" in report.reference["forget/rouge_l_recall"].not_measured

    without = dataclasses.replace(small, metrics={"forget/probability": small.metrics["forget/probability"]})
    report = EvalReport.compare(*reports[:2], without)
    assert "has no retain/probability" in report.reference["retain/probability"].not_measured


def test_a_reference_on_other_rows_is_refused(reports, tokenizer, sets):
    other_rows = tiny_rows(12, first=88)
    other = Evaluator(tokenizer, [EvalSet("forget", other_rows, tokenizer.all(other_rows))], "train", progress=False)
    strange = other.evaluate(tiny_model())
    with pytest.raises(ValueError, match="The reference report was made on other data: row 0 of forget has the answer"):
        EvalReport.compare(*reports[:2], strange)
    with pytest.raises(ValueError, match="The before report was made on other data"):
        EvalReport.compare(reports[0], strange)

    evaluator = Evaluator(tokenizer, sets)
    evaluator.require_fit(reports[2])
    with pytest.raises(ValueError, match="row 0 of forget"):
        evaluator.require_fit(strange)
    with pytest.raises(ValueError, match="row 11 of forget is missing there"):
        kept = [item for item in reports[2].items if (item["set"], item["row"]) != ("forget", 11)]
        evaluator.require_fit(dataclasses.replace(reports[2], items=kept))


def test_a_saved_report_reads_back_equal_and_leaves_nothing_else(reports, tmp_path):
    report = EvalReport.compare(*reports, provenance={"seeds": [0], "model": "täst"})
    report.save(tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["report.json", "report.md"]
    for path in (tmp_path / "out", tmp_path / "out" / "report.json"):
        assert EvalReport.load(path) == report
    stored = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert list(stored) == ["schema", "metrics", "before", "reference", "items", "provenance"]
    assert stored["schema"] == "llm-unlearn/report/1"
    assert list(stored["metrics"]["forget/probability"]) == [
        "value", "ci95", "n", "higher_is_better", "range", "target",
    ]  # fmt: skip
    assert stored["provenance"]["before"]["tier"] == "quick"


def test_a_report_alone_reads_back_equal(reports):
    assert EvalReport.from_json(reports[0].to_json()) == reports[0]
    empty = EvalReport(metrics={})
    assert EvalReport.from_json(empty.to_json()).metrics == {}


def test_a_report_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no report at .*report.json"):
        EvalReport.load(tmp_path)
    for text in ('{"schema": "other/2"}', "[]", '{"metrics": {'):
        (tmp_path / "report.json").write_text(text)
        with pytest.raises(ValueError, match="report.json cannot be read as a report"):
            EvalReport.load(tmp_path)


def test_a_failed_write_keeps_the_old_report(reports, tmp_path, monkeypatch):
    reports[0].save(tmp_path)
    old = (tmp_path / "report.json").read_text()

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full_disk)
    with pytest.raises(OSError, match="could not be written"):
        reports[1].save(tmp_path)
    assert (tmp_path / "report.json").read_text() == old
    assert len(list(tmp_path.iterdir())) == 2


def test_a_collapsed_model_yields_null_with_a_reason(tokenizer, sets):
    model = tiny_model()
    model.get_output_embeddings().weight.data[3] = float("nan")
    report = Evaluator(tokenizer, sets, "train", progress=False).evaluate(model)
    for metric in ("probability", "exact_memorization", "extraction_strength"):
        record = report.metrics[f"forget/{metric}"]
        assert record.value is None
        assert record.not_measured.startswith("not measured: 12 of 12 values are not finite")
    stored = json.loads(report.to_json(), parse_constant=pytest.fail)
    assert stored["items"][0]["loss"] is None
    assert set(stored["items"][0]["token_logprobs"]) == {None}
    assert EvalReport.from_json(report.to_json()) == report


def test_the_table_stands_the_models_side_by_side(reports):
    report = EvalReport.compare(*reports)
    table = report.table()
    assert [column.header for column in table.columns] == ["metric", "before", "after", "retain model", "target", "n"]
    text = rendered(table)
    assert "forget/probability ↓" in text
    assert "retain/probability ↑" in text
    # Nobody measured it: it stands below the table, not in it.
    assert "holdout/rouge_l_recall, holdout/value_recall: not measured" in text
    assert len(table.rows) == len(report.metrics) - 2
    alone = reports[0].table()
    assert [column.header for column in alone.columns] == ["metric", "value", "target", "n"]


def test_example_answers_are_spread_over_the_rows_and_shown_as_they_are(reports):
    report = EvalReport.compare(*reports)
    items = [dict(item) for item in report.items]
    forget = [item for item in items if item["set"] == "forget"]
    forget[4]["text"] = "[bold]x[/bold] | <b>\n# y"
    report = dataclasses.replace(report, items=items)
    table = report.answers_table(3)
    assert [column.header for column in table.columns] == ["question", "true answer", "before", "after", "retain model"]
    text = rendered(table)
    for row in (0, 4, 8):
        assert forget[row]["answer"] in text
        assert forget[row]["before"]["text"] in text
    assert "[bold]x[/bold] | <b>" in text
    page = dataclasses.replace(report, items=[forget[4]]).to_markdown()
    assert "| [bold]x[/bold] \\| &lt;b> # y |" in page
    assert [column.header for column in reports[0].answers_table().columns] == ["question", "true answer", "answer"]


def test_the_page_tells_where_the_numbers_come_from(reports):
    page = EvalReport.compare(*reports, provenance={"seed": 7, "data": {"forget": "forget10"}}).to_markdown()
    for line in ("- tier: quick", "- seed: 7", "  - forget: forget10", "- device: cpu", "- precision: float32"):
        assert line in page.splitlines()
    assert "greedy, at most 12 new tokens and 1.5 x the tokens of the true answer + 16" in page
    assert page.count(f"torch: {versions()['torch']}") == 1


def test_infinite_losses_become_null():
    record = item_record(
        "forget", 0, {"question": "q", "answer": "a"}, text=None, values={}, logprobs=np.array([-np.inf, -1.0])
    )
    assert record["loss"] is None
    assert record["token_logprobs"] == [None, -1.0]


def test_wrong_sets_and_tiers_are_explained(tokenizer, sets):
    with pytest.raises(ValueError, match="Did you mean 'quick'"):
        Evaluator(tokenizer, sets, "quik")
    with pytest.raises(ValueError, match="Did you mean 'forget'"):
        EvalSet("forgets", sets[0].rows, sets[0].items)
    with pytest.raises(ValueError, match="The set `holdout` is empty"):
        EvalSet("holdout", [], [])
    with pytest.raises(ValueError, match="has 5 rows but 3 tokenised items"):
        EvalSet("holdout", sets[0].rows, sets[0].items[:3])
    with pytest.raises(ValueError, match="distinct names"):
        Evaluator(tokenizer, [sets[0], sets[0]])
    with pytest.raises(ValueError, match="given none"):
        Evaluator(tokenizer, [])
