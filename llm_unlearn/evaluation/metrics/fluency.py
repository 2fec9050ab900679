"""Fluency of generated texts without a downloaded judge: gibberish and loops are what forgetting too hard looks like.

Words are what white space separates. Higher is better for `distinct_n` and `fluency`, lower for `repetition`; target of
all three: the value of the model before unlearning. A text of fewer than n words repeats nothing; an empty one, or one
of white space, has distinct 0, repetition 0 and fluency 0.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


def distinct_n(texts: Sequence[str], n: int) -> Float[np.ndarray, " k"]:
    """``distinct n-grams / n-grams`` of each text, in [0, 1].

    Source: Li et al. (arXiv:1510.03055); there over all outputs together and over their words.
    """
    return np.array([_distinct(text.split(), n) for text in texts], dtype=np.float64)


def repetition(texts: Sequence[str], n: int = 4) -> Float[np.ndarray, " k"]:
    """``1 - distinct n-grams / n-grams`` of each text, the share of repeated n-grams, in [0, 1).

    Source: Welleck et al. (arXiv:1908.04319), seq-rep-n with n = 4.
    """
    return np.array([1 - _distinct(words, n) if (words := text.split()) else 0.0 for text in texts], dtype=np.float64)


def fluency(text_nll: Float[np.ndarray, " k"], own_nll: float, texts: Sequence[str]) -> Float[np.ndarray, " k"]:
    """``min(1, exp(own_nll - text_nll_i)) (1 - share of repeated 4-grams)``, in [0, 1]; an empty text has 0.

    1: as probable to the model before unlearning as what that model writes itself, and free of loops. Our own
    definition; aggregates built on it are called `offline`. The peer takes a downloaded classifier of gibberish.

    Args:
        text_nll: token-mean NLL of each text under the model before unlearning, in nats; not read for empty texts.
        own_nll: mean of the same over that model's own texts.
        texts: the generated texts.
    """
    empty = np.array([not text.strip() for text in texts], dtype=bool)
    natural = np.exp(np.minimum(own_nll - text_nll, 0))
    return np.where(empty, 0.0, natural * (1 - repetition(texts)))


def _distinct(words: list[str], n: int) -> float:
    ngrams = list(zip(*(words[i:] for i in range(n)), strict=False))
    return len(set(ngrams)) / len(ngrams) if ngrams else float(bool(words))
