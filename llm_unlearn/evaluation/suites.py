"""The TOFU suite: which sets of a data set an evaluation of a forget split reads."""

from collections.abc import Iterable, Mapping
from os import PathLike
from typing import Any

from llm_unlearn.data.sources import as_question_answer, list_splits
from llm_unlearn.data.tofu import load_tofu, source_or_bundled
from llm_unlearn.data.tokenization import ExampleTokenizer
from llm_unlearn.evaluation.evaluator import EvalSet, Evaluator, Tier

_SETS = {
    "retain": "retain_perturbed",
    "real_authors": "real_authors_perturbed",
    "world_facts": "world_facts_perturbed",
}


def tofu_evaluator(
    tokenize: ExampleTokenizer,
    forget: Iterable[Mapping[str, Any]],
    source: str | PathLike | None = None,
    tier: Tier = "quick",
    retain: Iterable[Mapping[str, Any]] | None = None,
) -> Evaluator:
    """The sets of TOFU for one forget set.

    Args:
        tokenize: the tokenizer of the models to be evaluated.
        forget: rows of the forget set.
        source: where the other sets are read; unset means the bundled data. Of `retain_perturbed`,
            `real_authors_perturbed` and `world_facts_perturbed` those are used that the source has.
        tier: see `Evaluator`.
        retain: rows to evaluate as the retain set instead of `retain_perturbed`, for example those a model was
            actually trained on.
    """
    there = list_splits(source_or_bundled(source))
    rows = {"forget": list(forget)}
    rows |= {name: list(load_tofu(config, source)) for name, config in _SETS.items() if config in there}
    if retain is not None:
        rows["retain"] = list(retain)
    sets = [
        EvalSet(name, [as_question_answer(row) for row in set_rows], tokenize.all(set_rows))
        for name, set_rows in rows.items()
    ]
    return Evaluator(tokenize, sets, tier)
