"""Names in texts, found by how they are written: titles in quotation marks, dates, runs of capitalised words.

No list of names and no model is asked, so invented subjects are found like known ones. A script without capitals has
no names here.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

_WORD = re.compile(r"[^\W_]+(?:[-'’./+&][^\W_]+)*\+?")
_POSSESSIVE = re.compile(r"['’]s$")
_ABBREVIATED = re.compile(r"(?:[^\W\d_]\.)*[^\W\d_]|Dr|Mr|Mrs|Ms|St|Prof|Jr")
_HONORIFICS = {"Dr", "Mr", "Mrs", "Ms", "Miss", "Prof", "Professor", "Sir", "Lady", "Lord", "Madame"}
_PARTICLE = re.compile("al|bin|da|del?|della|der|di|du|el|es|for|ibn|la|le|of|the|van|von|y")
_SENTENCE_START = re.compile(r"(?:^|[.!?:\n])[\s\"“‘('”’)]*$")
_BEFORE_PLACES = {"in", "from", "at", "near", "across"}
_BEFORE_THINGS = {"the", "a", "an", "this", "that", "his", "her", "their", "its"}

_MONTH = "(?:January|February|March|April|May|June|July|August|September|October|November|December)"
_NUMBER = r"\d+(?:[-.,/:]\d+)*(?:st|nd|rd|th)?"
_DATE = re.compile(rf"(?<!\w)(?:{_NUMBER}|{_MONTH}(?= \d| of))(?:(?: of |, | )(?:{_NUMBER}|{_MONTH}))*(?!\w)")
# An opening quotation mark stands before a capital and after no letter, a closing one before no letter.
_CAPITAL = "[A-ZÀ-ÖØ-Þ]"
_TITLE = re.compile(
    rf"(?<!\w)(?:\"({_CAPITAL}[^\"\n]{{0,99}})\"|“({_CAPITAL}[^”\n]{{0,99}})”|['‘]({_CAPITAL}[^\n]{{0,99}}?)['’](?!\w))"
)


@dataclass(frozen=True)
class Name:
    """A name as it occurs in rows.

    Attributes:
        text: as it is written.
        kind: `title`, a date's form such as `date 0 M 0000`, or by the word that most often stands before it `place`,
            `thing` or `person`.
        rows: how many rows have it.
        context: how often it is of which kind, which words stand before and after it, and what its last word is,
            where that is no name itself ("award"); a vector of length 1.
    """

    text: str
    kind: str
    rows: int
    context: Mapping[str, float]


class Mention(NamedTuple):
    """One occurrence of a name; of kind `start` where a single word may owe its capital to its place."""

    text: str
    kind: str
    before: str
    after: str


def lower_words(rows: Iterable[Iterable[str]]) -> set[str]:
    """The words that occur without a capital: such a word is no name where it begins a sentence."""
    return {word for texts in rows for text in texts for word in _WORD.findall(text) if word[0].islower()}


def words_of(text: str) -> list[str]:
    """The words of a text, without the 's of a genitive."""
    return [_bare(word) for word in _WORD.findall(text)]


def mentions(text: str, common: set[str]) -> Iterator[Mention]:
    """The names in a text: titles, dates, then the others.

    Args:
        text: a text of a row.
        common: see `lower_words`.
    """
    blank = text
    for kind, pattern in (("title", _TITLE), ("date", _DATE)):
        for match in pattern.finditer(blank):
            name = next(filter(None, match.groups()), match[0]).rstrip(" ,.;")
            form = f"date {_form(name)}" if kind == "date" else kind
            yield Mention(name, form, *_beside(text, match.start(), match.end()))
        blank = pattern.sub(lambda match: "\0" * len(match[0]), blank)
    words = list(_WORD.finditer(blank))
    at, kind, end = 0, "person", 0
    while at < len(words):
        start, word = words[at].start(), words[at][0]
        if not _is_name(word):
            at += 1
            continue
        titled = at > 0 and words[at - 1][0] in _HONORIFICS
        starts = not titled and _SENTENCE_START.search(blank[max(0, start - 5) : start]) is not None
        if word in _HONORIFICS or (starts and _bare(word).lower() in common):
            at += 1
            continue
        last = _run_end(words, at, blank, starts)
        name = _bare(blank[start : words[last].end()])
        before, after = _beside(text, start, start + len(name))
        # What follows a place and a comma is the country of a city.
        if not (kind == "place" and blank[end:start] == ", "):
            kind = "place" if before in _BEFORE_PLACES else "thing" if before in _BEFORE_THINGS else "person"
        yield Mention(name, "start" if starts and at == last else kind, before, after)
        at, end = last + 1, words[last].end()


