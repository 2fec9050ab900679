"""One pass over the units of a corpus, in this process or in several."""

from __future__ import annotations

import multiprocessing
import queue
from collections.abc import Iterator, Sequence
from typing import Any

from tqdm.auto import tqdm

from llm_unlearn.probes.counts.documents import TextFormat, Unit
from llm_unlearn.probes.counts.state import PassState, Report
from llm_unlearn.probes.counts.tally import Counter, Tally
from llm_unlearn.probes.counts.texts import read

REPORT = 16
"""Batches after which a process reports what it has counted."""

Task = tuple[int, Unit, int]
"""A unit, its number before it, and the position to begin at behind it."""


def scan(
    units: Sequence[Unit], form: TextFormat, counter: Counter, state: PassState, processes: int, progress: bool
) -> Tally:
    """Count all units from where the state says, and keep the state as the counts grow.

    Raises:
        ValueError: a file is damaged; the message says where.
        RuntimeError: a process died.
    """
    places = zip(units, state.positions, strict=True)
    tasks = [(number, unit, place) for number, (unit, place) in enumerate(places) if place is not None]
    reports = _alone(tasks, form, counter) if processes == 1 else _together(tasks, form, counter, processes)
    total = sum(source.size for source in dict.fromkeys(unit.source for unit in units))
    shown = {"desc": "counting", "unit": "B", "unit_scale": True, "disable": None if progress else True}
    with tqdm(total=total, initial=state.read, **shown) as bar:
        for report in reports:
            state.add(report)
            bar.update(report.read)
    state.save()
    return state.total


def _alone(tasks: Sequence[Task], form: TextFormat, counter: Counter) -> Iterator[Report]:
    for task in tasks:
        yield from _count(task, form, counter)


def _count(task: Task, form: TextFormat, counter: Counter) -> Iterator[Report]:
    number, unit, position = task
    sums, read_bytes, batches = counter.empty(), 0, 0
    for batch in read(unit, form, position):
        try:
            sums = sums + counter.count(batch.texts)
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{unit.source.path} is not text in UTF-8 between bytes {position} and {batch.position} of its text: "
                "save it in that encoding."
            ) from error
        position, read_bytes, batches = batch.position, read_bytes + batch.read, batches + 1
        if batches == REPORT:
            yield Report(number, position, read_bytes, sums)
            sums, read_bytes, batches = counter.empty(), 0, 0
    yield Report(number, None, read_bytes, sums)


def _together(tasks: Sequence[Task], form: TextFormat, counter: Counter, processes: int) -> Iterator[Report]:
    # A forked process would inherit the threads of whatever library is loaded, without their owner.
    context = multiprocessing.get_context("spawn")
    waiting, results = context.Queue(), context.Queue()
    for task in [*tasks, *[None] * processes]:
        waiting.put(task)
    workers = [
        context.Process(target=_work, args=(waiting, results, form, counter), daemon=True) for _ in range(processes)
    ]
    try:
        for worker in workers:
            worker.start()
        open_units = len(tasks)
        while open_units:
            try:
                report = results.get(timeout=1)
            except queue.Empty:
                dead = [worker.exitcode for worker in workers if worker.exitcode]
                if dead:
                    raise RuntimeError(
                        f"A counting process ended with code {dead[0]}, perhaps for want of memory: take fewer "
                        "processes; with a state file, the same command goes on where it stopped."
                    ) from None
                continue
            if isinstance(report, Exception):
                raise report
            open_units -= report.position is None
            yield report
    finally:
        for worker in workers:
            if worker.pid is not None:
                worker.terminate()
                worker.join()
        waiting.cancel_join_thread()


def _work(waiting: Any, results: Any, form: TextFormat, counter: Counter) -> None:
    try:
        while (task := waiting.get()) is not None:
            for report in _count(task, form, counter):
                results.put(report)
    except Exception as error:  # the other side raises it
        results.put(error)
