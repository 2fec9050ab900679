"""Thresholds of forgetting: given, the retain model's, or measured on held-out rows; never another model's."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import nn

from llm_unlearn.data.tokenization import ExampleTokenizer, TokenizedItem
from llm_unlearn.refinement.config import RefinementConfig
from llm_unlearn.refinement.judges import Thresholds
from llm_unlearn.refinement.look import Look
from llm_unlearn.refinement.probes import Probes

if TYPE_CHECKING:
    from llm_unlearn.evaluation.report import EvalReport

# The n of EL_n in reports, and their names for what is compared here.
_REPORTED_N = 10
_REPORTED = {"ma": "forget/ma", "el": "forget/el_10", "rouge_l": "forget/rouge_l_recall"}


def needed(config: RefinementConfig) -> list[str]:
    """Names of the thresholds that are neither given nor can be left out."""
    given = {"ma": config.stop_ma, "el": config.stop_el, "rouge_l": config.iur_rouge_l}
    wanted = ["ma", "el", "rouge_l"] if config.iur_judge == "memory" else ["ma", "el"]
    if config.iur_judge != "memory" and (config.stop_ma is not None or config.stop_el is not None):
        return []  # one of the two is a stop rule
    return [name for name in wanted if given[name] is None]


def given_thresholds(config: RefinementConfig) -> Thresholds:
    """Those that the run names itself."""
    return Thresholds(config.stop_ma, config.stop_el, config.iur_rouge_l)


def from_report(config: RefinementConfig, report: "EvalReport", plain_text: bool) -> Thresholds | None:
    """The retain model's values on the forget set, where its report has all that is needed.

    Args:
        config: what is given and how EL_n is measured.
        report: the reference report.
        plain_text: whether the forget rows are plain text, of which reports measure EL_n from the second token on.
    """
    values = {name: report.metrics[key].value for name, key in _REPORTED.items() if key in report.metrics}
    if config.el_n != _REPORTED_N or (plain_text and config.el_start != 1) or config.el_denominator != "label":
        values.pop("el", None)
    return _filled(config, values, "the retain model's report")


def from_holdout(
    config: RefinementConfig,
    model: nn.Module,
    items: Sequence[TokenizedItem],
    tokenizer: ExampleTokenizer,
    progress: bool,
) -> Thresholds:
    """What the model before unlearning gives on rows it was never trained on, measured as the forget set will be.

    Args:
        config: how things are measured.
        model: the model before unlearning.
        items: the tokenised rows.
        tokenizer: their tokenizer.
        progress: whether the main process shows progress bars.

    Raises:
        ValueError: a number that is needed could not be measured on these rows.
    """
    look = Look(model, Probes.of(items, config, tokenizer), config, tokenizer, progress)
    names = needed(config)
    if "rouge_l" in names:
        look.generate(range(len(items)))
    if "el" in names:
        look.extract(range(len(items)))
    values = {name: look.mean(name) for name in names}
    found = _filled(config, values, f"{len(items)} held-out rows under the model before unlearning")
    if found is None:
        raise ValueError(
            f"The held-out rows have no EL_{config.el_n}, being shorter than {config.el_n} tokens: name longer ones "
            "with `--holdout_split`, or give `--stop_el`."
        )
    return found


def require_thresholds(config: RefinementConfig) -> None:
    """Raise the error for thresholds that are needed and nowhere to be had; call it before a model is loaded.

    Raises:
        ValueError: always, unless the judge "text" does without a stop rule.
    """
    names = needed(config)
    if config.iur_judge == "text" or not names:
        return
    flags = {"ma": "--stop_ma", "el": "--stop_el", "rouge_l": "--iur_rouge_l"}
    raise ValueError(
        f"`iur_judge` {config.iur_judge!r} compares with what a model knows that never saw the forget set, and none "
        f"was named: give `--reference` (a report of the retain model made with `--eval full`), `--holdout_split`, or "
        f"{' and '.join(f'`{flags[name]}`' for name in names)}."
    )


def _filled(config: RefinementConfig, values: Mapping[str, float | None], source: str) -> Thresholds | None:
    names = needed(config)
    if any(values.get(name) is None for name in names):
        return None
    return replace(given_thresholds(config), **{name: values[name] for name in names}, source=source)