def find_names(rows: Iterable[Sequence[str]], common: set[str]) -> dict[str, Name]:
    """The names in rows, each a list of texts; each name of its most frequent kind."""
    kinds: dict[str, Counter[str]] = defaultdict(Counter)
    contexts: dict[str, Counter[str]] = defaultdict(Counter)
    rows_with: Counter[str] = Counter()
    for texts in rows:
        # In order, as sets of strings have another in every process.
        found = dict.fromkeys(mention for text in texts for mention in mentions(text, common))
        rows_with.update({mention.text: 1 for mention in found})
        for text, kind, before, after in found:
            kinds[text][kind] += 1
            contexts[text].update((f"{before} _", f"_ {after}"))
    names = {}
    for text, votes in kinds.items():
        del votes["start"]
        if votes:
            context = contexts[text]
            context.update({kind: votes[kind] / 2 for kind in votes})
            last = text.split(" ")[-1].lower()
            if " " in text and last in common:
                context[last] += rows_with[text]
            length = math.hypot(*context.values())
            context = {word: count / length for word, count in context.items()}
            names[text] = Name(text, votes.most_common(1)[0][0], rows_with[text], context)
    return names


def any_of(names: Iterable[str]) -> re.Pattern:
    """Any of the names as whole words, the longest that fits; in a script without capitals words need no spaces."""
    return re.compile("|".join(map(_whole, sorted(names, key=len, reverse=True))) or r"(?!)")


def _form(date: str) -> str:
    """How a date is written: `0 M 0000` for 8 January 1967."""
    date = re.sub(r"(?<=\d)(?:st|nd|rd|th)", "th", re.sub(_MONTH, "M", date))
    return re.sub(r"\d+", lambda digits: "0" if len(digits[0]) < 3 else "0" * len(digits[0]), date)


def _run_end(words: list[re.Match], at: int, text: str, starts: bool) -> int:
    """The last word of the name that begins with word `at`."""
    last = at
    for i in range(at + 1, len(words)):
        gap = text[words[i - 1].end() : words[i].start()]
        joined = gap == " " or (gap == ". " and _ABBREVIATED.fullmatch(words[i - 1][0]))
        if not joined or _POSSESSIVE.search(words[i - 1][0]):
            break
        if _is_name(words[i][0]):
            last = i
        # "Winning the Prize" begins a sentence, "University of Somewhere" is only found elsewhere.
        elif not _PARTICLE.fullmatch(words[i][0]) or (starts and i == at + 1):
            break
    return last


def _is_name(word: str) -> bool:
    return word[0].isupper() and word != "I" and not word.startswith(("I'", "I’"))


def _bare(name: str) -> str:
    return _POSSESSIVE.sub("", name)


def _beside(text: str, start: int, end: int) -> tuple[str, str]:
    """The word or mark before and after a place in a text, in lower case; nothing at its ends."""
    before = re.search(r"([^\W_]+|[^\w\s\"“‘'(])[\s\"“‘'(]*$", text[max(0, start - 30) : start])
    after = re.match(r"['’]s\b|[\s\"”’')]*([^\W_]+|[^\w\s\"”’')])", text[end : end + 30])
    return (before[1].lower() if before else ""), ((after[1] or "'s").lower() if after else "")


def _whole(name: str) -> str:
    before, after = (character.lower() != character.upper() or character.isdigit() for character in (name[0], name[-1]))
    return (r"(?<!\w)" if before else "") + re.escape(name) + (r"(?!\w)" if after else "")
