"""Is a fact gone? What probabilities say, what generated answers say, and where the two do not agree.

Probabilities can fall a hundredfold while greedy decoding still recites the fact, because the first token of the answer
stays the most probable (`hidden`); and a model may no longer answer what it still finds probable (`apparent`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from llm_unlearn.probes.measurement import FactMeasurement
from llm_unlearn.probes.records import Disagreement, Estimate, FactRow, Gate, ProbeResult, StatementVerdict
from llm_unlearn.probes.settings import ProbeSettings
from llm_unlearn.probes.statistics import line_over

_ALWAYS = 0.95
"""Share of statements with the same answer from which on a model is said to always give it."""


def knows(measured: FactMeasurement, settings: ProbeSettings) -> bool:
    """Whether a model knows a fact: it names the object when asked directly, or a paraphrase recalls enough of it."""
    return measured.g1_alias or (measured.g2_max is not None and measured.g2_max >= settings.known_recall)


def forgetting(before: float, after: float) -> float | None:
    """``F = (before - after) / before``: 1 where nothing is left, below 0 where it rose; None for 0 before."""
    return (before - after) / before if before else None


def gone_by_probability(
    before: FactMeasurement, after: FactMeasurement, settings: ProbeSettings, uses_p2: bool
) -> bool:
    """``P1 < gone_p1 x base``, and, where True/False statements count, not both of its pair are right."""
    gone = after.p1 < settings.gone_p1 * before.p1
    return gone and not (uses_p2 and bool(both_right(after)))


def gone_by_generation(after: FactMeasurement, settings: ProbeSettings) -> bool:
    """``max(G1, G2) < gone_recall``, and no answer names the object."""
    return after.generation < settings.gone_recall


def both_right(measured: FactMeasurement) -> bool | None:
    """Whether a model calls the fact true and its twin false, above chance for one pair; None without a twin.

    One of two right is what a model gets that always says the same.
    """
    if measured.p2_margin is None or measured.p2_twin_margin is None:
        return None
    return measured.p2_margin > 0 and measured.p2_twin_margin < 0


def verdict_on_statements(measured: Iterable[FactMeasurement]) -> StatementVerdict | None:
    """How a model did on all pairs of a statement and its false twin; None without pairs."""
    margins = [(one.p2_margin, one.p2_twin_margin) for one in measured]
    pairs = [(true, twin) for true, twin in margins if true is not None and twin is not None]
    if not pairs:
        return None
    n = len(pairs)
    said_true = sum((true > 0) + (twin > 0) for true, twin in pairs) / (2 * n)
    said_false = sum((true < 0) + (twin < 0) for true, twin in pairs) / (2 * n)
    always: Literal["True", "False"] | None = None
    if max(said_true, said_false) >= _ALWAYS:
        always = "True" if said_true > said_false else "False"
    return StatementVerdict(
        true_accuracy=sum(true > 0 for true, _ in pairs) / n,
        false_accuracy=sum(twin < 0 for _, twin in pairs) / n,
        n=n,
        always=always,
    )


def beaten_options(measured: FactMeasurement) -> float | None:
    """Share of wrong options that are less probable than the true one, .5 by chance; None without wrong options."""
    if measured.p3_rank is None:
        return None
    return (measured.p3_options - measured.p3_rank) / (measured.p3_options - 1)


def gates(base: Sequence[FactMeasurement], threshold: float) -> dict[str, Gate]:
    """Whether P2 and P3 count, by what the base model does on facts it knows.

    Args:
        base: measurements of the base on the known facts to be forgotten.
        threshold: accuracy that is needed.
    """
    verdict = verdict_on_statements(base)
    beaten = [share for one in base if (share := beaten_options(one)) is not None]
    return {
        "p2": _gate(
            "balanced accuracy on True/False statements",
            verdict.balanced_accuracy if verdict else None,
            verdict.n if verdict else 0,
            len(base),
            threshold,
        ),
        "p3": _gate(
            "share of wrong options less probable than the answer",
            sum(beaten) / len(beaten) if beaten else None,
            len(beaten),
            len(base),
            threshold,
        ),
    }


def _gate(what: str, accuracy: float | None, n: int, n_known: int, threshold: float) -> Gate:
    if accuracy is None:
        reason = f"no {what}: no known fact has a wrong object (give distractors), or the words are unknown"
        return Gate(False, None, 0, f"not measured: {reason if n_known else 'the base model knows no fact'}")
    if accuracy < threshold:
        measured = f"the {what} of the base model is {accuracy:.2f} on {n} facts it knows"
        return Gate(False, accuracy, n, f"not measured: {measured}, {threshold:g} is needed")
    return Gate(True, accuracy, n, None)


def disagree(rows: Iterable[FactRow], uses_p2: bool) -> Disagreement:
    """Count the four cases over rows of known facts."""
    cases = [(row.prob_forgotten, row.gen_forgotten) for row in rows]
    return Disagreement(
        both=cases.count((True, True)),
        hidden=cases.count((True, False)),
        apparent=cases.count((False, True)),
        neither=cases.count((False, False)),
        uses_p2=uses_p2,
    )


def rate_over_sizes(results: Mapping[float, ProbeResult]) -> dict[str, Estimate]:
    """Change of the disagreement rate per tenfold parameters, over all facts ("all") and by bucket.

    A line by least squares; its interval, Student's, holds if the rates scatter evenly around it.

    Args:
        results: by number of parameters; three sizes or more are needed.

    Raises:
        ValueError: a number of parameters is not above 0.
    """
    if any(not size > 0 for size in results):
        raise ValueError(f"The sizes are {list(results)}: give numbers of parameters, above 0.")
    names = dict.fromkeys(bucket.name for result in results.values() for bucket in result.buckets)
    rates = {"all": {size: result.disagreement.rate for size, result in results.items()}}
    for name in names:
        of_bucket = {size: {b.name: b.disagreement.rate for b in result.buckets} for size, result in results.items()}
        rates[name] = {size: by_name.get(name) for size, by_name in of_bucket.items()}
    return {name: _over_sizes(by_size) for name, by_size in rates.items()}


def _over_sizes(by_size: Mapping[float, float | None]) -> Estimate:
    measured = {math.log10(size): rate for size, rate in by_size.items() if rate is not None}
    return line_over(list(measured), list(measured.values()))
