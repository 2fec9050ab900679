"""Statistics of the probes against SciPy, brute force and numbers worked out by hand."""

from itertools import permutations

import numpy as np
import pytest
from scipy import stats

from llm_unlearn.probes.disagreement import rate_over_sizes
from llm_unlearn.probes.records import Disagreement, Estimate
from llm_unlearn.probes.seeds import fisher_average, mean_over_seeds
from llm_unlearn.probes.statistics import (
    FEWEST_CLUSTERS,
    Resampling,
    line_over,
    partial_spearman,
    slope,
    spearman,
    weighted_ranks,
)


def draw(n, seed=0, levels=6):
    random = np.random.default_rng(seed)
    x = np.log10(1 + 2.0 ** random.integers(0, levels, size=n))
    y = -0.3 * x + random.normal(size=n) * 0.2
    return x, y, random


def alone(n, **options):
    return Resampling([f"s{i}" for i in range(n)], **options)


# Correlations.


def test_spearman_and_kendall_are_those_of_scipy_with_ties():
    for seed in range(5):
        x, y, _ = draw(40, seed)
        y = y.round(1)
        ours = alone(40).spearman(x, y)
        assert ours.value == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
        assert alone(40).kendall(x, y).value == pytest.approx(stats.kendalltau(x, y, variant="b").statistic, abs=1e-12)
        assert ours.n == 40


def test_kendall_tau_b_by_counting_pairs():
    x, y = np.array([1, 1, 2, 3.0]), np.array([2, 1, 3, 3.0])
    # Pairs: 5 concordant of those untied in both is (0,2) (0,3) (1,2) (1,3): 4; (0,1) ties in x, (2,3) in y.
    assert alone(4).kendall(x, y).value == pytest.approx(4 / np.sqrt(5 * 5))


def test_weighted_ranks_are_the_ranks_of_the_sample_written_out():
    values = np.array([3.0, 1, 3, 7, 1, 5])
    weights = np.array([[1, 1, 1, 1, 1, 1], [2, 0, 1, 3, 2, 0], [0, 0, 4, 0, 1, 1]], dtype=float)
    for row, ranks in zip(weights, weighted_ranks(values, weights), strict=True):
        repeated = np.repeat(np.arange(6), row.astype(int))
        expected = stats.rankdata(values[repeated])
        np.testing.assert_allclose(ranks[repeated], expected)


def test_every_resample_has_the_spearman_of_scipy():
    x, y, random = draw(30)
    y = y.round(1)
    weights = random.multinomial(30, [1 / 30] * 30, size=50).astype(float)
    for row, ours in zip(weights, spearman(x, y, weights), strict=True):
        at = np.repeat(np.arange(30), row.astype(int))
        assert ours == pytest.approx(stats.spearmanr(x[at], y[at]).statistic, abs=1e-12)


def test_a_resample_without_spread_has_no_correlation():
    weights = np.array([[1.0, 1, 1, 1], [4, 0, 0, 0], [0, 2, 2, 0]])
    rho = spearman(np.array([1.0, 2, 2, 4]), np.array([1.0, 2, 3, 4]), weights)
    assert np.isfinite(rho).tolist() == [True, False, False]


def test_the_interval_of_the_resamples_is_the_bootstrap_of_scipy():
    x, y, _ = draw(60)
    low, high = alone(60, resamples=4000).spearman(x, y).ci95
    theirs = stats.bootstrap(
        (x, y),
        lambda a, b: stats.spearmanr(a, b).statistic,
        paired=True,
        vectorized=False,
        n_resamples=2000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.02)


def test_the_interval_holds_a_known_rho_as_often_as_it_says():
    # Of a bivariate normal with correlation r, Spearman's rho is 6 / pi * arcsin(r / 2).
    r = -0.6
    rho = 6 / np.pi * np.arcsin(r / 2)
    random, held = np.random.default_rng(0), 0
    for _ in range(150):
        x, other = random.normal(size=(2, 60))
        low, high = alone(60, resamples=300, permutations=99).spearman(x, r * x + np.sqrt(1 - r**2) * other).ci95
        held += low <= rho <= high
    # 95 % of 150 is 142.5, with a deviation of 2.7.
    assert held >= 134


def test_shuffled_counts_give_an_interval_that_covers_zero():
    x, y, random = draw(80)
    true = alone(80).spearman(x, y)
    assert true.ci95[1] < 0 and true.p < 0.01
    covered = [low <= 0 <= high for low, high in (alone(80).spearman(random.permutation(x), y).ci95 for _ in range(20))]
    assert sum(covered) >= 17


