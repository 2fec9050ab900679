"""Reports: what stands beside what, what is refused, and that a file holds all of it."""

import dataclasses
import io
import json
from html import unescape

import numpy as np
import pytest
from rich.console import Console
from sample_report import sample_report
from tiny import tiny_model, tiny_rows, tiny_tokenizer
from tiny_suite import tiny_sets

from llm_unlearn.data.tokenization import ExampleTokenizer
from llm_unlearn.evaluation import html
from llm_unlearn.evaluation.evaluator import Evaluator
from llm_unlearn.evaluation.metrics import SUMMARIES
from llm_unlearn.evaluation.records import NO_BEFORE, NO_REFERENCE, MetricRecord
from llm_unlearn.evaluation.rendering import run_notes
from llm_unlearn.evaluation.report import EvalReport, item_record, versions
from llm_unlearn.evaluation.sets import EvalSet
from llm_unlearn.evaluation.summarise import summaries

SIZES = {"forget": 12, "retain": 9, "real_authors": 3, "world_facts": 4, "holdout": 5}


@pytest.fixture(scope="module")
def tokenizer():
    return ExampleTokenizer(tiny_tokenizer())


@pytest.fixture(scope="module")
def sets(tokenizer):
    return tiny_sets(tokenizer, SIZES)


@pytest.fixture(scope="module")
def reports(tokenizer, sets):
    """Quick reports of three models: after, before, retain model."""
    evaluator = Evaluator(tokenizer, sets, max_new_tokens=12, progress=False)
    return [evaluator.evaluate(tiny_model(seed=seed)) for seed in range(3)]


