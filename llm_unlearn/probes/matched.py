"""Runs compared at equal utility: without that, "frequent facts are harder" may only mean "was trained less"."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llm_unlearn.probes.facts import Fact
from llm_unlearn.probes.measurement import FactMeasurement


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of a run.

    Attributes:
        name: of the checkpoint, such as its step or its folder.
        utility: what it retains, in any unit that all runs share, such as `retained`; higher is better.
        measurements: of all facts on it.
    """

    name: str
    utility: float
    measurements: tuple[FactMeasurement, ...] = ()


@dataclass(frozen=True)
class Match:
    """The checkpoint chosen of each run.

    Attributes:
        level: the utility that was aimed at.
        chosen: by run.
    """

    level: float
    chosen: Mapping[str, Checkpoint]

    @property
    def measurements(self) -> dict[str, tuple[FactMeasurement, ...]]:
        """By run, as `FrequencyProbe.compare` takes them."""
        return {run: checkpoint.measurements for run, checkpoint in self.chosen.items()}

    def to_json(self) -> dict:
        """What was chosen, for the provenance of a result."""
        shown = {run: {"checkpoint": one.name, "utility": one.utility} for run, one in self.chosen.items()}
        return {"level": self.level, "chosen": shown}


def match_utility(
    runs: Mapping[str, Sequence[Checkpoint]], level: float | None = None, tolerance: float = 0.02
) -> Match:
    """Choose of each run the checkpoint whose utility is nearest to a common level; of equally near ones the first.

    Args:
        runs: by name their checkpoints, in the order of training.
        level: utility to compare at. Unset, the highest lowest utility of a run: every run got so far, so that at it
            all were trained as long as can be compared.
        tolerance: how far from the level a checkpoint may be, in units of the utility. Defaults to 0.02, ours.

    Raises:
        ValueError: a run has no checkpoint, or none within the tolerance.
    """
    empty = [run for run, checkpoints in runs.items() if not checkpoints]
    if empty or not runs:
        run = f"Run {empty[0]!r}" if empty and empty[0] else "The run"
        raise ValueError(f"{run} has no checkpoint: give one or more." if empty else "There are no runs.")
    if level is None:
        level = max(min(one.utility for one in checkpoints) for checkpoints in runs.values())
    chosen = {run: min(checkpoints, key=lambda one: abs(one.utility - level)) for run, checkpoints in runs.items()}
    far = {run: one for run, one in chosen.items() if abs(one.utility - level) > tolerance}
    if far:
        # A run alone has no name.
        shown = ", ".join(f"{run or 'the run'} has {one.utility:.3f} at {one.name}" for run, one in far.items())
        raise ValueError(
            f"No checkpoint is within {tolerance:g} of the utility {level:.3f}: {shown} as its nearest. Save "
            "checkpoints more often, or give another level or a larger tolerance."
        )
    return Match(level, chosen)


def check_level(match: bool, level: float | None, tolerance: float) -> None:
    """Check what utilities are to be matched at, before anything is measured.

    Args:
        match: whether they are to be matched at all.
        level, tolerance: as in `match_utility`, of shares of what the base retains.

    Raises:
        ValueError: a value is impossible, or a level is given and nothing is to be matched.
    """
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"`--utility_tolerance` is {tolerance:g}: give a number from 0 up.")
    if level is None:
        return
    if not match:
        raise ValueError(
            f"`--utility_level` is {level:g}, and nothing is matched at it: add `--match_utility`, or drop the level."
        )
    if not 0 < level <= 1:
        raise ValueError(f"`--utility_level` is {level:g}: give a share above 0 and at most 1, which is the base's.")


def retained(before: Sequence[FactMeasurement], after: Sequence[FactMeasurement], facts: Sequence[Fact]) -> float:
    """Mean P1 of facts to be retained, as a share of that of the base; 1 where nothing is lost.

    Raises:
        ValueError: no fact is to be retained, or the base gives them no probability.
    """
    ids = {fact.id for fact in facts if fact.role == "retain"}
    own, base = (sum(one.p1 for one in measured if one.id in ids) for measured in (after, before))
    if not base:
        raise ValueError("There is no probability to be retained: give facts whose `role` is 'retain' and are known.")
    return own / base
