"""How near translations come to their references: BLEU of a set, METEOR of a sentence.

Both on words as `nltk.word_tokenize` tells them apart without its downloaded splitter of sentences.
"""

import math
from collections import Counter
from collections.abc import Sequence
from functools import cache

import numpy as np
from jaxtyping import Float

_ORDERS = (1, 2, 3, 4)


def corpus_bleu(candidates: Sequence[str], references: Sequence[str]) -> float:
    """``BP exp(mean_n log p_n)`` over n = 1 .. 4, p_n the share of all candidates' n-grams that their references have.

    ``BP = min(1, exp(1 - r/c))`` for r and c words in all references and candidates. In [0, 1], 0 where no 4-gram is
    shared; case counts, nothing is smoothed; up on what is kept, down on what is forgotten. Source: Papineni et al.
    (2002), as in sacrebleu, but for how words are told apart and the factor 100. `nltk` counts one n-gram even in
    candidates of fewer words.

    Raises:
        ValueError: the two are not of one length.
    """
    hits, total = np.zeros(len(_ORDERS)), np.zeros(len(_ORDERS))
    n_candidate = n_reference = 0
    for candidate, reference in zip(candidates, references, strict=True):
        given, true = words_of(candidate), words_of(reference)
        n_candidate, n_reference = n_candidate + len(given), n_reference + len(true)
        for place, n in enumerate(_ORDERS):
            own, other = (Counter(zip(*(words[i:] for i in range(n)), strict=False)) for words in (given, true))
            hits[place] += (own & other).total()
            total[place] += own.total()
    if not hits.all():
        return 0.0
    brevity = min(0.0, 1 - n_reference / n_candidate)
    return float(math.exp(brevity + np.log(hits / total).mean()))


def meteor(candidates: Sequence[str], references: Sequence[str], language: str = "english") -> Float[np.ndarray, " n"]:
    """METEOR of each sentence: ``F (1 - 0.5 (chunks / matches)^3)``, ``F = P R / (0.9 P + 0.1 R)``.

    P and R are the matched shares of candidate and reference; words match if they or, failing that, their stems are the
    same, whatever their case. Synonyms do not match: the list of them that `nltk` takes is English and a download. In
    [0, 1], 0 where nothing matches; direction as for `corpus_bleu`. Source: Lavie and Agarwal (2007), by `nltk`.

    Args:
        candidates, references: the sentences.
        language: of both, by which words are stemmed (Snowball), such as "french".

    Raises:
        ValueError: there is no stemmer of the language, or the two are not of one length.
    """
    score, stemmer = _meteor(), _stemmer(language)
    pairs = zip(candidates, references, strict=True)
    values = [score(words_of(true), words_of(given), stemmer=stemmer, wordnet=_NoSynonyms()) for given, true in pairs]
    return np.array(values, dtype=np.float64)


def require_language(language: str) -> None:
    """Refuse a language that `meteor` has no stemmer of.

    Raises:
        ValueError: it has none.
    """
    _stemmer(language)


@cache
def _tokenizer():
    # Importing nltk takes seconds, which reading a report should not pay.
    from nltk.tokenize import word_tokenize

    return word_tokenize


def words_of(text: str) -> list[str]:
    """The words and marks of a text."""
    return _tokenizer()(text, preserve_line=True)


@cache
def _meteor():
    from nltk.translate.meteor_score import single_meteor_score

    return single_meteor_score


@cache
def _stemmer(language: str):
    from nltk.stem.snowball import SnowballStemmer

    if language not in SnowballStemmer.languages:
        raise ValueError(
            f"METEOR has no stemmer of the language {language!r}: give one of {', '.join(SnowballStemmer.languages)}."
        )
    return SnowballStemmer(language)


class _NoSynonyms:
    """In the place of WordNet."""

    def synsets(self, word: str) -> tuple:
        """None of any word."""
        return ()
