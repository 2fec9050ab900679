"""One look at the forget set: a teacher-forced pass over all items, and dearer passes where they are asked for.

Every number is measured at most once per look. Passes are sharded over the processes and gathered by item, so that each
process has the same numbers and takes the same decisions.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Float
from torch import nn

from llm_unlearn.data.tokenization import ExampleTokenizer
from llm_unlearn.evaluation.metrics.extraction import el_n
from llm_unlearn.evaluation.metrics.overlap import rouge_l_recall
from llm_unlearn.evaluation.metrics.similarity import distinct_1, sentence_bleu, token_entropy
from llm_unlearn.evaluation.outputs.continuations import continue_answers
from llm_unlearn.evaluation.outputs.generation import beam_search, generate
from llm_unlearn.evaluation.outputs.scoring import Branches, score
from llm_unlearn.refinement.config import RefinementConfig
from llm_unlearn.refinement.probes import Probes

Values = Float[np.ndarray, " n"]
"""One number per item; NaN where it was not measured."""


class Look:
    """What a model remembers of the items.

    Args:
        model: a causal language model, wrapped by PEFT or DDP or neither.
        probes: the items.
        config: how to generate, and which EL.
        tokenizer: the tokenizer the items were made with.
        progress: whether the main process shows progress bars.

    Attributes:
        loss: token-mean NLL of each item, in nats.
        ma: MA of each item, in [0, 1]; see `evaluation.metrics.extraction`.
        columns: per name the numbers measured so far, `Values`.
        n_generated: items a text was generated for.
    """

    def __init__(
        self,
        model: nn.Module,
        probes: Probes,
        config: RefinementConfig,
        tokenizer: ExampleTokenizer,
        progress: bool = False,
    ):
        self._model, self._probes, self._config, self._tokenizer = model, probes, config, tokenizer
        self._progress = progress
        branches = [Branches.of([item], detailed=False) for item in probes.whole]
        scores = [of_one[0] for of_one in score(model, branches, name="forget items", progress=progress)]
        self._hits = [one.hits for one in scores]
        self.loss = np.array([one.loss for one in scores])
        self.ma = np.array([one.hits.mean() for one in scores])
        self.columns: dict[str, Values] = {"loss": self.loss, "ma": self.ma}
        self.texts: list[str | None] = [None] * len(probes)

    @property
    def n_generated(self) -> int:
        """Items a text was generated for."""
        return sum(text is not None for text in self.texts)

    def generate(self, positions: Iterable[int]) -> None:
        """Generate for the items at `positions`, and measure what needs only the texts.

        Fills `rouge_l` (recall), `bleu`, `entropy` (bits) and `distinct_1`.
        """
        missing = [i for i in positions if self.texts[i] is None]
        if not missing:
            return
        asked, caps = [self._probes.asked[i] for i in missing], [self._probes.caps[i] for i in missing]
        shared = {"name": "forget items", "progress": self._progress}
        if self._config.iur_beams > 1:
            answers = beam_search(self._model, asked, self._tokenizer, caps, self._config.iur_beams, **shared)
        else:
            known = [self._known(i) for i in missing] if self._probes.reads_everything else ()
            answers = generate(self._model, asked, self._tokenizer, caps, known=known, **shared)
        for i, answer in zip(missing, answers, strict=True):
            self.texts[i] = answer.text
            self._put("entropy", i, token_entropy(answer.ids))
            self._put("distinct_1", i, distinct_1(answer.ids))
        texts, truths = [self.texts[i] for i in missing], [self._probes.references[i] for i in missing]
        for i, text, truth, rouge in zip(missing, texts, truths, rouge_l_recall(truths, texts), strict=True):
            self._put("rouge_l", i, float(rouge))
            self._put("bleu", i, sentence_bleu(text, truth, self._config.iur_smoothing))

    def extract(self, positions: Iterable[int]) -> None:
        """Measure `el` of the items at `positions` that are long enough to have one."""
        not_measured = set(self.missing("el"))
        missing = [i for i in positions if i in not_measured]
        if not missing:
            return
        n = self._config.el_n
        items = [self._probes.continued[i] for i in missing]
        shared = {"name": "forget items", "progress": self._progress}
        # Who divides by what was generated must know how much that is.
        whole = self._config.el_denominator == "generated"
        continued = continue_answers(self._model, items, self._tokenizer, n=n, whole=whole, **shared)
        for i, one in zip(missing, continued, strict=True):
            value = el_n(np.array(one.answer), one, n, start=0, denominator=self._config.el_denominator)
            self._put("el", i, value)

    def mean(self, name: str) -> float | None:
        """Mean of a number over all items that have one; None where one of them was not measured, or none has one."""
        return float(np.nanmean(self.column(name))) if self._having(name) and not self.missing(name) else None

    def at_least(self, name: str) -> float:
        """What the mean of a number is at least that is never negative, in floating point, too; 0 where none has one.

        What was not measured counts as 0. Once all is measured, this is the mean.
        """
        return float(np.nansum(self.column(name))) / max(1, len(self._having(name)))

    def missing(self, name: str) -> list[int]:
        """The items that have a number called `name` and were not measured."""
        return [i for i in self._having(name) if np.isnan(self.column(name)[i])]

    def column(self, name: str) -> Values:
        """The numbers called `name`, NaN where they were not measured."""
        return self.columns.setdefault(name, np.full(len(self.ma), np.nan))

    def put(self, name: str, positions: Sequence[int], values: Sequence[float]) -> None:
        """Add numbers that were measured elsewhere."""
        for i, value in zip(positions, values, strict=True):
            self._put(name, i, value)

    def _having(self, name: str) -> list[int]:
        # EL_n is the only number that an item may not have.
        return [i for i, item in enumerate(self._probes.continued) if name != "el" or item is not None]

    def _put(self, name: str, i: int, value: float) -> None:
        self.column(name)[i] = value

    def _known(self, i: int) -> int:
        """How many tokens of the suffix the model writes itself, from its first on."""
        first_scored = self._probes.whole[i].prompt_length or 1
        hits: Bool[np.ndarray, " t"] = self._hits[i][self._probes.asked[i].prompt_length - first_scored :]
        misses = np.flatnonzero(~hits)
        return int(misses[0]) if len(misses) else len(hits)
