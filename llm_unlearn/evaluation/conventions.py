"""Whose definitions a report follows, by name: numbers of different conventions must never stand in one table."""

from dataclasses import dataclass
from typing import Literal

from llm_unlearn.suggest import unknown

Mean = Literal["geometric", "arithmetic"]


@dataclass(frozen=True)
class Convention:
    """One published way to compute TOFU's metrics, or ours.

    Attributes:
        name: how reports call it.
        quality_mean: mean over the wrong answers in the truth ratio of the forget set, which forget quality compares.
        utility_mean: the same on the sets of model utility.
        epsilon: added to denominators of ratios of probabilities.
        drop_last: whether exact memorisation, extraction strength and min-k leave out the last label.
        floor: whether extraction strength is at least 1/T.
        first_rows: rows used of each set, from the first; None for all.
        total_length: tokens of prompt and generated answer together; None where only new tokens are counted.
        keeps_tail: whether what a chat template writes after the end of an answer is scored, with an end token behind
            it, rather than cut.
    """

    name: str
    quality_mean: Mean = "geometric"
    utility_mean: Mean = "geometric"
    epsilon: float = 0.0
    drop_last: bool = False
    floor: bool = False
    first_rows: int | None = None
    total_length: int | None = None
    keeps_tail: bool = False


CONVENTIONS = {
    convention.name: convention
    for convention in (
        Convention("fixed"),
        Convention("open_unlearning", epsilon=1e-10, drop_last=True, floor=True, keeps_tail=True),
        Convention("tofu_code", utility_mean="arithmetic", first_rows=300, total_length=200),
        Convention("tofu_paper", quality_mean="arithmetic", utility_mean="arithmetic"),
    )
}
"""`fixed` is ours: no floor, no epsilon, and the answer with exactly one end token counts everywhere.
`open_unlearning` is the code of that name, `tofu_code` the code and `tofu_paper` the text of arXiv:2401.06121."""


def get_convention(name: str) -> Convention:
    """The convention called `name`; hyphens may stand for underscores.

    Raises:
        ValueError: there is none.
    """
    key = name.replace("-", "_")
    if key not in CONVENTIONS:
        raise ValueError(unknown("convention (`--compat`)", name, CONVENTIONS))
    return CONVENTIONS[key]
