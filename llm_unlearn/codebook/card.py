"""The README of a codebook folder: what it is, what it does to the model, what it cannot do."""

from llm_unlearn.codebook.model import CodebookModel
from llm_unlearn.evaluation.report import EvalReport
from llm_unlearn.paths import public_name


def codebook_card(codebook: CodebookModel, report: EvalReport | None) -> str:
    """The card as Markdown with the hub's YAML header; of requests only how many there are, never a text.

    Args:
        codebook: the model.
        report: the run's evaluation; None where it was not run, which the card then says.
    """
    config = codebook.config
    base = (config.base or {}).get("source") or "a model without a name"
    source = public_name(base)
    header = [
        "---",
        *([f"base_model: {source}"] if source == base else []),
        "library_name: llm-unlearn",
        "tags:",
        "- machine-unlearning",
        "- llm-unlearn",
        "- codebook",
        "---",
    ]
    active = codebook.registry.active
    deleted = sum(len(record.codes) for record in active)
    requests = f"{len(active)} requests in force, which delete {deleted} codes" if active else "no request in force"
    evaluation = report.metrics_markdown() if report else "Evaluation: not measured (`--eval none`)."
    return f"""{chr(10).join(header)}

# Codebook bottleneck (CodeUnlearn, arXiv 2410.10866, reconstructed)

{config.num_codes} codes in layer {config.layer} (`{config.site}`) of `{source}`, {config.top_s} per token; {requests}.

```python
from llm_unlearn import load_model

model = load_model("FOLDER")  # the model with the bottleneck and its requests in force
```

## What this cannot do

- The facts are still in the weights. Whoever takes the bottleneck out, or switches it off, has them back.
- Forgetting is approximate, and what resembles the forgotten may suffer.
- The bottleneck itself costs the model something; "before" below says what was measured without the change.

## What was measured

{evaluation}
"""
