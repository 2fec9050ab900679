"""Requests on a codebook model: plan, apply, revoke, purge. No gradient, no optimiser, no change of a weight but by
`purge`.

A plan reads the codes of the texts to forget and of control texts, and chooses those that the former use more often
(`selection`). Its strengths are nested: level i holds the codes found with lists of up to ``levels[i]`` codes per
token.
"""

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from typing import Any, Literal

import numpy as np

from llm_unlearn.codebook.controls import sibling_rows, swap_entities
from llm_unlearn.codebook.curve import CurvePoint, choose_level, measure
from llm_unlearn.codebook.gate import QUANTILE, GatePlan, plan_gate
from llm_unlearn.codebook.model import CodebookModel
from llm_unlearn.codebook.reading import CodeReading, count_codes, read_codes
from llm_unlearn.codebook.registry import DeletionRecord, DeletionRegistry, Mode
from llm_unlearn.codebook.selection import CORRECTED, Selection, SelectionRule, select_codes
from llm_unlearn.data.tokenization import ExampleTokenizer, TokenizedItem
from llm_unlearn.requests import KnowledgeRequest

Row = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class DeletionPlan:
    """What a request would delete; making one changes nothing.

    Attributes:
        id: of the request.
        selection: the statistics of every code, and the codes chosen at each level.
        levels: list lengths S', ascending; `level` in the methods is a position in them.
        gate: when the codes are ablated in the mode "gated".
        curve: what each level does, per mode; filled in by `CodeUnlearner.sweep`.
        grounds: kept in the record: rule, control, seeds, hashes.
    """

    id: str
    selection: Selection
    levels: tuple[int, ...]
    gate: GatePlan
    retain: tuple[CodeReading, ...]
    items: tuple[TokenizedItem, ...]
    retain_items: tuple[TokenizedItem, ...]
    curve: tuple[CurvePoint, ...] = ()
    grounds: dict[str, Any] = field(default_factory=dict)

    def codes(self, level: int = 0) -> tuple[int, ...]:
        """The codes of a level and all below it, ascending."""
        return tuple(int(code) for code in self.selection.codes(level))


