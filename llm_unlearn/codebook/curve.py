"""Strength against forgetting and utility: the points of a request's curve, and the choice of one."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from llm_unlearn.codebook.site import bare
from llm_unlearn.data.tokenization import TokenizedItem
from llm_unlearn.evaluation.outputs.scoring import Branches, score


@dataclass(frozen=True)
class CurvePoint:
    """What deleting some codes does. Losses are means over answers of the token-mean NLL, in nats.

    Attributes:
        mode: how the codes left; "none" for nothing deleted.
        level: of the plan.
        n_codes: how many were deleted, those of other requests not counted.
        chosen: "selected" by the plan, or "random" ones in use.
        forget_loss, retain_loss: None where there were no texts.
        forget_probability, retain_probability: ``mean exp(-loss)``, in [0, 1].
    """

    mode: str
    level: int
    n_codes: int
    chosen: str
    forget_loss: float | None
    forget_probability: float | None
    retain_loss: float | None = None
    retain_probability: float | None = None


def measure(model: nn.Module, items: Sequence[TokenizedItem]) -> tuple[float | None, float | None]:
    """Mean loss and mean probability of the items' answers.

    Raises:
        ValueError: the model has an encoder and a decoder.
    """
    if not items:
        return None, None
    if bare(model).config.is_encoder_decoder:
        raise ValueError(
            "A sweep measures the loss of given answers, which the decoder of this model reads past the bottleneck: "
            "give a level instead of 'auto', and measure free answers (`codebook.trial.try_strengths`)."
        )
    scores = score(model, [Branches.of([item], detailed=False) for item in items], progress=False)
    losses = np.array([of_one[0].loss for of_one in scores])
    return float(losses.mean()), float(np.exp(-losses).mean())


def choose_level(
    curve: Sequence[CurvePoint], mode: str, max_retain_rise: float, max_probability: float | None = None
) -> int:
    """The smallest level that forgets enough and keeps enough.

    Args:
        curve: of a sweep.
        mode: whose points count.
        max_retain_rise: by how much the loss of what is kept may rise, relative to the model with nothing of the plan
            deleted.
        max_probability: what the answers to forget must come down to; unset, the least any allowed level reaches.

    Raises:
        ValueError: there are no such points, or none keeps within the budget.
    """
    points = [point for point in curve if point.mode == mode and point.chosen == "selected" and point.n_codes]
    start = next((point for point in curve if point.mode == "none"), None)
    if not points or start is None:
        raise ValueError(
            f"The plan has no curve of the mode {mode!r}, by which a strength is chosen: `sweep` it first."
        )
    if start.retain_loss is None:
        raise ValueError(
            "The plan has no texts to keep, whose loss limits the strength: give a level, or `retain` rows."
        )
    rises = {point.level: point.retain_loss / max(start.retain_loss, 1e-9) - 1 for point in points}
    allowed = [point for point in points if rises[point.level] <= max_retain_rise]
    if not allowed:
        least = min(rises, key=rises.get)
        raise ValueError(
            f"Every strength costs more than the budget of {max_retain_rise:.1%}: the least, level {least}, raises the "
            f"loss of what is kept by {rises[least]:.1%}. Raise the budget, give a level, or use the mode 'gated'."
        )
    limit = min(point.forget_probability for point in allowed) if max_probability is None else max_probability
    enough = [point for point in allowed if point.forget_probability <= limit]
    # Where nothing within the budget forgets enough, the one that forgets most.
    return (
        min(enough, key=lambda p: p.level).level if enough else min(allowed, key=lambda p: p.forget_probability).level
    )
