"""Metric functions against numbers worked out by hand and against plain transcriptions of their formulas."""

import math
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from beartype import beartype
from jaxtyping import TypeCheckError, jaxtyped

from llm_unlearn.evaluation.metrics import (
    aggregates,
    extraction,
    fluency,
    forget_quality,
    likelihood,
    membership,
    memorization,
    overlap,
    randomness,
    truth_ratio,
    utility,
)
from llm_unlearn.evaluation.metrics.aggregates import aus, mem, overall, priv, utility_ratio
from llm_unlearn.evaluation.metrics.extraction import el_n, ma
from llm_unlearn.evaluation.metrics.forget_quality import ks_statistic, log_exact_p
from llm_unlearn.evaluation.metrics.membership import auc, min_k, min_k_plus_plus, privleak, s_mia, tpr_at_fpr
from llm_unlearn.evaluation.metrics.memorization import exact_memorization, extraction_strength
from llm_unlearn.evaluation.metrics.truth_ratio import closer_to_1_better, prob_mean, true_better
from llm_unlearn.evaluation.metrics.utility import harmonic_mean, model_utility

MODULES = (
    aggregates,
    extraction,
    fluency,
    forget_quality,
    likelihood,
    membership,
    memorization,
    overlap,
    randomness,
    truth_ratio,
    utility,
)
RNG = np.random.default_rng(0)


def nats(*probabilities):
    return -np.log(np.array(probabilities, dtype=np.float64))


# Likelihood: P = 1/2 and 1/8; wrong answers 1/4, 1/16 and, of another number, 1/8.
LOSS, WRONG = nats(1 / 2, 1 / 8), [nats(1 / 4, 1 / 16), nats(1 / 8)]


def test_probabilities_are_exp_of_minus_the_loss():
    np.testing.assert_allclose(likelihood.probability(LOSS), [1 / 2, 1 / 8])
    np.testing.assert_allclose(likelihood.wrong_answer_probability(WRONG), [5 / 32, 1 / 8])


def test_normalised_probability_is_a_share_of_all_choices():
    # 1/2 of 1/2 + 5/16, and one of two equals.
    np.testing.assert_allclose(likelihood.normalised_probability(LOSS, WRONG), [8 / 13, 1 / 2])
    np.testing.assert_allclose(likelihood.normalised_probability(LOSS, WRONG, epsilon=3 / 16), [1 / 2, 2 / 7])


def test_hopeless_answers_are_still_compared():
    # exp(-2000) is no float; the share of e^-2000 in e^-2000 + 2 e^-2001 is.
    loss, wrong = np.array([2000.0]), np.array([[2001.0, 2001.0]])
    np.testing.assert_allclose(likelihood.normalised_probability(loss, wrong), [1 / (1 + 2 / math.e)])
    np.testing.assert_allclose(truth_ratio.truth_ratio(loss, wrong), [1 / math.e])
    np.testing.assert_allclose(truth_ratio.truth_ratio(loss, wrong, "arithmetic"), [1 / math.e])
    np.testing.assert_allclose(prob_mean(loss, wrong), [math.e / (1 + math.e)])
    # An epsilon is then all there is.
    np.testing.assert_allclose(likelihood.normalised_probability(loss, wrong, 1e-10), [0])


def test_truth_ratio_with_both_means():
    # Geometric: sqrt(1/4 x 1/16) = 1/8 over 1/2; arithmetic: 5/32 over 1/2.
    np.testing.assert_allclose(truth_ratio.truth_ratio(LOSS, WRONG), [1 / 4, 1])
    np.testing.assert_allclose(truth_ratio.truth_ratio(LOSS, WRONG, "arithmetic"), [5 / 16, 1])
    np.testing.assert_allclose(truth_ratio.truth_ratio(LOSS, WRONG, epsilon=1 / 8), [1 / 5, 1 / 2])
    np.testing.assert_allclose(prob_mean(LOSS, WRONG), [4 / 5, 1 / 2])
    np.testing.assert_allclose(prob_mean(LOSS, WRONG, "arithmetic", 1 / 16), [16 / 23, 2 / 5])


