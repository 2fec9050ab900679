"""Exact nearest neighbours by inner product, over rows that come in chunks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, TypeAlias, Union

import numpy as np

if TYPE_CHECKING:
    from scipy.sparse import csr_array, csr_matrix

# In quotes, because scipy is imported only where a matrix is sparse.
Matrix: TypeAlias = Union[np.ndarray, "csr_matrix", "csr_array"]

CELLS_AT_ONCE = 2**22
"""Most numbers in a block of similarities, or of dense rows in double precision: 32 MiB."""


def top_k(
    queries: Matrix, chunks: Iterable[Matrix], k: int, exclude: Iterable[int] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """The `k` rows with the largest inner product for each query, best first.

    Memory, whatever the number of rows: one chunk, the queries in double precision, 4 blocks of 8 * `CELLS_AT_ONCE`
    bytes (128 MiB) and 12 * queries * k bytes for the best so far. Products are summed in double precision and rounded
    to single, so that equal rows tie wherever they stand; of those that tie, the one with the lower position comes
    first. The result does therefore not depend on how the rows are cut into chunks.

    Args:
        queries: ``(queries, dimension)``, dense or sparse.
        chunks: consecutive rows, each chunk ``(rows, dimension)`` and of the same kind.
        k: neighbours per query.
        exclude: positions of rows that are no neighbour of any query.

    Returns:
        Similarities and positions, each ``(queries, k)``; minus infinity and -1 where there are fewer than `k` rows.
    """
    best_scores = np.full((queries.shape[0], k), -np.inf, dtype=np.float32)
    best_positions = np.full((queries.shape[0], k), -1, dtype=np.int64)
    excluded = np.unique(np.fromiter(exclude, dtype=np.int64))
    columns = queries.T.astype(np.float64) if isinstance(queries, np.ndarray) else queries.T.tocsr()
    start = 0
    for block in _blocks(chunks, queries):
        products = block.astype(np.float64) @ columns
        scores = (products if isinstance(products, np.ndarray) else products.toarray()).T.astype(np.float32)
        first, last = np.searchsorted(excluded, (start, start + block.shape[0]))
        scores[:, excluded[first:last] - start] = -np.inf
        _keep_best(best_scores, best_positions, scores, start)
        start += block.shape[0]
    return best_scores, best_positions


def _blocks(chunks: Iterable[Matrix], queries: Matrix) -> Iterator[Matrix]:
    width = max(queries.shape) if isinstance(queries, np.ndarray) else queries.shape[0]
    rows = max(1, CELLS_AT_ONCE // max(1, width))
    return (chunk[at : at + rows] for chunk in chunks for at in range(0, chunk.shape[0], rows))


def _keep_best(best_scores: np.ndarray, best_positions: np.ndarray, scores: np.ndarray, start: int) -> None:
    """Merge the similarities of the rows from `start` on into the best so far, in place."""
    k = best_scores.shape[1]
    # A later row that ties with the last of the best loses to it, so most queries are done with one comparison.
    for query in np.flatnonzero(scores.max(axis=1) > best_scores[:, -1]):
        row = scores[query]
        found = np.flatnonzero(row > best_scores[query, -1])
        if len(found) > k:
            last = np.partition(row[found], len(found) - k)[len(found) - k]
            found = found[row[found] >= last]
        merged = np.concatenate([best_scores[query], row[found]])
        positions = np.concatenate([best_positions[query], start + found])
        # Both parts are in the order of their positions where they tie, and a stable sort keeps it.
        order = np.argsort(-merged, kind="stable")[:k]
        best_scores[query], best_positions[query] = merged[order], positions[order]


def import_faiss() -> ModuleType:
    """The package faiss.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import faiss
    except ModuleNotFoundError as error:
        raise ValueError(
            "The search `faiss` needs the package faiss: install it with `pip install 'llm-unlearn[similarity]'`, or "
            "use `--pair_search exact`."
        ) from error
    return faiss


def faiss_top_k(
    queries: np.ndarray, chunks: Iterable[np.ndarray], k: int, exclude: Iterable[int] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """`top_k` of dense rows by faiss, with all its threads and exact as well (`IndexFlatIP`).

    It holds all rows, 4 * rows * dimension bytes and up to twice that while it grows, and works in single precision:
    rows whose similarities agree to six digits may change places, and of rows that tie for the last place any may be
    left out.

    Raises:
        ValueError: faiss is not installed.
    """
    faiss = import_faiss()
    index = faiss.IndexFlatIP(queries.shape[1])
    for chunk in chunks:
        index.add(np.ascontiguousarray(chunk, dtype=np.float32))
    excluded = np.fromiter(exclude, dtype=np.int64)
    # A selector makes the search several times slower, and most pools need none.
    selector = faiss.IDSelectorNot(faiss.IDSelectorBatch(excluded)) if len(excluded) else None
    parameters = faiss.SearchParameters(sel=selector)
    scores, positions = index.search(np.ascontiguousarray(queries, dtype=np.float32), k, params=parameters)
    scores = np.where(positions < 0, -np.inf, scores).astype(np.float32)
    order = np.lexsort((positions, -scores))
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(positions, order, axis=1)
