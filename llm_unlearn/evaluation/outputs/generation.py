"""The generation pass: what a model answers by itself, greedily."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from accelerate.utils import extract_model_from_parallel
from torch import nn

from llm_unlearn.data.tokenization import ExampleTokenizer, TokenizedItem
from llm_unlearn.evaluation.outputs.decoding import cache_tokens, decode, end_ids_of, read_prompts
from llm_unlearn.evaluation.outputs.sharding import evaluating, form_batches, run_sharded


@dataclass(frozen=True)
class Answer:
    """What a model answered.

    Attributes:
        text: without prompt, special tokens and outer white space.
        ended: whether it stopped by itself, rather than being cut.
    """

    text: str
    ended: bool


def generate(
    model: nn.Module,
    items: Sequence[TokenizedItem],
    tokenizer: ExampleTokenizer,
    caps: Sequence[int],
    *,
    known: Sequence[int] = (),
    token_budget: int | None = None,
    name: str = "items",
    progress: bool = True,
) -> list[Answer]:
    """Answer the prompts of `items` greedily; a text does not depend on what else is in its batch.

    Sampling, beams and penalties that a model's own generation config asks for are left out: what is measured is the
    most probable next token. An answer ends at the first end token of the tokenizer, of the model's generation config
    or of the items themselves (chat templates may end a turn with another token than eos).

    Args:
        model: a causal language model, wrapped by PEFT or DDP or neither; in eval mode meanwhile.
        items: tokenised items; of their answers only what is `known` is read.
        tokenizer: the tokenizer they were made with.
        caps: per item the longest answer in tokens, the end token included, such as `new_token_cap`.
        known: per item how many tokens of its true answer the model is known to write itself, from the first on: the
            hits in a row at the start of a teacher-forced pass. They are read rather than written, many at once. Unset,
            none.
        token_budget: tokens of a batch, prompts, padding and new tokens together. Defaults to what `cache_tokens`
            gives.
        name: what the progress bar calls the items.
        progress: whether the main process shows a bar.

    Returns:
        One answer per item, in the order of `items`, the same on every process.

    Raises:
        ValueError: an item has no prompt.
    """
    for item in items:
        if item.prompt_length == 0:
            raise ValueError(
                f"Row {item.index} of {name} is plain text without a prompt to answer: give it a question, or only "
                "score it with `--eval train`."
            )
    unwrapped = extract_model_from_parallel(model)
    end_ids = end_ids_of(unwrapped, items, tokenizer)

    starts = [
        _until_end(item.answer_ids[: min(count, cap)], end_ids)
        for item, count, cap in zip(items, known or [0] * len(items), caps, strict=True)
    ]
    # A row that has ended, or has all it may have, needs no model.
    asked = [i for i, start in enumerate(starts) if len(start) < caps[i] and not (start and start[-1] in end_ids)]

    def run(batch: list[int]) -> list[list[int]]:
        rows = [asked[position] for position in batch]
        read = read_prompts(unwrapped, [items[row].prompt_ids + starts[row] for row in rows], end_ids[0])
        return decode(unwrapped, *read, [caps[row] - len(starts[row]) for row in rows], end_ids)

    # Rows whose true answers go on for equally long tend to end together.
    asked.sort(key=lambda i: len(items[i].answer_ids) - len(starts[i]), reverse=True)
    shapes = [(items[i].prompt_length + len(starts[i]), caps[i] - len(starts[i])) for i in asked]
    batches = form_batches(shapes, token_budget or cache_tokens(unwrapped), in_order=True)
    # A decoding step costs nearly the same for any number of rows.
    costs = [max(caps[asked[position]] - len(starts[asked[position]]) for position in batch) for batch in batches]
    with evaluating(unwrapped):
        written = run_sharded(run, batches, costs, f"answering {name}", progress)
    ids_of = {i: starts[i] + ids for i, ids in zip(asked, written, strict=True)}
    answers = [ids_of.get(i, start) for i, start in enumerate(starts)]
    return [Answer(tokenizer.decode(ids[:-1] if ids[-1] in end_ids else ids), ids[-1] in end_ids) for ids in answers]


def new_token_cap(reference_tokens: int, max_new_tokens: int) -> int:
    """``min(max_new_tokens, ceil(1.5 x reference tokens) + 16)``: room to be wordy, none to ramble.

    Much faster than `max_new_tokens` for a model that no longer ends its answers.
    """
    return min(max_new_tokens, math.ceil(1.5 * reference_tokens) + 16)


def _until_end(ids: list[int], end_ids: list[int]) -> list[int]:
    """Up to the first end token, that included."""
    ends = [place for place, token in enumerate(ids) if token in end_ids]
    return ids[: ends[0] + 1] if ends else ids
