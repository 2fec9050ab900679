"""The truth ratio: how a model weighs wrong answers against the right one.

``R = A_j(P(y~_j)) / P(y^)``, with ``P = exp(-loss)``, y~_j the wrong answers of an item and y^ its true answer: the
paraphrased one on forget and retain sets, the plain one on real authors and world facts. R lies in (0, inf); below 1
the model prefers the truth. Source: TOFU (arXiv:2401.06121), section 2.2.

Variants, never to be mixed in one table:

=================  ==================================================  =========
variant            mean A                                              epsilon
=================  ==================================================  =========
`tofu_paper`       arithmetic                                          0
`tofu_code`        geometric (forget quality), arithmetic (utility)    0
`open_unlearning`  geometric                                           1e-10
`fixed`            geometric                                           0
=================  ==================================================  =========

Some implementations have the ratio upside down: the same forget quality, but another value of every mean below.
"""

from typing import Literal

import numpy as np
from jaxtyping import Float

from llm_unlearn.evaluation.metrics.likelihood import WrongLosses, log_mean_probability, share


def truth_ratio(
    true_loss: Float[np.ndarray, " n"],
    wrong_losses: WrongLosses,
    mean: Literal["geometric", "arithmetic"] = "geometric",
    epsilon: float = 0.0,
) -> Float[np.ndarray, " n"]:
    """``R_i = A_j(P(y~_j)) / (P(y^) + epsilon)``, in (0, inf); the raw ratio is what forget quality compares.

    Its logarithm is cut at +-700, so that no ratio overflows. A loss that is NaN gives NaN.

    Args:
        true_loss: token-mean NLL of the true answer, in nats.
        wrong_losses: those of the wrong answers, one array per item.
        mean: A, over the probabilities of the wrong answers.
        epsilon: added to the probability of the true answer.

    Raises:
        ValueError: if an item has no wrong answer, or `mean` is neither of the two.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        log_ratio = log_mean_probability(wrong_losses, mean) - np.logaddexp(-true_loss, np.log(epsilon))
    return np.exp(np.clip(log_ratio, -700, 700))


def closer_to_1_better(ratios: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """``min(R, 1/R)``, in (0, 1]: 1 where truth and falsehood are equally probable.

    Reported on the forget set, where it should rise to the retain model's value (.627 for Llama-3.2-1B on TOFU
    forget10, where the model that knows the set has .476) and not beyond: 1 is no target.
    """
    return np.minimum(ratios, 1 / ratios)


def true_better(ratios: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """``max(0, 1 - R)``, in [0, 1): higher where the model prefers the truth.

    Reported on retain, real authors and world facts, and part of the model utility. Target: the value before
    unlearning.
    """
    return np.maximum(0, 1 - ratios)


def prob_mean(
    true_loss: Float[np.ndarray, " n"],
    wrong_losses: WrongLosses,
    mean: Literal["geometric", "arithmetic"] = "geometric",
    epsilon: float = 0.0,
) -> Float[np.ndarray, " n"]:
    """``P(y^) / (P(y^) + A_j(P(y~_j)) + epsilon) = 1 / (1 + R)`` for epsilon 0, in [0, 1].

    Higher where the truth is known: down on the forget set, towards the retain model's value (.567 for Llama-3.2-1B on
    TOFU forget10; .685 where the set is known). The peer's score of memorisation, part of its aggregate Mem.

    Args:
        true_loss: token-mean NLL of the true answer, in nats.
        wrong_losses: those of the wrong answers, one array per item.
        mean: A, as in `truth_ratio`.
        epsilon: 1e-10 in `open_unlearning`.

    Raises:
        ValueError: if an item has no wrong answer, or `mean` is neither of the two.
    """
    return share(-true_loss, log_mean_probability(wrong_losses, mean), epsilon)
