"""What tells that an item is forgotten. Each judge asks a look for no more than it needs to decide.

`forgotten(look, doubtful)` returns one verdict per item; items outside `doubtful` keep the verdict they had.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from llm_unlearn.evaluation.metrics.similarity import bert_score
from llm_unlearn.evaluation.outputs.embeddings import TextEncoder
from llm_unlearn.refinement.config import RefinementConfig
from llm_unlearn.refinement.look import Look

# Items in the first pass of EL_n.
_FEW = 4


@dataclass(frozen=True)
class Thresholds:
    """Where forgetting begins; None where it was not given and could not be measured.

    Attributes:
        ma, el: mean MA and mean EL_n at which the run stops; those of one item at which the judge "memory" calls it
            forgotten.
        rouge_l: ROUGE-L recall for the same judge.
        source: where the numbers that were not given come from.
    """

    ma: float | None = None
    el: float | None = None
    rouge_l: float | None = None
    source: str = "given"


class Judge(Protocol):
    """Decides which items are forgotten."""

    def forgotten(self, look: Look, doubtful: Sequence[int]) -> set[int]:
        """Those of the items at `doubtful` that are forgotten."""


@dataclass(frozen=True)
class NoJudge:
    """Calls no item forgotten."""

    def forgotten(self, look: Look, doubtful: Sequence[int]) -> set[int]:
        """None."""
        return set()


@dataclass(frozen=True)
class MemoryJudge:
    """An item is forgotten if MA, ROUGE-L recall and EL_n are all at most their thresholds.

    The cheapest is asked first, and the next only for items that passed it: no text is generated for an item whose
    teacher-forced MA is still too high, and none continued whose text still says too much. An item that is too short
    for EL_n is judged by the other two.
    """

    thresholds: Thresholds

    def forgotten(self, look: Look, doubtful: Sequence[int]) -> set[int]:
        """See the class."""
        limits = self.thresholds
        left = [i for i in doubtful if look.ma[i] <= limits.ma]
        look.generate(left)
        left = [i for i in left if look.column("rouge_l")[i] <= limits.rouge_l]
        look.extract(left)
        too_much = look.column("el") > limits.el  # False for NaN
        return {i for i in left if not too_much[i]}


@dataclass(frozen=True)
class TextJudge:
    """ICU's rule: an item is forgotten if BERTScore F1 < a or BLEU < b (or both, under the rule "and").

    Attributes:
        config: a (`iur_bert_f1`), b (`iur_bleu`) and the rule.
        references: the true texts.
        encoder: gives the vectors BERTScore compares.
        encoding: the context in which `encoder` may be used, such as with an adapter switched off.
        bert_f1: a.
        lazy: whether F1 is left out for items that BLEU alone decides.
    """

    config: RefinementConfig
    references: Sequence[str]
    encoder: TextEncoder
    encoding: Callable[[], AbstractContextManager]
    bert_f1: float
    lazy: bool

    def forgotten(self, look: Look, doubtful: Sequence[int]) -> set[int]:
        """See the class."""
        look.generate(doubtful)
        low_bleu = {i for i in doubtful if look.column("bleu")[i] < self.config.iur_bleu}
        either = self.config.iur_rule == "or"
        # "or" is decided where BLEU is low, "and" where it is not.
        open_ones = [i for i in doubtful if (i in low_bleu) != either] if self.lazy else list(doubtful)
        self._compare(look, open_ones)
        low_f1 = {i for i in open_ones if look.column("bert_f1")[i] < self.bert_f1}
        return low_bleu | low_f1 if either else low_bleu & low_f1

    def _compare(self, look: Look, positions: Iterable[int]) -> None:
        positions = list(positions)
        if not positions:
            return
        with self.encoding():
            vectors = self.encoder.embed([look.texts[i] for i in positions] + [self.references[i] for i in positions])
        pairs = zip(vectors[: len(positions)], vectors[len(positions) :], strict=True)
        scores = [bert_score(candidate, truth) for candidate, truth in pairs]
        for name, values in zip(("bert_precision", "bert_recall", "bert_f1"), zip(*scores, strict=True), strict=True):
            look.put(name, positions, values)


def stop_reached(look: Look, thresholds: Thresholds, rule: str) -> bool:
    """Whether mean MA and mean EL_n are at most their thresholds: both under the rule "and", one under "or".

    MA costs nothing, so EL_n, whose passes are the dearest, is measured only where MA has not decided, and then of no
    more items than decide it. The released code has "<" for "<="; a threshold of 0, which a retain model's EL_n may be,
    could then never be reached.
    """
    limits = {name: limit for name, limit in (("ma", thresholds.ma), ("el", thresholds.el)) if limit is not None}
    for name, limit in limits.items():
        passed = _el_at_most(look, limit) if name == "el" else look.mean(name) <= limit
        if passed == (rule == "or"):
            return passed
    return bool(limits) and rule == "and"


def _el_at_most(look: Look, limit: float) -> bool:
    """Whether mean EL_n is at most `limit`, as if all items were measured; False where none has an EL_n.

    EL_n is never negative: what is measured already may show that the mean is above the limit, whatever the others are.
    Items with the highest MA come first, and each pass takes as many as are measured, so that a mean which is not above
    the limit is proven in few passes.
    """
    while look.at_least("el") <= limit:
        left = sorted(look.missing("el"), key=lambda i: -look.ma[i])
        if not left:
            return look.mean("el") is not None
        n_measured = np.isfinite(look.column("el")).sum()
        look.extract(left[: max(_FEW, n_measured)])
    return False
