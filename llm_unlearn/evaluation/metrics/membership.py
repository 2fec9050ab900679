"""Membership inference: can forget items (members) be told from a holdout that was never trained on?

All scores are higher for items that look *less* like members. Their AUC has the retain model's AUC as its target, not
0.5, because forget and holdout sets are not drawn alike (.383 for min-k of Llama-3.2-1B on TOFU forget10). Both 1,
still a member, and 0, forgotten so hard that it shows, are failures.

The peer drops the last label in min-k and min-k++; see `memorization.counted_labels`. NaN in, as from a collapsed
model, is NaN out.
"""

import math
import zlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from llm_unlearn.evaluation.metrics.memorization import counted_labels
from llm_unlearn.evaluation.statistics import Estimate

_EPSILON = 1e-10
"""Keeps ratios finite whose denominator may be 0, as in the peer."""

TokenValues = Sequence[Float[np.ndarray, " _"]]
"""One array per item, ``(T_i,)`` with T_i at least 1."""


def zlib_score(loss: Float[np.ndarray, " n"], texts: Sequence[str]) -> Float[np.ndarray, " n"]:
    """``loss / len(zlib(text))``, nats per compressed byte, in [0, inf): the loss weighed by how much text there is.

    Source: Carlini et al. (arXiv:2012.07805).

    Args:
        loss: token-mean NLL of the answers, in nats.
        texts: the answers, compressed as UTF-8.
    """
    return loss / np.array([len(zlib.compress(text.encode())) for text in texts], dtype=np.float64)


def min_k(logprobs: TokenValues, k: float = 0.4, drop_last: bool = False) -> Float[np.ndarray, " n"]:
    """``-mean`` of the lowest ``max(1, floor(k T))`` token log-probabilities, in nats, in [0, inf).

    Source: Shi et al. (arXiv:2310.16789).

    Args:
        logprobs: token log-probabilities of the answers.
        k: share of tokens, in (0, 1]. 0.4 as in the peer's TOFU settings; 0.2 in the paper.
        drop_last: leave out the last label, as `open_unlearning` does.
    """
    return np.array([-_mean_of_lowest(item, k) for item in counted_labels(logprobs, drop_last)], dtype=np.float64)


def min_k_plus_plus(
    logprobs: TokenValues, mean: TokenValues, std: TokenValues, k: float = 0.4, drop_last: bool = False
) -> Float[np.ndarray, " n"]:
    """`min_k` of ``z_t = (log p_t - mean_t) / std_t``, without unit and bounds.

    Mean and deviation are those of ``log p(w)`` over the vocabulary, w drawn from the model's own distribution; the
    deviation is at least 1e-3. Source: Zhang et al. (arXiv:2404.02936).

    Args:
        logprobs: token log-probabilities of the answers.
        mean: expected log-probability at each token.
        std: its standard deviation.
        k: share of tokens, in (0, 1]; 0.4 as in the peer's TOFU settings.
        drop_last: leave out the last label, as `open_unlearning` does.
    """
    scores = [(p - mu) / np.maximum(sigma, 1e-3) for p, mu, sigma in zip(logprobs, mean, std, strict=True)]
    return min_k(scores, k, drop_last)