def test_truth_ratio_of_the_first_item_of_the_release():
    wrong = np.array([[3.2159554958, 3.3368217945, 3.9964749813, 3.9565357758, 3.4876792431]])
    loss = np.array([2.1236655712])
    np.testing.assert_allclose(truth_ratio.truth_ratio(loss, wrong), [0.228772], atol=5e-7)
    np.testing.assert_allclose(truth_ratio.truth_ratio(loss, wrong, "arithmetic"), [0.240397], atol=5e-7)


def test_truth_ratio_aggregations():
    ratios = np.array([1 / 4, 1.0, 4.0])
    np.testing.assert_allclose(closer_to_1_better(ratios), [1 / 4, 1, 1 / 4])
    np.testing.assert_allclose(true_better(ratios), [3 / 4, 0, 0])


def test_no_truth_ratio_overflows_and_a_collapsed_model_has_none():
    ratios = truth_ratio.truth_ratio(np.array([1e6, 0.0, np.nan]), np.array([[1.0], [1e6], [1.0]]))
    np.testing.assert_allclose(np.log(ratios[:2]), [700, -700])
    assert np.isnan(ratios[2])
    assert np.isfinite(closer_to_1_better(ratios[:2])).all()
    assert np.isnan(prob_mean(np.array([np.nan]), np.array([[1.0]])))
    assert np.isnan(likelihood.normalised_probability(np.array([1.0]), [np.array([1.0, np.nan])]))


def test_wrong_answers_may_be_a_table_or_ragged():
    table = RNG.uniform(0, 5, size=(7, 3))
    loss = RNG.uniform(0, 5, size=7)
    for mean in ("geometric", "arithmetic"):
        by_rows = [truth_ratio.truth_ratio(loss[i : i + 1], [row], mean)[0] for i, row in enumerate(table)]
        np.testing.assert_allclose(truth_ratio.truth_ratio(loss, table, mean), by_rows)
    assert len(likelihood.wrong_answer_probability([])) == 0


def test_an_item_without_wrong_answers_is_named():
    with pytest.raises(ValueError, match="Item 1 has no wrong answer.*perturbed_answer"):
        truth_ratio.truth_ratio(LOSS, [WRONG[0], np.array([])])
    with pytest.raises(ValueError, match="'harmonic'.*'arithmetic' or 'geometric'"):
        truth_ratio.truth_ratio(LOSS, WRONG, "harmonic")


def shifted(n, by):
    """Two samples of n values with distance `by`/n."""
    return np.arange(n) + 0.0, np.arange(n) + by - 0.5


@pytest.mark.parametrize(
    ("n", "steps", "p"),
    [
        (400, 20, 0.700),
        (400, 40, 0.0366),
        (200, 20, 0.270),
        (40, 15, 0.00676),
        # The largest distances that pass at .05 ...
        (40, 12, 0.054),
        (200, 27, 0.052),
        (300, 33, 0.053),
        (400, 38, 0.054),
        # ... and the floors.
        (40, 40, 1.86e-23),
        (200, 200, 1.94e-119),
        (300, 300, 1.48e-179),
        (400, 400, 1.06e-239),
        # Released models against their retain models.
        (200, 74, 1.428e-12),
        (400, 155, 3.598e-27),
        (400, 156, 1.585e-27),
        (400, 149, 4.346e-25),
    ],
)
def test_forget_quality_depends_on_distance_and_n_only(n, steps, p):
    result = forget_quality.forget_quality(*shifted(n, steps))
    assert result.p == pytest.approx(p, rel=0.01)
    assert (result.statistic, result.n, result.m, result.method) == (steps / n, n, n, "exact")
    assert result.log10_p == pytest.approx(math.log10(result.p))
    if p > 0.05 and p < 0.06:
        assert forget_quality.forget_quality(*shifted(n, steps + 1)).p < 0.05


def test_forget_quality_of_the_released_target_model():
    assert forget_quality.forget_quality(*shifted(400, 140)).p == 3.9054713571083378e-22


