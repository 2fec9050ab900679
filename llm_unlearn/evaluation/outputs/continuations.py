"""The continuation pass: how a model goes on, greedily, from every position inside an answer (EL_n reads this).

Generating from every position takes T generations for an answer of T tokens. Here one teacher-forced forward tells the
most probable token ``m_t`` at every position t; where it is the true one, ``f(x_<t) = [x_t] + f(x_<t+1)``, and only
elsewhere the model decodes, from the keys and values that the forward left, cut at t. What is decoded is the share
``1 - MA`` of the plain way's tokens, about; the continuations are the same (Jang et al., arXiv:2210.01504).
"""

from bisect import bisect_left
from collections.abc import Container, Sequence
from dataclasses import dataclass

import torch
from accelerate.utils import extract_model_from_parallel
from torch import nn

from llm_unlearn.data.tokenization import ExampleTokenizer, TokenizedItem
from llm_unlearn.evaluation.outputs.decoding import branch_off, cache_tokens, decode, end_ids_of, read_prompts
from llm_unlearn.evaluation.outputs.scoring import Branches
from llm_unlearn.evaluation.outputs.sharding import evaluating, form_batches, run_sharded

# Each item read gives up to T rows to decode; reading more items at once would only make the logits larger.
_READING_SHARE = 8


@dataclass(frozen=True, eq=False)
class Continuations(Sequence[list[int]]):
    """``f(x_<t)`` for t = 0, 1, ..., T - n of one answer x of T tokens; each is put together when asked for.

    Ids as generated, at most T - t of them, the end token included where one came; cut where that was asked for. Empty
    if T < n.

    Attributes:
        answer: x.
        tails: ``f(x_<t)`` where it does not begin with ``x_t`` or ends there; all others run into one of these.
        count: number of continuations.
    """

    answer: list[int]
    tails: dict[int, list[int]]
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, t: int) -> list[int]:
        if not 0 <= t < self.count:
            raise IndexError(f"continuation {t} of {self.count}")
        places = list(self.tails)
        nearest = bisect_left(places, t)
        if nearest == len(places):
            return self.answer[t:]
        return self.answer[t : places[nearest]] + self.tails[places[nearest]]

    @property
    def n_decoded(self) -> int:
        """Tokens that were decoded for all of them, the known first one of each mismatch included."""
        return sum(len(tail) for t, tail in self.tails.items() if tail[0] != self.answer[t])


