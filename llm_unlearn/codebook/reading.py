"""Which codes a model uses in texts: the pass behind selection, gates and inspection. It ends at the bottleneck."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from llm_unlearn.codebook.model import CodebookModel
from llm_unlearn.codebook.selection import CodeCounts
from llm_unlearn.codebook.seq2seq import kind_of
from llm_unlearn.data.tokenization import ExampleTokenizer, TokenizedItem
from llm_unlearn.evaluation.outputs.sharding import device_of, evaluating, form_batches, run_sharded

_BATCH_TOKENS = {"cpu": 2048, "other": 16384}
# Of these tokens the vectors of all codes found are held at a time.
_COMPARED_TOKENS = 256


@dataclass(frozen=True, eq=False)
class CodeReading:
    """The codes of one text.

    Attributes:
        tokens: ``(T,)``, the ids of its counted tokens: all but special ones (begin, end, marks of turns).
        codes: ``(T, k)``, the `k` nearest codes of each, nearest first, whatever is deleted.
        positions: ``(T,)``, where they stand in the text's ids. Of an encoder-decoder model's text the source is read.
        cosines: ``(T, k)``, how near each code is, in [-1, 1]; None where they were not asked for.
        special: ``(n, S)``, the codes of the special tokens that pass the bottleneck, which a gate sees as well.
    """

    tokens: Int[np.ndarray, " T"]
    codes: Int[np.ndarray, "T k"]
    positions: Int[np.ndarray, " T"]
    cosines: Float[np.ndarray, "T k"] | None = None
    special: Int[np.ndarray, "n S"] | None = None


def read_codes(
    codebook: CodebookModel,
    items: Sequence[TokenizedItem],
    tokenizer: ExampleTokenizer,
    k: int | None = None,
    *,
    cosines: bool = False,
    name: str = "texts",
    progress: bool = True,
) -> list[CodeReading]:
    """Read the codes of `items`; time is linear in their tokens, and the layers above the bottleneck are not run.

    Args:
        codebook: the model.
        items: tokenised texts.
        tokenizer: the tokenizer they were made with.
        k: codes per token; defaults to S.
        cosines: whether to tell how near each code is.
        name: what the progress bar calls the items.
        progress: whether the main process shows a bar.

    Returns:
        One reading per item, the same on every process.

    Raises:
        ValueError: `k` exceeds the number of codes.
    """
    bottleneck, model = codebook.bottleneck, codebook.base_model
    kind = kind_of(model)
    k = k or codebook.config.top_s
    if k > codebook.config.num_codes:
        raise ValueError(
            f"Lists of {k} codes were asked for, but there are {codebook.config.num_codes}: lower the strengths."
        )
    device = device_of(model)
    special = torch.tensor(sorted(tokenizer.special_ids), device=device)

    def run(positions: list[int]) -> list[CodeReading]:
        batch = kind.collate([items[i] for i in positions])
        ids, mask = batch["input_ids"].to(device), batch["attention_mask"].to(device)
        (x,) = codebook.site.captured(lambda: model(input_ids=ids, attention_mask=mask, use_cache=False))
        passing = mask.bool() & x.isfinite().all(-1)
        counted = passing & ~torch.isin(ids, special)
        z = bottleneck.encode(x[counted])
        codes = bottleneck.search(z, k, ignore_deleted=True)
        marks = bottleneck.search(bottleneck.encode(x[passing & ~counted]), ignore_deleted=True)
        parts = [ids[counted].int(), codes.int(), counted.nonzero()[:, 1].int()]
        if cosines:
            parts.append(_cosines(z, bottleneck.directions(), codes))
        texts = zip(*(_per_text(part, counted) for part in parts), strict=True)
        of_special = _per_text(marks.int(), passing & ~counted)
        return [CodeReading(*parts, special=some) for parts, some in zip(texts, of_special, strict=True)]

    budget = _BATCH_TOKENS.get(device.type, _BATCH_TOKENS["other"])
    batches = form_batches([(len(item.input_ids), 0) for item in items], budget)
    costs = [sum(len(items[i].input_ids) for i in batch) for batch in batches]
    with evaluating(model):
        return run_sharded(run, batches, costs, f"codes of {name}", progress)


def _per_text(values: Tensor, chosen: Bool[Tensor, "batch tokens"]) -> list[np.ndarray]:
    """Values of the chosen tokens, text by text."""
    return np.split(values.cpu().numpy(), chosen.sum(1).cumsum(0)[:-1].cpu().numpy())


def _cosines(
    z: Float[Tensor, "n m"], directions: Float[Tensor, "K m"], codes: Int[Tensor, "n k"]
) -> Float[Tensor, "n k"]:
    pieces = zip(F.normalize(z, dim=-1).split(_COMPARED_TOKENS), codes.split(_COMPARED_TOKENS), strict=True)
    return torch.cat([(directions[found] @ rows[..., None])[..., 0] for rows, found in pieces])


def count_codes(readings: Sequence[CodeReading], levels: Sequence[int], num_codes: int) -> CodeCounts:
    """How many tokens, and how many texts, hold each code among their first `levels[i]`.

    Args:
        readings: of lists at least as long as the longest level.
        levels: list lengths, ascending.
        num_codes: K.
    """
    tokens = np.zeros((len(levels), num_codes), dtype=np.int64)
    texts = np.zeros_like(tokens)
    for reading in readings:
        for row, level in enumerate(levels):
            codes, uses = np.unique(reading.codes[:, :level], return_counts=True)
            tokens[row, codes] += uses
            texts[row, codes] += 1
    n_tokens = sum(len(reading.tokens) for reading in readings)
    return CodeCounts(tuple(levels), tokens, texts, n_tokens, len(readings))
