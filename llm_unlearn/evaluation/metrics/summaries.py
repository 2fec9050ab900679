"""The table of metrics of whole models: across sets, against the retain model, and aggregates of others.

They are computed from the items of reports alone, so any stored report can serve as reference. A summary names the
columns it `needs`, each as (whose, set, column), and gets a `Columns` to take statistics of. Every statistic comes as
an array over resamples whose first entry is the value itself, so intervals cost no second definition.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from llm_unlearn.evaluation.metrics.aggregates import aus, mem, overall, priv, utility_ratio
from llm_unlearn.evaluation.metrics.fluency import fluency
from llm_unlearn.evaluation.metrics.forget_quality import forget_quality, ks_statistic
from llm_unlearn.evaluation.metrics.items import UTILITY_SETS, Target
from llm_unlearn.evaluation.metrics.membership import (
    auc,
    privleak,
    reference_score,
    relative_difference,
    s_mia,
    tpr_at_fpr,
)
from llm_unlearn.evaluation.metrics.truth_ratio import true_better
from llm_unlearn.evaluation.metrics.utility import harmonic_mean, model_utility
from llm_unlearn.evaluation.statistics import weighted_mean

Whose = Literal["own", "before", "reference"]
Need = tuple[Whose, str, str]
Estimates = Float[np.ndarray, " r"]

ATTACKS = {
    "mia_loss": "loss",
    "mia_zlib": "zlib",
    "mia_min_k": "min_k",
    "mia_min_k_plus_plus": "min_k_plus_plus",
    "mia_gradnorm": "gradnorm",
}
"""Membership attacks by the column of items they score; `mia_reference` takes two models."""


class Columns:
    """Columns of items, of one or more models on the same rows, under all resamples.

    Args:
        values: per need one value or None (a text, a number) per row.
        weights: per set the weights of its rows, ``(resamples, n)``.
    """

    def __init__(self, values: Mapping[Need, list], weights: Mapping[str, np.ndarray]):
        self.values = values
        self.weights = weights

    def rows(self, whose: Whose, set_name: str, column: str) -> list[int]:
        """The rows that have a value."""
        return [row for row, value in enumerate(self.values[whose, set_name, column]) if value is not None]

    def sample(self, whose: Whose, set_name: str, column: str) -> tuple[Float[np.ndarray, " n"], np.ndarray]:
        """Values and weights of the rows that have a value."""
        rows = self.rows(whose, set_name, column)
        column_values = self.values[whose, set_name, column]
        return np.array([column_values[row] for row in rows], dtype=np.float64), self.weights[set_name][:, rows]

    def mean(self, whose: Whose, set_name: str, column: str, shown: Callable | None = None) -> Estimates:
        """Mean of a column, of what `shown` makes of it where given."""
        values, weights = self.sample(whose, set_name, column)
        return weighted_mean(shown(values) if shown else values, weights)


@dataclass(frozen=True)
class SummarySpec:
    """A metric of a whole model and what a report must know about it.

    Attributes:
        name: its name in reports.
        needs: the columns it is computed from.
        function: columns to estimates, and to details that must stand beside the value.
        range: lowest and highest possible value; None for no bound.
        higher_is_better: None where neither direction is better.
        target: a value, or whose value is the target.
        version: raised whenever a change of code changes a number.
    """

    name: str
    needs: tuple[Need, ...]
    function: Callable[[Columns], tuple[Estimates, dict[str, Any]]]
    range: tuple[float | None, float | None] = (0.0, 1.0)
    higher_is_better: bool | None = True
    target: Target = None
    version: int = 1


_MU_NEEDS: tuple[tuple[str, str], ...] = tuple(
    (name, column)
    for name in UTILITY_SETS
    for column in ("probability" if name == "retain" else "normalised_probability", "rouge_l_recall", "truth_ratio")
)
_MEM_COLUMNS = ("extraction_strength", "exact_memorization", "paraphrase_probability", "truth_ratio_prob_mean")
_PRIV_ATTACKS = ("mia_loss", "mia_zlib", "mia_min_k", "mia_min_k_plus_plus")


def _parts(columns: Columns, whose: Whose, needs: tuple[tuple[str, str], ...] = _MU_NEEDS) -> dict[str, Estimates]:
    return {
        f"{name}/{column}": columns.mean(whose, name, column, true_better if column == "truth_ratio" else None)
        for name, column in needs
    }


def _first(parts: Mapping[str, Estimates]) -> dict[str, float]:
    return {name: float(estimates[0]) for name, estimates in parts.items()}


def _model_utility(columns: Columns) -> tuple[Estimates, dict[str, Any]]:
    parts = _parts(columns, "own")
    counts = {f"{name}/{column}": len(columns.rows("own", name, column)) for name, column in _MU_NEEDS}
    return model_utility(parts), {"parts": _first(parts), "n": counts}


def _teacher_forced_utility(columns: Columns) -> tuple[Estimates, dict[str, Any]]:
    parts = _parts(columns, "own", _TEACHER_FORCED)
    return harmonic_mean(parts.values()), {"parts": _first(parts)}


_TEACHER_FORCED = tuple(need for need in _MU_NEEDS if need[1] != "rouge_l_recall")


def _ratios(columns: Columns):
    return columns.sample("own", "forget", "truth_ratio"), columns.sample("reference", "forget", "truth_ratio")


def _forget_quality(columns: Columns) -> tuple[Estimates, dict[str, Any]]:
    (own, _), (reference, _) = _ratios(columns)
    result = forget_quality(own, reference)
    details = {"statistic": result.statistic, "log10_p": result.log10_p, "n": result.n, "m": result.m,
               "method": result.method}  # fmt: skip
    return np.array([result.p]), details


def _log10_p(columns: Columns) -> tuple[Estimates, dict[str, Any]]:
    _, details = _forget_quality(columns)
    return np.array([details["log10_p"]]), {}


def _ks_statistic(columns: Columns) -> tuple[Estimates, dict[str, Any]]:
    (own, own_weights), (reference, reference_weights) = _ratios(columns)
    return ks_statistic(own, reference, own_weights, reference_weights), {"n": len(own), "m": len(reference)}


def _attack(columns: Columns, column: str, whose: Whose = "own") -> Estimates:
    forget, forget_weights = columns.sample(whose, "forget", column)
    holdout, holdout_weights = columns.sample(whose, "holdout", column)
    return auc(forget, holdout, forget_weights, holdout_weights)


def _auc_of(column: str) -> Callable:
    def function(columns: Columns) -> tuple[Estimates, dict[str, Any]]:
        forget, _ = columns.sample("own", "forget", column)
        holdout, _ = columns.sample("own", "holdout", column)
        return _attack(columns, column), {"tpr_at_1_percent_fpr": tpr_at_fpr(forget, holdout),
                                          "n_forget": len(forget), "n_holdout": len(holdout)}  # fmt: skip

    return function


def _reference_attack(columns: Columns) -> tuple[Estimates, dict[str, Any]]:
    scores, weights = {}, {}
    for name in ("forget", "holdout"):
        pairs = [columns.values[whose, name, "loss"] for whose in ("own", "reference")]
        rows = [row for row, pair in enumerate(zip(*pairs, strict=True)) if None not in pair]
        own, retain = (np.array([column[row] for row in rows]) for column in pairs)
        scores[name], weights[name] = reference_score(own, retain), columns.weights[name][:, rows]
    estimates = auc(scores["forget"], scores["holdout"], weights["forget"], weights["holdout"])
    return estimates, {"tpr_at_1_percent_fpr": tpr_at_fpr(scores["forget"], scores["holdout"])}


def _against_retain(function: Callable, column: str) -> Callable:
    def compared(columns: Columns) -> tuple[Estimates, dict[str, Any]]:
        own, retain = _attack(columns, column), _attack(columns, column, "reference")
        return function(own, retain), {"auc": float(own[0]), "retain_auc": float(retain[0])}

    return compared


def _mem(columns: Columns) -> tuple[Estimates, dict[str, Any]]:
    parts = {column: columns.mean("own", "forget", column) for column in _MEM_COLUMNS}
    return mem(*parts.values()), _first(parts)


def _priv(columns: Columns) -> tuple[Estimates, dict[str, Any]]:
    parts = {name: _against_retain(s_mia, ATTACKS[name])(columns)[0] for name in _PRIV_ATTACKS}
    return priv(parts.values()), _first(parts)


def _fluency(columns: Columns, whose: Whose = "own") -> Estimates:
    before, _ = columns.sample("before", "forget", "text_nll")
    rows = columns.rows(whose, "forget", "text")
    texts = [columns.values[whose, "forget", "text"][row] for row in rows]
    # Empty texts have no likelihood, and fluency 0 all the same.
    likelihoods = [columns.values[whose, "forget", "text_nll"][row] for row in rows]
    nll = np.array([np.inf if value is None else value for value in likelihoods])
    return weighted_mean(fluency(nll, float(before.mean()), texts), columns.weights["forget"][:, rows])


def _utility_offline(columns: Columns) -> tuple[Estimates, dict[str, Any]]:
    own = {"model_utility": model_utility(_parts(columns, "own")), "fluency": _fluency(columns)}
    before = harmonic_mean((model_utility(_parts(columns, "before")), _fluency(columns, "before")))
    return utility_ratio(own["model_utility"], own["fluency"], before), {**_first(own), "before": float(before[0])}


def _overall_offline(columns: Columns) -> tuple[Estimates, dict[str, Any]]:
    parts = {"mem": _mem(columns)[0], "priv": _priv(columns)[0], "utility_offline": _utility_offline(columns)[0]}
    return overall(*parts.values()), _first(parts)


def _tuning_score(columns: Columns) -> tuple[Estimates, dict[str, Any]]:
    parts = {"mem": _mem(columns)[0], "teacher_forced_utility": _teacher_forced_utility(columns)[0]}
    return harmonic_mean(parts.values()), _first(parts)


def _aus(columns: Columns) -> tuple[Estimates, dict[str, Any]]:
    parts = {
        "before_kept": columns.mean("before", "retain", "rouge_l_recall"),
        "after_kept": columns.mean("own", "retain", "rouge_l_recall"),
        "forget": columns.mean("own", "forget", "rouge_l_recall"),
    }
    return aus(*parts.values()), {**_first(parts), "mode": "concept", "score": "rouge_l_recall"}


def _zrf_gap(columns: Columns) -> tuple[Estimates, dict[str, Any]]:
    parts = {name: columns.mean("own", name, "zrf") for name in ("forget", "holdout")}
    return np.abs(parts["forget"] - parts["holdout"]), _first(parts)


def _own(*columns: str, sets: tuple[str, ...] = ("forget",), whose: tuple[Whose, ...] = ("own",)) -> tuple[Need, ...]:
    return tuple((who, name, column) for who in whose for name in sets for column in columns)


_MEMBERS = ("forget", "holdout")
_BOTH: tuple[Whose, ...] = ("own", "reference")
_UTILITY = tuple(("own", *need) for need in _MU_NEEDS)
_PRIV = _own(*(ATTACKS[name] for name in _PRIV_ATTACKS), sets=_MEMBERS, whose=_BOTH)
_FLUENCY = _own("text_nll", "text", whose=("own", "before"))
_UTILITY_OFFLINE = (*_UTILITY, *(("before", *need) for need in _MU_NEEDS), *_FLUENCY)

SUMMARIES = {
    spec.name: spec
    for spec in (
        SummarySpec("forget_quality", _own("truth_ratio", whose=_BOTH), _forget_quality, target=1.0),
        SummarySpec("forget_quality_log10_p", _own("truth_ratio", whose=_BOTH), _log10_p, (None, 0.0), target=0.0),
        SummarySpec("forget_quality_ks", _own("truth_ratio", whose=_BOTH), _ks_statistic, higher_is_better=False,
                    target=0.0),
        SummarySpec("model_utility", _UTILITY, _model_utility, target="before"),
        SummarySpec("teacher_forced_utility", tuple(("own", *need) for need in _TEACHER_FORCED),
                    _teacher_forced_utility, target="before"),
        SummarySpec("mem", _own(*_MEM_COLUMNS), _mem, target="reference"),
        SummarySpec("tuning_score", (*_own(*_MEM_COLUMNS), *(("own", *need) for need in _TEACHER_FORCED)),
                    _tuning_score),
        *(
            SummarySpec(name, _own(column, sets=_MEMBERS), _auc_of(column), higher_is_better=None, target="reference")
            for name, column in ATTACKS.items()
        ),
        SummarySpec("mia_reference", _own("loss", sets=_MEMBERS, whose=_BOTH), _reference_attack,
                    higher_is_better=None, target=0.5),
        SummarySpec("privleak", _own("min_k", sets=_MEMBERS, whose=_BOTH), _against_retain(privleak, "min_k"),
                    (None, None), higher_is_better=None, target=0.0),
        SummarySpec("min_k_relative_difference", _own("min_k", sets=_MEMBERS, whose=_BOTH),
                    _against_retain(relative_difference, "min_k"), (None, None), higher_is_better=None, target=0.0),
        *(
            SummarySpec(f"s_{name}", _own(ATTACKS[name], sets=_MEMBERS, whose=_BOTH),
                        _against_retain(s_mia, ATTACKS[name]), target=1.0)
            for name in _PRIV_ATTACKS
        ),
        SummarySpec("priv", _PRIV, _priv, target=1.0),
        SummarySpec("fluency", _FLUENCY, lambda columns: (_fluency(columns), {}), target="before"),
        SummarySpec("utility_offline", _UTILITY_OFFLINE, _utility_offline, target=1.0),
        SummarySpec("overall_offline", (*_own(*_MEM_COLUMNS), *_PRIV, *_UTILITY_OFFLINE), _overall_offline,
                    target=None),
        SummarySpec("aus", (*_own("rouge_l_recall", sets=("forget", "retain")), ("before", "retain", "rouge_l_recall")),
                    _aus, (0.0, 2.0), target="reference"),
        SummarySpec("zrf_gap", _own("zrf", sets=_MEMBERS), _zrf_gap, higher_is_better=False, target=0.0),
    )
}  # fmt: skip
"""All metrics of whole models, in the order of the report."""
