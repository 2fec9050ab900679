"""Parallel corpora, and the sets of sentences around a topic word."""

from collections import Counter

import pytest
from recipe import write_rows

from llm_unlearn.codebook.parallel import load_pairs, with_prefix
from llm_unlearn.codebook.topics import draw, hold_out, swap_word, topic_sets, with_word, without_words

NOUNS, PLACES = ["captain", "king", "doctor", "sailor", "farmer", "judge"], ["Town", "Forest", "Castle", "Valley"]
PAIRS = [
    {"prompt": f"the {noun} will see {i} in {place} .", "completion": f"{noun} {i} {place}"}
    for i in range(10)
    for noun in NOUNS
    for place in PLACES
]


def sources(pairs):
    return [pair["prompt"] for pair in pairs]


# Corpora.


def test_pairs_of_any_columns_are_read_and_empty_sides_left_out(tmp_path):
    flat = [{"source": " a b ", "target": "x"}, {"source": "", "target": "y"}, {"source": "c", "target": " "}]
    file = write_rows(tmp_path / "pairs.jsonl", [*flat, {"source": "d", "target": "z"}])
    whole = [{"prompt": "a b", "completion": "x"}, {"prompt": "d", "completion": "z"}]
    assert load_pairs(file, None, "source", "target") == (whole, 2)
    assert load_pairs(tmp_path, "pairs[2:]", "source", "target") == (whole[1:], 1)
    # As OPUS Books has them.
    nested = [{"id": i, "translation": {"en": row["source"], "fr": row["target"]}} for i, row in enumerate(flat)]
    write_rows(tmp_path / "nested" / "en-fr.jsonl", nested)
    columns = ("translation.en", "translation.fr")
    assert load_pairs(tmp_path / "nested", "en-fr", *columns) == (whole[:1], 2)
    assert load_pairs(tmp_path / "nested", "en-fr", *reversed(columns))[0] == [{"prompt": "x", "completion": "a b"}]
    assert with_prefix(whole[1:], "to French: ") == [{"prompt": "to French: d", "completion": "z"}]


def test_a_corpus_that_does_not_fit_is_refused(tmp_path):
    file = write_rows(tmp_path / "pairs.jsonl", [{"source": "a", "target": "x"}, {"source": "b", "target": None}])
    with pytest.raises(ValueError, match="no column 'from'. .*Known: source, target. Give `--source_column`"):
        load_pairs(file, None, "from", "target")
    with pytest.raises(ValueError, match="Row 1 has nothing in column `target`.* another `--target_column`"):
        load_pairs(file, None, "source", "target")
    with pytest.raises(ValueError, match="no pair of sentences"):
        load_pairs(write_rows(tmp_path / "none.jsonl", [{"source": "", "target": "x"}]), None, "source", "target")
    with pytest.raises(FileNotFoundError):
        load_pairs(tmp_path / "missing.jsonl", None, "source", "target")
    numbers = write_rows(tmp_path / "numbers.jsonl", [{"source": 3, "target": "x"}])
    with pytest.raises(ValueError, match="Row 0 has a value of type int in column `source`"):
        load_pairs(numbers, None, "source", "target")


# Sets.


def test_a_word_is_a_whole_word_however_it_is_written():
    pairs = [{"prompt": text} for text in ("I love you", "LOVE!", "glove", "lovely", "l'amour-love", "Love's end", "")]
    assert sources(with_word(pairs, "love")) == ["I love you", "LOVE!", "l'amour-love", "Love's end"]
    assert sources(without_words(pairs, ["love", "glove"])) == ["lovely", ""]
    assert without_words(pairs, []) == pairs
    assert sources(with_word([{"prompt": "a b"}, {"prompt": "a.b"}], "a.b")) == ["a.b"], "no pattern"


def test_held_out_sentences_are_not_trained_on_even_if_they_occur_twice():
    pairs = [*PAIRS, *PAIRS[:50]]
    train, held_out = hold_out(pairs, 0.25, seed=1)
    assert not set(sources(train)) & set(sources(held_out))
    assert Counter(sources(train)) + Counter(sources(held_out)) == Counter(sources(pairs))
    assert len(set(sources(held_out))) == 60, "a quarter of 240 different ones"
    assert hold_out(pairs, 0.25, seed=1) == (train, held_out) != hold_out(pairs, 0.25, seed=2)
    assert sources(train) == [text for text in sources(pairs) if text in set(sources(train))], "in order"
    for share in (0, 1, 0.001, -0.1, 2):
        with pytest.raises(ValueError, match="`holdout` is"):
            hold_out(PAIRS, share)


def test_a_draw_keeps_the_order():
    some = draw(PAIRS, 7, seed=3)
    assert len(some) == 7 and [PAIRS.index(pair) for pair in some] == sorted(PAIRS.index(pair) for pair in some)
    assert draw(PAIRS, 7, seed=3) == some != draw(PAIRS, 7, seed=4)
    assert draw(PAIRS, 1000) == PAIRS and draw(PAIRS, 1000) is not PAIRS


