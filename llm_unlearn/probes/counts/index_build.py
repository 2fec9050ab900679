"""Builds a local infini-gram index (arXiv 2401.17377) of any corpus that can be counted in, with any small tokenizer.

The package `infini_gram` sorts the suffixes; its own command tokenises with three tokenizers of the hub alone.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from llm_unlearn.files import replace_folder, write_json
from llm_unlearn.paths import public_name
from llm_unlearn.probes.counts.documents import Batch, Source, TextFormat
from llm_unlearn.probes.counts.encoder import MAX_VOCABULARY, Encoder
from llm_unlearn.probes.counts.normalise import DOCUMENT_END
from llm_unlearn.probes.counts.texts import cut_into_units, find_sources, read

RECORD_NAME = "index.json"
"""What an index was built from, beside it."""

_INSTALL = "needs the package infini-gram: install it with `pip install 'llm-unlearn[frequency]'` (Linux, Python 3.11)"

# Before every document, so that its first word has the tokens of a word anywhere.
_WORD_START = " "

# Below this the parts of several processes are shorter than their overlap, and the table is silently wrong.
_BYTES_PER_PROCESS = 1 << 20


def build_index(
    corpus: str | Path,
    folder: str | Path,
    tokenizer: str | Path,
    form: TextFormat | None = None,
    processes: int = 1,
    memory: int = 4,
    gap: int = 100,
    progress: bool = True,
) -> dict[str, Any]:
    """Build an infini-gram index of a corpus; it takes about 7 bytes of disk per token, and more while it is built.

    Args:
        corpus: what `count_corpus` reads, too.
        folder: the index; it appears whole or not at all, and replaces an older one.
        tokenizer: a folder with a `tokenizer.json`, such as a model; its vocabulary has at most `MAX_VOCABULARY`
            tokens.
        form (`TextFormat`, *optional*): where the text is in the files.
        processes (`int`, *optional*, defaults to 1): processes that sort.
        memory (`int`, *optional*, defaults to 4): GiB of memory for sorting.
        gap (`int`, *optional*, defaults to 100, the usual window):
            Separators between documents, 1 or more. Where an AND query finds a partner in the document and another, as
            near, in the next one, the engine drops both; no window of up to `gap` tokens reaches that far.
        progress (`bool`, *optional*, defaults to `True`): whether a terminal shows a bar.

    Returns:
        What `index.json` in the folder holds: names and bytes of the files, hash of the tokenizer, documents, tokens.

    Raises:
        ImportError: infini_gram is not installed.
        FileNotFoundError: there is no such corpus or tokenizer.
        ValueError: the vocabulary is too large, the corpus is empty or damaged, or the index could not be sorted.
    """
    require_package()
    for name, value in {"processes": processes, "memory": memory, "gap": gap}.items():
        if value < 1:
            raise ValueError(f"`{name}` is {value}: give 1 or more.")
    form = form or TextFormat()
    encoder = Encoder(tokenizer)
    sources = find_sources(corpus)
    with replace_folder(folder) as partial:
        documents, tokens = _write_tokens(partial, sources, form, encoder, gap, progress)
        if not documents:
            raise ValueError(f"{corpus} has no documents: give a corpus with text in it.")
        _sort(partial, processes, memory)
        record = {
            "corpus": public_name(str(corpus)),
            "files": [{"name": source.name, "bytes": source.size} for source in sources],
            "tokenizer": Path(tokenizer).name,
            "tokenizer_sha256": encoder.sha256,
            "documents": documents,
            "tokens": tokens,
            "gap": gap,
            "text_field": form.text_field,
            "sample": form.sample,
            "infini_gram": version("infini_gram"),
        }
        write_json(partial / RECORD_NAME, record)
    return record


def require_package() -> None:
    """Raise unless infini_gram is installed.

    Raises:
        ImportError: it is not; the message says how to install it.
    """
    try:
        import infini_gram  # noqa: F401
    except ModuleNotFoundError as error:
        raise ImportError(f"A local index {_INSTALL}, or count with `corpus:PATH`.") from error


def _write_tokens(
    folder: Path, sources: Sequence[Source], form: TextFormat, encoder: Encoder, gap: int, progress: bool
) -> tuple[int, int]:
    """Write the two files that sorting begins with; the number of documents and tokens."""
    separators = np.full(gap, MAX_VOCABULARY, dtype="<u2").tobytes()
    documents, tokens, size = 0, 0, 0
    total = sum(source.size for source in sources)
    with (
        (folder / "tokenized.0").open("wb") as data,
        (folder / "offset.0").open("wb") as offsets,
        tqdm(total=total, desc="tokenising", unit="B", unit_scale=True, disable=None if progress else True) as bar,
    ):
        for batch, texts in _documents(sources, form):
            for ids in encoder.all(texts):
                # A document begins with its separator, the last of the gap.
                offsets.write(np.array([size + 2 * (gap - 1)], dtype="<u8").tobytes())
                size += data.write(separators + np.array(ids, dtype="<u2").tobytes())
                tokens += len(ids)
            documents += len(texts)
            bar.update(batch.read)
    return documents, tokens


def _documents(sources: Sequence[Source], form: TextFormat) -> Iterator[tuple[Batch, list[str]]]:
    for unit in (unit for source in sources for unit in cut_into_units(source, form)):
        for batch in read(unit, form):
            try:
                texts = batch.texts.decode().split(DOCUMENT_END.decode())
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{unit.source.path} is not text in UTF-8 ({error.reason}): save it in that encoding."
                ) from error
            yield batch, [_WORD_START + text for text in texts if text.strip()]


def _sort(folder: Path, processes: int, memory: int) -> None:
    size = (folder / "tokenized.0").stat().st_size
    # The package raises its own limit of open files, to more than most systems allow.
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    options = {
        "mem": memory,
        "cpus": max(1, min(processes, size // _BYTES_PER_PROCESS)),
        "ulimit": limit if 0 < limit < 1_048_576 else 1_048_576,
        "token_dtype": "u16",
    }
    with plain_path(folder) as plain:
        arguments = [f"--{name}={value}" for name, value in {"data_dir": plain, "save_dir": plain, **options}.items()]
        done = subprocess.run(
            [sys.executable, "-m", "infini_gram.indexing", *arguments], capture_output=True, text=True, check=False
        )
    if done.returncode or damage(folder):
        tail = " ".join((done.stdout + done.stderr).split())[-300:]
        raise ValueError(f"infini-gram could not sort the index ({tail}): give more `--memory`, or free disk space.")


@contextmanager
def plain_path(folder: Path) -> Iterator[Path]:
    """Another path of a folder: the package puts paths into shell commands, and knows files by words in them."""
    with tempfile.TemporaryDirectory(prefix="ig") as temporary:
        plain = Path(temporary) / "i"
        plain.symlink_to(folder.resolve(), target_is_directory=True)
        yield plain


def damage(folder: Path) -> str | None:
    """What is wrong with an index; the engine ends the whole process over it."""
    for tokens in sorted(folder.glob("tokenized.*")) or [folder / "tokenized.0"]:
        shard = tokens.name.removeprefix("tokenized.")
        missing = [name for name in ("tokenized", "table", "offset") if not (folder / f"{name}.{shard}").is_file()]
        if missing:
            return f"{missing[0]}.{shard} is missing"
        n_tokens, odd = divmod(tokens.stat().st_size, 2)
        table, offsets = (folder / f"{name}.{shard}" for name in ("table", "offset"))
        if odd or not n_tokens or table.stat().st_size % n_tokens or offsets.stat().st_size % 8:
            return f"the files of shard {shard} do not go together"
    return None
