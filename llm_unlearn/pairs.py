"""Which rows would stand beside which: `llm-unlearn pairs`, and the steps of it that a run takes as well."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import HfArgumentParser

from llm_unlearn.flags import DataFlags, PairingFlags

if TYPE_CHECKING:
    from datasets import Dataset
    from rich.table import Table
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from llm_unlearn.data.analogues import Analogues, RowTexts, TextTokens

_EXCERPT = 120
"""Characters of a text in the table."""


@dataclass
class PairsArguments:
    """What to pair, and what is shown of it."""

    forget_split: str = field(default="forget10", metadata={"help": "Split to forget; rows as in forget10[0:20]."})
    retain_split: str = field(default="retain90", metadata={"help": "Split to keep, the pool unless one is named."})
    model: str | None = field(
        default=None,
        metadata={
            "help": "Hub id, model folder or PEFT folder whose tokens are counted, and whose hidden states are "
            "compared under --pair_encoder model. Unset: words are counted."
        },
    )
    rows: int = field(default=10, metadata={"help": "Pairs to show."})
    output_file: str | None = field(default=None, metadata={"help": "JSON file for all pairs, with their texts."})


def main(arguments: list[str]) -> None:
    """Find the pairs that these flags ask for, show the first and write all."""
    parser = HfArgumentParser((PairsArguments, DataFlags, PairingFlags), prog="llm-unlearn pairs", allow_abbrev=False)
    parser.set_defaults(pairing="nearest")
    show(*parser.parse_args_into_dataclasses(arguments))


def show(args: PairsArguments, data: DataFlags, pairing: PairingFlags) -> None:
    """The command, after its flags are read."""
    from rich.console import Console

    from llm_unlearn.data.sources import load_rows
    from llm_unlearn.data.tofu import source_or_bundled
    from llm_unlearn.files import write_json

    # Everything that can be wrong is found before a model is loaded.
    if args.output_file and Path(args.output_file).is_dir():
        raise ValueError(f"{args.output_file} is a folder: name a file for `--output_file`.")
    forget = load_rows(args.forget_split, source_or_bundled(data.dataset), data.columns)
    pool = load_pool(pairing, data, args.retain_split)
    model, tokenizer = _load(args.model, pairing.pair_encoder)
    forget_texts, pool_texts = texts_of(forget, pairing, tokenizer), texts_of(pool, pairing, tokenizer)
    found = pair_texts(forget_texts, pool_texts, pairing, model, tokenizer)

    console = Console(highlight=False)
    console.print(pairs_table(found, forget_texts, pool_texts, args.rows))
    console.print(summary_line(found), soft_wrap=True)
    if args.output_file:
        settings = {**vars(args), **vars(data), **vars(pairing)}
        del settings["rows"], settings["output_file"]
        write_json(args.output_file, {"settings": settings, **as_json(found, forget_texts, pool_texts)})
        console.print(f"Wrote {args.output_file}", soft_wrap=True)


def load_pool(pairing: PairingFlags, data: DataFlags, retain_split: str) -> Dataset:
    """The rows among which neighbours are searched.

    The retain split, or another split of the same data; with `--pair_pool` another source. The flags for columns apply
    to it where they fit; otherwise its columns must have the names of one form themselves.

    Raises:
        ValueError, FileNotFoundError: see `load_rows`; or the pool is `self`, which is no source of rows.
    """
    from llm_unlearn.data.sources import load_rows
    from llm_unlearn.data.tofu import source_or_bundled

    if pairing.pair_pool == "self":
        raise ValueError(
            "The texts of `--pair_pool self` are sampled from the model when a run starts: name a hub id, folder or "
            "file here, or leave it out for the retain split."
        )
    if pairing.pair_pool is None:
        return load_rows(pairing.pair_pool_split or retain_split, source_or_bundled(data.dataset), data.columns)
    try:
        return load_rows(pairing.pair_pool_split, pairing.pair_pool, data.columns)
    except ValueError:
        if not data.columns:
            raise
    return load_rows(pairing.pair_pool_split, pairing.pair_pool)


def texts_of(rows: Dataset, pairing: PairingFlags, tokenizer: PreTrainedTokenizerBase | None = None) -> RowTexts:
    """What of the rows is compared, as `--pair_text_slice` says."""
    from llm_unlearn.data.analogues import RowTexts

    return RowTexts(rows, pairing.text_slice, _tokens(tokenizer))


def pair_texts(
    forget: RowTexts,
    pool: RowTexts,
    pairing: PairingFlags,
    model: PreTrainedModel | nn.Module | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    progress: bool = True,
) -> Analogues:
    """`find_analogues` as the flags ask for it.

    Args:
        forget, pool: see `texts_of`.
        pairing: the flags.
        model: for the encoder `model`.
        tokenizer: what overlaps are counted in; None for words.
        progress: whether to show bars.

    Raises:
        ValueError: see `make_encoder` and `find_analogues`.
    """
    from llm_unlearn.data.analogues import find_analogues, make_encoder

    return find_analogues(
        forget,
        pool,
        make_encoder(pairing.pair_encoder, model, tokenizer),
        tokenize=_tokens(tokenizer).encode,
        k=pairing.pair_k,
        rank=pairing.pair_rank,
        max_overlap=pairing.pair_max_overlap,
        # Where epochs take turns, each forget text should have a partner for every turn.
        wanted=pairing.pair_k if pairing.pair_rotate else 1,
        search=pairing.pair_search,
        index=pairing.pair_index,
        progress=progress,
    )


def pairs_table(found: Analogues, forget: RowTexts, pool: RowTexts, rows: int) -> Table:
    """The first pairs, side by side."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in ("forget text", "partner"):
        table.add_column(name, ratio=1, overflow="fold")
    for name in ("row", "score", "longest run", "10-grams"):
        table.add_column(name, justify="right")
    for i in range(min(rows, len(found.partners))):
        partner, shared = found.partners[i][0], found.shared[i][0]
        measured = (
            f"{found.scores[i][0]:.3f}",
            str(found.longest_runs[i][0]),
            "-" if shared is None else f"{shared:.0%}",
        )
        table.add_row(Text(_excerpt(forget[i])), Text(_excerpt(pool[partner])), str(partner), *measured)
    return table


