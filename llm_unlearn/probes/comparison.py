"""From measurements of two models to rows, buckets and statistics; arrays in, a `ProbeResult` out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from llm_unlearn.probes.buckets import ZERO, Bucket
from llm_unlearn.probes.counts.record import FactCounts
from llm_unlearn.probes.disagreement import (
    beaten_options,
    disagree,
    forgetting,
    gates,
    gone_by_generation,
    gone_by_probability,
    knows,
    verdict_on_statements,
)
from llm_unlearn.probes.facts import Fact
from llm_unlearn.probes.measurement import PROBES, FactMeasurement
from llm_unlearn.probes.records import OUTCOMES, Association, BucketRow, Estimate, FactRow, Gate, ProbeResult
from llm_unlearn.probes.settings import ProbeSettings
from llm_unlearn.probes.statistics import Resampling

Protocol = Literal["mixed", "bucket-wise"]
Measured = Mapping[str, FactMeasurement]
"""Measurements of one model by fact id."""

# What each gate decides about, in the means of a bucket.
_GATED = {"p2": ("p2", "p2_margin", "p2_twin_margin"), "p3": ("p3", "p3_pairs", "p3_rank", "p3_options")}


class Comparison:
    """The base model against the model of one run, or of one run per bucket.

    Args:
        facts: all facts.
        counts: of the facts to be forgotten, at least.
        buckets: of the facts to be forgotten.
        before: measurements of the base.
        after: measurements by run. In the bucket-wise protocol a run is named after its bucket.
        protocol: "mixed" with one run, or "bucket-wise".
        settings: of the probe.
    """

    def __init__(
        self,
        facts: Sequence[Fact],
        counts: FactCounts,
        buckets: Sequence[Bucket],
        before: Measured,
        after: Mapping[str, Measured],
        protocol: Protocol,
        settings: ProbeSettings,
    ):
        self.facts = facts
        self.counts = counts
        self.before = before
        self.after = after
        self.protocol = protocol
        self.settings = settings
        self.bucket_of = {fact_id: bucket.name for bucket in buckets for fact_id in bucket.ids}
        self.known = {fact.id for fact in facts if knows(before[fact.id], settings)}
        to_forget = [before[fact_id] for fact_id in self.bucket_of if fact_id in self.known]
        self.gates: dict[str, Gate] = gates(to_forget, settings.gate)
        self.rows = tuple(row for fact in facts for row in self._rows(fact))
        runs = {bucket.name: bucket.name if protocol == "bucket-wise" else next(iter(after)) for bucket in buckets}
        self.buckets = tuple(
            self._bucket(bucket, runs[bucket.name]) for bucket in buckets if runs[bucket.name] in after
        )

    def result(self, warnings: Sequence[str], provenance: Mapping[str, Any]) -> ProbeResult:
        """All of it together."""
        verdicts = {
            name: verdict_on_statements(measured[fact_id] for fact_id in self.bucket_of if fact_id in self.known)
            for name, measured in {"before": self.before, **self.after}.items()
        }
        return ProbeResult(
            label=self.counts.label,
            protocol=self.protocol,
            rows=self.rows,
            buckets=self.buckets,
            disagreement=disagree(self._known_rows(), self.gates["p2"].passed),
            associations={outcome: self._associate(outcome) for outcome in OUTCOMES},
            gates=self.gates,
            statements={name: verdict for name, verdict in verdicts.items() if verdict is not None},
            warnings=tuple(warnings),
            settings=self.settings.to_json(),
            seeds=dict.fromkeys(
                ("wrong_objects", "samples", "equal_size", "resamples", "permutations"), self.settings.seed
            ),
            provenance=provenance,
        )

    def _rows(self, fact: Fact) -> list[FactRow]:
        if fact.role == "forget" and self.protocol == "bucket-wise":
            own = self.bucket_of.get(fact.id)
            return [self._row(fact, own)] if own in self.after else []
        return [self._row(fact, run) for run in self.after]

    def _row(self, fact: Fact, run: str) -> FactRow:
        before, after = self.before[fact.id], self.after[run][fact.id]
        count = self.counts.counts.get(fact.id)
        known = fact.id in self.known
        uses_p2 = self.gates["p2"].passed
        return FactRow(
            id=fact.id,
            subject=fact.subject,
            cluster=fact.cluster or fact.subject,
            object=fact.object,
            relation=fact.relation,
            role=fact.role,
            question=fact.question,
            answer=fact.answer,
            bucket=self.bucket_of.get(fact.id),
            run=run,
            count=None if count is None else count.n_so,
            x=None if count is None else count.x,
            approx=None if count is None else count.approx,
            known=known,
            before=before,
            after=after,
            f_p1=forgetting(before.p1, after.p1),
            f_generation=forgetting(before.generation, after.generation),
            prob_forgotten=gone_by_probability(before, after, self.settings, uses_p2) if known else None,
            gen_forgotten=gone_by_generation(after, self.settings) if known else None,
        )

    def _known_rows(self, bucket: str | None = None) -> list[FactRow]:
        rows = [row for row in self.rows if row.known and row.bucket is not None]
        return rows if bucket is None else [row for row in rows if row.bucket == bucket]

    def _resampling(self, rows: Sequence[FactRow]) -> Resampling:
        return Resampling(
            [row.cluster for row in rows],
            resamples=self.settings.resamples,
            permutations=self.settings.permutations,
            seed=self.settings.seed,
        )

    def _bucket(self, bucket: Bucket, run: str) -> BucketRow:
        rows = self._known_rows(bucket.name)
        means = {when: self._means([getattr(row, when) for row in rows]) for when in ("before", "after")}
        return BucketRow(
            name=bucket.name,
            lowest=bucket.lowest,
            highest=bucket.highest,
            run=run,
            n=len(bucket.ids),
            n_known=len(rows),
            x=_mean([row.x for row in rows]),
            confidence=_mean([row.confidence for row in rows]),
            answer_tokens=_mean([row.answer_tokens for row in rows]),
            **means,
            forgetting={outcome: self._mean_forgetting(rows, outcome) for outcome in OUTCOMES},
            forgotten={
                "prob": _mean([row.prob_forgotten for row in rows]),
                "gen": _mean([row.gen_forgotten for row in rows]),
            },
            drops=self._drops(bucket.name, run),
            disagreement=disagree(rows, self.gates["p2"].passed),
        )

    def _means(self, measured: Sequence[FactMeasurement]) -> dict[str, float | None]:
        means = {name: _mean([getattr(one, name) for one in measured]) for name in PROBES}
        verdict = verdict_on_statements(measured)
        means["p2"] = verdict.balanced_accuracy if verdict else None
        means["p3"] = _mean([None if one.p3_rank is None else one.p3_rank == 1 for one in measured])
        means["p3_pairs"] = _mean([beaten_options(one) for one in measured])
        means["p4"] = _mean([one.p4_rank == 1 for one in measured])
        return means | {name: None for gate, names in _GATED.items() if not self.gates[gate].passed for name in names}

    def _drops(self, bucket: str, run: str) -> dict[str, Estimate]:
        """What the run of a bucket took from known facts that it was not to take."""
        others = {role: [row for row in self.rows if (row.role, row.run) == (role, run)] for role in _KEPT_ROLES}
        if self.protocol == "bucket-wise":
            elsewhere = {fact_id for fact_id, own in self.bucket_of.items() if own != bucket}
            others["others"] = [self._row(fact, run) for fact in self.facts if fact.id in elsewhere]
        return {
            f"{name}/{outcome}": self._mean_forgetting([row for row in rows if row.known], outcome)
            for name, rows in others.items()
            for outcome in OUTCOMES
        }

    def _mean_forgetting(self, rows: Sequence[FactRow], outcome: str) -> Estimate:
        rows = [row for row in rows if row.forgetting(outcome) is not None]
        return self._resampling(rows).mean(np.array([row.forgetting(outcome) for row in rows], dtype=float))

    def _associate(self, outcome: str) -> Association:
        rows = [row for row in self._known_rows() if row.forgetting(outcome) is not None]
        above = [bucket.name for bucket in self.buckets if bucket.name != ZERO]
        columns = {
            "x": [row.x for row in rows],
            "forgetting": [row.forgetting(outcome) for row in rows],
            "confidence": [row.confidence for row in rows],
            "length": [row.answer_tokens for row in rows],
            # A single bucket is neither the lowest nor the highest.
            "low": [len(above) > 1 and row.bucket == above[0] for row in rows],
            "high": [len(above) > 1 and row.bucket == above[-1] for row in rows],
        }
        arrays = {name: np.array(values, dtype=float) for name, values in columns.items()}
        return self._resampling(rows).associate(**arrays)


_KEPT_ROLES = ("neighbour", "retain")


def _mean(values: Sequence[float | bool | None]) -> float | None:
    measured = [float(value) for value in values if value is not None]
    return sum(measured) / len(measured) if measured else None
