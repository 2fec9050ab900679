"""How near a generated text comes to the true one, in words and in vectors of its tokens, and how it repeats itself.

ICU (arXiv:2407.20271) takes BLEU and BERTScore to judge whether an item is forgotten, and reports the other two.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from llm_unlearn.evaluation.metrics.fluency import distinct_n


@dataclass(frozen=True, eq=False)
class TokenVectors:
    """A text as one vector per token.

    Attributes:
        vectors: of length 1, ``(tokens, dim)``.
        counted: which tokens count in the means of `bert_score`; the others (in BERT, [CLS] and [SEP]) are only there
            to be matched.
    """

    vectors: Float[np.ndarray, "tokens dim"]
    counted: Bool[np.ndarray, " tokens"]

    @classmethod
    def of(cls, text: "TokenVectors | Float[np.ndarray, 'tokens dim']") -> "TokenVectors":
        """Vectors of tokens that all count; what has been told already stays as it is."""
        return text if isinstance(text, cls) else cls(text, np.ones(len(text), dtype=bool))


Vectors = TokenVectors | Float[np.ndarray, "tokens dim"]
"""What `bert_score` compares; in a plain array all tokens count."""


class BertScore(NamedTuple):
    """Precision, recall and their harmonic mean; see `bert_score`."""

    precision: float
    recall: float
    f1: float


def sentence_bleu(candidate: str, reference: str, smoothing: str = "none") -> float:
    """``BP exp(mean_n log p_n)`` over n = 1 .. N, with p_n the share of the candidate's n-grams that the reference has.

    ``BP = min(1, exp(1 - r/c))`` for r and c words; N = min(4, r), since four words are needed for a 4-gram and an
    identical answer of two words must have 1, not 1e-154. In [0, 1], 0 if one of the texts is empty; down on the forget
    set. Words are lower-cased, as `nltk.word_tokenize` tells them apart without its downloaded splitter of sentences:
    only full stops inside a text differ. Source: Papineni et al. (2002), `nltk`'s `sentence_bleu`, as in ICU's code.

    Args:
        candidate: the generated text.
        reference: the true one.
        smoothing: "none", as released: where no n-gram of one order is shared, p_n is 2e-308, so that BLEU is 1e-77 or
            less; or "add_one", one more hit among one more n-gram for n > 1 (Lin and Och, 2004; `nltk`'s method2).

    Raises:
        ValueError: another smoothing.
    """
    if smoothing not in ("none", "add_one"):
        raise ValueError(f"The smoothing of BLEU is 'none' or 'add_one', not {smoothing!r} (`--iur_smoothing`).")
    words, bleu, add_one = _nltk()
    given, true = (words(text.lower(), preserve_line=True) for text in (candidate, reference))
    if not given or not true:
        return 0.0
    order = min(4, len(true))
    smooth = add_one if smoothing == "add_one" else _unsmoothed
    return float(bleu([true], given, weights=(1 / order,) * order, smoothing_function=smooth))


def bert_score(candidate: Vectors, reference: Vectors) -> BertScore:
    """``P = mean_i max_j <c_i, r_j>``, ``R = mean_j max_i <c_i, r_j>``, ``F1 = 2 P R / (P + R)``, c and r unit vectors.

    In [-1, 1], in practice far above 0 for any two texts; down on the forget set. How far apart texts are depends on
    the encoder: a threshold for one says nothing about another (`calibrate_threshold`). 0 if one of the texts has no
    token that counts; NaN where a vector is. Source: Zhang et al. (arXiv:1904.09675), without weights by rarity and
    without rescaling, as in ICU's code.
    """
    given, true = TokenVectors.of(candidate), TokenVectors.of(reference)
    if not given.counted.any() or not true.counted.any():
        return BertScore(0.0, 0.0, 0.0)
    cosines = given.vectors @ true.vectors.T
    precision = float(cosines.max(axis=1)[given.counted].mean(dtype=np.float64))
    recall = float(cosines.max(axis=0)[true.counted].mean(dtype=np.float64))
    total = precision + recall
    return BertScore(precision, recall, 2 * precision * recall / total if total else 0.0)


def calibrate_threshold(texts: Sequence[Vectors], seed: int, pairs: int = 200, percentile: float = 95) -> float:
    """The F1 that two texts which have nothing to do with each other reach: a percentile over random pairs.

    Ours: the released threshold of 0.3 is below what *any* two texts have under most encoders.

    Args:
        texts: true texts as vectors, all of the encoder the threshold is for.
        seed: of the draw.
        pairs: how many pairs of two different texts are drawn, with replacement. Defaults to 200.
        percentile: of their F1. Defaults to 95: one in twenty of such pairs is nearer than the threshold.

    Raises:
        ValueError: fewer than two texts.
    """
    if len(texts) < 2:
        raise ValueError(
            f"A threshold of BERTScore is measured on pairs of texts, but {len(texts)} was given: give two or more "
            "items to forget (`--forget_split`), or a threshold (`--iur_bert_f1`)."
        )
    random = np.random.default_rng(seed)
    firsts = random.integers(len(texts), size=pairs)
    # A step of 1 .. n - 1 around the circle never leads back to the first.
    seconds = (firsts + random.integers(1, len(texts), size=pairs)) % len(texts)
    scores = [bert_score(texts[i], texts[j]).f1 for i, j in zip(firsts, seconds, strict=True)]
    return float(np.percentile(scores, percentile))


def token_entropy(ids: Sequence[int]) -> float:
    """``H = -sum_w (c_w / L) log2(c_w / L)`` over the distinct tokens w of L, in bits, in [0, log2 L]; 0 for none.

    Near 0 where a text repeats one token, which is what forgetting too hard looks like; target: the value of the model
    before unlearning. Source: ICU's code, there over 50 generated ids.
    """
    shares = np.unique(np.asarray(ids, dtype=np.int64), return_counts=True)[1] / max(1, len(ids))
    return float((shares * np.log2(1 / shares)).sum())


def distinct_1(ids: Sequence[int]) -> float:
    """``distinct tokens / tokens``, in [0, 1]; 0 for none. Direction, target and source as for `token_entropy`."""
    return float(distinct_n([" ".join(map(str, ids))], 1)[0])


@cache
def _nltk():
    # Importing nltk takes seconds, which reading a report should not pay.
    from nltk.tokenize import word_tokenize
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    return word_tokenize, sentence_bleu, SmoothingFunction().method2


def _unsmoothed(precisions: list, **_) -> list:
    # nltk's method0, which also warns at every zero.
    return [precision if precision.numerator else sys.float_info.min for precision in precisions]
