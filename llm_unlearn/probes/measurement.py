"""What the probes tell about one fact on one model.

Plain data that goes to JSON and comes back equal, so that measurements of a base model can be kept and used again. A
value that was not measured is None, never a number in its place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["direct", "paraphrase", "reverse", "indirect"]


@dataclass(frozen=True)
class Said:
    """What a model answered to one question, greedily; the question is not part of the text.

    Attributes:
        kind: the direct question, a paraphrase, the reverse question (which asks for the subject) or an indirect one.
        question: as asked.
        text: the answer, without special tokens and outer white space.
        recall: ROUGE-L recall of what was asked for, in [0, 1], see `answers.recall_of`.
        alias: whether one of the names of what was asked for stands in the text, see `answers.names_it`.
    """

    kind: Kind
    question: str
    text: str
    recall: float
    alias: bool

    @property
    def score(self) -> float:
        """``max(recall, alias)``, in [0, 1]: a text that says a name is right, however it is worded."""
        return max(self.recall, float(self.alias))


@dataclass(frozen=True)
class FactMeasurement:
    """All probes of one fact on one model.

    Attributes:
        id: of the fact.
        p1: ``exp(-loss)`` of the true answer to the direct question, loss the token mean with the end token; in [0, 1].
        answer_tokens: tokens of the true answer, the end token included.
        p2_margin: ``log p(True) - log p(False)`` after the true statement; above 0 is right. None for a tokenizer that
            does not tell the two words apart.
        p2_twin_margin: the same after the false twin; below 0 is right. None, too, where there is no wrong object.
        twin: the wrong object of the false twin; None where there is none.
        p3_rank: rank of the true answer among the options, by token-mean log-probability; 1 is right. None without
            wrong objects.
        p3_options: number of options, the true one included; None without wrong objects.
        p4_rank: rank of the first token of the true answer among all tokens; 1 where greedy decoding would choose it.
        said: greedy answers: the direct question first, then paraphrases, reverse and indirect questions.
        samples: sampled answers to the direct question; None where none were asked for.
        leaks: how many of the samples hold a name of the object; None where none were asked for.
    """

    id: str
    p1: float
    answer_tokens: int
    p2_margin: float | None
    p2_twin_margin: float | None
    twin: str | None
    p3_rank: int | None
    p3_options: int | None
    p4_rank: int
    said: tuple[Said, ...]
    samples: tuple[str, ...] | None = None
    leaks: int | None = None

    @property
    def g1(self) -> float:
        """Recall of the answer to the direct question, in [0, 1]."""
        return self.said[0].recall

    @property
    def g1_alias(self) -> bool:
        """Whether the answer to the direct question names the object."""
        return self.said[0].alias

    @property
    def g2_mean(self) -> float | None:
        """Mean recall over the paraphrases; None without paraphrases."""
        recalls = [one.recall for one in self.said if one.kind == "paraphrase"]
        return sum(recalls) / len(recalls) if recalls else None

    @property
    def g2_max(self) -> float | None:
        """Largest recall over the paraphrases; None without paraphrases."""
        return max((one.recall for one in self.said if one.kind == "paraphrase"), default=None)

    @property
    def g2_alias(self) -> bool | None:
        """Whether the answer to any paraphrase names the object; None without paraphrases."""
        return max((one.alias for one in self.said if one.kind == "paraphrase"), default=None)

    @property
    def g3_leak(self) -> bool | None:
        """Whether any sampled answer names the object (leak@k, k the number of samples); None without samples."""
        return None if self.leaks is None else self.leaks > 0

    @property
    def g4(self) -> float | None:
        """Largest recall over reverse and indirect questions, the worst case of forgetting; None without them."""
        return max((one.recall for one in self.said if one.kind in ("reverse", "indirect")), default=None)

    @property
    def g4_alias(self) -> bool | None:
        """Whether the answer to any reverse or indirect question names what was asked for; None without them."""
        return max((one.alias for one in self.said if one.kind in ("reverse", "indirect")), default=None)

    @property
    def generation(self) -> float:
        """The generation score: largest `Said.score` over the direct question and its paraphrases, in [0, 1]."""
        return max(one.score for one in self.said if one.kind in ("direct", "paraphrase"))

    def values(self) -> dict[str, float | int | bool | str | None]:
        """The probes by name, in the order of the columns of a table."""
        return {name: getattr(self, name) for name in PROBES}

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> FactMeasurement:
        """Undo `to_dict`, also after JSON has made lists of tuples."""
        samples = record["samples"]
        said = tuple(Said(**one) for one in record["said"])
        return cls(**{**record, "said": said, "samples": None if samples is None else tuple(samples)})


PROBES = (
    "p1",
    "p2_margin",
    "p2_twin_margin",
    "p3_rank",
    "p3_options",
    "p4_rank",
    "g1",
    "g1_alias",
    "g2_mean",
    "g2_max",
    "g2_alias",
    "g3_leak",
    "g4",
    "g4_alias",
    "generation",
)
"""Names of the probes of a fact on one model."""
