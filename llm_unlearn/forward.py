"""One forward pass that computes logits at answer positions only.

Answers are 40-50 % of the tokens of a question-answer batch, and the head is the largest matrix of a small model, so
projecting the other positions wastes time and, above all, memory. The model is called as usual, through whatever
wraps it (DDP, FSDP, PEFT), so that their hooks run; a forward pre-hook on the output embedding drops the rows nobody
needs. For Llama, Qwen, GPT-2 and NeoX the result equals ``full_logits[mask]`` exactly.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from llm_unlearn.functional import (
    IGNORE_INDEX,
    answer_mask,
    answer_rows,
    answer_targets,
    bucket_logits,
    row_mean,
    row_sum,
    token_logps,
)


@dataclass(frozen=True)
class AnswerLogits:
    """Logits of one batch at its answer positions.

    Attributes:
        logits: ``(n_tokens, vocab)``, in the dtype of the model.
        targets: ``(n_tokens,)``, the answer tokens; `IGNORE_INDEX` where a position predicts none.
        rows: ``(n_tokens,)``, the sequence each position belongs to.
        batch_size: number of sequences.
    """

    logits: Float[Tensor, "n_tokens vocab"]
    targets: Int[Tensor, " n_tokens"]
    rows: Int[Tensor, " n_tokens"]
    batch_size: int

    def answers_only(self) -> "AnswerLogits":
        """Of logits taken everywhere, those at the answer positions."""
        kept = self.targets != IGNORE_INDEX
        return AnswerLogits(self.logits[kept], self.targets[kept], self.rows[kept], self.batch_size)


@dataclass(frozen=True)
class AnswerScores:
    """Log-probabilities of the answer tokens of one batch, in fp32."""

    token_logps: Float[Tensor, " n_tokens"]
    rows: Int[Tensor, " n_tokens"]
    batch_size: int

    @classmethod
    def of(cls, answers: AnswerLogits) -> "AnswerScores":
        """Score the answers; the logits are not kept."""
        return cls(token_logps(answers.logits, answers.targets), answers.rows, answers.batch_size)

    @property
    def sums(self) -> Float[Tensor, " batch"]:
        """``S(y) = sum_t log p(y_t)`` per sequence."""
        return row_sum(self.token_logps, self.rows, self.batch_size)

    @property
    def means(self) -> Float[Tensor, " batch"]:
        """``S(y) / T`` per sequence: minus the token-mean NLL."""
        return row_mean(self.token_logps, self.rows, self.batch_size)


@dataclass(frozen=True)
class ReferenceLogits:
    """What the model before unlearning says at the positions of one batch.

    Attributes:
        logits: over the whole vocabulary, or over the tokens `ids` and all others together (`bucket_logits`).
        ids: ``(n_tokens, k)``, the tokens told apart; None for the whole vocabulary.
    """

    logits: Float[Tensor, "n_tokens outcomes"]
    ids: Int[Tensor, "n_tokens k"] | None = None

    @classmethod
    def top(cls, logits: Float[Tensor, "n_tokens vocab"], k: int) -> "ReferenceLogits":
        """Tell apart the `k` most probable tokens of each position, 1 <= k <= vocab."""
        ids = logits.topk(k).indices
        return cls(bucket_logits(logits, ids), ids)

    def beside(
        self, logits: Float[Tensor, "n_tokens vocab"]
    ) -> tuple[Float[Tensor, "n_tokens outcomes"], Float[Tensor, "n_tokens outcomes"]]:
        """The reference's logits and those of the model, over the same outcomes: a pair for `token_kl`."""
        return self.logits, logits if self.ids is None else bucket_logits(logits, self.ids)


@contextmanager
def only_positions(model: nn.Module, mask: Bool[Tensor, "batch tokens"]) -> Iterator[None]:
    """Within the context, the head of `model` sees only the hidden states where `mask` is true.

    Args:
        model: the unwrapped model (a `PeftModel` or a `PreTrainedModel`), of which only the head is touched.
        mask: ``(batch, tokens)``.
    """

    def keep(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden, *rest = inputs
        return (hidden[mask], *rest)

    handle = model.get_output_embeddings().register_forward_pre_hook(keep)
    try:
        yield
    finally:
        handle.remove()


def answer_logits(
    model: nn.Module, unwrapped: nn.Module, batch: dict[str, Tensor], everywhere: bool = False
) -> AnswerLogits:
    """Run `model` once over `batch` and return its logits at the answer positions.

    Args:
        model: the module to call, wrapped or not.
        unwrapped: the same model without wrappers, for access to its head.
        batch: ``input_ids`` and ``labels``, each ``(batch, tokens)``, right-padded.
        everywhere: return the logits of all positions, prompt and padding included. Defaults to False.
    """
    labels = batch["labels"]
    if everywhere:
        logits = model(input_ids=batch["input_ids"], use_cache=False).logits
        targets = torch.full_like(labels, IGNORE_INDEX)
        targets[:, :-1] = labels[:, 1:]
        rows = torch.arange(labels.shape[0], device=labels.device).repeat_interleave(labels.shape[1])
        return AnswerLogits(logits.flatten(0, 1), targets.flatten(), rows, labels.shape[0])
    with only_positions(unwrapped, answer_mask(labels)):
        # No attention mask: what stands to the right of a token changes nothing in a causal model, and without a mask
        # attention neither builds one nor copies keys and values for every head that shares them.
        logits = model(input_ids=batch["input_ids"], use_cache=False).logits
    return AnswerLogits(logits, answer_targets(labels), answer_rows(labels), labels.shape[0])


def concatenate(halves: Sequence[dict[str, Tensor]], length: int = 0) -> dict[str, Tensor]:
    """Stack right-padded batches of different lengths into one of at least `length`; one forward serves them all."""
    length = max(length, *(half["input_ids"].shape[1] for half in halves))
    fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    return {
        key: torch.cat([nn.functional.pad(half[key], (0, length - half[key].shape[1]), value=value) for half in halves])
        for key, value in fill.items()
    }


def split_rows(answers: AnswerLogits, sizes: Sequence[int]) -> list[AnswerLogits]:
    """Undo `concatenate` on the level of answers: one `AnswerLogits` per half, rows numbered from 0."""
    per_row = torch.bincount(answers.rows, minlength=answers.batch_size).split(list(sizes))
    n_tokens = [int(counts.sum()) for counts in per_row]
    first_rows = accumulate(sizes, initial=0)
    parts = zip(*(tensor.split(n_tokens) for tensor in (answers.logits, answers.targets, answers.rows)), strict=True)
    return [
        AnswerLogits(logits, targets, rows - first_row, size)
        for (logits, targets, rows), first_row, size in zip(parts, first_rows, sizes, strict=False)
    ]
