"""Finds partners on however many processes there are, in several ways. For `test_partners`."""

import json
import os
import sys
from pathlib import Path

from accelerate import PartialState
from datasets import Dataset
from tiny import tiny_model, tiny_rows, tiny_tokenizer

from llm_unlearn.data.tokenization import ExampleTokenizer
from llm_unlearn.flags import DataFlags, PairingFlags
from llm_unlearn.partners import find_partners

N_FORGET, N_POOL = 6, 24


def write_pools(folder: Path) -> None:
    """What the cases read: a pool, one that is all forget texts, and a folder in the place of an index."""
    folder.mkdir(parents=True)
    for name, rows in {"pool": tiny_rows(N_POOL, first=30), "forget": tiny_rows(N_FORGET)}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "full").mkdir()
    (folder / "full" / "letter.txt").write_text("not an index")


def cases(folder: Path) -> dict[str, PairingFlags]:
    """In this order: what follows an error shows that all processes have come out of it together."""
    pool = {"pairing": "nearest", "pair_pool": str(folder / "pool.jsonl")}
    dense = {**pool, "pair_encoder": "model", "pair_k": 3, "pair_rotate": True}
    return {
        "no_pool": PairingFlags("nearest", pair_pool=str(folder / "missing.jsonl")),
        "forget_texts": PairingFlags("nearest", pair_pool=str(folder / "forget.jsonl")),
        "no_index": PairingFlags(**dense, pair_index=str(folder / "full")),
        "tfidf": PairingFlags(**pool),
        "index": PairingFlags(**dense, pair_index=str(folder / "index")),
        "index_again": PairingFlags(**dense, pair_index=str(folder / "index")),
        "self": PairingFlags("nearest", pair_pool="self"),
    }


def find(name: str, pairing: PairingFlags, rank: int) -> dict:
    """What a process has found in one way, or why it could not.

    As an encoder, each has a model of its own: what hardware does to the last digit, made large.
    """
    model = tiny_model(seed=rank if pairing.pair_encoder == "model" else 0)
    tokenize, forget = ExampleTokenizer(tiny_tokenizer()), Dataset.from_list(tiny_rows(N_FORGET))
    try:
        found = find_partners(pairing, DataFlags(), forget, "unused", tokenize, model, progress=False)
    except (ValueError, OSError) as error:
        return {"error": str(error)}
    return {"rows": found.rows.to_list(), "of": found.of, "record": found.record, "summary": found.summary}


if __name__ == "__main__":
    # Not from accelerate, which learns of the processes with the first search.
    rank, out = int(os.environ["RANK"]), Path(sys.argv[1])
    results = {name: find(name, pairing, rank) for name, pairing in cases(out / "data").items()}
    results["processes"] = PartialState().num_processes
    (out / f"rank{rank}.json").write_text(json.dumps(results))
    PartialState().destroy_process_group()
