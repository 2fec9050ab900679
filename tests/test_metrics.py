"""The tables of metrics: what each needs, which way is better, where it should end."""

import subprocess
import sys
from pathlib import Path

import pytest

from llm_unlearn.evaluation.conventions import CONVENTIONS
from llm_unlearn.evaluation.metrics import SUMMARIES, target_of
from llm_unlearn.evaluation.metrics.items import SETS, UTILITY_SETS, item_metrics
from llm_unlearn.evaluation.metrics.overlap import value_recall
from llm_unlearn.evaluation.metrics.utility import PARTS

RECORDS = {
    "loss", "logprobs", "hits", "mean", "std", "js", "paraphrase_loss", "wrong_losses", "texts", "ended", "el",
    "gradnorm", "text_nll", "answers", "values",
}  # fmt: skip
OURS = item_metrics(CONVENTIONS["fixed"])


@pytest.mark.parametrize("name", CONVENTIONS)
def test_the_table_of_items_declares_everything_a_report_needs(name):
    specs = item_metrics(CONVENTIONS[name])
    assert specs.keys() == OURS.keys()
    for key, spec in specs.items():
        set_name, metric = key.split("/")
        assert metric == spec.name
        assert set_name in spec.sets
        assert set(spec.sets) <= set(SETS)
        assert set(spec.needs) <= RECORDS
        assert spec.variant in ("fixed", name)
        assert spec.version >= 1
        low, high = spec.range
        assert low is None or high is None or low < high
        if spec.reported:
            assert set_name in spec.higher_is_better
            assert set_name in spec.target


def test_forgetting_and_keeping_have_opposite_directions():
    for metric in ("probability", "exact_memorization", "extraction_strength", "rouge_l_recall", "value_recall"):
        directions = [OURS[f"{name}/{metric}"].higher_is_better[name] for name in SETS]
        assert directions == [False, True, True, True, None]
    # A truth ratio near 1 on the forget set, and far below on the others: the reported mean rises with both.
    assert all(OURS[f"{name}/truth_ratio"].higher_is_better[name] is True for name in SETS[:4])
    assert OURS["forget/repetition"].higher_is_better["forget"] is False
    assert OURS["forget/ended"].higher_is_better["forget"] is True
    assert OURS["forget/zrf"].higher_is_better["forget"] is None


def test_whose_value_is_the_target():
    for name, spec in OURS.items():
        if spec.reported:
            assert target_of(name) == ("reference" if name.startswith("forget/") else "before")
    targets = {name: target_of(name) for name in SUMMARIES}
    assert {name for name, target in targets.items() if target == 1.0} == {
        "forget_quality", "s_mia_loss", "s_mia_zlib", "s_mia_min_k", "s_mia_min_k_plus_plus", "priv",
        "utility_offline",
    }  # fmt: skip
    assert targets["privleak"] == targets["forget_quality_ks"] == 0.0
    assert targets["mia_reference"] == 0.5
    assert targets["model_utility"] == targets["fluency"] == "before"
    assert targets["mem"] == targets["mia_min_k"] == targets["aus"] == "reference"
    with pytest.raises(KeyError):
        target_of("forget/probabilty")


def test_summaries_need_columns_that_items_have():
    columns = {*OURS, *(f"{name}/text" for name in SETS)}
    for name, spec in SUMMARIES.items():
        assert spec.name == name
        assert "/" not in name
        for whose, set_name, column in spec.needs:
            assert whose in ("own", "before", "reference")
            assert f"{set_name}/{column}" in columns
    utility = {f"{set_name}/{column}" for _, set_name, column in SUMMARIES["model_utility"].needs}
    assert utility == set(PARTS)
    # The score to tune by needs no generation and no other report.
    assert {need[0] for need in SUMMARIES["tuning_score"].needs} == {"own"}
    tuned = [OURS["/".join(need[1:])] for need in SUMMARIES["tuning_score"].needs]
    assert not any({"texts", "el", "gradnorm", "js"} & set(spec.needs) for spec in tuned)
    # What is compared across sets needs the rows that were never trained on, never those of the utility sets.
    assert {need[1] for need in SUMMARIES["priv"].needs} == {"forget", "holdout"}
    assert SETS[1:4] == UTILITY_SETS


@pytest.mark.parametrize(
    ("value", "text", "found"),
    [
        ("Arlen", "She was born in arlen.", 1),
        ("Arlen", "She was born in Arlenville.", 0),
        ("New  Harrow", "born in new\nharrow, they say", 1),
        ("3", "in 1983", 0),
        ("C++", "She taught C++ and poetry", 1),
        ("a.b", "acb", 0),
        ("Straße", "in der STRASSE", 1),
        ("Arlen", "", 0),
    ],
)
def test_values_are_found_as_whole_words(value, text, found):
    assert value_recall([value], [text]).tolist() == [found]


def test_metrics_and_reports_need_no_torch():
    code = (
        "import sys, llm_unlearn.evaluation.report, llm_unlearn.evaluation.statistics;"
        "from llm_unlearn.evaluation.metrics import items, summaries;"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'rich', 'nltk', 'scipy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], timeout=60).returncode == 0
