"""The only code that runs a model for evaluation: one teacher-forced pass and one greedy generation pass.

Batches are formed from the whole list, before anything is sharded, and whole batches are dealt to the processes. One,
two or eight processes therefore run the very same batches and agree to the last digit; a process that gets no batch
still takes part in the single collective each pass ends with.

Every process must hold the whole model. Models whose weights are sharded over processes (FSDP, ZeRO-3) would need the
same number of forwards everywhere, which is not provided here.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import extract_model_from_parallel, gather_object, parse_flag_from_env
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import GenerationConfig

from llm_unlearn.data.collator import collate
from llm_unlearn.data.tokenization import ExampleTokenizer, TokenizedItem
from llm_unlearn.forward import answer_logits
from llm_unlearn.functional import token_logps, token_moments

# Moments hold about five copies of a chunk of logits in fp32: 2**22 entries are 16 MiB each, whatever the vocabulary.
_CHUNK_ENTRIES = 2**22

Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class ItemScores:
    """What one teacher-forced pass tells about one answer, per answer token (the end token included).

    Attributes:
        logprobs: ``log p(y_t | prompt, y_<t)``, in nats, ``(T,)``, float32, <= 0.
        hits: whether ``y_t`` is the most probable token, ``(T,)``. Of equally probable tokens the one with the lowest
            id counts, as in greedy decoding.
        mean: mean of ``log p(v)`` for ``v ~ p`` at the same position, ``(T,)``, float32.
        std: its standard deviation, ``(T,)``, float32.
    """

    logprobs: Float[np.ndarray, " T"]
    hits: Bool[np.ndarray, " T"]
    mean: Float[np.ndarray, " T"]
    std: Float[np.ndarray, " T"]


def score(
    model: nn.Module,
    items: Sequence[TokenizedItem],
    *,
    token_budget: int = 4096,
    name: str = "items",
    progress: bool = True,
) -> list[ItemScores]:
    """Score the answers of `items` under `model`, in one forward pass per batch.

    Args:
        model: a causal language model, wrapped by PEFT or DDP or neither; in eval mode meanwhile.
        items: tokenised items.
        token_budget: tokens of a batch, padding included. Defaults to 4096, with which the logits of a
            vocabulary of 128k stay near 1 GB at half precision.
        name: what the progress bar calls the items.
        progress: whether the main process shows a bar.

    Returns:
        One record per item, in the order of `items`, the same on every process.

    Raises:
        ValueError: an item has no token that could be scored.
    """
    for item in items:
        # The first token of a sequence is predicted by nothing.
        if len(item.input_ids) - max(item.prompt_length, 1) < 1:
            raise ValueError(
                f"Row {item.index} of {name} has no answer token to score: give it an answer, or leave the row out."
            )
    unwrapped = extract_model_from_parallel(model)
    device = _device(unwrapped)

    def run(positions: list[int]) -> list[ItemScores]:
        batch = collate([items[position] for position in positions], pad_id=0)
        # DDP's own forward synchronises buffers, which would hang where processes have unequal numbers of batches.
        answers = answer_logits(unwrapped, unwrapped, {key: value.to(device) for key, value in batch.items()})
        record = _token_record(answers.logits, answers.targets).cpu().numpy()
        ends = torch.bincount(answers.rows, minlength=answers.batch_size).cumsum(0)[:-1].tolist()
        return [
            ItemScores(logprobs, hits.astype(bool), mean, std)
            for logprobs, hits, mean, std in np.split(record, ends, axis=1)
        ]

    shapes = [(len(item.input_ids), 0) for item in items]
    batches = form_batches(shapes, token_budget)
    costs = [len(batch) * max(shapes[position][0] for position in batch) for batch in batches]
    with _evaluating(unwrapped):
        return _run_sharded(run, batches, costs, f"scoring {name}", progress)


def generate(
    model: nn.Module,
    items: Sequence[TokenizedItem],
    tokenizer: ExampleTokenizer,
    *,
    max_new_tokens: int = 200,
    cap_by_reference: bool = True,
    token_budget: int = 16384,
    name: str = "items",
    progress: bool = True,
) -> list[str]:
    """Answer the prompts of `items` greedily; a text does not depend on what else is in its batch.

    Sampling, beams and penalties that a model's own generation config asks for are switched off: what is measured is
    the most probable next token. An answer ends at the first end token of the tokenizer, of the model's generation
    config or of the items themselves (chat templates may end a turn with another token than eos).

    Args:
        model: a causal language model, wrapped by PEFT or DDP or neither; in eval mode meanwhile.
        items: tokenised items; only their prompts are read, and the lengths of their answers.
        tokenizer: the tokenizer they were made with.
        max_new_tokens: longest answer in tokens. Defaults to 200, as in TOFU.
        cap_by_reference: whether to stop at `new_token_cap` already, at once faster and, for a model that no longer
            ends its answers, much faster.
        token_budget: tokens of a batch, prompts, padding and new tokens together. Defaults to 16384, whose cache takes
            about 2 GB with an 8B model at half precision.
        name: what the progress bar calls the items.
        progress: whether the main process shows a bar.

    Returns:
        One text per item, in the order of `items`, without prompt, special tokens and outer white space; the same on
        every process.

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
    device = _device(unwrapped)
    end_ids = _end_ids(unwrapped, items, tokenizer)
    caps = [
        new_token_cap(len(item.answer_ids), max_new_tokens) if cap_by_reference else max_new_tokens for item in items
    ]

    def run(positions: list[int]) -> list[str]:
        input_ids, attention_mask = _pad_left([items[position].prompt_ids for position in positions], end_ids[0])
        config = GenerationConfig(
            max_new_tokens=max(caps[position] for position in positions),
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            use_cache=True,
            eos_token_id=end_ids,
            pad_token_id=end_ids[0],
        )
        output = unwrapped.generate(
            input_ids=input_ids.to(device), attention_mask=attention_mask.to(device), generation_config=config
        )
        answers = output[:, input_ids.shape[1] :].tolist()
        return [
            tokenizer.decode(_until_end(answer[: caps[position]], end_ids))
            for position, answer in zip(positions, answers, strict=True)
        ]

    shapes = [(item.prompt_length, cap) for item, cap in zip(items, caps, strict=True)]
    batches = form_batches(shapes, token_budget)
    # A decoding step costs nearly the same for any number of rows.
    costs = [max(caps[position] for position in batch) for batch in batches]
    with _evaluating(unwrapped):
        return _run_sharded(run, batches, costs, f"answering {name}", progress)


