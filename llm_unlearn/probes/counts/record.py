"""How often each fact was met: one record for every source of counts, and its file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from llm_unlearn.files import write_text
from llm_unlearn.probes.facts import listed

Source = Literal["corpus", "index", "counts", "exposures", "proxy"]


@dataclass(frozen=True)
class FactCount:
    """The counts of one fact; what a source does not know is `None`.

    Attributes:
        id (`str`):
            The fact.
        n_so (`float`):
            The main count, 0 or more: how often subject and object were met together, or how often the model was
            trained on the fact, or any popularity.
        n_s, n_o (`float` or `None`):
            Mentions of the subject and of the object.
        d_so (`float` or `None`):
            Documents with both.
        pmi (`float` or `None`):
            Pointwise mutual information of subject and object over documents, in bits; `None`, too, where they
            never share a document.
        approx (`bool`, *optional*, defaults to `False`):
            Whether `n_so` is an estimate.
        interval (`tuple[float, float]` or `None`, *optional*):
            95 % interval of `n_so` where it was estimated from a sample.

    Raises:
        ValueError: a count is negative or no finite number, or the interval does not hold `n_so`.
    """

    id: str
    n_so: float
    n_s: float | None = None
    n_o: float | None = None
    d_so: float | None = None
    pmi: float | None = None
    approx: bool = False
    interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for name in ("n_so", "n_s", "n_o", "d_so"):
            value = getattr(self, name)
            if value is None and name != "n_so":
                continue
            if not _is_number(value) or value < 0:
                raise ValueError(f"`{name}` of fact {self.id!r} is {value!r}: give a number from 0 up.")
        if self.pmi is not None and not _is_number(self.pmi):
            raise ValueError(f"`pmi` of fact {self.id!r} is {self.pmi!r}: give a finite number or None.")
        if self.interval is not None and not self.interval[0] <= self.n_so <= self.interval[1]:
            raise ValueError(f"The interval {self.interval} of fact {self.id!r} does not hold its count {self.n_so}.")

    @property
    def x(self) -> float:
        """The variable of all statistics, log10(1 + n_so), 0 or more."""
        return math.log10(1 + self.n_so)


@dataclass(frozen=True)
class FactCounts:
    """The counts of all facts from one source.

    Attributes:
        source (`"corpus"`, `"index"`, `"counts"`, `"exposures"` or `"proxy"`):
            The kind of source.
        label (`str`):
            What `n_so` is, as the axis of a plot says it: "co-occurrences within 100 tokens",
            "exposures in fine-tuning", "proxy: population".
        counts (`dict[str, FactCount]`):
            The count of each fact by its id.
        provenance (`dict`, *optional*, defaults to nothing):
            Where the numbers come from, for JSON: files with hashes, tokens and documents scanned, window,
            normalisation, versions.

    Raises:
        ValueError: the source is unknown, there is no count, or one is filed under the id of another.
    """

    source: Source
    label: str
    counts: dict[str, FactCount]
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.source not in get_args(Source):
            raise ValueError(f"The source of counts is {self.source!r}: give one of {', '.join(get_args(Source))}.")
        if not self.counts:
            raise ValueError(f"There are no counts from the source {self.source!r}: give one fact or more.")
        for name, count in self.counts.items():
            if name != count.id:
                raise ValueError(f"The count of fact {count.id!r} is filed under {name!r}: use its own id.")

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids, in the order of the source."""
        return tuple(self.counts)

    def __getitem__(self, fact_id: str) -> FactCount:
        """The count of one fact.

        Raises:
            ValueError: there is none.
        """
        self.require([fact_id])
        return self.counts[fact_id]

    def x(self, fact_id: str) -> float:
        """log10(1 + n_so) of one fact.

        Raises:
            ValueError: there is no count of it.
        """
        return self[fact_id].x

    def require(self, ids: Iterable[str]) -> None:
        """Raise unless there is a count of each of these facts.

        Raises:
            ValueError: some are missing; the message names them.
        """
        missing = [fact_id for fact_id in ids if fact_id not in self.counts]
        if missing:
            raise ValueError(
                f"There is no count ({self.label}) of {listed(missing)}: add them to the source of counts, or remove "
                "these facts."
            )

    def select(self, ids: Iterable[str]) -> FactCounts:
        """The counts of these facts alone, in this order.

        Raises:
            ValueError: some are missing, or none was asked for.
        """
        ids = tuple(ids)
        self.require(ids)
        return FactCounts(self.source, self.label, {name: self.counts[name] for name in ids}, self.provenance)

    @property
    def is_constant(self) -> bool:
        """Whether all facts have the same count, with which nothing can correlate."""
        return len({count.n_so for count in self.counts.values()}) == 1

    def require_variation(self) -> None:
        """Raise where all counts are the same; loading does not, since buckets and gates need no variation.

        Raises:
            ValueError: they are.
        """
        if self.is_constant:
            value = next(iter(self.counts.values())).n_so
            raise ValueError(
                f"All {len(self.counts)} facts have the same count ({self.label}: {value:g}), so that nothing can be "
                "correlated with it: give facts of different frequency, or another source with `--counts`."
            )

    def require_scale(self) -> None:
        """Raise where most counts that are not 0 are below 1: log10(1 + n) is all but the same there.

        Raises:
            ValueError: they are.
        """
        above = [count.n_so for count in self.counts.values() if count.n_so > 0]
        below_one = sum(value < 1 for value in above)
        if 2 * below_one > len(above):
            raise ValueError(
                f"Of {len(above)} counts above 0 ({self.label}), {below_one} are below 1 (from {min(above):g} to "
                f"{max(above):g}), and statistics are of log10(1 + count), which hardly differs there: multiply them, "
                "such as to counts per million."
            )

    @property
    def share_zero(self) -> float:
        """Share of facts that were never met, 0 to 1."""
        return sum(count.n_so == 0 for count in self.counts.values()) / len(self.counts)

    @property
    def share_approx(self) -> float:
        """Share of facts whose count is an estimate, 0 to 1."""
        return sum(count.approx for count in self.counts.values()) / len(self.counts)

    @property
    def decades(self) -> float:
        """Span of x, its largest minus its smallest value, in powers of ten."""
        values = [count.x for count in self.counts.values()]
        return max(values) - min(values)


def write_counts(path: str | Path, counts: FactCounts) -> None:
    """Write counts as JSON lines: source, label and provenance on the first, one fact on each of the others.

    Raises:
        OSError: the file cannot be written.
    """
    head = {"source": counts.source, "label": counts.label, "provenance": dict(counts.provenance)}
    rows = [head, *(asdict(count) for count in counts.counts.values())]
    write_text(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def read_counts(path: str | Path) -> FactCounts:
    """Read what `write_counts` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is cut or was written by something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}: give the file that a count was written to.")
    lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    try:
        head, *rows = [json.loads(line) for line in lines]
        counts = [FactCount(**row | {"interval": row["interval"] and tuple(row["interval"])}) for row in rows]
        if len({count.id for count in counts}) < len(counts):
            raise ValueError("a fact has two counts")
        return FactCounts(counts={count.id: count for count in counts}, **head)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is cut or no file of counts ({error}): count again.") from error


def is_counts_file(path: str | Path) -> bool:
    """Whether the first line is one that `write_counts` writes."""
    with Path(path).open(encoding="utf-8-sig", errors="replace") as file:
        try:
            head = json.loads(file.readline())
        except ValueError:
            return False
    return isinstance(head, dict) and set(head) == {"source", "label", "provenance"}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
