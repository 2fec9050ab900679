"""Forget objectives as pure functions of log-probabilities, one value per sequence (`unlikelihood_loss`: per token).

Every function takes and returns ``(batch,)`` tensors and lowers when the model forgets. `logps` are *sums* over the
answer tokens, `mean_logps` are means over them; the reduction over sequences (weights, padding rows, accumulation) is
the trainer's. Symbols as in the papers: S(y) the sum, l(y) = -S/T the token-mean NLL.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

PerSequence = Float[Tensor, " batch"]
PerToken = Float[Tensor, " n_tokens"]


def ascent_loss(mean_logps: PerSequence, cap: float | None) -> PerSequence:
    """Gradient ascent, ``-min(l(y), cap)``: raise the NLL of the answer.

    Args:
        mean_logps: token-mean log-probability of the answer.
        cap: NLL in nats above which a sequence gives no gradient any more; ``None`` is the papers' unbounded form.

    Range: ``[-cap, 0]``, or ``(-inf, 0]`` without a cap.
    """
    nll = -mean_logps
    return -(nll if cap is None else nll.clamp_max(cap))


def npo_loss(logps: PerSequence, reference_logps: PerSequence, beta: float) -> PerSequence:
    """NPO, ``-(2 / beta) log sigmoid(-beta (S(y) - S_ref(y)))`` (arXiv 2404.05868).

    Range ``(0, inf)`` towards 0 as the answer becomes unlikely; ``(2 / beta) ln 2`` at the reference. Its gradient is
    that of ascent times ``2 p^beta / (p^beta + p_ref^beta)``.
    """
    return -(2 / beta) * F.logsigmoid(-beta * (logps - reference_logps))


def simnpo_loss(mean_logps: PerSequence, beta: float, delta: float) -> PerSequence:
    """SimNPO, ``-(2 / beta) log sigmoid(beta (l(y) - delta))`` (arXiv 2410.07163; the paper's margin is beta * delta).

    Length-normalised and free of a reference. Range ``(0, inf)``.
    """
    return -(2 / beta) * F.logsigmoid(beta * (-mean_logps - delta))


def unlikelihood_loss(token_logps: PerToken) -> PerToken:
    """Unlikelihood, ``-log(1 - p(y_t))`` per answer token (arXiv 1908.04319); the caller averages over a sequence.

    Range ``[0, inf)`` towards 0 as the token becomes unlikely. Bounded where ascent is not: a token that has become
    unlikely has hardly any gradient left, ``-p / (1 - p)`` times that of its log-probability.
    """
    # A token of probability 1 has no finite loss; one rounding below it the loss is 16 nats.
    return -torch.log(-torch.expm1(token_logps.clamp_max(-torch.finfo(token_logps.dtype).eps)))


def dpo_loss(
    preferred_logps: PerSequence,
    logps: PerSequence,
    reference_preferred_logps: PerSequence,
    reference_logps: PerSequence,
    beta: float,
) -> PerSequence:
    """DPO towards a replacement y', ``-(2 / beta) log sigmoid(beta (s(y') - s(y)))`` with ``s = S - S_ref``.

    ``(2 / beta) ln 2`` at the reference. TOFU's IdkDPO (arXiv 2401.06121) takes a refusal as y'.
    """
    margin = (preferred_logps - reference_preferred_logps) - (logps - reference_logps)
    return -(2 / beta) * F.logsigmoid(beta * margin)
