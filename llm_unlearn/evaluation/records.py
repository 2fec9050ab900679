"""One number of a report, with all that must be said beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NO_REFERENCE = "not measured: no reference report; make one with `llm-unlearn eval --model RETAIN ...`"
"""Why the retain model's values, and the targets taken from them, are missing."""

NO_BEFORE = "not measured: the model before unlearning was not evaluated"
"""Why its values are missing."""


@dataclass(frozen=True)
class MetricRecord:
    """One number of a report.

    Attributes:
        value: mean over the items, or the metric of the whole model; None where it was not measured.
        ci95: bootstrap 95 % interval over the items; None without a value, with fewer than two items, and for
            p-values, whose spread the statistic beside them shows.
        n: number of items.
        higher_is_better: None where neither direction is better.
        range: lowest and highest possible value; None for no bound.
        target: the value to reach, the retain model's or the one before unlearning; None where that is unknown.
        not_measured: why there is no value; None where there is one.
        variant: which published definition it follows (`conventions`).
        details: what must stand beside the value, such as the parts of an aggregate or ``left_out``, the number of
            rows that lack what it needs.
    """

    value: float | None
    ci95: tuple[float, float] | None
    n: int
    higher_is_better: bool | None
    range: tuple[float | None, float | None]
    target: float | None = None
    not_measured: str | None = None
    variant: str = "fixed"
    details: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON; `not_measured` and `details` only where they say something."""
        record = dataclasses.asdict(self)
        return {key: value for key, value in record.items() if value is not None or key not in _OPTIONAL}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> MetricRecord:
        """Undo `to_dict`."""
        interval = record["ci95"]
        return cls(**{**record, "range": tuple(record["range"]), "ci95": None if interval is None else tuple(interval)})


_OPTIONAL = ("not_measured", "details")
