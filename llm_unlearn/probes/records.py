"""What a comparison of two models records: of each fact, of each bucket, and of the whole.

Everything here is plain data that goes to JSON and comes back equal. A value that was not measured is None, never a
number in its place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from llm_unlearn.probes.measurement import FactMeasurement

OUTCOMES = {"p1": "answer likelihood", "generation": "generated answers"}
"""What forgetting is measured on, and how reports call it."""


@dataclass(frozen=True)
class FactRow:
    """One fact before and after unlearning.

    Attributes:
        id, subject, object, relation, role, question, answer: of the fact.
        cluster: what the fact is drawn with: its own cluster, or else its subject.
        bucket: name of its bucket; None for facts that are not to be forgotten, or were left out to make buckets
            equally large, with which no statistic is about them.
        run: name of the unlearning run whose model gave `after`; of a fact to be forgotten in the bucket-wise protocol
            that of its own bucket.
        count: main count, 0 or more; None for a fact that is not to be forgotten and was not counted.
        x: ``log10(1 + count)``; None without count.
        approx: whether the count is an estimate; None without count.
        known: whether the base model knew it (`disagreement.knows`).
        before, after: measurements of the base and of the unlearned model.
        f_p1: ``(before - after) / before`` of P1: 1 where nothing is left, below 0 where it rose; None for 0 before.
        f_generation: the same of the generation score.
        prob_forgotten: whether probabilities say it is gone; None for facts the base did not know.
        gen_forgotten: whether generated answers say so; None for facts the base did not know.
    """

    id: str
    subject: str
    cluster: str
    object: str
    relation: str
    role: str
    question: str
    answer: str
    bucket: str | None
    run: str
    count: float | None
    x: float | None
    approx: bool | None
    known: bool
    before: FactMeasurement
    after: FactMeasurement
    f_p1: float | None
    f_generation: float | None
    prob_forgotten: bool | None
    gen_forgotten: bool | None

    @property
    def confidence(self) -> float:
        """Base confidence: P1 before unlearning."""
        return self.before.p1

    @property
    def answer_tokens(self) -> int:
        """Answer length in tokens, the end token included."""
        return self.before.answer_tokens

    def forgetting(self, outcome: str) -> float | None:
        """``f_<outcome>``, outcome one of `OUTCOMES`."""
        return {"p1": self.f_p1, "generation": self.f_generation}[outcome]

    def flat(self) -> dict[str, Any]:
        """One row of a table: own columns, then ``before_*`` and ``after_*`` for every probe and the direct answer."""
        own = [field.name for field in dataclasses.fields(self) if field.name not in ("before", "after")]
        row = {name: getattr(self, name) for name in own}
        row |= {"confidence": self.confidence, "answer_tokens": self.answer_tokens, "twin": self.before.twin}
        for when in ("before", "after"):
            measured = getattr(self, when)
            row |= {f"{when}_{name}": value for name, value in measured.values().items()}
            row[f"{when}_text"] = measured.said[0].text
        return row


@dataclass(frozen=True)
class Estimate:
    """A number with all that must be said beside it.

    Attributes:
        value: None where it was not measured.
        ci95: its 95 % interval; None without a value, or where resamples gave no numbers.
        n: facts (or seeds, sizes) it rests on.
        p: two-sided p-value; None where there is none, always so below 20 facts.
        note: why a value or a p-value is missing; None where neither is.
    """

    value: float | None
    ci95: tuple[float, float] | None = None
    n: int = 0
    p: float | None = None
    note: str | None = None

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Estimate:
        """Undo `dataclasses.asdict`, also after JSON."""
        return cls(**{**record, "ci95": None if record["ci95"] is None else tuple(record["ci95"])})


@dataclass(frozen=True)
class Association:
    """How forgetting goes with the count, over the known facts to be forgotten. Frequent is harder: all below 0.

    Attributes:
        spearman: rank correlation of x and F, with a bootstrap interval over facts and a permutation p.
        kendall: tau-b of the same pairs.
        partial: Spearman's correlation given base confidence and answer length.
        slope: change of F per tenfold count.
        gap: mean F of the bucket with the highest counts, less that of the lowest bucket above zero.
    """

    spearman: Estimate
    kendall: Estimate
    partial: Estimate
    slope: Estimate
    gap: Estimate

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Association:
        """Undo `dataclasses.asdict`, also after JSON."""
        return cls(**{name: Estimate.from_dict(estimate) for name, estimate in record.items()})


@dataclass(frozen=True)
class Disagreement:
    """Probabilities and generated answers side by side, over known facts to be forgotten.

    Attributes:
        both: facts that are gone for both families.
        hidden: gone by probability, and still answered.
        apparent: no longer answered, and still probable.
        neither: gone for neither.
        uses_p2: whether True/False statements had a say; else the answer likelihood alone decided.
    """

    both: int
    hidden: int
    apparent: int
    neither: int
    uses_p2: bool

    @property
    def n(self) -> int:
        """Facts in the table."""
        return self.both + self.hidden + self.apparent + self.neither

    @property
    def rate(self) -> float | None:
        """``(hidden + apparent) / n``, in [0, 1]; None without facts."""
        return (self.hidden + self.apparent) / self.n if self.n else None

    @property
    def kappa(self) -> float | None:
        """Cohen's kappa, in [-1, 1]: agreement beyond chance; None without facts, or where chance agrees always."""
        if not self.n:
            return None
        prob, gen = (self.both + self.hidden) / self.n, (self.both + self.apparent) / self.n
        chance = prob * gen + (1 - prob) * (1 - gen)
        return None if chance == 1 else ((self.both + self.neither) / self.n - chance) / (1 - chance)

    def to_dict(self) -> dict[str, Any]:
        """For JSON, with what follows from the four counts."""
        return {**dataclasses.asdict(self), "n": self.n, "rate": self.rate, "kappa": self.kappa}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Disagreement:
        """Undo `to_dict`."""
        return cls(**{field.name: record[field.name] for field in dataclasses.fields(cls)})


