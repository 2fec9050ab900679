"""Flags that recipes and commands share: of a bottleneck, of how codes are chosen, and of how strongly they go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from llm_unlearn.codebook.config import CodebookConfig
    from llm_unlearn.codebook.selection import SelectionRule
    from llm_unlearn.codebook.unlearner import CodeUnlearner, DeletionPlan
    from llm_unlearn.requests import KnowledgeRequest


@dataclass
class CodebookFlags:
    """The bottleneck that is put into a model."""

    layer: int | None = field(
        default=None, metadata={"help": "Layer of the bottleneck, from 0. Unset: 0.4 of the depth."}
    )
    site: Literal["block", "post_attn"] = field(
        default="block", metadata={"help": "Replace a layer's output, or its input plus attention (the paper's)."}
    )
    num_codes: int = field(default=10_000, metadata={"help": "Codes K."})
    code_dim: int | None = field(
        default=None, metadata={"help": "Length of a code. Unset: the model's width; with --init_whiten twice that."}
    )
    top_s: int = field(default=8, metadata={"help": "Codes per token, S."})
    combine: Literal["sum", "mean"] = field(default="sum", metadata={"help": "Sum or mean of the S codes."})
    norm: Literal["rms", "layer", "none"] = field(default="rms", metadata={"help": "Norm of the encoder's input."})
    unit_z: bool = field(default=True, metadata={"help": "Bring the encoder's output to root mean square 1."})

    def codebook_config(self, seed: int) -> CodebookConfig:
        """The config that these flags describe, and whichever others have the name of one of its fields."""
        from llm_unlearn.codebook.config import CodebookConfig

        names = {f.name for f in fields(CodebookConfig)} & {f.name for f in fields(self)}
        return CodebookConfig(**{name: getattr(self, name) for name in names} | {"seed": seed})


@dataclass
class PlanningFlags:
    """How the codes of a request are chosen."""

    id: str | None = field(
        default=None, metadata={"help": "Id of the request. Unset: that of its file, or the name of the forget split."}
    )
    control: str = field(
        default="swap",
        metadata={
            "help": "Control texts: swap (the texts to forget with names of the rows to keep), siblings (the nearest "
            "rows to keep), or a split."
        },
    )
    control_variants: int = field(default=8, metadata={"help": "Control texts per text, with different names."})
    selection: Literal["corrected", "paper"] = field(
        default="corrected",
        metadata={"help": "Rule by which codes are chosen: ours, or the paper's (R > 0, p < .05 over tokens)."},
    )
    min_enrichment: float | None = field(
        default=None,
        metadata={"help": "Codes must be used this many doublings more often. Unset: the rule's (1 or 0)."},
    )
    levels: list[int] = field(
        default_factory=list,
        metadata={"help": "List lengths S' that are counted, a strength each, ascending. Unset: S, 2S, 4S."},
    )
    retain_rows: int = field(default=400, metadata={"help": "Rows to keep that are read; the first of the split."})
    seed: int = field(default=0, metadata={"help": "Of the control texts and of random deletions."})

    def rule(self) -> SelectionRule:
        """The rule that these flags describe."""
        from llm_unlearn.codebook.selection import CORRECTED, PAPER

        rule = {"corrected": CORRECTED, "paper": PAPER}[self.selection]
        return rule if self.min_enrichment is None else replace(rule, min_enrichment=self.min_enrichment)

    def control_rows(self, place: str | None, columns: Mapping[str, str]) -> str | list[Mapping[str, Any]]:
        """The rows of the split that `control` names, or the name of a builder."""
        from llm_unlearn.data.sources import load_rows
        from llm_unlearn.data.tofu import source_or_bundled

        if self.control in ("swap", "siblings"):
            return self.control
        return list(load_rows(self.control, source_or_bundled(place), columns))

    def plan(
        self,
        unlearner: CodeUnlearner,
        forget: KnowledgeRequest | Sequence[Mapping[str, Any]],
        retain: Sequence[Mapping[str, Any]],
        control: str | Sequence[Mapping[str, Any]],
        split: str,
    ) -> DeletionPlan:
        """The plan of a request, or of the rows of a split."""
        named = split.replace("[", ".").replace(":", "-").rstrip("]")
        return unlearner.plan(
            forget,
            list(retain)[: self.retain_rows],
            id=self.id or (named if isinstance(forget, Sequence) else None),
            control=control,
            rule=self.rule(),
            levels=self.levels,
            variants=self.control_variants,
            seed=self.seed,
        )


@dataclass
class StrengthFlags:
    """How strongly, and how, codes are deleted."""

    mode: Literal["ablate", "refill", "gated"] = field(
        default="ablate",
        metadata={"help": "Deleted codes say nothing, are replaced by the next (the paper's), or gated."},
    )
    strength: str = field(
        default="auto", metadata={"help": "Position in the levels, from 0; or auto: what forgets most in the budget."}
    )
    max_retain_rise: float = field(
        default=0.02, metadata={"help": "Budget of auto: relative rise of the loss on the rows to keep."}
    )
    max_probability: float | None = field(
        default=None,
        metadata={"help": "Of auto: forget answers' probability that is low enough. Unset: as low as can be."},
    )
    max_silent: float = field(
        default=0.0, metadata={"help": "Share of the tokens to keep that ablate may leave without any code."}
    )

    def level(self) -> int | Literal["auto"]:
        """The strength as `CodeUnlearner.apply` takes it.

        Raises:
            ValueError: it is neither auto nor a whole number from 0.
        """
        if self.strength == "auto":
            return "auto"
        if not self.strength.isdigit():
            raise ValueError(f"`--strength` is {self.strength!r}; give auto, or a position in the levels, from 0.")
        return int(self.strength)

    def apply(self, unlearner: CodeUnlearner, plan: DeletionPlan) -> str:
        """Delete the codes of a plan, in force at once; returns the request's id."""
        limits = ("max_retain_rise", "max_probability", "max_silent")
        return unlearner.apply(plan, self.level(), self.mode, **{name: getattr(self, name) for name in limits})