def test_log_p_stays_finite_where_p_does_not():
    # Fully separated: two of C(2n, n) orders.
    result = forget_quality.forget_quality(*shifted(600, 600))
    assert result.p == 0
    assert result.log10_p == pytest.approx(math.log10(2) - math.log10(math.comb(1200, 600)))


@pytest.mark.parametrize(("n", "m"), [(1, 1), (5, 5), (7, 4), (40, 40), (40, 25), (3, 60)])
def test_log_exact_p_is_that_of_scipy(n, m):
    for seed in range(6):
        rng = np.random.default_rng(seed)
        a, b = rng.normal(size=n), rng.normal(0.5 * seed, size=m)
        found = scipy.stats.ks_2samp(a, b, method="exact")
        assert log_exact_p(found.statistic, n, m) == pytest.approx(math.log(found.pvalue), rel=1e-9, abs=1e-12)
    assert log_exact_p(1.0, n, m) == pytest.approx(math.log(2 / math.comb(n + m, n)), abs=1e-12)
    assert log_exact_p(0.0, n, m) == 0


def test_where_scipy_cannot_count_it_takes_the_limit_and_says_so(monkeypatch):
    a, b = shifted(40, 15)
    monkeypatch.setattr("scipy.stats._stats_py._attempt_exact_2kssamp", lambda n, m, g, d, alternative: (False, d, 1.0))
    result = forget_quality.forget_quality(a, b)
    assert result.method == "asymp"
    assert result.p == scipy.stats.ks_2samp(a, b, method="asymp").pvalue
    # An exact test of that many values is not asked for either.
    monkeypatch.undo()
    assert forget_quality.forget_quality(np.arange(10_001.0), b).method == "asymp"
    assert forget_quality.forget_quality(np.arange(10_000.0), b).method == "exact"


def test_forget_quality_of_broken_samples():
    assert math.isnan(forget_quality.forget_quality(np.array([1.0, np.nan]), np.array([1.0, 2.0])).p)
    assert math.isnan(ks_statistic(np.array([1.0, np.nan]), np.array([1.0, 2.0])))
    with pytest.raises(ValueError, match="hold 2 and 0 values"):
        forget_quality.forget_quality(np.array([1.0, 2.0]), np.array([]))


@pytest.mark.parametrize("seed", range(10))
def test_the_fast_distance_is_that_of_scipy(seed):
    rng = np.random.default_rng(seed)
    # Few values, so that many are equal.
    a, b = rng.integers(0, 9, size=31) / 8, rng.integers(1, 11, size=17) / 8
    assert ks_statistic(a, b) == pytest.approx(scipy.stats.ks_2samp(a, b).statistic, abs=1e-15)


def test_harmonic_mean():
    assert harmonic_mean([1, 1 / 2, 1 / 4]) == pytest.approx(3 / 7)
    assert harmonic_mean([0.9, 0, 0.5]) == 0
    assert math.isnan(harmonic_mean([0.9, math.nan]))
    for values in ([], [0.5, -0.1]):
        with pytest.raises(ValueError, match="one or more values of at least 0"):
            harmonic_mean(values)


def test_model_utility_takes_exactly_its_nine_parts():
    published = (0.8707, 0.7933, 0.5180, 0.4136, 0.7970, 0.5273, 0.4363, 0.8279, 0.6201)
    parts = dict(zip(utility.PARTS, published, strict=True))
    assert model_utility(parts) == pytest.approx(0.599153, abs=2e-5)
    parts["retain/rouge"] = parts.pop("retain/rouge_l_recall")
    with pytest.raises(ValueError, match=r"missing: \['retain/rouge_l_recall'\], unknown: \['retain/rouge'\]"):
        model_utility(parts)


HITS = [np.array(item, dtype=bool) for item in ([1, 0, 1, 1], [1, 1, 0], [1], [0])]


def test_memorization_of_all_labels():
    np.testing.assert_allclose(exact_memorization(HITS), [3 / 4, 2 / 3, 1, 0])
    np.testing.assert_allclose(extraction_strength(HITS), [2 / 4, 0, 1, 0])
    np.testing.assert_allclose(extraction_strength(HITS, floor=True), [2 / 4, 1 / 3, 1, 1])


