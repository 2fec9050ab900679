"""The report of an evaluation: what is known after unlearning, beside before, beside a model that never learned it.

A report is a JSON file that any later evaluation can take as its reference: it holds every metric with interval,
direction and target, and per row the loss and, where membership is asked for, the token log-probabilities. Reading,
comparing and printing reports needs neither torch nor a model.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_unlearn.evaluation import rendering
from llm_unlearn.evaluation.metrics import target_of
from llm_unlearn.evaluation.records import NO_BEFORE, NO_REFERENCE, MetricRecord
from llm_unlearn.evaluation.summarise import summaries
from llm_unlearn.files import write_text
from llm_unlearn.version import __version__

if TYPE_CHECKING:
    from rich.table import Table

SCHEMA = "llm-unlearn/report/1"

# What a reader compares item by item, and what is drawn.
_SIDE_BY_SIDE = ("text", "probability", "loss", "truth_ratio", "rouge_l_recall", "extraction_strength")
_TOKEN_LOGPROBS_OF = ("forget", "holdout")
_PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "tokenizers", "numpy", "rouge-score")


@dataclass(frozen=True)
class EvalReport:
    """A model's report, alone or compared with the models before unlearning and without the forget set.

    Attributes:
        metrics: ``<set>/<metric>`` to its record.
        before: the same of the model before unlearning; empty where the report is of one model.
        reference: the same of the retain model; every record says `NO_REFERENCE` where a comparison had none.
        items: one dict per row: `set`, `row`, `kind`, `question`, `answer`, `text` (None where none was generated),
            `loss`, `n_tokens`, one value per metric that has one for this row, and `token_logprobs` on forget and
            holdout. What a reader compares of the other models is kept inside, under `before` and `reference`.
        provenance: where the numbers come from.
    """

    metrics: Mapping[str, MetricRecord]
    before: Mapping[str, MetricRecord] = field(default_factory=dict)
    reference: Mapping[str, MetricRecord] = field(default_factory=dict)
    items: Sequence[Mapping[str, Any]] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def compare(
        cls,
        after: EvalReport,
        before: EvalReport | None = None,
        reference: EvalReport | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> EvalReport:
        """Put the report of a model beside those of the model before unlearning and of the retain model.

        They may be of other tiers, limits of answers or precisions; pages and tables then say so.

        Args:
            after: the model in question, as `Evaluator.evaluate` reports it.
            before: the model before unlearning, evaluated in the same way.
            reference: the retain model, which never saw the forget set; usually loaded from its file.
            provenance: added to that of `after`: command, model and data names, seeds, commit.

        Raises:
            ValueError: the reports were made on different rows, by another convention or with another tokenizer.
        """
        for name, other in (("before", before), ("reference", reference)):
            if other is not None:
                require_same_rows(after.items, other.items, name)
                require_same_scoring(after.provenance, other.provenance, name)
        metrics = {**after.metrics, **summaries(after, before, reference)}
        sources = {
            "before": _records_of(before, metrics, before, reference, NO_BEFORE),
            "reference": _records_of(reference, metrics, before, reference, NO_REFERENCE),
        }

        def with_targets(records: Mapping[str, MetricRecord]) -> dict[str, MetricRecord]:
            return {name: dataclasses.replace(record, target=target(name)) for name, record in records.items()}

        def target(name: str) -> float | None:
            source = target_of(name)
            return sources[source][name].value if isinstance(source, str) else source

        others = {name: report for name, report in (("before", before), ("reference", reference)) if report is not None}
        return cls(
            metrics=with_targets(metrics),
            before=with_targets(sources["before"]) if before is not None else {},
            reference=with_targets(sources["reference"]),
            items=_side_by_side(after.items, others),
            provenance={
                **after.provenance,
                **(provenance or {}),
                **{name: dict(report.provenance) for name, report in others.items()},
            },
        )

    def to_json(self) -> str:
        """The report as JSON, one line per item; what is not finite becomes null."""
        blocks = {
            "schema": SCHEMA,
            "metrics": {name: record.to_dict() for name, record in self.metrics.items()},
            "before": {name: record.to_dict() for name, record in self.before.items()},
            "reference": {name: record.to_dict() for name, record in self.reference.items()},
        }
        lines = [f"{json.dumps(key)}: {_dumps(value, indent=1)}" for key, value in blocks.items()]
        rows = ",\n".join(_dumps(item) for item in self.items)
        lines += [f'"items": [\n{rows}\n]', f'"provenance": {_dumps(self.provenance, indent=1)}']
        return "{\n" + ",\n".join(lines) + "\n}\n"

    @classmethod
    def from_json(cls, text: str) -> EvalReport:
        """Read what `to_json` wrote.

        Raises:
            ValueError: the text is no report of this schema.
        """
        record = json.loads(text)
        schema = record.get("schema") if isinstance(record, dict) else None
        if schema != SCHEMA:
            raise ValueError(
                f"This is no report that can be read here: its schema is {schema!r}, not {SCHEMA!r}; make one with "
                "`llm-unlearn eval`."
            )
        blocks = {
            block: {name: MetricRecord.from_dict(value) for name, value in record[block].items()}
            for block in ("metrics", "before", "reference")
        }
        return cls(**blocks, items=record["items"], provenance=record["provenance"])

    @classmethod
    def load(cls, path: str | os.PathLike) -> EvalReport:
        """Read a report from its file, or from the folder it was saved in.

        Raises:
            FileNotFoundError: there is none.
            ValueError: the file is no report of this schema.
        """
        file = Path(path)
        file = file / "report.json" if file.is_dir() else file
        if not file.is_file():
            raise FileNotFoundError(f"There is no report at {file}: make one with `llm-unlearn eval --output_dir ...`.")
        try:
            return cls.from_json(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{file} cannot be read as a report. {error}") from error

    def save(self, folder: str | os.PathLike) -> None:
        """Write `report.json`, `.md` and `.html` into `folder`, each completely or not at all. For the main process."""
        from llm_unlearn.evaluation import html

        write_text(Path(folder) / "report.json", self.to_json())
        write_text(Path(folder) / "report.md", self.to_markdown())
        write_text(Path(folder) / "report.html", html.page(self))

    def require(self, names: Sequence[str]) -> None:
        """Check that metrics asked for by name have a value.

        Raises:
            ValueError: one has none; the message says why.
        """
        for name in names:
            if self.metrics[name].not_measured:
                raise ValueError(f"`{name}` was asked for by name, but is {self.metrics[name].not_measured}.")

    def table(self) -> Table:
        """The metrics as a table of `rich`: before, after, retain model, target, n. Print it with a `Console`.

        It fits 80 columns with every name whole; intervals are left to the report.
        """
        return rendering.metrics_table(self)

    @property
    def has_answers(self) -> bool:
        """Whether there is an answer to show in `answers_table`."""
        return any(item["set"] == "forget" and item["text"] is not None for item in self.items)

    def answers_table(self, k: int = rendering.EXAMPLES_SHOWN) -> Table:
        """`k` answers to forget questions as a table of `rich`, spread evenly over the rows rather than picked."""
        return rendering.answers_table(self, k)

    def metrics_markdown(self) -> str:
        """The metrics, what was not measured, and how to read both. It holds no question and no answer: a page that
        is published must not repeat what was to be forgotten."""
        return rendering.metrics_markdown(self)

    def to_markdown(self) -> str:
        """The report as one page of Markdown: metrics, what was not measured, example answers, provenance."""
        return rendering.page_markdown(self)


def item_record(
    set_name: str,
    row: int,
    example: Mapping[str, Any],
    *,
    text: str | None,
    values: Mapping[str, float],
    logprobs: np.ndarray,
) -> dict[str, Any]:
    """One entry of `EvalReport.items`.

    Args:
        set_name: the set.
        row: stable number of the row in its data set.
        example: the row, with `question` and `answer`.
        text: the generated answer; None where none was generated.
        values: the value of this item, per metric that has one.
        logprobs: log-probabilities of the answer tokens, ``(n_tokens,)``; kept to six decimals on forget and holdout.
    """
    record = {
        "set": set_name,
        "row": row,
        "kind": "answer",
        "question": example["question"],
        "answer": example["answer"],
        "text": text,
        "loss": -float(logprobs.mean(dtype=np.float64)),
        "n_tokens": len(logprobs),
        **values,
    }
    if example.get("author") is not None:
        record["author"] = example["author"]
    if set_name in _TOKEN_LOGPROBS_OF:
        record["token_logprobs"] = [round(logprob, 6) for logprob in logprobs.tolist()]
    return _without_nan(record)


def require_same_rows(items: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]], name: str) -> None:
    """Check that every forget row has its counterpart in another report, with the same question and answer.

    Args:
        items: dicts with `set`, `row`, `question` and `answer`.
        others: the items of the other report.
        name: what the other report is: `before` or `reference`.

    Raises:
        ValueError: a row has none, or another one.
    """
    counterparts = {(other["set"], other["row"]): other for other in others}
    for item in items:
        other = counterparts.get((item["set"], item["row"]))
        if other is None and item["set"] != "forget":
            continue
        if other is None or (other["question"], other["answer"]) != (item["question"], item["answer"]):
            found = "is missing" if other is None else f"has the answer {other['answer']!r}"
            raise ValueError(
                f"The {name} report was made on other data: row {item['row']} of {item['set']} {found} there and has "
                f"the answer {item['answer']!r} here; make the report again with `llm-unlearn eval` on these data."
            )


def require_same_scoring(own: Mapping[str, Any], other: Mapping[str, Any], name: str) -> None:
    """Check by their provenances that two reports score the forget set by the same definitions and token ids.

    Raises:
        ValueError: they do not.
    """
    for key, what, mend in (
        ("compat", "convention", "make it again with the same `--compat`"),
        ("forget_ids", "tokenizer, prompt or length", "make it again with a model of the same tokenizer and settings"),
    ):
        if own.get(key) != other.get(key):
            raise ValueError(
                f"The {name} report was made with another {what} ({other.get(key)} there, {own.get(key)} here), so its "
                f"numbers cannot be compared: {mend}."
            )


def commit() -> str | None:
    """Commit of the checkout this code runs from, with a plus where files differ from it; None where it is none."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    git = ["git", "-C", str(root)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def versions() -> dict[str, str]:
    """Versions of this package, of Python and of the packages the numbers depend on."""
    return {
        "llm-unlearn": __version__,
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in _PACKAGES},
    }


