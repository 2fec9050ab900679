"""The generation pass: what a model answers by itself, greedily."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from accelerate.utils import extract_model_from_parallel
from torch import nn

from llm_unlearn.data.tokenization import ExampleTokenizer, TokenizedItem
from llm_unlearn.evaluation.outputs.decoding import decode, end_ids_of, read_prompts
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
    token_budget: int = 16384,
    name: str = "items",
    progress: bool = True,
) -> list[Answer]:
    """Answer the prompts of `items` greedily; a text does not depend on what else is in its batch.

    Sampling, beams and penalties that a model's own generation config asks for are left out: what is measured is the
    most probable next token. An answer ends at the first end token of the tokenizer, of the model's generation config
    or of the items themselves (chat templates may end a turn with another token than eos).

    Args:
        model: a causal language model, wrapped by PEFT or DDP or neither; in eval mode meanwhile.
        items: tokenised items; only their prompts are read, and the lengths of their answers.
        tokenizer: the tokenizer they were made with.
        caps: per item the longest answer in tokens, the end token included, such as `new_token_cap`.
        token_budget: tokens of a batch, prompts, padding and new tokens together. Defaults to 16384, whose cache takes
            about 2 GB with an 8B model at half precision.
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

    def run(positions: list[int]) -> list[Answer]:
        prompts = [items[position].prompt_ids for position in positions]
        answers = decode(
            unwrapped,
            *read_prompts(unwrapped, prompts, end_ids[0]),
            [caps[position] for position in positions],
            end_ids,
        )
        return [Answer(tokenizer.decode(_until_end(ids, end_ids)), ids[-1] in end_ids) for ids in answers]

    # Rows whose true answers are equally long tend to end together.
    shapes = [(len(item.answer_ids), item.prompt_length + cap) for item, cap in zip(items, caps, strict=True)]
    batches = form_batches(shapes, token_budget)
    # A decoding step costs nearly the same for any number of rows.
    costs = [max(caps[position] for position in batch) for batch in batches]
    with evaluating(unwrapped):
        return run_sharded(run, batches, costs, f"answering {name}", progress)


def new_token_cap(reference_tokens: int, max_new_tokens: int) -> int:
    """``min(max_new_tokens, ceil(1.5 x reference tokens) + 16)``: room to be wordy, none to ramble.

    Much faster than `max_new_tokens` for a model that no longer ends its answers.
    """
    return min(max_new_tokens, math.ceil(1.5 * reference_tokens) + 16)


def _until_end(ids: list[int], end_ids: list[int]) -> list[int]:
    return ids[:-1] if ids[-1] in end_ids else ids
