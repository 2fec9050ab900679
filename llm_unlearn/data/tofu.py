"""TOFU (arXiv 2401.06121): 200 invented authors, 20 questions each; loading it, fetching it, proving it is whole.

The benchmark and the bundled data share names and columns, so one loader serves both. The facts below (rows, columns,
order, checksums) are the benchmark's alone.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_unlearn.data.sources import EXAMPLE_FORMS, TOFU_HUB_ID, form_of, list_splits, load_rows, quoted
from llm_unlearn.files import replace_folder
from llm_unlearn.paths import data_dir

if TYPE_CHECKING:
    from datasets import Dataset

Pair = tuple[str, str]

_PLAIN = ("question", "answer")
_PERTURBED = (*_PLAIN, "paraphrased_answer", "perturbed_answer", "paraphrased_question")
_BACKGROUND = (*_PLAIN, "perturbed_answer")


@dataclass(frozen=True)
class TofuConfig:
    """What is known about one configuration of the benchmark.

    Attributes:
        rows: number of rows.
        columns: the columns that are used; whatever else a source has (`original_answer`) is dropped.
        sha256: `checksum` of its rows; `None` where we have no copy to compute it from.
    """

    rows: int
    columns: tuple[str, ...]
    sha256: str | None = None


TOFU_CONFIGS = {
    "full": TofuConfig(4000, _PLAIN, "87b41835e09343c16351553220bee8eccada221765e3fc619388c2741c07de85"),
    "retain90": TofuConfig(3600, _PLAIN, "61b4edff6c367243ba39980764d8f638a7a25dad6aa19c6a31ac63bbe2283a28"),
    "retain95": TofuConfig(3800, _PLAIN, "bf42fc71faffbe1f3b33acdacfc80fe18d47b5c3b89c97bf1186f1da5d59f9b0"),
    "retain99": TofuConfig(3960, _PLAIN, "213ecff56bbdb8810bcec5ea82edea2e283869f902b226332568db64efa9ab55"),
    "forget10": TofuConfig(400, _PLAIN, "b8377619fd8c1f6762c586e3d8b147010215c6888bddf18e0807a31171f01eda"),
    "forget05": TofuConfig(200, _PLAIN, "e3a1647dc2d44ef20e4cb98bf01f4f7963eee6b6520d9b43c69f9fbe1d647196"),
    "forget01": TofuConfig(40, _PLAIN, "c59437595e1d60b46829964b7126512e2049062ab34df2514d08a10727ba8ce0"),
    "forget10_perturbed": TofuConfig(
        400, _PERTURBED, "14a00f7da4f64d65544fb30305981cb22cdb04726863ab53a41588cf62579488"
    ),
    "forget05_perturbed": TofuConfig(
        200, _PERTURBED, "41c9814de7baac49c849863e21341bc01cb3202aa39f6f958d9cf8facce29efc"
    ),
    "forget01_perturbed": TofuConfig(
        40, _PERTURBED, "6290a461c01eb5780c2d924e72e754fe057827bbc876c592ba2f050f969447e6"
    ),
    "retain_perturbed": TofuConfig(400, _PERTURBED, "ce8c03a5a78920579fb6db3110750194ab7b29e35526ff39ede95ce859c58ffc"),
    "real_authors_perturbed": TofuConfig(
        100, _BACKGROUND, "a2a64110aa3513fe53b894c8486a851e2d56ad322bd566fe360ddc2b58d22c2d"
    ),
    "world_facts_perturbed": TofuConfig(
        117, _BACKGROUND, "704ae562dc0f648627c91ee1b8fb549e5f79af051440306af4f7d711e926d40a"
    ),
    "holdout10": TofuConfig(400, _PLAIN),
    "holdout05": TofuConfig(200, _PLAIN),
    "holdout01": TofuConfig(40, _PLAIN),
}
"""The configurations of the benchmark. The holdout ones came to the hub in April 2025; older copies lack them."""

TOFU_ORDER = (
    ("full", (("retain90", slice(None)), ("forget10", slice(None)))),
    ("retain95", (("retain90", slice(None)), ("forget10", slice(200)))),
    ("retain99", (("retain90", slice(None)), ("forget10", slice(360)))),
    ("forget05", (("forget10", slice(200, 400)),)),
    ("forget01", (("forget10", slice(360, 400)),)),
    ("forget10_perturbed", (("forget10", slice(None)),)),
    ("forget05_perturbed", (("forget05", slice(None)),)),
    ("forget01_perturbed", (("forget01", slice(None)),)),
    ("retain_perturbed", (("retain90", slice(400)),)),
)
"""Which questions and answers, in which order, make up a configuration. Row numbers identify items across them."""


def source_or_bundled(source: str | os.PathLike | None) -> str | os.PathLike:
    """`source`, or the folder of the bundled data where none is named."""
    return data_dir() / "tofu" if source is None else source


def load_tofu(config: str, source: str | os.PathLike | None = None) -> Dataset:
    """Load one configuration of TOFU, or of data in its schema.

    Args:
        config (`str`):
            Name of the configuration, such as `forget10`, optionally with a slice of its rows: `retain90[0:160]`.
        source (`str` or `os.PathLike`, *optional*):
            Hub id (`locuslab/TOFU`) or local folder of the same names, as in `load_rows`. Unset, the bundled data.

    Returns:
        `datasets.Dataset` with the columns `question` and `answer`; for `*_perturbed` also `perturbed_answer` (a list
        of wrong answers) and, where the source has them, `paraphrased_question` and `paraphrased_answer`.

    Raises:
        FileNotFoundError: the source does not exist or cannot be reached.
        ValueError: there is no such configuration, or it lacks one of these columns.
    """
    source = source_or_bundled(source)
    dataset = load_rows(config, source)
    needed = _BACKGROUND if config.partition("[")[0].endswith("_perturbed") else _PLAIN
    missing = [column for column in needed if column not in dataset.column_names]
    if missing:
        raise ValueError(
            f"{config} of {os.fspath(source)} has no column {quoted(missing)}, only {quoted(dataset.column_names)}: "
            "give data in the schema of TOFU, or load it with `load_rows` and its `columns`."
        )
    return dataset.remove_columns([name for name in dataset.column_names if name == "original_answer"])


def get_tofu(folder: str | os.PathLike, source: str | os.PathLike = TOFU_HUB_ID) -> list[str]:
    """Fetch the benchmark into `folder/<config>.jsonl`, complete and verified or not at all.

    Args:
        folder (`str` or `os.PathLike`):
            Where to put it. Absent or empty; a folder that already holds the verified benchmark is left as it is.
        source (`str` or `os.PathLike`, *optional*, defaults to `"locuslab/TOFU"`):
            Hub id or local folder to fetch from.

    Returns:
        `list[str]` of findings, as from `verify_tofu`.

    Raises:
        FileNotFoundError: the source does not exist or cannot be reached.
        ValueError: `folder` holds something else, or what was fetched is not the benchmark.
    """
    folder = Path(folder).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        try:
            return verify_tofu(folder)
        except ValueError as error:
            raise ValueError(
                f"{folder} is not empty and holds something else than a whole TOFU: name another folder, or remove "
                f"this one.\n{error}"
            ) from error

    available = list_splits(source)
    # Read before anything is written, so that an unreachable source is not taken for a full disk. What is missing
    # beyond the holdout sets is found by the inspection, together with everything else.
    fetched = {name: load_rows(name, source) for name in TOFU_CONFIGS if name in available}
    with replace_folder(folder) as partial:
        for name, rows in fetched.items():
            _write_config(rows, TOFU_CONFIGS[name].columns, partial / f"{name}.jsonl")
        findings, problems = _inspect(partial)
        if problems:
            raise ValueError(
                f"What {os.fspath(source)} holds is not the TOFU benchmark this version knows, so {folder} was not "
                f"written: name another source.{_as_lines(problems)}"
            )
    return findings


def verify_tofu(folder: str | os.PathLike) -> list[str]:
    """Check that a folder holds the benchmark: rows, columns, order and checksums of every configuration.

    The bundled data are in the same schema but other data; they have checksums of their own.

    Args:
        folder (`str` or `os.PathLike`):
            Folder of `<config>.jsonl` files, or of another kind that `load_rows` reads.

    Returns:
        `list[str]`: what is no error but worth knowing, one sentence each: holdout configurations that are absent.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: with all problems that were found, one per line.
    """
    findings, problems = _inspect(Path(folder).expanduser())
    if problems:
        raise ValueError(
            f"{os.fspath(folder)} is not the TOFU benchmark this version knows: fetch it with `llm-unlearn data get "
            f"tofu`.{_as_lines(problems)}"
        )
    return findings


def check_disjoint(forget: Dataset, retain: Dataset | None) -> None:
    """Check, before training, that nothing is to be forgotten and retained at once.

    Rows are the same if the columns of their form (question and answer, say) are the same, whatever else they carry.

    Args:
        forget (`datasets.Dataset`):
            The forget set, in one of the four forms.
        retain (`datasets.Dataset` or `None`):
            The retain set; `None` for a method that uses none.

    Raises:
        ValueError: the forget set is empty, or rows of it are in the retain set.
    """
    if not len(forget):
        raise ValueError("The forget set has no rows: name a split with at least one with `--forget_split`.")
    if retain is None or not len(retain):
        return
    forgotten = set(_canonical_rows(forget, EXAMPLE_FORMS[form_of(forget.column_names)]))
    kept = _canonical_rows(retain, EXAMPLE_FORMS[form_of(retain.column_names)])
    shared = [number for number, row in enumerate(kept) if row in forgotten]
    if shared:
        raise ValueError(
            f"{len(shared)} of the {len(retain)} rows of the retain set are also in the forget set, the first is row "
            f"{shared[0]} ({_excerpt(retain[shared[0]])}): name one without them with `--retain_split`, such as "
            "retain90 for forget10."
        )


def checksum(rows: Iterable[Mapping[str, Any]], columns: Iterable[str]) -> str:
    """SHA-256 of these columns of the rows, in order; the same whatever the white space and key order of the file."""
    digest = hashlib.sha256()
    for row in _canonical_rows(rows, columns):
        digest.update(row.encode("ascii") + b"\n")
    return digest.hexdigest()


def _canonical_rows(rows: Iterable[Mapping[str, Any]], columns: Iterable[str]) -> Iterator[str]:
    columns = tuple(columns)
    for row in rows:
        yield json.dumps({column: row[column] for column in columns}, sort_keys=True, separators=(",", ":"))


def _inspect(folder: Path) -> tuple[list[str], list[str]]:
    """What is worth knowing about a copy of the benchmark, and what is wrong with it."""
    available = list_splits(folder)
    findings, problems = [], []
    pairs: dict[str, list[Pair]] = {}
    for name, config in TOFU_CONFIGS.items():
        if name not in available:
            if config.sha256 is None:
                forget = name.replace("holdout", "forget")
                findings.append(f"{name} is absent: membership inference on {forget} needs a holdout set of your own.")
            else:
                problems.append(f"{name} is missing")
            continue
        try:
            dataset = load_rows(name, folder)
        except ValueError as error:
            problems.append(f"{name} cannot be read: {error}")
            continue
        problem = _compare(dataset, config)
        if problem:
            problems.append(f"{name} {problem}")
        if set(_PLAIN) <= set(dataset.column_names):
            pairs[name] = list(zip(dataset["question"], dataset["answer"], strict=True))
    return findings, problems + list(_order_problems(pairs))


def _as_lines(problems: Iterable[str]) -> str:
    return "".join(f"\n- {problem}" for problem in problems)


def _compare(dataset: Dataset, config: TofuConfig) -> str | None:
    missing = [column for column in config.columns if column not in dataset.column_names]
    if missing:
        return f"has no column {quoted(missing)}"
    if len(dataset) != config.rows:
        return f"has {len(dataset)} rows instead of {config.rows}"
    if config.sha256 not in (None, checksum(dataset, config.columns)):
        return "has other content than the benchmark (checksum)"
    return None


def _order_problems(pairs: Mapping[str, list[Pair]]) -> Iterator[str]:
    for name, parts in TOFU_ORDER:
        if name not in pairs or any(part not in pairs for part, _ in parts):
            continue
        expected = [pair for part, rows in parts for pair in pairs[part][rows]]
        recipe = " + ".join(_slice_name(part, rows) for part, rows in parts)
        for number, (pair, other) in enumerate(zip(pairs[name], expected, strict=False)):
            if pair != other:
                yield f"{name} differs from {recipe} from row {number} on"
                break


def _slice_name(name: str, rows: slice) -> str:
    if rows == slice(None):
        return name
    return f"{name}[{'' if rows.start is None else rows.start}:{rows.stop}]"


def _write_config(dataset: Dataset, columns: tuple[str, ...], path: Path) -> None:
    # A column the source lacks is left for verify_tofu to report.
    present = [column for column in columns if column in dataset.column_names]
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in dataset.select_columns(present):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _excerpt(row: Mapping[str, Any]) -> str:
    text = str(row[EXAMPLE_FORMS[form_of(row)][0]])
    return repr(text if len(text) <= 60 else text[:57] + "...")
