"""Intervals and p-values of the probes where data are few, alike or nearly all the same: what must not be a finding."""

import json
from dataclasses import replace
from itertools import permutations, product

import numpy as np
import pytest
from scipy import stats

from llm_unlearn.evaluation.statistics import resampling_weights
from llm_unlearn.probes.controlled import controlled_world
from llm_unlearn.probes.frequency import FrequencyProbe
from llm_unlearn.probes.records import ProbeResult
from llm_unlearn.probes.seeds import average_over_seeds, fisher_average
from llm_unlearn.probes.statistics import Resampling, expanded_interval, tendency
from llm_unlearn.probes.summary import summarise
from llm_unlearn.probes.world import facts_of_world
from tests.sample_probe import SETTINGS, before_and_after, counts, facts


def names(n):
    return [f"s{i}" for i in range(n)]


def excludes(ci95):
    return not ci95[0] <= 0 <= ci95[1]


# Few draws.


@pytest.mark.parametrize(
    ("m", "df", "percent"),
    [
        # t 2.1788, times sqrt(5 / 4) 2.4360; t 2.0452, times sqrt(30 / 29) 2.0802; t 2.7764 and 3.1042.
        (5, 12, 0.7426),
        (30, 29, 1.8754),
        (5, 4, 0.0954),
        (10**6, 10**6, 2.5),
    ],
)
def test_the_tail_of_an_expanded_interval_by_hand(m, df, percent):
    low, high = expanded_interval(np.concatenate([[-1.0], np.linspace(0, 100, 100_001)]), m, df)
    assert (low, high) == pytest.approx((percent, 100 - percent), abs=2e-4)


def test_one_draw_has_no_interval_and_two_have_that_of_all_resamples():
    estimates = np.array([9.0, 1, 2, 3, 4])
    assert expanded_interval(estimates, 1, 5) is None and expanded_interval(estimates, 3, 0) is None
    assert expanded_interval(estimates, 2, 1) == (1, 4)


def test_the_interval_of_few_values_is_about_students():
    """A percentile interval of six values is .75 as wide: 1.96 for 2.571, and a deviation over 6 instead of 5."""
    values = np.array([0.31, 0.55, 0.42, 0.12, 0.78, 0.5])
    low, high = stats.t.interval(0.95, 5, values.mean(), stats.sem(values))
    ours = Resampling(names(6), resamples=4000).mean(values).ci95
    assert np.ptp(ours) == pytest.approx(high - low, rel=0.1)


def test_every_interval_of_an_association_is_expanded():
    random = np.random.default_rng(0)
    x, y, control = random.normal(size=(3, 12))
    low, high = np.repeat([1.0, 0.0], [4, 8]), np.repeat([0.0, 1.0], [9, 3])
    found = Resampling(names(12)).associate(x, y, control, control**2, low, high)
    weights = resampling_weights(12)
    at = [np.repeat(np.arange(12), row.astype(int)) for row in weights[1:]]
    # 12 facts: t of 11 degrees of freedom is 2.2010, times sqrt(12 / 11) 2.2988.
    tail = stats.norm.sf(2.2988)
    rhos = [stats.spearmanr(x[i], y[i]).statistic for i in at]
    assert found.spearman.ci95 == pytest.approx(np.quantile(rhos, [tail, 1 - tail]), abs=1e-4)
    slopes = [stats.linregress(x[i], y[i]).slope for i in at]
    assert found.slope.ci95 == pytest.approx(np.quantile(slopes, [tail, 1 - tail]), abs=1e-4)
    # Buckets of 4 and of 3: t of 4 + 3 - 2 degrees of freedom is 2.5706, times sqrt(3 / 2) 3.1483.
    tail = stats.norm.sf(3.1483)
    gaps = [y[i[i > 8]].mean() - y[i[i < 4]].mean() for i in at if (i > 8).any() and (i < 4).any()]
    assert found.gap.ci95 == pytest.approx(np.quantile(gaps, [tail, 1 - tail]), abs=1e-4)
    assert np.ptp(found.partial.ci95) > np.ptp(found.spearman.ci95)
    # One fact does not say how such facts differ.
    alone = Resampling(names(12)).gap(y, low, np.eye(12)[11])
    assert alone.ci95 is None and alone.note.startswith("no interval: there are too few known facts")


def test_clusters_are_the_draws_where_there_are_ten():
    y = np.random.default_rng(0).normal(size=60)
    clusters = [f"c{i // 5}" for i in range(60)]
    drawn = [(row @ y) / row.sum() for row in resampling_weights(60, clusters)[1:]]
    tail = stats.norm.sf(2.2988)
    assert Resampling(clusters).mean(y).ci95 == pytest.approx(np.quantile(drawn, [tail, 1 - tail]), abs=1e-4)
    # The average over runs draws the clusters that all runs share.
    x = np.tile(np.arange(5.0), 12)
    one, of_runs = Resampling(clusters).spearman(x, y), fisher_average([x, x], [y, y], [clusters] * 2)[1]
    assert of_runs.ci95 == pytest.approx(one.ci95)


