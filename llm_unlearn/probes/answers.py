"""How a generated answer is judged: which share of a name it recalls, and whether it says a name at all.

Only what the model wrote is judged, never the prompt, and words it could have taken from the question do not count.
The evaluation released with arXiv:2504.05058 scored prompt and answer together, so that names in the question were
recalled by every model.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

from llm_unlearn.evaluation.metrics.overlap import rouge_l_recall
from llm_unlearn.probes.measurement import Kind, Said

_INITIAL = re.compile(r"(?<!\w)([^\W\d_])\.\s*(?=[^\W\d_]\.)")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
# Thai and Lao, Burmese, Khmer; wide characters (Han, kana, Hangul) are found by their width.
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]")
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
    return Said(kind, question, text, recall_of(whole or names, text, question), names_it(names, text, question))


def recall_of(names: Sequence[str], text: str, question: str) -> float:
    """ROUGE-L recall of the name that is recalled best, in [0, 1], without words of the question.

    From name and text all words of the question are removed (whole words, without case); what is left of the name is
    what the model had to know. A name with no word left is compared as it is, with the whole text.

    Args:
        names: names, or texts, of which one is enough.
        text: what the model wrote.
        question: what it was asked.
    """
    given = set(_words(question))
    own = " ".join(word for word in _words(text) if word not in given)
    left = [" ".join(word for word in _words(name) if word not in given) for name in names]
    pairs = [(new, own) if new else (name, text) for name, new in zip(names, left, strict=True)]
    return float(rouge_l_recall(*zip(*pairs, strict=True)).max())


def names_it(names: Sequence[str], text: str, question: str) -> bool:
    """Whether one of the names stands in the text, as whole words.

    Without case, Unicode variants and punctuation (`normalised`). Names that stand in the question are left out, unless
    all do: a model that repeats a question has not answered it.
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
    """NFKC, case folded, other punctuation than `#&%@*/` as a space, one space at most.

    "J. K." and "J.K." are "jk", "1,000" is "1000". A text of nothing but punctuation stays as it is.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    joined = _THOUSANDS.sub("", _INITIAL.sub(r"\1", folded))
    spaced = "".join(" " if unicodedata.category(c)[0] == "P" and c not in _KEPT else c for c in joined)
    return " ".join(spaced.split()) or folded.strip()


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _is_unspaced(character: str) -> bool:
    return unicodedata.east_asian_width(character) in "WF" or _UNSPACED.match(character) is not None