def _records_of(
    report: EvalReport | None,
    shapes: Mapping[str, MetricRecord],
    before: EvalReport | None,
    reference: EvalReport | None,
    reason: str,
) -> dict[str, MetricRecord]:
    """The records of another report under the names of `shapes`; where there is none, why."""
    own = {} if report is None else {**report.metrics, **summaries(report, before, reference)}
    records = {}
    for name, shape in shapes.items():
        missing = (
            reason if report is None else f"not measured: that report has no {name}; make it again with `--eval full`"
        )
        records[name] = own.get(name) or dataclasses.replace(
            shape, value=None, ci95=None, n=0, not_measured=missing, details=None
        )
    return records


def _side_by_side(items: Sequence[Mapping[str, Any]], reports: Mapping[str, EvalReport]) -> list[dict[str, Any]]:
    """The items of one model with those of others inside, reduced to what a reader compares."""
    joined = [dict(item) for item in items]
    for name, report in reports.items():
        counterparts = {(other["set"], other["row"]): other for other in report.items}
        for item in joined:
            other = counterparts.get((item["set"], item["row"]))
            if other is not None:
                item[name] = {key: other[key] for key in _SIDE_BY_SIDE if key in other}
    return joined


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _without_nan(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(part) for part in value]
    return value


def _dumps(value: Any, indent: int | None = None) -> str:
    return json.dumps(_without_nan(value), ensure_ascii=False, allow_nan=False, indent=indent)