def continue_answers(
    model: nn.Module,
    items: Sequence[TokenizedItem],
    tokenizer: ExampleTokenizer,
    *,
    n: int = 10,
    whole: bool = True,
    token_budget: int | None = None,
    name: str = "items",
    progress: bool = True,
) -> list[Continuations]:
    """Continue the answers of `items` greedily from each of their positions.

    Time is linear in the items, and within one in its mismatches. At any time two caches are held, of `token_budget`
    tokens at most each, or of a single sequence that alone exceeds it.

    Args:
        model: a causal language model, wrapped by PEFT or DDP or neither; in eval mode meanwhile.
        items: tokenised items. Of plain text the first token counts as prompt, so that t starts at its second.
        tokenizer: the tokenizer they were made with.
        n: length of the n-grams that will be counted; positions with fewer tokens left are skipped. 10 as in the paper.
        whole: whether each is written to its end. False: only until no n-gram of the answer can come any more, which
            `el_n` does not see as long as it divides by the label; of TOFU's answers this saves a third of the tokens.
        token_budget: tokens of a batch that is decoded, padding and new tokens included. Defaults to what
            `cache_tokens` gives, as in `generate`.
        name: what the progress bar calls the items.
        progress: whether the main process shows a bar.

    Returns:
        Per item its continuations, to be read by `el_n` with ``tokens = answer`` and ``start = 0``; the same on every
        process.

    Raises:
        ValueError: an item has no token that could be continued.
    """
    branches = [Branches.of([item]) for item in items]
    for item, branch in zip(items, branches, strict=True):
        if not branch.answers[0]:
            raise ValueError(f"Row {item.index} of {name} has an empty answer: leave the row out, or answer it.")
    unwrapped = extract_model_from_parallel(model)
    end_ids = end_ids_of(unwrapped, items, tokenizer)
    token_budget = token_budget or cache_tokens(unwrapped)

    def run(positions: list[int]) -> list[Continuations]:
        batch = [branches[position] for position in positions]
        return _continue_batch(unwrapped, batch, n, end_ids, token_budget, whole)

    batches = form_batches([(branch.n_tokens, 0) for branch in branches], token_budget // _READING_SHARE)
    # In the worst case each answer token is a row of the whole length.
    costs = [sum(branches[i].n_tokens * len(branches[i].answers[0]) for i in batch) for batch in batches]
    with evaluating(unwrapped):
        return run_sharded(run, batches, costs, f"continuing {name}", progress)


def _continue_batch(
    model: nn.Module, branches: list[Branches], n: int, end_ids: list[int], token_budget: int, whole: bool
) -> list[Continuations]:
    answers = [branch.answers[0] for branch in branches]
    read = [branch.prompt + answer[:-1] for branch, answer in zip(branches, answers, strict=True)]
    cache, mask, best = read_prompts(model, read, end_ids[0], last=[len(answer) for answer in answers])
    tails: list[dict[int, list[int]]] = []
    starts: list[tuple[int, int]] = []
    for row, (answer, tokens) in enumerate(zip(answers, best.split([len(a) for a in answers]), strict=True)):
        tails.append(_first_tokens(answer, tokens.tolist(), n, end_ids))
        starts += [(row, t) for t, (token,) in tails[row].items() if token != answer[t]]
    runs = [{tuple(a[i : i + k]) for k in range(1, n + 1) for i in range(len(a) - k + 1)} for a in answers]
    shapes = [(len(answers[row]) - t, len(branches[row].prompt) + t) for row, t in starts]
    for group in form_batches(shapes, token_budget):
        caps, lengths = zip(*(shapes[i] for i in group), strict=True)
        places = [starts[i] for i in group]
        rows = torch.tensor([row for row, _ in places], device=mask.device)
        tokens = torch.tensor([tails[row][t][0] for row, t in places], device=mask.device)
        branched = branch_off(cache, mask, rows, torch.tensor(lengths, device=mask.device))

        def enough(i: int, ids: list[int], places: list[tuple[int, int]] = places) -> bool:
            row, t = places[i]
            return not whole and no_more_to_find(ids, len(answers[row]) - t - n, runs[row])

        decoded = decode(model, *branched, tokens, caps, end_ids, enough)
        for (row, t), ids in zip(places, decoded, strict=True):
            tails[row][t] = ids
    counts = [max(0, len(answer) - n + 1) for answer in answers]
    return [Continuations(*parts) for parts in zip(answers, tails, counts, strict=True)]


def no_more_to_find(ids: Sequence[int], last: int, runs: Container[tuple[int, ...]]) -> bool:
    """Whether no n-gram of an answer can come any more in a continuation that begins with `ids`.

    N-grams that are not complete when the last one has begun all contain what was written from there on.

    Args:
        ids: what was written.
        last: where the last n-gram of the continuation begins.
        runs: all runs of the answer of 1 to n tokens.
    """
    return len(ids) > last and tuple(ids[last:]) not in runs


def _first_tokens(answer: list[int], best: list[int], n: int, end_ids: list[int]) -> dict[int, list[int]]:
    """Where continuations leave the answer or end, and by which token; up to where that of position T - n does."""
    firsts: dict[int, list[int]] = {}
    for t, token in enumerate(best) if len(answer) >= n else ():
        if token != answer[t] or token in end_ids:
            firsts[t] = [token]
            if t >= len(answer) - n:
                break
    return firsts