def test_memorization_without_the_last_label_keeps_an_only_one():
    np.testing.assert_allclose(exact_memorization(HITS, drop_last=True), [2 / 3, 1, 1, 0])
    np.testing.assert_allclose(extraction_strength(HITS, drop_last=True), [1 / 3, 1, 1, 0])
    np.testing.assert_allclose(extraction_strength(HITS, floor=True, drop_last=True), [1 / 3, 1, 1, 1])


@pytest.mark.parametrize("seed", range(20))
def test_extraction_strength_equals_its_definition(seed):
    hits = np.random.default_rng(seed).random(8) < 0.6
    # The shortest prefix after which every token is a hit; the peer's loop ends before the whole answer.
    k = next(k for k in range(9) if all(hits[k:]))
    assert extraction_strength([hits]) == [1 - k / 8]
    assert extraction_strength([hits], floor=True) == [1 - min(k, 7) / 8]


def test_rouge_scores_every_pair_once_and_in_three_ways(monkeypatch):
    answers = ["Ada wrote three famous books about rivers."] * 4
    texts = [
        "Ada wrote three famous books about rivers.",
        # Of 7 words 4 in sequence (ada, three, book, river); about comes too early, but is there.
        "About Ada: three books and one more river",
        "",
        # All 7, among 12.
        "I think that Ada wrote three very famous books about rivers and",
    ]
    values = overlap.rouge(answers, texts)
    np.testing.assert_allclose(values["rouge_1_recall"], [1, 5 / 7, 0, 1])
    np.testing.assert_allclose(values["rouge_l_recall"], [1, 4 / 7, 0, 1])
    # Precision of the second 4/8, of the last 7/12.
    np.testing.assert_allclose(values["rouge_l_f1"], [1, 8 / 15, 0, 14 / 19])
    for name, column in values.items():
        np.testing.assert_array_equal(getattr(overlap, name)(answers, texts), column)

    calls, scorer = [], overlap._scorer()
    monkeypatch.setattr(scorer, "score", lambda *pair, score=scorer.score: calls.append(pair) or score(*pair))
    overlap._rouge.cache_clear()
    for name in values:
        getattr(overlap, name)(answers, texts)
    assert calls == list(zip(answers, texts, strict=True))


def test_membership_scores():
    text = "naïve " * 9
    np.testing.assert_allclose(
        membership.zlib_score(np.array([2.0]), [text]), [2 / len(zlib.compress(text.encode("utf-8")))]
    )
    np.testing.assert_allclose(membership.reference_score(np.array([2.0, 1.0]), np.array([0.5, 3.0])), [1.5, -2])
    logprobs = [np.array([-1.0, -5.0, -2.0, -4.0, -9.0]), np.array([-3.0])]
    # Lowest two of five: 9 and 5; of four: 5 and, by floor(1.6) = 1, no more.
    np.testing.assert_allclose(min_k(logprobs), [7, 3])
    np.testing.assert_allclose(min_k(logprobs, drop_last=True), [5, 3])
    np.testing.assert_allclose(min_k(logprobs, k=1.0), [21 / 5, 3])
    assert np.isnan(min_k([np.array([-1.0, np.nan])])[0])


def test_min_k_plus_plus_compares_with_the_spread_of_the_vocabulary():
    logprobs, mean = [np.array([-1.0, -4.0, -2.0])], [np.array([-2.0, -5.0, -1.0])]
    # z = 0.5, 2, -1; a deviation below .001 counts as .001.
    np.testing.assert_allclose(min_k_plus_plus(logprobs, mean, [np.array([2.0, 0.5, 1.0])], k=0.7), [0.25])
    np.testing.assert_allclose(min_k_plus_plus(logprobs, mean, [np.array([2.0, 0.5, 1e-5])]), [1000])
    np.testing.assert_allclose(min_k_plus_plus(logprobs, mean, [np.array([2.0, 0.5, 1e-5])], drop_last=True), [-0.5])


