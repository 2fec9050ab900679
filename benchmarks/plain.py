"""The plain way to unlearn, as published scripts do it: the oracle of the tests and the opponent of `train.py`.

Two resident models (the policy and a frozen copy of it as reference, also under LoRA), one forward per half and model,
and logits over the whole vocabulary at every position, prompt and padding included. It shares no line with the
toolkit; only the batches are the toolkit's.
"""

import copy
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Half = dict[str, Tensor]


def frozen_copy(model: nn.Module) -> nn.Module:
    """The reference: a second model in memory, in eval mode."""
    return copy.deepcopy(model).eval().requires_grad_(False)


def log_probs(model: nn.Module, half: Half) -> Tensor:
    """``(batch, tokens - 1, vocab)``: row `t` is the distribution over token `t + 1`, in fp32."""
    logits = model(input_ids=half["input_ids"], attention_mask=half["attention_mask"], use_cache=False).logits
    return F.log_softmax(logits[:, :-1].float(), dim=-1)


def answer_sum(values: Tensor, half: Half) -> Tensor:
    """Sum of ``(batch, tokens - 1)`` values over the answer of each sequence."""
    return (values * (half["labels"][:, 1:] != -100)).sum(-1)


def answer_mean(values: Tensor, half: Half) -> Tensor:
    """The same divided by the number of answer tokens."""
    return answer_sum(values, half) / (half["labels"][:, 1:] != -100).sum(-1)


def label_logps(model: nn.Module, half: Half) -> Tensor:
    """``(batch, tokens - 1)``: log-probability of each next token; arbitrary where it has no label."""
    labels = half["labels"][:, 1:].clamp_min(0)
    return log_probs(model, half).gather(-1, labels[..., None])[..., 0]


def forget_loss(
    method: str, policy: nn.Module, reference: nn.Module, batch: dict[str, Half], beta: float, delta: float, cap: float
) -> Tensor:
    """The forget term of `method` for each sequence."""
    forget = batch["forget"]
    logps = label_logps(policy, forget)
    if method in ("grad_ascent", "grad_diff", "icu"):
        return -torch.minimum(-answer_mean(logps, forget), torch.tensor(cap))
    if method == "simnpo":
        return -2 / beta * F.logsigmoid(beta * (-answer_mean(logps, forget) - delta))
    with torch.no_grad():
        reference_logps = label_logps(reference, forget)
    log_ratio = answer_sum(logps, forget) - answer_sum(reference_logps, forget)
    if method == "npo":
        return -2 / beta * F.logsigmoid(-beta * log_ratio)
    if method == "idk_dpo":
        alternate = batch["alternate"]
        with torch.no_grad():
            reference_logps = label_logps(reference, alternate)
        alternate_ratio = answer_sum(label_logps(policy, alternate), alternate) - answer_sum(reference_logps, alternate)
        return -2 / beta * F.logsigmoid(beta * (alternate_ratio - log_ratio))
    raise ValueError(f"There is no plain form of {method!r}: write it in benchmarks/plain.py.")


def retain_loss(kind: str, policy: nn.Module, reference: nn.Module, retain: Half) -> Tensor:
    """NLL of the retain answers, or KL from the reference on their tokens, for each sequence."""
    if kind == "nll":
        return -answer_mean(label_logps(policy, retain), retain)
    with torch.no_grad():
        expected = log_probs(reference, retain)
    divergence = (expected.exp() * (expected - log_probs(policy, retain))).sum(-1)
    return answer_mean(divergence, retain)


def loss(
    method: str,
    policy: nn.Module,
    reference: nn.Module,
    batch: dict[str, Half],
    *,
    forget_coef: float = 1.0,
    retain: Mapping[str, float],
    beta: float = 0.1,
    delta: float = 0.0,
    cap: float = float("inf"),
) -> Tensor:
    """The loss of one batch of `DataCollatorForUnlearning`: a mean over its rows, each with its weight.

    Args:
        method: name in the registry.
        policy: the model in training.
        reference: a `frozen_copy` from before training.
        batch: halves `forget`, and `retain` and `alternate` where the method has them.
        forget_coef: weight of the forget term.
        retain: weight of each retain term, "nll" and "kl"; computed where the batch has a retain half.
        beta, delta, cap: parameters of those methods that have them.
    """
    weight = batch["forget"]["weight"]
    total = forget_coef * (forget_loss(method, policy, reference, batch, beta, delta, cap) * weight).mean()
    if "retain" in batch:
        for kind, coef in retain.items():
            per_row = retain_loss(kind, policy, reference, batch["retain"])
            total = total + coef * (per_row * batch["retain"]["weight"]).mean()
    return total
