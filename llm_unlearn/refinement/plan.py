"""All that refinement needs besides a model, checked before one is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llm_unlearn.data.tokenization import ExampleTokenizer, TokenizedItem
from llm_unlearn.evaluation.outputs.embeddings import HubEncoder
from llm_unlearn.refinement.config import RefinementConfig
from llm_unlearn.refinement.judges import Thresholds
from llm_unlearn.refinement.probes import Probes
from llm_unlearn.refinement.thresholds import from_report, given_thresholds, not_given, require_thresholds

if TYPE_CHECKING:
    from llm_unlearn.evaluation.report import EvalReport

_PAPERS_ENCODER, _PAPERS_F1 = "bert-base-uncased", 0.3


@dataclass(frozen=True)
class RefinementPlan:
    """The items as they will be looked at, and where forgetting begins.

    Attributes:
        probes: the forget items.
        thresholds: None where they are still to be measured on `holdout`.
        holdout: rows the model was never trained on; None where they are not needed.
        encoder: whose vectors BERTScore compares; None where nobody asks, and for those of the model itself.
        bert_f1: threshold of BERTScore; None where nobody asks, and where it is still to be calibrated.
    """

    probes: Probes
    thresholds: Thresholds | None
    holdout: Probes | None = None
    encoder: HubEncoder | None = None
    bert_f1: float | None = None

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
            ValueError: thresholds are needed and cannot be had, a text is too short for its prompt, the encoder cannot
                be loaded, or there is a single text to calibrate it on.
        """
        probes = Probes.of(items, config, tokenizer)
        thresholds = outsiders = None
        if not not_given(config):
            thresholds = given_thresholds(config)
        elif reference is not None:
            thresholds = from_report(config, reference, probes, tokenizer)
        if thresholds is None and holdout:
            outsiders = Probes.of(holdout, config, tokenizer, name="held-out rows")
        elif thresholds is None:
            thresholds = given_thresholds(config)
        require_thresholds(config, thresholds, [probes] if outsiders is None else [probes, outsiders])

        encoder, bert_f1 = None, config.iur_bert_f1
        if config.iur_judge == "text":
            encoder = None if config.iur_encoder == "model" else HubEncoder(config.iur_encoder, progress=False)
            if bert_f1 is None and encoder is not None and encoder.name == _PAPERS_ENCODER:
                bert_f1 = _PAPERS_F1
            if bert_f1 is None and len(items) < 2:
                raise ValueError(
                    "A threshold of BERTScore is calibrated on pairs of texts, but there is a single row to forget: "
                    "give `--iur_bert_f1`, or another judge (`--iur_judge`)."
                )
        return cls(probes, thresholds, outsiders, encoder, bert_f1)
