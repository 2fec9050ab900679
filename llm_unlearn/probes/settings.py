"""What a frequency probe can be told, and where each default comes from."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

Reference = Literal["object", "answer"]


@dataclass(frozen=True)
class ProbeSettings:
    """Settings of a `FrequencyProbe`. "Specification" is that of this toolkit, which follows arXiv:2504.05058.

    Attributes:
        buckets (`"quantiles"`, `"decades"` or `tuple[float, ...]`, *optional*, defaults to `"quantiles"`, the paper's):
            How facts are put together by count: at the quantiles .33 and .67, by powers of ten, or at these edges,
            ascending and above 0 (a bucket begins at its edge). A count of 0 always has a bucket of its own.
        equal_size (`bool`, *optional*, defaults to `False`, specification):
            Whether buckets are cut to the size of the smallest, at random; that of count 0 is left alone.
        max_new_tokens (`int`, *optional*, defaults to 50, the paper's):
            Longest generated answer in tokens.
        leak_samples (`int`, *optional*, defaults to 8, specification):
            Answers sampled per fact for leak@k, at temperature 1; 0 for none.
        wrong_objects (`int`, *optional*, defaults to 9, ours: with the true one ten options):
            Most wrong options of the multiple choice.
        reference (`"object"` or `"answer"`, *optional*, defaults to `"object"`):
            What ROUGE-L recall asks of an answer: a name of the object, or the whole true answer. The paper's answers
            are objects; of an answer like "He was born in Oslo." three words would be recalled with any city.
        known_recall (`float`, *optional*, defaults to 0.5, specification):
            Recall at a paraphrase from which on the base model counts as knowing the fact, in (0, 1].
        gone_recall (`float`, *optional*, defaults to 0.5, specification):
            Generation score below which generated answers say that a fact is gone, in (0, 1].
        gone_p1 (`float`, *optional*, defaults to 0.1, specification):
            Share of the base's P1 below which probabilities say so, in (0, 1).
        gate (`float`, *optional*, defaults to 0.75, specification):
            Accuracy that the base model needs for P2 and P3 to count, in (.5, 1]; chance is .5.
        resamples (`int`, *optional*, defaults to 1000, as everywhere in the toolkit):
            Bootstrap resamples behind each interval, at least 100.
        permutations (`int`, *optional*, defaults to 9999, ours: p-values from 1e-4 up):
            Permutations behind each p-value, at least 99.
        seed (`int`, *optional*, defaults to 0):
            Seed of wrong objects, samples, subsampling, resamples and permutations, 0 or more.

    Raises:
        ValueError: a value is out of its range.
    """

    buckets: Literal["quantiles", "decades"] | tuple[float, ...] = "quantiles"
    equal_size: bool = False
    max_new_tokens: int = 50
    leak_samples: int = 8
    wrong_objects: int = 9
    reference: Reference = "object"
    known_recall: float = 0.5
    gone_recall: float = 0.5
    gone_p1: float = 0.1
    gate: float = 0.75
    resamples: int = 1000
    permutations: int = 9999
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.buckets, str):
            if self.buckets not in ("quantiles", "decades"):
                raise ValueError(f"`buckets` is {self.buckets!r}: give 'quantiles', 'decades', or edges such as (10,).")
        else:
            _check_edges(self.buckets)
        if self.reference not in get_args(Reference):
            raise ValueError(f"`reference` is {self.reference!r}: give 'object' or 'answer'.")
        least = {
            "max_new_tokens": 1,
            "leak_samples": 0,
            "wrong_objects": 1,
            "resamples": 100,
            "permutations": 99,
            "seed": 0,
        }
        for name, bound in least.items():
            if not getattr(self, name) >= bound:
                raise ValueError(f"`{name}` is {getattr(self, name)}: give {bound} or more.")
        for name in ("known_recall", "gone_recall"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}: give a number above 0 and at most 1.")
        if not 0 < self.gone_p1 < 1:
            raise ValueError(f"`gone_p1` is {self.gone_p1}: give a number between 0 and 1.")
        if not 0.5 < self.gate <= 1:
            raise ValueError(f"`gate` is {self.gate}: give an accuracy above .5, which is chance, and at most 1.")

    def to_json(self) -> dict[str, Any]:
        """As JSON gives it back."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


def _check_edges(edges: tuple[float, ...]) -> None:
    ascending = all(low < high for low, high in zip(edges, edges[1:], strict=False))
    if not edges or not ascending or not all(0 < edge < math.inf for edge in edges):
        raise ValueError(
            f"The bucket edges are {edges}: give one or more numbers above 0, ascending, such as (10, 100)."
        )