def test_the_interval_of_few_authors_holds_zero_as_often_as_it_says():
    """Three strata of five authors, as in the controlled world; the percentile interval misses 0 twice as often."""
    random, missed = np.random.default_rng(1), np.zeros(2)
    for draw in range(200):
        z = []
        for stratum in range(3):
            x, y = random.normal(size=(2, 5))
            weights = resampling_weights(5, resamples=300, seed=3 * draw + stratum)
            z.append((weights @ (x * y)) / weights.sum(axis=1))
        mean = np.mean(z, axis=0)
        missed += [excludes(np.quantile(mean[1:], [0.025, 0.975])), excludes(expanded_interval(mean, 5, 12))]
    # 5 % of 200 is 10, with a deviation of 3.1.
    assert missed[1] <= 16 and missed[0] >= 1.5 * missed[1]


# Nearly all the same.


def test_one_forgotten_fact_is_no_finding():
    """(1 - 1 / n)^n of the resamples, 37 of 100, lack the fact: they say 0 and not nothing."""
    n = 44
    x = np.log10(1 + np.r_[[1, 2, 3, 4] * 5, [8, 12, 20, 36] * 6])
    one = np.zeros(n)
    one[0] = 1
    control = np.random.default_rng(0).uniform(size=n)
    resampling = Resampling(names(n), permutations=999)
    lacking = np.mean(resampling.weights[1:, 0] == 0)
    assert lacking == pytest.approx((1 - 1 / n) ** n, abs=0.04)
    rho = resampling.spearman(x, one)
    assert rho.value == pytest.approx(stats.spearmanr(x, one).statistic) and rho.value < -0.2
    assert rho.ci95[1] == 0
    # Of mean rank 22.5 the five lowest have 3 and the six highest 41.5, so that 5 of 44 facts are as extreme.
    assert rho.p == pytest.approx(5 / 44, abs=0.03)
    assert resampling.partial(x, one, [control]).ci95[1] >= 0
    # The same of counts: one frequent fact tells nothing of frequent facts.
    assert resampling.slope(one, x).ci95[1] == 0 > resampling.slope(one, x).value
    for average in (fisher_average([x], [one], [names(n)])[1], fisher_average([x] * 3, [one] * 3, [names(n)] * 3)[1]):
        assert average.value == pytest.approx(rho.value) and average.ci95[1] == 0
    assert tendency(np.array([-0.2, np.nan, 0.1])).tolist() == [-0.2, 0, 0.1]


def test_one_forgotten_fact_is_no_finding_of_a_probe_of_seeds_and_of_worlds():
    some = facts(40)
    number_of = counts(some)
    probe = FrequencyProbe(some, number_of, None, SETTINGS)
    before, _ = before_and_after(some, number_of)
    # Of all only the rarest known fact is forgotten.
    after = [replace(one, p1=one.p1 / 2) if i == 1 else one for i, one in enumerate(before)]
    result = probe.compare(before, after)
    rho = result.associations["p1"].spearman
    assert rho.value < -0.2 and rho.ci95[1] == 0
    assert average_over_seeds([result] * 2)["p1"].spearman_over_facts.ci95[1] == 0
    assert summarise([result]).outcomes["p1"].rho_over_authors.ci95[1] == 0


@pytest.mark.parametrize("forgotten", [1, 2, 30])
def test_without_a_tendency_few_intervals_exclude_zero(forgotten):
    random, found = np.random.default_rng(0), 0
    for draw in range(100):
        x = np.log10(1 + 2.0 ** random.integers(0, 5, 30))
        y = np.zeros(30)
        y[random.choice(30, forgotten, replace=False)] = random.uniform(0.5, 1, forgotten)
        found += excludes(Resampling(names(30), resamples=300, permutations=1, seed=draw).spearman(x, y).ci95)
    # 5 of 100, with a deviation of 2.2; it was 70 where resamples without a forgotten fact were left out.
    assert found <= 9


# Facts that share a subject.


