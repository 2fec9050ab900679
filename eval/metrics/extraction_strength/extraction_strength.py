"""Extraction strength as a module of `evaluate`; the README beside it is its card."""

import datasets
import evaluate

from llm_unlearn.evaluation.metrics.memorization import extraction_strength, hits_of
from llm_unlearn.suggest import unknown

_VARIANTS = {
    "fixed": {"floor": False, "drop_last": False},
    "open_unlearning": {"floor": True, "drop_last": True},
}

_DESCRIPTION = """\
Share of an answer that greedy decoding reproduces to the end, given the shortest sufficient part of its beginning. In
[0, 1]; high where the answer is known. On the forget set the target is the value of a model that never learned it."""

_INPUTS = """\
Args:
    predictions: most probable token id at each answer position under teacher forcing, one list per item.
    references: token ids of the answer, one list per item, as long as its prediction.
Returns:
    extraction_strength, the mean over items."""

_CITATION = """\
@article{dorna2025openunlearning,
  title={OpenUnlearning: Accelerating LLM Unlearning via Unified Benchmarking of Methods and Metrics},
  author={Dorna, Vineeth and others},
  journal={arXiv:2506.12618},
  year={2025}
}"""


class ExtractionStrength(evaluate.Metric):
    """``ES = 1 - k/T = (hits in a row at the end) / T`` per item, then the mean over items.

    The configuration names the variant: `fixed` (default) or `open_unlearning`, which drops the last token and gives an
    item without a hit at its end 1/T.

    Raises:
        ValueError: there is no such variant, or an item has fewer or more predictions than reference tokens.
    """

    def _info(self):
        self.variant = "fixed" if self.config_name == "default" else self.config_name
        if self.variant not in _VARIANTS:
            raise ValueError(unknown("variant of extraction strength", self.variant, _VARIANTS))
        ids = datasets.Sequence(datasets.Value("int64"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": ids, "references": ids}),
        )

    def _compute(self, predictions, references):
        hits = hits_of(predictions, references)
        return {"extraction_strength": float(extraction_strength(hits, **_VARIANTS[self.variant]).mean())}
