"""Forget quality as a module of `evaluate`; the README beside it is its card."""

import datasets
import evaluate
import numpy as np

from llm_unlearn.evaluation.metrics.forget_quality import forget_quality

_DESCRIPTION = """\
p-value of the two-sample Kolmogorov-Smirnov test between the truth ratios of an unlearned model and those of a model
that never learned the forget set. Higher is better, in [0, 1]; target 1, usually read as "at least 0.05"."""

_INPUTS = """\
Args:
    predictions: raw truth ratio R of the unlearned model, one float per item of the forget set.
    references: raw truth ratio R of the retain model, as many as there are predictions.
Returns:
    forget_quality (p), log10_p (finite also where p is too small for a float), statistic (D), n, m, and method
    ("exact", or "asymp" where the exact count fails)."""

_CITATION = """\
@article{maini2024tofu,
  title={TOFU: A Task of Fictitious Unlearning for LLMs},
  author={Maini, Pratyush and Feng, Zhili and Schwarzschild, Avi and Lipton, Zachary C. and Kolter, J. Zico},
  journal={arXiv:2401.06121},
  year={2024}
}"""


class ForgetQuality(evaluate.Metric):
    """``FQ = p`` of the two-sided Kolmogorov-Smirnov test between the truth ratios of two models."""

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}
            ),
        )

    def _compute(self, predictions, references):
        found = forget_quality(np.asarray(predictions), np.asarray(references))
        return {
            "forget_quality": found.p,
            "log10_p": found.log10_p,
            "statistic": found.statistic,
            "n": found.n,
            "m": found.m,
            "method": found.method,
        }