def test_the_permutation_p_of_shared_subjects_is_that_of_all_exchanges(monkeypatch):
    monkeypatch.setattr("llm_unlearn.probes.statistics.FEWEST_FOR_P", 2)
    # Three subjects of two facts, two of one and one of three, which exchanges with none: 3! 2! = 12 orders.
    clusters = ["a", "a", "b", "c", "b", "c", "d", "e", "f", "f", "f"]
    x = np.array([1.0, 2, 5, 3, 4, 3, 6, 1, 2, 5, 5])
    y = np.array([0.9, 0.7, 0.1, 0.5, 0.3, 0.4, 0.2, 0.8, 0.6, 0.25, 0.35])
    pairs, single = [[0, 1], [2, 4], [3, 5]], [[6], [7]]
    observed, rhos = abs(stats.spearmanr(x, y).statistic), []
    for orders in product(permutations(range(3)), permutations(range(2))):
        dealt = x.copy()
        for places, order in zip((pairs, single), orders, strict=True):
            for place, other in zip(places, order, strict=True):
                dealt[place] = x[places[other]]
        rhos.append(abs(stats.spearmanr(dealt, y).statistic))
    exact = np.mean(np.array(rhos) >= observed - 1e-9)
    assert 0.05 < exact < 0.95
    ours = Resampling(clusters, permutations=20_000).spearman(x, y)
    assert ours.p == pytest.approx(exact, abs=0.01)


def test_one_count_that_differs_does_not_make_subjects_independent():
    """Of 20 subjects with a count and a degree of forgetting each, one fact has another count."""
    random, small = np.random.default_rng(0), 0
    clusters = [f"s{i // 5}" for i in range(100)]
    for draw in range(100):
        x = np.repeat(random.integers(0, 5, 20), 5).astype(float)
        x[0] += 1
        y = np.repeat(random.normal(size=20), 5) + 0.3 * random.normal(size=100)
        small += Resampling(clusters, resamples=100, permutations=199, seed=draw).spearman(x, y).p < 0.05
    # 5 of 100, with a deviation of 2.2; it was 36 where counts were dealt to facts.
    assert small <= 10


def test_subjects_that_cannot_exchange_counts_have_no_p():
    few = [f"s{i // 10}" for i in range(120)]
    x, y = np.arange(120.0) % 11, np.arange(120.0) % 7
    assert Resampling(few).spearman(x, y).note == (
        "no p-value: 12 subjects of as many known facts as another, which could exchange counts; 20 are needed"
    )
    # Subjects of 1 to 15 facts: each has a number of its own.
    unequal = [f"s{size}" for size in range(1, 16) for _ in range(size)]
    assert Resampling(unequal).spearman(x, y).note.startswith("no p-value: 0 subjects")
    # A hundred of one fact can, whatever the others are.
    assert Resampling([*names(100), *["two"] * 20]).spearman(x, y).p is not None


# Subjects that go by several names.


def test_facts_of_a_world_are_drawn_with_their_author():
    to_forget = [fact for fact in controlled_world(0).facts if fact.role == "forget"]
    assert len({fact.subject for fact in to_forget}) == 10
    assert {fact.cluster for fact in to_forget} == {fact.id.partition("/")[0] for fact in to_forget}
    assert len({fact.cluster for fact in to_forget}) == 5
    plain = facts_of_world([{"question": "Who?", "answer": "She."}])
    assert plain[0].cluster is None


def of_clusters(size):
    some = tuple(replace(fact, cluster=f"c{i // size}") for i, fact in enumerate(facts(60)))
    number_of = counts(some)
    return FrequencyProbe(some, number_of, None, SETTINGS).compare(*before_and_after(some, number_of))


def test_a_probe_draws_clusters():
    result, by_subject = of_clusters(5), of_clusters(1)
    known = result.known()
    x, f = (np.array([getattr(row, name) for row in known], dtype=float) for name in ("x", "f_p1"))
    clusters = [row.cluster for row in known]
    assert len(set(clusters)) == 12 and len(clusters) == 54
    expected = Resampling(clusters, resamples=SETTINGS.resamples, permutations=SETTINGS.permutations)
    assert result.associations["p1"].spearman == expected.spearman(x, f)
    assert result.associations["p1"].spearman.ci95 != by_subject.associations["p1"].spearman.ci95
    averages = [average_over_seeds([one] * 2)["p1"].spearman_over_facts for one in (result, by_subject)]
    assert averages[0].ci95 == pytest.approx(result.associations["p1"].spearman.ci95)
    assert averages[1].ci95 != averages[0].ci95
    assert not [warning for one in (result, by_subject) for warning in one.warnings if "share" in warning]


def test_few_subjects_that_share_facts_are_warned_of():
    few = of_clusters(10)
    assert (
        "The 54 known facts share 6 subjects: with fewer than 10, facts are drawn one by one, and intervals are too "
        "narrow where facts of a subject are forgotten together."
    ) in few.warnings
    assert few.associations["p1"].spearman.p is None


def test_reports_that_know_no_clusters_are_read():
    result = of_clusters(5)
    record = json.loads(json.dumps(result.to_dict()))
    assert ProbeResult.from_dict(record).rows[7].cluster == "c1"
    for row in record["rows"]:
        del row["cluster"]
    assert ProbeResult.from_dict(record).rows[7].cluster == "Land 7"
