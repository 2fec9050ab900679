"""Exact memorisation as a module of `evaluate`; the README beside it is its card."""

import datasets
import evaluate

from llm_unlearn.evaluation.metrics.memorization import exact_memorization, hits_of
from llm_unlearn.suggest import unknown

_VARIANTS = {"fixed": {"drop_last": False}, "open_unlearning": {"drop_last": True}}

_DESCRIPTION = """\
Share of an answer's tokens that greedy decoding would choose, given the true tokens before them. In [0, 1]; high where
the answer is known. On the forget set the target is the value of a model that never learned it, not 0."""

_INPUTS = """\
Args:
    predictions: most probable token id at each answer position under teacher forcing, one list per item.
    references: token ids of the answer, one list per item, as long as its prediction.
Returns:
    exact_memorization, the mean over items."""

_CITATION = """\
@article{tirumala2022memorization,
  title={Memorization Without Overfitting: Analyzing the Training Dynamics of Large Language Models},
  author={Tirumala, Kushal and Markosyan, Aram H. and Zettlemoyer, Luke and Aghajanyan, Armen},
  journal={arXiv:2205.10770},
  year={2022}
}"""


class ExactMemorization(evaluate.Metric):
    """``EM = 1/T sum_t [prediction_t = reference_t]`` per item, then the mean over items.

    The configuration names the variant: `fixed` (default) or `open_unlearning`, which drops the last token.

    Raises:
        ValueError: there is no such variant, or an item has fewer or more predictions than reference tokens.
    """

    def _info(self):
        self.variant = "fixed" if self.config_name == "default" else self.config_name
        if self.variant not in _VARIANTS:
            raise ValueError(unknown("variant of exact memorisation", self.variant, _VARIANTS))
        ids = datasets.Sequence(datasets.Value("int64"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": ids, "references": ids}),
        )

    def _compute(self, predictions, references):
        hits = hits_of(predictions, references)
        return {"exact_memorization": float(exact_memorization(hits, **_VARIANTS[self.variant]).mean())}
