"""Evaluates a tiny model; as a script, writes the numbers, one file per process. For `test_outputs`."""

import json
import sys
from pathlib import Path

from accelerate import PartialState
from tiny import tiny_model, tiny_rows, tiny_tokenizer
from torch.nn.parallel import DistributedDataParallel

from llm_unlearn.data.tokenization import ExampleTokenizer
from llm_unlearn.evaluation.evaluator import EvalSet, Evaluator
from llm_unlearn.evaluation.outputs import generate, score


def evaluate() -> dict:
    """Scores and texts in many small batches, and a whole report in which most sets have one batch only."""
    # Seed 3 meets no near tie, see test_outputs.
    model = tiny_model(seed=3)
    tokenizer = ExampleTokenizer(tiny_tokenizer())
    rows = tiny_rows(30)
    items = tokenizer.all(rows)
    sets = [
        EvalSet("forget", rows, items),
        EvalSet("retain", tiny_rows(9, first=40), tokenizer.all(tiny_rows(9, first=40))),
        EvalSet("holdout", tiny_rows(1, first=60), tokenizer.all(tiny_rows(1, first=60))),
    ]
    report = Evaluator(tokenizer, sets, "full", max_new_tokens=12, progress=False).evaluate(model)
    return {
        "logprobs": [item.logprobs.tolist() for item in score(model, items, token_budget=100, progress=False)],
        "texts": generate(model, items, tokenizer, max_new_tokens=12, token_budget=100, progress=False),
        "metrics": {name: record.value for name, record in report.metrics.items()},
        "report_texts": [item["text"] for item in report.items],
    }


if __name__ == "__main__":
    result = evaluate()
    state = PartialState()
    items = ExampleTokenizer(tiny_tokenizer()).all(tiny_rows(30))
    model = tiny_model(seed=3)
    forwards = []
    model.register_forward_hook(lambda *_: forwards.append(1))
    wrapped = DistributedDataParallel(model)
    result["ddp"] = [item.logprobs.tolist() for item in score(wrapped, items, token_budget=100, progress=False)]
    result["forwards"] = len(forwards)
    result["num_processes"] = state.num_processes
    (Path(sys.argv[1]) / f"rank{state.process_index}.json").write_text(json.dumps(result))
    state.destroy_process_group()