def test_control_sentences_have_as_frequent_words_in_the_place_of_the_word():
    with_it = with_word(PAIRS, "captain")
    swapped = swap_word(with_it, "captain", PAIRS, avoid=["King"], variants=3, seed=0)
    assert len(swapped) == 3 * len(with_it)
    drawn = Counter()
    for i, pair in enumerate(swapped):
        before, after = with_it[i // 3]["prompt"].split(), pair["prompt"].split()
        (place,) = [j for j, words in enumerate(zip(before, after, strict=True)) if words[0] != words[1]]
        assert before[place] == "captain"
        drawn[after[place]] += 1
        assert pair["completion"] == with_it[i // 3]["completion"]
    # "the", "will" and "see" are six times as frequent, the places half as much more and capitalised.
    assert drawn.keys() >= {"doctor", "sailor", "farmer", "judge"} and not drawn.keys() & {"captain", "king"}
    variants = [{pair["prompt"] for pair in swapped[i : i + 3]} for i in range(0, len(swapped), 3)]
    assert all(len(some) == 3 for some in variants), "three different ones for each"
    assert swap_word(with_it, "captain", PAIRS, avoid=["King"], variants=3, seed=0) == swapped
    assert swap_word(with_it, "captain", PAIRS, avoid=["King"], variants=3, seed=1) != swapped


def test_a_name_is_replaced_by_what_looks_like_one_and_capitals_stay():
    mixed, lower = swap_word([{"prompt": "in Town or TOWN"}, {"prompt": "a town"}], "Town", PAIRS, variants=1)
    _, first, _, second = mixed["prompt"].split()
    assert first.istitle() and first.upper() == second and first != "Town"
    assert lower["prompt"].split()[1].islower()


def test_substitutes_are_as_frequent_as_the_word_and_as_often_written_with_a_capital():
    def drawn(word, corpus):
        """What 50 sentences get, each one of the four nearest."""
        swapped = swap_word([{"prompt": word}] * 50, word, corpus, variants=1)
        return {pair["prompt"].lower() for pair in swapped}

    # "see" and "the" occur as often, nouns a sixth of that.
    assert drawn("will", PAIRS) >= {"see", "the"} and not drawn("will", PAIRS) & {"town", "forest"}
    # All occur ten times; one other is a name.
    corpus = [{"prompt": "Anna bob cob dob eob fob gob Zoe"}] * 10
    assert "zoe" in drawn("Anna", corpus) and "zoe" not in drawn("bob", corpus)


def test_controls_that_cannot_be_made_are_refused():
    with pytest.raises(ValueError, match="`variants` is 0"):
        swap_word(PAIRS, "captain", PAIRS, variants=0)
    with pytest.raises(ValueError, match=r"has 1 words that could stand for 'captain', and each sentence needs 8"):
        swap_word(PAIRS, "captain", [{"prompt": "a king on 12 il"}])


def test_topics_are_measured_on_sentences_that_were_not_trained_on():
    options = {"share": 0.5, "most": 8, "fewest": 5, "n_control": 30, "variants": 2}
    sets = topic_sets(PAIRS, ["Captain", "king", "king"], **options)
    held_out, train = set(sources(sets.held_out)), set(sources(sets.train))
    assert len(held_out) == len(train) == 120 and not held_out & train
    assert list(sets.topics) == ["Captain", "king"]
    for word, topic in sets.topics.items():
        assert len(topic.target) == 8 and set(sources(topic.target)) <= held_out
        assert topic.chosen_by == topic.target == with_word(topic.target, word)
        assert len(topic.swapped) == 16 and not with_word(topic.swapped, word)
    assert len(sets.control) == 30 and set(sources(sets.control)) <= held_out
    assert len(sets.kept) == 30 and set(sources(sets.kept)) <= train
    assert not any(with_word(some, word) for some in (sets.control, sets.kept) for word in ("captain", "king"))
    other = topic_sets(PAIRS, ["captain"], select_from="train", **options).topics["captain"]
    assert len(other.chosen_by) == 8 and set(sources(other.chosen_by)) <= train
    assert set(sources(other.target)) <= held_out


@pytest.mark.parametrize(
    ("words", "options", "message"),
    [
        ([], {}, "No topic was named"),
        (["captain", "queen"], {}, "too few held-out sentences .* 0 with 'queen', where 2 are needed"),
        (["captain"], {"share": 0.9, "fewest": 25, "select_from": "train"}, "too few training sentences"),
        (NOUNS, {}, "Every sentence has one of the topic words"),
    ],
)
def test_topics_that_cannot_be_measured_are_refused(words, options, message):
    with pytest.raises(ValueError, match=message):
        topic_sets(PAIRS, words, **{"share": 0.5, "fewest": 2, "variants": 2, **options})
