"""The generation pass: what a model answers by itself, greedily or by beam search."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from accelerate.utils import extract_model_from_parallel
from torch import nn
from transformers import GenerationConfig, PreTrainedModel

from llm_unlearn.data.tokenization import ExampleTokenizer, TokenizedItem
from llm_unlearn.evaluation.outputs.decoding import cache_tokens, decode, end_ids_of, pad_left, read_prompts
from llm_unlearn.evaluation.outputs.sharding import device_of, evaluating, form_batches, run_sharded, without_peft


@dataclass(frozen=True)
class Answer:
    """What a model answered.

    Attributes:
        text: without prompt, special tokens and outer white space.
        ended: whether it stopped by itself, rather than being cut.
        ids: its tokens as generated, the end token included where one came.
    """

    text: str
    ended: bool
    ids: list[int]


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
    require_prompts(items, name)
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
    return [_answer(ids, tokenizer, end_ids) for ids in answers]


def beam_search(
    model: nn.Module,
    items: Sequence[TokenizedItem],
    tokenizer: ExampleTokenizer,
    caps: Sequence[int],
    beams: int,
    *,
    token_budget: int | None = None,
    name: str = "items",
    progress: bool = True,
) -> list[Answer]:
    """Answer the prompts of `items` by the beam search of transformers; up to rounding, as if each were alone.

    The answer is the found one with the highest mean log-probability per token. Nothing of a model's own generation
    config but its end tokens has a say; ends are those of `generate`. Since the cap decides when the search gives up,
    only items of the same cap share a batch: the fewer different caps, the faster.

    Args:
        model: a causal language model, wrapped by PEFT or DDP or neither; in eval mode meanwhile.
        items: tokenised items; of their answers nothing is read.
        tokenizer: the tokenizer they were made with.
        caps: per item the longest answer in tokens, the end token included.
        beams: texts that are followed at the same time; 1 is `generate`, only slower.
        token_budget: tokens of a batch over all beams, prompts, padding and new tokens together. Defaults to what
            `cache_tokens` gives.
        name: what the progress bar calls the items.
        progress: whether the main process shows a bar.

    Returns:
        One answer per item, in the order of `items`, the same on every process.

    Raises:
        ValueError: an item has no prompt.
    """
    require_prompts(items, name)
    unwrapped = extract_model_from_parallel(model)
    bare, device = without_peft(unwrapped), device_of(unwrapped)
    end_ids = end_ids_of(unwrapped, items, tokenizer)

    def run(batch: list[int]) -> list[list[int]]:
        input_ids, mask = pad_left([items[position].prompt_ids for position in batch], end_ids[0])
        config = GenerationConfig(
            max_new_tokens=caps[batch[0]],
            num_beams=beams,
            do_sample=False,
            use_cache=True,
            eos_token_id=end_ids,
            pad_token_id=end_ids[0],
        )
        whole = bare.generate(input_ids=input_ids.to(device), attention_mask=mask.to(device), generation_config=config)
        return [_until_end(ids, end_ids) for ids in whole[:, input_ids.shape[1] :].tolist()]

    budget = (token_budget or cache_tokens(unwrapped)) // beams
    batches: list[list[int]] = []
    for cap in sorted(set(caps), reverse=True):
        rows = [row for row, own in enumerate(caps) if own == cap]
        shapes = [(items[row].prompt_length, cap) for row in rows]
        batches += [[rows[position] for position in batch] for batch in form_batches(shapes, budget)]
    costs = [caps[batch[0]] for batch in batches]
    with evaluating(unwrapped), blank_generation_config(bare):
        written = run_sharded(run, batches, costs, f"answering {name}", progress)
    return [_answer(ids, tokenizer, end_ids) for ids in written]


def new_token_cap(reference_tokens: int, max_new_tokens: int) -> int:
    """``min(max_new_tokens, ceil(1.5 x reference tokens) + 16)``: room to be wordy, none to ramble.

    Much faster than `max_new_tokens` for a model that no longer ends its answers.
    """
    return min(max_new_tokens, math.ceil(1.5 * reference_tokens) + 16)


def _until_end(ids: list[int], end_ids: list[int]) -> list[int]:
    """Up to the first end token, that included."""
    ends = [place for place, token in enumerate(ids) if token in end_ids]
    return ids[: ends[0] + 1] if ends else ids


def _answer(ids: list[int], tokenizer: ExampleTokenizer, end_ids: list[int]) -> Answer:
    ended = ids[-1] in end_ids
    return Answer(tokenizer.decode(ids[:-1] if ended else ids), ended, ids)


def require_prompts(items: Sequence[TokenizedItem], name: str) -> None:
    """Raise where an item is plain text.

    Raises:
        ValueError: an item has no prompt.
    """
    for item in items:
        if item.prompt_length == 0:
            raise ValueError(
                f"Row {item.index} of {name} is plain text without a prompt to answer: give it a question, or only "
                "score it with `--eval train`."
            )


@contextmanager
def blank_generation_config(model: PreTrainedModel) -> Iterator[None]:
    """Without the model's own generation config: `generate` fills what its argument leaves open from there."""
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own
