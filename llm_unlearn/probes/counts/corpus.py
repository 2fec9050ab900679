"""Counts of facts in a corpus: one pass over all its text, in several processes, resumable."""

from __future__ import annotations

import hashlib
import json
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from llm_unlearn.paths import public_name
from llm_unlearn.probes.counts.documents import Source, TextFormat
from llm_unlearn.probes.counts.matcher import has_automaton
from llm_unlearn.probes.counts.normalise import NORMALISATION
from llm_unlearn.probes.counts.record import FactCount, FactCounts
from llm_unlearn.probes.counts.scan import scan
from llm_unlearn.probes.counts.state import PassState
from llm_unlearn.probes.counts.tally import Counter, Tally, Window
from llm_unlearn.probes.counts.texts import cut_into_units, find_sources
from llm_unlearn.probes.facts import Fact
from llm_unlearn.version import __version__


def count_corpus(
    path: str | Path,
    facts: Sequence[Fact],
    window: Window = 100,
    case_sensitive: bool = False,
    form: TextFormat | None = None,
    processes: int = 1,
    state: str | Path | None = None,
    progress: bool = True,
) -> FactCounts:
    """Count every fact in a corpus.

    For the mentions S of the subject and O of the object (see `Matcher`; at most 1 name at a place)

        n_so = #{m in the rarer of S and O : a mention of the other lies within `window` tokens, in the same document},

    distances from first token to first token, which is what an AND query to infini-gram counts; of equally many
    mentions, those of the subject. d_so is the number of documents with both, and

        PMI = log2(d_so * D / (d_s * d_o))

    over all D documents. The counts do not depend on the number of processes, nor on interruptions.

    Args:
        path: text (`.txt`), JSON lines (`.jsonl`), either also with `.gz`, parquet, a data set on disk, or a folder.
        facts: the facts, each with an id of its own.
        window (`int` or `"document"`, *optional*, defaults to 100, infini-gram's default):
            Tokens (words; see `normalise.edges`) or the whole document.
        case_sensitive (`bool`, *optional*, defaults to `False`):
            Whether "Turkey" and "turkey" differ.
        form (`TextFormat`, *optional*):
            Where the text is in the files, and what share of it to read. With a share below 1 all counts are scaled
            up, and `n_so` has a 95 % interval (of a Poisson count, exact after Garwood 1936).
        processes (`int`, *optional*, defaults to 1):
            How many processes read and count. With more than one, a script must start its work under
            ``if __name__ == "__main__"``.
        state (`str` or `Path`, *optional*):
            A file that keeps what is counted so far; where it exists, the pass goes on from it. Unset, an interrupted
            pass begins anew.
        progress (`bool`, *optional*, defaults to `True`):
            Whether a terminal shows a bar.

    Raises:
        FileNotFoundError: there is no such path.
        ValueError: a setting or a name is impossible, the corpus is empty or damaged, or the state is that of another
            pass.
    """
    form = form or TextFormat()
    if window != "document" and (not isinstance(window, int) or isinstance(window, bool) or window < 1):
        raise ValueError(f"`window` is {window!r}: give a number of tokens from 1 up, or 'document'.")
    if processes < 1:
        raise ValueError(f"`processes` is {processes}: give 1 or more.")
    counter = Counter(facts, window, case_sensitive)
    sources = find_sources(path)
    units = [unit for source in sources for unit in cut_into_units(source, form)]
    files = _hashes(sources, progress)
    rule = {"window": window, "case_sensitive": case_sensitive, "format": asdict(form)}
    identity = {"facts": _names_hash(facts), "files": files, "rule": rule | {"normalisation": NORMALISATION}}
    kept = PassState(state, identity, [unit.start for unit in units], counter.empty())
    total = scan(units, form, counter, kept, processes, progress)
    if not total.documents:
        raise ValueError(f"{path} has no documents: give a corpus with text in it, or a larger `sample`.")
    counts = [_count(fact, row, total, form.sample) for fact, row in zip(facts, total.facts.T.tolist(), strict=True)]
    within = "in a document" if window == "document" else f"within {window} tokens"
    provenance = {
        "corpus": public_name(str(path)),
        "files": files,
        "sha256": hashlib.sha256(json.dumps(files).encode()).hexdigest(),
        "documents_scanned": total.documents,
        "tokens_scanned": total.tokens,
        "token": "word; single characters of scripts without spaces",
        **rule,
        "normalisation": NORMALISATION.format(case="case kept" if case_sensitive else "case folded"),
        "names": counter.n_names,
        "versions": _versions(),
    }
    return FactCounts("corpus", f"co-occurrences {within}", {count.id: count for count in counts}, provenance)


def poisson_interval(count: int, share: float) -> tuple[float, float]:
    """95 % interval of a count of which a share was seen: that of a Poisson mean (Garwood 1936), scaled up.

    Args:
        count: what was seen, 0 or more.
        share: the share of the whole that was looked at, above 0 and at most 1.
    """
    from scipy.stats import chi2

    low = chi2.ppf(0.025, 2 * count) / 2 if count else 0.0
    return float(low / share), float(chi2.ppf(0.975, 2 * count + 2) / 2 / share)


def _count(fact: Fact, row: list[int], total: Tally, share: float) -> FactCount:
    n_s, n_o, near_s, near_o, d_s, d_o, d_so = row
    near = near_s if n_s <= n_o else near_o
    pmi = math.log2(d_so * total.documents / (d_s * d_o)) if d_so else None
    if share == 1:
        return FactCount(fact.id, near, n_s, n_o, d_so, pmi)
    scaled = [value / share for value in (near, n_s, n_o, d_so)]
    return FactCount(fact.id, *scaled, pmi, approx=True, interval=poisson_interval(near, share))


def _hashes(sources: Sequence[Source], progress: bool) -> list[dict[str, Any]]:
    """Name, size and SHA-256 of every file: what was counted, and whether a kept state belongs to it."""
    rows = []
    total = sum(source.size for source in sources)
    with tqdm(total=total, desc="hashing", unit="B", unit_scale=True, disable=None if progress else True) as bar:
        for source in sources:
            for file in source.files:
                digest = hashlib.sha256()
                with file.open("rb") as opened:
                    while block := opened.read(1 << 20):
                        digest.update(block)
                        bar.update(len(block))
                name = source.name if source.files == (source.path,) else f"{source.name}/{file.name}"
                rows.append({"name": name, "bytes": file.stat().st_size, "sha256": digest.hexdigest()})
    return rows


def _names_hash(facts: Sequence[Fact]) -> str:
    names = [[fact.id, sorted(fact.subject_names), sorted(fact.object_names)] for fact in facts]
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()


def _versions() -> dict[str, str]:
    versions = {"llm-unlearn": __version__, "unicode": unicodedata.unidata_version}
    return versions | ({"pyahocorasick": version("pyahocorasick")} if has_automaton() else {})
