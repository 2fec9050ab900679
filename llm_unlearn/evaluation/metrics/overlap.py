"""What generated answers share with the true ones. The texts hold no prompt: it was cut off by token position."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

import numpy as np
from jaxtyping import Float


def rouge_l_recall(answers: Sequence[str], texts: Sequence[str]) -> Float[np.ndarray, " n"]:
    """``LCS(answer, text) / words of the answer``, on stemmed words, in [0, 1]; 0 for an empty text.

    LCS is the longest common subsequence. High where the answer is known, but also for text of the same shape with
    other facts. As in TOFU: package `rouge_score` with ``use_stemmer=True``.
    """
    return np.array(
        [_scorer().score(answer, text)["rougeL"].recall for answer, text in zip(answers, texts, strict=True)],
        dtype=np.float64,
    )


def value_recall(values: Sequence[str], texts: Sequence[str]) -> Float[np.ndarray, " n"]:
    """``[text contains value]``: 1 where the one fact the question asks for stands in the text as whole words, else 0.

    Case and white space do not matter. High where the fact is known. For data with a `value` column.
    """
    return np.array([_contains(text, value) for value, text in zip(values, texts, strict=True)], dtype=np.float64)


@cache
def _scorer():
    # Importing rouge_score loads nltk, a second that reading a report should not pay.
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)


def _contains(text: str, value: str) -> bool:
    # Not \b: a value may begin or end with a sign, such as "C++".
    return re.search(rf"(?<!\w){re.escape(_normalised(value))}(?!\w)", _normalised(text)) is not None


def _normalised(text: str) -> str:
    return " ".join(text.casefold().split())