def summary_line(found: Analogues) -> str:
    """`Analogues.summary` in words."""
    numbers = found.summary()
    return (
        f"{numbers['pairs']} pairs with {numbers['distinct_partners']} distinct partners. Longest common run: median "
        f"{numbers['median_longest_run']:g} tokens, 50 or more in {numbers['share_with_long_run']:.0%} of the pairs. "
        f"Neighbours skipped: {numbers['skipped_neighbours']}. Texts of the pool that are forget texts: "
        f"{numbers['identical_texts']}."
    )


def as_json(found: Analogues, forget: RowTexts, pool: RowTexts) -> dict[str, Any]:
    """All pairs with their texts, and the summary."""
    columns = (found.partners, found.scores, found.longest_runs, found.shared)
    return {
        "summary": found.summary(),
        "pairs": [
            {
                "forget_row": i,
                "forget_text": forget[i],
                "partners": [
                    {"row": row, "text": pool[row], "score": score, "longest_run": run, "shared_10grams": shared}
                    for row, score, run, shared in zip(*(column[i] for column in columns), strict=True)
                ],
                "skipped": [
                    {"row": row, "reason": reason, "longest_run": run} for row, reason, run in found.skipped[i]
                ],
            }
            for i in range(len(found.partners))
        ],
    }


def _load(source: str | None, encoder: str) -> tuple[Any, Any]:
    """Model and tokenizer, as far as they are needed."""
    if source is None:
        return None, None
    from llm_unlearn.models import check_source, load_tokenizer

    check_source(source)
    return _load_model(source) if encoder == "model" else None, load_tokenizer(source)


def _load_model(source: str) -> nn.Module:
    """On the device of this process; a quantised model was put there as it was loaded, and cannot be moved."""
    from llm_unlearn.evaluation.outputs.sharding import process_state
    from llm_unlearn.models import load_model

    model = load_model(source)
    return model if getattr(model.config, "quantization_config", None) else model.to(process_state().device)


def _tokens(tokenizer: PreTrainedTokenizerBase | None) -> TextTokens:
    from llm_unlearn.data.analogues import ModelTokens, WordTokens

    return WordTokens() if tokenizer is None else ModelTokens(tokenizer)


def _excerpt(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _EXCERPT else line[: _EXCERPT - 3] + "..."
