"""The model card of an adapter folder: what was asked, what was done, what was measured, and what was not."""

from collections.abc import Mapping
from typing import Any

from llm_unlearn.evaluation.report import EvalReport
from llm_unlearn.methods import METHODS
from llm_unlearn.paths import public_name


def model_card(record: Mapping[str, Any], report: EvalReport | None) -> str:
    """The card as Markdown with the hub's YAML header.

    Args:
        record: contents of `unlearning_config.json`. Of the request only its redacted form is used: a published card
            must not repeat what somebody asked to have forgotten.
        report: the run's evaluation; None where it was not run, which the card then says.
    """
    method = METHODS[record["method"]]
    base = record["base"]
    # The hub refuses a card whose base is no hub id, and a path may tell whose machine it was.
    source = public_name(base["source"])
    header = [
        "---",
        *([f"base_model: {source}"] if source == base["source"] else []),
        "library_name: peft",
        "tags:",
        "- machine-unlearning",
        "- llm-unlearn",
        "- lora",
        f"- {record['method']}",
        "---",
    ]
    data = record["data"]
    request = record["request"]
    asked = (
        f"Request `{request['id']}` (SHA-256 `{request['hash']}`), {data['forget']['rows']} forget rows."
        if request
        else f"{data['forget']['rows']} rows, `{data['forget']['split']}` of `{public_name(data['dataset'])}` "
        f"(SHA-256 `{data['forget']['sha256']}`)."
    )
    retain = data["retain"]
    arguments = "\n".join(f"| `{name}` | {value} |" for name, value in sorted(record["arguments"].items()))
    stopped = f"\nThe run was stopped by its guard: {record['stopped']}.\n" if record["stopped"] else ""
    evaluation = _evaluation(report) if report else "Evaluation: not measured (`--eval none`)."
    return f"""{chr(10).join(header)}

# Unlearning adapter ({record["method"]})

A LoRA adapter that makes `{source}` forget. The weights of that model are unchanged: without the adapter it
computes exactly what it did before. This is approximate unlearning; the card says what was measured and claims no more.

## What was to be forgotten

{asked}

Kept on purpose: {f"{retain['rows']} rows of `{retain['split']}`" if retain else "no retain set was used"}.

## How

{record["method"]}: {method.title} (arXiv {method.paper}), {record["steps"]} optimiser steps, seed {record["seed"]}.
{stopped}
| argument | value |
|---|---|
{arguments}

Base weights SHA-256 `{base["fingerprint"]}`.

## What was measured

{evaluation}

Not measured: relearning, quantisation, sampling and jailbreak attacks. The numbers above hold for
the precision and decoding stated with them.

## Use

```python
from llm_unlearn import load_model, load_tokenizer

model = load_model("this folder")  # base and adapter; or peft.PeftModel.from_pretrained(base, "this folder")
```
"""


def _evaluation(report: EvalReport) -> str:
    how = report.provenance
    return (
        f"Tier `{how['tier']}`; answers: {how['generation']}; {how['precision']} on {how['device']}.\n\n"
        f"{report.metrics_markdown()}"
    )
