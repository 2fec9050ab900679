"""The target of a controlled world, and what the probe measures on it: each made once and kept."""

import hashlib
import json
from pathlib import Path

from filelock import FileLock

from llm_unlearn.files import write_json
from llm_unlearn.models import load_model
from llm_unlearn.paths import cache_dir
from llm_unlearn.probes.controlled import ControlledWorld
from llm_unlearn.probes.disagreement import knows
from llm_unlearn.probes.frequency import FrequencyProbe
from llm_unlearn.probes.measurement import FactMeasurement
from llm_unlearn.testbed import CHAT_TEMPLATE, MODEL, RECIPE_VERSION, TRAINING, train_from_nothing, train_tokenizer


def cached_target(world: ControlledWorld, seed: int, epochs: int) -> Path:
    """Where the target that learns a world will lie: a folder of the cache, by a hash of its rows and settings."""
    decides = [MODEL, TRAINING | _training(seed, epochs), CHAT_TEMPLATE, RECIPE_VERSION, world.taught]
    name = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]
    return cache_dir() / f"probe-world-{name}"


def target_of(world: ControlledWorld, seed: int, epochs: int, progress: bool = True) -> Path:
    """The model folder of the target, trained now if it is not in the cache; the testbed's model and settings.

    Args:
        world: what it learns.
        seed: of its weights and its order of rows.
        epochs: passes over the rows.
        progress: whether to show a progress bar.
    """
    folder = cached_target(world, seed, epochs)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            tokenizer = train_tokenizer(world.taught)
            train_from_nothing(folder, world.taught, tokenizer, progress=progress, **_training(seed, epochs))
    return folder


def measured_base(target: Path, probe: FrequencyProbe, folder: Path) -> list[FactMeasurement]:
    """The measurements of a target, read from `folder` if they are there, made with the same settings.

    The version of the code is not compared: after a change of the probe, take another folder.

    Args:
        target: folder of the target.
        probe: the probe.
        folder: where measurements are kept.

    Raises:
        ValueError: the target knows none of the facts to be forgotten.
    """
    file = folder / f"before-{target.name.rpartition('-')[2]}.json"
    asked = {"settings": probe.settings.to_json(), "facts": [fact.id for fact in probe.facts]}
    saved = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if saved.get("asked") == asked:
        measured = [FactMeasurement.from_dict(one) for one in saved["measurements"]]
    else:
        measured = probe.measure(load_model(target), progress=False)
        write_json(file, {"asked": asked, "measurements": [one.to_dict() for one in measured]})
    to_forget = {fact.id for fact in probe.facts if fact.role == "forget"}
    if not any(knows(one, probe.settings) for one in measured if one.id in to_forget):
        raise ValueError(
            f"The target knows none of the {len(to_forget)} facts to be forgotten, so that nothing can be told of "
            "their forgetting: train it for longer (`--target_epochs`)."
        )
    return measured


def _training(seed: int, epochs: int) -> dict[str, int]:
    return {"num_train_epochs": epochs, "seed": seed}
