"""The normalised improvement and its drop, by numbers worked out by hand, and the tables that show them."""

import io
import json
from fractions import Fraction

import pytest
from rich.console import Console

from llm_unlearn.codebook.drop import (
    SCHEMA,
    Deletion,
    DropCell,
    cells_of,
    drop_record,
    is_nested,
    normalised_improvement,
)
from llm_unlearn.codebook.drop_tables import curve_table, drop_markdown, drop_table, summary_lines

# Scores of two metrics; halves and quarters are exact.
ZERO_SHOT = {"target": {"BLEU": 0.25, "loss": 3.0}, "control": {"BLEU": 0.5, "loss": 2.0}}
CODEBOOK = {"target": {"BLEU": 0.5, "loss": 1.0}, "control": {"BLEU": 1.0, "loss": 1.0}}
DELETED = {"target": {"BLEU": 0.125, "loss": 2.5}, "control": {"BLEU": 0.875, "loss": 1.25}}


def deletion(topic="love", length=8, n_codes=16, total=25_000, chosen="selected", **changes):
    scores = {"zero_shot": ZERO_SHOT, "codebook": CODEBOOK, "deleted": DELETED} | changes
    reasons = scores.pop("reasons", None)
    cells = cells_of(*scores.values(), lower_is_better=("loss",), reasons=reasons)
    return Deletion(topic, length, n_codes, n_codes / total, cells, chosen)


def printed(table):
    console = Console(width=80, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("metric", "texts", "ni", "drop"),
    [
        ("BLEU", "target", Fraction(-1, 2), -150),  # (1/8 - 1/4) / (1/2 - 1/4): worse than before training
        ("BLEU", "control", Fraction(3, 4), -25),  # (7/8 - 1/2) / (1 - 1/2)
        ("loss", "target", Fraction(1, 4), -75),  # (5/2 - 3) / (1 - 3)
        ("loss", "control", Fraction(3, 4), -25),  # (5/4 - 2) / (1 - 2)
    ],
)
def test_the_drop_of_hand_worked_scores(metric, texts, ni, drop):
    cell = deletion().cell(metric, texts)
    assert cell.ni == float(ni) and cell.drop == drop and cell.not_measured is None


def test_a_deletion_that_does_nothing_drops_nothing_and_one_that_undoes_training_drops_all():
    assert normalised_improvement(0.31, 0.15, 0.31) == 1
    assert normalised_improvement(0.15, 0.15, 0.31) == 0
    assert DropCell("BLEU", "target", 0.15, 0.31, 0.31).drop == 0
    assert DropCell("BLEU", "target", 0.15, 0.31, 0.15).drop == -100
    assert DropCell("BLEU", "target", 0.1, 0.3, 0.4).drop == pytest.approx(50), "better than before the deletion"


def test_the_papers_two_readings_of_a_cell():
    """Its largest one, -133.35 %, is a model worse than before training if it is a drop, as it is here."""
    cell = DropCell("BART", "control", 0.0, 1.0, -0.3335)
    assert cell.drop == pytest.approx(-133.35) and cell.ni == pytest.approx(-0.3335)


@pytest.mark.parametrize(
    ("scores", "higher", "reason"),
    [
        ((0.2, 0.2, 0.1), True, "training left the score as it was"),
        ((0.2, 0.1, 0.1), True, "training made the score worse"),
        ((1.0, 2.0, 2.0), False, "training made the score worse"),
        ((None, 0.2, 0.1), True, "no score of the zero-shot model"),
        ((0.1, None, None), True, "no score of the codebook and the deleted model"),
    ],
)
def test_what_has_no_drop_says_why(scores, higher, reason):
    cell = DropCell("BLEU", "target", *scores, higher_is_better=higher)
    assert cell.ni is None and cell.drop is None and cell.not_measured.startswith(reason)
    assert DropCell("BLEU", "target", *scores, higher, "no encoder").not_measured == (
        "no encoder" if None in scores else cell.not_measured
    )


def test_a_score_that_is_no_number_is_not_measured():
    some = deletion(deleted={"target": {"BLEU": float("nan")}, "control": {"BLEU": float("inf")}})
    assert {cell.deleted for cell in some.cells} == {None}
    assert some.cell("BLEU", "target").not_measured == "no score of the deleted model"
    json.dumps(drop_record([some], {}), allow_nan=False)


def test_whether_the_target_falls_more_than_the_control():
    assert deletion().falls_more("BLEU") and deletion().falls_more("loss")
    turned = {"target": DELETED["control"], "control": DELETED["target"]}
    assert deletion(deleted=turned).falls_more("loss") is False
    assert deletion(zero_shot={"target": ZERO_SHOT["target"]}).falls_more("BLEU") is None
    same = {"target": {"BLEU": 0.5}, "control": {"BLEU": 1.0}}
    assert deletion(deleted=same).falls_more("BLEU") is False, "no drop is not deeper than none"
    with pytest.raises(KeyError, match="'METEOR' was not scored on the target texts"):
        deletion().falls_more("METEOR")


