"""Which codes belong to a target: those that its tokens select more often than the tokens of control texts.

CodeUnlearn (arXiv 2410.10866) finds the codes of a topic by forward passes alone. Both sets of texts are counted
(`CodeCounts`), every code is tested (`SelectionRule`), and the codes that pass are deleted (`Selection`). Lists of
several lengths are counted at once: where deleted codes are replaced by the next best, the longer lists name the
stand-ins that would carry the same topic.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, Int

from llm_unlearn.codebook.statistics import enrichment, false_discovery_rate, independence_test

Counts = Int[np.ndarray, "levels codes"]
Values = Float[np.ndarray, "levels codes"]


@dataclass(frozen=True, eq=False)
class CodeCounts:
    """How often each code was on the list of a token of a set of texts; counts of two shards add with ``+``.

    Attributes:
        levels (`tuple[int, ...]`):
            Lengths S' of the lists, ascending; the first is the number S of codes that the bottleneck uses.
        tokens (`np.ndarray` of integers, ``(levels, codes)``):
            Tokens whose first S' codes hold the code.
        texts (`np.ndarray` of integers, ``(levels, codes)``):
            Texts with one such token or more.
        n_tokens (`int`):
            Tokens counted, without padding and special tokens.
        n_texts (`int`):
            Texts counted.

    Raises:
        ValueError: levels are not ascending, a shape is another, or a count is impossible.
    """

    levels: tuple[int, ...]
    tokens: Counts
    texts: Counts
    n_tokens: int
    n_texts: int

    def __post_init__(self) -> None:
        if not self.levels or any(low >= high for low, high in zip((0, *self.levels), self.levels, strict=False)):
            raise ValueError(f"The list lengths are {self.levels}: give one or more from 1 up, ascending.")
        for name in ("tokens", "texts"):
            counts, most = getattr(self, name), getattr(self, f"n_{name}")
            if counts.ndim != 2 or counts.shape != (len(self.levels), self.tokens.shape[-1]):
                raise ValueError(
                    f"`{name}` has shape {counts.shape}: give one row for each of the {len(self.levels)} list lengths, "
                    "and one column for each code."
                )
            if not np.issubdtype(counts.dtype, np.integer) or (counts < 0).any() or (counts > most).any():
                raise ValueError(f"`{name}` must be whole numbers from 0 to `n_{name}`, {most}: count each once.")
        if (np.diff(self.tokens, axis=0) < 0).any() or (self.texts > self.tokens).any():
            raise ValueError(
                "A code is on fewer longer lists than shorter ones, or in more texts than tokens: count all lengths on "
                "the same tokens."
            )

    @property
    def num_codes(self) -> int:
        """The number K of codes."""
        return self.tokens.shape[1]

    def __add__(self, other: CodeCounts) -> CodeCounts:
        """The counts of both sets together, such as two shards of the same texts.

        Raises:
            ValueError: levels or number of codes differ.
        """
        _check_alike(self, other)
        return CodeCounts(
            self.levels,
            self.tokens + other.tokens,
            self.texts + other.texts,
            self.n_tokens + other.n_tokens,
            self.n_texts + other.n_texts,
        )


Unit = Literal["token", "sequence"]
Correction = Literal["none", "bh"]


@dataclass(frozen=True)
class SelectionRule:
    """When a code belongs to the target; unset, as `CORRECTED` says.

    Attributes:
        unit (`"token"` or `"sequence"`, *optional*, defaults to `"sequence"`):
            What the test counts: tokens that have the code, as in the paper, or texts with such a token. Tokens of
            one text depend on each other, so that p of tokens is too small.
        correction (`"none"` or `"bh"`, *optional*, defaults to `"bh"`):
            Whether p itself must be below `alpha`, as in the paper, or q, the smallest false discovery rate at which
            the code is chosen (Benjamini and Hochberg 1995). Without, chance alone passes hundreds of 25,000 codes.
        alpha (`float`, *optional*, defaults to 0.05, the paper's):
            Bound of p or q, above 0 and at most 1.
        min_enrichment (`float`, *optional*, defaults to 1.0, our specification's; the paper's is 0):
            What R must exceed, 0 or more: 1 is twice as often in target texts.
        max_retain_share (`float` or `None`, *optional*, defaults to 0.01, our specification's):
            A code in a larger share of retain tokens, at the first level, is never chosen. `None`, none is spared, as
            in the paper.
        exact (`bool`, *optional*, defaults to `True`):
            Whether Fisher's exact test takes the place of the chi-squared test where an expected count is below 5.

    Raises:
        ValueError: a value is not one of those named.
    """

    unit: Unit = "sequence"
    correction: Correction = "bh"
    alpha: float = 0.05
    min_enrichment: float = 1.0
    max_retain_share: float | None = 0.01
    exact: bool = True

    def __post_init__(self) -> None:
        for name, valid in (("unit", get_args(Unit)), ("correction", get_args(Correction))):
            if getattr(self, name) not in valid:
                raise ValueError(f"`{name}` is {getattr(self, name)!r}: give {valid[0]!r} or {valid[1]!r}.")
        if not 0 < self.alpha <= 1:
            raise ValueError(f"`alpha` is {self.alpha}: give a number above 0 and at most 1, such as 0.05.")
        if not self.min_enrichment >= 0:
            raise ValueError(
                f"`min_enrichment` is {self.min_enrichment}, which would choose codes of the control texts: give 0 or "
                "more."
            )
        if self.max_retain_share is not None and not 0 <= self.max_retain_share <= 1:
            raise ValueError(f"`max_retain_share` is {self.max_retain_share}: give a share from 0 to 1, or None.")


PAPER = SelectionRule("token", "none", min_enrichment=0.0, max_retain_share=None, exact=False)
"""The paper's rule: R above 0 and p of a chi-squared test over tokens below 0.05."""

CORRECTED = SelectionRule()
"""The recommended rule: twice as often, false discovery rate 5 % over texts, codes of common use spared."""


@dataclass(frozen=True, eq=False)
class Selection:
    """The verdict on every code at every list length; arrays are ``(levels, codes)``.

    Attributes:
        target, control (`CodeCounts`): what was counted.
        rule (`SelectionRule`): what decided.
        enrichment: R, in bits; above 0 where the code is more frequent in target texts.
        chi2: Pearson's statistic with one degree of freedom, 0 or more.
        p: probability of counts as uneven as these by chance, by chi-squared or exact test.
        q: p corrected as the rule says; p itself without correction.
        chosen: whether the code passed at that length alone; `codes` joins the lengths.
        n_spared: how many codes passed at some length and were spared as common in retain texts.
    """

    target: CodeCounts
    control: CodeCounts
    rule: SelectionRule
    enrichment: Values
    chi2: Values
    p: Values
    q: Values
    chosen: Bool[np.ndarray, "levels codes"]
    n_spared: int

    def codes(self, level: int) -> Int[np.ndarray, " chosen"]:
        """The codes chosen at a level or one before it, ascending, so that a longer list takes none back.

        A single length would not be the stronger the longer it is: counts dilute, and codes of the target lose
        significance.

        Args:
            level: position in `target.levels`.

        Raises:
            ValueError: there is no such level.
        """
        if not 0 <= level < len(self.target.levels):
            raise ValueError(f"Level {level} was asked for; there are {len(self.target.levels)}, from 0.")
        return np.flatnonzero(self.chosen[: level + 1].any(axis=0))

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of `codes` at each level."""
        return tuple(len(self.codes(level)) for level in range(len(self.target.levels)))

    def grounds(self, codes: Iterable[int]) -> list[dict[str, Any]]:
        """Why codes were chosen, in numbers for JSON: each at the first level that chose it, or else at the first."""
        return [self._row(int(code), int(self.chosen[:, code].argmax())) for code in codes]

    def table(self, n: int = 10) -> str:
        """The `n` codes with the largest R at the first level, as lines of text; of equal ones the surer first."""
        best = np.lexsort((self.p[0], -self.enrichment[0]))[:n]
        lines = ["  code  target  control      R        p        q"]
        for row in (self._row(int(code), 0) for code in best):
            lines.append(
                f"{row['code']:6d}{row['target']:8d}{row['control']:9d}{row['enrichment']:7.2f}"
                f"{row['p']:9.1e}{row['q']:9.1e}"
            )
        return "\n".join(lines)

    def _row(self, code: int, level: int) -> dict[str, Any]:
        counts = {side: getattr(self, side).tokens[level, code] for side in ("target", "control")}
        values = {name: float(getattr(self, name)[level, code]) for name in ("enrichment", "p", "q")}
        row = {"code": code, "list_length": self.target.levels[level]}
        return row | {side: int(count) for side, count in counts.items()} | values


def select_codes(
    target: CodeCounts, control: CodeCounts, rule: SelectionRule, retain: CodeCounts | None = None
) -> Selection:
    """Choose the codes of the target: as `judge_codes`, and one at least.

    Raises:
        ValueError: as there, or nothing is chosen at any level; the message has the table.
    """
    selection = judge_codes(target, control, rule, retain)
    if not selection.chosen.any():
        raise ValueError(_nothing_chosen(selection))
    return selection


def judge_codes(
    target: CodeCounts, control: CodeCounts, rule: SelectionRule, retain: CodeCounts | None = None
) -> Selection:
    """Tell which codes are the target's, if any.

    For a code in n_T of N_T tokens of the target and n_C of N_C tokens of the control texts

        R = log2(f_T / f_C),   f = (n + 1/2) / (N + 1),

    and p is that of a test of the 2 x 2 table of n and N - n, in tokens or texts (`rule.unit`). A code is chosen at a
    level if R exceeds `rule.min_enrichment`, p (or q) is below `rule.alpha`, and it is not spared as common in retain
    texts (`rule.max_retain_share`). R compares shares, so that eight control texts weigh as much as the one of the
    target; p takes the counts as they are.

    Args:
        target: counts on the texts to forget.
        control: counts on the control texts, at the same levels.
        rule: see `SelectionRule`.
        retain: counts on texts that must survive; needed where `rule.max_retain_share` is set.

    Raises:
        ValueError: counts do not match or are missing.
    """
    _check_alike(target, control)
    if not all((target.n_tokens, target.n_texts, control.n_tokens, control.n_texts)):
        raise ValueError("The target or the control texts have no tokens: give one text or more of each.")
    spared = np.zeros(target.num_codes, dtype=bool)
    if rule.max_retain_share is not None:
        if retain is None or not retain.n_tokens:
            raise ValueError(
                f"`max_retain_share` is {rule.max_retain_share} and there are no counts on retain texts: give "
                "`retain`, or set `max_retain_share` to None."
            )
        _check_alike(target, retain)
        spared = retain.tokens[0] > rule.max_retain_share * retain.n_tokens
    r = enrichment(target.tokens, target.n_tokens, control.tokens, control.n_tokens)
    by_token = (target.tokens, target.n_tokens, control.tokens, control.n_tokens)
    by_text = (target.texts, target.n_texts, control.texts, control.n_texts)
    n_target, N_target, n_control, N_control = counts = by_token if rule.unit == "token" else by_text
    chi2, p = independence_test(*counts, exact=rule.exact)
    q = p
    if rule.correction == "bh":
        occurs = target.tokens + control.tokens > 0
        q = np.stack([false_discovery_rate(*level) for level in zip(p, occurs, strict=True)])
    # The test has two sides, and over texts its side need not be that of R.
    more_often = n_target / N_target > n_control / N_control
    passed = (r > rule.min_enrichment) & (q < rule.alpha) & more_often
    n_spared = int((passed & spared).any(axis=0).sum())
    return Selection(target, control, rule, r, chi2, p, q, passed & ~spared, n_spared)


def _check_alike(one: CodeCounts, other: CodeCounts) -> None:
    if one.levels != other.levels or one.num_codes != other.num_codes:
        raise ValueError(
            f"Counts of {one.num_codes} codes on lists of {one.levels} do not go with counts of {other.num_codes} on "
            f"lists of {other.levels}: count both with one codebook and the same list lengths."
        )


def _nothing_chosen(selection: Selection) -> str:
    rule, target, control = selection.rule, selection.target, selection.control
    share = f"{'p' if rule.correction == 'none' else 'q'} below {rule.alpha}"
    spared = selection.n_spared
    common = f" ({spared} have, and are spared as common in retain texts)" if spared else ""
    return (
        f"No code is specific to the {target.n_texts} texts to forget: at list lengths {target.levels}, none of the "
        f"{target.num_codes} has an enrichment above {rule.min_enrichment} and {share} against {control.n_texts} "
        f"control texts{common}. Give more examples, control texts without the subject, longer lists or a lower "
        f"`min_enrichment`; the codes with the largest enrichment are\n{selection.table()}"
    )
