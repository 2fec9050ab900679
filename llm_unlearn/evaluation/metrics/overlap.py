"""What generated answers share with the true ones. The texts hold no prompt: it was cut off by token position."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache, lru_cache

import numpy as np
from jaxtyping import Float


def rouge(answers: Sequence[str], texts: Sequence[str]) -> dict[str, Float[np.ndarray, " n"]]:
    """ROUGE of every text against its answer: `rouge_1_recall`, `rouge_l_recall` and `rouge_l_f1`, scored once.

    All on stemmed words, in [0, 1], 0 for an empty text. Higher where the answer is known, but also for text of the
    same shape with other facts: down on the forget set, where the target is the retain model's value (ROUGE-L recall
    .379 for Llama-3.2-1B on TOFU forget10), up elsewhere. As in TOFU and the peer: package `rouge_score` with
    ``use_stemmer=True``. Source: Lin, "ROUGE", Text Summarization Branches Out (2004).
    """
    scores = [_rouge(answer, text) for answer, text in zip(answers, texts, strict=True)]
    columns = zip(*scores, strict=True) if scores else ((), (), ())
    names = ("rouge_1_recall", "rouge_l_recall", "rouge_l_f1")
    return {name: np.array(column, dtype=np.float64) for name, column in zip(names, columns, strict=True)}


# The three metrics of a set ask one after another for the same pairs.
@lru_cache(maxsize=2**15)
def _rouge(answer: str, text: str) -> tuple[float, float, float]:
    scores = _scorer().score(answer, text)
    return scores["rouge1"].recall, scores["rougeL"].recall, scores["rougeL"].fmeasure


def rouge_1_recall(answers: Sequence[str], texts: Sequence[str]) -> Float[np.ndarray, " n"]:
    """``words of the answer found in the text / words of the answer``, each as often as it occurs in both.

    Range, direction and source as in `rouge`; order does not count.
    """
    return rouge(answers, texts)["rouge_1_recall"]


def rouge_l_recall(answers: Sequence[str], texts: Sequence[str]) -> Float[np.ndarray, " n"]:
    """``LCS(answer, text) / words of the answer``, with LCS the length of the longest common subsequence.

    Range, direction and source as in `rouge`. TOFU's overlap: more words than needed cost nothing.
    """
    return rouge(answers, texts)["rouge_l_recall"]


def rouge_l_f1(answers: Sequence[str], texts: Sequence[str]) -> Float[np.ndarray, " n"]:
    """``2 P R / (P + R)``, with R as in `rouge_l_recall` and ``P = LCS(answer, text) / words of the text``.

    Range, direction and source as in `rouge`. MUSE's overlap (arXiv:2407.06460): rambling costs.
    """
    return rouge(answers, texts)["rouge_l_f1"]


def value_recall(values: Sequence[str], texts: Sequence[str]) -> Float[np.ndarray, " n"]:
    """``[text contains value]``: 1 where the one fact the question asks for stands in the text as whole words, else 0.

    Case and white space do not matter. High where the fact is known. For data with a `value` column.
    """
    return np.array([_contains(text, value) for value, text in zip(values, texts, strict=True)], dtype=np.float64)


@cache
def _scorer():
    # Importing rouge_score loads nltk, a second that reading a report should not pay.
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rougeL"], use_stemmer=True)


def _contains(text: str, value: str) -> bool:
    # Not \b: a value may begin or end with a sign, such as "C++".
    return re.search(rf"(?<!\w){re.escape(_normalised(value))}(?!\w)", _normalised(text)) is not None


def _normalised(text: str) -> str:
    return " ".join(text.casefold().split())