def new_token_cap(reference_tokens: int, max_new_tokens: int) -> int:
    """``min(max_new_tokens, ceil(1.5 x reference tokens) + 16)``: room to be wordy, none to ramble."""
    return min(max_new_tokens, math.ceil(1.5 * reference_tokens) + 16)


def describe(model: nn.Module) -> dict[str, str]:
    """Device and precision of a model, for the provenance of a report."""
    weight = extract_model_from_parallel(model).get_input_embeddings().weight
    device = torch.cuda.get_device_name(weight.device) if weight.device.type == "cuda" else str(weight.device)
    return {"device": device, "precision": str(weight.dtype).removeprefix("torch.")}


def form_batches(shapes: Sequence[tuple[int, int]], token_budget: int) -> list[list[int]]:
    """Group positions of similar length, the longest first, so that what does not fit in memory fails at once.

    Args:
        shapes: per item its number of given and of new tokens.
        token_budget: bound on ``rows x (longest given + longest new)`` of a batch; a single item may exceed it.
    """
    batches: list[list[int]] = []
    widest = (0, 0)
    for position in sorted(range(len(shapes)), key=lambda position: shapes[position], reverse=True):
        given, new = shapes[position]
        grown = (max(widest[0], given), max(widest[1], new))
        if batches and (len(batches[-1]) + 1) * sum(grown) <= token_budget:
            batches[-1].append(position)
            widest = grown
        else:
            batches.append([position])
            widest = (given, new)
    return batches


