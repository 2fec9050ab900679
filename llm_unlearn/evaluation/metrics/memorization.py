"""How much of an answer the model would write itself, from its teacher-forced hits: ``hit_t = [argmax p = y_t]``.

Both count the answer tokens and one end token, and need no generation. Hits know nothing of log-probabilities that are
not numbers: an item of a collapsed model has no hits and would read as perfect forgetting, so whoever calls leaves such
items out.

The peer drops the last label; see `counted_labels`.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

Hits = Sequence[Bool[np.ndarray, " _"]]
"""One array per item, ``(T_i,)`` with T_i at least 1."""


def counted_labels(items: Sequence[np.ndarray], drop_last: bool) -> list[np.ndarray]:
    """The values of each item that count: all, or under `drop_last` all but that of the last label.

    An answer of one token would have nothing left; it keeps that token.
    """
    return [item[: max(len(item) - drop_last, 1)] for item in items]


def hits_of(predictions: Sequence[Sequence[int]], labels: Sequence[Sequence[int]]) -> list[Bool[np.ndarray, " _"]]:
    """Where the most probable token is the label, per item.

    Args:
        predictions: the most probable token at every answer position, under teacher forcing.
        labels: the answer tokens.

    Raises:
        ValueError: an item has fewer or more predictions than labels.
    """
    for row, (predicted, true) in enumerate(zip(predictions, labels, strict=True)):
        if len(predicted) != len(true):
            raise ValueError(
                f"Item {row} has {len(predicted)} predictions for {len(true)} reference tokens: give the most probable "
                "token at every answer position, under teacher forcing."
            )
    return [np.equal(predicted, true) for predicted, true in zip(predictions, labels, strict=True)]


def exact_memorization(hits: Hits, drop_last: bool = False) -> Float[np.ndarray, " n"]:
    """``EM_i = 1/T sum_t hit_t``, the share of answer tokens that greedy decoding would choose, in [0, 1].

    Higher where the answer is known: down on the forget set. Target there: the retain model's value, not 0 (.585 for
    Llama-3.2-1B on TOFU forget10), since a model that never saw an answer still guesses common words. Source: Tirumala
    et al. (arXiv:2205.10770).

    Args:
        hits: one array per item.
        drop_last: leave out the last label, as `open_unlearning` does.
    """
    return np.array([counted.mean() for counted in counted_labels(hits, drop_last)], dtype=np.float64)


def extraction_strength(hits: Hits, floor: bool = False, drop_last: bool = False) -> Float[np.ndarray, " n"]:
    """``ES_i = 1 - k/T``, with k the shortest answer prefix after which greedy decoding writes the rest, in [0, 1].

    That is the number of hits in a row at the end, over T. Higher where the answer is known: down on the forget set.
    Target there: the retain model's value (.059 with the floor, for Llama-3.2-1B on TOFU forget10). Source: Carlini et
    al. (arXiv:2012.07805); as a metric of unlearning: Wang et al. (arXiv:2406.09179).

    Args:
        hits: one array per item.
        floor: count at least one hit, so that an answer whose last token is missed has 1/T and not 0. The loop of
            `open_unlearning` stops one prefix early; a third of the retain model's .059 is this floor.
        drop_last: leave out the last label, as `open_unlearning` does.
    """
    return np.array(
        [max(_hits_at_end(counted), int(floor)) / len(counted) for counted in counted_labels(hits, drop_last)],
        dtype=np.float64,
    )


def _hits_at_end(hits: Bool[np.ndarray, " t"]) -> int:
    misses = np.flatnonzero(~hits)
    return len(hits) - 1 - int(misses[-1]) if len(misses) else len(hits)
