"""Answers to one question as a tree of tokens, so that what they share is read once.

The question is the trunk. The answers (the true one, its paraphrase, the wrong ones) grow out of it and part where they
differ: wrong answers are often the paraphrase with one value exchanged. On TOFU forget10 the trees have 45 % of the
tokens of one sequence per answer. A model reads a tree as one sequence, given a mask by which a token sees its
ancestors only, and positions that count its ancestors.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from llm_unlearn.data.tokenization import TokenizedItem


@dataclass(frozen=True, eq=False)
class Branches:
    """Answers to one prompt, to be scored together.

    Attributes:
        prompt: what comes before every answer, at least one token: something must predict the first.
        answers: token ids of each answer, end token included; none is empty.
        detailed: whether the first answer, the true one, gets mean, deviation and divergence too.
    """

    prompt: list[int]
    answers: list[list[int]]
    detailed: bool = True

    @classmethod
    def of(cls, items: Sequence[TokenizedItem], detailed: bool = True) -> "Branches":
        """The answers of items that share their prompt. Plain text has none: its first token serves as one."""
        at = max(items[0].prompt_length, 1)
        return cls(items[0].input_ids[:at], [item.input_ids[at:] for item in items], detailed)

    def apart(self) -> list["Branches"]:
        """One sequence per answer."""
        return [Branches(self.prompt, [answer], self.detailed and i == 0) for i, answer in enumerate(self.answers)]

    @property
    def n_tokens(self) -> int:
        """Tokens the model reads; the last of an answer predicts nothing more and is left out."""
        return len(self.tree.tokens)

    @cached_property
    def tree(self) -> "Tree":
        """The answers as a tree."""
        return Tree.of(self.prompt, self.answers)


@dataclass(frozen=True, eq=False)
class Tree:
    """A prompt and its answers as one sequence in which parents come before children.

    Attributes:
        tokens: the sequence.
        parents: the place of each token's parent; -1 for the first.
        depths: the number of each token's ancestors.
        paths: per answer, for each of its tokens, the place whose logits predict it.
    """

    tokens: list[int]
    parents: list[int]
    depths: list[int]
    paths: list[list[int]]

    @classmethod
    def of(cls, prompt: list[int], answers: list[list[int]]) -> "Tree":
        """Merge what the answers share from their beginning."""
        tokens, start = list(prompt), len(prompt)
        parents, depths = list(range(-1, start - 1)), list(range(start))
        children: dict[tuple[int, int], int] = {}
        paths = []
        for answer in answers:
            at, path = start - 1, [start - 1]
            for token in answer[:-1]:
                if (at, token) not in children:
                    children[at, token] = len(tokens)
                    tokens.append(token)
                    parents.append(at)
                    depths.append(depths[at] + 1)
                at = children[at, token]
                path.append(at)
            paths.append(path)
        return cls(tokens, parents, depths, paths)

    def sees(self) -> Bool[np.ndarray, "tokens tokens"]:
        """Whether a token (row) sees another (column): its ancestors and itself."""
        sees = np.zeros((len(self.tokens), len(self.tokens)), dtype=bool)
        for place, parent in enumerate(self.parents):
            if parent >= 0:
                sees[place] = sees[parent]
            sees[place, place] = True
        return sees


@dataclass
class Batch:
    """Trees as tensors, ``(batch, tokens)`` unless said otherwise, without the first `skip` tokens of each.

    `predicts` marks the positions whose logits are wanted; `detailed` those whose distribution is. `sources` and
    `targets` hold, answer after answer, which of the marked positions predicts a token, and the token; `lengths` the
    tokens of each answer.
    """

    input_ids: Int[Tensor, "batch tokens"]
    position_ids: Int[Tensor, "batch tokens"]
    predicts: Bool[Tensor, "batch tokens"]
    detailed: Bool[Tensor, "batch tokens"]
    sees: Bool[Tensor, "batch tokens seen"]
    sources: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, units: Sequence[Branches], skip: int = 0) -> "Batch":
        """Pad the trees on the right. `skip` must leave the last token of every prompt."""
        longest = max(unit.n_tokens for unit in units)
        shape = (len(units), longest - skip)
        batch = cls(
            torch.zeros(shape, dtype=torch.long),
            torch.zeros(shape, dtype=torch.long),
            torch.zeros(shape, dtype=torch.bool),
            torch.zeros(shape, dtype=torch.bool),
            # Padding sees itself: a row of attention that sees nothing is not a number.
            torch.eye(longest, dtype=torch.bool)[skip:].repeat(len(units), 1, 1),
        )
        marked = 0
        for row, unit in enumerate(units):
            tree, n = unit.tree, unit.n_tokens
            batch.input_ids[row, : n - skip] = torch.tensor(tree.tokens[skip:])
            batch.position_ids[row, : n - skip] = torch.tensor(tree.depths[skip:])
            batch.sees[row, : n - skip, :n] = torch.from_numpy(tree.sees()[skip:])
            first = len(unit.prompt) - 1
            batch.predicts[row, first - skip : n - skip] = True
            if unit.detailed:
                batch.detailed[row, torch.tensor(tree.paths[0]) - skip] = True
            for answer, path in zip(unit.answers, tree.paths, strict=True):
                batch.sources += [marked + place - first for place in path]
                batch.targets += answer
                batch.lengths.append(len(answer))
            marked += n - first
        return batch

    def attention_mask(self, dtype: torch.dtype) -> Float[Tensor, "batch 1 tokens seen"]:
        """Added to attention scores: 0 where a position may look, else -max."""
        return torch.zeros(self.sees.shape, dtype=dtype).masked_fill_(~self.sees, torch.finfo(dtype).min)[:, None]


def common_prefix(questions: Sequence[Branches]) -> list[int]:
    """What all prompts begin with, such as a system message; at least the last token of each prompt is left out."""
    prompts = [question.prompt[:-1] for question in questions]
    return [column[0] for column in takewhile(lambda column: len(set(column)) == 1, zip(*prompts, strict=False))]
