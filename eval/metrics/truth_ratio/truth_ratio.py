"""The truth ratio as a module of `evaluate`; the README beside it is its card."""

import datasets
import evaluate
import numpy as np

from llm_unlearn.evaluation.metrics.truth_ratio import closer_to_1_better, prob_mean, true_better, truth_ratio
from llm_unlearn.suggest import unknown

# Per variant: the mean over wrong answers, the one for `true_better`, and epsilon.
_VARIANTS = {
    "fixed": ("geometric", "geometric", 0.0),
    "open_unlearning": ("geometric", "geometric", 1e-10),
    "tofu_paper": ("arithmetic", "arithmetic", 0.0),
    "tofu_code": ("geometric", "arithmetic", 0.0),
}

_DESCRIPTION = """\
How a model weighs wrong answers against the right one: R = A_j(P(wrong_j)) / P(true), with P = exp(-loss). R lies in
(0, inf); below 1 the model prefers the truth."""

_INPUTS = """\
Args:
    true_loss: token-mean negative log-likelihood of the true answer in nats, one float per item.
    wrong_losses: those of the item's wrong answers, one list of floats per item.
Returns:
    truth_ratio (R per item), and the means over items of closer_to_1_better = min(R, 1/R),
    true_better = max(0, 1 - R) and prob_mean = P(true) / (P(true) + A)."""

_CITATION = """\
@article{maini2024tofu,
  title={TOFU: A Task of Fictitious Unlearning for LLMs},
  author={Maini, Pratyush and Feng, Zhili and Schwarzschild, Avi and Lipton, Zachary C. and Kolter, J. Zico},
  journal={arXiv:2401.06121},
  year={2024}
}"""


class TruthRatio(evaluate.Metric):
    """``R = A_j(P(y~_j)) / (P(y^) + epsilon)`` per item, and its three means.

    The configuration names the variant: `fixed` (default), `open_unlearning`, `tofu_paper` or `tofu_code`.

    Raises:
        ValueError: there is no such variant.
    """

    def _info(self):
        self.variant = "fixed" if self.config_name == "default" else self.config_name
        if self.variant not in _VARIANTS:
            raise ValueError(unknown("variant of the truth ratio", self.variant, _VARIANTS))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {"true_loss": datasets.Value("float64"), "wrong_losses": datasets.Sequence(datasets.Value("float64"))}
            ),
        )

    def _compute(self, true_loss, wrong_losses):
        mean, utility_mean, epsilon = _VARIANTS[self.variant]
        true_loss, wrong_losses = np.asarray(true_loss), [np.asarray(losses) for losses in wrong_losses]
        ratios = truth_ratio(true_loss, wrong_losses, mean, epsilon)
        utility_ratios = truth_ratio(true_loss, wrong_losses, utility_mean, epsilon)
        return {
            "truth_ratio": ratios.tolist(),
            "closer_to_1_better": float(closer_to_1_better(ratios).mean()),
            "true_better": float(true_better(utility_ratios).mean()),
            "prob_mean": float(prob_mean(true_loss, wrong_losses, mean, epsilon).mean()),
        }
