"""Facts sorted into buckets by count."""

import numpy as np
import pytest

from llm_unlearn.probes.buckets import ZERO, make_buckets


def buckets_of(values, rule="quantiles", **options):
    counts = {f"f{i}": value for i, value in enumerate(values)}
    return make_buckets(counts, rule, **options)


def shape(buckets):
    return [(bucket.name, len(bucket.ids), bucket.lowest, bucket.highest) for bucket in buckets]


def test_quantiles_cut_at_a_third_and_two_thirds_of_the_counts_above_zero():
    # Of 1..100 the quantiles .33 and .67 are 1 + .33 * 99 = 33.67 and 1 + .67 * 99 = 67.33.
    values = [*range(1, 101), 0, 0]
    assert shape(buckets_of(values)) == [
        ("zero", 2, 0, 0),
        ("low", 33, 1, 33),
        ("medium", 34, 34, 67),
        ("high", 33, 68, 100),
    ]
    (zero, *_) = buckets_of(values)
    assert zero.ids == ("f100", "f101")


def test_three_counts_are_three_buckets_in_whatever_order_they_come():
    assert [bucket.ids for bucket in buckets_of([30, 1, 2])] == [("f1",), ("f2",), ("f0",)]


def test_equal_counts_are_never_parted():
    random = np.random.default_rng(0)
    for _ in range(200):
        values = random.integers(1, 12, size=60) ** 2
        try:
            buckets = buckets_of(values.tolist())
        except ValueError:
            continue
        assert sum(len(bucket.ids) for bucket in buckets) == 60
        for lower, higher in zip(buckets, buckets[1:], strict=False):
            assert lower.highest < higher.lowest


def test_decades_begin_at_powers_of_ten_and_leave_out_those_without_counts():
    values = [0, 0.5, 1, 9.99, 10, 999, 1000, 100_000]
    assert shape(buckets_of(values, "decades")) == [
        (ZERO, 1, 0, 0),
        ("0.1 to 1", 1, 0.5, 0.5),
        ("1 to 10", 2, 1, 9.99),
        ("10 to 100", 1, 10, 10),
        ("100 to 1000", 1, 999, 999),
        ("1000 to 10000", 1, 1000, 1000),
        ("100000 to 1000000", 1, 100_000, 100_000),
    ]


@pytest.mark.parametrize("power", range(16))
def test_a_power_of_ten_begins_its_own_decade(power):
    below, exact = np.nextafter(10.0**power, 0), 10.0**power
    lower, higher = buckets_of([below, exact], "decades")
    assert (lower.lowest, higher.lowest) == (below, exact)


def test_a_bucket_begins_at_its_edge():
    assert shape(buckets_of([0, 1, 9, 10, 99, 100], (10, 100))) == [
        ("zero", 1, 0, 0),
        ("below 10", 2, 1, 9),
        ("10 to 100", 2, 10, 99),
        ("100 and more", 1, 100, 100),
    ]
    assert [bucket.name for bucket in buckets_of([1, 16], (16,))] == ["below 16", "16 and more"]


def test_buckets_of_equal_size_are_a_draw_by_seed_that_spares_zero():
    values = [0] * 2 + [1] * 30 + [5] * 20 + [9] * 25
    cut = buckets_of(values, (5, 9), equal_size=True, seed=1)
    assert [len(bucket.ids) for bucket in cut] == [2, 20, 20, 20]
    whole = {bucket.name: bucket.ids for bucket in buckets_of(values, (5, 9))}
    for bucket in cut:
        assert list(bucket.ids) == [fact for fact in whole[bucket.name] if fact in bucket.ids], "in their order"
    assert cut == buckets_of(values, (5, 9), equal_size=True, seed=1)
    assert cut[1] != buckets_of(values, (5, 9), equal_size=True, seed=2)[1]


def test_an_empty_bucket_is_an_error_that_names_it_and_edges_that_would_work():
    with pytest.raises(ValueError, match="bucket 'high' is empty.*30 facts with 1, 30 facts with 16.*such as 16"):
        buckets_of([1] * 30 + [16] * 30)
    with pytest.raises(ValueError, match="bucket '100 to 1000' is empty"):
        buckets_of([1, 50, 2000], (100, 1000))
    with pytest.raises(ValueError, match="bucket 'below 10' is empty"):
        buckets_of([0, 50, 2000], (10, 1000))


def test_a_constant_count_is_an_error():
    with pytest.raises(ValueError, match="All 5 facts to be forgotten have the same count, 3"):
        buckets_of([3] * 5)
    with pytest.raises(ValueError, match="same count, 0"):
        buckets_of([0] * 5, "decades")
    with pytest.raises(ValueError, match="no fact to be forgotten"):
        buckets_of([])
