"""Which facts will be hard to forget, said before training: from how often each was met, and how sure the base is.

The specification and the paper say in which direction both ought to work, not how strongly. So the forecast is an
order [ours]: without an earlier probe it is uncalibrated, the mean of two ranks and no probability of anything; with
one, a line is fitted to what was forgotten there, and the forecast says how well that line predicts facts it was not
fitted on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from scipy import stats

from llm_unlearn.probes.counts.record import FactCounts
from llm_unlearn.probes.facts import Fact
from llm_unlearn.probes.records import OUTCOMES, ProbeResult
from llm_unlearn.probes.statistics import FEWEST_FOR_P
from llm_unlearn.suggest import unknown

if TYPE_CHECKING:
    from torch import nn

    from llm_unlearn.data.tokenization import ExampleTokenizer

UNCALIBRATED = (
    "Uncalibrated [ours]: the order is the mean rank of count and base probability, both said to make facts harder to "
    "forget; nothing was measured on this model. Fit it on an earlier probe to know whether it holds."
)
LEVELS = ("easy", "medium", "hard")


@dataclass(frozen=True)
class Calibration:
    """``F = constant + of_x x + of_confidence p``, fitted by least squares on known facts of an earlier probe.

    Attributes:
        outcome: what F was measured on, one of `records.OUTCOMES`.
        constant, of_x, of_confidence: the coefficients.
        n: facts it was fitted on.
        r2: ``1 - sum (F - F_without)^2 / sum (F - mean F)^2``, F_without the forecast of a fact by a line fitted on all
            others; at most 1, and 0 or less where the line is no better than the mean.
        rho: Spearman's correlation of F_without and F; None where either is constant.
    """

    outcome: str
    constant: float
    of_x: float
    of_confidence: float
    n: int
    r2: float
    rho: float | None

    def predict(self, x: float, confidence: float) -> float:
        """The forecast F of a fact."""
        return self.constant + self.of_x * x + self.of_confidence * confidence

    @property
    def note(self) -> str:
        """In a sentence or two, what it is worth."""
        name = OUTCOMES[self.outcome]
        rho = "not measured" if self.rho is None else f"{self.rho:.2f}"
        worth = "It explains nothing on facts it was not fitted on: do not use it." if self.r2 <= 0 else ""
        return (
            f"Fitted on F of {name} of {self.n} known facts of an earlier probe; on facts left out one by one R² is "
            f"{self.r2:.2f} and Spearman's ρ {rho}. {worth}".strip()
        )


@dataclass(frozen=True)
class FactForecast:
    """The forecast of one fact, and what it rests on.

    Attributes:
        id, subject, object: of the fact.
        count, x: main count, and ``log10(1 + count)``.
        confidence: P1 under the base: per-token (geometric mean) probability of the true answer, in [0, 1].
        difficulty: place in the order, in [0, 1], 1 the hardest.
        level: "hard", "medium" or "easy": thirds of the order.
        predicted: forecast F, with a calibration; else None.
    """

    id: str
    subject: str
    object: str
    count: float
    x: float
    confidence: float
    difficulty: float
    level: str
    predicted: float | None


@dataclass(frozen=True)
class DifficultyForecast:
    """The facts to be forgotten, the hardest first.

    Attributes:
        label: what was counted.
        rows: one for each fact.
        calibration: None for an uncalibrated order.
        note: what the forecast is worth, in whole sentences.
    """

    label: str
    rows: tuple[FactForecast, ...]
    calibration: Calibration | None
    note: str

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def cells(self, most: int | None = None) -> list[list[str]]:
        """Header and one line per fact, the first `most`."""
        header = ["fact", "subject", "object", "count", "x", "base P1", "expected"]
        predicted = ["forecast F"] if self.calibration else []
        lines = [
            [row.id, row.subject, row.object, f"{row.count:g}", f"{row.x:.2f}", f"{row.confidence:.3f}", row.level]
            + ([] if row.predicted is None else [f"{row.predicted:.2f}"])
            for row in self.rows[:most]
        ]
        return [header + predicted, *lines]


def measure_confidence(
    model: nn.Module, tokenizer: ExampleTokenizer, facts: Sequence[Fact], *, progress: bool = True
) -> dict[str, float]:
    """P1 of every fact, by id: one scoring pass over the true answers; the same on every process.

    Args:
        model: the model, such as the one before unlearning.
        tokenizer: its tokenizer.
        facts: the facts, of any role.
        progress: whether the main process shows a bar.
    """
    from llm_unlearn.evaluation.outputs.scoring import score
    from llm_unlearn.evaluation.outputs.trees import Branches

    items = [tokenizer({"question": fact.question, "answer": fact.answer}, i) for i, fact in enumerate(facts)]
    scored = score(model, [Branches.of([item], detailed=False) for item in items], name="facts", progress=progress)
    return {fact.id: float(np.exp(-of_fact[0].loss)) for fact, of_fact in zip(facts, scored, strict=True)}


def forecast_difficulty(
    facts: Sequence[Fact],
    counts: FactCounts,
    confidence: Mapping[str, float],
    earlier: ProbeResult | None = None,
    outcome: str = "generation",
) -> DifficultyForecast:
    """Order the facts to be forgotten by how hard they are expected to be.

    Uncalibrated, a fact's difficulty is the mean of its two mid-ranks, by x and by confidence, scaled to [0, 1].
    Calibrated, it is the rank of ``-F`` as forecast.

    Args:
        facts: the facts; those to be forgotten count.
        counts: how often each was met.
        confidence: P1 of each under the base, see `measure_confidence`.
        earlier: a probe of an earlier unlearning with counts of the same kind; unset, the order is uncalibrated.
        outcome: on which F to calibrate, one of `records.OUTCOMES`.

    Raises:
        ValueError: there are fewer than two facts to be forgotten, a count or confidence is missing, or `earlier`
            cannot calibrate.
    """
    asked = _to_forget(facts)
    if len(asked) < 2:
        raise ValueError(f"{len(asked)} fact is to be forgotten: an order needs two or more whose `role` is 'forget'.")
    counts.require(fact.id for fact in asked)
    missing = [fact.id for fact in asked if fact.id not in confidence]
    if missing:
        raise ValueError(f"There is no base probability of fact {missing[0]!r}: measure it with `measure_confidence`.")
    x = np.array([counts.x(fact.id) for fact in asked])
    p = np.array([confidence[fact.id] for fact in asked], dtype=float)
    calibration = None if earlier is None else calibrate(earlier, counts.label, outcome)
    if calibration is None:
        predicted: list[float | None] = [None] * len(asked)
        difficulty = (_scaled_ranks(x) + _scaled_ranks(p)) / 2
    else:
        predicted = [calibration.predict(*pair) for pair in zip(x.tolist(), p.tolist(), strict=True)]
        difficulty = _scaled_ranks(-np.array(predicted))
    place = _scaled_ranks(difficulty)
    rows = [
        FactForecast(
            id=fact.id,
            subject=fact.subject,
            object=fact.object,
            count=counts[fact.id].n_so,
            x=float(x[i]),
            confidence=float(p[i]),
            difficulty=float(difficulty[i]),
            level=LEVELS[min(2, int(3 * place[i]))],
            predicted=predicted[i],
        )
        for i, fact in enumerate(asked)
    ]
    rows.sort(key=lambda row: -row.difficulty)
    return DifficultyForecast(
        counts.label, tuple(rows), calibration, UNCALIBRATED if calibration is None else calibration.note
    )


def calibrate(earlier: ProbeResult, label: str, outcome: str = "generation") -> Calibration:
    """Fit the line on the known facts of an earlier probe.

    Args:
        earlier: the probe.
        label: what the counts are of which a forecast will be made.
        outcome: F of what.

    Raises:
        ValueError: no such outcome, counts of another kind, fewer than 20 known facts, or no variation in the counts.
    """
    if outcome not in OUTCOMES:
        raise ValueError(unknown("outcome", outcome, OUTCOMES))
    if earlier.label != label:
        raise ValueError(
            f"The earlier probe counted {earlier.label} and this forecast counts {label}: give a probe with counts of "
            "the same kind, or none."
        )
    rows = [row for row in earlier.known() if row.forgetting(outcome) is not None]
    if len(rows) < FEWEST_FOR_P:
        raise ValueError(
            f"The earlier probe has {len(rows)} known facts and a fit needs {FEWEST_FOR_P}: give a larger one, or none."
        )
    x = np.array([row.x for row in rows], dtype=float)
    f = np.array([row.forgetting(outcome) for row in rows], dtype=float)
    if np.ptp(x) == 0:
        raise ValueError("All known facts of the earlier probe have the same count, which tells nothing: give another.")
    design = np.column_stack([np.ones(len(rows)), x, [row.confidence for row in rows]])
    inverse = np.linalg.pinv(design)
    coefficients = inverse @ f
    # The error of a fact left out is its residual, divided by one less its leverage.
    leverage = np.einsum("ij,ji->i", design, inverse)
    without = f - (f - design @ coefficients) / np.maximum(1 - leverage, 1e-9)
    spread = float(((f - f.mean()) ** 2).sum())
    r2 = 1 - float(((f - without) ** 2).sum()) / spread if spread else 0.0
    rho = float(stats.spearmanr(without, f).statistic) if spread and np.ptp(without) > 0 else None
    return Calibration(outcome, *map(float, coefficients), n=len(rows), r2=r2, rho=rho)


def _to_forget(facts: Sequence[Fact]) -> list[Fact]:
    return [fact for fact in facts if fact.role == "forget"]


def _scaled_ranks(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Mid-ranks from 0, the lowest, to 1."""
    return (stats.rankdata(values) - 1) / (len(values) - 1)
