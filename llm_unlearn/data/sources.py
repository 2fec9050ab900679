"""From a name to rows: hub data sets, folders and files, each row in one of four forms.

Nothing heavy is imported until rows are read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_unlearn.data.readers import ENDINGS, LISTED_ENDINGS, Row, ending_of, read_rows
from llm_unlearn.suggest import unknown

if TYPE_CHECKING:
    from datasets import Dataset

EXAMPLE_FORMS = {
    "question_answer": ("question", "answer"),
    "prompt_completion": ("prompt", "completion"),
    "messages": ("messages",),
    "text": ("text",),
}
"""The four forms of an example and their columns. A data set with the columns of several has the first of them."""

TOFU_HUB_ID = "locuslab/TOFU"
"""The benchmark's data set on the hub."""

_COLUMN_FLAGS = (
    "`--question_column Q --answer_column A`, `--prompt_column P --completion_column C`, `--messages_column M` or "
    "`--text_column T`"
)
_SLICE = re.compile(r"(?P<name>[^\[\]]*)\[(?P<start>-?\d+)?:(?P<stop>-?\d+)?\]")


def load_rows(split: str | None, source: str | os.PathLike, columns: Mapping[str, str] | None = None) -> Dataset:
    """Load one split of a data set, in one of the four `EXAMPLE_FORMS`.

    Args:
        split (`str` or `None`):
            Name of the split, optionally with a slice of its rows: `retain90`, `retain90[0:160]`, `retain90[-20:]`,
            with the bounds of a Python slice (without a step). In a folder it is the name of a file without its
            ending. On the hub it is a configuration, of which the `train` split is read, or, where the data set has
            a single configuration, one of its splits. A file holds one split, which is called `train`; `None` means
            the same there.
        source (`str` or `os.PathLike`):
            A local folder or file (.jsonl, .jsonl.gz, .json, .csv, .parquet), or a data set id of the hub. What exists
            on this machine, starts with `.`, `/` or `~`, or ends like such a file is never asked of the hub.
        columns (`Mapping[str, str]`, *optional*):
            Which column plays which role, as in `map_columns`. Unset, the columns must already have the names of one
            form.

    Returns:
        `datasets.Dataset` with one row or more, in the order of the source.

    Raises:
        FileNotFoundError: the source does not exist or cannot be reached.
        ValueError: there is no such split, a file is damaged, no rows are left, or no form fits the columns.
    """
    return map_columns(load_table(split, source), columns)


def load_table(split: str | None, source: str | os.PathLike) -> Dataset:
    """Load one split with whatever columns it has.

    Args:
        split, source: as in `load_rows`.

    Returns:
        `datasets.Dataset` with one row or more, in the order of the source.

    Raises:
        FileNotFoundError, ValueError: as `load_rows`, but for columns.
    """
    name, rows = _parse_split(split)
    dataset = _local_rows(Path(source).expanduser(), name) if _is_path(source) else _hub_rows(str(source), name)
    total = len(dataset)
    kept = range(total)[rows]
    if not kept:
        raise ValueError(
            f"{split!r} of {os.fspath(source)} has no rows ({total} before the slice): name a split or a slice with "
            "at least one row."
        )
    # A slice of everything would only hide the table behind another view.
    return dataset if len(kept) == total else dataset.select(kept)


def list_splits(source: str | os.PathLike) -> list[str]:
    """Names that `load_rows` accepts as the split of `source`, in the order of the source.

    Raises:
        FileNotFoundError: the source does not exist or cannot be reached.
    """
    if not _is_path(source):
        return list(_hub_splits(str(source)))
    path = _existing(Path(source).expanduser())
    return list(_folder_splits(path)) if path.is_dir() else ["train"]


