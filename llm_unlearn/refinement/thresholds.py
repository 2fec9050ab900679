"""Thresholds of forgetting: given, the retain model's, or measured on held-out rows; never another model's."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import nn

from llm_unlearn.data.tokenization import ExampleTokenizer
from llm_unlearn.evaluation.metrics.overlap import rouge_l_recall
from llm_unlearn.refinement.config import RefinementConfig
from llm_unlearn.refinement.judges import Thresholds
from llm_unlearn.refinement.look import Look
from llm_unlearn.refinement.probes import Probes

if TYPE_CHECKING:
    from llm_unlearn.evaluation.report import EvalReport

_FLAGS = {"ma": "--stop_ma", "el": "--stop_el", "rouge_l": "--iur_rouge_l"}
# The n of EL_n in reports.
_REPORTED_N = 10


def given_thresholds(config: RefinementConfig) -> Thresholds:
    """Those that the run names itself."""
    return Thresholds(config.stop_ma, config.stop_el, config.iur_rouge_l)


def not_given(config: RefinementConfig) -> list[str]:
    """Names of the thresholds that are used and that the run does not name."""
    used = ["ma", "el", "rouge_l"] if config.iur_judge == "memory" else ["ma", "el"]
    return [name for name in used if getattr(given_thresholds(config), name) is None]


def required(config: RefinementConfig) -> list[str]:
    """Those of `not_given` without which there is no run: all for the judge "memory", one stop rule for "none"."""
    names = not_given(config)
    if config.iur_judge == "memory":
        return names
    return names if config.iur_judge == "none" and len(names) == 2 else []


def from_report(
    config: RefinementConfig, report: "EvalReport", probes: Probes, tokenizer: ExampleTokenizer
) -> Thresholds | None:
    """The retain model's values on the forget set; None where its report lacks one that is required.

    Its texts are cut to the length that looks generate, or they would have more words to find the answer in.

    Args:
        config: what is given, and how EL_n is measured.
        report: the reference report.
        probes: the forget items.
        tokenizer: their tokenizer.
    """
    names = {"ma": "forget/ma", "el": f"forget/el_{_REPORTED_N}"}
    values = {name: report.metrics[key].value for name, key in names.items() if key in report.metrics}
    # Reports measure EL_n of plain text from the second token on.
    comparable = config.el_start == 1 or all(item.prompt_length for item in probes.whole)
    if config.el_n != _REPORTED_N or not comparable or config.el_denominator != "label":
        values.pop("el", None)
    texts = {item["row"]: item.get("text") for item in report.items if item["set"] == "forget"}
    own = [texts.get(item.index) for item in probes.whole]
    if all(text is not None for text in own):
        cut = [tokenizer.cut(text, cap) for text, cap in zip(own, probes.caps, strict=True)]
        values["rouge_l"] = float(rouge_l_recall(probes.references, cut).mean())
    if any(values.get(name) is None for name in required(config)):
        return None
    found = {name: values.get(name) for name in not_given(config)}
    return replace(given_thresholds(config), **found, source="the retain model's report")


def from_holdout(
    config: RefinementConfig, model: nn.Module, probes: Probes, tokenizer: ExampleTokenizer, progress: bool
) -> Thresholds:
    """What the model before unlearning gives on rows it was never trained on, measured as the forget set will be.

    Args:
        config: how things are measured.
        model: the model before unlearning.
        probes: the rows.
        tokenizer: their tokenizer.
        progress: whether the main process shows progress bars.
    """
    look = Look(model, probes, config, tokenizer, progress)
    names = not_given(config)
    if "rouge_l" in names:
        look.generate(range(len(probes)))
    if "el" in names:
        look.extract(range(len(probes)))
    source = f"{len(probes)} held-out rows under the model before unlearning"
    return replace(given_thresholds(config), **{name: look.mean(name) for name in names}, source=source)


def require_thresholds(config: RefinementConfig, thresholds: Thresholds | None, probes: Sequence[Probes]) -> None:
    """Check that what is compared can be had and measured; call it before a model is loaded.

    Args:
        config: the run's arguments.
        thresholds: what is known of them; None where they will be measured.
        probes: the forget items, and the held-out rows on which thresholds will be measured.

    Raises:
        ValueError: a threshold is missing, or no row is long enough for an EL_n that has one.
    """
    missing = [] if thresholds is None else [name for name in required(config) if getattr(thresholds, name) is None]
    if missing:
        raise ValueError(
            f"`iur_judge` {config.iur_judge!r} compares with what a model knows that never saw the forget set, and "
            "none was named: give `--reference` (a report of the retain model made with `--eval full`), "
            f"`--holdout_split`, or {' and '.join(f'`{_FLAGS[name]}`' for name in missing)}."
        )
    if thresholds is None or thresholds.el is not None:
        for some in probes:
            if some.n_without_el == len(some):
                raise ValueError(
                    f"None of the {len(some)} {some.name} has the {config.el_n} tokens that EL_{config.el_n} needs: "
                    "give longer ones, a smaller `--el_n`, or of plain text a smaller `--el_start`."
                )