# Permutation.


def test_the_permutation_p_is_that_of_all_permutations(monkeypatch):
    monkeypatch.setattr("llm_unlearn.probes.statistics.FEWEST_FOR_P", 2)
    x, y = np.array([1.0, 2, 3, 4, 4, 6]), np.array([3.0, 2, 4, 1, 0, 1])
    observed = abs(stats.spearmanr(x, y).statistic)
    rhos = [abs(stats.spearmanr(x[list(order)], y).statistic) for order in permutations(range(6))]
    exact = np.mean([rho >= observed - 1e-9 for rho in rhos])
    assert alone(6, permutations=20_000).spearman(x, y).p == pytest.approx(exact, abs=0.01)


def test_the_smallest_p_is_one_over_the_permutations_and_one():
    x = np.arange(30.0)
    assert alone(30, permutations=999).spearman(x, -x).p == 1 / 1000


def test_there_is_no_p_below_twenty_facts():
    x, y, _ = draw(19)
    estimate = alone(19).spearman(x, y)
    assert estimate.p is None and estimate.note == "no p-value: 19 facts; 20 are needed"
    assert estimate.ci95 is not None
    x, y, _ = draw(20)
    assert alone(20).spearman(x, y).p is not None


def test_counts_of_subjects_are_dealt_to_subjects():
    """Ten facts each about 30 subjects whose forgetting is their own are 30 observations and not 300."""
    random, small = np.random.default_rng(0), {"facts": 0, "subjects": 0}
    subjects = [f"s{i // 10}" for i in range(300)]
    for _ in range(40):
        x = np.repeat(random.permutation(30), 10).astype(float)
        y = np.repeat(random.normal(size=30), 10) + 0.1 * random.normal(size=300)
        small["facts"] += alone(300, resamples=100, permutations=199).spearman(x, y).p < 0.05
        small["subjects"] += Resampling(subjects, resamples=100, permutations=199).spearman(x, y).p < 0.05
    assert small["facts"] > 15
    assert small["subjects"] <= 6


def test_whole_subjects_are_resampled():
    subjects = [f"s{i // 10}" for i in range(300)]
    y = np.repeat(np.random.default_rng(0).normal(size=30), 10)
    of_facts, of_subjects = alone(300).mean(y).ci95, Resampling(subjects).mean(y).ci95
    assert np.ptp(of_subjects) > 2.5 * np.ptp(of_facts)
    # Below ten subjects ten draws say nothing, and facts are drawn.
    few = Resampling([f"s{i % (FEWEST_CLUSTERS - 1)}" for i in range(300)])
    assert np.ptp(few.mean(y).ci95) == pytest.approx(np.ptp(of_facts))


# Partial correlation, slope, gap.


def test_the_partial_correlation_of_one_control_by_its_formula():
    x, y, random = draw(50)
    z = x + random.normal(size=50)
    rho = {
        pair: stats.spearmanr(*pair_values).statistic
        for pair, pair_values in {"xy": (x, y), "xz": (x, z), "yz": (y, z)}.items()
    }
    expected = (rho["xy"] - rho["xz"] * rho["yz"]) / np.sqrt((1 - rho["xz"] ** 2) * (1 - rho["yz"] ** 2))
    assert alone(50).partial(x, y, [z]).value == pytest.approx(expected, abs=1e-12)


def test_the_partial_correlation_of_two_controls_by_regression_of_ranks():
    x, y, random = draw(50)
    controls = [x + random.normal(size=50), random.integers(3, 6, size=50).astype(float)]
    ranks = [stats.rankdata(values) for values in (x, y, *controls)]
    design = np.column_stack([np.ones(50), *ranks[2:]])
    rest = [own - design @ np.linalg.lstsq(design, own, rcond=None)[0] for own in ranks[:2]]
    expected = stats.pearsonr(*rest).statistic
    estimate = alone(50).partial(x, y, controls)
    assert estimate.value == pytest.approx(expected, abs=1e-9)
    assert estimate.ci95[0] < expected < estimate.ci95[1]
    # A constant control and one given twice change nothing.
    more = [*controls, np.full(50, 7.0), controls[0]]
    assert alone(50).partial(x, y, more).value == pytest.approx(expected, abs=1e-6)


