"""A set of an evaluation: its rows, and every answer to them that is scored, tokenised once."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from llm_unlearn.data.sources import as_question_answer, form_of, with_answer
from llm_unlearn.data.tokenization import ExampleTokenizer, TokenizedItem
from llm_unlearn.evaluation.metrics.items import SETS
from llm_unlearn.evaluation.outputs.scoring import Branches
from llm_unlearn.suggest import unknown


@dataclass(frozen=True, eq=False)
class EvalSet:
    """One set of an evaluation.

    Attributes:
        name: `forget`, `retain`, `real_authors`, `world_facts` or `holdout`.
        rows: dicts with `question` and `answer`, and `value` where the answer's one fact is known. Where the question
            is empty, as in plain text, no answer is generated.
        items: the true answers tokenised, one per row.
        paraphrases: the paraphrased answer as a list of one; empty for a row without one.
        wrong: the wrong answers; empty for a row without any.
        clusters: which cluster each row belongs to, such as its author, for intervals; None where rows stand alone.

    Raises:
        ValueError: the name is unknown, the set is empty, or rows and items differ in number.
    """

    name: str
    rows: Sequence[Mapping[str, Any]]
    items: Sequence[TokenizedItem]
    paraphrases: Sequence[Sequence[TokenizedItem]]
    wrong: Sequence[Sequence[TokenizedItem]]
    clusters: Sequence[Any] | None = None

    def __post_init__(self):
        if self.name not in SETS:
            raise ValueError(unknown("evaluation set", self.name, SETS))
        if not len(self.rows):
            raise ValueError(f"The set `{self.name}` is empty: give it rows, or leave it out of the evaluation.")
        counts = {len(self.rows), len(self.items), len(self.paraphrases), len(self.wrong)}
        if len(counts) > 1:
            raise ValueError(
                f"The set `{self.name}` has {len(self.rows)} rows but {len(self.items)} tokenised items, "
                f"{len(self.paraphrases)} paraphrases and {len(self.wrong)} lists of wrong answers: make it with "
                "`EvalSet.of`."
            )

    @classmethod
    def of(
        cls,
        name: str,
        examples: Sequence[Mapping[str, Any]],
        tokenize: ExampleTokenizer,
        clusters: Sequence[Any] | None = None,
    ) -> "EvalSet":
        """Tokenise rows in any form of `data.sources`, with their `paraphrased_answer` and `perturbed_answer`.

        Empty alternatives are left out, as a report's `left_out` counts. Where `clusters` is not given, the column
        `author` serves, if every row has one.
        """
        authors = [example.get("author") for example in examples]
        return cls(
            name,
            [as_question_answer(example) for example in examples],
            tokenize.all(examples),
            [_tokenised(tokenize, i, row, [row.get("paraphrased_answer")])[:1] for i, row in enumerate(examples)],
            [_tokenised(tokenize, i, row, row.get("perturbed_answer") or []) for i, row in enumerate(examples)],
            clusters if clusters is not None else (None if None in authors else authors),
        )

    def questions(self) -> list[Branches]:
        """Per row its answers to be scored: the true one, the paraphrase if there is one, the wrong ones."""
        detailed = self.name in ("forget", "holdout")
        return [
            Branches.of([item, *paraphrase, *wrong], detailed)
            for item, paraphrase, wrong in zip(self.items, self.paraphrases, self.wrong, strict=True)
        ]

    @property
    def curtailed(self) -> dict[str, int]:
        """What is not scored as the rows have it, counted: answers cut at the maximal length, wrong answers dropped."""
        every = [*self.items, *(item for some in (*self.paraphrases, *self.wrong) for item in some)]
        given = sum(len(row.get("perturbed_answer") or []) for row in self.rows)
        counts = {
            "answers cut at `--max_length`": sum(not item.has_end for item in every),
            "empty wrong answers left out": given - sum(map(len, self.wrong)) if any(self.wrong) else 0,
        }
        return {what: count for what, count in counts.items() if count}

    @cached_property
    def digest(self) -> str:
        """Hash of every token id, of where prompts end, and of the texts answers are compared with."""
        digest = hashlib.sha256()
        for row, question in zip(self.rows, self.questions(), strict=True):
            texts = [str(row.get(column)) for column in ("answer", "value")]
            digest.update(json.dumps([question.prompt, question.answers, texts]).encode())
        return digest.hexdigest()[:16]


def _tokenised(
    tokenize: ExampleTokenizer, index: int, example: Mapping[str, Any], answers: Sequence[str | None]
) -> list[TokenizedItem]:
    given = [answer for answer in answers if answer and answer.strip()]
    if form_of(example) == "text":
        return []
    items = [tokenize(with_answer(example, answer), index) for answer in given]
    # Behind an empty prompt nothing predicts the first token of an answer, in which they may differ.
    return [item for item in items if item.prompt_length]
