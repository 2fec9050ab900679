"""The facts that probes ask about: a subject, an object, all their names, and the questions that join them.

One JSON object per line, with the names of `Fact`. The names are counted in text (`llm_unlearn.probes.counts`) and
looked for in answers, so that a fact must say which other names it has, be it that it has none.
"""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from llm_unlearn.files import write_text
from llm_unlearn.suggest import unknown

Role = Literal["forget", "neighbour", "retain"]


@dataclass(frozen=True)
class Fact:
    """One fact, such as Paris being the capital of France.

    Attributes:
        id (`str`):
            Its name in counts and reports, unique among the facts of a file.
        subject, object (`str`):
            What the fact is about, and what it says of it.
        question, answer (`str`):
            The direct question as it is asked, and the answer as it is trained and scored. The answer may be a
            sentence; the names of the object are what is looked for in it.
        subject_aliases, object_aliases (`tuple[str, ...]`):
            Other names of either; empty says that there are none. No name may be one of both.
        relation (`str`):
            What joins them, such as `capital`. Facts of one relation lend each other wrong answers.
        paraphrases (`tuple[str, ...]`, *optional*, defaults to none):
            The same question in other words.
        distractors (`tuple[str, ...]`, *optional*, defaults to none):
            Wrong objects of the same relation.
        reverse_question (`str` or `None`, *optional*, defaults to `None`):
            A question whose answer is the subject.
        indirect_questions (`tuple[str, ...]`, *optional*, defaults to none):
            Questions that reach the object in a roundabout way.
        role (`"forget"`, `"neighbour"` or `"retain"`, *optional*, defaults to `"forget"`):
            Whether the fact is to be forgotten, lies close to such facts, or is to be kept.
        template (`str` or `None`, *optional*, defaults to `None`):
            A statement with `{subject}` and `{object}`, such as "The capital of {subject} is {object}."; unset, one
            is built from question and answer.
        cluster (`str` or `None`, *optional*, defaults to `None`):
            What the fact is learned and forgotten with, and so drawn with in resamples; unset, its subject. It is for
            subjects that go by several names.

    Raises:
        ValueError: a text is empty or no text, the role is unknown, the template lacks a place, a name stands for
            subject and object, or the object is among its own distractors.
    """

    id: str
    subject: str
    object: str
    question: str
    answer: str
    subject_aliases: tuple[str, ...]
    object_aliases: tuple[str, ...]
    relation: str
    paraphrases: tuple[str, ...] = ()
    distractors: tuple[str, ...] = ()
    reverse_question: str | None = None
    indirect_questions: tuple[str, ...] = ()
    role: Role = "forget"
    template: str | None = None
    cluster: str | None = None

    def __post_init__(self) -> None:
        for name in ("id", "subject", "object", "question", "answer", "relation"):
            self._require_text(name, getattr(self, name))
        for name in ("reverse_question", "template", "cluster"):
            if getattr(self, name) is not None:
                self._require_text(name, getattr(self, name))
        for name in _LISTS:
            values = getattr(self, name)
            if not isinstance(values, tuple):
                raise ValueError(f"`{name}` of fact {self.id!r} is {values!r}: give a list of texts, [] for none.")
            for value in values:
                self._require_text(name, value)
        if self.role not in get_args(Role):
            raise ValueError(f"Fact {self.id!r}: {unknown('role', str(self.role), get_args(Role))}")
        if self.template is not None and not all(place in self.template for place in ("{subject}", "{object}")):
            raise ValueError(
                f"`template` of fact {self.id!r} is {self.template!r}: write a statement with {{subject}} and "
                "{object}."
            )
        self._require_different_names()

    def _require_text(self, name: str, value: Any) -> None:
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"`{name}` of fact {self.id!r} is {value!r}: give a text that is not empty.")

    def _require_different_names(self) -> None:
        objects = {_folded(name): name for name in self.object_names}
        both = [name for name in self.subject_names if _folded(name) in objects]
        if both:
            raise ValueError(
                f"Fact {self.id!r} has {both[0]!r} as a name of subject and object, which cannot be told apart in a "
                "text: remove the name from one of them, or leave the fact out."
            )
        wrong = [name for name in self.distractors if _folded(name) in objects]
        if wrong:
            raise ValueError(
                f"Fact {self.id!r} has its own object {wrong[0]!r} among its distractors: name wrong objects only."
            )

    @property
    def subject_names(self) -> tuple[str, ...]:
        """The subject and its aliases, each once."""
        return tuple(dict.fromkeys((self.subject, *self.subject_aliases)))

    @property
    def object_names(self) -> tuple[str, ...]:
        """The object and its aliases, each once."""
        return tuple(dict.fromkeys((self.object, *self.object_aliases)))


_LISTS = ("subject_aliases", "object_aliases", "paraphrases", "distractors", "indirect_questions")
_KEYS = tuple(field.name for field in fields(Fact))
_REQUIRED = tuple(field.name for field in fields(Fact) if field.default is MISSING)


def read_facts(path: str | Path) -> tuple[Fact, ...]:
    """Read facts from a file of JSON lines, in its order.

    Args:
        path: one JSON object per line with the names of `Fact`; those without a default must be there. Empty lines
            are skipped.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is no JSON object, a key is missing or unknown, a value is none that `Fact` takes, two
            facts have the same id, or there is no fact.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}: give a file with one fact per line (`--facts FILE`).")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8 ({error.reason}): save it in that encoding.") from error
    facts = tuple(_fact(line, f"Line {number} of {path}") for number, line in enumerate(lines, 1) if line.strip())
    if not facts:
        raise ValueError(f"{path} has no facts: write one JSON object per line.")
    require_unique_ids(facts, path)
    return facts


def write_facts(path: str | Path, facts: Iterable[Fact]) -> None:
    """Write facts as JSON lines with all keys, so that `read_facts` gives the same facts.

    Raises:
        ValueError: two facts have the same id.
        OSError: the file cannot be written.
    """
    facts = tuple(facts)
    require_unique_ids(facts, path)
    write_text(path, "".join(json.dumps(asdict(fact), ensure_ascii=False) + "\n" for fact in facts))


def require_unique_ids(facts: Iterable[Fact], source: str | Path) -> None:
    """Raise unless every fact has an id of its own.

    Args:
        facts: the facts.
        source: where they come from, for the message.

    Raises:
        ValueError: an id occurs twice; the message names all that do.
    """
    twice = [name for name, times in Counter(fact.id for fact in facts).items() if times > 1]
    if twice:
        raise ValueError(f"{source} has more than one fact with the id {listed(twice)}: give every fact its own id.")


def listed(names: Iterable[str], most: int = 10) -> str:
    """Names as a message lists them: quoted, the first `most` and how many more there are."""
    names = list(names)
    shown = ", ".join(repr(name) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def _fact(line: str, place: str) -> Fact:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{place} is cut or not JSON ({error.msg} at character {error.pos + 1}): mend the line."
        ) from error
    if not isinstance(row, dict):
        raise ValueError(f"{place} is a {type(row).__name__}: write one object with the keys of a fact per line.")
    for key in row:
        if key not in _KEYS:
            raise ValueError(f"{place}: {unknown('key', key, _KEYS)}")
    missing = [key for key in _REQUIRED if key not in row]
    if missing:
        hint = " (an empty list says that there are no other names)" if "aliases" in " ".join(missing) else ""
        raise ValueError(f"{place} lacks {', '.join(f'`{key}`' for key in missing)}: add the keys{hint}.")
    for key in _LISTS:
        if isinstance(row.get(key), list):
            row[key] = tuple(row[key])
    try:
        return Fact(**row)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def _folded(name: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())