def test_the_partial_correlation_of_every_resample():
    x, y, random = draw(40)
    z = x + random.normal(size=40)
    weights = random.multinomial(40, [1 / 40] * 40, size=20).astype(float)
    for row, ours in zip(weights, partial_spearman(x, y, [z], weights), strict=True):
        at = np.repeat(np.arange(40), row.astype(int))
        assert ours == pytest.approx(alone(40).partial(x[at], y[at], [z[at]]).value, abs=1e-9)


def test_a_control_that_is_the_count_leaves_nothing():
    x, y, _ = draw(30)
    estimate = alone(30).partial(x, y, [2 * x])
    assert estimate.value is None and "controls already tell" in estimate.note


def test_the_slope_is_the_change_per_tenfold_count():
    counts = np.array([9, 99, 999, 9999, 99_999])
    estimate = alone(5).slope(np.log10(1 + counts), 0.9 - 0.2 * np.log10(1 + counts))
    assert estimate.value == pytest.approx(-0.2)
    x, y, random = draw(40)
    assert alone(40).slope(x, y).value == pytest.approx(stats.linregress(x, y).slope)
    weights = random.multinomial(40, [1 / 40] * 40, size=20).astype(float)
    for row, ours in zip(weights, slope(x, y, weights), strict=True):
        at = np.repeat(np.arange(40), row.astype(int))
        assert ours == pytest.approx(stats.linregress(x[at], y[at]).slope, abs=1e-9)


def test_forgetting_that_is_the_same_everywhere_has_a_slope_of_zero_and_no_correlation():
    x = np.arange(5.0)
    assert alone(5).slope(x, np.full(5, 0.5)).value == pytest.approx(0)
    for estimate in (alone(5).spearman(x, np.full(5, 0.5)), alone(5).kendall(x, np.full(5, 0.5))):
        assert estimate.value is None and "to the same degree" in estimate.note
    assert "same count" in alone(5).slope(np.full(5, 1.0), x).note
    assert "2 known facts, 3 are needed" in alone(2).spearman(x[:2], x[:2]).note


def test_the_gap_is_high_minus_low():
    y = np.array([0.9, 0.7, 0.5, 0.3, 0.1])
    low, high = np.array([1.0, 1, 0, 0, 0]), np.array([0.0, 0, 0, 1, 1])
    estimate = alone(5).gap(y, low, high)
    assert estimate.value == pytest.approx(0.2 - 0.8)
    assert estimate.n == 4
    assert estimate.ci95[0] < -0.6 < estimate.ci95[1]
    assert "no known facts" in alone(5).gap(y, low, np.zeros(5)).note


def test_the_interval_of_a_gap_is_that_of_two_independent_means():
    random = np.random.default_rng(0)
    y = np.concatenate([random.normal(0.8, 0.1, size=100), random.normal(0.2, 0.3, size=100)])
    low = np.repeat([1.0, 0.0], 100)
    ci = alone(200, resamples=4000).gap(y, low, 1 - low).ci95
    half = 1.96 * np.sqrt(y[:100].var() / 100 + y[100:].var() / 100)
    mean = y[100:].mean() - y[:100].mean()
    assert ci == pytest.approx((mean - half, mean + half), abs=0.01)


def test_a_mean_of_nothing_and_of_one():
    assert alone(0).mean(np.zeros(0)) == Estimate(None, note="not measured: no known facts")
    assert alone(1).mean(np.array([0.4])) == Estimate(0.4, n=1)


def test_equal_data_have_equal_intervals():
    x, y, _ = draw(40)
    assert alone(40).spearman(x, y) == alone(40).spearman(x, y)
    assert alone(40, seed=1).spearman(x, y).ci95 != alone(40).spearman(x, y).ci95


# Seeds and sizes.


def test_correlations_are_averaged_by_fishers_z():
    x, ys = np.arange(1.0, 5), [np.array([1.0, 2, 4, 3]), np.array([2.0, 4, 1, 3])]
    assert [stats.spearmanr(x, y).statistic for y in ys] == pytest.approx([0.8, 0.0])
    over_seeds, over_facts = fisher_average([x, x], ys, [list("abcd")] * 2)
    # z of .8 is 1.0986 and of 0 is 0; tanh(.5493) = .5. Deviation .7768, half 12.706 * .7768 / sqrt 2 = 6.98.
    assert over_seeds.value == over_facts.value == pytest.approx(0.5)
    assert over_seeds.ci95 == pytest.approx((np.tanh(0.549306 - 6.9796), np.tanh(0.549306 + 6.9796)), abs=1e-6)
    assert over_seeds.n == 2


