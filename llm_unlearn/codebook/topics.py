"""Sets of sentence pairs around a word, as CodeUnlearn's evaluation has them: D_T with the word, its control, D_R.

A pair is a row with `prompt`, the source sentence, and `completion`, its translation. The paper (arXiv 2410.10866, as
its reviews report it) takes sentences that contain a topic word, and as control the same sentences with the word
replaced by unrelated ones. How those are found is not known; here they are words of about the same frequency that are
written with a capital as often.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from llm_unlearn.codebook.names import words_of

Pair = Mapping[str, Any]

_CHOICE = 4
"""Substitutes are drawn from this many times as many as a sentence gets; a starting point."""

_CAPITALS = 2
"""What being written with a capital always rather than never counts, in units of log frequency; a starting point."""

_SHORTEST = 3
"""Letters of a substitute; most shorter words are articles and the like, with which sentences become another matter."""


@dataclass(frozen=True)
class Topic:
    """The sentences around one word.

    Attributes:
        word: the word.
        target: held-out pairs with it, D_T, on which a deletion is measured.
        chosen_by: pairs with it by which codes are chosen, D_T itself or others.
        swapped: their control, with other words in its place.
    """

    word: str
    target: list[Pair]
    chosen_by: list[Pair]
    swapped: list[Pair]


@dataclass(frozen=True)
class TopicSets:
    """A corpus, divided.

    Attributes:
        train, held_out: all pairs.
        control: held-out pairs with none of the words, D_R, on which a deletion is measured.
        kept: as many pairs of training with none of the words, whose codes a rule may spare.
        topics: by word.
    """

    train: list[Pair]
    held_out: list[Pair]
    control: list[Pair]
    kept: list[Pair]
    topics: dict[str, Topic]


def topic_sets(
    pairs: Sequence[Pair],
    words: Sequence[str],
    *,
    share: float = 0.1,
    most: int = 200,
    fewest: int = 20,
    n_control: int = 200,
    variants: int = 8,
    select_from: Literal["heldout", "train"] = "heldout",
    seed: int = 0,
) -> TopicSets:
    """Divide a corpus for the evaluation of some words.

    Args:
        pairs: the corpus.
        words: the topics.
        share: of source sentences held out, see `hold_out`.
        most, fewest: bounds on the held-out sentences with a word.
        n_control: sentences with none of the words.
        variants: control texts per sentence, see `swap_word`.
        select_from: whether codes are chosen by D_T itself or by sentences of training, at most `most`.
        seed: of all draws.

    Raises:
        ValueError: a word is in fewer than `fewest` sentences, none is without any of the words, or see `hold_out` and
            `swap_word`.
    """
    words = list(dict.fromkeys(words))
    if not words:
        raise ValueError("No topic was named: give one word or more (`--topics`).")
    train, held_out = hold_out(pairs, share, seed)
    target = {word: with_word(held_out, word) for word in words}
    by_word = {word: with_word(train, word) if select_from == "train" else target[word] for word in words}
    for sets, kind in ((target, "held-out"), (by_word, "training")):
        rare = [f"{len(found)} with {word!r}" for word, found in sets.items() if len(found) < fewest]
        if rare:
            raise ValueError(
                f"There are too few {kind} sentences to measure on, {', '.join(rare)}, where {fewest} are needed: name "
                "other words (`--topics`), hold out more (`--holdout`), or be content with fewer (`--min_rows`)."
            )
    others, kept = (draw(without_words(side, words), n_control, seed) for side in (held_out, train))
    if not others or not kept:
        raise ValueError(
            "Every sentence has one of the topic words, so that nothing is left to be kept: name fewer (`--topics`)."
        )
    topics = {}
    for word in words:
        chosen_by = draw(by_word[word], most, seed)
        swapped = swap_word(chosen_by, word, train, avoid=words, variants=variants, seed=seed)
        topics[word] = Topic(word, draw(target[word], most, seed), chosen_by, swapped)
    return TopicSets(train, held_out, others, kept, topics)


def pattern_of(word: str) -> re.Pattern:
    """The word as a whole word, however it is capitalised."""
    return re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE)


def with_word(pairs: Sequence[Pair], word: str) -> list[Pair]:
    """The pairs whose source has the word, in order."""
    pattern = pattern_of(word)
    return [pair for pair in pairs if pattern.search(pair["prompt"])]


def without_words(pairs: Sequence[Pair], words: Sequence[str]) -> list[Pair]:
    """The pairs whose source has none of the words, in order."""
    patterns = [pattern_of(word) for word in words]
    return [pair for pair in pairs if not any(pattern.search(pair["prompt"]) for pattern in patterns)]


def hold_out(pairs: Sequence[Pair], share: float, seed: int = 0) -> tuple[list[Pair], list[Pair]]:
    """Divide pairs into those to train on and those held out; a source sentence that occurs twice is on one side.

    Args:
        pairs: all of them.
        share: of different sources that are held out, in (0, 1).
        seed: of the draw.

    Raises:
        ValueError: `share` is no share, or one side would be empty.
    """
    sources = list(dict.fromkeys(pair["prompt"] for pair in pairs))
    count = round(share * len(sources))
    if not 0 < share < 1 or not 0 < count < len(sources):
        raise ValueError(
            f"`holdout` is {share}, which of {len(sources)} different sources leaves {count} to evaluate on: give a "
            "share that leaves some on both sides, such as 0.1 of some thousands."
        )
    drawn = np.random.default_rng(seed).permutation(len(sources))[:count]
    held = {sources[i] for i in drawn}
    sides = ([pair for pair in pairs if (pair["prompt"] in held) == out] for out in (False, True))
    train, held_out = sides
    return train, held_out


def draw(pairs: Sequence[Pair], count: int, seed: int = 0) -> list[Pair]:
    """`count` of the pairs in their order, or all where there are no more."""
    if len(pairs) <= count:
        return list(pairs)
    return [pairs[i] for i in sorted(np.random.default_rng(seed).permutation(len(pairs))[:count])]


def swap_word(
    pairs: Sequence[Pair],
    word: str,
    corpus: Sequence[Pair],
    *,
    avoid: Sequence[str] = (),
    variants: int = 8,
    seed: int = 0,
) -> list[Pair]:
    """The pairs with the word replaced in their sources by other words; targets stay, which no encoder reads.

    Substitutes are as frequent in the corpus as the word, nearly, and as often written with a capital, so that a name
    becomes a name or what looks like one. Each pair draws its own, so that no substitute is frequent in the control
    texts.

    Args:
        pairs: sentences with the word.
        word: the word.
        corpus: pairs from which substitutes are taken, such as those of training.
        avoid: words that are no substitutes, such as other topics.
        variants: copies of each pair, each with another substitute; 8 or more, as our specification has it.
        seed: of the draws.

    Returns:
        ``len(pairs) * variants`` pairs: all variants of the first, then of the next.

    Raises:
        ValueError: `variants` is below 1, or the corpus has too few words to stand in.
    """
    if variants < 1:
        raise ValueError(
            f"`variants` is {variants}, and every sentence needs a control text: give 1 or more, such as 8."
        )
    pool = _substitutes(word, corpus, {word.lower(), *(other.lower() for other in avoid)}, _CHOICE * variants)
    if len(pool) < variants:
        raise ValueError(
            f"The corpus has {len(pool)} words that could stand for {word!r}, and each sentence needs {variants}: give "
            "more sentences, or fewer variants (`--control_variants`)."
        )
    pattern, generator = pattern_of(word), np.random.default_rng(seed)
    swapped = []
    for pair in pairs:
        for i in generator.permutation(len(pool))[:variants]:
            text = pattern.sub(lambda match, other=pool[i]: _like(match[0], other), pair["prompt"])
            swapped.append({**pair, "prompt": text})
    return swapped


def _substitutes(word: str, corpus: Sequence[Pair], avoid: set[str], count: int) -> list[str]:
    """Words nearest to `word` in log frequency and in the share of capitals, in lower case, nearest first."""
    seen: Counter[str] = Counter()
    capitals: Counter[str] = Counter()
    for pair in corpus:
        for found in words_of(pair["prompt"]):
            seen[found.lower()] += 1
            capitals[found.lower()] += found[0].isupper()
    own = word.lower()
    # A word that the corpus does not have is as rare as any.
    frequency, share = math.log(seen[own] or 1), capitals[own] / (seen[own] or 1)

    def distance(other: str) -> tuple[float, str]:
        return abs(math.log(seen[other]) - frequency) + _CAPITALS * abs(capitals[other] / seen[other] - share), other

    fitting = (other for other in seen if other not in avoid and other.isalpha() and len(other) >= _SHORTEST)
    return sorted(fitting, key=distance)[:count]


def _like(found: str, other: str) -> str:
    """The substitute, capitalised as what it replaces."""
    if found.isupper() and len(found) > 1:
        return other.upper()
    return other.capitalize() if found[0].isupper() else other
