"""The record of a request: what to forget, told in a sentence and by examples, and what must survive.

A request names knowledge, not training points (arXiv 2506.11253): whoever asks need not know which rows of which data
set taught it. It is validated when it is made, kept as JSON or YAML beside the adapter it leads to, and identified by a
hash of its content, so that a report can be tied to it without repeating it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from llm_unlearn.files import write_text
from llm_unlearn.suggest import unknown

Example = dict[str, str]

_EXAMPLE_KEYS = ("question", "answer")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_YAML_ENDINGS = (".yaml", ".yml")


@dataclass(frozen=True)
class KnowledgeRequest:
    """What a model should no longer know.

    Lists become tuples and examples are copied, so that a request does not change after its checks.

    Attributes:
        id (`str`):
            Name of the request, also of its adapter's folder: 1 to 100 letters, digits, `.`, `_` and `-`, the first a
            letter or digit. It is published (`redacted`), so let it name nobody.
        statement (`str`):
            What is to be forgotten, in one sentence.
        exemplars (`tuple[dict[str, str], ...]`, *optional*, defaults to `()`):
            Examples to forget, each with a `question` and an `answer`. They stand for the knowledge and may be few.
        aliases (`tuple[str, ...]`, *optional*, defaults to `()`):
            Other names of the subject.
        retention (`tuple[dict[str, str], ...]`, *optional*, defaults to `()`, as in the paper, where a request
            brings no retain set):
            Examples that must survive, in the form of `exemplars`. None of them may be an exemplar.

    Raises:
        ValueError: a field is missing, empty or of another kind.
    """

    id: str
    statement: str
    exemplars: tuple[Example, ...] = ()
    aliases: tuple[str, ...] = ()
    retention: tuple[Example, ...] = ()

    def __post_init__(self) -> None:
        _check_text("`id`", self.id)
        if not _ID.fullmatch(self.id):
            raise ValueError(
                f"`id` {self.id!r} cannot name a folder: use 1 to 100 letters, digits, `.`, `_` and `-`, the first a "
                "letter or digit."
            )
        _check_text("`statement`", self.statement)
        for name in ("exemplars", "retention"):
            examples = [_checked_example(name, *item) for item in enumerate(_checked_list(name, getattr(self, name)))]
            object.__setattr__(self, name, tuple(examples))
        aliases = _checked_list("aliases", self.aliases)
        for number, alias in enumerate(aliases):
            _check_text(f"`aliases[{number}]`", alias)
        object.__setattr__(self, "aliases", tuple(aliases))
        for number, example in enumerate(self.retention):
            if example in self.exemplars:
                raise ValueError(
                    f"`retention[{number}]` is also `exemplars[{self.exemplars.index(example)}]`, and nothing can be "
                    "forgotten and retained at once: remove it from one of them."
                )

    @property
    def hash(self) -> str:
        """SHA-256 of the content, in hexadecimal: independent of file format, white space, key order and omitted
        empty fields."""
        # Empty fields are left out, so that requests keep their hash when the record gains optional fields.
        content = {name: value for name, value in self._as_dict().items() if value}
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode("ascii")).hexdigest()

    def redacted(self) -> dict[str, str | int]:
        """What may be published: `id`, `hash` and the numbers of examples and names, none of the content.

        The hash lets whoever has the request prove that it is the one; it also lets whoever guesses the whole request
        to the letter confirm the guess.
        """
        return {
            "id": self.id,
            "hash": self.hash,
            "exemplars": len(self.exemplars),
            "aliases": len(self.aliases),
            "retention": len(self.retention),
        }

    def to_json(self) -> str:
        """The request as indented JSON, which `from_json` reads."""
        return json.dumps(self._as_dict(), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> KnowledgeRequest:
        """Read a request from JSON text; for a file, see `load`.

        Raises:
            ValueError: the text is not JSON, or not a valid request.
        """
        return cls._parse(text, "The request", is_yaml=False)

    def save(self, path: str | os.PathLike) -> Path:
        """Write the request, as YAML where `path` ends in .yaml or .yml, else as JSON; never half of it.

        Returns:
            `Path`: the file.

        Raises:
            ValueError: `path` ends in neither .json nor .yaml nor .yml.
        """
        path = Path(path).expanduser()
        content = self.to_json()
        if _is_yaml(path):
            content = yaml.safe_dump(json.loads(content), sort_keys=False, allow_unicode=True)
        write_text(path, content)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike) -> KnowledgeRequest:
        """Read a request from a .json, .yaml or .yml file.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is of another kind, damaged, or not a valid request.
        """
        path = Path(path).expanduser()
        is_yaml = _is_yaml(path)
        if not path.is_file():
            raise FileNotFoundError(f"There is no request file {path}: give an existing one with `--request`.")
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not text in UTF-8 ({error.reason}): save it in that encoding.") from error
        return cls._parse(text, str(path), is_yaml)

    @classmethod
    def _parse(cls, text: str, origin: str, is_yaml: bool) -> KnowledgeRequest:
        try:
            content = yaml.safe_load(text) if is_yaml else json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{origin} is cut or not JSON ({error.msg}): mend line {error.lineno}.") from error
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1
            raise ValueError(f"{origin} is not YAML ({error.problem}): mend line {line}.") from error
        except yaml.YAMLError as error:
            raise ValueError(f"{origin} is not YAML ({' '.join(str(error).split())}): mend that place.") from error
        try:
            return cls._from_dict(content)
        except ValueError as error:
            raise ValueError(f"{origin} is not a valid request: {error}") from error

    @classmethod
    def _from_dict(cls, content: Any) -> KnowledgeRequest:
        names = [field.name for field in fields(cls)]
        if not isinstance(content, Mapping):
            raise ValueError(f"it is {_kind(content)}, but it needs the fields {', '.join(names)}.")
        _check_keys("field", content, names)
        for name in ("id", "statement"):
            if name not in content:
                raise ValueError(f"`{name}` is missing: add it.")
        return cls(**content)

    def _as_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "statement": self.statement,
            "exemplars": [dict(example) for example in self.exemplars],
            "aliases": list(self.aliases),
            "retention": [dict(example) for example in self.retention],
        }


def _is_yaml(path: Path) -> bool:
    if path.suffix not in (".json", *_YAML_ENDINGS):
        raise ValueError(f"{path} is of no known kind: name a request file .json, .yaml or .yml.")
    return path.suffix in _YAML_ENDINGS


def _kind(value: Any) -> str:
    return "empty" if value is None else f"{value!r:.40} of type {type(value).__name__}"


def _check_text(name: str, value: Any) -> None:
    if not isinstance(value, str) or not value.strip():
        given = "empty" if value is None or isinstance(value, str) else _kind(value)
        raise ValueError(f"{name} is {given}: give it text, in quotes if YAML reads it as something else.")


def _checked_list(name: str, value: Any) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"`{name}` is {_kind(value)}: give a list, or leave the field out.")
    return list(value)


def _checked_example(name: str, number: int, example: Any) -> Example:
    place = f"{name}[{number}]"
    if not isinstance(example, Mapping):
        raise ValueError(f"`{place}` is {_kind(example)}: give a `question` and an `answer`.")
    _check_keys(f"key of `{place}`", example, _EXAMPLE_KEYS)
    for key in _EXAMPLE_KEYS:
        _check_text(f"`{place}.{key}`", example.get(key))
    return {key: example[key] for key in _EXAMPLE_KEYS}


def _check_keys(what: str, content: Mapping[Any, Any], known: Collection[str]) -> None:
    for key in content:
        if key not in known:
            raise ValueError(unknown(what, str(key), known))
