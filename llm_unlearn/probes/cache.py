"""Measurements kept by what decides them, so that one base serves any number of unlearned models.

The key covers the model (all weights and settings), the facts and questions as token ids, the settings that a
measurement depends on, this package's code, and versions and device. Whatever of these changes, the model is measured
anew.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from torch import nn

from llm_unlearn.evaluation.cache import make_once
from llm_unlearn.probes.frequency import FrequencyProbe
from llm_unlearn.probes.measurement import FactMeasurement

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
    tokenize = probe.tokenizer
    # The same facts are other ids under another tokenizer, system prompt or template.
    ids = [tokenize({"question": fact.question, "answer": fact.answer}, 0).input_ids for fact in probe.facts]
    settings = {name: getattr(probe.settings, name) for name in _ASKED_BY}
    facts = [dataclasses.asdict(fact) for fact in probe.facts]
    measured, _ = make_once(
        lambda: probe.measure(model, progress=progress),
        model,
        [identity, facts, ids, tokenize.max_length, settings],
        folder,
        dump=lambda measured: json.dumps([one.to_dict() for one in measured], ensure_ascii=False) + "\n",
        load=lambda text: [FactMeasurement.from_dict(record) for record in json.loads(text)],
    )
    return measured
