"""From sets and a tier to a report: which passes are needed, each run once, then the metrics on what was recorded."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Literal

import numpy as np
from torch import nn

from llm_unlearn.data.tokenization import ExampleTokenizer, TokenizedItem
from llm_unlearn.evaluation.metrics import METRICS, SETS, MetricSpec
from llm_unlearn.evaluation.outputs import describe, generate, score
from llm_unlearn.evaluation.report import EvalReport, MetricRecord, item_record, require_same_rows, versions
from llm_unlearn.evaluation.statistics import bootstrap_interval
from llm_unlearn.suggest import unknown

Tier = Literal["train", "quick", "full"]

# Rows per set that are answered, from the first; None for all of them. All rows are scored in every tier.
_ANSWERED_ROWS: dict[str, dict[str, int | None]] = {
    "train": dict.fromkeys(SETS, 0),
    "quick": {"forget": None, "retain": 40, "real_authors": 20, "world_facts": 20, "holdout": 0},
    "full": dict.fromkeys(SETS),
}


@dataclass(frozen=True, eq=False)
class EvalSet:
    """One set of an evaluation.

    Attributes:
        name: `forget`, `retain`, `real_authors`, `world_facts` or `holdout`.
        rows: dicts with `question` and `answer`, and `value` where the answer's one fact is known; of rows in another
            form, `data.sources.as_question_answer`. Where the question is empty, as in plain text, no answer is
            generated.
        items: the same rows tokenised, in the same order.

    Raises:
        ValueError: the name is unknown, the set is empty, or rows and items differ in number.
    """

    name: str
    rows: Sequence[Mapping[str, Any]]
    items: Sequence[TokenizedItem]

    def __post_init__(self):
        if self.name not in SETS:
            raise ValueError(unknown("evaluation set", self.name, SETS))
        if not len(self.rows):
            raise ValueError(f"The set `{self.name}` is empty: give it rows, or leave it out of the evaluation.")
        if len(self.rows) != len(self.items):
            raise ValueError(
                f"The set `{self.name}` has {len(self.rows)} rows but {len(self.items)} tokenised items: make the "
                "items from the rows with `ExampleTokenizer.all`."
            )


class Evaluator:
    """Evaluates models on the same sets in the same way, so that their reports can be compared.

    Args:
        tokenizer: the tokenizer the items were made with.
        sets: the sets, at most one of a name.
        tier: `train` scores the given answers only, one forward pass; `quick` also generates answers on the forget set
            and on the first 40, 20 and 20 rows of `retain`, `real_authors` and `world_facts`, stopping each at 1.5
            times the tokens of the true answer plus 16; `full` generates all, up to `max_new_tokens`. Defaults to
            `quick`.
        max_new_tokens: longest generated answer. Defaults to 200, as in TOFU.
        progress: whether the main process shows progress bars.

    Raises:
        ValueError: the tier is unknown, there is no set, or two sets have the same name.
    """

    def __init__(
        self,
        tokenizer: ExampleTokenizer,
        sets: Sequence[EvalSet],
        tier: Tier = "quick",
        *,
        max_new_tokens: int = 200,
        progress: bool = True,
    ):
        if tier not in _ANSWERED_ROWS:
            raise ValueError(unknown("evaluation tier (`--eval`)", tier, _ANSWERED_ROWS))
        names = [eval_set.name for eval_set in sets]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"An evaluation needs sets of distinct names, but was given {names or 'none'}.")
        self.tokenizer = tokenizer
        self.sets = sorted(sets, key=lambda eval_set: SETS.index(eval_set.name))
        self.tier = tier
        self.max_new_tokens = max_new_tokens
        self.progress = progress

    def require_fit(self, reference: EvalReport) -> None:
        """Check that `reference` was made on the same forget rows; call it before a model is loaded.

        Raises:
            ValueError: it was not.
        """
        rows = [
            {"set": eval_set.name, "row": item.index, "question": row["question"], "answer": row["answer"]}
            for eval_set in self.sets
            for row, item in zip(eval_set.rows, eval_set.items, strict=True)
        ]
        require_same_rows(rows, reference.items, "reference")

    def evaluate(self, model: nn.Module) -> EvalReport:
        """Run `model` once over each set and kind of pass, and compute all metrics.

        Call it on every process; each gets the whole report. Compare it with others by `EvalReport.compare`.
        """
        started = time.perf_counter()
        metrics: dict[str, MetricRecord] = {}
        items: list[dict[str, Any]] = []
        for eval_set in self.sets:
            set_metrics, set_items = self._evaluate_set(model, eval_set)
            metrics |= set_metrics
            items += set_items
        provenance = {
            "tier": self.tier,
            "generation": self._generation(),
            "variants": {name: f"{spec.variant}, version {spec.version}" for name, spec in METRICS.items()},
            **describe(model),
            "wall_seconds": round(time.perf_counter() - started, 3),
            "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "versions": versions(),
        }
        return EvalReport(metrics=metrics, items=items, provenance=provenance)

    def _evaluate_set(self, model: nn.Module, eval_set: EvalSet) -> tuple[dict[str, MetricRecord], list[dict]]:
        name, rows = eval_set.name, eval_set.rows
        scores = score(model, eval_set.items, name=name, progress=self.progress)
        limit = _ANSWERED_ROWS[self.tier][name]
        answered = [item for item, row in zip(eval_set.items[:limit], rows, strict=False) if row["question"]]
        texts = self._answers(model, answered, name) if answered else []
        text_of = dict(zip((item.index for item in answered), texts, strict=True))
        unanswered = (
            "its rows are plain text, which asks nothing; name the columns of questions and answers"
            if not answered and limit != 0
            else f"the {self.tier} tier generates no answers on {name}; use `--eval {_first_answering_tier(name)}`"
        )
        record: dict[str, list] = {
            "scores": scores,
            "texts": [text_of.get(item.index) for item in eval_set.items],
            "answers": [row["answer"] for row in rows],
            "values": [None if row.get("value") in (None, "") else str(row["value"]) for row in rows],
        }
        metrics: dict[str, MetricRecord] = {}
        per_item: list[dict[str, float]] = [{} for _ in rows]
        for spec in METRICS.values():
            positions = _rows_with(spec.needs, record)
            if positions:
                values = spec.function(*[[record[need][position] for position in positions] for need in spec.needs])
                metrics[f"{name}/{spec.name}"] = _aggregate(spec, name, values)
                for position, value in zip(positions, values.tolist(), strict=True):
                    per_item[position][spec.name] = value
            elif _rows_with([need for need in spec.needs if need != "texts"], record):
                metrics[f"{name}/{spec.name}"] = MetricRecord.unmeasured(spec, name, unanswered)
        items = [
            item_record(name, item.index, row, text=text, values=values, logprobs=item_scores.logprobs)
            for row, item, text, values, item_scores in zip(
                rows, eval_set.items, record["texts"], per_item, scores, strict=True
            )
        ]
        return metrics, items

    def _answers(self, model: nn.Module, items: Sequence[TokenizedItem], name: str) -> list[str]:
        return generate(
            model,
            items,
            self.tokenizer,
            max_new_tokens=self.max_new_tokens,
            cap_by_reference=self._caps_by_reference,
            name=name,
            progress=self.progress,
        )

    @property
    def _caps_by_reference(self) -> bool:
        return self.tier == "quick"

    def _generation(self) -> str:
        """The rule of decoding, for the reader of a report."""
        if self.tier == "train":
            return "none"
        rule = f"greedy, at most {self.max_new_tokens} new tokens"
        return f"{rule} and 1.5 x the tokens of the true answer + 16" if self._caps_by_reference else rule


def _rows_with(needs: Sequence[str], record: Mapping[str, Sequence]) -> list[int]:
    """The rows on which everything needed was recorded."""
    return [
        position
        for position in range(len(record["scores"]))
        if all(record[need][position] is not None for need in needs)
    ]


def _first_answering_tier(set_name: str) -> str:
    return next(tier for tier, answered in _ANSWERED_ROWS.items() if answered[set_name] != 0)


def _aggregate(spec: MetricSpec, set_name: str, values: np.ndarray) -> MetricRecord:
    broken = int((~np.isfinite(values)).sum())
    if broken:
        return MetricRecord.unmeasured(
            spec,
            set_name,
            f"{broken} of {len(values)} values are not finite, because the model's log-probabilities are not: train it "
            "less or with a smaller `--learning_rate`",
        )
    return MetricRecord(
        value=float(values.mean()),
        ci95=bootstrap_interval(values),
        n=len(values),
        higher_is_better=spec.higher_is_better[set_name],
        range=spec.range,
    )
