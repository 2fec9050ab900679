"""From sets and a tier to a report: which passes are needed, each run once, then the metrics on what was recorded."""

import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, Literal

import numpy as np
from torch import nn

from llm_unlearn.data.tokenization import ExampleTokenizer, TokenizedItem
from llm_unlearn.evaluation.conventions import get_convention
from llm_unlearn.evaluation.metrics.items import SETS, MetricSpec, item_metrics
from llm_unlearn.evaluation.metrics.summaries import SUMMARIES
from llm_unlearn.evaluation.outputs.generation import new_token_cap
from llm_unlearn.evaluation.outputs.sharding import describe
from llm_unlearn.evaluation.passes import Judge, run_passes
from llm_unlearn.evaluation.records import NO_BEFORE, NO_REFERENCE, MetricRecord
from llm_unlearn.evaluation.report import (
    EvalReport,
    commit,
    item_record,
    require_same_rows,
    require_same_scoring,
    versions,
)
from llm_unlearn.evaluation.sets import EvalSet
from llm_unlearn.evaluation.statistics import interval, resampling_weights, weighted_mean
from llm_unlearn.evaluation.summarise import summaries
from llm_unlearn.suggest import unknown

Tier = Literal["train", "quick", "full"]

# Rows per set that are answered, from the first; None for all of them. All rows are scored in every tier.
_ANSWERED_ROWS: dict[str, dict[str, int | None]] = {
    "train": dict.fromkeys(SETS, 0),
    "quick": {"forget": None, "retain": 40, "real_authors": 20, "world_facts": 20, "holdout": 0},
    "full": dict.fromkeys(SETS),
}


