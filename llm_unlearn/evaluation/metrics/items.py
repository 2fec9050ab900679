"""The table of metrics that have a value for every item; nothing here runs a model or imports torch.

A metric names the records it `needs`, as the arguments of its function, each with one entry per row:

- ``loss``, ``logprobs``, ``hits``, ``mean``, ``std``, ``js``: what the teacher-forced pass says of the true answer;
- ``paraphrase_loss``, ``wrong_losses``: token-mean NLL of the paraphrased and of each wrong answer;
- ``texts``, ``ended``: the generated answer, and whether it ended by itself;
- ``el``: greedy continuations from inside the answer (`outputs.continuations`); ``gradnorm``: `outputs.gradients`;
- ``text_nll``: token-mean NLL of the generated text under the judge of fluency;
- ``answers``, ``values``: the columns ``answer`` and ``value`` of the rows.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np

from llm_unlearn.evaluation.conventions import Convention
from llm_unlearn.evaluation.metrics import fluency, likelihood, membership, memorization, overlap, randomness
from llm_unlearn.evaluation.metrics import truth_ratio as ratios

SETS = ("forget", "retain", "real_authors", "world_facts", "holdout")
"""The sets an evaluation knows, in the order of its tables. The holdout set was never trained on."""

UTILITY_SETS = SETS[1:4]
"""The sets whose knowledge is to be kept."""

Target = Literal["reference", "before"] | float | None

MORE_IS_KNOWN: Mapping[str, bool | None] = {
    "forget": False,
    **dict.fromkeys(UTILITY_SETS, True),
    "holdout": None,
}
"""Direction of a metric that rises with knowledge: down on the forget set, up where knowledge is to be kept."""

LESS_IS_KNOWN: Mapping[str, bool | None] = {"forget": True, **dict.fromkeys(UTILITY_SETS, False), "holdout": None}
MORE_IS_BETTER: Mapping[str, bool | None] = dict.fromkeys(SETS, True)
NO_DIRECTION: Mapping[str, bool | None] = dict.fromkeys(SETS)

KEEP_OR_FORGET: Mapping[str, Target] = {
    "forget": "reference",
    **dict.fromkeys(UTILITY_SETS, "before"),
    "holdout": "before",
}
"""Where the target of such a metric comes from: the retain model's report, or the model before unlearning."""


@dataclass(frozen=True)
class MetricSpec:
    """A metric and what a report must know about it.

    Attributes:
        name: second half of its name in reports, ``<set>/<name>``.
        function: records to one value per item, ``(n,)``.
        needs: the arguments of `function`, in order.
        sets: the sets it is computed on.
        shown: what is averaged over the items of a set, from the values; the values themselves where it names none.
        reported: whether the mean is a number of the report; otherwise only the items have the value, for what is
            computed across sets (`summaries`).
        range: lowest and highest possible mean; None for no bound.
        version: raised whenever a change of code changes a number.
        variant: which of several published definitions this is.
        higher_is_better: per set; None where neither direction is better.
        target: per set, whose value is the target.
    """

    name: str
    function: Callable[..., np.ndarray]
    needs: tuple[str, ...]
    sets: tuple[str, ...] = SETS
    shown: Mapping[str, Callable[[np.ndarray], np.ndarray]] = field(default_factory=dict)
    reported: bool = True
    range: tuple[float | None, float | None] = (0.0, 1.0)
    version: int = 1
    variant: str = "fixed"
    higher_is_better: Mapping[str, bool | None] = field(default_factory=lambda: MORE_IS_KNOWN)
    target: Mapping[str, Target] = field(default_factory=lambda: KEEP_OR_FORGET)


