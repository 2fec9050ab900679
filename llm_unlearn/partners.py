"""The retain rows that stand beside the forget rows of a run: nearest ones of a pool, or of the model's own texts."""

from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from torch import nn

from llm_unlearn.data.sources import form_of
from llm_unlearn.data.tokenization import ExampleTokenizer
from llm_unlearn.evaluation.outputs.sampling import sample_rows
from llm_unlearn.flags import DataFlags, PairingFlags
from llm_unlearn.pairs import load_pool, pair_texts, summary_line, texts_of

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
    """Find the partners of the forget rows, as the flags say.

    Args:
        pairing, data: the flags.
        forget: the forget rows.
        retain_split: the pool where none is named.
        tokenizer: the run's.
        model: the model before unlearning, where `need_model`.
        seed: of the model's own texts.
        progress: whether to show progress bars.

    Raises:
        ValueError, FileNotFoundError: see `load_pool` and `find_analogues`.
    """
    if pairing.pair_pool == "self":
        questions = form_of(forget.column_names) != "text"
        count = max(_FEWEST_OWN, _OWN_PER_FORGET_ROW * len(forget))
        own = sample_rows(model, tokenizer, count, questions=questions, seed=seed, progress=progress)
        pool = Dataset.from_list(own)
    else:
        pool = load_pool(pairing, data, retain_split)
    plain = tokenizer.tokenizer
    texts = (texts_of(rows, pairing, plain) for rows in (forget, pool))
    found = pair_texts(*texts, pairing, model, plain, progress)
    chosen = [own if pairing.pair_rotate else own[:1] for own in found.partners]
    used = sorted({row for own in chosen for row in own})
    place = {row: position for position, row in enumerate(used)}
    record = {
        "pool": pairing.pair_pool or "retain split",
        "pool_rows": len(pool),
        "encoder": pairing.pair_encoder,
        "rank": pairing.pair_rank,
        "rotate": pairing.pair_rotate,
        "max_overlap": pairing.pair_max_overlap,
        "rows": len(used),
        **found.summary(),
    }
    return Partners(pool.select(used), [[place[row] for row in own] for own in chosen], record, summary_line(found))
