"""When a gated request's codes are ablated. What may be ablated is for the rule to say; when, must be sure.

A text opens the gate from where it has used the triggers, the surest codes of the request, often enough. Sequence gates
are those of Dynamic SAE Guardrails (arXiv 2504.08192); triggers apart from what is ablated are ours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from llm_unlearn.codebook.reading import CodeReading, count_codes
from llm_unlearn.codebook.selection import CORRECTED, judge_codes

QUANTILE = 0.95
"""The share of texts to keep in which a gate stays shut, our specification's."""
MIN_FORGET_SHARE = 0.5
"""Ours: a gate that opens in fewer of the texts to forget would forget little and say that it did."""


@dataclass(frozen=True)
class GatePlan:
    """A request's gate.

    Attributes:
        triggers: the codes whose uses open it, ascending: those in use (S per token) that `CORRECTED` chooses.
        threshold: from how many uses it opens: one more than 95 % of the texts to keep have.
        forget_share, retain_share: the share of the texts that open it; None where there are none.
    """

    triggers: tuple[int, ...]
    threshold: float
    forget_share: float
    retain_share: float | None

    @property
    def objection(self) -> str | None:
        """Why it cannot be used; None where it can."""
        if not self.triggers:
            return (
                "no code in use is sure enough to open a gate, so give more examples or control texts, or choose the "
                "mode 'ablate' or 'refill'."
            )
        if self.forget_share < MIN_FORGET_SHARE:
            return (
                f"only {self.forget_share:.0%} of the texts to forget would open the gate: they must use its "
                f"{len(self.triggers)} triggers {self.threshold:g} times, more than texts to keep do. Keep texts on "
                "subjects that differ more, or choose the mode 'ablate' or 'refill'."
            )
        return None


def plan_gate(readings: Mapping[str, Sequence[CodeReading]], top_s: int, num_codes: int) -> GatePlan:
    """Choose triggers and threshold.

    Args:
        readings: of the texts to "forget", of "control" texts, and of those to "retain", which may be none: then one
            use opens the gate, and no code in common use is spared.
        top_s: S.
        num_codes: K.
    """
    counts = {name: count_codes(some, (top_s,), num_codes) for name, some in readings.items() if some}
    rule = CORRECTED if "retain" in counts else replace(CORRECTED, max_retain_share=None)
    sure = judge_codes(counts["forget"], counts["control"], rule, counts.get("retain"))
    triggers = tuple(map(int, sure.codes(0)))
    forget, retain = (
        np.array([_uses(reading, triggers, top_s) for reading in readings[name]]) for name in ("forget", "retain")
    )
    threshold = 1.0 + (float(np.quantile(retain, QUANTILE)) if len(retain) else 0.0)
    retain_share = float((retain >= threshold).mean()) if len(retain) else None
    return GatePlan(triggers, threshold, float((forget >= threshold).mean()), retain_share)


def _uses(reading: CodeReading, triggers: Sequence[int], top_s: int) -> int:
    # Of special tokens, too: the bottleneck cannot tell them from others.
    return int(np.isin(reading.codes[:, :top_s], triggers).sum() + np.isin(reading.special, triggers).sum())