@dataclass(frozen=True)
class StatementVerdict:
    """How a model did on the True/False statements of all facts with a false twin, the known ones to be forgotten.

    Attributes:
        true_accuracy: share of true statements it calls true.
        false_accuracy: share of false twins it calls false.
        n: pairs.
        always: the word it gives to (nearly) everything, "True" or "False"; None where it tells them apart.
    """

    true_accuracy: float
    false_accuracy: float
    n: int
    always: Literal["True", "False"] | None

    @property
    def balanced_accuracy(self) -> float:
        """Mean of both, in [0, 1]; .5 is chance, and what a model gets that always says the same."""
        return (self.true_accuracy + self.false_accuracy) / 2

    @property
    def bias(self) -> float:
        """Share of "True" among all answers, less one half: in [-.5, .5], 0 without bias, -.5 for always "False"."""
        return (self.true_accuracy - self.false_accuracy) / 2

    def to_dict(self) -> dict[str, Any]:
        """For JSON, with what follows from the shares."""
        own = dataclasses.asdict(self)
        return {**own, "balanced_accuracy": self.balanced_accuracy, "bias": self.bias}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> StatementVerdict:
        """Undo `to_dict`."""
        return cls(**{field.name: record[field.name] for field in dataclasses.fields(cls)})


@dataclass(frozen=True)
class Gate:
    """Whether a probe counts: only where the base model itself passes it.

    Attributes:
        passed: whether it counts.
        accuracy: of the base on known facts to be forgotten, in [0, 1], chance .5: balanced accuracy for P2; for P3 the
            mean share of wrong options that are less likely than the answer. None without facts that have it.
        n: facts it rests on.
        reason: "not measured: ..." where it does not count; None where it does.
    """

    passed: bool
    accuracy: float | None
    n: int
    reason: str | None


