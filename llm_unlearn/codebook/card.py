"""The README of a codebook folder: what it is, what it does to the model, what it cannot do."""

from llm_unlearn.codebook.model import CodebookModel
from llm_unlearn.codebook.site import bare
from llm_unlearn.paths import public_name

_LOAD = """from llm_unlearn import load_model

model = load_model("FOLDER")  # the model with the bottleneck and its requests in force"""
_LOAD_PAIRS = """from llm_unlearn.codebook.seq2seq import load_pair_codebook

codebook = load_pair_codebook("FOLDER")  # the model with the bottleneck and its requests in force"""


def codebook_card(codebook: CodebookModel, measured: str | None) -> str:
    """The card as Markdown with the hub's YAML header; of requests only how many there are, never a text.

    Args:
        codebook: the model.
        measured: the run's evaluation, as Markdown; None where it was not run, which the card then says.
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
    in_force = codebook.registry.in_force
    deleted = sum(len(record.codes) for record in in_force)
    requests = f"{len(in_force)} requests in force, which delete {deleted} codes" if in_force else "no request in force"
    of_pairs = bare(codebook.base_model).config.is_encoder_decoder
    return f"""{chr(10).join(header)}

# Codebook bottleneck (CodeUnlearn, arXiv 2410.10866, reconstructed)

{config.num_codes} codes in layer {config.layer} (`{config.site}`) of `{source}`, {config.top_s} per token; {requests}.

```python
{_LOAD_PAIRS if of_pairs else _LOAD}
```

## What this cannot do

- The facts are still in the weights. Whoever takes the bottleneck out, or switches it off, has them back.
- Forgetting is approximate, and what resembles the forgotten may suffer.
- The bottleneck itself costs the model something; "before" below says what was measured without the change.

## What was measured

{measured or "Evaluation: not measured (`--eval none`)."}
"""
