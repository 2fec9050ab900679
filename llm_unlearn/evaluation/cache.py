"""Reports kept by what decides them, so that the same evaluation is never run twice and a stale one never reused.

The key covers the model (all weights and settings), rows, token ids and settings of the evaluation, the judge,
this package's code and the versions and device it runs on. Whatever of these changes, the report is made anew.
"""

import hashlib
import json
from functools import cache
from pathlib import Path

from accelerate.utils import broadcast_object_list, extract_model_from_parallel
from torch import nn
from transformers.utils import logging

from llm_unlearn.evaluation.evaluator import Evaluator, Judge
from llm_unlearn.evaluation.outputs.sharding import describe, process_state
from llm_unlearn.evaluation.report import EvalReport, versions
from llm_unlearn.files import write_text

logger = logging.get_logger(__name__)

_CODE = Path(__file__).parents[1]


def evaluate_once(
    evaluator: Evaluator, model: nn.Module, identity: str, judge: Judge | None, folder: Path | None
) -> EvalReport:
    """The report of `evaluator` on `model`: from the cache where it is, else made and put there.

    Call it on every process; each gets the whole report.

    Args:
        evaluator: sets and settings.
        model: the model.
        identity: hash of all in the model that decides its outputs (`models.identity`).
        judge: see `Evaluator.evaluate`.
        folder: where reports are kept; None to keep and reuse none.
    """
    if folder is None:
        return evaluator.evaluate(model, judge)
    file = folder / f"{_key(evaluator, model, identity, judge)}.json"
    state = process_state()
    kept = [_read(file) if state.is_main_process else None]
    if state.num_processes > 1:
        broadcast_object_list(kept)
    if kept[0] is not None:
        report = EvalReport.from_json(kept[0])
        return EvalReport(report.metrics, items=report.items, provenance={**report.provenance, "reused": True})
    report = evaluator.evaluate(model, judge)
    if state.is_main_process:
        try:
            write_text(file, report.to_json())
        except OSError as error:
            # What was asked for is the report, which took its time to make.
            logger.warning("The report is not kept for reuse: %s", error)
    return report


def _key(evaluator: Evaluator, model: nn.Module, identity: str, judge: Judge | None) -> str:
    # Of rows whose unknown words have the same ids, a report still shows the words.
    rows = [(eval_set.rows, eval_set.clusters) for eval_set in evaluator.sets]
    # The one setting of generation that is heeded, besides those of the model.
    ends = extract_model_from_parallel(model).generation_config.eos_token_id
    parts = [identity, ends, evaluator.settings, rows, judge and judge.name, code_digest(), versions(), describe(model)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _read(file: Path) -> str | None:
    """A kept report, unless the file is damaged."""
    try:
        text = file.read_text(encoding="utf-8")
        EvalReport.from_json(text)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return text


@cache
def code_digest() -> str:
    """SHA-256 over all code of this package."""
    digest = hashlib.sha256()
    for path in sorted(_CODE.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
