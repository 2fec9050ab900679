"""Which models a probe compares: a base, and what unlearning made of it, as adapters or as models of their own."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llm_unlearn.paths import public_name
from llm_unlearn.suggest import unknown

if TYPE_CHECKING:
    from torch import nn

    from llm_unlearn.probes.frequency import FrequencyProbe
    from llm_unlearn.probes.matched import Checkpoint
    from llm_unlearn.probes.measurement import FactMeasurement

    Load = Callable[[str], nn.Module]

# BUCKET=FOLDER; a name of a bucket has no slash, and a path may have an equals sign behind one.
_NAMED = re.compile(r"([^/=\\]+)=(.+)")

_MODEL_FILES = ("config.json", "adapter_config.json", "codebook_config.json")


@dataclass(frozen=True)
class Runs:
    """What is compared with what.

    Attributes:
        base: the model before unlearning.
        after: by run where its result lies: an adapter, a model, or the folder of a run with either. One run named ""
            has unlearned all facts; otherwise runs are named after their buckets.
        kind: "adapter" for adapters on the base, "model" for models of their own, "newest" for one model with adapters,
            whose base is the same without the newest.
        match_utility: whether checkpoints of equal utility are taken instead of the last.
    """

    base: str
    after: Mapping[str, str]
    kind: Literal["adapter", "model", "newest"]
    match_utility: bool = False

    @classmethod
    def of(
        cls, model: Sequence[str], adapter: Sequence[str] = (), base: str | None = None, match_utility: bool = False
    ) -> Runs:
        """Read the flags `--model`, `--adapter`, `--base` and `--match_utility`.

        Raises:
            ValueError: there is nothing to compare, or a folder holds no model.
        """
        from llm_unlearn.models import adapter_layers, check_source

        if not model and not base:
            raise ValueError("There is no model: give the base and its adapter, `--model BASE --adapter FOLDER`.")
        if adapter:
            named = _named(adapter, "--adapter")
            if base or len(model) != 1:
                raise ValueError(
                    f"`--adapter` goes on one base, and there are {len(model)} models"
                    f"{' and a `--base`' if base else ''}: give the base as `--model BASE`, and nothing else."
                )
            runs = cls(model[0], named, "adapter", match_utility)
        elif base:
            if not model:
                raise ValueError(f"{base} is compared with nothing: give the unlearned model, `--model UNLEARNED`.")
            runs = cls(base, _named(model, "--model"), "model", match_utility)
        else:
            if len(model) != 1 or match_utility or not adapter_layers(_result_of(model[0])):
                raise ValueError(
                    f"{', '.join(model)} is compared with nothing: name the model before unlearning with `--base`, or "
                    "give `--model BASE --adapter FOLDER`."
                )
            source = _result_of(model[0])
            return cls(source, {"": source}, "newest")
        check_source(runs.base)
        for name, source in runs.after.items():
            for candidate in runs.candidates(name) if match_utility else [_result_of(source)]:
                check_source(candidate)
                _require_there(candidate, runs.kind)
        return runs

    @property
    def is_bucket_wise(self) -> bool:
        """Whether each bucket has a run of its own."""
        return "" not in self.after

    def check(self, probe: FrequencyProbe) -> None:
        """Check that the runs fit the buckets, before a model is loaded.

        Raises:
            ValueError: there is no such bucket, a run says that it unlearned another one, or no fact is to be retained
                where utility is to be matched.
        """
        names = [bucket.name for bucket in probe.buckets]
        for name, source in self.after.items() if self.is_bucket_wise else ():
            if name not in names:
                raise ValueError(unknown("bucket", name, names))
            trained_on = _split_of(source)
            if trained_on != name and trained_on in names:
                raise ValueError(
                    f"{source} was trained on the split {trained_on!r}, and is given as the run of the bucket "
                    f"{name!r}: name it after its own bucket, as in `{trained_on}={source}`."
                )
        if self.match_utility and not any(fact.role == "retain" for fact in probe.facts):
            raise ValueError(
                "`--match_utility` compares what runs keep of facts to be retained, and there is none: add facts whose "
                "`role` is 'retain', or drop the flag."
            )

    def candidates(self, name: str) -> list[str]:
        """Checkpoints of a run, in the order of training.

        Raises:
            ValueError: the folder has none.
        """
        folder = Path(self.after[name])
        numbered = [path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
        if not numbered:
            raise ValueError(
                f"{folder} has no checkpoint-* folders to choose from: save some (`--save_strategy epoch`), and give "
                "the folder of the run."
            )
        return [str(path) for path in sorted(numbered, key=lambda path: int(path.name.rpartition("-")[2]))]

    def measure(
        self,
        probe: FrequencyProbe,
        load: Load,
        cache: Path | None = None,
        *,
        level: float | None = None,
        tolerance: float = 0.02,
        progress: bool = True,
    ) -> Measured:
        """Load and measure all of them, the base first. Call it on every process.

        Args:
            probe: facts and settings.
            load: loads a model and puts it where it is to run.
            cache: where measurements are kept; None for nowhere.
            level, tolerance: of `match_utility`, where checkpoints are matched.
            progress: whether the main process shows progress bars.

        Raises:
            ValueError: checkpoints of equal utility were asked for, and there are none.
        """
        return _Measuring(self, probe, load, cache, progress).all(level, tolerance)


@dataclass(frozen=True)
class Measured:
    """Measurements as `FrequencyProbe.compare` takes them, and where they come from.

    Attributes:
        before: of the base.
        after: of the unlearned model, or of one per bucket.
        provenance: names and hashes of the models, and the checkpoints that were taken.
    """

    before: list[FactMeasurement]
    after: list[FactMeasurement] | dict[str, list[FactMeasurement]]
    provenance: dict[str, Any] = field(default_factory=dict)


class _Measuring:
    """One pass over the models of `Runs`, with at most two of them in memory."""

    def __init__(self, runs: Runs, probe: FrequencyProbe, load: Load, cache: Path | None, progress: bool):
        self._runs, self._probe, self._load, self._cache, self._progress = runs, probe, load, cache, progress
        self._base: Any = load(runs.base)

    def all(self, level: float | None, tolerance: float) -> Measured:
        from llm_unlearn.adapters import without_newest_adapter
        from llm_unlearn.evaluation.outputs.sharding import describe
        from llm_unlearn.probes.matched import match_utility

        runs = self._runs
        told: dict[str, Any] = {"model": public_name(runs.base), **describe(self._base)}
        sources = {name: _result_of(source) for name, source in runs.after.items()}
        if runs.kind == "newest":
            with without_newest_adapter(self._base):
                before, told["base_identity"] = self._measure(self._base)
        else:
            before, told["base_identity"] = self._measure(self._base)
        if runs.match_utility:
            match = match_utility(self._checkpoints(), level, tolerance)
            told["matched_utility"] = match.to_json()
            sources = {name: _checkpoint(self._runs, name, one.name) for name, one in match.chosen.items()}
        if runs.kind == "model":
            # Two models in full would take twice the memory.
            self._base = None
        after, identities = {}, {}
        for name, source in sources.items():
            with self._unlearned(source) as model:
                after[name], identities[name] = self._measure(model)
        told["unlearned"] = {
            name or "all": {"source": public_name(source), "identity": identities[name]}
            for name, source in sources.items()
        }
        return Measured(before, after if runs.is_bucket_wise else after[""], told)

    def _measure(self, model: nn.Module) -> tuple[list[FactMeasurement], str]:
        from llm_unlearn.models import identity
        from llm_unlearn.probes.cache import measure_once

        own = identity(model)
        return measure_once(self._probe, model, own, self._cache, progress=self._progress), own

    @contextmanager
    def _unlearned(self, source: str) -> Iterator[nn.Module]:
        from llm_unlearn.adapters import load_reference_adapter, remove_newest_adapter

        if self._runs.kind == "newest":
            yield self._base
        elif self._runs.kind == "model":
            yield self._load(source)
        else:
            adapted = load_reference_adapter(self._base, source)
            try:
                yield adapted
            finally:
                self._base = remove_newest_adapter(adapted)

    def _checkpoints(self) -> dict[str, list[Checkpoint]]:
        """By run its checkpoints, with how much each keeps of the probability of the facts to be retained."""
        from llm_unlearn.probes.matched import Checkpoint, retained
        from llm_unlearn.probes.passes import Passes

        kept = [fact for fact in self._probe.facts if fact.role == "retain"]
        # Only likelihoods are asked for: as little as can be is generated.
        cheap = replace(self._probe.settings, leak_samples=0, max_new_tokens=1)
        passes = Passes(kept, self._probe.tokenizer, cheap)
        base = passes.run(self._base, progress=self._progress)
        checkpoints: dict[str, list[Checkpoint]] = {}
        for name in self._runs.after:
            for source in self._runs.candidates(name):
                with self._unlearned(source) as model:
                    utility = retained(base, passes.run(model, progress=self._progress), kept)
                checkpoints.setdefault(name, []).append(Checkpoint(Path(source).name, utility))
        return checkpoints


def _checkpoint(runs: Runs, name: str, checkpoint: str) -> str:
    return str(Path(runs.after[name]) / checkpoint)


def _named(values: Sequence[str], flag: str) -> dict[str, str]:
    """``BUCKET=FOLDER`` values by bucket, or the one folder under "".

    Raises:
        ValueError: several folders without names, or two of one name.
    """
    found = [_NAMED.fullmatch(value) for value in values]
    # A folder may itself be called like that.
    if len(values) == 1 and (found[0] is None or Path(values[0]).exists()):
        return {"": values[0]}
    unnamed = [value for value, match in zip(values, found, strict=True) if match is None]
    names = [match[1] for match in found if match]
    if unnamed or len(set(names)) < len(names):
        raise ValueError(
            f"`{flag}` is {' '.join(values)}: give one folder, or one for each bucket as in `{flag} low=FOLDER "
            "high=FOLDER`."
        )
    return {match[1]: match[2] for match in found if match}


def _result_of(source: str) -> str:
    """The adapter or model in the folder of a run; any other source as it is."""
    folder = Path(source)
    if folder.is_dir() and not any((folder / name).is_file() for name in _MODEL_FILES):
        for name in ("adapter", "model"):
            if (folder / name).is_dir():
                return str(folder / name)
    return source


def _require_there(source: str, kind: str) -> None:
    """Raise where a result is no adapter or no folder, which is found out last: the base is measured before it loads.

    ``out/nope`` could be a hub id; where ``out`` is a folder, it is taken for a path.
    """
    path = Path(source)
    is_path = path.exists() or path.parent.is_dir() and path.parent != Path() or source.count("/") > 1
    if kind == "adapter" and not (path / "adapter_config.json").is_file() and (is_path or "/" not in source):
        raise ValueError(
            f"{source} has no adapter_config.json, so it is no adapter: give the folder of an adapter, or of a run "
            "with one (`--adapter`); a model of its own goes with `--base BASE --model FOLDER`."
        )
    if not path.exists() and is_path:
        raise ValueError(f"There is no folder {source}: give one that exists, or a hub id (`--model`).")


def _split_of(source: str) -> str | None:
    """The split that a run of the toolkit was trained on, as a bucket is called; None where it does not say."""
    try:
        record = json.loads((Path(_result_of(source)) / "unlearning_config.json").read_text(encoding="utf-8"))
        return record["data"]["forget"]["split"].partition("[")[0].replace("_", " ")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
