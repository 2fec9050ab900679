"""Deleting codes for a while, to see what that does, and random codes to compare with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import numpy as np

from llm_unlearn.codebook.drop import Deletion, Scores, cells_of
from llm_unlearn.codebook.model import CodebookModel
from llm_unlearn.codebook.reading import CodeReading
from llm_unlearn.codebook.registry import DeletionRecord, DeletionRegistry

if TYPE_CHECKING:
    from llm_unlearn.codebook.unlearner import DeletionPlan


@contextmanager
def without_codes(codebook: CodebookModel, codes: Sequence[int], mode: Literal["ablate", "refill"]) -> Iterator[None]:
    """Within the context these codes are deleted, beside those of the requests in force; the registry stays as it is.

    Args:
        codebook: the model.
        codes: one or more.
        mode: how they leave, see `bottleneck`.

    Raises:
        ValueError: too few codes would be left.
    """
    # No request has an empty name.
    trial = DeletionRegistry([*codebook.registry.in_force, DeletionRecord("", tuple(codes), mode)])
    try:
        codebook.bottleneck.set_deleted(**trial.deleted())
        yield
    finally:
        codebook.delete()


def random_codes(readings: Sequence[CodeReading], count: int, top_s: int, seed: int = 0) -> tuple[int, ...]:
    """`count` different codes, or all there are, of those that texts use; ascending.

    Args:
        readings: of the texts.
        count: how many.
        top_s: S, how many of a token's list the bottleneck uses.
        seed: of the draw.

    Raises:
        ValueError: there are no texts.
    """
    used = np.unique(np.concatenate([reading.codes[:, :top_s] for reading in readings]))
    drawn = np.random.default_rng(seed).choice(used, min(count, len(used)), replace=False)
    return tuple(sorted(map(int, drawn)))


def try_strengths(
    codebook: CodebookModel,
    plan: DeletionPlan,
    mode: Literal["ablate", "refill"],
    measure: Callable[[int, str], Scores],
    zero_shot: Scores,
    trained: Scores,
    *,
    lower_is_better: Sequence[str] = (),
    reasons: Mapping[str, str] | None = None,
    seed: int = 0,
) -> list[Deletion]:
    """What each level of a plan does to the scores, and at last what as many random codes do.

    Args:
        codebook: the model; it is as before afterwards.
        plan: of this model, with texts to keep, of whose codes the random ones are drawn.
        mode: how codes leave.
        measure: scores of the model as it is, given the length of the lists and "selected" or "random".
        zero_shot, trained: scores of the model before training, and with the bottleneck and nothing deleted.
        lower_is_better, reasons: as in `cells_of`.
        seed: of the random codes.

    Raises:
        ValueError: too few codes would be left, or the plan has no texts to keep.
    """
    done = []
    top_s, last = codebook.config.top_s, len(plan.levels) - 1
    drawn = random_codes(plan.retain, len(plan.codes(last)), top_s, seed)
    steps = [(length, plan.codes(level), "selected") for level, length in enumerate(plan.levels)]
    for length, codes, chosen in [*steps, (plan.levels[last], drawn, "random")]:
        scores = trained
        # At a short list nothing may have been chosen yet.
        if codes:
            with without_codes(codebook, codes, mode):
                scores = measure(length, chosen)
        cells = cells_of(zero_shot, trained, scores, lower_is_better=lower_is_better, reasons=reasons)
        share = len(codes) / codebook.config.num_codes
        done.append(Deletion(plan.id, length, len(codes), share, cells, chosen))
    return done
