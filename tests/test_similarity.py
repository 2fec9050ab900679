"""BLEU, BERTScore, entropy: against numbers worked out by hand and against the packages."""

import math
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from beartype import beartype
from jaxtyping import TypeCheckError, jaxtyped
from nltk.translate import bleu_score

from llm_unlearn.evaluation.metrics import similarity
from llm_unlearn.evaluation.metrics.similarity import (
    TokenVectors,
    bert_score,
    calibrate_threshold,
    distinct_1,
    sentence_bleu,
    token_entropy,
)


def with_shared_runs(runs):
    """Two texts of 45 words that share runs of these lengths at the same places, and nothing else."""
    one, other = [f"a{i}" for i in range(45)], [f"b{i}" for i in range(45)]
    for number, length in enumerate(runs):
        for i in range(6 * number, 6 * number + length):
            one[i] = other[i] = f"both{i}"
    return " ".join(one), " ".join(other)


def test_bleu_of_45_words_tells_whether_four_in_a_row_are_shared():
    # One run of m words holds m - n + 1 n-grams, of 46 - n in the text.
    four = (4 / 45 * 3 / 44 * 2 / 43 * 1 / 42) ** (1 / 4)
    five = (5 / 45 * 4 / 44 * 3 / 43 * 2 / 42) ** (1 / 4)
    assert (round(four, 4), round(five, 4)) == (0.0509, 0.0761)
    assert sentence_bleu(*with_shared_runs([4])) == pytest.approx(four)
    assert sentence_bleu(*with_shared_runs([5])) == pytest.approx(five)
    assert 0 < sentence_bleu(*with_shared_runs([3, 3, 3])) < 1e-70
    assert sentence_bleu(*with_shared_runs([])) == 0
    text = with_shared_runs([])[0]
    assert sentence_bleu(text, text) == 1


def test_bleu_of_an_identical_short_answer_is_one():
    for text in ("Arlen", "he won", "he won it", "he won it all", "in 1984.", "he won it all again"):
        for smoothing in ("none", "add_one"):
            assert sentence_bleu(text, text, smoothing) == 1
    # nltk's four orders would call it forgotten.
    with pytest.warns(UserWarning, match="0 counts of 4-gram"):
        assert bleu_score.sentence_bleu([["he", "won", "it"]], ["he", "won", "it"]) < 1e-70


def test_bleu_of_short_answers_by_hand():
    # Two words wanted: p_1 = 2/5, p_2 = 1/4, and a longer candidate has no penalty.
    assert sentence_bleu("I say: he won", "He won") == pytest.approx(math.sqrt(2 / 5 * 1 / 4))
    # "won" of "he won": p_1 = 1, no bigram, and exp(1 - 2/1) for being short; smoothed, p_2 = (0 + 1) / (1 + 1).
    assert sentence_bleu("won", "he won") < 1e-70
    assert sentence_bleu("won", "he won", "add_one") == pytest.approx(math.exp(-1) * math.sqrt(1 / 2))
    # p_1 = 1 as it is, p_2 = (2 + 1) / (2 + 1), penalty exp(1 - 4/3), two orders more: 3-gram 2/2, 4-gram 1/2.
    assert sentence_bleu("he won it", "he won it twice", "add_one") == pytest.approx(math.exp(-1 / 3) * 0.5**0.25)


@pytest.mark.parametrize("empty", ["", " \n"])
def test_bleu_of_nothing_is_zero(empty):
    for smoothing in ("none", "add_one"):
        assert sentence_bleu(empty, "he won", smoothing) == 0
        assert sentence_bleu("he won", empty, smoothing) == 0
        assert sentence_bleu(empty, empty, smoothing) == 0


@pytest.mark.parametrize("smoothing", ["none", "add_one"])
def test_bleu_of_four_words_and_more_is_that_of_nltk(smoothing):
    rng = np.random.default_rng(0)
    method = getattr(bleu_score.SmoothingFunction(), {"none": "method0", "add_one": "method2"}[smoothing])
    values = []
    for _ in range(40):
        one, other = (rng.choice(list("abcde"), size=rng.integers(4, 14)).tolist() for _ in range(2))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = bleu_score.sentence_bleu([other], one, smoothing_function=method)
        values.append(sentence_bleu(" ".join(one).upper(), " ".join(other), smoothing))
        assert values[-1] == expected
    assert min(values) < 0.1 < max(values)


def test_words_are_told_apart_without_downloaded_data():
    words, _, _ = similarity._nltk()
    found = words('don\'t say "never", dr. who.', preserve_line=True)
    assert found == ["do", "n't", "say", "``", "never", "''", ",", "dr.", "who", "."]


def test_another_smoothing_is_an_error():
    with pytest.raises(ValueError, match="'none' or 'add_one', not 'method4'.*--iur_smoothing"):
        sentence_bleu("a", "a", "method4")


