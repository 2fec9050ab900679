"""How a generated answer is judged: which share of a name it recalls, and whether it says a name at all.

Only what the model wrote is judged, never the prompt, and words it could have taken from the question do not count.
The evaluation released with arXiv:2504.05058 scored prompt and answer together, so that names in the question were
recalled by every model.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cache, lru_cache

from llm_unlearn.probes.measurement import Kind, Said

_INITIAL = re.compile(r"(?<!\w)([^\W\d_])\.\s*(?=[^\W\d_]\.)")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
# Thai and Lao, Burmese, Khmer; wide characters (Han, kana, Hangul) are found by their width.
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]")
# Accents of Latin, Greek and Cyrillic, and the vowels of Hebrew and Arabic, which are mostly left out in writing. The
# marks of other scripts make other letters, as in Japanese or Thai.
_ACCENTS = re.compile("[\u0300-\u036f\u0591-\u05bd\u05bf-\u05c7\u064b-\u0652\u0670]")
# Letters that are written without their stroke or as two, and that Unicode does not take apart.
_LETTERS = str.maketrans({"ł": "l", "ø": "o", "đ": "d", "ı": "i", "æ": "ae", "œ": "oe"})
# Signs that are part of a name: C#, AT&T, 50 %.
_KEPT = frozenset("#&%@*/")


def judge(kind: Kind, question: str, text: str, names: Sequence[str], whole: Sequence[str] | None = None) -> Said:
    """Judge an answer.

    Args:
        kind: of the question.
        question: as asked.
        text: what the model wrote.
        names: names of what was asked for, at least one.
        whole: texts whose recall is taken instead of that of the names, such as the true answer.
    """
    recall = answer_recall(whole, text, question) if whole else recall_of(names, text, question)
    return Said(kind, question, text, recall, names_it(names, text, question))


def recall_of(names: Sequence[str], text: str, question: str) -> float:
    """ROUGE-L recall of the name that is recalled best, in [0, 1].

    A name that stands in the text as a whole has 1. Of others the share counts of the words that are not the question's
    and stand in the text, in order; of text and names stemmed words are compared, `normalised`. A name of which the
    question has half the words or more is recalled as a whole or not at all: of "Guatemala City" only "City" would be
    left, which says nothing. Names that stand in the question are left out, as in `names_it`.

    Args:
        names: names, of which one is enough.
        text: what the model wrote.
        question: what it was asked.
    """
    given = set(_words(question))
    new = [name for name in names if not contains(question, name)]
    return max(_recall_of_name(name, text, given) for name in new or names)


def answer_recall(answers: Sequence[str], text: str, question: str) -> float:
    """ROUGE-L recall of the answer that is recalled best, in [0, 1], without words of the question.

    From answer and text all words of the question are removed (whole words, `normalised`); what is left is what the
    model had to know. An answer with no word left is compared as it is, with the whole text.

    Args:
        answers: whole answers, of which one is enough.
        text: what the model wrote.
        question: what it was asked.
    """
    given = set(_words(question))
    own = [word for word in _words(text) if word not in given]
    left = [[word for word in _words(answer) if word not in given] for answer in answers]
    pairs = [(new, own) if new else (_words(answer), _words(text)) for answer, new in zip(answers, left, strict=True)]
    return max(_rouge_l_recall(answer, words) for answer, words in pairs)


def names_it(names: Sequence[str], text: str, question: str) -> bool:
    """Whether one of the names stands in the text, as whole words.

    Without case, accents, Unicode variants and punctuation (`normalised`). Names that stand in the question are left
    out, unless all do: a model that repeats a question has not answered it.
    """
    new = [name for name in names if not contains(question, name)]
    return any(contains(text, name) for name in new or names)


def is_given(names: Sequence[str], question: str) -> bool:
    """Whether all names stand in the question, so that repeating it cannot be told from answering it."""
    return all(contains(question, name) for name in names)


def contains(text: str, name: str) -> bool:
    """Whether `name` stands in `text` as whole words, both `normalised`."""
    return re.search(bounded(normalised(name)), normalised(text)) is not None


def bounded(name: str) -> str:
    """A pattern that finds `name` between the ends of words; scripts without spaces have no such ends."""
    left = "" if _is_unspaced(name[0]) else r"(?<!\w)"
    right = "" if _is_unspaced(name[-1]) else r"(?!\w)"
    return left + re.escape(name) + right


@lru_cache(maxsize=2**14)
def normalised(text: str) -> str:
    """NFKC, case folded, without accents, other punctuation than `#&%@*/` as a space, one space at most.

    "Asunción" is "asuncion", "Łódź" "lodz", "J. K." and "J.K." are "jk", "1,000" is "1000". A text of nothing but
    punctuation stays as it is.
    """
    bare = _ACCENTS.sub("", unicodedata.normalize("NFKD", text)).casefold().translate(_LETTERS)
    folded = unicodedata.normalize("NFKC", bare)
    joined = _THOUSANDS.sub("", _INITIAL.sub(r"\1", folded))
    spaced = "".join(" " if unicodedata.category(c)[0] == "P" and c not in _KEPT else c for c in joined)
    return " ".join(spaced.split()) or folded.strip()


def _recall_of_name(name: str, text: str, given: set[str]) -> float:
    words = _words(name)
    left = [word for word in words if word not in given]
    # A name within a text without spaces is a part of a word.
    if contains(text, name) or 2 * len(left) <= len(words):
        return float(contains(text, name))
    return _rouge_l_recall(left, [word for word in _words(text) if word not in given])


def _words(text: str) -> list[str]:
    """Letters, digits and marks between anything else, of any script: `rouge_score` has a to z and 0 to 9 alone."""
    kept = (c if c.isalnum() or unicodedata.category(c)[0] == "M" else " " for c in normalised(text))
    return "".join(kept).split()


def _rouge_l_recall(words: Sequence[str], text: Sequence[str]) -> float:
    return float(_scorer().score(" ".join(words), " ".join(text))["rougeL"].recall)


@cache
def _scorer():
    # Importing rouge_score loads nltk, a second that reading a report should not pay.
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=_Stems())


class _Stems:
    """Splits at spaces and stems longer words, as `rouge_score` does."""

    def __init__(self) -> None:
        from nltk.stem.porter import PorterStemmer

        self._stemmer = PorterStemmer()

    def tokenize(self, text: str) -> list[str]:
        return [self._stemmer.stem(word) if len(word) > 3 else word for word in text.split()]


def _is_unspaced(character: str) -> bool:
    return unicodedata.east_asian_width(character) in "WF" or _UNSPACED.match(character) is not None