def test_cells_come_metric_by_metric_and_hold_what_any_model_was_scored_by():
    some = cells_of({"target": {"a": 1.0}}, {"target": {"a": 2.0, "b": 1.0}}, {"control": {"c": 0.0}})
    assert [(cell.metric, cell.texts) for cell in some] == [(m, t) for m in "abc" for t in ("target", "control")]
    assert (some[0].zero_shot, some[0].codebook, some[0].deleted) == (1.0, 2.0, None)
    assert [cell.has_scores for cell in some] == [True, False, True, False, False, True]


def test_nested_sizes():
    assert is_nested([16, 16, 207]) and is_nested([3]) and is_nested([])
    assert not is_nested([16, 15]) and not is_nested([1, 3, 2])


def test_the_record_holds_raw_scores_beside_every_drop():
    record = json.loads(json.dumps(drop_record([deletion()], {"seed": 3}), allow_nan=False))
    assert record["schema"] == SCHEMA and record["provenance"] == {"seed": 3}
    (row,) = record["deletions"]
    assert (row["topic"], row["list_length"], row["n_codes"], row["share"]) == ("love", 8, 16, 0.00064)
    assert row["cells"][0] == {
        "metric": "BLEU", "texts": "target", "zero_shot": 0.25, "codebook": 0.5, "deleted": 0.125,
        "higher_is_better": True, "reason": None, "ni": -0.5, "drop": -150.0,
    }  # fmt: skip
    assert [cell["drop"] for cell in row["cells"]] == [-150, -25, -75, -25]
    flat = drop_record([deletion(codebook=ZERO_SHOT)], {})["deletions"][0]["cells"][0]
    assert flat["drop"] is None and flat["ni"] is None and "no improvement to lose" in flat["reason"]


def test_the_table_shows_raw_scores_and_fits_a_terminal():
    unmeasured = {"target": {"BERT-P": None}, "control": {"BERT-P": None}}
    scores = {
        name: {texts: of[texts] | unmeasured[texts] for texts in of}
        for name, of in (("zero_shot", ZERO_SHOT), ("codebook", CODEBOOK), ("deleted", DELETED))
    }
    some = deletion("Captain", **scores, reasons={"BERT-P": "no encoder was given"})
    flat = deletion("Wish", codebook={"target": ZERO_SHOT["target"], "control": CODEBOOK["control"]})
    text = printed(drop_table([some, flat]))
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80 and "…" not in text
    (row,) = (line.split() for line in lines if line.startswith("Captain   BLEU     target"))
    assert row == ["Captain", "BLEU", "target", "0.250", "0.500", "0.125", "-0.50", "-150.0", "%"]
    assert not any(line.startswith("Captain   BERT-P") for line in lines), "nobody scored it"
    assert "BERT-P: not measured, no encoder was given." in text
    (row,) = (line for line in lines if line.startswith("Wish      BLEU     target"))
    assert row.split()[3:6] == ["0.250", "0.250", "0.125"] and row.split()[6] == "–" and "not" in row
    assert "BLEU, Wish (target): not measured, training left the score as it was" in " ".join(text.split())


def test_the_page_and_the_summary():
    weak = deletion(length=8, n_codes=16)
    strong = deletion(length=104, n_codes=207)
    random = deletion(length=104, n_codes=9, chosen="random", deleted=CODEBOOK)
    flat = deletion("a|b", length=104, n_codes=50, codebook=ZERO_SHOT)
    page = drop_markdown([strong, flat], [weak, strong, random, flat], ["BLEU", "METEOR"])
    assert "| love | BLEU | target | 0.250 | 0.500 | 0.125 | -0.50 | -150.0 % |" in page
    assert "| a\\|b | BLEU | control | 0.500 | 0.500 | 0.875 | – | not measured |" in page
    assert "| love | 104 | selected | 207 | 0.828 % | -150.0 % | -25.0 % |" in page, "the paper's removed share"
    assert "| love | 104 | random | 9 | 0.036 % | +0.0 % | +0.0 % |" in page
    assert "METEOR" not in page, "nobody scored it"
    lines = summary_lines([strong, flat], [weak, strong, random, flat], ["BLEU", "METEOR"])
    assert lines == [
        "BLEU: the drop on the target is deeper than on the control for 1 of 2 topics, not measured for 1.",
        "Removed: 16 to 207 codes, 0.064 % to 0.828 % of all.",
        "No longer S' deletes fewer codes than a shorter one for 2 of 2 topics.",
    ]
    shrunk = deletion(length=208, n_codes=20)
    assert summary_lines([strong], [weak, strong, shrunk], [])[-1].endswith("for 0 of 1 topics.")
    assert summary_lines([], [], ["BLEU"]) == []
    assert "+0.0 %" in printed(curve_table([random], ["BLEU"]))