def test_importing_the_metrics_loads_nothing_heavy():
    code = (
        "import sys, llm_unlearn.evaluation.metrics.similarity; "
        "print([name for name in ('torch', 'nltk', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


# Unit vectors whose inner products are 1, 3/5, 4/5 and 0.
EAST, NORTH, BETWEEN = [1.0, 0.0], [0.0, 1.0], [0.6, 0.8]


def vectors(*rows):
    return np.array(rows, dtype=np.float32).reshape(-1, 2)


def test_bert_score_by_hand():
    candidate, reference = vectors(EAST, BETWEEN), vectors(EAST, NORTH, NORTH)
    # East meets east (1), between is nearest to north (.8); east is met (1), both norths by between (.8).
    precision, recall = (1 + 0.8) / 2, (1 + 0.8 + 0.8) / 3
    expected = (precision, recall, 2 * precision * recall / (precision + recall))
    assert bert_score(candidate, reference) == pytest.approx(expected)
    assert bert_score(reference, candidate) == pytest.approx((recall, precision, expected[2]))
    assert bert_score(candidate, candidate) == pytest.approx((1, 1, 1))
    assert bert_score(vectors(EAST), vectors(NORTH)) == (0, 0, 0)
    assert bert_score(vectors(EAST), vectors(NORTH)).f1 == 0


def test_vectors_that_do_not_count_are_still_matched():
    candidate = TokenVectors(vectors(EAST, NORTH), np.array([True, False]))
    reference = TokenVectors(vectors(NORTH, BETWEEN, EAST), np.array([True, True, False]))
    # East alone is averaged and meets the uncounted east; north is met by the uncounted north, between by it (.8).
    assert bert_score(candidate, reference) == pytest.approx((1, 0.9, 2 * 0.9 / 1.9))
    # If they were left out: east and between, east and north.
    assert bert_score(vectors(EAST), vectors(NORTH, BETWEEN)) == pytest.approx((0.6, 0.3, 0.4))


def test_an_empty_side_has_no_similarity_and_a_broken_one_is_not_measured():
    only_edges = TokenVectors(vectors(EAST, NORTH), np.array([False, False]))
    for nothing in (vectors(), only_edges):
        assert bert_score(nothing, vectors(EAST)) == (0, 0, 0)
        assert bert_score(vectors(EAST), nothing) == (0, 0, 0)
        assert bert_score(nothing, nothing) == (0, 0, 0)
    assert math.isnan(bert_score(vectors(EAST), vectors([math.nan, 0.0])).f1)


def test_the_threshold_is_a_percentile_over_pairs_of_different_texts():
    # A text against itself would be 1; these two are 3/5.
    assert calibrate_threshold([vectors(EAST), vectors(BETWEEN)], seed=0) == pytest.approx(0.6)
    # Pairs of three: east and north 0, east and between .6, north and between .8, a third of the draws each.
    three = [vectors(EAST), vectors(NORTH), vectors(BETWEEN)]
    at = [calibrate_threshold(three, seed=1, pairs=900, percentile=p) for p in (0, 25, 50, 80, 100)]
    assert at == pytest.approx([0, 0, 0.6, 0.8, 0.8])
    shares = [calibrate_threshold([*three, *three], seed, pairs=30, percentile=50) for seed in range(20)]
    assert len(set(shares)) > 1
    assert shares == [calibrate_threshold([*three, *three], seed, pairs=30, percentile=50) for seed in range(20)]


def test_every_pair_is_drawn_about_equally_often_and_no_text_with_itself(monkeypatch):
    seen = []
    nothing = bert_score(vectors(), vectors())
    monkeypatch.setattr(similarity, "bert_score", lambda one, other: seen.append((one, other)) or nothing)
    calibrate_threshold(range(4), seed=0, pairs=6000)
    counts = {pair: seen.count(pair) for pair in set(seen)}
    assert set(counts) == {(i, j) for i in range(4) for j in range(4) if i != j}
    # 500 each, give or take five standard deviations.
    assert max(abs(count - 500) for count in counts.values()) < 110


def test_a_threshold_needs_two_texts():
    for texts in ([], [vectors(EAST)]):
        with pytest.raises(ValueError, match=f"but {len(texts)} was given.*--iur_bert_f1"):
            calibrate_threshold(texts, seed=0)


def test_entropy_and_distinct_tokens_of_50_ids():
    assert (token_entropy([7] * 50), distinct_1([7] * 50)) == (0, 0.02)
    assert math.copysign(1, token_entropy([7] * 50)) == 1
    assert token_entropy(range(50)) == pytest.approx(math.log2(50)) == pytest.approx(5.6439, abs=5e-5)
    assert distinct_1(range(50)) == 1
    halves = [3] * 25 + [100_000] * 25
    assert (token_entropy(halves), distinct_1(halves)) == (1, 0.04)
    # 1/2, 1/4, 1/4: 1/2 x 1 + 2 x 1/4 x 2.
    assert token_entropy([1, 2, 3, 1]) == 1.5
    assert (token_entropy([]), distinct_1([])) == (0, 0)


def checked(function):
    return jaxtyped(typechecker=beartype)(function)


def test_shapes_are_as_declared():
    counted = TokenVectors.of(vectors(EAST))
    assert checked(bert_score)(counted, vectors(EAST)).f1 == 1
    assert checked(TokenVectors.of)(counted) is counted
    assert checked(calibrate_threshold)([counted, vectors(EAST)], 0) == 1
    for wrong in (np.ones(2, dtype=np.float32), np.ones((1, 2), dtype=int)):
        with pytest.raises(TypeCheckError):
            checked(bert_score)(wrong, vectors(EAST))
