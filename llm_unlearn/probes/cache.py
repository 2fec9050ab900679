"""Measurements kept by what decides them, so that one base serves any number of unlearned models.

The key covers the model (all weights and settings), the facts and questions as token ids, the settings that a
measurement depends on, this package's code, and versions and device. Whatever of these changes, the model is measured
anew.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list, extract_model_from_parallel
from torch import nn
from transformers.utils import logging

from llm_unlearn.evaluation.cache import code_digest
from llm_unlearn.evaluation.outputs.sharding import describe, process_state
from llm_unlearn.evaluation.report import versions
from llm_unlearn.files import write_text
from llm_unlearn.probes.frequency import FrequencyProbe
from llm_unlearn.probes.measurement import FactMeasurement

logger = logging.get_logger(__name__)

_ASKED_BY = ("max_new_tokens", "leak_samples", "wrong_objects", "reference", "seed")
"""Settings that a measurement depends on; the others decide what is made of it."""


def measure_once(
    probe: FrequencyProbe, model: nn.Module, identity: str, folder: Path | None, *, progress: bool = True
) -> list[FactMeasurement]:
    """The measurements of `probe` on `model`: from the cache where they are, else made and put there.

    Call it on every process; each gets all of them.

    Args:
        probe: facts and settings.
        model: the model.
        identity: hash of all in the model that decides its outputs (`models.identity`).
        folder: where measurements are kept; None to keep and reuse none.
        progress: whether the main process shows progress bars.
    """
    if folder is None:
        return probe.measure(model, progress=progress)
    file = folder / f"{_key(probe, model, identity)}.json"
    state = process_state()
    kept = [_read(file) if state.is_main_process else None]
    if state.num_processes > 1:
        broadcast_object_list(kept)
    if kept[0] is not None:
        return kept[0]
    measured = probe.measure(model, progress=progress)
    if state.is_main_process:
        try:
            write_text(file, json.dumps([one.to_dict() for one in measured], ensure_ascii=False) + "\n")
        except OSError as error:
            # What was asked for are the measurements, which took their time to make.
            logger.warning("The measurements are not kept for reuse: %s", error)
    return measured


def _key(probe: FrequencyProbe, model: nn.Module, identity: str) -> str:
    tokenize = probe.tokenizer
    # The same facts are other ids under another tokenizer, system prompt or template.
    ids = [tokenize({"question": fact.question, "answer": fact.answer}, 0).input_ids for fact in probe.facts]
    settings = {name: getattr(probe.settings, name) for name in _ASKED_BY}
    ends = extract_model_from_parallel(model).generation_config.eos_token_id
    facts = [dataclasses.asdict(fact) for fact in probe.facts]
    parts: list[Any] = [identity, ends, facts, ids, tokenize.max_length, settings]
    parts += [code_digest(), versions(), describe(model)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _read(file: Path) -> list[FactMeasurement] | None:
    """Kept measurements, unless the file is damaged."""
    try:
        return [FactMeasurement.from_dict(record) for record in json.loads(file.read_text(encoding="utf-8"))]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
