"""What teacher-forced scores tell about one answer: its probability, and how much of it the model would write itself.

All three count the answer tokens and one end token (variant `fixed`; the peer counts the end token in the probability
only). An item whose log-probabilities are NaN, as those of a collapsed model are, has the value NaN everywhere: its
hits would otherwise read as perfect forgetting.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    from llm_unlearn.evaluation.outputs import ItemScores


def probability(scores: Sequence[ItemScores]) -> Float[np.ndarray, " n"]:
    """``P_i = exp(1/T sum_t log p(y_t))``, the length-normalised probability of the answer, in [0, 1].

    High where the answer is known. Source: TOFU (arXiv:2401.06121), section 2.2.
    """
    return np.exp(_per_item(scores, lambda item: item.logprobs.mean(dtype=np.float64)))


def exact_memorization(scores: Sequence[ItemScores]) -> Float[np.ndarray, " n"]:
    """``EM_i = 1/T sum_t [argmax p = y_t]``, the share of answer tokens that greedy decoding would choose, in [0, 1].

    High where the answer is known; a model that never saw it still guesses common words.
    """
    return _per_item(scores, lambda item: item.hits.mean())


def extraction_strength(scores: Sequence[ItemScores]) -> Float[np.ndarray, " n"]:
    """``ES_i = 1 - k/T``, with k the shortest answer prefix after which greedy decoding writes the rest, in [0, 1].

    That is the number of hits in a row at the end, over T, and needs no generation. High where the answer is known.
    No floor: an answer whose last token is missed has 0 (the peer gives it 1/T).
    """
    return _per_item(scores, lambda item: _hits_at_end(item.hits) / len(item.hits))


def _hits_at_end(hits: np.ndarray) -> int:
    misses = np.flatnonzero(~hits)
    return len(hits) - 1 - int(misses[-1]) if len(misses) else len(hits)


def _per_item(scores: Sequence[ItemScores], value) -> Float[np.ndarray, " n"]:
    return np.array([np.nan if np.isnan(item.logprobs).any() else value(item) for item in scores], dtype=np.float64)
