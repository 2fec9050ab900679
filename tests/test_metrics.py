import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llm_unlearn.evaluation.metrics import METRICS, SETS, target_source
from llm_unlearn.evaluation.metrics.memorization import exact_memorization, extraction_strength, probability
from llm_unlearn.evaluation.metrics.overlap import rouge_l_recall, value_recall
from llm_unlearn.evaluation.outputs import ItemScores
from llm_unlearn.evaluation.statistics import bootstrap_interval


def scored(logprobs, hits):
    zeros = np.zeros(len(logprobs), dtype=np.float32)
    return ItemScores(np.array(logprobs, dtype=np.float32), np.array(hits, dtype=bool), zeros, zeros)


def test_probability_is_the_geometric_mean_over_tokens():
    # (1/2 x 1/8)^(1/2) = 1/4, and (1/2 x 1/4 x 1/8 x 1)^(1/4) = 2^(-6/4).
    items = [scored(np.log([1 / 2, 1 / 8]), [1, 0]), scored(np.log([1 / 2, 1 / 4, 1 / 8, 1]), [1, 0, 0, 1])]
    np.testing.assert_allclose(probability(items), [0.25, 2**-1.5], rtol=1e-6)


def test_exact_memorization_is_the_share_of_hits_with_the_end_token():
    items = [scored([-1] * 4, [1, 0, 1, 1]), scored([-1] * 3, [0, 0, 0]), scored([-1], [1])]
    np.testing.assert_allclose(exact_memorization(items), [3 / 4, 0, 1])


@pytest.mark.parametrize(
    ("hits", "strength"),
    [
        ([1, 1, 1, 1], 1),
        ([0, 1, 1, 1], 3 / 4),
        ([1, 1, 0, 1], 1 / 4),
        # A last token that is missed leaves nothing; the peer would say 1/4.
        ([1, 1, 1, 0], 0),
        ([0, 0, 0, 0], 0),
    ],
)
def test_extraction_strength_counts_the_hits_at_the_end(hits, strength):
    assert extraction_strength([scored([-1] * 4, hits)]) == [strength]


@pytest.mark.parametrize("seed", range(20))
def test_extraction_strength_equals_its_definition(seed):
    hits = np.random.default_rng(seed).random(8) < 0.6
    # The shortest prefix after which every token is a hit.
    k = next(k for k in range(9) if all(hits[k:]))
    assert extraction_strength([scored([-1] * 8, hits)]) == [1 - k / 8]


def test_a_collapsed_model_has_not_forgotten_perfectly():
    items = [scored([np.nan, -1], [0, 0]), scored([-np.inf, -1], [0, 0])]
    for metric in (probability, exact_memorization, extraction_strength):
        values = metric(items)
        assert np.isnan(values[0])
        assert values[1] == 0


def test_rouge_counts_the_longest_common_subsequence_of_stems():
    answers = ["Ada wrote three famous books about rivers."] * 5
    texts = [
        "Ada wrote three famous books about rivers.",
        # Of 7 words: ada, three, book, about, river; books and book share their stem.
        "Ada sold three cars and a book about a river",
        # Order counts: of (rivers, about, books) only one can be in sequence.
        "rivers about books",
        "",
        # More words than needed cost nothing: it is recall.
        "I think that Ada wrote three very famous books about rivers and lakes",
    ]
    np.testing.assert_allclose(rouge_l_recall(answers, texts), [1, 5 / 7, 1 / 7, 0, 1])


def test_values_are_found_as_whole_words():
    cases = [
        ("Arlen", "She was born in arlen.", 1),
        ("Arlen", "She was born in Arlenville.", 0),
        ("New  Harrow", "born in new\nharrow, they say", 1),
        ("3", "in 1983", 0),
        ("C++", "She taught C++ and poetry", 1),
        ("a.b", "acb", 0),
        ("Straße", "in der STRASSE", 1),
        ("Arlen", "", 0),
    ]
    values, texts, expected = zip(*cases, strict=True)
    np.testing.assert_array_equal(value_recall(values, texts), expected)


def test_the_interval_is_that_of_resampled_means():
    values = np.array([0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 1.0])
    low, high = bootstrap_interval(values)
    rng = np.random.default_rng(0)
    means = [values[row].mean() for row in rng.integers(0, 10, size=(1000, 10))]
    assert (low, high) == tuple(np.percentile(means, [2.5, 97.5]))
    # Binomial(10, 0.6): 2.5 % lie at or below 3, 2.5 % at or above 9.
    assert (low, high) == pytest.approx((0.3, 0.9))
    assert bootstrap_interval(values) == (low, high)


def test_the_interval_has_the_width_of_theory():
    values = np.random.default_rng(1).normal(0.5, 0.1, 400)
    low, high = bootstrap_interval(values)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)


def test_one_item_says_nothing_about_spread():
    assert bootstrap_interval(np.array([0.5])) is None
    assert bootstrap_interval(np.full(5, 0.5)) == (0.5, 0.5)


def test_the_table_declares_everything_a_report_needs():
    for name, spec in METRICS.items():
        assert spec.name == name
        assert set(spec.higher_is_better) == set(spec.target) == set(SETS)
        assert set(spec.needs) <= {"scores", "texts", "answers", "values"}
        assert spec.higher_is_better["forget"] is False
        assert spec.higher_is_better["retain"] is True
    assert target_source("forget/probability") == "reference"
    assert target_source("real_authors/rouge_l_recall") == "before"


def test_metrics_and_reports_need_no_torch():
    code = (
        "import sys, llm_unlearn.evaluation.report, llm_unlearn.evaluation.statistics;"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'rich', 'nltk')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], timeout=60).returncode == 0