def deal(costs: Sequence[int], num_processes: int) -> list[list[int]]:
    """Deal batches to processes, the costliest first, each to the process with the least to do so far."""
    hands: list[list[int]] = [[] for _ in range(num_processes)]
    loads = [0] * num_processes
    for batch in sorted(range(len(costs)), key=lambda batch: costs[batch], reverse=True):
        process = loads.index(min(loads))
        hands[process].append(batch)
        loads[process] += costs[batch]
    return hands


def _run_sharded(
    run: Callable[[list[int]], list[Result]],
    batches: list[list[int]],
    costs: list[int],
    label: str,
    progress: bool,
) -> list[Result]:
    """Run this process's batches, exchange the results in one collective, put them back in order."""
    state = _process_state()
    mine = deal(costs, state.num_processes)[state.process_index]
    results: list[tuple[int, Result]] = []
    shown = progress and state.is_main_process
    with tqdm(total=sum(len(batches[b]) for b in mine), desc=label, unit="item", disable=not shown) as bar:
        for number in mine:
            results += zip(batches[number], run(batches[number]), strict=True)
            bar.update(len(batches[number]))
    by_position = dict(gather_object(results))
    return [by_position[position] for position in range(len(by_position))]


def _process_state() -> PartialState:
    """The state of the running processes; before a trainer has made one, as the Trainer would make it.

    Without the flag, accelerate would take each of several CPU processes for the only one.
    """
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradient; afterwards each module is back in the mode it was in, also after an exception.

    Not `torch.inference_mode`: what a module caches meanwhile (rotary frequencies) must stay usable in training.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def _token_record(
    logits: Float[Tensor, "n_tokens vocab"], targets: Int[Tensor, " n_tokens"]
) -> Float[Tensor, "4 n_tokens"]:
    """Log-probabilities, hits, means and deviations in fp32, a bounded chunk of rows at a time."""
    rows = max(1, _CHUNK_ENTRIES // logits.shape[1])
    parts = []
    for chunk, target in zip(logits.split(rows), targets.split(rows), strict=True):
        fp32 = chunk.float()
        hits = (fp32.argmax(-1) == target).float()
        parts.append(torch.stack([token_logps(fp32, target), hits, *token_moments(fp32)]))
    return torch.cat(parts, dim=1)


def _device(model: nn.Module) -> torch.device:
    return model.get_input_embeddings().weight.device


def _end_ids(model: nn.Module, items: Sequence[TokenizedItem], tokenizer: ExampleTokenizer) -> list[int]:
    """All ids that end an answer; the tokenizer's first, which also serves as padding."""
    eos = tokenizer.tokenizer.eos_token_id
    configured = model.generation_config.eos_token_id
    others = set(configured) if isinstance(configured, list) else {configured} - {None}
    others |= {item.input_ids[-1] for item in items if item.has_end}
    return [eos, *sorted(others - {eos})]


def _pad_left(prompts: list[list[int]], pad_id: int) -> tuple[Int[Tensor, "batch tokens"], Int[Tensor, "batch tokens"]]:
    """Prompts that all end at the last column, and their attention mask (from lengths, never from ids)."""
    length = max(len(prompt) for prompt in prompts)
    input_ids = torch.full((len(prompts), length), pad_id)
    attention_mask = torch.zeros((len(prompts), length), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        input_ids[row, length - len(prompt) :] = torch.tensor(prompt)
        attention_mask[row, length - len(prompt) :] = 1
    return input_ids, attention_mask


def _until_end(ids: list[int], end_ids: list[int]) -> list[int]:
    ends = [position for position, token_id in enumerate(ids) if token_id in end_ids]
    return ids[: ends[0]] if ends else ids
