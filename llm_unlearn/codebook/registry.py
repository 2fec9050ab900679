"""Which codes are deleted, for whom, and on what grounds: one record per request, kept as JSON beside the codebook.

The codes in force are the union over the active requests, so that requests compose in any order, a revoked one gives
back what no other holds, and doing either twice changes nothing. A purged request stays in force, unless its codes were
dropped: of a gate only the triggers' vectors are gone, for its codes serve other texts too.
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
SCHEMA = "llm-unlearn/codebook-requests/2"

Mode = Literal["ablate", "refill", "gated"]
Status = Literal["active", "revoked", "purged"]


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
    status: Status = "active"
    created: str | None = None
    grounds: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, valid in (("mode", get_args(Mode)), ("status", get_args(Status))):
            if getattr(self, name) not in valid:
                raise ValueError(unknown(name, str(getattr(self, name)), valid))
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
        """The active requests, and purged ones whose codes are still there."""
        return [r for r in self if r.status == "active" or (r.status == "purged" and r.mode != "refill")]

    def add(self, record: DeletionRecord) -> None:
        """Take up a request; the same id again replaces it, unless it was purged.

        Raises:
            ValueError: a purged request has this id.
        """
        if record.id in self._records and self._records[record.id].status == "purged":
            raise ValueError(f"Request {record.id!r} was purged, which cannot be undone: give the new one another id.")
        self._records[record.id] = record

    def set_status(self, request_id: str, status: Status) -> None:
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
            if record.status == "purged" and record.mode == "refill":
                continue
            left: dict[str, Any] = {
                name: tuple(place[code] for code in getattr(record, name) if code in place)
                for name in ("codes", "triggers")
            }
            if not left["codes"] or bool(left["triggers"]) != bool(record.triggers):
                left = {"mode": "refill", "triggers": (), "threshold": None, "status": "purged"}
            elif "codes" in record.grounds:
                rows = [row | {"code": place[row["code"]]} for row in record.grounds["codes"] if row["code"] in place]
                left["grounds"] = record.grounds | {"codes": rows}
            self._records[record.id] = replace(record, **left)

    def deleted(self) -> dict[str, Any]:
        """The union of the requests in force, as the arguments of `CodebookBottleneck.set_deleted`."""
        union = {
            mode: sorted({code for record in self.in_force if record.mode == mode for code in record.codes})
            for mode in ("refill", "ablate")
        }
        gates = [Gate(r.triggers, r.codes, r.threshold) for r in self.in_force if r.mode == "gated"]
        return {"refilled": union["refill"], "ablated": union["ablate"], "gates": gates}

    def redacted(self) -> "DeletionRegistry":
        """What may be published: which codes are deleted and how, not for how many, whom, when or on what grounds."""
        deleted = self.deleted()
        union = [("refill", deleted["refilled"]), ("ablate", deleted["ablated"])]
        gates = [
            DeletionRecord(f"gate-{number}", tuple(gate.codes), "gated", tuple(gate.triggers), gate.threshold)
            for number, gate in enumerate(deleted["gates"], 1)
        ]
        return DeletionRegistry([*(DeletionRecord(mode, tuple(codes), mode) for mode, codes in union if codes), *gates])

    def content(self, codebook_hash: str) -> dict[str, Any]:
        """What `requests.json` holds."""
        return {"schema": SCHEMA, "codebook": codebook_hash, "requests": [asdict(record) for record in self]}

    def save(self, folder: Path, codebook_hash: str) -> None:
        """Write `requests.json`."""
        write_json(folder / REGISTRY_NAME, self.content(codebook_hash))

    @classmethod
    def load(cls, folder: Path, codebook_hash: str) -> "DeletionRegistry":
        """Read `requests.json`; a folder without one has no requests.

        Raises:
            ValueError: the requests were made for other weights, whose codes mean something else, or the file is none
                of this form.
        """
        path = folder / REGISTRY_NAME
        if not path.is_file():
            return cls()
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.get("schema") != SCHEMA:
            raise ValueError(
                f"{path} has the schema {content.get('schema')!r}, and {SCHEMA!r} is read here: remove the file, which "
                "revokes its requests, and apply them anew."
            )
        if content["codebook"] != codebook_hash:
            raise ValueError(
                f"The requests in {path} belong to a codebook with other weights, so their codes would delete "
                "something else: plan and apply them anew on this one."
            )
        try:
            lists = [{name: tuple(record[name]) for name in ("codes", "triggers")} for record in content["requests"]]
            return cls([DeletionRecord(**{**r, **some}) for r, some in zip(content["requests"], lists, strict=True)])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"A request in {path} cannot be read ({error}): take the file from a copy.") from error
