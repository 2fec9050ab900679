"""The five sets of an evaluation over tiny rows, with paraphrased and wrong answers; no file is read."""

from itertools import accumulate

from tiny import CITIES, TRADES, tiny_rows, tiny_tokenizer

from llm_unlearn.data.tokenization import ExampleTokenizer
from llm_unlearn.evaluation.sets import EvalSet

SIZES = {"forget": 12, "retain": 43, "real_authors": 3, "world_facts": 22, "holdout": 10}


def full_rows(count: int, first: int = 0) -> list[dict]:
    """`tiny_rows` with a paraphrase and two to four wrong answers each, of different lengths."""
    return [_with_alternatives(row, number) for number, row in enumerate(tiny_rows(count, first))]


def _with_alternatives(row: dict, number: int) -> dict:
    pool = CITIES if row["value"] in CITIES else TRADES
    others = [pool[(pool.index(row["value"]) + step) % 10] for step in range(1, 3 + number % 3)]
    wrong = [
        row["answer"].replace(row["value"], other) + " of the hill" * (step % 2) for step, other in enumerate(others)
    ]
    return {**row, "paraphrased_answer": f"they say {row['answer']}", "perturbed_answer": wrong}


def tiny_sets(tokenizer: ExampleTokenizer | None = None, sizes: dict[str, int] = SIZES) -> list[EvalSet]:
    """One set of each name and size, of rows that no two sets share."""
    tokenizer = tokenizer or ExampleTokenizer(tiny_tokenizer())
    firsts = accumulate(sizes.values(), initial=0)
    return [
        EvalSet.of(name, full_rows(size, first), tokenizer)
        for (name, size), first in zip(sizes.items(), firsts, strict=False)
    ]
