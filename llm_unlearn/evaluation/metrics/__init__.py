"""The table of metrics. A metric is a pure function from recorded outputs to one value per item; nothing here runs a
model or imports torch.

A metric names the records it `needs`, as the arguments of its function:

- ``scores``: one `outputs.ItemScores` per row (a teacher-forced pass over the answers);
- ``texts``: one generated answer per row (a generation pass);
- ``answers``, ``values``: the columns ``answer`` and ``value`` of the rows.

What counts as better, and where a value should end, depends on the set: on the forget set the aim is the retain
model's value, which is neither 0 nor 1; elsewhere the aim is to stay where the model was before unlearning.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from llm_unlearn.evaluation.metrics.memorization import exact_memorization, extraction_strength, probability
from llm_unlearn.evaluation.metrics.overlap import rouge_l_recall, value_recall

SETS = ("forget", "retain", "real_authors", "world_facts", "holdout")
"""The sets an evaluation knows, in the order of its tables. The holdout set was never trained on."""

MORE_IS_KNOWN: Mapping[str, bool | None] = {
    "forget": False,
    "retain": True,
    "real_authors": True,
    "world_facts": True,
    "holdout": None,
}
"""Direction of a metric that rises with knowledge: down on the forget set, up where knowledge is to be kept."""

KEEP_OR_FORGET: Mapping[str, Literal["reference", "before"]] = {
    "forget": "reference",
    "retain": "before",
    "real_authors": "before",
    "world_facts": "before",
    "holdout": "before",
}
"""Where the target of such a metric comes from: the retain model's report, or the model before unlearning."""


@dataclass(frozen=True)
class MetricSpec:
    """A metric and what a report must know about it.

    Attributes:
        name: second half of its name in reports, ``<set>/<name>``.
        function: records to one value per item, ``(n,)``; the metric of a set is their mean.
        needs: the arguments of `function`, in order.
        range: lowest and highest possible value; None for no bound.
        version: raised whenever a change of code changes a number.
        variant: which of several published definitions this is.
        higher_is_better: per set; None where neither direction is better.
        target: per set, whose value is the target.
    """

    name: str
    function: Callable[..., np.ndarray]
    needs: tuple[str, ...]
    range: tuple[float | None, float | None] = (0.0, 1.0)
    version: int = 1
    variant: str = "fixed"
    higher_is_better: Mapping[str, bool | None] = field(default_factory=lambda: MORE_IS_KNOWN)
    target: Mapping[str, Literal["reference", "before"]] = field(default_factory=lambda: KEEP_OR_FORGET)


METRICS = {
    spec.name: spec
    for spec in (
        MetricSpec("probability", probability, ("scores",)),
        MetricSpec("exact_memorization", exact_memorization, ("scores",)),
        MetricSpec("extraction_strength", extraction_strength, ("scores",)),
        MetricSpec("rouge_l_recall", rouge_l_recall, ("answers", "texts")),
        MetricSpec("value_recall", value_recall, ("values", "texts")),
    )
}
"""All metrics, in the order of the report."""


def target_source(name: str) -> Literal["reference", "before"]:
    """Whose value is the target of a reported metric, named ``<set>/<metric>``."""
    set_name, _, metric = name.partition("/")
    return METRICS[metric].target[set_name]
