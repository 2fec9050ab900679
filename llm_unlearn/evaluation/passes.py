"""The passes that an evaluation runs a model through, each once over all sets, and what they record of every row."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from accelerate.utils import extract_model_from_parallel
from torch import nn

from llm_unlearn.data.tokenization import ExampleTokenizer, TokenizedItem
from llm_unlearn.evaluation.metrics.extraction import el_n
from llm_unlearn.evaluation.outputs.continuations import continue_answers
from llm_unlearn.evaluation.outputs.generation import generate
from llm_unlearn.evaluation.outputs.gradients import UnknownGradient, gradient_norms
from llm_unlearn.evaluation.outputs.scoring import Branches, ItemScores, score
from llm_unlearn.evaluation.sets import EvalSet

Records = dict[str, list]
"""Of one set, per kind of record (see `metrics.items`) one entry per row, None where it was not made."""

_EL_N = 10
_MEMBERS = ("forget", "holdout")


@dataclass(frozen=True)
class Judge:
    """The model before unlearning, which judges how fluent generated texts are.

    Attributes:
        name: its fingerprint; only texts with the same judge are compared.
        model: gives the model for the time of a `with` block, for example with its adapter switched off.
    """

    name: str
    model: Callable[[], AbstractContextManager[nn.Module]]


def run_passes(
    model: nn.Module,
    tokenizer: ExampleTokenizer,
    sets: Sequence[EvalSet],
    *,
    answered: Mapping[str, Sequence[int]],
    cap: Callable[[TokenizedItem], int],
    full: bool,
    judge: Judge | None,
    progress: bool,
) -> tuple[dict[str, Records], dict[str, str]]:
    """Run everything, and sort what comes out by set; with it the kinds of records this model cannot give, and why.

    Args:
        model: the model.
        tokenizer: the tokenizer the items were made with.
        sets: the sets; all of their answers are scored.
        answered: per set the positions of the rows whose questions are answered.
        cap: an item to the longest answer it gets, in tokens.
        full: whether to run what takes passes of its own: EL_10, gradient norms, divergence and fluency.
        judge: who judges the generated texts of the forget set; None for nobody.
        progress: whether the main process shows progress bars.
    """
    records = {eval_set.name: _given(eval_set) for eval_set in sets}
    questions = {eval_set.name: eval_set.questions() for eval_set in sets}
    scored = iter(
        score(
            model,
            [question for of_set in questions.values() for question in of_set],
            unigram=_unigram(model, sets) if full else None,
            progress=progress,
        )
    )
    for eval_set in sets:
        records[eval_set.name] |= _scored(eval_set, [next(scored) for _ in eval_set.rows])
    _generate(model, tokenizer, sets, answered, cap, records, progress)
    if not full:
        return records, {}
    reasons = {}
    if "forget" in records:
        forget = next(eval_set for eval_set in sets if eval_set.name == "forget")
        records["forget"]["el"] = _extraction_likelihoods(model, tokenizer, forget.items, progress)
    if all(name in records for name in _MEMBERS):
        members = [question for name in _MEMBERS for question in questions[name]]
        try:
            norms = iter(gradient_norms(model, members, progress=progress))
            for name in _MEMBERS:
                records[name]["gradnorm"] = [next(norms) for _ in questions[name]]
        except UnknownGradient as error:
            # Nothing else depends on it.
            reasons["gradnorm"] = error.reason
    if judge and "forget" in records:
        records["forget"]["text_nll"] = _judged(judge, tokenizer, records["forget"]["texts"], progress)
    return records, reasons


def _given(eval_set: EvalSet) -> Records:
    return {
        "answers": [row["answer"] for row in eval_set.rows],
        "values": [None if row.get("value") in (None, "") else str(row["value"]) for row in eval_set.rows],
        **{kind: [None] * len(eval_set.rows) for kind in ("texts", "ended", "el", "gradnorm", "text_nll")},
    }


def _scored(eval_set: EvalSet, scored: list[list[ItemScores]]) -> Records:
    """The records of the scores of a set's answers, which are in the order of `EvalSet.questions`."""
    records: Records = {
        kind: [getattr(scores[0], kind) for scores in scored]
        for kind in ("loss", "logprobs", "hits", "mean", "std", "js")
    }
    records["js"] = [None if js is None else float(js.mean(dtype=np.float64)) for js in records["js"]]
    records["paraphrase_loss"] = [
        scores[1].loss if paraphrase else None for scores, paraphrase in zip(scored, eval_set.paraphrases, strict=True)
    ]
    records["wrong_losses"] = [
        np.array([answer.loss for answer in scores[len(scores) - len(wrong) :]]) if wrong else None
        for scores, wrong in zip(scored, eval_set.wrong, strict=True)
    ]
    return records


def _generate(
    model: nn.Module,
    tokenizer: ExampleTokenizer,
    sets: Sequence[EvalSet],
    answered: Mapping[str, Sequence[int]],
    cap: Callable[[TokenizedItem], int],
    records: dict[str, Records],
    progress: bool,
) -> None:
    asked = [(eval_set, position) for eval_set in sets for position in answered[eval_set.name]]
    if not asked:
        return
    items = [eval_set.items[position] for eval_set, position in asked]
    caps = [cap(item) for item in items]
    # What the model writes itself at the start of the true answer, the scores have told already.
    known = [_hits_at_start(records[eval_set.name]["hits"][position]) for eval_set, position in asked]
    answers = generate(model, items, tokenizer, caps, known=known, name="questions", progress=progress)
    for (eval_set, position), answer in zip(asked, answers, strict=True):
        records[eval_set.name]["texts"][position] = answer.text
        records[eval_set.name]["ended"][position] = answer.ended


def _hits_at_start(hits: np.ndarray) -> int:
    misses = np.flatnonzero(~hits)
    return int(misses[0]) if len(misses) else len(hits)


def _extraction_likelihoods(
    model: nn.Module, tokenizer: ExampleTokenizer, items: Sequence[TokenizedItem], progress: bool
) -> list[float | None]:
    continued = continue_answers(model, items, tokenizer, n=_EL_N, whole=False, name="answers", progress=progress)
    # An answer of fewer than n tokens has no n-gram that could be extracted.
    return [el_n(np.array(one.answer), one, _EL_N, start=0) if len(one) else None for one in continued]


def _judged(
    judge: Judge, tokenizer: ExampleTokenizer, texts: Sequence[str | None], progress: bool
) -> list[float | None]:
    """How likely the judge finds each text, read as plain text: fluent, whatever it says. None for an empty one."""
    items = {position: tokenizer({"text": text}, position) for position, text in enumerate(texts) if text}
    # Of a text without a token only its end is left, which nothing predicts.
    branches = {
        position: Branches.of([item], detailed=False) for position, item in items.items() if len(item.input_ids) > 1
    }
    with judge.model() as model:
        scored = score(model, list(branches.values()), name="texts", progress=progress)
    losses = dict(zip(branches, (scores[0].loss for scores in scored), strict=True))
    return [losses.get(position) for position in range(len(texts))]


def _unigram(model: nn.Module, sets: Sequence[EvalSet]) -> torch.Tensor:
    """Token frequencies over all true answers, plus one: a teacher that knows the language, not the facts."""
    counts = torch.ones(extract_model_from_parallel(model).get_output_embeddings().weight.shape[0])
    ids = [token for eval_set in sets for item in eval_set.items for token in item.answer_ids]
    counts += torch.bincount(torch.tensor(ids), minlength=len(counts))
    return counts / counts.sum()
