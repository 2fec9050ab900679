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


def collate(items: Sequence[TokenizedItem], pad_id: int, weights: Sequence[float] | None = None) -> Half:
    """Pad `items` to a batch.

    Args:
        items: tokenised items.
        pad_id: any id; what stands on padding is never attended to nor scored.
        weights: weight of each row in the loss; 1 where not given.

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


class DataCollatorForUnlearning:
    """Collates the rows of a `ForgetRetainDataset`, each a dict of `TokenizedItem`s with one `weight`.

    Args:
        pad_id: id written on padding. Defaults to 0, which every vocabulary has.
    """

    def __init__(self, pad_id: int = 0):
        self.pad_id = pad_id

    def __call__(self, rows: Sequence[dict]) -> dict[str, Half]:
        weights = [row["weight"] for row in rows]
        halves = [name for name in rows[0] if name != "weight"]
        return {name: collate([row[name] for row in rows], self.pad_id, weights) for name in halves}
