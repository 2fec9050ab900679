"""The report of a probe as files: JSON, one CSV row per fact, Markdown and a page, each whole or not there at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_unlearn.files import write_json, write_text
from llm_unlearn.probes import tables
from llm_unlearn.probes.records import OUTCOMES, ProbeResult

SCHEMA = "llm-unlearn-probe/1"

FILES = ("probe.json", "probe_facts.csv", "probe.md", "probe.html")
"""What `save_report` writes, the first as the one that is read again."""


def save_report(result: ProbeResult, folder: str | Path) -> None:
    """Write `FILES` into a folder, and into a `report.html` that lies there the section on the probe.

    All of them repeat questions and answers: they stay with the run.

    Args:
        result: what the probe found.
        folder: where to; made if it is not there.

    Raises:
        OSError: the place cannot be written.
    """
    from llm_unlearn.evaluation import html
    from llm_unlearn.evaluation.report import EvalReport
    from llm_unlearn.probes.page import page, section

    folder = Path(folder)
    write_json(folder / FILES[0], {"schema": SCHEMA, **result.to_dict()})
    write_text(folder / FILES[1], tables.facts_csv(result))
    write_text(folder / FILES[2], to_markdown(result))
    write_text(folder / FILES[3], page(result))
    if (folder / "report.json").is_file():
        write_text(folder / "report.html", html.page(EvalReport.load(folder), [section(result)]))


def load_result(path: str | Path) -> ProbeResult:
    """Read a result from its file, or from the folder of its report.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file was written by something else.
    """
    file = Path(path)
    file = file / FILES[0] if file.is_dir() else file
    if not file.is_file():
        raise FileNotFoundError(f"There is no {file}: give the folder of a probe (`llm-unlearn probe frequency`).")
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if record.pop("schema", None) != SCHEMA:
            raise ValueError(f"its schema is not {SCHEMA!r}")
        return ProbeResult.from_dict(record)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{file} is no result of a probe ({error}): make it again.") from error


def to_markdown(result: ProbeResult) -> str:
    """The report as a page of Markdown: warnings, associations, buckets, probes, disagreement, provenance."""
    table = tables.markdown_table
    parts = [
        "# Frequency probe",
        f"Count: {result.label}. Protocol: {result.protocol}, runs: {', '.join(result.runs)}. "
        f"{len(result.known())} facts to be forgotten were known to the base model; all statistics are over these.",
    ]
    if notes := [*result.warnings, *tables.gate_notes(result.gates)]:
        parts += ["## Warnings", "\n".join(f"- {note}" for note in notes)]
    parts += ["## Count and forgetting", table(tables.association_cells(result))]
    parts.append("\n".join(f"- {name}: {tables.finding(result.associations[of])}" for of, name in OUTCOMES.items()))
    parts.append(f"{READING} {EXPECTED}")
    parts += ["## Buckets", table(tables.bucket_cells(result)), DROPS]
    parts += ["## Probes, before → after", table(tables.probe_cells(result))]
    parts += ["## Probability and generation", table(tables.disagreement_cells(result))]
    parts.append(tables.disagreement_text(result))
    if result.statements:
        parts += ["### True/False statements and their false twins", table(tables.statement_cells(result))]
    parts += ["## Provenance", "\n".join(_tree(_shown(result)))]
    return "\n\n".join(parts) + "\n"


READING = (
    "F = (before − after) / before, over facts that the base model knew: 1 where nothing is left, below 0 where it "
    "rose. Square brackets: bootstrap 95 % intervals over facts; p: two-sided, by permutation, from 20 facts on."
)
"""How the numbers are to be read."""

EXPECTED = "If frequent facts are harder to unlearn, as arXiv 2504.05058 claims, all five numbers are below 0."

DROPS = (
    "“Gone by probability”: P1 below a tenth of the base's, and True/False statements not told apart where they count; "
    "“gone by generation”: no greedy answer names the object or recalls half of it. The last columns are about "
    "facts that the same run was not to take."
)


def _shown(result: ProbeResult) -> dict[str, Any]:
    """What a reader needs to make the result again."""
    return {**result.provenance, "settings": dict(result.settings), "seeds": dict(result.seeds)}


def provenance_tree(value: Any) -> Any:
    """Provenance as nested mappings alone: lists of mappings become mappings, by name where they have one."""
    if isinstance(value, Mapping):
        return {str(key): provenance_tree(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        if any(isinstance(part, Mapping) for part in value):
            return {_name_of(part, place): provenance_tree(part) for place, part in enumerate(value, 1)}
        return ", ".join(map(str, value)) or None
    return value


def shown_provenance(result: ProbeResult) -> dict[str, Any]:
    """Provenance, settings and seeds as a page shows them."""
    return provenance_tree(_shown(result))


def _name_of(part: Any, place: int) -> str:
    name = part.get("name") or part.get("file") if isinstance(part, Mapping) else None
    return str(name or place)


def _tree(entries: Mapping[str, Any], depth: int = 0) -> list[str]:
    lines = []
    for key, value in provenance_tree(entries).items():
        nested = isinstance(value, Mapping)
        lines.append(f"{'  ' * depth}- {key}:" + ("" if nested else f" {'–' if value is None else value}"))
        if nested:
            lines += _tree(value, depth + 1)
    return lines
