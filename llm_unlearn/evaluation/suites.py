"""The TOFU suite: which sets of a data set an evaluation of a forget split reads."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

from llm_unlearn.data.sources import as_question_answer, form_of, list_splits, load_rows
from llm_unlearn.data.tofu import TOFU_CONFIGS, load_tofu, source_or_bundled
from llm_unlearn.data.tokenization import ExampleTokenizer
from llm_unlearn.evaluation.conventions import get_convention
from llm_unlearn.evaluation.evaluator import Evaluator, Tier
from llm_unlearn.evaluation.metrics.items import UTILITY_SETS
from llm_unlearn.evaluation.sets import EvalSet

_SPLITS = {
    "retain": "retain_perturbed",
    "real_authors": "real_authors_perturbed",
    "world_facts": "world_facts_perturbed",
}
_QUESTIONS_PER_AUTHOR = 20


@dataclass(frozen=True)
class SuiteSettings:
    """How the TOFU suite is run.

    Attributes:
        tier: see `Evaluator`.
        compat: see `conventions`.
        max_rows: rows of `retain`, `real_authors` and `world_facts` that are used, from the first: one number for all
            three, or one each; empty for all rows.
        holdout_split: rows that no model was trained on, for membership attacks. Unset, TOFU's own for the forget
            split (`holdout10` for `forget10`), if the data have it.
        max_new_tokens: see `Evaluator`.
        progress: see `Evaluator`.
    """

    tier: Tier = "quick"
    compat: str = "fixed"
    max_rows: Sequence[int] = ()
    holdout_split: str | None = None
    max_new_tokens: int = 200
    progress: bool = True

    def __post_init__(self):
        if len(self.max_rows) not in (0, 1, 3) or any(rows < 1 for rows in self.max_rows):
            raise ValueError(
                f"`--max_rows` is {list(self.max_rows)}; give one number of rows, or three: of retain, real authors "
                "and world facts, each at least 1."
            )


def tofu_evaluator(
    tokenize: ExampleTokenizer,
    forget: Iterable[Mapping[str, Any]],
    source: str | PathLike | None = None,
    settings: SuiteSettings | None = None,
    *,
    forget_split: str | None = None,
    retain: Iterable[Mapping[str, Any]] | None = None,
    columns: Mapping[str, str] | None = None,
) -> Evaluator:
    """The sets of TOFU for one forget set.

    Paraphrased and wrong answers are taken from the `*_perturbed` splits of the source, by question and answer.

    Args:
        tokenize: the tokenizer of the models to be evaluated.
        forget: rows of the forget set.
        source: where the other sets are read; unset means the bundled data. Of `retain_perturbed`,
            `real_authors_perturbed` and `world_facts_perturbed` those are used that the source has.
        settings: tier, convention, rows. Defaults to `SuiteSettings()`.
        forget_split: name of the forget split, with the rows taken; unset for rows that are no split of the source.
        retain: rows to evaluate as the retain set instead of `retain_perturbed`, for example those a model was
            actually trained on.
        columns: which column of the holdout split plays which role, see `load_rows`.

    Raises:
        ValueError: the holdout split shares rows with the forget set, or see `load_rows`.
    """
    settings = settings or SuiteSettings()
    convention = get_convention(settings.compat)
    place = source_or_bundled(source)
    there = list_splits(place)
    rows: dict[str, list[Mapping[str, Any]]] = {"forget": list(forget)}
    split_of = {"forget": forget_split, **_SPLITS}
    for name, split in _SPLITS.items():
        if split in there:
            rows[name] = list(load_tofu(split, place))
    if retain is not None:
        known = rows.get("retain", [])
        rows["retain"], split_of["retain"] = _with_alternatives(retain, known), None
    base = (forget_split or "").partition("[")[0]
    if f"{base}_perturbed" in there:
        rows["forget"] = _with_alternatives(rows["forget"], load_tofu(f"{base}_perturbed", place))
    split_of["holdout"] = settings.holdout_split or _holdout_of(forget_split, there)
    if split_of["holdout"]:
        rows["holdout"] = list(load_rows(split_of["holdout"], place, columns))
        _require_apart(rows["holdout"], rows["forget"], split_of["holdout"])

    limits = dict(zip(UTILITY_SETS, (*settings.max_rows, *settings.max_rows, *settings.max_rows), strict=False))
    if convention.first_rows:
        most = convention.first_rows
        limits = {name: min(limits.get(name, most), most) for name in rows}
    if convention.keeps_tail:
        tokenize = ExampleTokenizer(tokenize.tokenizer, tokenize.system_prompt, tokenize.max_length, keeps_tail=True)
    sets = [
        EvalSet.of(name, some[: limits.get(name)], tokenize, _authors(split_of[name], some)[: limits.get(name)] or None)
        for name, some in rows.items()
    ]
    return Evaluator(
        tokenize,
        sets,
        settings.tier,
        compat=settings.compat,
        max_new_tokens=settings.max_new_tokens,
        progress=settings.progress,
    )


def _with_alternatives(
    rows: Iterable[Mapping[str, Any]], perturbed: Iterable[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """The rows, with the alternative answers of those that stand among `perturbed`."""
    rows = list(rows)
    if not rows or form_of(rows[0]) != "question_answer":
        return rows
    known = {(row["question"], row["answer"]): row for row in perturbed}
    return [{**known.get((row["question"], row["answer"]), {}), **row} for row in rows]


def _holdout_of(forget_split: str | None, there: Sequence[str]) -> str | None:
    if not forget_split or not forget_split.startswith("forget"):
        return None
    split = forget_split.replace("forget", "holdout", 1)
    return split if split.partition("[")[0] in there else None


def _require_apart(holdout: list[Mapping[str, Any]], forget: list[Mapping[str, Any]], name: str) -> None:
    asked = [{(row["question"], row["answer"]) for row in map(as_question_answer, rows)} for rows in (holdout, forget)]
    shared = asked[0] & asked[1]
    if shared:
        raise ValueError(
            f"{len(shared)} rows of the holdout split {name} are in the forget set, so they are no outsiders: name "
            "another with `--holdout_split`."
        )


def _authors(split: str | None, rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The author of each row; in the benchmark, which does not name them, each has 20 rows. Empty where unknown."""
    if rows and all(row.get("author") is not None for row in rows):
        return [row["author"] for row in rows]
    known = TOFU_CONFIGS.get(split or "")
    if known is None or len(rows) != known.rows or not split.startswith(("forget", "retain", "holdout")):
        return []
    return [row // _QUESTIONS_PER_AUTHOR for row in range(len(rows))]
