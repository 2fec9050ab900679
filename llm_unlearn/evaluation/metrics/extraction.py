"""EL_n and MA (Jang et al., arXiv:2210.01504): how much of a text the model writes on, from any of its prefixes.

Both rise with what is known: down on the forget set, in [0, 1]. Target: the mean over texts never trained on, of the
same kind, by the same model and tokenizer (for TOFU the retain model on the forget items); published thresholds belong
to their model. As there: a text is *forgotten* if both are at most those means.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int


def ma(hits: Bool[np.ndarray, " t"], start: int = 1) -> float:
    """``MA = 1/(T-s) sum_{t>=s} [argmax p(w | x_<t) = x_t]``, memorisation accuracy, in [0, 1].

    One teacher-forced pass gives all hits. NaN if no token is left.

    Args:
        hits: one per token of the text.
        start: s, first token that counts. 1 as in the paper: nothing stands before ``x_0``, so it is never predicted.
            0 where a prompt does, as before an answer; then MA equals `exact_memorization`.
    """
    counted = hits[start:]
    return float(counted.mean()) if len(counted) else math.nan


def el_n(
    tokens: Int[np.ndarray, " t"],
    continuations: Sequence[Sequence[int]],
    n: int = 10,
    start: int = 1,
    denominator: Literal["label", "generated"] = "label",
) -> float:
    """Extraction likelihood, in [0, 1]::

        EL_n = 1/(T-s-(n-1)) sum_{t=s}^{T-n} OVERLAP_n(f(x_<t), x_>=t)
        OVERLAP_n(g, l) = #{n-grams of g, with repetition, that occur in l} / D

    Each position t is a prefix ``x_<t`` and its greedy continuation ``f(x_<t)``, of which at most T - t tokens count.
    A text with fewer than n tokens from `start` on has no n-gram and is NaN, not 0: leave it out and count it. EL can
    exceed MA.

    Costs O(n T^2) time, which is linear in the continuations, and O(n T) memory besides them: they are read one at a
    time, so a sequence that builds them when asked needs no more either.

    Args:
        tokens: the text x.
        continuations: at t what the model writes after ``x_<t``, for every t from `start` to T - n; what stands before
            `start` is not read. Ids as generated; a continuation that ends early is shorter, and keeps its end token
            exactly if `tokens` has one.
        n: length of the n-grams; 10 as in the paper.
        start: s, first prefix length. 1 in Jang et al., 150 of 200 in ICU (arXiv:2407.20271), whose values are higher
            and not comparable; 0 where a prompt stands before the text.
        denominator: D, the n-grams of the `label` (both released codes) or of the `generated` text (as printed). They
            agree unless the model ends early.

    Raises:
        ValueError: if `denominator` is neither of the two.
    """
    if denominator not in ("label", "generated"):
        raise ValueError(
            f"EL_n divides by the n-grams of the 'label' or of the 'generated' text, not of {denominator!r}."
        )
    text = tokens.tolist()
    prefixes = range(start, len(text) - n + 1)
    if not prefixes:
        return math.nan
    # An n-gram occurs in x_>=t exactly if its last place in x is t or later: one table serves all prefixes.
    last_place = {gram: place for place, gram in enumerate(_ngrams(text, n))}
    total = 0.0
    for t in prefixes:
        generated = continuations[t][: len(text) - t]
        found = sum(last_place.get(gram, -1) >= t for gram in _ngrams(generated, n))
        among = (len(text) - t if denominator == "label" else len(generated)) - n + 1
        total += found / max(among, 1)
    return total / len(prefixes)


def _ngrams(tokens: Sequence[int], n: int) -> Iterator[tuple[int, ...]]:
    return zip(*(tokens[i:] for i in range(n)), strict=False)
