"""Reports kept by what decides them, so that the same evaluation is never run twice and a stale one never reused.

The key covers the model (all weights and settings), rows, token ids and settings of the evaluation, the judge,
this package's code and the versions and device it runs on. Whatever of these changes, the report is made anew.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from accelerate.utils import broadcast_object_list, extract_model_from_parallel
from torch import nn
from transformers.utils import logging

from llm_unlearn.evaluation.evaluator import Evaluator, Judge
from llm_unlearn.evaluation.outputs.sharding import describe, process_state
from llm_unlearn.evaluation.report import EvalReport, versions
from llm_unlearn.files import write_text

logger = logging.get_logger(__name__)

Made = TypeVar("Made")

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
    # Of rows whose unknown words have the same ids, a report still shows the words.
    rows = [(eval_set.rows, eval_set.clusters) for eval_set in evaluator.sets]
    report, reused = make_once(
        lambda: evaluator.evaluate(model, judge),
        model,
        [identity, evaluator.settings, rows, judge and judge.name],
        folder,
        dump=EvalReport.to_json,
        load=EvalReport.from_json,
    )
    if reused:
        return EvalReport(report.metrics, items=report.items, provenance={**report.provenance, "reused": True})
    return report


def make_once(
    make: Callable[[], Made],
    model: nn.Module,
    decided_by: Sequence[Any],
    folder: Path | None,
    *,
    dump: Callable[[Made], str],
    load: Callable[[str], Made],
) -> tuple[Made, bool]:
    """What is measured of a model, and whether it was kept: from the cache where it is, else made and put there.

    Call it on every process; each gets the whole.

    Args:
        make: measures, on every process.
        model: the model.
        decided_by: what decides the outcome, beside this package's code, the versions and the device.
        folder: where such things are kept; None to keep and reuse none.
        dump: to text.
        load: from text, with an error where it is damaged.
    """
    if folder is None:
        return make(), False
    # The one setting of generation that is heeded, besides those of the model.
    ends = extract_model_from_parallel(model).generation_config.eos_token_id
    parts = [ends, *decided_by, code_digest(), versions(), describe(model)]
    key = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
    file = folder / f"{key}.json"
    state = process_state()
    kept = [_read(file, load) if state.is_main_process else None]
    if state.num_processes > 1:
        broadcast_object_list(kept)
    if kept[0] is not None:
        return kept[0], True
    made = make()
    if state.is_main_process:
        try:
            write_text(file, dump(made))
        except OSError as error:
            # What was asked for took its time to make.
            logger.warning("What was measured is not kept for reuse: %s", error)
    return made, False


def _read(file: Path, load: Callable[[str], Made]) -> Made | None:
    """What is kept, unless the file is damaged."""
    try:
        return load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


@cache
def code_digest() -> str:
    """SHA-256 over all code of this package."""
    digest = hashlib.sha256()
    for path in sorted(_CODE.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
