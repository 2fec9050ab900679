"""Which codes are nearest to a vector: exact, and in pieces where the whole table of similarities would be large."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

TOKENS_AT_ONCE, CODES_AT_ONCE = 4096, 8192
"""At most this many similarities are held at a time: 4,096 x 8,192 in fp32 are 128 MiB."""


def top_codes(
    z: Float[Tensor, "n m"],
    directions: Float[Tensor, "K m"],
    k: int,
    bias: Float[Tensor, " K"] | None = None,
    *,
    tokens_at_once: int = TOKENS_AT_ONCE,
    codes_at_once: int = CODES_AT_ONCE,
) -> Int[Tensor, "n k"]:
    """The `k` codes of largest cosine with each row of `z`, nearest first.

    A row's own length cannot change its ranking, so the similarity is ``z . c_k / ||c_k||``.

    Args:
        z: encoded vectors.
        directions: codes of length 1.
        k: how many; at most as many as `bias` leaves.
        bias: added to the similarities: 0, or minus infinity for a code that must not be found.
        tokens_at_once, codes_at_once: the size of a piece. The result does not depend on them, ties aside.
    """
    with torch.no_grad():
        rows = [_top(part, directions, k, bias, codes_at_once) for part in z.split(tokens_at_once)]
        return torch.cat(rows) if rows else torch.empty((0, k), dtype=torch.long, device=z.device)


def _top(z: Tensor, directions: Tensor, k: int, bias: Tensor | None, codes_at_once: int) -> Tensor:
    values = ids = None
    for first in range(0, len(directions), codes_at_once):
        part = directions[first : first + codes_at_once]
        scores = z @ part.T if bias is None else torch.addmm(bias[first : first + codes_at_once], z, part.T)
        found, places = scores.topk(min(k, len(part)), dim=-1)
        places = places + first
        if values is not None:
            # Earlier codes come first, so that equal similarities keep the order of one single pass.
            found, places = torch.cat([values, found], dim=-1), torch.cat([ids, places], dim=-1)
            found, order = found.topk(min(k, found.shape[-1]), dim=-1)
            places = places.gather(-1, order)
        values, ids = found, places
    return ids