def reference_score(loss: Float[np.ndarray, " n"], reference_loss: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """``loss - reference_loss``, in nats, unbounded: the loss against that of the retain model.

    Source: Mireshghallah et al. (arXiv:2203.03929); the log-probabilities of a reference report are enough.
    """
    return loss - reference_loss


def auc(
    forget_scores: Float[np.ndarray, " n"],
    holdout_scores: Float[np.ndarray, " m"],
    forget_weights: Float[np.ndarray, "r n"] | None = None,
    holdout_weights: Float[np.ndarray, "r m"] | None = None,
) -> Estimate:
    """``P(score_holdout > score_forget)``, ties 1/2, in [0, 1]; a multiple of ``1/(2 n m)``, exact.

    Target: the retain model's AUC. Costs O((n+m) log n), and O(r (n+m)) under r rows of weights.

    Args:
        forget_scores: scores of the members.
        holdout_scores: scores of the others.
        forget_weights: how often each counts, per resample (`statistics.resampling_weights`); the result then has one
            value per row. Unset, each counts once.
        holdout_weights: likewise.

    Raises:
        ValueError: if a sample is empty.
    """
    _both(forget_scores, holdout_scores)
    if np.isnan(forget_scores).any() or np.isnan(holdout_scores).any():
        return math.nan
    order = np.argsort(forget_scores, kind="stable")
    ranked = forget_scores[order]
    below = np.searchsorted(ranked, holdout_scores, side="left")
    up_to = np.searchsorted(ranked, holdout_scores, side="right")
    if forget_weights is None or holdout_weights is None:
        return float((below + up_to).sum() / (2 * len(forget_scores) * len(holdout_scores)))
    # What lies below the k-th ranked score weighs the sum of the first k weights.
    cumulative = np.cumsum(np.pad(forget_weights[:, order], ((0, 0), (1, 0))), axis=1)
    won = ((cumulative[:, below] + cumulative[:, up_to]) * holdout_weights).sum(axis=1)
    return won / (2 * forget_weights.sum(axis=1) * holdout_weights.sum(axis=1))


def tpr_at_fpr(
    forget_scores: Float[np.ndarray, " n"], holdout_scores: Float[np.ndarray, " m"], fpr: float = 0.01
) -> float:
    """Share of forget items called members where at most a share `fpr` of the holdout is, in [0, 1].

    Items with a score below a threshold are called members; the threshold is the largest that keeps to `fpr`. Towards
    the retain model's value, near `fpr`. AUC hides the few items that are recognised with certainty; this shows them.
    With fewer than ``1/fpr`` holdout items no holdout item at all may be called. Source: Carlini et al.
    (arXiv:2112.03570).

    Args:
        forget_scores: scores of the members.
        holdout_scores: scores of the others.
        fpr: share of the holdout, in [0, 1]; 0.01 as usual.

    Raises:
        ValueError: if a sample is empty.
    """
    _both(forget_scores, holdout_scores)
    if np.isnan(forget_scores).any() or np.isnan(holdout_scores).any():
        return math.nan
    # 0.29 * 100 is 28.999...
    allowed = math.floor(fpr * len(holdout_scores) + 1e-9)
    if allowed >= len(holdout_scores):
        return 1.0
    return float((forget_scores < np.sort(holdout_scores)[allowed]).mean())


def privleak(auc: Estimate, retain_auc: Estimate) -> Estimate:
    """``100 [(1-AUC) - (1-AUC_ret)] / (1-AUC_ret + 1e-10)``, in percent, for the AUC of min-k.

    Target 0; negative: still members (-99.5 for Llama-3.2-1B on TOFU forget10 before unlearning), positive: forgotten
    so hard that it shows. Source: MUSE (arXiv:2407.06460); the peer takes 0.5 in silence where it has no
    retain model, which shifts the value by about 23 points.
    """
    return 100 * ((1 - auc) - (1 - retain_auc)) / (1 - retain_auc + _EPSILON)


def relative_difference(auc: Estimate, retain_auc: Estimate) -> Estimate:
    """``100 (AUC - AUC_ret) / (AUC_ret + 1e-10)``, in percent; target 0, positive: still members."""
    return 100 * (auc - retain_auc) / (retain_auc + _EPSILON)


def s_mia(auc: Estimate, retain_auc: Estimate) -> Estimate:
    """``clip(1 - |AUC - AUC_ret| / (AUC_ret + 1e-10), 0, 1)``, how near an attack is to its value on the retain model.

    Higher is better, target 1. A part of the aggregate Priv. Source: code of UDS (arXiv:2605.24614); the papers that
    use it print no formula.
    """
    return np.clip(1 - abs(auc - retain_auc) / (retain_auc + _EPSILON), 0.0, 1.0)


def _mean_of_lowest(values: Float[np.ndarray, " t"], k: float) -> float:
    if np.isnan(values).any():
        return math.nan
    count = max(1, math.floor(k * len(values)))
    return float(np.partition(values, count - 1)[:count].mean(dtype=np.float64))


def _both(forget_scores: np.ndarray, holdout_scores: np.ndarray) -> None:
    if not len(forget_scores) or not len(holdout_scores):
        raise ValueError(
            "An attack tells forget from holdout items, but was given the scores of "
            f"{len(forget_scores)} and {len(holdout_scores)}; it needs both."
        )