def item_metrics(convention: Convention) -> dict[str, MetricSpec]:
    """All metrics of items under a convention, in the order of the report."""

    def named(*fields: str) -> str:
        """The convention's name where it departs from ours in one of these, else ours."""
        ours = Convention("fixed")
        return convention.name if any(getattr(convention, f) != getattr(ours, f) for f in fields) else ours.name

    ends = {"drop_last": convention.drop_last}
    mean_of = {"forget": convention.quality_mean, **dict.fromkeys(UTILITY_SETS, convention.utility_mean)}
    members = ("forget", "holdout")
    unreported: dict[str, Any] = {
        "sets": members, "reported": False, "range": (None, None), "higher_is_better": NO_DIRECTION,
        "variant": named("drop_last", "keeps_tail"),
    }  # fmt: skip
    ratio_names = named("quality_mean", "utility_mean", "epsilon")
    specs = [
        MetricSpec(
            "loss",
            _as_array,
            ("loss",),
            reported=False,
            range=(0.0, None),
            variant=named("keeps_tail"),
            higher_is_better=NO_DIRECTION,
        ),
        MetricSpec("probability", likelihood.probability, ("loss",), variant=named("keeps_tail")),
        MetricSpec(
            "paraphrase_probability",
            likelihood.probability,
            ("paraphrase_loss",),
            sets=("forget", "retain"),
            variant=named("keeps_tail"),
        ),
        MetricSpec(
            "normalised_probability",
            partial(likelihood.normalised_probability, epsilon=convention.epsilon),
            ("loss", "wrong_losses"),
            sets=("real_authors", "world_facts"),
            variant=named("epsilon"),
        ),
        MetricSpec(
            "wrong_answer_probability",
            likelihood.wrong_answer_probability,
            ("wrong_losses",),
            sets=SETS[:4],
            higher_is_better=NO_DIRECTION,
            variant=named("keeps_tail"),
        ),
        *(
            MetricSpec(
                "truth_ratio",
                partial(ratios.truth_ratio, mean=mean_of[name], epsilon=convention.epsilon),
                ("paraphrase_loss" if name in ("forget", "retain") else "loss", "wrong_losses"),
                sets=(name,),
                shown={name: ratios.closer_to_1_better if name == "forget" else ratios.true_better},
                higher_is_better=MORE_IS_BETTER,
                variant=ratio_names,
            )
            for name in SETS[:4]
        ),
        MetricSpec(
            "truth_ratio_prob_mean",
            partial(ratios.prob_mean, mean=convention.quality_mean, epsilon=convention.epsilon),
            ("paraphrase_loss", "wrong_losses"),
            sets=("forget",),
            variant=ratio_names,
        ),
        MetricSpec(
            "exact_memorization",
            partial(memorization.exact_memorization, **ends),
            ("hits",),
            variant=named("drop_last"),
        ),
        MetricSpec(
            "extraction_strength",
            partial(memorization.extraction_strength, floor=convention.floor, **ends),
            ("hits",),
            variant=named("drop_last", "floor"),
        ),
        MetricSpec("rouge_l_recall", overlap.rouge_l_recall, ("answers", "texts"), variant=named("total_length")),
        MetricSpec("rouge_1_recall", overlap.rouge_1_recall, ("answers", "texts"), variant=named("total_length")),
        MetricSpec("rouge_l_f1", overlap.rouge_l_f1, ("answers", "texts"), variant=named("total_length")),
        MetricSpec("value_recall", overlap.value_recall, ("values", "texts")),
        MetricSpec("el_10", _as_array, ("el",), sets=("forget",), variant=named("keeps_tail")),
        MetricSpec("ma", _ma, ("hits",), sets=("forget",), variant=named("keeps_tail")),
        MetricSpec(
            "zrf", randomness.zrf, ("js",), sets=members, higher_is_better=NO_DIRECTION, variant=named("keeps_tail")
        ),
        MetricSpec("repetition", fluency.repetition, ("texts",), sets=("forget",), higher_is_better={"forget": False}),
        MetricSpec(
            "distinct_1", partial(fluency.distinct_n, n=1), ("texts",), sets=("forget",), higher_is_better=NO_DIRECTION
        ),  # fmt: skip
        MetricSpec("empty", _is_empty, ("texts",), sets=("forget",), higher_is_better={"forget": False}),
        MetricSpec("ended", _as_array, ("ended",), sets=("forget",), higher_is_better={"forget": True}),
        MetricSpec(
            "text_nll",
            _as_array,
            ("text_nll",),
            sets=("forget",),
            reported=False,
            range=(0.0, None),
            higher_is_better=NO_DIRECTION,
        ),
        MetricSpec("zlib", membership.zlib_score, ("loss", "answers"), **unreported),
        MetricSpec("min_k", partial(membership.min_k, **ends), ("logprobs",), **unreported),
        MetricSpec(
            "min_k_plus_plus", partial(membership.min_k_plus_plus, **ends), ("logprobs", "mean", "std"), **unreported
        ),  # fmt: skip
        MetricSpec("gradnorm", _as_array, ("gradnorm",), **unreported),
    ]
    order: dict[str, MetricSpec] = {}
    for spec in specs:
        for name in spec.sets:
            order[f"{name}/{spec.name}"] = spec
    return order


def _as_array(values: np.ndarray) -> np.ndarray:
    return values


def _ma(hits: Sequence[np.ndarray]) -> np.ndarray:
    return memorization.exact_memorization(hits)


def _is_empty(texts: Sequence[str]) -> np.ndarray:
    return np.array([not text.strip() for text in texts], dtype=np.float64)