@dataclass(frozen=True)
class BucketRow:
    """One bucket before and after unlearning. All but `n` is over facts the base model knew.

    Attributes:
        name: of the bucket: "zero", "low", ... or its range.
        lowest, highest: smallest and largest count in it.
        run: name of the unlearning run its values come from.
        n: facts.
        n_known: facts the base model knew.
        x: mean of ``log10(1 + count)``; None without known facts, as all that follows.
        confidence: mean P1 of the base.
        answer_tokens: mean length of the answers.
        before, after: means of the probes by name: those of `PROBES` (booleans as shares, ranks as means) and
            "p2" (balanced accuracy of the statements), "p3" (share of facts with rank 1), "p3_pairs" (mean share of
            wrong options less likely than the answer), "p4" (share of first tokens that are the most probable). None
            was not measured: on any fact, or, of P2 and P3, because the base model did not pass its gate.
        forgetting: mean F with interval, by outcome (`OUTCOMES`).
        forgotten: share of facts that are gone, by family, "prob" and "gen".
        drops: what the same run took from others: mean F over known facts, as "neighbour/p1", "neighbour/generation",
            the same for "retain", and for "others", the facts of the other buckets, where each bucket has a run of its
            own. None where there are no such facts.
        disagreement: of the facts in this bucket.
    """

    name: str
    lowest: float
    highest: float
    run: str
    n: int
    n_known: int
    x: float | None
    confidence: float | None
    answer_tokens: float | None
    before: Mapping[str, float | None]
    after: Mapping[str, float | None]
    forgetting: Mapping[str, Estimate]
    forgotten: Mapping[str, float | None]
    drops: Mapping[str, Estimate]
    disagreement: Disagreement

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**dataclasses.asdict(self), "disagreement": self.disagreement.to_dict()}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> BucketRow:
        """Undo `to_dict`, also after JSON."""
        estimates = {
            name: {key: Estimate.from_dict(value) for key, value in record[name].items()}
            for name in ("forgetting", "drops")
        }
        return cls(**{**record, **estimates, "disagreement": Disagreement.from_dict(record["disagreement"])})


@dataclass(frozen=True)
class ProbeResult:
    """What came out of probing one unlearning, or one per bucket, against the base model.

    Attributes:
        label: what was counted, for the axis, such as "co-occurrences within 100 tokens".
        protocol: "mixed" for one run on all buckets, "bucket-wise" for one run per bucket.
        rows: every fact, in the order of the facts. In the bucket-wise protocol neighbours and retained facts once per
            run, and of facts to be forgotten those that have a run of their own.
        buckets: from the lowest counts to the highest.
        disagreement: over all buckets.
        associations: of count and forgetting, by outcome (`OUTCOMES`).
        gates: whether P2 and P3 count, by "p2" and "p3".
        statements: verdict on the statements by model: "before", and each run. Empty without false twins.
        warnings: whole sentences about what limits the result.
        settings: of the probe, as JSON.
        seeds: by what they decide; all equal to the seed of the settings.
        provenance: of the counts and of the models, as JSON: "counts" (their own provenance), "source" (count source),
            "share_zero" and "share_approx" (of facts to be forgotten), "stage" (whether the base was "pretrained" or
            "finetuned" on the facts, None where nobody said), and what the caller added.
    """

    label: str
    protocol: Literal["mixed", "bucket-wise"]
    rows: tuple[FactRow, ...]
    buckets: tuple[BucketRow, ...]
    disagreement: Disagreement
    associations: Mapping[str, Association]
    gates: Mapping[str, Gate]
    statements: Mapping[str, StatementVerdict]
    warnings: tuple[str, ...]
    settings: Mapping[str, Any]
    seeds: Mapping[str, int]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def runs(self) -> tuple[str, ...]:
        """Names of the unlearning runs, in order."""
        return tuple(dict.fromkeys(row.run for row in self.rows))

    def known(self) -> tuple[FactRow, ...]:
        """Rows that the statistics are over: facts to be forgotten, in a bucket, that the base model knew."""
        return tuple(row for row in self.rows if row.bucket is not None and row.known)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        record = dataclasses.asdict(self)
        record["disagreement"] = self.disagreement.to_dict()
        record["buckets"] = [bucket.to_dict() for bucket in self.buckets]
        record["statements"] = {name: verdict.to_dict() for name, verdict in self.statements.items()}
        return record

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> ProbeResult:
        """Undo `to_dict`, also after JSON."""
        # Rows of reports that know no clusters yet have their subjects.
        rows = [
            FactRow(
                **{
                    "cluster": row["subject"],
                    **row,
                    **{when: FactMeasurement.from_dict(row[when]) for when in ("before", "after")},
                }
            )
            for row in record["rows"]
        ]
        return cls(
            **{
                **record,
                "rows": tuple(rows),
                "buckets": tuple(BucketRow.from_dict(bucket) for bucket in record["buckets"]),
                "disagreement": Disagreement.from_dict(record["disagreement"]),
                "associations": {key: Association.from_dict(value) for key, value in record["associations"].items()},
                "gates": {key: Gate(**value) for key, value in record["gates"].items()},
                "statements": {key: StatementVerdict.from_dict(value) for key, value in record["statements"].items()},
                "warnings": tuple(record["warnings"]),
            }
        )
