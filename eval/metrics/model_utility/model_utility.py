"""Model utility as a module of `evaluate`; the README beside it is its card."""

import datasets
import evaluate

from llm_unlearn.evaluation.metrics.utility import model_utility

_DESCRIPTION = """\
What a model still does well, as one number: the harmonic mean of nine metrics on three sets that are to be kept. In
[0, 1], higher is better; one part of 0 makes it 0. Target: the value before unlearning."""

_INPUTS = """\
Args:
    part: names of the nine parts, {retain, real_authors, world_facts}/...; the card lists them.
    value: their values, in [0, 1].
Returns:
    model_utility."""

_CITATION = """\
@article{maini2024tofu,
  title={TOFU: A Task of Fictitious Unlearning for LLMs},
  author={Maini, Pratyush and Feng, Zhili and Schwarzschild, Avi and Lipton, Zachary C. and Kolter, J. Zico},
  journal={arXiv:2401.06121},
  year={2024}
}"""


class ModelUtility(evaluate.Metric):
    """``MU = 9 / sum_i 1/v_i``, the harmonic mean of the nine parts.

    Raises:
        ValueError: a part is missing, unknown, named twice or negative.
    """

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"part": datasets.Value("string"), "value": datasets.Value("float64")}),
        )

    def _compute(self, part, value):
        parts = dict(zip(part, value, strict=True))
        if len(parts) < len(part):
            raise ValueError(f"Model utility takes each part once, but was given {sorted(part)}.")
        return {"model_utility": float(model_utility(parts))}
