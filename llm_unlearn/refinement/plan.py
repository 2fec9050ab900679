"""All that refinement needs besides a model, checked before one is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llm_unlearn.data.tokenization import ExampleTokenizer, TokenizedItem
from llm_unlearn.refinement.config import RefinementConfig
from llm_unlearn.refinement.judges import Thresholds
from llm_unlearn.refinement.probes import Probes
from llm_unlearn.refinement.thresholds import from_report, given_thresholds, require_thresholds

if TYPE_CHECKING:
    from llm_unlearn.evaluation.report import EvalReport


@dataclass(frozen=True)
class RefinementPlan:
    """The items as they will be looked at, and where forgetting begins.

    Attributes:
        probes: the forget items.
        thresholds: None where they are still to be measured on `holdout`.
        holdout: tokenised rows the model was never trained on.
    """

    probes: Probes
    thresholds: Thresholds | None
    holdout: Sequence[TokenizedItem] = ()

    @classmethod
    def of(
        cls,
        config: RefinementConfig,
        items: Sequence[TokenizedItem],
        tokenizer: ExampleTokenizer,
        reference: "EvalReport | None" = None,
        holdout: Sequence[TokenizedItem] = (),
    ) -> "RefinementPlan":
        """Plan the looks of a run.

        Args:
            config: the run's arguments.
            items: the forget items, in the order of the forget set.
            tokenizer: their tokenizer.
            reference: report of the retain model, whose values are the thresholds that were not given.
            holdout: rows to measure them on where there is no such report, or it lacks one.

        Raises:
            ValueError: thresholds are needed and cannot be had, or a text is too short for its prompt.
        """
        probes = Probes.of(items, config, tokenizer)
        thresholds = None if reference is None else from_report(config, reference, not items[0].prompt_length)
        if thresholds is None and not holdout:
            require_thresholds(config)
            thresholds = given_thresholds(config)
        return cls(probes, thresholds, holdout)