def rendered(table):
    console = Console(width=600, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


def test_targets_come_from_the_retain_model_and_from_before(reports):
    after, before, retain = reports
    report = EvalReport.compare(after, before, retain)
    for name in after.metrics:
        if "/" in name:
            assert report.metrics[name].value == after.metrics[name].value
            assert report.before[name].value == before.metrics[name].value
            assert report.reference[name].value == retain.metrics[name].value
            source = retain if name.startswith("forget/") else before
            assert report.metrics[name].target == source.metrics[name].value
    assert report.metrics["model_utility"].target == before.metrics["model_utility"].value
    assert report.metrics["mem"].target == retain.metrics["mem"].value
    assert report.metrics["forget_quality"].target == 1.0
    for block in (report.before, report.reference):
        assert {name: record.target for name, record in block.items()} == {
            name: record.target for name, record in report.metrics.items()
        }
    item = report.items[3]
    shown = ("text", "probability", "loss", "truth_ratio", "rouge_l_recall", "extraction_strength")
    assert item["before"] == {key: before.items[3][key] for key in shown}
    assert item["reference"]["text"] == retain.items[3]["text"]
    assert "before" not in after.items[3]


def test_a_comparison_measures_what_takes_several_models(reports):
    after, before, retain = reports
    alone, report = after.metrics, EvalReport.compare(after, before, retain)
    assert {name for name, record in alone.items() if record.not_measured == NO_REFERENCE} == {
        name for name, spec in SUMMARIES.items() if any(need[0] == "reference" for need in spec.needs)
    }
    for name, record in summaries(after, before, retain).items():
        assert dataclasses.replace(report.metrics[name], target=None) == record
    for name in ("forget_quality", "forget_quality_ks", "privleak", "priv", "mia_reference", "aus"):
        assert report.metrics[name].value is not None
        # The models beside it are compared with the same two.
        assert report.before[name].value is not None
    assert report.reference["forget_quality"].value == 1.0
    assert report.reference["privleak"].value == report.reference["forget_quality_ks"].value == 0.0
    assert report.before["aus"].details["after_kept"] == report.before["aus"].details["before_kept"]


def test_a_comparison_serves_as_before_and_as_reference_as_well(reports):
    """Its own numbers count, not those of the models it was compared with."""
    after, before, retain = reports
    compared = [EvalReport.compare(report, retain, after) for report in (before, retain)]
    report, plain = EvalReport.compare(after, *compared), EvalReport.compare(after, before, retain)
    assert report.metrics == plain.metrics
    assert report.items == plain.items


def test_without_a_reference_the_report_says_how_to_make_one(reports):
    report = EvalReport.compare(*reports[:2], provenance={"command": "recipes/npo.py"})
    assert report.metrics["forget/probability"].target is None
    assert report.metrics["retain/probability"].target is not None
    assert report.metrics.keys() == report.reference.keys()
    for record in report.reference.values():
        assert record.value is None
        assert record.not_measured == NO_REFERENCE
    stored = json.loads(report.to_json())["reference"]["forget/probability"]
    assert stored["value"] is None
    assert stored["not_measured"].startswith("not measured: no reference report; make one with `llm-unlearn eval")
    assert report.to_markdown().count(NO_REFERENCE) == 1
    assert str(report.table().caption).count(NO_REFERENCE) == 1
    assert report.provenance["command"] == "recipes/npo.py"
    alone = EvalReport.compare(reports[0])
    assert alone.before == {}
    assert alone.metrics["aus"].not_measured == NO_BEFORE


def test_a_reference_of_a_smaller_tier_leaves_a_gap_with_a_reason(reports, tokenizer, sets):
    small = Evaluator(tokenizer, sets, "train", progress=False).evaluate(tiny_model(seed=2))
    report = EvalReport.compare(*reports[:2], small)
    assert report.metrics["forget/probability"].target is not None
    assert report.metrics["forget/rouge_l_recall"].target is None
    assert "use `--eval quick`" in report.reference["forget/rouge_l_recall"].not_measured

    without = dataclasses.replace(small, metrics={"forget/probability": small.metrics["forget/probability"]})
    report = EvalReport.compare(*reports[:2], without)
    assert "has no retain/probability" in report.reference["retain/probability"].not_measured


def test_a_reference_of_another_tier_is_accepted_and_the_report_says_so(reports, tokenizer, sets):
    after, before, retain = reports
    full = Evaluator(tokenizer, sets, "full", max_new_tokens=9, progress=False)
    full.require_fit(after)
    other = dataclasses.replace(retain, provenance={**retain.provenance, **full.settings})
    tier = "This evaluation and those beside it differ in tier. this model: quick; before: quick; retain model: full."
    generation = (
        "This evaluation and those beside it differ in generation. "
        "this model: greedy, at most 12 new tokens and 1.5 x the tokens of the true answer + 16; "
        "before: greedy, at most 12 new tokens and 1.5 x the tokens of the true answer + 16; "
        "retain model: greedy, at most 9 new tokens. Texts were cut at different lengths."
    )
    report = EvalReport.compare(after, before, other)
    assert EvalReport.from_json(report.to_json()).to_markdown().count(f"- {tier}\n- {generation}\n") == 1
    assert f"{tier}\n{generation}" in str(report.table().caption)
    assert f"<li>{tier}</li>" in html.page(report)

    # Where the retain model wrote nothing, no text of its was cut.
    train = Evaluator(tokenizer, sets, "train", progress=False)
    scored = dataclasses.replace(retain, provenance={**retain.provenance, **train.settings})
    told = EvalReport.compare(after, None, scored).to_markdown()
    assert "retain model: none." in told and "cut at different lengths" not in told

    for text in (EvalReport.compare(*reports).to_markdown(), EvalReport.compare(after).to_markdown()):
        assert "those beside it differ" not in text


def test_a_reference_on_other_rows_is_refused(reports, tokenizer):
    other = EvalSet.of("forget", tiny_rows(12, first=80), tokenizer)
    strange = Evaluator(tokenizer, [other], "train", progress=False).evaluate(tiny_model())
    with pytest.raises(ValueError, match="The reference report was made on other data: row 0 of forget has the answer"):
        EvalReport.compare(*reports[:2], strange)
    with pytest.raises(ValueError, match="The before report was made on other data"):
        EvalReport.compare(reports[0], strange)
    # Rows of other sets may be fewer, but those there must be the same.
    fewer = dataclasses.replace(reports[2], items=[item for item in reports[2].items if item["set"] == "forget"])
    assert EvalReport.compare(reports[0], None, fewer).metrics["forget_quality"].value is not None
    swapped = [{**item, "answer": "x"} if item["set"] == "holdout" else item for item in reports[2].items]
    with pytest.raises(ValueError, match="row 0 of holdout"):
        EvalReport.compare(reports[0], None, dataclasses.replace(reports[2], items=swapped))


def test_a_saved_report_reads_back_equal_and_leaves_nothing_else(reports, tmp_path):
    report = EvalReport.compare(*reports, provenance={"seeds": [0], "model": "täst"})
    report.save(tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["report.html", "report.json", "report.md"]
    for path in (tmp_path / "out", tmp_path / "out" / "report.json"):
        assert EvalReport.load(path) == report
    stored = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert list(stored) == ["schema", "metrics", "before", "reference", "items", "provenance"]
    assert stored["schema"] == "llm-unlearn/report/1"
    assert list(stored["metrics"]["forget/probability"]) == [
        "value", "ci95", "n", "higher_is_better", "range", "target", "variant",
    ]  # fmt: skip
    assert stored["metrics"]["forget_quality"]["details"]["n"] == 12
    assert stored["provenance"]["before"]["tier"] == "quick"


def test_a_report_alone_reads_back_equal(reports):
    assert EvalReport.from_json(reports[0].to_json()) == reports[0]
    empty = EvalReport(metrics={})
    assert EvalReport.from_json(empty.to_json()).metrics == {}
    record = MetricRecord(None, None, 0, None, (None, 1.0), not_measured="why", details={"left_out": 2})
    assert MetricRecord.from_dict(json.loads(json.dumps(record.to_dict()))) == record


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
    assert len(list(tmp_path.iterdir())) == 3


def test_the_table_stands_the_models_side_by_side(reports):
    table = EvalReport.compare(*reports).table()
    assert [column.header for column in table.columns] == ["metric", "before", "after", "retain model", "target", "n"]
    text = rendered(table)
    assert "forget/probability ↓" in text
    assert "retain/probability ↑" in text
    assert "forget_quality ↑" in text
    # What nobody measured stands below the table, not in it.
    assert not any("overall_offline" in str(cell) for cell in table.columns[0].cells)
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
    assert "author" not in record
    kept = item_record(
        "retain", 1, {"question": "q", "answer": "a", "author": 3}, text="t", values={"ma": 0.5},
        logprobs=np.array([-1.0]),
    )  # fmt: skip
    assert (kept["author"], kept["ma"], "token_logprobs" in kept) == (3, 0.5, False)


def test_beside_an_auc_stands_how_many_are_recognised_for_certain():
    record = MetricRecord(0.7, (0.6, 0.8), 20, None, (0.0, 1.0), details={"tpr_at_1_percent_fpr": 0.125})
    report = EvalReport(metrics={"mia_loss": record})
    assert "| mia_loss | 0.700 [0.600, 0.800]; TPR at 1 % FPR 0.125 |" in report.to_markdown()
    assert "TPR at 1 % FPR 0.125" in html.page(report)


def test_the_report_says_how_pairs_were_found_and_how_refinement_ended():
    report = sample_report()
    assert not run_notes(report)
    pairing = {"pool": "retain split", "pool_rows": 720, "encoder": "tfidf"}
    thresholds = {"ma": 0.634, "el": None, "rouge_l": 0.15, "source": "the retain model's report"}
    refinement = {"judge": "text", "encoder": "model", "bert_f1": 0.7214, "thresholds": thresholds}
    refinement["outcome"] = "it ended"
    run = {"pairing": pairing, "refinement": refinement}
    told = dataclasses.replace(report, provenance={**report.provenance, "run": run})
    assert run_notes(told) == [
        "Each forget row stood beside the nearest of 720 rows (retain split), by the encoder tfidf.",
        "Refinement by the judge text, BERTScore by the encoder model (F1 0.721): it ended. "
        "Thresholds: MA 0.634, ROUGE-L 0.150 (the retain model's report).",
    ]
    for page in (told.to_markdown(), unescape(html.page(told))):
        assert all(note in page for note in run_notes(told))
