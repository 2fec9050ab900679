"""Worlds on disk: one JSON-lines file per config, and checksums that also say how the files were made."""

import hashlib
import json
import os
import tempfile
from pathlib import Path

from llm_unlearn.data.world.world import GENERATOR_VERSION, World

CHECKSUMS = "checksums.json"


def write_world(world: World, folder: str | os.PathLike) -> Path:
    """Write all configs of `world` and their checksums to `folder`, and remove those of an earlier world there.

    Everything is first written beside the folder and then moved in, checksums last: an interrupted call leaves no
    half-written file, and a mixture of two worlds does not verify.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        contents = {f"{name}.jsonl": json_lines(rows) for name, rows in world.configs.items()}
        contents[CHECKSUMS] = _checksums(world, contents)
        for name, content in contents.items():
            Path(temporary, name).write_bytes(content)
        stale = _listed_files(folder) - set(contents)
        folder.mkdir(exist_ok=True)
        for name in contents:
            os.replace(Path(temporary, name), folder / name)
    for name in stale:
        (folder / name).unlink(missing_ok=True)
    return folder


def verify_world(folder: str | os.PathLike) -> dict:
    """The content of `checksums.json` if all files agree with it; else a `ValueError` that names the first culprit."""
    folder = Path(folder)
    checksums = _read_checksums(folder)
    for name, expected in checksums["files"].items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{path} is missing although {CHECKSUMS} lists it; write the world again.")
        actual = hashlib.sha256(path.read_bytes()).hexdigest()
        if actual != expected["sha256"]:
            raise ValueError(
                f"{path} has sha256 {actual[:12]}..., but {CHECKSUMS} says {expected['sha256'][:12]}...; the file "
                "was changed or belongs to another world: write the world again."
            )
    return checksums


def json_lines(rows: list[dict]) -> bytes:
    """Rows as the content of a JSON-lines file: bytes, so that checksums are the same on every platform."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _checksums(world: World, contents: dict[str, bytes]) -> bytes:
    record = {
        "generator": "llm_unlearn.data.world",
        "generator_version": GENERATOR_VERSION,
        "arguments": {"authors": world.authors, "seed": world.seed, "exposures": list(world.exposures)},
        "files": {
            name: {"rows": content.count(b"\n"), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in sorted(contents.items())
        },
    }
    return (json.dumps(record, indent=2) + "\n").encode()


def _read_checksums(folder: Path) -> dict:
    path = folder / CHECKSUMS
    try:
        checksums = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; a folder written by write_world is needed.") from None
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); write the world again.") from None
    if not isinstance(checksums, dict) or not isinstance(checksums.get("files"), dict):
        raise ValueError(f"{path} lists no files; a folder written by write_world is needed.")
    return checksums


def _listed_files(folder: Path) -> set[str]:
    """The data files of an earlier world in `folder`, as far as its checksums tell."""
    try:
        return {
            name for name in _read_checksums(folder)["files"] if name.endswith(".jsonl") and Path(name).name == name
        }
    except ValueError:
        return set()
