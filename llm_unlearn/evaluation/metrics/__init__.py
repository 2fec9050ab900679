"""What a metric is: pure functions, and the tables that say what each needs, which way is better and where to end.

`items` is the table of metrics with a value per item, `summaries` that of whole models; the other modules hold the
functions. What counts as better, and where a value should end, depends on the set: on the forget set the aim is the
retain model's value, which is neither 0 nor 1; elsewhere the aim is to stay where the model was before unlearning.
"""

from llm_unlearn.evaluation.conventions import CONVENTIONS
from llm_unlearn.evaluation.metrics.items import Target, item_metrics
from llm_unlearn.evaluation.metrics.summaries import SUMMARIES


def target_of(name: str) -> Target:
    """The target of a reported metric: a value, whose value it is (`reference` or `before`), or None."""
    if name in SUMMARIES:
        return SUMMARIES[name].target
    return item_metrics(CONVENTIONS["fixed"])[name].target[name.partition("/")[0]]


def higher_is_better(name: str) -> bool | None:
    """The better direction of a reported metric; None where neither is."""
    if name in SUMMARIES:
        return SUMMARIES[name].higher_is_better
    return item_metrics(CONVENTIONS["fixed"])[name].higher_is_better.get(name.partition("/")[0])
