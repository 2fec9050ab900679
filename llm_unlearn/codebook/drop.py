"""How much of what training added a deletion takes away again: CodeUnlearn's normalised improvement and its drop.

For the score s of a metric on some texts, with s_zs of the model before any training ("zero-shot") and s_cb of the
trained model with its bottleneck before a deletion:

    NI = (s - s_zs) / (s_cb - s_zs)          drop = (NI - 1) * 100 %

NI is 1 before a deletion and 0 where all that training added is gone. The drop is 0 % and -100 % there, and below that
where the model is worse than before it was trained. Range: all numbers; either way of a metric, higher or lower being
better, gives the same. Where training added nothing there is nothing to lose, and the drop is not measured.

CodeUnlearn (arXiv 2410.10866), sections 3.7 and 4 as its reviews report them. Two of them disagree on what a cell of
its tables is, NI or the drop. Here it is the drop, and a normalised number says nothing of how good a model was: raw
scores stand beside it always.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Texts = Literal["target", "control"]

Scores = Mapping[Texts, Mapping[str, float | None]]
"""Of one model: by set of texts, and then by metric."""

SCHEMA = "llm-unlearn/drop/1"


def normalised_improvement(score: float, zero_shot: float, codebook: float) -> float:
    """``NI = (s - s_zs) / (s_cb - s_zs)``.

    Raises:
        ZeroDivisionError: training left the score as it was.
    """
    return (score - zero_shot) / (codebook - zero_shot)


@dataclass(frozen=True)
class DropCell:
    """One metric on one set of texts, before training, before a deletion and after it.

    Args:
        metric: its name.
        texts: "target", D_T, texts on what was deleted; "control", D_R, texts on other things.
        zero_shot, codebook, deleted: the raw scores; None where one was not measured.
        higher_is_better: which way is better; defaults to True.
        reason: why a score was not measured, where one was not.
    """

    metric: str
    texts: Texts
    zero_shot: float | None
    codebook: float | None
    deleted: float | None
    higher_is_better: bool = True
    reason: str | None = None

    @property
    def has_scores(self) -> bool:
        """Whether any model was scored at all."""
        return any(score is not None for score in (self.zero_shot, self.codebook, self.deleted))

    @property
    def not_measured(self) -> str | None:
        """Why there is no drop; None where there is one."""
        scores = {"zero-shot": self.zero_shot, "codebook": self.codebook, "deleted": self.deleted}
        missing = [name for name, score in scores.items() if score is None]
        if missing:
            return self.reason or f"no score of the {' and the '.join(missing)} model"
        gained = self.codebook - self.zero_shot if self.higher_is_better else self.zero_shot - self.codebook
        if gained == 0:
            return "training left the score as it was, so there is no improvement to lose"
        return "training made the score worse, so there is no improvement to lose" if gained < 0 else None

    @property
    def ni(self) -> float | None:
        """The normalised improvement; None where it is not measured."""
        return None if self.not_measured else normalised_improvement(self.deleted, self.zero_shot, self.codebook)

    @property
    def drop(self) -> float | None:
        """``(NI - 1) * 100``, in percent; None where it is not measured."""
        return None if self.ni is None else (self.ni - 1) * 100


@dataclass(frozen=True)
class Deletion:
    """What one deletion did.

    Attributes:
        topic: what was deleted.
        list_length: S', the length of the lists its codes were found with.
        n_codes: how many codes were deleted.
        share: of all codes, in [0, 1].
        cells: one per metric and set of texts.
        chosen: "selected" for the topic, or as many "random" ones.
    """

    topic: str
    list_length: int
    n_codes: int
    share: float
    cells: tuple[DropCell, ...]
    chosen: Literal["selected", "random"] = "selected"

    def cell(self, metric: str, texts: Texts) -> DropCell:
        """The cell of a metric and a set of texts.

        Raises:
            KeyError: there is none.
        """
        found = next((cell for cell in self.cells if (cell.metric, cell.texts) == (metric, texts)), None)
        if found is None:
            raise KeyError(f"Metric {metric!r} was not scored on the {texts} texts.")
        return found

    def falls_more(self, metric: str) -> bool | None:
        """Whether the target's drop is deeper than the control's; None where one of them is not measured."""
        target, control = (self.cell(metric, texts).drop for texts in ("target", "control"))
        return None if target is None or control is None else target < control


def cells_of(
    zero_shot: Scores,
    codebook: Scores,
    deleted: Scores,
    *,
    lower_is_better: Sequence[str] = (),
    reasons: Mapping[str, str] | None = None,
) -> tuple[DropCell, ...]:
    """The cells of one deletion from the scores of three models, metric by metric, target before control.

    Args:
        zero_shot, codebook, deleted: what is missing or no number is not measured.
        lower_is_better: metrics of which less is better, such as a loss.
        reasons: by metric, why it was not measured.
    """
    models = (zero_shot, codebook, deleted)
    names = dict.fromkeys(name for scores in models for of_set in scores.values() for name in of_set)
    return tuple(
        DropCell(
            name,
            texts,
            *(_finite(scores.get(texts, {}).get(name)) for scores in models),
            higher_is_better=name not in lower_is_better,
            reason=(reasons or {}).get(name),
        )
        for name in names
        for texts in ("target", "control")
    )


def _finite(score: float | None) -> float | None:
    return score if score is not None and math.isfinite(score) else None


def is_nested(sizes: Sequence[int]) -> bool:
    """Whether no longer list deletes fewer codes than a shorter one, as a union over levels must have it."""
    return all(low <= high for low, high in zip(sizes, sizes[1:], strict=False))


def drop_record(deletions: Sequence[Deletion], provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Deletions as JSON: every raw score, NI and drop, null where not measured, with the reason.

    Args:
        deletions: of any topics and strengths.
        provenance: models, data, settings, seeds.
    """
    rows = [
        {
            **{name: value for name, value in vars(deletion).items() if name != "cells"},
            "cells": [
                {**asdict(cell), "reason": cell.not_measured, "ni": cell.ni, "drop": cell.drop}
                for cell in deletion.cells
            ],
        }
        for deletion in deletions
    ]
    return {"schema": SCHEMA, "provenance": dict(provenance), "deletions": rows}
