"""From pairs of tokenised items to the batch every method reads.

``{"forget": H, "retain": H, "alternate": H}`` with ``H = {input_ids, attention_mask, labels, index, weight}``; `retain`
and `alternate` only where the run has them. Sequences are padded on the right. Labels are set on the answer alone and
attention masks come from lengths: comparing ids with the pad id would also mask real end tokens where pad = end.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from llm_unlearn.data.tokenization import TokenizedItem
from llm_unlearn.functional import IGNORE_INDEX

Half = dict[str, Tensor]


def collate(items: Sequence[TokenizedItem], weights: Sequence[float] | None = None, *, pad_id: int = 0) -> Half:
    """Pad `items` to a batch.

    Args:
        items: tokenised items.
        weights: weight of each row in the loss; 1 where not given.
        pad_id: any id; what stands on padding is never attended to nor scored. Defaults to 0, which every vocabulary
            has.

    Returns:
        `input_ids`, `attention_mask`, `labels`: ``(batch, tokens)``; `index`, `weight`: ``(batch,)``.
    """
    length = max(len(item.input_ids) for item in items)
    shape = (len(items), length)
    input_ids = torch.full(shape, pad_id)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, IGNORE_INDEX)
    for row, item in enumerate(items):
        ids = torch.tensor(item.input_ids)
        input_ids[row, : len(ids)] = ids
        attention_mask[row, : len(ids)] = 1
        labels[row, item.prompt_length : len(ids)] = ids[item.prompt_length :]
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "labels": labels,
        "index": torch.tensor([item.index for item in items]),
        "weight": torch.ones(len(items)) if weights is None else torch.tensor(weights, dtype=torch.float32),
    }


def counted_rows(half: Half) -> Half:
    """The rows that count in the loss; the first one where none does, since every process must run a forward.

    Their weights are scaled so that the mean of the weighted rows stays that over all rows.
    """
    kept = half["weight"] > 0
    if bool(kept.all()):
        return half
    if not bool(kept.any()):
        kept = torch.arange(len(kept), device=kept.device) == 0
    rows = {name: tensor[kept] for name, tensor in half.items()}
    longest = int(rows["attention_mask"].sum(1).max())
    rows = {name: tensor[:, :longest] if tensor.dim() == 2 else tensor for name, tensor in rows.items()}
    return {**rows, "weight": rows["weight"] * (len(rows["weight"]) / len(kept))}


class DataCollatorForUnlearning:
    """Collates the rows of a `ForgetRetainDataset`: a `TokenizedItem` and its weight for each half.

    Args:
        pad_id: id written on padding. Defaults to 0, which every vocabulary has.
    """

    def __init__(self, pad_id: int = 0):
        self.pad_id = pad_id

    def __call__(self, rows: Sequence[dict]) -> dict[str, Half]:
        return {name: collate(*zip(*(row[name] for row in rows), strict=True), pad_id=self.pad_id) for name in rows[0]}
