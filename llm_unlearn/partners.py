"""The retain rows that stand beside the forget rows of a run: nearest ones of a pool, or of the model's own texts."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from accelerate.utils import broadcast_object_list
from datasets import Dataset
from torch import nn

from llm_unlearn.data.sources import form_of
from llm_unlearn.data.tokenization import ExampleTokenizer
from llm_unlearn.evaluation.outputs.sampling import sample_rows
from llm_unlearn.evaluation.outputs.sharding import process_state
from llm_unlearn.flags import DataFlags, PairingFlags
from llm_unlearn.pairs import load_pool, pair_texts, summary_line, texts_of
from llm_unlearn.paths import public_name

Result = TypeVar("Result")

# Texts that the model samples where they are the pool: twice the forget rows, and some to choose from.
_OWN_PER_FORGET_ROW, _FEWEST_OWN = 2, 64


@dataclass(frozen=True)
class Partners:
    """Rows, and which of them each forget row meets.

    Attributes:
        rows: the retain rows that are anybody's partner.
        of: for each forget row positions in `rows`: one, or those that it meets in turn.
        record: what a run's record says of them; without texts.
        summary: a line for the terminal.
    """

    rows: Dataset
    of: list[list[int]]
    record: dict[str, Any]
    summary: str


def need_model(pairing: PairingFlags) -> bool:
    """Whether partners can only be found once the model is there."""
    return pairing.pair_pool == "self" or pairing.pair_encoder == "model"


def find_partners(
    pairing: PairingFlags,
    data: DataFlags,
    forget: Dataset,
    retain_split: str,
    tokenizer: ExampleTokenizer,
    model: nn.Module | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Partners:
    """Find the partners of the forget rows, as the flags say; the same on every process.

    The main process searches, and writes or reads the index, while the others wait for what it found (no longer than
    `--ddp_timeout`): encodings that differ in the last digit would give every process a plan of its own.

    Args:
        pairing, data: the flags.
        forget: the forget rows.
        retain_split: the pool where none is named.
        tokenizer: the run's.
        model: the model before unlearning, where `need_model`; on the device of its process.
        seed: of the model's own texts.
        progress: whether to show progress bars.

    Raises:
        ValueError, FileNotFoundError: see `load_pool` and `find_analogues`; on the other processes a ValueError with
            the message of the main process.
    """
    own_texts: Dataset | None = None
    if pairing.pair_pool == "self":
        questions = form_of(forget.column_names) != "text"
        count = max(_FEWEST_OWN, _OWN_PER_FORGET_ROW * len(forget))
        # Each process samples a part, and has the parts of all.
        own_texts = Dataset.from_list(
            sample_rows(model, tokenizer, count, questions=questions, seed=seed, progress=progress)
        )

    @cache
    def pool() -> Dataset:
        # First asked for by the main process: what can be wrong with it ends all of them.
        return load_pool(pairing, data, retain_split) if own_texts is None else own_texts

    def search() -> tuple[list[int], list[list[int]], dict[str, Any], str]:
        plain = tokenizer.tokenizer
        texts = (texts_of(rows, pairing, plain) for rows in (forget, pool()))
        found = pair_texts(*texts, pairing, model, plain, progress)
        chosen = [own if pairing.pair_rotate else own[:1] for own in found.partners]
        used = sorted({row for own in chosen for row in own})
        place = {row: position for position, row in enumerate(used)}
        record = {
            "pool": public_name(pairing.pair_pool) if pairing.pair_pool else "retain split",
            "pool_rows": len(pool()),
            "encoder": public_name(pairing.pair_encoder),
            "rank": pairing.pair_rank,
            "rotate": pairing.pair_rotate,
            "max_overlap": pairing.pair_max_overlap,
            "rows": len(used),
            **found.summary(),
        }
        return used, [[place[row] for row in own] for own in chosen], record, summary_line(found)

    used, of, record, summary = _on_main_process(search)
    return Partners(pool().select(used), of, record, summary)


def _on_main_process(compute: Callable[[], Result]) -> Result:
    """What the main process computes, on all; where it fails there, all fail with its message, and none waits."""
    result, error = None, None
    if process_state().is_main_process:
        try:
            result = compute()
        except Exception as raised:  # whatever it is, the others must hear of it
            error = raised
    result, message = broadcast_object_list([result, error and (str(error) or type(error).__name__)])
    if error:
        raise error
    if message:
        raise ValueError(message)
    return result
