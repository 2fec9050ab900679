"""Forget texts and their neighbours in a pool, near-duplicates left out where that is wanted."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import NamedTuple, Protocol

import numpy as np
from tqdm.auto import tqdm

from llm_unlearn.data.analogues.encoders import Encoder
from llm_unlearn.data.analogues.index import INDEX_NAME, SavedIndex, load_index, save_index
from llm_unlearn.data.analogues.overlap import longest_common_run, ngrams, shared_ngrams
from llm_unlearn.data.analogues.search import Matrix, faiss_top_k, import_faiss, top_k
from llm_unlearn.data.analogues.texts import chunked, normalised

NGRAM = 10
"""Tokens in a run that counts as copied, as in EL_10, the extraction measure by which ICU stops."""

LONG_RUN = 50
"""Tokens of the suffix which ICU's released code makes a model forget; a summary says how often so many are shared."""

NEIGHBOURS_AT_ONCE = 2**18
"""Most neighbours that a wider search holds at once; beyond, it searches for some forget texts after the others."""


class Texts(Protocol):
    """A pool: how many texts, and the texts, as often as they are asked for."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[str]: ...


class Skipped(NamedTuple):
    """A neighbour that is no partner.

    Attributes:
        position: in the pool.
        reason: in words.
        longest_run: tokens of the longest run that it shares with its forget text.
    """

    position: int
    reason: str
    longest_run: int


@dataclass(frozen=True)
class Analogues:
    """What `find_analogues` found; a list per forget text, in the order of the forget texts.

    Attributes:
        partners: positions in the pool, best first; at least one.
        scores: similarity of each partner.
        longest_runs: tokens of the longest run that each partner shares with its forget text.
        shared: share of the forget text's 10-grams that occur in each partner; None where it has fewer than 10 tokens.
        skipped: neighbours that were left out because of what they share with forget texts, best first.
        n_identical: texts of the pool that equal a forget text, which never are neighbours.
    """

    partners: list[list[int]]
    scores: list[list[float]]
    longest_runs: list[list[int]]
    shared: list[list[float | None]]
    skipped: list[list[Skipped]]
    n_identical: int

    @property
    def n_distinct(self) -> int:
        """Different texts among the first partners: fewer than forget texts where one is the nearest of several."""
        return len({partners[0] for partners in self.partners})

    def summary(self) -> dict[str, float | int]:
        """The first partners in numbers."""
        runs = [runs[0] for runs in self.longest_runs]
        return {
            "pairs": len(runs),
            "distinct_partners": self.n_distinct,
            "median_longest_run": median(runs),
            "share_with_long_run": sum(run >= LONG_RUN for run in runs) / len(runs),
            "skipped_neighbours": sum(map(len, self.skipped)),
            "identical_texts": self.n_identical,
        }


def find_analogues(
    forget: Sequence[str],
    pool: Texts,
    encoder: Encoder,
    *,
    tokenize: Callable[[str], list[int]],
    k: int = 10,
    rank: int = 0,
    max_overlap: int | None = None,
    wanted: int = 1,
    search: str = "exact",
    index: str | Path | None = None,
    progress: bool = True,
) -> Analogues:
    """Find the texts of a pool that are most like each forget text.

    A text of the pool that equals a forget text, but for case and white space, is a neighbour of none. Of the `k`
    nearest of the others those are partners that share little enough, without the first `rank`. Where fewer than
    `wanted` are left, the search widens for those forget texts: twice as many neighbours each time, until there are
    enough or the pool is exhausted. Fewer texts in the pool than forget texts are allowed; partners then repeat.

    Cost: two passes over the pool, one of which encodes it. There are at most log2(pool / k) wider searches, each of
    them a pass more (several where forget texts times neighbours exceed `NEIGHBOURS_AT_ONCE`) with the overlaps of all
    the neighbours it considers. An encoder that takes long wants an `index`: encoded once, and read thereafter.

    Memory, whatever the size of the pool, is at most the sum of

    - a chunk: `CHUNK_ROWS` texts, or fewer with `CHUNK_CHARACTERS` characters and one text more;
    - its rows: 4 * `CHUNK_ROWS` * dimension bytes, or 64 bytes for each different word of each text;
    - 32 MiB of word counts for `tfidf` and `bm25`, and what `top_k` says;
    - 300 bytes for each of forget texts * neighbours, of which there are at most `NEIGHBOURS_AT_ONCE` at a time, and as
      much for each neighbour that was skipped.

    The faiss search alone holds the rows of the whole pool.

    Args:
        forget: the texts to forget.
        pool: what can be partner, such as a list or `RowTexts`; only what is asked for is read.
        encoder: see `make_encoder`.
        tokenize: a text as ids, for the overlaps.
        k: neighbours that are looked at, and most partners of a text. Defaults to 10, as ICU's released code keeps.
        rank: neighbours, of those that share little enough, that are passed over. Defaults to 0, as the released code.
        max_overlap: leave a neighbour out if it shares a run of this many tokens with its forget text, or a run of 10
            with any forget text (of `max_overlap`, where that is more). Unset, as in the released code, none is.
        wanted: partners that each text should have, at most `k`; fewer only where the pool has no more. Defaults to 1.
        search: `exact`, or `faiss` for dense encoders.
        index: folder of saved encodings, for dense encoders: read where it is there, else written. Unset, none.
        progress: whether to show bars.

    Raises:
        ValueError: no forget texts, an empty pool or one of forget texts alone, a forget text that is left without
            partner, or an index that does not fit.
    """
    if not len(forget):
        raise ValueError("There are no forget texts to find neighbours of: name a `--forget_split` with rows.")
    size = len(pool)
    if not size:
        raise ValueError(
            "The pool has no texts to find neighbours in: name a `--pair_pool` or `--retain_split` with some."
        )
    if not 1 <= wanted <= k or rank < 0:
        raise ValueError(f"k is {k}, rank {rank} and wanted {wanted}: give 1 <= wanted <= k and a rank of 0 or more.")
    searched = _Pool(forget, pool, encoder, search, index, progress)
    overlaps = _Overlaps(forget, tokenize, max_overlap)
    found: dict[int, _Found] = {}
    waiting, width = list(range(len(forget))), min(max(k, rank + wanted), size)
    while True:
        at_once = max(1, NEIGHBOURS_AT_ONCE // width)
        for group in (waiting[at : at + at_once] for at in range(0, len(waiting), at_once)):
            scores, positions = searched.nearest(group, width)
            verdicts = overlaps.of(pool, dict(zip(group, positions.tolist(), strict=True)))
            for i, its_scores, its_positions in zip(group, scores.tolist(), positions.tolist(), strict=True):
                found[i] = _choose(its_scores, its_positions, verdicts[i], rank, k)
        waiting = [i for i in waiting if len(found[i].partners) < wanted]
        if not waiting or width == size:
            break
        width = min(2 * width, size)
    for i in waiting:
        if not found[i].partners:
            raise _nothing_left(i, size - len(searched.identical), len(found[i].skipped), rank, max_overlap)
    columns = zip(*(found[i] for i in range(len(forget))), strict=True)
    return Analogues(*map(list, columns), n_identical=len(searched.identical))


def _nothing_left(row: int, eligible: int, skipped: int, rank: int, max_overlap: int | None) -> ValueError:
    if skipped < eligible:
        return ValueError(
            f"Forget text {row} keeps {eligible - skipped} of {eligible} texts of the pool, and a rank of {rank} "
            "passes over them all: lower `--pair_rank` or name a larger `--pair_pool`."
        )
    return ValueError(
        f"Forget text {row} keeps none of {eligible} texts of the pool, because with a largest overlap of "
        f"{max_overlap} tokens all share too much with it or another one: raise `--pair_max_overlap` or name a larger "
        "`--pair_pool`."
    )


class _Pool:
    """The pool as the search sees it: passed once to learn about it, then encoded or read from an index."""

    def __init__(
        self,
        forget: Sequence[str],
        texts: Texts,
        encoder: Encoder,
        search: str,
        index: str | Path | None,
        progress: bool,
    ):
        self._texts = texts
        self._encoder = encoder
        self._progress = progress
        self.identical: list[int] = []
        self._sha256 = hashlib.sha256()
        if search == "faiss":
            import_faiss()  # missing, it should be missed before the pool is encoded
        survey = self._survey({normalised(text) for text in forget})
        encoder.fit(survey)
        # Most encoders have nothing to learn, and leave the pass to us.
        for _ in survey:
            pass
        if len(self.identical) == len(texts):
            raise ValueError(
                f"All {len(texts)} texts of the pool are forget texts, which are no partners: name another "
                "`--pair_pool` or `--retain_split`."
            )
        self._queries = encoder.encode_queries(forget)
        dense = isinstance(self._queries, np.ndarray)
        if not dense and (search == "faiss" or index):
            raise ValueError(
                f"The encoder {encoder.name!r} makes sparse rows, for which there is neither faiss nor an index: drop "
                "`--pair_search` and `--pair_index`, or use another `--pair_encoder`."
            )
        self._search = faiss_top_k if search == "faiss" else top_k
        self._index = self._open_index(index) if index else None

    def nearest(self, queries: list[int], k: int) -> tuple[np.ndarray, np.ndarray]:
        """Similarities and positions of the `k` nearest texts of some forget texts, see `top_k`."""
        rows = self._index.chunks() if self._index else self._encoded("searching the pool")
        return self._search(self._queries[queries], rows, k, self.identical)

    def _survey(self, forgotten: set[str]) -> Iterator[list[str]]:
        position = 0
        for chunk in chunked(self._bar("reading the pool")):
            for text in chunk:
                if normalised(text) in forgotten:
                    self.identical.append(position)
                position += 1
                data = text.encode("utf-8", "surrogatepass")
                self._sha256.update(len(data).to_bytes(8, "little") + data)
            yield chunk

    def _encoded(self, doing: str) -> Iterator[Matrix]:
        return (self._encoder.encode_pool(chunk) for chunk in chunked(self._bar(doing)))

    def _bar(self, doing: str) -> Iterable[str]:
        return tqdm(self._texts, desc=doing, unit="text", total=len(self._texts), disable=not self._progress)

    def _open_index(self, folder: str | Path) -> SavedIndex:
        sha256 = self._sha256.hexdigest()
        if (Path(folder) / INDEX_NAME).exists():
            return load_index(folder, self._encoder.name, self._queries.shape[1], sha256)
        return save_index(folder, self._encoder.name, self._encoded("encoding the pool"), sha256)


class _Verdict(NamedTuple):
    longest_run: int
    shared: float | None
    reason: str | None


class _Overlaps:
    """What neighbours share with forget texts, and whether it is too much."""

    def __init__(self, forget: Sequence[str], tokenize: Callable[[str], list[int]], max_overlap: int | None):
        self._tokenize = tokenize
        self._forget = [tokenize(text) for text in forget]
        self._max_overlap = max_overlap
        # A limit above 10 could never decide if a run of 10 with the same text were already too long.
        self._n = max(NGRAM, max_overlap or 0)
        self._copied = set() if max_overlap is None else {g for ids in self._forget for g in ngrams(ids, self._n)}

    def of(self, pool: Texts, neighbours: dict[int, list[int]]) -> dict[int, dict[int, _Verdict]]:
        """For each forget text the verdict on each of its neighbours; a position of -1 is none."""
        forget_texts: dict[int, list[int]] = {}
        for i, positions in neighbours.items():
            for position in positions:
                forget_texts.setdefault(position, []).append(i)
        forget_texts.pop(-1, None)
        verdicts: dict[int, dict[int, _Verdict]] = {i: {} for i in neighbours}
        for position, text in _texts_at(pool, sorted(forget_texts)):
            ids = self._tokenize(text)
            copies = not self._copied.isdisjoint(ngrams(ids, self._n)) if self._copied else False
            for i in forget_texts[position]:
                verdicts[i][position] = self._verdict(self._forget[i], ids, copies)
        return verdicts

    def _verdict(self, forget: list[int], neighbour: list[int], copies: bool) -> _Verdict:
        run = longest_common_run(forget, neighbour)
        reason = None
        if self._max_overlap is not None and run >= self._max_overlap:
            reason = f"shares a run of {run} tokens with its forget text"
        elif copies:
            reason = f"shares a run of {self._n} tokens or more with another forget text"
        return _Verdict(run, shared_ngrams(forget, neighbour, NGRAM), reason)


def _texts_at(pool: Texts, positions: list[int]) -> Iterator[tuple[int, str]]:
    """The texts at ascending positions: looked up where the pool allows it, else read past."""
    if isinstance(pool, Sequence):
        return ((position, pool[position]) for position in positions)
    wanted = set(positions)
    return ((position, text) for position, text in enumerate(pool) if position in wanted)


class _Found(NamedTuple):
    """Of one forget text, in the order of the fields of `Analogues`."""

    partners: list[int]
    scores: list[float]
    longest_runs: list[int]
    shared: list[float | None]
    skipped: list[Skipped]


def _choose(scores: list[float], positions: list[int], verdicts: dict[int, _Verdict], rank: int, k: int) -> _Found:
    """The partners among the neighbours of one forget text."""
    found = _Found([], [], [], [], [])
    passed = 0
    for score, position in zip(scores, positions, strict=True):
        if position < 0 or len(found.partners) == k:
            break
        run, shared, reason = verdicts[position]
        if reason is not None:
            found.skipped.append(Skipped(position, reason, run))
            continue
        passed += 1
        if passed > rank:
            found.partners.append(position)
            found.scores.append(score)
            found.longest_runs.append(run)
            found.shared.append(shared)
    return found
