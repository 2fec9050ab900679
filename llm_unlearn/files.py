"""Files appear whole or not at all: everything is written under a temporary name and renamed."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError


@contextmanager
def replace_folder(folder: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside `folder`; it takes the name of `folder` when the context ends well.

    An older `folder` is replaced. On any error the temporary folder is removed and `folder` stays as it was.

    Raises:
        OSError: the disk is full or the place cannot be written.
    """
    folder = Path(folder)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        old = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise _plainly(error, folder) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def remove_if_cut(folder: str | Path) -> Iterator[None]:
    """Remove `folder`, which somebody else's code fills, when that code fails.

    Raises:
        OSError: the disk is full or the place cannot be written.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        shutil.rmtree(folder, ignore_errors=True)
        raise _plainly(error, Path(folder)) from error


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise _plainly(error, path) from error
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """Write a JSON file atomically: UTF-8, indented, without NaN."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _plainly(error: Exception, place: Path) -> OSError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    return OSError(f"{place} could not be written ({reason}): free space or choose another place.")
