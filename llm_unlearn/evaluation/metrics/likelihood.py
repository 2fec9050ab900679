"""How probable a model finds an answer, from losses alone: token means of ``-log p`` in nats.

``P(y) = exp(-loss)`` is the probability of an answer with its length taken out. Where several wrong answers ``y~_j``
belong to an item, `wrong_losses` holds one array per item; items may have different numbers of them, at least one each.

Everything is computed in logarithms, so that answers a model finds hopeless (``P`` below the smallest float) are still
compared. A loss that is NaN, as those of a collapsed model are, makes its item NaN.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float

WrongLosses = Sequence[Float[np.ndarray, " _"]] | Float[np.ndarray, "n k"]
"""Losses of the wrong answers, one array per item."""


def probability(loss: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """``P_i = exp(-loss_i) = exp(1/T sum_t log p(y_t))``, the length-normalised probability of an answer, in [0, 1].

    Higher where the answer is known: down on the forget set, up elsewhere. Target on the forget set: the retain
    model's value, not 0 (.116 for Llama-3.2-1B on TOFU forget10; .053 for paraphrased answers, where the same function
    gives the paraphrase probability). Source: TOFU (arXiv:2401.06121), section 2.2. Variants differ in the tokens that
    the loss counts, not here: the answer and one end token (`fixed`), or all that a chat template adds
    (`open_unlearning`).
    """
    return np.exp(-loss)


def wrong_answer_probability(wrong_losses: WrongLosses) -> Float[np.ndarray, " n"]:
    """``mean_j P(y~_j)``, how probable the wrong answers are, in [0, 1]: a diagnostic without a better direction.

    Raises:
        ValueError: if an item has no wrong answer.
    """
    return np.exp(log_mean_probability(wrong_losses, "arithmetic"))


def normalised_probability(
    loss: Float[np.ndarray, " n"], wrong_losses: WrongLosses, epsilon: float = 0.0
) -> Float[np.ndarray, " n"]:
    """``P(y) / (P(y) + sum_j P(y~_j) + epsilon)``, the answer's share among all choices, in [0, 1].

    Higher is better: TOFU takes it on real authors and world facts, where it enters the model utility. Target: the
    value of the model before unlearning. Source: TOFU (arXiv:2401.06121), section 2.2.

    Args:
        loss: losses of the true answers.
        wrong_losses: losses of the wrong ones.
        epsilon: 0 in the paper and in TOFU's code, 1e-10 in `open_unlearning`, where it pulls items down whose
            answers are all hopeless.

    Raises:
        ValueError: if an item has no wrong answer.
    """
    counts = np.array([len(losses) for losses in wrong_losses])
    return share(-loss, log_mean_probability(wrong_losses, "arithmetic") + np.log(counts), epsilon)


def log_mean_probability(
    wrong_losses: WrongLosses, mean: Literal["arithmetic", "geometric"]
) -> Float[np.ndarray, " n"]:
    """Natural logarithm of the mean over j of ``P(y~_j) = exp(-loss_j)``.

    Args:
        wrong_losses: one array of losses per item.
        mean: ``log mean_j P(y~_j)`` or, for the geometric mean, ``-mean_j loss_j``.

    Raises:
        ValueError: if an item has no wrong answer, or `mean` is neither of the two.
    """
    if mean not in ("arithmetic", "geometric"):
        raise ValueError(f"There is no {mean!r} mean of probabilities here; take 'arithmetic' or 'geometric'.")
    counts = np.array([len(losses) for losses in wrong_losses])
    if not counts.all():
        raise ValueError(
            f"Item {np.flatnonzero(counts == 0)[0]} has no wrong answer to compare with; every row needs at least one "
            "in its column `perturbed_answer`."
        )
    present = np.arange(counts.max(initial=0)) < counts[:, None]
    # A loss of infinity is a probability of 0, which adds nothing to a sum.
    losses = np.full(present.shape, np.inf)
    if len(losses):
        losses[present] = np.concatenate(list(wrong_losses))
    if mean == "geometric":
        return -np.mean(losses, axis=1, where=present)
    with np.errstate(invalid="ignore"):
        return np.logaddexp.reduce(-losses, axis=1) - np.log(counts)


def share(
    log_p: Float[np.ndarray, " n"], log_others: Float[np.ndarray, " n"], epsilon: float
) -> Float[np.ndarray, " n"]:
    """``p / (p + others + epsilon)`` from the natural logarithms of `p` and `others`, in [0, 1]."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.exp(log_p - np.logaddexp(np.logaddexp(log_p, log_others), np.log(epsilon)))