class CodeUnlearner:
    """The verbs of CodeUnlearn on one model.

    Args:
        codebook: the model; its registry is what `apply`, `revoke` and `purge` change. `codebook.save_requests` keeps
            it.
        tokenize: as the model was trained with.
        progress: whether the main process shows progress bars.
    """

    def __init__(self, codebook: CodebookModel, tokenize: ExampleTokenizer, *, progress: bool = True):
        self.codebook, self.tokenize, self.progress = codebook, tokenize, progress

    def plan(
        self,
        forget: KnowledgeRequest | Sequence[Row],
        retain: Sequence[Row] = (),
        *,
        id: str | None = None,
        control: Literal["swap", "siblings"] | Sequence[Row] = "swap",
        rule: SelectionRule = CORRECTED,
        levels: Sequence[int] = (),
        variants: int = 8,
        seed: int = 0,
    ) -> DeletionPlan:
        """Choose codes for a request.

        Args:
            forget: the request, or rows to forget.
            retain: rows on other subjects: they lend names to the control texts, veto codes in common use, set gates'
                threshold, and are what `sweep` keeps an eye on. Of a request without, its own `retention`.
            id: of the request; unset, that of a `KnowledgeRequest`, else a random one, which says nothing of the rows.
            control: "swap", the same texts with the names of other subjects, `variants` of each; "siblings", the
                nearest rows on other subjects; or control rows.
            rule: how codes are chosen.
            levels: list lengths S'; unset: S, 2S and 4S.
            variants: control texts per text, at least 8 so that no single substitute stands out.
            seed: of the control texts.

        Raises:
            ValueError: nothing is specific to the texts, or no control can be made of them.
        """
        aliases: tuple[str, ...] = ()
        if isinstance(forget, KnowledgeRequest):
            id, aliases, retain = id or forget.id, forget.aliases, list(retain) or list(forget.retention)
            request_hash, forget = forget.hash, list(forget.exemplars)
        else:
            request_hash, forget = None, [_bare(row) for row in forget]
        retain = [_bare(row) for row in retain]
        if not forget:
            raise ValueError("The request has no examples, from which its codes are found: give `exemplars`.")
        if isinstance(control, str):
            if not retain:
                raise ValueError(
                    "Control texts are made with the names of other subjects, and no rows on any were given: pass "
                    "`retain` (`--retain_split`), or control rows (`--control FILE`)."
                )
            maker = {"swap": swap_entities, "siblings": sibling_rows}[control]
            options = {"aliases": aliases, "variants": variants, "seed": seed} if control == "swap" else {}
            control_rows, builder = maker(forget, retain, **options), control
        else:
            control_rows, builder = list(control), "given"
        levels = tuple(levels) or tuple(self.codebook.config.top_s * factor for factor in (1, 2, 4))
        items, others = self.tokenize.all(forget), self.tokenize.all(retain)
        read = {
            "forget": self._read(items, levels[-1], "forget texts"),
            "control": self._read(self.tokenize.all(control_rows), levels[-1], "control texts"),
            "retain": self._read(others, levels[-1], "retain texts") if others else [],
        }
        n_codes = self.codebook.config.num_codes
        counts = {name: count_codes(some, levels, n_codes) for name, some in read.items() if some}
        selection = select_codes(counts["forget"], counts["control"], rule, counts.get("retain"))
        gate = plan_gate(read, self.codebook.config.top_s, n_codes)
        salt = secrets.token_hex(16)
        grounds = {
            "rule": asdict(rule),
            "control": {"builder": builder, "variants": variants, "seed": seed, "texts": len(control_rows)},
            "levels": list(levels),
            "texts": {"salt": salt, "sha256": _hash(forget, salt), "count": len(forget)},
            "request_hash": request_hash,
            "codebook": self.codebook.weights_hash(),
            "tokens": {name: count.n_tokens for name, count in counts.items()},
            "gate": {**asdict(gate), "triggers": len(gate.triggers), "quantile": QUANTILE},
        }
        return DeletionPlan(
            id or f"request-{secrets.token_hex(6)}",
            selection,
            levels,
            gate,
            tuple(read["retain"]),
            tuple(items),
            tuple(others),
            grounds=grounds,
        )

    def sweep(
        self, plan: DeletionPlan, modes: Sequence[Mode] = ("ablate",), *, random_control: bool = True, seed: int = 0
    ) -> DeletionPlan:
        """The plan with its curve: what each level would do to the texts to forget and to those to keep, by forward
        passes.

        Args:
            plan: of this model.
            modes: how the codes would leave.
            random_control: whether to delete as many random codes, too, for comparison, behind the same gate if they
                are gated: of those that the texts to keep use, where there are any.
            seed: of the random codes.

        Raises:
            ValueError: "gated" is among the modes, and the plan's gate cannot be used.
        """
        lists = [reading.codes[:, : self.codebook.config.top_s] for reading in plan.retain]
        used = np.unique(np.concatenate(lists)) if lists else np.arange(self.codebook.config.num_codes)
        points = []
        for mode in ("none", *modes):
            _require_gate(plan, mode)
            for level in range(len(plan.levels)) if mode != "none" else (0,):
                codes = () if mode == "none" else plan.codes(level)
                points.append(self._point(plan, codes, mode, level, "selected"))
                if random_control and codes:
                    generator = np.random.default_rng([seed, level])
                    drawn = generator.choice(used, min(len(codes), len(used)), replace=False)
                    points.append(self._point(plan, tuple(map(int, drawn)), mode, level, "random"))
        return replace(plan, curve=tuple(points))

    def apply(
        self,
        plan: DeletionPlan,
        strength: int | Literal["auto"] = "auto",
        mode: Mode = "ablate",
        *,
        max_retain_rise: float = 0.02,
        max_probability: float | None = None,
        max_silent: float = 0.0,
    ) -> str:
        """Delete a plan's codes, in seconds; returns the request's id.

        Args:
            plan: of this model.
            strength: a level, or "auto": the smallest that brings the answers to forget to `max_probability` (unset: as
                low as any) while the loss on what is kept rises by at most `max_retain_rise`. "auto" needs a `sweep`.
            mode: "ablate", "refill" (as in the paper) or "gated"; see `bottleneck`.
            max_retain_rise: relative; 0.02 as in our specification.
            max_probability: in [0, 1].
            max_silent: share of the tokens to keep that "ablate" may leave without any code, in [0, 1]; later layers
                then read the decoder's bias in their place.

        Raises:
            ValueError: no level keeps within the budget, more tokens to keep would be left without any code, no code is
                sure enough to open a gate, a number is out of range, or the plan was made on another codebook, or
                before a purge.
        """
        if not (max_retain_rise >= 0 and 0 <= max_silent <= 1):
            raise ValueError(
                f"`max_retain_rise` is {max_retain_rise} and `max_silent` is {max_silent}: give a rise from 0 up, and "
                "a share from 0 to 1."
            )
        if plan.grounds["codebook"] != self.codebook.weights_hash():
            raise ValueError(
                f"The plan of request {plan.id!r} was made with other codes than these, perhaps before a purge, and "
                "would delete something else: plan it anew."
            )
        if strength == "auto":
            strength = choose_level(plan.curve, mode, max_retain_rise, max_probability)
        if not 0 <= strength < len(plan.levels):
            raise ValueError(f"Strength {strength} was asked for; the plan has {len(plan.levels)}, from 0.")
        codes = plan.codes(strength)
        _require_gate(plan, mode)
        self._require_codes_left(plan, codes, mode, max_silent)
        grounds = plan.grounds | {
            "strength": strength,
            "codes": plan.selection.grounds(codes),
            "curve": [asdict(point) for point in plan.curve],
        }
        created = datetime.now(timezone.utc).isoformat(timespec="seconds")
        before = list(self.codebook.registry)
        self.codebook.registry.add(_record(plan, codes, mode, created=created, grounds=grounds))
        try:
            self.codebook.delete()
        except ValueError:
            # Too many codes together with those of other requests.
            self.codebook.registry = DeletionRegistry(before)
            raise
        return plan.id

    def revoke(self, request_id: str) -> None:
        """Give a request's codes back, except those that another active request holds.

        Raises:
            KeyError: there is no such request.
            ValueError: it was purged.
        """
        self.codebook.registry.set_status(request_id, "revoked")
        self.codebook.delete()

    def purge(self, request_id: str) -> None:
        """Remove the vectors of a request's codes for good. It stays forgotten and cannot be revoked.

        Refilled codes are dropped and the others renumbered; of ablated ones the direction stays, so that they are
        still found, and the vector is gone. Of a gated request this happens to the triggers, in every text, and the
        gate stays in force: what it ablates serves other texts too. This removes codes, not the facts in the model's
        weights: without the bottleneck the model still knows them.

        Raises:
            KeyError: there is no such request.
            ValueError: it is not active, or another request in force in another mode shares its codes.
        """
        self.codebook.purge(request_id)

    def _read(self, items: Sequence[TokenizedItem], k: int, name: str) -> list[CodeReading]:
        return read_codes(self.codebook, items, self.tokenize, k, name=name, progress=self.progress)

    def _point(self, plan: DeletionPlan, codes: tuple[int, ...], mode: str, level: int, chosen: str) -> CurvePoint:
        trial = DeletionRegistry(self._others(plan))
        if codes:
            trial.add(_record(plan, codes, mode))
        try:
            self.codebook.bottleneck.set_deleted(**trial.deleted())
            forget, kept = (measure(self.codebook.base_model, some) for some in (plan.items, plan.retain_items))
        finally:
            self.codebook.delete()
        return CurvePoint(mode, level, len(codes), chosen, *forget, *kept)

    def _others(self, plan: DeletionPlan) -> list[DeletionRecord]:
        """The requests in force but an earlier form of this one, which applying it replaces."""
        return [record for record in self.codebook.registry.in_force if record.id != plan.id]

    def _require_codes_left(self, plan: DeletionPlan, codes: tuple[int, ...], mode: Mode, max_silent: float) -> None:
        if mode != "ablate" or not plan.retain:
            return
        purged = self.codebook.bottleneck.purged.nonzero()[:, 0].tolist()
        gone = np.array(sorted({*codes, *purged, *DeletionRegistry(self._others(plan)).deleted()["ablated"]}))
        silent = sum(
            int(np.isin(reading.codes[:, : self.codebook.config.top_s], gone).all(-1).sum()) for reading in plan.retain
        )
        total = sum(len(reading.tokens) for reading in plan.retain)
        if silent > max_silent * total:
            raise ValueError(
                f"Ablating {len(gone)} codes would leave {silent} of {total} tokens to be kept without any code: "
                "choose a lower strength, the mode 'gated', or allow it (`--max_silent`)."
            )


def _bare(row: Row) -> dict[str, Any]:
    names = ("question", "answer", "text", "prompt", "completion", "messages")
    return {name: row[name] for name in names if name in row}


def _hash(rows: Sequence[Row], salt: str) -> str:
    return hashlib.sha256((salt + repr([sorted(row.items()) for row in rows])).encode()).hexdigest()


def _require_gate(plan: DeletionPlan, mode: str) -> None:
    if mode == "gated" and plan.gate.objection:
        raise ValueError(f"Request {plan.id!r} cannot be gated: {plan.gate.objection}")


def _record(plan: DeletionPlan, codes: tuple[int, ...], mode: Mode, **told: Any) -> DeletionRecord:
    gate = {"triggers": plan.gate.triggers, "threshold": plan.gate.threshold} if mode == "gated" else {}
    return DeletionRecord(plan.id, codes, mode, **gate, **told)