def map_columns(dataset: Dataset, columns: Mapping[str, str] | None = None) -> Dataset:
    """Give a data set the column names of one of the four `EXAMPLE_FORMS`, and check that every row fits it.

    Args:
        dataset (`datasets.Dataset`):
            Any rows.
        columns (`Mapping[str, str]`, *optional*):
            From the role in the form to the column of the data set, such as `{"question": "q", "answer": "reply"}`.
            The roles must belong to one form; a role that is not named is the column of its own name. Columns of
            other forms are dropped, so that the named form is the one which is used; further columns are kept.
            Unset, no column is renamed.

    Returns:
        `datasets.Dataset` whose columns `form_of` understands.

    Raises:
        ValueError: no rows, an unknown role, a column that is not there or named twice, or a row in which the text
            is missing or something else than text. Only a `prompt` may be empty.
    """
    if not len(dataset):
        raise ValueError("The data set has no rows: give one with at least one example.")
    if columns:
        dataset = _rename(dataset, columns)
    roles = EXAMPLE_FORMS[form_of(dataset.column_names)]
    for role in roles:
        check = _check_messages if role == "messages" else _check_text
        for number, value in enumerate(dataset[role]):
            problem = check(value, may_be_empty=role == "prompt")
            if problem:
                raise ValueError(
                    f"Row {number} has {problem} in column `{role}`: mend or remove the row, or name other columns "
                    f"with {_COLUMN_FLAGS}."
                )
    return dataset


def form_of(columns: Iterable[str]) -> str:
    """The key in `EXAMPLE_FORMS` of the form which these columns make; the first of them if they make several.

    Args:
        columns (`Iterable[str]`):
            Column names, or an example with these keys.

    Raises:
        ValueError: they make none.
    """
    present = set(columns)
    for form, roles in EXAMPLE_FORMS.items():
        if present.issuperset(roles):
            return form
    raise ValueError(f"The columns {quoted(columns)} make no example: name the ones to use with {_COLUMN_FLAGS}.")


def as_question_answer(example: Mapping[str, Any]) -> Row:
    """An example in any form as a reader of a report sees it: with a `question` and an `answer`.

    The question of a conversation is all before the last message; that of plain text is empty.
    """
    form = form_of(example)
    if form == "text":
        return {**example, "question": "", "answer": example["text"]}
    if form == "prompt_completion":
        return {**example, "question": example["prompt"], "answer": example["completion"]}
    if form == "messages":
        *before, answer = (message["content"] for message in example["messages"])
        return {**example, "question": "\n".join(before), "answer": answer}
    return dict(example)


def with_answer(example: Mapping[str, Any], answer: str) -> Row:
    """The same example with another answer, in the same form.

    Raises:
        ValueError: the example is plain text, which asks nothing.
    """
    form = form_of(example)
    if form == "question_answer":
        return {"question": example["question"], "answer": answer}
    if form == "prompt_completion":
        # Where the completion continues the prompt after a space, so does the new one.
        space = " " if example["completion"].startswith(" ") else ""
        return {"prompt": example["prompt"], "completion": space + answer}
    if form == "messages":
        return {"messages": [*example["messages"][:-1], {"role": "assistant", "content": answer}]}
    raise ValueError(
        "Plain text has no question that another answer could be given to: use `--question_column` and "
        "`--answer_column`, or a method without replacement answers."
    )


def quoted(names: Iterable[str]) -> str:
    """Names of columns, splits or files as a message lists them."""
    return ", ".join(f"`{name}`" for name in names) or "(none)"


def _parse_split(split: str | None) -> tuple[str | None, slice]:
    if split is None or "[" not in split:
        return split, slice(None)
    match = _SLICE.fullmatch(split)
    if match is None:
        raise ValueError(
            f"{split!r} is not a split with a row slice: write NAME[START:STOP], such as retain90[0:160], "
            "retain90[:160] or retain90[-20:]."
        )
    start, stop = (int(bound) if bound else None for bound in match.group("start", "stop"))
    return match["name"] or None, slice(start, stop)


def _missing_split(name: str | None, source: str | os.PathLike, splits: Collection[str]) -> ValueError:
    place = os.fspath(source)
    if not splits:
        return ValueError(f"{place} has no splits: give a source with files that end in {LISTED_ENDINGS}.")
    if name is None:
        return ValueError(f"{place} has several splits and none was named: name one of {quoted(splits)}.")
    return ValueError(f"{place}: {unknown('split', name, splits)}")


# Local files


def _is_path(source: str | os.PathLike) -> bool:
    text = os.fspath(source)
    return (
        not isinstance(source, str) or text.startswith((".", "/", "~")) or text.endswith(ENDINGS) or Path(text).exists()
    )


