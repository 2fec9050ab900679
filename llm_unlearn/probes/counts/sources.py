"""The one way to counts: the name of a source and where it lies, such as `corpus:wiki/` or `proxy:facts.csv#links`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from llm_unlearn.probes.counts.record import FactCounts, Source
from llm_unlearn.probes.facts import Fact, require_unique_ids
from llm_unlearn.suggest import unknown

if TYPE_CHECKING:
    from llm_unlearn.probes.counts.documents import TextFormat


def load_counts(
    source: str,
    facts: Sequence[Fact],
    *,
    window: int | Literal["document"] = 100,
    case_sensitive: bool = False,
    form: TextFormat | None = None,
    processes: int = 1,
    state: str | Path | None = None,
    tokenizer: str | Path | None = None,
    progress: bool = True,
) -> FactCounts:
    """Count how often each fact was met.

    Args:
        source: one of

            - `corpus:PATH`: a pass over text (`count_corpus`);
            - `index:FOLDER`: an infini-gram index (`count_index`);
            - `counts:FILE`: a table with the columns `id` and `count`, or a file of `write_counts`;
            - `exposures:FILE`: what a fine-tuning of ours recorded;
            - `proxy:FILE#COLUMN`: any popularity, from a table with a column `id`.
        facts: the facts, each with an id of its own.
        window: tokens between subject and object (`corpus`, `index`), or `"document"` (`corpus`).
        case_sensitive: whether case decides (`corpus`, `index`).
        form: where the text is in the files (`corpus`).
        processes: processes that count (`corpus`).
        state: a file that keeps a pass which is cut off (`corpus`).
        tokenizer: the folder with the tokenizer of the index (`index`).
        progress: whether a terminal shows a bar (`corpus`).

    Returns:
        `FactCounts` of exactly these facts, in their order. All counts may be the same: what correlates with them asks
        `FactCounts.require_variation`.

    Raises:
        FileNotFoundError: the path does not exist.
        ImportError: a package for the source is not installed.
        ValueError: there is no such source, a setting is impossible, a fact has no count, a file is damaged, or
            most numbers of a table are so small that log10(1 + n) is the same of all.
    """
    kind, colon, place = source.partition(":")
    if not colon or not place:
        raise ValueError(f"The counts {source!r} name no source: write SOURCE:PATH with one of {', '.join(_SOURCES)}.")
    if kind not in _SOURCES:
        raise ValueError(unknown("source of counts", kind, _SOURCES))
    if not facts:
        raise ValueError("There are no facts to count: give a file with one or more, `--facts FILE`.")
    require_unique_ids(facts, "The list of facts")
    path = Path(place).expanduser()
    ids = [fact.id for fact in facts]
    # Imported here, since one source does not need the packages of another.
    if kind == "corpus":
        from llm_unlearn.probes.counts.corpus import count_corpus

        return count_corpus(path, facts, window, case_sensitive, form, processes, state, progress)
    if kind == "index":
        from llm_unlearn.probes.counts.index import count_index

        if tokenizer is None:
            raise ValueError("An index counts tokens: give the folder with its tokenizer as `--tokenizer`.")
        if window == "document":
            raise ValueError("An index has no window of a document: give `--window` in tokens, or count `corpus:PATH`.")
        return count_index(path, facts, tokenizer, window, case_sensitive)
    if kind == "exposures":
        from llm_unlearn.probes.counts.exposures import read_exposures

        return read_exposures(path, facts).select(ids)
    from llm_unlearn.probes.counts.table import read_count_table, read_proxy

    if kind == "counts":
        counts = read_count_table(path, facts)
    else:
        file, hash_, column = place.rpartition("#")
        # The name of a file may have a "#", too.
        named = (path, None) if path.exists() or not hash_ else (Path(file), column)
        counts = read_proxy(*named, facts)
    counts.require_scale()
    return counts


_SOURCES = get_args(Source)
