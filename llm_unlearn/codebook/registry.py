"""Which codes are deleted, for whom, and on what grounds: one record per request, kept as JSON beside the codebook.

The codes in force are the union over the active requests, so that requests compose in any order, a revoked one gives
back what no other holds, and doing either twice changes nothing. A purged gate stays in force: its codes serve other
texts too, so that only its triggers' vectors are gone.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from llm_unlearn.codebook.bottleneck import Gate
from llm_unlearn.files import write_json
from llm_unlearn.suggest import unknown

REGISTRY_NAME = "requests.json"
SCHEMA = "llm-unlearn/codebook-requests/1"

Mode = Literal["ablate", "refill", "gated"]


@dataclass(frozen=True)
class DeletionRecord:
    """One request.

    Attributes:
        id: its name.
        codes: the codes deleted for it, ascending.
        mode: how they leave, see `bottleneck`.
        triggers: of mode "gated", the codes whose uses open the gate, ascending.
        threshold: of mode "gated", how many uses of the triggers open it.
        status: "active", "revoked" or "purged".
        created: when it was applied, ISO 8601, UTC.
        grounds: how the codes were chosen and what that did: rule, statistics per code, curve, measurements. Numbers
            and hashes only, never a text.
    """

    id: str
    codes: tuple[int, ...]
    mode: Mode = "ablate"
    triggers: tuple[int, ...] = ()
    threshold: float | None = None
    status: Literal["active", "revoked", "purged"] = "active"
    created: str | None = None
    grounds: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ValueError(unknown("mode", str(self.mode), get_args(Mode)))
        if not self.codes:
            raise ValueError(f"Request {self.id!r} names no code, so there is nothing to delete.")
        is_gate = self.mode == "gated"
        if is_gate != bool(self.triggers) or is_gate != (self.threshold is not None):
            raise ValueError(
                f"Request {self.id!r} has mode {self.mode!r}, {len(self.triggers)} triggers and threshold "
                f"{self.threshold}: both belong to the mode 'gated', which needs them."
            )

    @property
    def erasable(self) -> tuple[int, ...]:
        """The codes whose vectors `purge` removes: those that serve this request alone."""
        return self.triggers if self.mode == "gated" else self.codes


class DeletionRegistry:
    """The requests of one codebook, in the order they came.

    Args:
        records: requests to begin with.
    """

    def __init__(self, records: Sequence[DeletionRecord] = ()):
        self._records = {record.id: record for record in records}

    def __iter__(self):
        return iter(self._records.values())

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, request_id: str) -> DeletionRecord:
        """The record of a request.

        Raises:
            KeyError: there is none of this id.
        """
        if request_id not in self._records:
            raise KeyError(unknown("request", request_id, self._records))
        return self._records[request_id]

    @property
    def active(self) -> list[DeletionRecord]:
        """The requests that can be revoked."""
        return [record for record in self if record.status == "active"]

    @property
    def in_force(self) -> list[DeletionRecord]:
        """The active requests, and gates that were purged."""
        return [r for r in self if r.status == "active" or (r.status == "purged" and r.mode == "gated")]

    def add(self, record: DeletionRecord) -> None:
        """Take up a request; the same id again replaces it, unless it was purged.

        Raises:
            ValueError: a purged request has this id.
        """
        if record.id in self._records and self._records[record.id].status == "purged":
            raise ValueError(f"Request {record.id!r} was purged, which cannot be undone: give the new one another id.")
        self._records[record.id] = record

    def set_status(self, request_id: str, status: Literal["active", "revoked", "purged"]) -> None:
        """Change the status of a request.

        Raises:
            KeyError: there is none of this id.
            ValueError: it was purged.
        """
        record = self[request_id]
        if record.status == "purged" and status != "purged":
            raise ValueError(f"Request {request_id!r} was purged, which cannot be undone.")
        self._records[request_id] = replace(record, status=status)

    def renumber(self, kept: Sequence[int]) -> None:
        """Follow codes to their new numbers after some were dropped; a request of which none is left is purged with
        them, as one of mode "refill".

        Args:
            kept: the old numbers of the codes that are left, in their new order.
        """
        place = {old: new for new, old in enumerate(kept)}
        for record in list(self):
            if record.status == "purged" and record.mode != "gated":
                continue
            left = {
                name: tuple(place[code] for code in getattr(record, name) if code in place)
                for name in ("codes", "triggers")
            }
            if not left["codes"] or bool(left["triggers"]) != bool(record.triggers):
                left = {"mode": "refill", "triggers": (), "threshold": None, "status": "purged"}
            self._records[record.id] = replace(record, **left)

    def deleted(self) -> dict[str, Any]:
        """The union of the requests in force, as the arguments of `CodebookBottleneck.set_deleted`."""
        union = {
            mode: sorted({code for record in self.active if record.mode == mode for code in record.codes})
            for mode in ("refill", "ablate")
        }
        gates = [Gate(r.triggers, r.codes, r.threshold) for r in self.in_force if r.mode == "gated"]
        return {"refilled": union["refill"], "ablated": union["ablate"], "gates": gates}

    def save(self, folder: Path, codebook_hash: str) -> None:
        """Write `requests.json`."""
        content = {"schema": SCHEMA, "codebook": codebook_hash, "requests": [asdict(record) for record in self]}
        write_json(folder / REGISTRY_NAME, content)

    @classmethod
    def load(cls, folder: Path, codebook_hash: str) -> "DeletionRegistry":
        """Read `requests.json`; a folder without one has no requests.

        Raises:
            ValueError: the requests were made for other weights, whose codes mean something else.
        """
        path = folder / REGISTRY_NAME
        if not path.is_file():
            return cls()
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["codebook"] != codebook_hash:
            raise ValueError(
                f"The requests in {path} belong to a codebook with other weights, so their codes would delete "
                "something else: plan and apply them anew on this one."
            )
        records = content["requests"]
        return cls(
            [DeletionRecord(**{**r, **{name: tuple(r[name]) for name in ("codes", "triggers")}}) for r in records]
        )