class Evaluator:
    """Evaluates models on the same sets in the same way, so that their reports can be compared.

    Args:
        tokenizer: the tokenizer the items were made with.
        sets: the sets, at most one of a name.
        tier: `train` scores the given answers only, one forward pass; `quick` also generates answers on the forget set
            and on the first 40, 20 and 20 rows of `retain`, `real_authors` and `world_facts`, stopping each at 1.5
            times the tokens of the true answer plus 16; `full` generates all, up to `max_new_tokens`, and adds what
            takes passes of its own: EL_10, gradient norms, ZRF and fluency. Defaults to `quick`.
        compat: name of the convention, see `conventions`. Defaults to `fixed`, ours.
        max_new_tokens: longest generated answer. Defaults to 200, as in TOFU.
        progress: whether the main process shows progress bars.

    Raises:
        ValueError: tier or convention are unknown, there is no set, two sets have the same name, or answers could have
            no token.
    """

    def __init__(
        self,
        tokenizer: ExampleTokenizer,
        sets: Sequence[EvalSet],
        tier: Tier = "quick",
        *,
        compat: str = "fixed",
        max_new_tokens: int = 200,
        progress: bool = True,
    ):
        if tier not in _ANSWERED_ROWS:
            raise ValueError(unknown("evaluation tier (`--eval`)", tier, _ANSWERED_ROWS))
        names = [eval_set.name for eval_set in sets]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"An evaluation needs sets of distinct names, but was given {names or 'none'}.")
        if max_new_tokens < 1:
            raise ValueError(f"`--max_new_tokens` is {max_new_tokens}; an answer has at least 1 token.")
        self.tokenizer = tokenizer
        self.sets = sorted(sets, key=lambda eval_set: SETS.index(eval_set.name))
        self.tier = tier
        self.convention = get_convention(compat)
        self.max_new_tokens = max_new_tokens
        self.progress = progress
        self.specs = {
            name: spec for name, spec in item_metrics(self.convention).items() if name.partition("/")[0] in names
        }

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides the numbers besides the model, hashed where long: for provenance and as a key."""
        return {
            "tier": self.tier,
            "compat": self.convention.name,
            "generation": self._generation(),
            "forget_ids": next((eval_set.digest for eval_set in self.sets if eval_set.name == "forget"), None),
            "ids": {eval_set.name: eval_set.digest for eval_set in self.sets},
            "rows": {eval_set.name: len(eval_set.rows) for eval_set in self.sets},
        }

    def require_fit(self, other: EvalReport, name: str = "reference") -> None:
        """Check that a report was made on the same forget rows, by the same definitions.

        Call it before a model is loaded. One of another tier or with another limit of answers fits; the report that
        compares with it says so.

        Args:
            other: the report to compare with.
            name: what it is: `reference` or `before`.

        Raises:
            ValueError: it was not.
        """
        rows = [
            {"set": eval_set.name, "row": item.index, "question": row["question"], "answer": row["answer"]}
            for eval_set in self.sets
            for row, item in zip(eval_set.rows, eval_set.items, strict=True)
        ]
        require_same_rows(rows, other.items, name)
        require_same_scoring(self.settings, other.provenance, name)

    def require(self, names: Sequence[str], *, has_before: bool, has_reference: bool) -> None:
        """Check that metrics asked for by name will be measured; call it before a model is loaded.

        Args:
            names: names as in reports.
            has_before: whether the model before unlearning is evaluated, too.
            has_reference: whether there is a reference report.

        Raises:
            ValueError: there is no such metric, or something it needs is missing.
        """
        for name in names:
            reported = [*SUMMARIES, *(name for name, spec in self.specs.items() if spec.reported)]
            if name not in reported:
                raise ValueError(unknown("metric", name, reported))
            needs = SUMMARIES[name].needs if name in SUMMARIES else (("own", *name.split("/")),)
            reason = next(filter(None, (self._why_not(*need, has_before, has_reference) for need in needs)), None)
            if reason:
                raise ValueError(f"`{name}` was asked for by name, but is {reason}.")

    def _why_not(self, whose: str, set_name: str, column: str, has_before: bool, has_reference: bool) -> str | None:
        if whose == "reference" and not has_reference:
            return NO_REFERENCE
        if whose == "before" and not has_before:
            return NO_BEFORE
        eval_set = next((eval_set for eval_set in self.sets if eval_set.name == set_name), None)
        if eval_set is None:
            mend = "; name one with `--holdout_split`" if set_name == "holdout" else ""
            return f"not measured: the data have no {set_name} set{mend}"
        needs = ("texts",) if column == "text" else self.specs[f"{set_name}/{column}"].needs
        missing = self._missing(eval_set, judged=True)
        return next((f"not measured: {missing[need]}" for need in needs if need in missing), None)

    def evaluate(self, model: nn.Module, judge: Judge | None = None) -> EvalReport:
        """Run `model` once over all sets per kind of pass, and compute all metrics.

        Call it on every process; each gets the whole report. Compare it with others by `EvalReport.compare`.

        Args:
            model: the model.
            judge: who judges how fluent its answers are, in the `full` tier; without one that is not measured.
        """
        started = time.perf_counter()
        records, impossible = run_passes(
            model,
            self.tokenizer,
            self.sets,
            answered={eval_set.name: self._answered(eval_set) for eval_set in self.sets},
            cap=self.cap,
            full=self.tier == "full",
            judge=judge,
            progress=self.progress,
        )
        metrics: dict[str, MetricRecord] = {}
        items: list[dict[str, Any]] = []
        reasons: dict[str, str] = {}
        for eval_set in self.sets:
            record = records[eval_set.name]
            per_item: list[dict[str, float]] = [{} for _ in eval_set.rows]
            missing = self._missing(eval_set, judged=judge is not None) | impossible
            for name, spec in self.specs.items():
                if name != f"{eval_set.name}/{spec.name}":
                    continue
                result = _measure(spec, eval_set.name, record, missing, eval_set.clusters, per_item)
                if result.not_measured and not spec.reported:
                    reasons[name] = result.not_measured
                # Rows of which none has a `value` make no question of value recall.
                elif spec.reported and not ("values" in spec.needs and "values" in missing):
                    metrics[name] = result
            items += self._items(eval_set, record, per_item)
        provenance = {
            **self.settings,
            "variants": {name: f"{spec.variant}, version {spec.version}" for name, spec in self.specs.items()},
            **({"judge": judge.name} if judge else {}),
            "not_measured": reasons,
            "curtailed": {eval_set.name: eval_set.curtailed for eval_set in self.sets if eval_set.curtailed},
            **describe(model),
            "wall_seconds": round(time.perf_counter() - started, 3),
            "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "commit": commit(),
            "versions": versions(),
        }
        alone = EvalReport(metrics=metrics, items=items, provenance=provenance)
        return EvalReport(metrics={**metrics, **summaries(alone)}, items=items, provenance=provenance)

    def _answered(self, eval_set: EvalSet) -> list[int]:
        """Positions of the rows that are answered; plain text asks nothing."""
        limit = _ANSWERED_ROWS[self.tier][eval_set.name]
        return [position for position, row in enumerate(eval_set.rows[:limit]) if row["question"]]

    def _missing(self, eval_set: EvalSet, judged: bool) -> dict[str, str]:
        """Kinds of records that no row of the set has, with the reason."""
        name, missing = eval_set.name, {}
        if not any(eval_set.paraphrases):
            missing["paraphrase_loss"] = f"the rows of {name} have no `paraphrased_answer`; use a `*_perturbed` split"
        if not any(eval_set.wrong):
            missing["wrong_losses"] = f"the rows of {name} have no `perturbed_answer`; use a `*_perturbed` split"
        if not self._answered(eval_set):
            missing["texts"] = (
                f"the {self.tier} tier generates no answers on {name}; use `--eval {_first_answering_tier(name)}`"
                if _ANSWERED_ROWS[self.tier][name] == 0
                else "its rows are plain text, which asks nothing; name the columns of questions and answers"
            )
            missing["ended"] = missing["text_nll"] = missing["texts"]
        if not any(row.get("value") for row in eval_set.rows):
            missing["values"] = f"the rows of {name} have no `value`"
        if self.tier != "full":
            passes = dict.fromkeys(
                ("el", "gradnorm", "js", "text_nll"), "only the full tier runs it; use `--eval full`"
            )
            missing = {**passes, **missing}
        elif not judged:
            missing["text_nll"] = "its texts were not judged by the model before unlearning; evaluate its adapter"
        if self.tier == "full" and not any(other.name == "holdout" for other in self.sets):
            missing["gradnorm"] = "the data have no holdout set; name one with `--holdout_split`"
        return missing

    def cap(self, item: TokenizedItem) -> int:
        """Most new tokens of the answer to `item`."""
        most = self.max_new_tokens
        if self.convention.total_length:
            most = max(1, min(most, self.convention.total_length - item.prompt_length))
        return new_token_cap(len(item.answer_ids), most) if self.tier == "quick" else most

    def _generation(self) -> str:
        """The rule of decoding, for the reader of a report."""
        if self.tier == "train":
            return "none"
        rule = f"greedy, at most {self.max_new_tokens} new tokens"
        if self.convention.total_length:
            rule += f" and {self.convention.total_length} with the prompt"
        return f"{rule} and 1.5 x the tokens of the true answer + 16" if self.tier == "quick" else rule

    def _items(self, eval_set: EvalSet, record: Mapping[str, list], per_item: list[dict]) -> list[dict[str, Any]]:
        return [
            item_record(
                eval_set.name, item.index, {**row, "author": cluster}, text=text, values=values, logprobs=logprobs
            )
            for row, item, cluster, text, values, logprobs in zip(
                eval_set.rows, eval_set.items, eval_set.clusters or [None] * len(eval_set.rows), record["texts"],
                per_item, record["logprobs"], strict=True,
            )
        ]  # fmt: skip


def _measure(
    spec: MetricSpec,
    set_name: str,
    record: Mapping[str, Sequence],
    missing: Mapping[str, str],
    clusters: Sequence | None,
    per_item: list[dict[str, float]],
) -> MetricRecord:
    """One metric on one set; the values of its items go into `per_item`."""
    shape = {"higher_is_better": spec.higher_is_better.get(set_name), "range": spec.range, "variant": spec.variant}
    rows = [i for i in range(len(per_item)) if all(record[need][i] is not None for need in spec.needs)]
    reason = next((missing[need] for need in spec.needs if need in missing), "no row has what it needs")
    if not rows:
        return MetricRecord(None, None, 0, not_measured=f"not measured: {reason}", **shape)
    values = spec.function(*[_column([record[need][row] for row in rows]) for need in spec.needs])
    # Where log-probabilities are not numbers there are no hits and no words, which must not read as perfect forgetting.
    values = np.where(np.isnan([record["loss"][row] for row in rows]), np.nan, values)
    broken = int((~np.isfinite(values)).sum())
    if broken:
        reason = (
            f"not measured: {broken} of {len(values)} values are not finite, because the model's log-probabilities are "
            "not: train it less or with a smaller `--learning_rate`"
        )
        return MetricRecord(None, None, 0, not_measured=reason, **shape)
    for row, value in zip(rows, values.tolist(), strict=True):
        per_item[row][spec.name] = value
    shown = spec.shown[set_name](values) if set_name in spec.shown else values
    drawn = None if clusters is None else [clusters[row] for row in rows]
    weights = resampling_weights(len(rows), drawn, seed=SETS.index(set_name))
    estimates = weighted_mean(shown, weights)
    left_out = 0 if spec.needs[-1] == "texts" else len(per_item) - len(rows)
    return MetricRecord(
        float(estimates[0]),
        interval(estimates) if len(rows) > 1 else None,
        len(rows),
        details={"left_out": left_out} if left_out else None,
        **shape,
    )


def _column(entries: list) -> list | np.ndarray:
    """Numbers as an array; texts and arrays of tokens stay a list."""
    return np.array(entries, dtype=np.float64) if isinstance(entries[0], float | bool) else entries


def _first_answering_tier(set_name: str) -> str:
    return next(tier for tier, answered in _ANSWERED_ROWS.items() if answered[set_name] != 0)