def test_the_interval_over_facts_does_not_shrink_with_runs_that_say_the_same():
    x, y, random = draw(60)
    units = [f"f{i}" for i in range(60)]
    one = fisher_average([x], [y], [units])[1]
    same = fisher_average([x] * 3, [y] * 3, [units] * 3)[1]
    assert same.ci95 == pytest.approx(one.ci95)
    assert one.ci95 == pytest.approx(alone(60).spearman(x, y).ci95, abs=1e-9)
    # Runs that draw their own errors together know more.
    others = [-0.3 * x + random.normal(size=60) * 0.2 for _ in range(3)]
    apart = [fisher_average([x], [other], [units])[1] for other in others]
    assert np.ptp(fisher_average([x] * 3, others, [units] * 3)[1].ci95) < min(np.ptp(own.ci95) for own in apart)


def test_runs_may_know_different_facts():
    x, y, _ = draw(30)
    units = [f"f{i}" for i in range(30)]
    over_seeds, over_facts = fisher_average([x, x[3:]], [y, y[3:]], [units, units[3:]])
    assert over_facts.ci95[0] < over_seeds.value < over_facts.ci95[1]


def test_a_run_without_a_correlation_leaves_no_average():
    x, y, _ = draw(30)
    (missing, _) = fisher_average([x, x], [y, np.ones(30)], [[str(i) for i in range(30)]] * 2)
    assert missing.value is None and "1 of 2 runs" in missing.note
    alone_seed = fisher_average([x], [y], [[str(i) for i in range(30)]])[0]
    assert alone_seed.ci95 is None and "two or more" in alone_seed.note


def test_a_perfect_correlation_has_an_average():
    x = np.arange(12.0)
    assert fisher_average([x, x], [-x, -x], [[str(i) for i in x]] * 2)[0].value == pytest.approx(-1)


def test_a_mean_over_seeds_has_the_interval_of_student():
    values = [-0.1, -0.3, -0.2]
    expected = stats.t.interval(0.95, 2, loc=-0.2, scale=stats.sem(values))
    estimate = mean_over_seeds(values)
    assert (estimate.value, estimate.n) == (pytest.approx(-0.2), 3)
    assert estimate.ci95 == pytest.approx(expected)


def test_a_line_over_sizes():
    # Rates .1, .2, .45 at 1e6, 1e7, 1e8: slope (.45 - .1) / 2 = .175.
    estimate = line_over([6.0, 7.0, 8.0], [0.1, 0.2, 0.45])
    assert estimate.value == pytest.approx(0.175)
    fit = stats.linregress([6, 7, 8], [0.1, 0.2, 0.45])
    half = 12.7062 * fit.stderr
    assert estimate.ci95 == pytest.approx((0.175 - half, 0.175 + half), abs=1e-4)
    assert line_over([6.0, 7.0], [0.1, 0.2]).note == "not measured: 3 different sizes are needed"
    assert line_over([6.0, 6.0, 7.0], [0.1, 0.2, 0.3]).value is None
    level = line_over([6.0, 7.0, 8.0], [0.2, 0.2, 0.2])
    assert (level.value, level.ci95) == (0.0, (0.0, 0.0))
    with pytest.raises(ValueError, match="above 0"):
        rate_over_sizes({0: None})


# The table of disagreement.


def test_the_rate_and_kappa_of_a_table_by_hand():
    table = Disagreement(both=20, hidden=5, apparent=10, neither=15, uses_p2=True)
    # Cohen's example: agreement .7, by chance .5 * .6 + .5 * .4 = .5, kappa .4.
    assert (table.n, table.rate, table.kappa) == (50, 0.3, pytest.approx(0.4))
    assert Disagreement.from_dict(table.to_dict()) == table


def test_kappa_against_pairs_written_out():
    table = Disagreement(both=7, hidden=2, apparent=9, neither=1, uses_p2=False)
    prob = np.array([1] * 9 + [0] * 10)
    gen = np.array([1] * 7 + [0] * 2 + [1] * 9 + [0])
    chance = prob.mean() * gen.mean() + (1 - prob.mean()) * (1 - gen.mean())
    assert table.kappa == pytest.approx(((prob == gen).mean() - chance) / (1 - chance))


@pytest.mark.parametrize(("cells", "rate"), [((4, 0, 0, 0), 0), ((0, 0, 0, 4), 0), ((0, 0, 0, 0), None)])
def test_kappa_is_missing_where_chance_always_agrees(cells, rate):
    table = Disagreement(*cells, uses_p2=False)
    assert (table.rate, table.kappa) == (rate, None)
