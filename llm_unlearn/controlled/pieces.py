"""Pieces of the controlled experiment: a method on a seed, with and without weights, probed and kept in a folder."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llm_unlearn.controlled.runs import UnlearnedRun
from llm_unlearn.files import replace_folder, write_json
from llm_unlearn.probes.frequency import FrequencyProbe
from llm_unlearn.probes.matched import match_utility
from llm_unlearn.probes.measurement import FactMeasurement
from llm_unlearn.probes.records import OUTCOMES, ProbeResult
from llm_unlearn.probes.report import load_result, save_report
from llm_unlearn.probes.summary import paired_difference, summarise, summary_cells
from llm_unlearn.probes.tables import estimate_text

RECORD = "piece.json"
STEPS, UTILITY = "steps", "utility"
"""What runs are compared at: the same number of steps, or the same share of probability kept."""


@dataclass(frozen=True)
class Piece:
    """What came out of one method on one seed.

    Attributes:
        results: by name of the run and by what it is compared at; no result at `UTILITY` where a run is alone, or no
            checkpoints match.
        record: what to know of the runs, as JSON: utilities of the checkpoints, the match or why there is none.
    """

    results: Mapping[tuple[str, str], ProbeResult]
    record: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PieceStore:
    """Folders of pieces under an output folder; a killed experiment goes on with those that are not there.

    Attributes:
        folder: of one piece.
        key: a hash of the arguments that decide it. The version of the code is not in it: after a change of the code,
            take another folder.
    """

    folder: Path
    key: str

    @classmethod
    def of(cls, out: Path, seed: int, method: str, decides: Any) -> "PieceStore":
        """The store of a piece.

        Args:
            out: the output folder of the experiment.
            seed, method: of the piece.
            decides: all arguments that decide what comes out, as JSON.
        """
        key = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
        return cls(out / f"seed-{seed}" / method, key)

    def is_finished(self, overwrite: bool = False) -> bool:
        """Whether the piece is there.

        Raises:
            ValueError: one of other arguments is there, and must not be replaced.
        """
        file = self.folder / RECORD
        if not file.is_file():
            return False
        same = json.loads(file.read_text(encoding="utf-8"))["key"] == self.key
        if not same and not overwrite:
            raise ValueError(
                f"{self.folder} was made with other arguments: choose another `--output_dir`, or replace it with "
                "`--overwrite`."
            )
        return same

    def write(self, piece: Piece) -> None:
        """Write the folder of the piece, with a report of each result, whole or not at all."""
        with replace_folder(self.folder) as partial:
            for names, result in piece.results.items():
                save_report(result, partial / "-".join(names))
            write_json(partial / RECORD, {"key": self.key, **piece.record})

    def read(self) -> Piece:
        """Read it back."""
        reports = sorted(path for path in self.folder.iterdir() if path.is_dir())
        record = json.loads((self.folder / RECORD).read_text(encoding="utf-8"))
        return Piece({tuple(path.name.split("-")): load_result(path) for path in reports}, record)


def probe_runs(
    runs: Mapping[str, UnlearnedRun],
    probe: FrequencyProbe,
    before: list[FactMeasurement],
    *,
    tolerance: float = 0.05,
    told: Mapping[str, Any] | None = None,
) -> Piece:
    """Probe runs at equal steps, after their last epoch, and, if there are several, at equal utility.

    Args:
        runs: by name.
        probe: the probe.
        before: measurements of the target.
        tolerance: how far utilities may lie apart, see `match_utility`.
        told: what the provenance of the results says of the piece, as JSON.
    """
    chosen = {(name, STEPS): run.checkpoints[-1] for name, run in runs.items()}
    record: dict[str, Any] = {
        "utilities": {name: [round(one.utility, 4) for one in run.checkpoints] for name, run in runs.items()},
        "stopped": {name: run.stopped for name, run in runs.items()},
        "match": None,
    }
    if len(runs) > 1:
        try:
            match = match_utility({name: run.checkpoints for name, run in runs.items()}, tolerance=tolerance)
            record["match"] = match.to_json()
            chosen |= {(name, UTILITY): one for name, one in match.chosen.items()}
        except ValueError as error:
            record["match"] = {"missing": str(error)}
    measured: dict[tuple[str, str], list[FactMeasurement]] = {}
    results = {}
    for (name, at), checkpoint in chosen.items():
        place = (name, checkpoint.name)
        if place not in measured:
            measured[place] = runs[name].probe(checkpoint.name, probe)
        provenance = {"run": name, "compared_at": f"equal {at}", "epoch": checkpoint.name, **(told or {})}
        provenance["utility"] = checkpoint.utility
        results[name, at] = probe.compare(
            before, measured[place], run=name, stage="finetuned", provenance={"experiment": provenance}
        )
    return Piece(results, record)


def put_together(pieces: Mapping[tuple[int, str], Piece]) -> tuple[dict[str, list[list[str]]], dict[str, Any]]:
    """Tables over seeds, by title, and the same for JSON.

    A run that has no result at something on one of the seeds is left out of what is compared at that: its average would
    be over other seeds than those of the others.

    Args:
        pieces: by seed and method.
    """
    seeds = len({seed for seed, _ in pieces})
    of_run: dict[tuple[str, str, str], list[ProbeResult]] = {}
    for (_, method), piece in pieces.items():
        for (run, at), result in piece.results.items():
            of_run.setdefault((at, method, run), []).append(result)
    complete = {key: results for key, results in of_run.items() if len(results) == seeds}
    tables: dict[str, list[list[str]]] = {}
    record: dict[str, Any] = {"summaries": {}, "differences": {}}
    for at in (STEPS, UTILITY):
        own = {(method, run): results for (place, method, run), results in complete.items() if place == at}
        if not own:
            continue
        summaries = {f"{method}, {run}": summarise(results) for (method, run), results in own.items()}
        record["summaries"][at] = {name: asdict(summary) for name, summary in summaries.items()}
        # Runs across, numbers downwards: there are more numbers than fit on a line.
        tables[f"At equal {at}"] = [list(column) for column in zip(*summary_cells(summaries), strict=True)]
        first, *others = dict.fromkeys(run for _, run in own)
        for run in others:
            rows = [[f"gap of {run} less that of {first}", *OUTCOMES.values()]]
            for method in dict.fromkeys(method for method, _ in own):
                if (method, first) in own and (method, run) in own:
                    found = {
                        outcome: paired_difference(own[method, run], own[method, first], outcome)
                        for outcome in OUTCOMES
                    }
                    record["differences"].setdefault(at, {})[method] = {k: asdict(v) for k, v in found.items()}
                    rows.append([method, *map(estimate_text, found.values())])
            tables[f"What {run} runs change, at equal {at}"] = rows
    return tables, record
