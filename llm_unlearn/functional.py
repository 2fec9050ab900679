"""Token-level quantities. This is the only module that shifts labels by one.

A causal model's logits at position ``t`` predict the token at ``t + 1``. Everything here therefore speaks of
*answer positions*: the positions whose logits predict an answer token, that is, the positions just before each
label that is not `IGNORE_INDEX`. Tensors over answer positions are flat, with ``n_tokens`` entries in row-major
order, and `answer_rows` tells which sequence each entry belongs to. Masks come from the labels that tokenisation
set; they are never recomputed by comparing ids with the pad id, which may be the end token.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

IGNORE_INDEX = -100


def answer_mask(labels: Int[Tensor, "batch tokens"]) -> Bool[Tensor, "batch tokens"]:
    """Positions whose logits predict an answer token: ``mask[b, t] = labels[b, t + 1] != IGNORE_INDEX``."""
    mask = torch.zeros_like(labels, dtype=torch.bool)
    mask[:, :-1] = labels[:, 1:] != IGNORE_INDEX
    return mask


def answer_targets(labels: Int[Tensor, "batch tokens"]) -> Int[Tensor, " n_tokens"]:
    """The answer tokens, in the order of the answer positions."""
    shifted = labels[:, 1:]
    return shifted[shifted != IGNORE_INDEX]


def answer_rows(labels: Int[Tensor, "batch tokens"]) -> Int[Tensor, " n_tokens"]:
    """The row of the batch to which each answer position belongs."""
    return answer_mask(labels).nonzero()[:, 0]


def token_logps(
    logits: Float[Tensor, "n_tokens vocab"], targets: Int[Tensor, " n_tokens"]
) -> Float[Tensor, " n_tokens"]:
    """``log p(target)`` per answer position, in nats, computed in fp32 whatever the dtype of the logits."""
    return _TokenLogps.apply(logits, targets)


class _TokenLogps(torch.autograd.Function):
    """``z_y - logsumexp(z)``, keeping only the logits for backward.

    Cross-entropy would keep the log-probabilities of the whole vocabulary beside them and build two gradients of that
    size; here backward makes one, ``g (onehot(y) - softmax(z))``.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, targets: Tensor) -> Tensor:
        logits32 = logits.float()
        lse = logits32.logsumexp(-1)
        ctx.save_for_backward(logits, targets, lse)
        return logits32.gather(-1, targets[:, None])[:, 0] - lse

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        logits, targets, lse = ctx.saved_tensors
        gradient = (logits.float() - lse[:, None]).exp_().mul_(-grad[:, None])
        gradient.scatter_add_(-1, targets[:, None], grad[:, None])
        return gradient.to(logits.dtype), None


def token_kl(
    reference_logits: Float[Tensor, "n_tokens vocab"], logits: Float[Tensor, "n_tokens vocab"]
) -> Float[Tensor, " n_tokens"]:
    """``KL(p_reference || p)`` per answer position: the sum over the vocabulary, in nats, >= 0.

    The gradient flows into `logits` only; call the reference under ``torch.no_grad()``.
    """
    reference = F.log_softmax(reference_logits.float(), dim=-1)
    current = F.log_softmax(logits.float(), dim=-1)
    return F.kl_div(current, reference, reduction="none", log_target=True).sum(-1)


def token_cross_entropy(
    reference_logits: Float[Tensor, "n_tokens vocab"], logits: Float[Tensor, "n_tokens vocab"]
) -> Float[Tensor, " n_tokens"]:
    """``H(p_reference, p) = KL(p_reference || p) + H(p_reference)`` per answer position, in nats.

    Its gradient in `logits` is that of `token_kl`; its floor is the entropy of the reference instead of 0.
    """
    reference = F.softmax(reference_logits.float(), dim=-1)
    return -(reference * F.log_softmax(logits.float(), dim=-1)).sum(-1)


def bucket_logits(
    logits: Float[Tensor, "n_tokens vocab"], ids: Int[Tensor, "n_tokens k"]
) -> Float[Tensor, "n_tokens outcomes"]:
    """Logits of the k tokens `ids` and, in a last column, ``logsumexp`` of all others, in fp32.

    Their softmax is the distribution over k + 1 outcomes: each of these tokens, or another one. A KL between two of
    them is at most that over the whole vocabulary, and equal to it at k = vocab, where there is no last column.

    Args:
        logits: over the whole vocabulary.
        ids: distinct tokens of each position, 1 <= k <= vocab.
    """
    logits = logits.float()
    named = logits.gather(-1, ids)
    if ids.shape[-1] == logits.shape[-1]:
        return named
    others = logits.scatter(-1, ids, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([named, others], dim=-1)


def token_moments(
    logits: Float[Tensor, "n_tokens vocab"],
) -> tuple[Float[Tensor, " n_tokens"], Float[Tensor, " n_tokens"]]:
    """Mean and standard deviation of ``log p(v)`` for ``v ~ p``, per answer position (Min-K%++ needs both)."""
    log_probs = F.log_softmax(logits.float(), dim=-1)
    probs = log_probs.exp()
    # A token of probability 0 contributes nothing; written out, 0 * -inf would be NaN.
    log_probs = log_probs.masked_fill(probs == 0, 0)
    mean = (probs * log_probs).sum(-1)
    # Centred first: E[x^2] - E[x]^2 cancels to nothing over a large vocabulary.
    variance = (probs * (log_probs - mean[:, None]).square()).sum(-1)
    return mean, variance.sqrt()


def row_sum(
    values: Float[Tensor, " n_tokens"], rows: Int[Tensor, " n_tokens"], batch_size: int
) -> Float[Tensor, " batch"]:
    """Sum over the answer tokens of each sequence; 0 for a sequence without any."""
    return torch.zeros(batch_size, dtype=values.dtype, device=values.device).index_add(0, rows, values)


def row_mean(
    values: Float[Tensor, " n_tokens"], rows: Int[Tensor, " n_tokens"], batch_size: int
) -> Float[Tensor, " batch"]:
    """Mean over the answer tokens of each sequence; 0 for a sequence without any."""
    counts = torch.bincount(rows, minlength=batch_size).clamp_min(1)
    return row_sum(values, rows, batch_size) / counts