def _existing(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(
            f"There is no file or folder {path}: give an existing one, or a hub data set id such as {TOFU_HUB_ID}."
        )
    return path


def _local_rows(path: Path, name: str | None) -> Dataset:
    if not _existing(path).is_dir():
        if name not in (None, "train"):
            raise ValueError(
                f"{path} is a file, and a file has one split, `train`: ask for it instead of {name!r}, or give the "
                "folder as the source."
            )
        return read_rows(path)
    splits = _folder_splits(path)
    if name not in splits:
        raise _missing_split(name, path, splits)
    if len(splits[name]) > 1:
        files = quoted(file.name for file in splits[name])
        raise ValueError(f"Split {name!r} in {path} could be any of {files}: name the file itself as the source.")
    return read_rows(splits[name][0])


def _folder_splits(folder: Path) -> dict[str, list[Path]]:
    splits: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        ending = ending_of(path)
        if ending and path.is_file() and not path.name.startswith("."):
            splits.setdefault(path.name.removesuffix(ending), []).append(path)
    return splits


# The hub


def _hub_rows(source: str, name: str | None) -> Dataset:
    import datasets

    if name is not None:
        # Asking for the rows first, and for the names only when that fails, also works offline from a filled cache.
        try:
            return datasets.load_dataset(source, name, split="train")
        except ValueError:
            pass
        except Exception as error:  # the hub client raises classes of half a dozen libraries
            raise _hub_failure(source, error) from error
    splits = _hub_splits(source)
    if name not in splits:
        raise _missing_split(name, source, splits)
    config, split = splits[name]
    try:
        return datasets.load_dataset(source, config, split=split)
    except Exception as error:
        raise _hub_failure(source, error) from error


def _hub_splits(source: str) -> dict[str, tuple[str, str]]:
    """From each accepted name to the configuration and the split it stands for."""
    import datasets

    try:
        configs = datasets.get_dataset_config_names(source)
        if len(configs) > 1:
            return {config: (config, "train") for config in configs}
        return {split: (configs[0], split) for split in datasets.get_dataset_split_names(source, configs[0])}
    except Exception as error:
        raise _hub_failure(source, error) from error


def _hub_failure(source: str, error: Exception) -> FileNotFoundError:
    if source.lower() == TOFU_HUB_ID.lower():
        remedy = (
            "run `llm-unlearn data get tofu` on a machine that reaches the hub and give the folder it makes as the "
            "source, or leave the source out for the bundled data"
        )
    else:
        remedy = "check the id and the connection, or give a local folder or file as the source"
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return FileNotFoundError(f"{source} is no local path and could not be read from the hub ({reason}): {remedy}.")


# Columns


def _rename(dataset: Dataset, columns: Mapping[str, str]) -> Dataset:
    known = [role for roles in EXAMPLE_FORMS.values() for role in roles]
    for role in columns:
        if role not in known:
            raise ValueError(unknown("role of a column", role, known))
    form = next((roles for roles in EXAMPLE_FORMS.values() if set(columns) <= set(roles)), None)
    if form is None:
        raise ValueError(f"The roles {quoted(columns)} belong to different forms: name columns with {_COLUMN_FLAGS}.")
    chosen = {role: columns.get(role, role) for role in form}
    present = dataset.column_names
    for role, column in chosen.items():
        if column not in present:
            raise ValueError(f"{unknown('column', column, present)} Give `--{role}_column` one of them.")
    if len(set(chosen.values())) < len(chosen):
        raise ValueError(
            f"Column `{chosen[form[0]]}` cannot be both {quoted(form)}: give "
            + " and ".join(f"`--{role}_column`" for role in form)
            + f" different ones of {quoted(present)}."
        )
    dropped = [name for name in present if name in known and name not in chosen.values()]
    renamed = {column: role for role, column in chosen.items() if column != role}
    return dataset.remove_columns(dropped).rename_columns(renamed)


def _check_text(value: Any, may_be_empty: bool) -> str | None:
    if not isinstance(value, str):
        return "nothing" if value is None else f"a value of type {type(value).__name__} instead of text"
    return None if may_be_empty or value.strip() else "empty text"


def _check_messages(value: Any, may_be_empty: bool) -> str | None:
    if not value and not may_be_empty:
        return "no messages"
    fits = isinstance(value, list) and all(
        isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))
        for message in value
    )
    return None if fits else "something else than a list of messages with `role` and `content`"
