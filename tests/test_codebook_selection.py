"""Code selection: counts, tests of a difference, rules, unions over list lengths."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import chi2_contingency, fisher_exact

from llm_unlearn.codebook import statistics
from llm_unlearn.codebook.selection import CORRECTED, PAPER, CodeCounts, SelectionRule, select_codes
from llm_unlearn.codebook.statistics import enrichment, false_discovery_rate, independence_test

# A rule under which codes stand or fall by R and p over tokens alone.
PLAIN = replace(PAPER, min_enrichment=1.0)


def counts_of(tokens, n_tokens, texts=None, n_texts=None, levels=None):
    tokens = np.atleast_2d(np.array(tokens))
    texts = np.minimum(tokens, 1) if texts is None else np.atleast_2d(np.array(texts))
    return CodeCounts(levels or tuple(8 * 2**i for i in range(len(tokens))), tokens, texts, n_tokens, n_texts or 10)


def counted(codes, num_codes):
    """Counts of texts ``(texts, tokens)`` in which every token uses one code."""
    tokens = np.bincount(codes.ravel(), minlength=num_codes)
    texts = np.bincount(np.concatenate([np.unique(text) for text in codes]), minlength=num_codes)
    return CodeCounts((1,), tokens[None], texts[None], codes.size, len(codes))


def n_selected(target, control, rule):
    try:
        return select_codes(target, control, rule, control).sizes[-1]
    except ValueError as error:
        assert "No code is specific" in str(error)
        return 0


# Statistics


def test_enrichment_and_chi_squared_of_a_table_worked_out_by_hand():
    """[[8, 92], [2, 298]]: ad - bc = 2200 and margins 100, 300, 10, 390, so 400 * 2200^2 / 117e6."""
    n_target, n_control = np.array([8]), np.array([2])
    assert enrichment(n_target, 100, n_control, 300)[0] == pytest.approx(np.log2(8.5 * 301 / (101 * 2.5)))
    chi2, p = independence_test(n_target, 100, n_control, 300, exact=False)
    assert chi2[0] == pytest.approx(400 * 2200**2 / 117e6)
    assert p[0] == pytest.approx(4.743e-5, rel=1e-3)


def test_fishers_test_of_a_table_worked_out_by_hand():
    """3 of 3 against 0 of 3: two of the C(6, 3) = 20 ways are that uneven."""
    _, p = independence_test(np.array([3, 2]), 3, np.array([0, 1]), 3, exact=True)
    assert p == pytest.approx([2 / 20, 1])


@pytest.mark.parametrize("sizes", [(40, 320), (7, 7), (3, 5000), (1200, 150), (50_000, 400_000)])
def test_statistics_equal_those_of_scipy(sizes):
    N_target, N_control = sizes
    generator = np.random.default_rng(N_target)
    n_target = generator.integers(0, N_target + 1, 60) // generator.integers(1, 200, 60)
    n_control = generator.integers(0, N_control + 1, 60) // generator.integers(1, 200, 60)
    n_target[:4], n_control[:4] = [0, N_target, 0, N_target], [0, N_control, N_control, 0]
    chi2, p = independence_test(n_target, N_target, n_control, N_control, exact=False)
    _, mixed = independence_test(n_target, N_target, n_control, N_control, exact=True)
    assert np.isfinite(enrichment(n_target, N_target, n_control, N_control)).all()
    # No code at all, and a code that every token has, say nothing.
    assert (chi2[:2] == 0).all() and (p[:2] == 1).all() and (mixed[:2] == 1).all()
    n_exact = 0
    for i in range(2, 60):
        table = np.array([[n_target[i], N_target - n_target[i]], [n_control[i], N_control - n_control[i]]])
        if not table.sum(0).all():
            continue
        expected = chi2_contingency(table, correction=False)
        assert (chi2[i], p[i]) == pytest.approx((expected.statistic, expected.pvalue), rel=1e-9, abs=1e-300)
        exact = (expected.expected_freq < 5).any()
        n_exact += exact
        other = fisher_exact(table).pvalue if exact else expected.pvalue
        assert mixed[i] == pytest.approx(other, rel=1e-6, abs=1e-300)
    assert n_exact > 5 or min(sizes) > 1000


def test_every_small_table_has_the_p_of_scipys_exact_test():
    grid = np.array([(a, b) for a in range(9) for b in range(13)])
    p = statistics.fisher_exact(grid[:, 0], 8, grid[:, 1], 12)
    assert p == pytest.approx([fisher_exact([[a, 8 - a], [b, 12 - b]]).pvalue for a, b in grid])


def reference_q(p):
    """Benjamini and Hochberg, word by word: from the largest p down, m p / rank, never above what came before."""
    q, smallest = [0.0] * len(p), 1.0
    for rank, i in reversed(list(enumerate(sorted(range(len(p)), key=p.__getitem__), start=1))):
        smallest = min(smallest, p[i] * len(p) / rank)
        q[i] = smallest
    return q


def test_the_false_discovery_rate_equals_a_reference_and_counts_only_codes_that_occur():
    generator = np.random.default_rng(0)
    # Rounded, so that there are ties.
    p = generator.uniform(size=300).round(2) ** 3
    occurs = generator.uniform(size=300) < 0.7
    q = false_discovery_rate(p, occurs)
    assert q[occurs] == pytest.approx(reference_q(p[occurs].tolist()))
    assert (q[~occurs] == 1).all()
    order = np.argsort(p[occurs])
    assert (np.diff(q[occurs][order]) >= 0).all() and (q[occurs] >= p[occurs]).all()
    # p of 0.01, 0.02, 0.03, 0.5: 4 * 0.01, the smaller of 4/2 * 0.02 and 4/3 * 0.03, 4/3 * 0.03, 0.5.
    by_hand = false_discovery_rate(np.array([0.01, 0.02, 0.03, 0.5]), np.ones(4, dtype=bool))
    assert by_hand == pytest.approx([0.04, 0.04, 0.04, 0.5])


def test_fifty_thousand_codes_take_no_time():
    generator = np.random.default_rng(0)
    target, control = (generator.poisson(generator.gamma(0.3, 20 * times, 50_000)) for times in (1, 8))
    _, p = independence_test(target, 4000, control, 32_000, exact=True)
    assert np.isfinite(p).all() and (p > 0).all() and (p <= 1).all()


# Selection


def test_a_code_of_the_target_is_chosen_and_one_of_the_control_is_not():
    target, control = counts_of([30, 0, 50, 1], 1000), counts_of([2, 40, 50, 0], 1000)
    selection = select_codes(target, control, PAPER)
    assert selection.codes(0).tolist() == [0]
    assert selection.sizes == (1,)
    assert selection.enrichment[0, 1] < 0 and selection.p[0, 1] < 0.05
    # R of the last is above 0 and its p is not below 0.05.
    assert selection.enrichment[0, 3] > 1 and selection.p[0, 3] > 0.3


def test_eight_control_texts_weigh_as_much_as_one():
    """The same shares in eight times as many control texts: R is near 0 and nothing is chosen."""
    target, control = counts_of([30, 200], 1000), counts_of([240, 1600], 8000)
    with pytest.raises(ValueError, match="No code is specific"):
        select_codes(target, control, PLAIN)
    assert enrichment(target.tokens, 1000, control.tokens, 8000)[0] == pytest.approx([0, 0], abs=0.03)


def test_equal_sets_select_nothing_and_the_message_says_what_to_do():
    counts = counts_of([[30, 7, 0], [40, 9, 3]], 1000)
    for rule in (PAPER, CORRECTED):
        with pytest.raises(ValueError, match="Give more examples, control texts without the subject") as raised:
            select_codes(counts, counts, rule, counts)
        assert "at list lengths (8, 16)" in str(raised.value)
        # Header and three codes.
        assert len(str(raised.value).splitlines()) == 5


def test_the_union_grows_with_the_level_though_single_levels_do_not():
    """Code 0 is diluted on longer lists; the stand-ins 1 and 2 show only there."""
    target = counts_of([[40, 0, 0, 5], [41, 30, 0, 5], [90, 90, 60, 90]], 1000)
    control = counts_of([[2, 0, 0, 5], [2, 1, 0, 5], [80, 2, 0, 90]], 1000)
    selection = select_codes(target, control, PLAIN)
    assert selection.chosen.tolist() == [
        [True, False, False, False],
        [True, True, False, False],
        [False, True, True, False],
    ]
    assert [selection.codes(level).tolist() for level in range(3)] == [[0], [0, 1], [0, 1, 2]]
    assert selection.sizes == (1, 2, 3)
    with pytest.raises(ValueError, match="Level 3 was asked for; there are 3, from 0"):
        selection.codes(3)


@pytest.mark.parametrize("seed", range(5))
def test_the_union_is_monotone_on_random_counts(seed):
    generator = np.random.default_rng(seed)
    target, control = (
        counts_of(np.cumsum(generator.poisson(generator.gamma(0.5, 8, (3, 400))), axis=0), 5000) for _ in range(2)
    )
    selection = select_codes(target, control, PAPER)
    codes = [set(selection.codes(level)) for level in range(3)]
    assert codes[0] <= codes[1] <= codes[2] and codes[0] < codes[2]


def test_the_test_over_texts_is_not_fooled_by_one_text():
    """Code 0 fills one text; code 1 is once in each of twenty."""
    target = counts_of([20, 20], 400, texts=[1, 20], n_texts=20)
    control = counts_of([0, 0], 3200, n_texts=160)
    by_token = select_codes(target, control, replace(PLAIN, exact=True))
    by_text = select_codes(target, control, replace(PLAIN, exact=True, unit="sequence"))
    assert by_token.codes(0).tolist() == [0, 1]
    assert by_text.codes(0).tolist() == [1]
    # 20 of 180 texts are the target's.
    assert by_text.p[0, 0] == pytest.approx(20 / 180)


def test_a_code_that_differs_the_wrong_way_is_not_chosen():
    """100 times in one of 20 target texts, once in each of 160 control texts: R is above 1, p over texts near 0."""
    target = counts_of([100, 20], 400, texts=[1, 20], n_texts=20)
    control = counts_of([160, 0], 3200, texts=[160, 0], n_texts=160)
    selection = select_codes(target, control, replace(PLAIN, unit="sequence"))
    assert selection.enrichment[0, 0] > 2 and selection.p[0, 0] < 1e-9
    assert selection.codes(0).tolist() == [1]


def test_codes_in_common_use_are_spared_by_their_share_at_the_first_level():
    target, control = counts_of([[60, 60], [60, 60]], 1000), counts_of([[2, 2], [2, 2]], 1000)
    rule = replace(PLAIN, max_retain_share=0.01)
    # Exactly 1 % is not more; on longer lists both are frequent, which does not matter.
    retain = counts_of([[10, 11], [500, 500]], 1000)
    assert select_codes(target, control, rule, retain).codes(1).tolist() == [0]
    assert select_codes(target, control, PLAIN, retain).codes(1).tolist() == [0, 1]
    with pytest.raises(ValueError, match="give `retain`, or set `max_retain_share` to None"):
        select_codes(target, control, rule)
    with pytest.raises(ValueError, match="2 have, and are spared as common in retain texts"):
        select_codes(target, control, rule, counts_of([[11, 11], [11, 11]], 1000))


def test_the_correction_counts_levels_apart_and_dead_codes_not_at_all():
    target, control = counts_of([20, 9, 0], 1000), counts_of([2, 2, 0], 1000)
    rule = replace(PLAIN, correction="bh")
    few = select_codes(target, control, rule)
    dead = [np.pad(counts.tokens, ((0, 0), (0, 5000))) for counts in (target, control)]
    many = select_codes(*(counts_of(tokens, 1000) for tokens in dead), rule)
    assert few.q[0].tolist() == many.q[0, :3].tolist()
    assert few.q[0] == pytest.approx([2 * few.p[0, 0], few.p[0, 1], 1])
    plain = select_codes(target, control, PLAIN)
    assert plain.q.tolist() == plain.p.tolist()


def test_chance_alone_passes_the_paper_rule_and_not_the_corrected_one():
    """Both sets from one Zipf distribution over 2000 codes: 1000 texts of 20 tokens each."""
    shares = 1 / np.arange(1, 2001)
    shares /= shares.sum()
    found = {"paper": [], "bh": [], "corrected": []}
    rules = {"paper": PAPER, "bh": replace(PAPER, correction="bh", exact=True)}
    rules["corrected"] = replace(CORRECTED, max_retain_share=None, min_enrichment=0.0)
    for seed in range(20):
        generator = np.random.default_rng(seed)
        target, control = (counted(generator.choice(2000, (1000, 20), p=shares), 2000) for _ in range(2))
        for name, rule in rules.items():
            found[name].append(n_selected(target, control, rule))
    assert min(found["paper"]) >= 20
    for name in ("bh", "corrected"):
        assert sum(n <= 1 for n in found[name]) >= 19


def test_codes_of_equal_counts_have_equal_values_and_are_chosen_together():
    target, control = counts_of([25, 25, 3, 3], 1000), counts_of([1, 1, 3, 3], 1000)
    selection = select_codes(target, control, replace(PLAIN, correction="bh"))
    assert selection.codes(0).tolist() == [0, 1]
    for values in (selection.enrichment, selection.chi2, selection.p, selection.q):
        assert values[0, 0] == values[0, 1] and values[0, 2] == values[0, 3]
    assert [int(line.split()[0]) for line in selection.table(3).splitlines()[1:]] == [0, 1, 2]


def test_grounds_are_numbers_for_json_from_the_first_level_that_chose():
    target = counts_of([[40, 3], [41, 60]], 1000)
    control = counts_of([[2, 3], [2, 5]], 1000)
    grounds = select_codes(target, control, PLAIN).grounds(np.array([0, 1]))
    assert [(row["code"], row["list_length"], row["target"], row["control"]) for row in grounds] == [
        (0, 8, 40, 2),
        (1, 16, 60, 5),
    ]
    assert json.loads(json.dumps(grounds)) == grounds
    assert grounds[0]["enrichment"] == pytest.approx(np.log2(40.5 / 2.5)) and grounds[0]["q"] < 1e-6


def test_the_rules_are_those_of_paper_and_specification():
    assert SelectionRule("token", "none", 0.05, 0.0, None, False) == PAPER
    assert SelectionRule("sequence", "bh", 0.05, 1.0, 0.01, True) == SelectionRule() == CORRECTED


# Bad input


@pytest.mark.parametrize(
    ("field", "value"),
    [("unit", "text"), ("correction", "bonferroni"), ("alpha", 0.0), ("min_enrichment", -1.0), ("max_retain_share", 2)],
)
def test_a_rule_refuses_what_it_does_not_know(field, value):
    with pytest.raises(ValueError, match=f"`{field}` is {value!r}.*give"):
        SelectionRule(**{field: value})


def test_counts_add_up_over_shards_and_refuse_others():
    one, other = counts_of([[3, 1], [4, 2]], 10, n_texts=2), counts_of([[0, 2], [1, 2]], 5, n_texts=1)
    both = one + other
    assert both.tokens.tolist() == [[3, 3], [5, 4]] and both.texts.tolist() == [[1, 2], [2, 2]]
    assert (both.n_tokens, both.n_texts, both.levels, both.num_codes) == (15, 3, (8, 16), 2)
    for wrong in (counts_of([[3, 1]], 10), counts_of([[3], [4]], 10)):
        with pytest.raises(ValueError, match="count both with one codebook"):
            _ = one + wrong
        with pytest.raises(ValueError, match="count both with one codebook"):
            select_codes(one, wrong, PAPER)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels": (16, 8)}, "ascending"),
        ({"levels": ()}, "ascending"),
        ({"levels": (8,)}, r"`tokens` has shape \(2, 3\)"),
        ({"texts": np.ones((2, 2), dtype=int)}, r"`texts` has shape \(2, 2\)"),
        ({"tokens": np.ones((2, 3))}, "whole numbers"),
        ({"n_tokens": 3}, "`tokens` must be whole numbers from 0 to `n_tokens`, 3"),
        ({"n_texts": 0}, "`texts` must be whole numbers from 0 to `n_texts`, 0"),
        ({"tokens": np.array([[4, 1, 1], [3, 1, 1]])}, "count all lengths on the same tokens"),
        ({"texts": np.full((2, 3), 2)}, "more texts than tokens"),
    ],
)
def test_counts_that_cannot_be_are_refused(changes, message):
    fields = {"levels": (8, 16), "tokens": np.array([[2, 1, 1], [4, 1, 1]]), "n_tokens": 9, "n_texts": 5}
    with pytest.raises(ValueError, match=message):
        CodeCounts(**{**fields, "texts": np.ones((2, 3), dtype=int), **changes})


def test_sets_without_tokens_are_refused():
    empty = CodeCounts((8,), np.zeros((1, 2), dtype=int), np.zeros((1, 2), dtype=int), 0, 0)
    with pytest.raises(ValueError, match="have no tokens"):
        select_codes(empty, counts_of([3, 1], 10), PAPER)