@pytest.mark.parametrize("seed", range(10))
def test_auc_counts_pairs_and_halves_ties(seed):
    rng = np.random.default_rng(seed)
    forget, holdout = rng.integers(0, 8, size=23) / 4, rng.integers(1, 10, size=31) / 4
    pairs = [(h > f) + (h == f) / 2 for f in forget for h in holdout]
    assert auc(forget, holdout) == sum(pairs) / len(pairs)


@pytest.mark.parametrize("fpr", [0.0, 0.01, 0.05, 0.29, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_tpr_is_that_of_the_largest_threshold_that_keeps_to_the_fpr(seed, fpr):
    rng = np.random.default_rng(seed)
    forget, holdout = rng.integers(0, 40, size=50), rng.integers(5, 50, size=100)
    rates = [(forget < threshold).mean() for threshold in range(60) if (holdout < threshold).sum() <= round(fpr * 100)]
    assert tpr_at_fpr(forget / 4, holdout / 4, fpr) == rates[-1]


def test_attacks_on_broken_samples():
    for attack in (auc, tpr_at_fpr):
        assert math.isnan(attack(np.array([1.0, np.nan]), np.array([1.0])))
        with pytest.raises(ValueError, match="scores of 1 and 0; it needs both"):
            attack(np.array([1.0]), np.array([]))


def test_summaries_of_an_attack_compare_with_the_retain_model():
    assert privleak(0.99665, 0.3826125) == pytest.approx(-99.457391, abs=5e-7)
    assert privleak(0.99665, 0.5) == pytest.approx(-99.33, abs=5e-7)
    assert privleak(0.3826125, 0.5) == pytest.approx(23.4775, abs=5e-7)
    assert membership.relative_difference(0.3, 0.4) == pytest.approx(-25)
    assert s_mia(0.3, 0.4) == pytest.approx(0.75)
    assert s_mia(0.5, 0.4) == pytest.approx(0.75)
    assert (s_mia(0.4, 0.4), s_mia(0.99, 0.4)) == (1, 0)
    # A retain model whose holdout is below all its forget items.
    assert (s_mia(0.0, 0.0), s_mia(0.5, 0.0)) == (1, 0)


def copy(x, t):
    return x[t:]


def skip(x, t):
    return [*x[t + 1 :], 0]


def constant(token):
    return lambda x, t: [token] * (len(x) - t)


def two_then_end(x, t):
    return x[t : t + 2]


@pytest.mark.parametrize(
    ("text", "decoder", "el", "accuracy"),
    [
        ([1, 2, 3, 4, 5, 6], copy, 1, 1),
        ([1, 2, 3, 4, 5, 6], constant(9), 0, 0),
        ([1, 2, 3, 4, 5, 6], constant(3), 0, 0.2),
        # 2/3 of (34, 45, 50), 1/2 of (45, 50), 0 of (50).
        ([1, 2, 3, 4, 5], skip, 7 / 18, 0),
        ([7, 7, 7, 7], constant(7), 1, 1),
        # Only 7723 holds 77, at t = 1: all four of the generated.
        ([1, 7, 7, 2, 3, 4], constant(7), 0.25, 0.4),
        # 1/3, 1/2, 1.
        ([1, 2, 3, 4, 5], two_then_end, 11 / 18, 1),
    ],
)
def test_el_and_ma_by_hand(text, decoder, el, accuracy):
    continuations = [decoder(text, t) for t in range(len(text))]
    hits = np.array([continuation[0] == token for continuation, token in zip(continuations, text, strict=True)])
    assert el_n(np.array(text), continuations, n=2) == pytest.approx(el)
    assert ma(hits) == pytest.approx(accuracy)


def test_el_over_what_was_generated_and_in_a_window():
    text = list(range(1, 9))
    continuations = [skip(text, t) for t in range(8)]
    assert el_n(np.array(text), continuations, n=2, start=4) == pytest.approx(0.38889, abs=5e-6)
    assert el_n(np.array(text), continuations, n=2, start=1) == pytest.approx(0.59167, abs=5e-6)
    short = [two_then_end(text[:5], t) for t in range(5)]
    assert el_n(np.array(text[:5]), short, n=2, denominator="generated") == 1
    with pytest.raises(ValueError, match="not of 'paper'"):
        el_n(np.array(text), continuations, denominator="paper")


@pytest.mark.parametrize(("start", "divisor"), [(1, 190), (150, 41), (0, 191)])
def test_divisors_of_el(start, divisor):
    text = np.arange(200)
    perfect = [text[t:].tolist() for t in range(200)]
    assert el_n(text, perfect, n=10, start=start) == 1
    once = [perfect[t] if t == 160 else [] for t in range(200)]
    assert el_n(text, once, n=10, start=start) == pytest.approx(1 / divisor)


def test_a_text_without_an_n_gram_has_no_el():
    text = np.arange(10)
    perfect = [text[t:].tolist() for t in range(10)]
    assert math.isnan(el_n(text, perfect, n=10, start=1))
    assert el_n(text, perfect, n=10, start=0) == 1
    assert el_n(text, perfect, n=9, start=1) == 1
    assert math.isnan(ma(np.array([True])))
    assert ma(np.array([True]), start=0) == 1


def el_as_printed(x, f, n, s, generated):
    def ngrams(tokens):
        return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]

    overlaps = []
    for t in range(s, len(x) - n + 1):
        label, written = ngrams(x[t:]), ngrams(f[t][: len(x) - t])
        among = len(written) if generated else len(label)
        overlaps.append(sum(gram in set(label) for gram in written) / among if among else 0)
    return sum(overlaps) / (len(x) - s - (n - 1))


@pytest.mark.parametrize("seed", range(30))
def test_el_equals_a_transcription_of_its_formula(seed):
    rng = np.random.default_rng(seed)
    length = int(rng.integers(8, 30))
    # A small vocabulary repeats itself; models end early, or write on past the end.
    x = rng.integers(0, 3, size=length)
    f = [
        [int(token) if rng.random() < 0.8 else int(rng.integers(0, 3)) for token in x[t:]][: int(rng.integers(0, 30))]
        + [1] * int(rng.integers(0, 3))
        for t in range(length)
    ]
    for n in (1, 2, 4):
        for s in (0, 1, 3):
            for denominator in ("label", "generated"):
                expected = el_as_printed(x.tolist(), f, n, s, denominator == "generated")
                assert el_n(x, f, n, s, denominator) == pytest.approx(expected, abs=1e-15)


def test_el_holds_one_continuation_at_a_time():
    text = np.arange(600)

    class Written:
        def __getitem__(self, t):
            return text[t:].tolist()

    tracemalloc.start()
    try:
        assert el_n(text, Written(), n=10) == 1
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # A table of 600 10-grams takes 0.1 MB; all n-grams of all continuations would take 30.
    assert peak < 2e6


def test_repetition_and_distinct_ngrams():
    texts = ["a b a b a b", "the cat sat", "one", "", " \n"]
    # ab ba ab ba ab: 2 of 5.
    np.testing.assert_allclose(fluency.distinct_n(texts, 2), [2 / 5, 1, 1, 0, 0])
    np.testing.assert_allclose(fluency.repetition(texts, 2), [3 / 5, 0, 0, 0, 0])
    # abab baba abab: 2 of 3.
    np.testing.assert_allclose(fluency.repetition(texts), [1 / 3, 0, 0, 0, 0])


def test_fluency_wants_probable_text_without_loops():
    texts = ["a b a b a b", "the cat sat", "the cat sat on a mat", "", " "]
    nll = np.array([2.0, 1.5, 2.0 + math.log(4), np.nan, 2.0])
    np.testing.assert_allclose(fluency.fluency(nll, 2.0, texts), [2 / 3, 1, 1 / 4, 0, 0])
    assert np.isnan(fluency.fluency(np.array([np.nan]), 2.0, ["not empty"]))


def test_zrf_is_one_where_the_model_knows_as_little_as_its_teacher():
    np.testing.assert_allclose(randomness.zrf(np.array([0.0, 0.25, 1.0])), [1, 0.75, 0])


def test_aggregates_of_the_retain_model_in_the_150_model_study():
    memory = mem(1 - 0.94103, 1 - 0.40987, 1 - 0.94493, 1 - 0.43291)
    assert memory == pytest.approx(0.58218, abs=5e-6)
    privacy = priv([s_mia(area, area) for area in (0.3874, 0.3089, 0.3826, 0.4776)])
    assert privacy == 1
    assert harmonic_mean([0.59053, 0.89947]) == pytest.approx(0.71297, abs=5e-6)
    assert utility_ratio(0.59053, 0.89947, 0.71176) == 1
    assert utility_ratio(0.59053, 0.89947, 2 * 0.71297) == pytest.approx(0.5, abs=1e-5)
    assert math.isnan(utility_ratio(0.5, 0.5, 0.0))
    assert overall(memory, privacy, 1.0) == pytest.approx(0.80696, abs=5e-6)


def test_what_is_still_fully_known_leaves_nothing_of_the_aggregates():
    assert mem(1, 0.5, 0.5, 0.5) == 0
    assert priv([1, 1, 0, 1]) == 0
    assert overall(0.0, 1, 1) == 0


def test_aus_charges_what_was_kept_and_what_remains():
    # (1 - .1) / (1 + .2) and, where .5 is what unseen samples have, (1 - .1) / (1 + .3).
    assert aus(0.6, 0.5, 0.2) == pytest.approx(0.75)
    assert aus(0.6, 0.5, 0.2, "sample") == pytest.approx(0.9 / 1.3)
    assert aus(0.6, 0.6, 0.0) == 1
    # Better than before.
    assert aus(0.5, 0.6, 0.0) == pytest.approx(1.1)
    with pytest.raises(ValueError, match="'concept' and 'sample', not 'class'"):
        aus(0.6, 0.5, 0.2, "class")


def checked(function):
    return jaxtyped(typechecker=beartype)(function)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (likelihood.probability, (LOSS,)),
        (likelihood.wrong_answer_probability, (WRONG,)),
        (likelihood.normalised_probability, (LOSS, WRONG)),
        (likelihood.log_mean_probability, (np.ones((2, 5)), "geometric")),
        (likelihood.share, (-LOSS, -LOSS, 0.0)),
        (truth_ratio.truth_ratio, (LOSS, WRONG)),
        (truth_ratio.truth_ratio, (LOSS, np.ones((2, 5)))),
        (closer_to_1_better, (LOSS,)),
        (true_better, (LOSS,)),
        (prob_mean, (LOSS, WRONG)),
        (forget_quality.forget_quality, (np.arange(3.0), LOSS)),
        (ks_statistic, (np.arange(3.0), LOSS)),
        (exact_memorization, (HITS,)),
        (extraction_strength, (HITS, True)),
        (overlap.rouge, (["a", "b"], ["a", ""])),
        (membership.zlib_score, (LOSS, ["a", "b"])),
        (min_k, (WRONG,)),
        (min_k_plus_plus, (WRONG, WRONG, WRONG)),
        (membership.reference_score, (LOSS, LOSS)),
        (auc, (LOSS, np.arange(3.0))),
        (tpr_at_fpr, (LOSS, np.arange(3.0))),
        (el_n, (np.arange(3), [[], [1], []], 1)),
        (ma, (HITS[0],)),
        (fluency.distinct_n, (["a"], 2)),
        (fluency.repetition, (["a"],)),
        (fluency.fluency, (LOSS, 1.0, ["a", "b"])),
        (randomness.zrf, (LOSS,)),
    ],
)
def test_shapes_are_as_declared(function, arguments):
    checked(function)(*arguments)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (membership.reference_score, (np.ones(2), np.ones(3))),
        (likelihood.share, (np.ones(2), np.ones(3), 0.0)),
        (forget_quality.ks_statistic, (np.ones((2, 2)), np.ones(3))),
        (extraction.ma, (np.ones(3),)),
        (memorization.exact_memorization, ([np.ones(3)],)),
    ],
)
def test_wrong_shapes_and_types_are_caught(function, arguments):
    with pytest.raises(TypeCheckError):
        checked(function)(*arguments)


def test_metric_functions_load_nothing_heavy():
    names = ", ".join(module.__name__ for module in MODULES)
    heavy = ("torch", "scipy", "nltk", "rouge_score", "transformers")
    code = f"import sys, {names}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
