"""Batches, their distribution over processes, and the mode a model is run in.

Batches are formed from the whole list, before anything is sharded, and whole batches are dealt to the processes. One,
two or eight processes therefore run the very same batches and agree to the last digit; a process that gets no batch
still takes part in the single collective each pass ends with.

Every process must hold the whole model. Models whose weights are sharded over processes (FSDP, ZeRO-3) would need the
same number of forwards everywhere, which is not provided here.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, extract_model_from_parallel, gather_object, parse_flag_from_env
from peft import PeftModel
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

Result = TypeVar("Result")


def form_batches(shapes: Sequence[tuple[int, int]], token_budget: int, in_order: bool = False) -> list[list[int]]:
    """Group positions of similar length, the longest first, so that what does not fit in memory fails at once.

    Args:
        shapes: per item its number of given and of new tokens.
        token_budget: bound on ``rows x (longest given + longest new)`` of a batch; a single item may exceed it.
        in_order: whether to group neighbours, in an order that was chosen for another reason, instead.
    """
    batches: list[list[int]] = []
    widest = (0, 0)
    by_length = sorted(range(len(shapes)), key=lambda position: shapes[position], reverse=True)
    for position in range(len(shapes)) if in_order else by_length:
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


def run_sharded(
    run: Callable[[list[int]], list[Result]],
    batches: list[list[int]],
    costs: list[int],
    label: str,
    progress: bool,
) -> list[Result]:
    """Run this process's batches, exchange the results in one collective, put them back in order.

    Args:
        run: positions of a batch to their results.
        batches: positions, each in exactly one batch.
        costs: what each batch costs, in any unit.
        label: what the progress bar says.
        progress: whether the main process shows a bar.
    """
    state = process_state()
    mine = deal(costs, state.num_processes)[state.process_index]
    results: list[tuple[int, Result]] = []
    shown = progress and state.is_main_process
    with tqdm(total=sum(len(batches[b]) for b in mine), desc=label, unit="item", disable=not shown) as bar:
        for number in mine:
            results += zip(batches[number], run(batches[number]), strict=True)
            bar.update(len(batches[number]))
    by_position = dict(gather_object(results))
    return [by_position[position] for position in range(len(by_position))]


def process_state() -> PartialState:
    """The state of the running processes; before a trainer has made one, as the Trainer would make it.

    Without the flag, accelerate would take each of several CPU processes for the only one.
    """
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


def on_main_process(work: Callable[[], Result]) -> Result:
    """What `work` gives, done once, on the main process, and handed to all of them.

    Raises:
        Exception: what `work` raises, on the main process; on the others a `RuntimeError` with the same message.
    """
    state = process_state()
    if state.num_processes == 1:
        return work()
    result: list[Any] = [None, None]
    failed: Exception | None = None
    if state.is_main_process:
        try:
            result[0] = work()
        except Exception as error:  # the others wait: whatever it is, they must be told
            failed, result[1] = error, str(error)
    broadcast_object_list(result)
    if failed is not None:
        raise failed
    if result[1] is not None:
        raise RuntimeError(result[1])
    return result[0]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
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


def without_peft(model: nn.Module) -> PreTrainedModel:
    """The model of `transformers` inside an unwrapped model, adapters in its layers included."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def device_of(model: nn.Module) -> torch.device:
    """Where the inputs of an unwrapped model belong."""
    return model.get_input_embeddings().weight.device


def describe(model: nn.Module) -> dict[str, str]:
    """Device and precision of a model, for the provenance of a report."""
    weight = extract_model_from_parallel(model).get_input_embeddings().weight
    device = torch.cuda.get_device_name(weight.device) if weight.device.type == "cuda" else str(weight.device)
    return {"device": device, "precision": str(weight.dtype).removeprefix("torch.")}
