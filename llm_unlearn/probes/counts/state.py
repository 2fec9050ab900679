"""What a pass over a corpus has counted so far, in a file, so that a pass that was cut off goes on from there."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llm_unlearn.files import write_text
from llm_unlearn.probes.counts.tally import Tally

SAVE_SECONDS = 10.0
"""Seconds after which the file is written again."""


@dataclass(frozen=True, eq=False)
class Report:
    """What was counted in a unit since the last report.

    Attributes:
        unit: its place in the list of units.
        position: where it goes on; `None` at its end.
        read: bytes of the file that were read.
        tally: the counts.
    """

    unit: int
    position: int | None
    read: int
    tally: Tally


class PassState:
    """The counts so far, and where every unit goes on.

    Args:
        path: the file that keeps them; `None` keeps nothing.
        identity: what the pass counts and in what, for JSON: a state of another pass is refused.
        positions: where the units begin.
        total: no counts yet.

    Raises:
        ValueError: the file is damaged, or belongs to another pass.
    """

    def __init__(
        self, path: str | Path | None, identity: dict[str, Any], positions: Sequence[int], total: Tally
    ) -> None:
        self._path = None if path is None else Path(path)
        # As a file gives it back.
        self._identity = json.loads(json.dumps(identity))
        self.positions: list[int | None] = list(positions)
        self.total = total
        self.read = 0
        self._saved = time.monotonic()
        if self._path is not None and self._path.exists():
            self._load(self._path)

    def add(self, report: Report) -> None:
        """Take in a report, and write the file where it is time.

        Raises:
            OSError: it cannot be written.
        """
        self.total = self.total + report.tally
        self.read += report.read
        self.positions[report.unit] = report.position
        if time.monotonic() - self._saved >= SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Write the file.

        Raises:
            OSError: it cannot be written.
        """
        if self._path is not None:
            total = vars(self.total) | {"facts": self.total.facts.tolist()}
            state = {"identity": self._identity, "positions": self.positions, "read": self.read, "total": total}
            write_text(self._path, json.dumps(state))
            self._saved = time.monotonic()

    def _load(self, path: Path) -> None:
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            identity, positions, read = (state[key] for key in ("identity", "positions", "read"))
            total = Tally(**state["total"] | {"facts": np.array(state["total"]["facts"], dtype=np.int64)})
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is cut or no state of a count ({error}): remove it to begin anew.") from error
        differing = [name for name in self._identity if identity.get(name) != self._identity[name]]
        if differing:
            raise ValueError(
                f"{path} is the state of another count, with other {' and '.join(differing)}: remove it to begin anew, "
                "or give another file for the state."
            )
        self.positions, self.total, self.read = positions, total, read
