"""The passes that the probes run a model through, each once over all facts, and what they record of every fact."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import numpy as np
from torch import nn

from llm_unlearn.data.tokenization import ExampleTokenizer, TokenizedItem
from llm_unlearn.evaluation.outputs.generation import Answer, generate
from llm_unlearn.evaluation.outputs.sampling import sample_answers
from llm_unlearn.evaluation.outputs.scoring import ItemScores, score
from llm_unlearn.evaluation.outputs.trees import Branches
from llm_unlearn.probes.answers import judge, names_it
from llm_unlearn.probes.facts import Fact
from llm_unlearn.probes.measurement import FactMeasurement, Said
from llm_unlearn.probes.questions import Question, options_of, questions_of, wrong_objects
from llm_unlearn.probes.settings import ProbeSettings
from llm_unlearn.probes.statements import WORDS, example, statement


class Passes:
    """All that is asked about the facts, tokenised once for any number of models.

    Args:
        facts: the facts.
        tokenizer: of the models.
        settings: of the probe.

    Attributes:
        wrong: wrong objects of each fact.

    Raises:
        ValueError: a prompt leaves no room for an answer within the `max_length` of the tokenizer.
    """

    def __init__(self, facts: Sequence[Fact], tokenizer: ExampleTokenizer, settings: ProbeSettings):
        self.facts = facts
        self.tokenizer = tokenizer
        self.settings = settings
        self.wrong = wrong_objects(facts, settings.wrong_objects, settings.seed)
        self._questions = [questions_of(fact) for fact in facts]
        self._items = [
            [self._item(question.text, question.answer, number) for question in asked]
            for number, asked in enumerate(self._questions)
        ]
        self._choices = [self._choice(number) for number in range(len(facts))]
        # The statement, and its false twin where there is a wrong object.
        self._statements = [
            [true_or_false(tokenizer, statement(fact, name), number) for name in (fact.object, *wrong[:1])]
            for number, (fact, wrong) in enumerate(zip(facts, self.wrong, strict=True))
        ]

    def run(self, model: nn.Module, *, token_budget: int | None = None, progress: bool = True) -> list[FactMeasurement]:
        """Measure every fact on a model; the same on every process.

        Args:
            model: a causal language model, wrapped by PEFT or DDP or neither; in eval mode meanwhile.
            token_budget: tokens of a batch; unset, each pass has its own default.
            progress: whether the main process shows progress bars.

        Raises:
            ValueError: the model gives no numbers.
        """
        options = {"token_budget": token_budget, "progress": progress}
        scored = score(model, self._choices, ranks=True, name="answers and options", **options)
        self._require_numbers(scored)
        margins = self._margins(model, options)
        answers = iter(self._generate(model, scored, options))
        samples = self._sample(model, options)
        measured = []
        for number, fact in enumerate(self.facts):
            asked, wrong = self._questions[number], self.wrong[number]
            said = [self._judged(fact, question, next(answers)) for question in asked]
            texts = samples[number] if samples else None
            measured.append(
                FactMeasurement(
                    id=fact.id,
                    p1=float(np.exp(-scored[number][0].loss)),
                    answer_tokens=len(scored[number][0].logprobs),
                    p2_margin=margins[number][0],
                    p2_twin_margin=margins[number][1] if wrong else None,
                    twin=wrong[0] if wrong else None,
                    # Behind the answer itself stands the bare object, where the answer does not hold it.
                    p3_rank=_rank(scored[number][-1 - len(wrong) :]) if wrong else None,
                    p3_options=1 + len(wrong) if wrong else None,
                    p4_rank=int(scored[number][0].ranks[0]),
                    said=tuple(said),
                    samples=None if texts is None else tuple(texts),
                    leaks=None if texts is None else sum(names_it(asked[0].names, t, fact.question) for t in texts),
                )
            )
        return measured

    def _choice(self, number: int) -> Branches:
        """The true answer and, where there are wrong objects, the options besides it, as one tree."""
        fact, wrong = self.facts[number], self.wrong[number]
        others = [text for text in options_of(fact, wrong) if text != fact.answer] if wrong else []
        items = [self._items[number][0], *(self._item(fact.question, text, number) for text in others)]
        return Branches.of(items, detailed=False)

    def _item(self, question: str, answer: str, number: int) -> TokenizedItem:
        return self.tokenizer({"question": question, "answer": answer}, number)

    def _require_numbers(self, scored: Sequence[Sequence[ItemScores]]) -> None:
        for fact, answers in zip(self.facts, scored, strict=True):
            if any(np.isnan(one.logprobs).any() for one in answers):
                raise ValueError(
                    f"The model gives no probability (NaN) to an answer of fact {fact.id!r}: its weights are broken, "
                    "or its precision is too low; load it in float32 (`--dtype float32`), or train it anew."
                )

    def _margins(self, model: nn.Module, options: dict[str, Any]) -> list[list[float | None]]:
        """Per fact the margin of its statement and, where there is one, of its twin."""
        asked = [branches for of_fact in self._statements for branches in of_fact if branches is not None]
        scored = iter(score(model, asked, name="statements", **options))
        return [[None if one is None else _margin(next(scored)) for one in of_fact] for of_fact in self._statements]

    def _generate(
        self, model: nn.Module, scored: Sequence[Sequence[ItemScores]], options: dict[str, Any]
    ) -> list[Answer]:
        items = [item for of_fact in self._items for item in of_fact]
        caps = [self.settings.max_new_tokens] * len(items)
        # What the model writes itself at the start of the true answer, the scores have told already.
        known = [
            _hits_at_start(answers[0].hits) if place == 0 else 0
            for answers, of_fact in zip(scored, self._items, strict=True)
            for place in range(len(of_fact))
        ]
        return generate(model, items, self.tokenizer, caps, known=known, name="questions", **options)

    def _sample(self, model: nn.Module, options: dict[str, Any]) -> list[list[str]] | None:
        if not self.settings.leak_samples:
            return None
        return sample_answers(
            model,
            [items[0] for items in self._items],
            self.tokenizer,
            self.settings.leak_samples,
            seed=self.settings.seed,
            max_new_tokens=self.settings.max_new_tokens,
            name="questions",
            **options,
        )

    def _judged(self, fact: Fact, question: Question, answer: Answer) -> Said:
        by_answer = self.settings.reference == "answer" and question.kind in ("direct", "paraphrase")
        return judge(question.kind, question.text, answer.text, question.names, (fact.answer,) if by_answer else None)


def true_or_false(tokenizer: ExampleTokenizer, text: str, index: int) -> Branches | None:
    """A statement behind the solved examples, with "True" and "False" as its two answers.

    What both answers end with (the end token) is left out: it says nothing about the choice. None for a tokenizer that
    writes one of them as a part of the other, such as both as an unknown word.

    Args:
        tokenizer: of the model.
        text: the statement.
        index: number of its fact, for messages.

    Raises:
        ValueError: the examples leave no room for an answer within `max_length`.
    """
    chat = bool(tokenizer.tokenizer.chat_template)
    items = [tokenizer(example(text, word, chat), index) for word in WORDS]
    true, false = (item.answer_ids for item in items)
    backwards = zip(reversed(true), reversed(false), strict=False)
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], backwards))
    answers = [ids[: len(ids) - shared] for ids in (true, false)]
    return Branches(items[0].prompt_ids, answers, detailed=False) if all(answers) else None


def _margin(scores: Sequence[ItemScores]) -> float:
    true, false = (float(one.logprobs.sum(dtype=np.float64)) for one in scores)
    return true - false


def _rank(scores: Sequence[ItemScores]) -> int:
    true, *wrong = (one.loss for one in scores)
    return 1 + sum(loss <= true for loss in wrong)


def _hits_at_start(hits: np.ndarray) -> int:
    misses = np.flatnonzero(~hits)
    return int(misses[0]) if len(misses) else len(hits)
