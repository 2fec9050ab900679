"""How often a fine-tuning showed each fact to its model: `exposures.json` beside the trained weights.

A row states a fact. Where rows have the columns `author`, `attribute` and `value` (the bundled world), all rows that
agree in them state one fact in different words; any other row is a fact of its own. Facts are kept as hashes, so that
the file of a published model names nobody.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_unlearn.data.sources import EXAMPLE_FORMS, form_of
from llm_unlearn.files import write_json

FILE_NAME = "exposures.json"
SCHEMA = "llm-unlearn/exposures/1"
FACT_COLUMNS = ("author", "attribute", "value")


def key_of_fact(author: str, attribute: str, value: str) -> str:
    """The key of a fact that is told in many wordings: 32 hexadecimal digits of a SHA-256."""
    return _hash("fact", [author, attribute, value])


def key_of_text(*texts: Any) -> str:
    """The key of a row that is a fact of its own, by its question and answer, or the columns of another form."""
    return _hash("text", list(texts))


def key_of_row(row: Mapping[str, Any]) -> str:
    """The key of the fact that a training row states.

    Args:
        row: an example in one of the forms of `data.sources`; with `FACT_COLUMNS`, these decide.
    """
    if all(row.get(column) not in (None, "") for column in FACT_COLUMNS):
        return key_of_fact(*(str(row[column]) for column in FACT_COLUMNS))
    return key_of_text(*(row[column] for column in EXAMPLE_FORMS[form_of(row)]))


def _hash(kind: str, values: list[Any]) -> str:
    text = json.dumps([kind, *values], ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Exposures:
    """What fine-tuning has shown a model.

    Attributes:
        counts (`Mapping[str, float]`):
            Per fact (see `key_of_row`) the rows that state it, times the epochs trained: whole numbers after whole
            epochs. A fact that is not there was never shown.
        runs (`tuple[dict, ...]`):
            Per fine-tuning, the earliest first: `rows`, `facts`, `epochs`, and `exact`, which is False where the last
            epoch is not whole (the count of a row is then the mean over all rows) or batches dropped rows.
    """

    counts: Mapping[str, float]
    runs: tuple[dict[str, Any], ...] = field(default=())

    @classmethod
    def of_run(cls, rows_of: Mapping[str, int], epochs: float, drops_rows: bool = False) -> "Exposures":
        """What one fine-tuning has shown.

        Args:
            rows_of: per fact the number of rows that state it.
            epochs: passes over the rows, of a resumed run all of them, >= 0.
            drops_rows: whether batches that were not full were left out.
        """
        epochs = round(float(epochs), 6)
        run = {
            "rows": sum(rows_of.values()),
            "facts": len(rows_of),
            "epochs": epochs,
            "exact": epochs.is_integer() and not drops_rows,
        }
        return cls({key: _plain(rows * epochs) for key, rows in rows_of.items()}, (run,))

    @property
    def exact(self) -> bool:
        """Whether every count is."""
        return all(run["exact"] for run in self.runs)

    def after(self, earlier: "Exposures | None") -> "Exposures":
        """Both together, for a model that had been fine-tuned before."""
        if earlier is None:
            return self
        keys = dict.fromkeys([*earlier.counts, *self.counts])
        both = {key: _plain(earlier.counts.get(key, 0) + self.counts.get(key, 0)) for key in keys}
        return Exposures(both, (*earlier.runs, *self.runs))

    def write(self, folder: str | Path) -> Path:
        """Write `exposures.json` into a folder, whole or not at all; returns the file.

        Raises:
            OSError: it cannot be written.
        """
        path = Path(folder) / FILE_NAME
        write_json(path, {"schema": SCHEMA, "runs": list(self.runs), "counts": dict(self.counts)})
        return path

    @classmethod
    def read(cls, path: str | Path) -> "Exposures":
        """Read such a file, or that of a model folder.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged, or another file.
        """
        path = Path(path)
        path = path / FILE_NAME if path.is_dir() else path
        if not path.is_file():
            raise FileNotFoundError(
                f"There is no {path}: fine-tune with `llm-unlearn run finetune`, which writes {FILE_NAME} beside the "
                "model, or give counts from another source."
            )
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
            if saved["schema"] != SCHEMA:
                raise ValueError(f"its schema is {saved['schema']!r}, not {SCHEMA!r}")
            counts = {str(key): float(value) for key, value in saved["counts"].items()}
            if not all(0 <= count < float("inf") for count in counts.values()):
                raise ValueError("a count is negative or not finite")
            return cls({key: _plain(count) for key, count in counts.items()}, tuple(saved["runs"]))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{path} is cut or no record of exposures ({error}): fine-tune again.") from error

    @classmethod
    def found(cls, folder: str | Path | None) -> "Exposures | None":
        """That of a model folder, None where it has none."""
        return cls.read(folder) if folder is not None and (Path(folder) / FILE_NAME).is_file() else None


def rows_per_fact(rows: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """How many rows state each fact, in the order of their first."""
    return dict(Counter(key_of_row(row) for row in rows))


def _plain(count: float) -> float:
    """A whole number as one."""
    count = round(count, 6)
    return int(count) if float(count).is_integer() else count
