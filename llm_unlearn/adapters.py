"""Adapters on a model: put on, switch off, save, load, merge.

The weights of a model never change; what was unlearned is one LoRA adapter beside them. A model may itself come as
base + adapter (a PEFT folder). Such adapters stay active and frozen under `REFERENCE_ADAPTER` names, and the reference
is the model *with* them: revoking the trained adapter gives back exactly the model one started from.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from llm_unlearn.files import replace_folder, write_json

TRAINED_ADAPTER = "default"
"""Name of the adapter that a run trains; peft saves the adapter of this name at the top of a folder."""

REFERENCE_ADAPTER = "reference"
"""Prefix of the names of adapters that a model came with."""

RECORD_NAME = "unlearning_config.json"
RECORD_SCHEMA = "llm-unlearn/adapter/1"


def lora_config(r: int = 16, lora_alpha: int = 32, lora_dropout: float = 0.0) -> LoraConfig:
    """LoRA on all linear layers but the head, our starting point for every method (r 16, alpha 2 r, no dropout)."""
    return LoraConfig(
        r=r, lora_alpha=lora_alpha, lora_dropout=lora_dropout, target_modules="all-linear", task_type="CAUSAL_LM"
    )


def attach_adapter(model: PreTrainedModel | PeftModel, peft_config: PeftConfig, seed: int) -> PeftModel:
    """Put a fresh trainable adapter on `model`, in place.

    Args:
        model: a plain or quantised model, or a `PeftModel` whose adapters stay active and frozen.
        peft_config: the adapter; its weights are fp32 whatever the base.
        seed: seed of its initial weights; the global random state is left alone.

    Raises:
        ValueError: `model` already has a trainable adapter, or see `pin_4bit_weights`.
    """
    pin_4bit_weights(model)
    if not isinstance(model, PeftModel):
        with _seeded(seed):
            return get_peft_model(model, peft_config, TRAINED_ADAPTER)
    if TRAINED_ADAPTER in model.peft_config:
        raise ValueError(
            f"The model already has an adapter {TRAINED_ADAPTER!r}: load it with `llm_unlearn.load_model`, which "
            "keeps the adapters a model comes with apart, or merge it first."
        )
    if peft_config.target_modules == "all-linear":
        # peft would count the frozen adapters' own matrices among "all linear layers".
        peft_config.target_modules = _linear_names(model)
    with _seeded(seed):
        model.add_adapter(TRAINED_ADAPTER, peft_config)
    _activate(model, [*_reference_names(model), TRAINED_ADAPTER])
    return model


def pin_4bit_weights(model: nn.Module) -> None:
    """Keep bitsandbytes from repacking 4-bit weights on CPUs that compute in bf16.

    There its first forward without gradient rounds the weights' scales and turns to a kernel that has no backward
    (bitsandbytes 0.50): the base would change, and training after an evaluation would get wrong gradients in silence.

    Raises:
        ValueError: it has already happened.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            if getattr(module.weight.quant_state, "packing_format_for_cpu", False):
                raise ValueError(
                    "bitsandbytes has repacked the model's 4-bit weights for inference, which cannot be undone: load "
                    "it anew, with `llm_unlearn.load_model`."
                )
            module.support_avx512bf16_for_cpu = False


def load_reference_adapter(model: PreTrainedModel | PeftModel, folder: str | Path) -> PeftModel:
    """Put the adapter in `folder` on `model`, frozen and active, on top of those already there."""
    if not isinstance(model, PeftModel):
        return PeftModel.from_pretrained(model, folder, adapter_name=f"{REFERENCE_ADAPTER}_0").eval()
    name = f"{REFERENCE_ADAPTER}_{len(model.peft_config)}"
    model.load_adapter(folder, name)
    _activate(model, _reference_names(model))
    return model.eval()


def remove_newest_adapter(model: PeftModel) -> PreTrainedModel | PeftModel:
    """Take off the last adapter that `load_reference_adapter` put on, so that another can take its place.

    Returns:
        The model it was put on, with the adapters that this one came with.
    """
    *older, newest = _reference_names(model)
    if not older:
        return model.unload()
    model.delete_adapter(newest)
    _activate(model, older)
    return model


def newest_adapter(model: PeftModel) -> str:
    """The adapter in training, or, where none is, the last of those the model came with."""
    return TRAINED_ADAPTER if TRAINED_ADAPTER in model.peft_config else _reference_names(model)[-1]


@contextmanager
def without_newest_adapter(model: PeftModel) -> Iterator[None]:
    """Within the context `model` computes exactly what it did before its newest adapter was put on."""
    names = [*_reference_names(model), *([TRAINED_ADAPTER] if TRAINED_ADAPTER in model.peft_config else [])]
    older = names[:-1]
    if not older:
        with model.disable_adapter():
            yield
        return
    _activate(model, older)
    try:
        yield
    finally:
        _activate(model, names)


def save_adapter(model: PeftModel, folder: str | Path, record: dict, card: str) -> None:
    """Write the trained adapter: `adapter_model.safetensors`, `adapter_config.json`, the record and the model card.

    Args:
        model: the trained model.
        folder: written as a whole or not at all.
        record: contents of `unlearning_config.json`; its schema is added.
        card: contents of `README.md`.

    Raises:
        ValueError: the adapter has weights that are not finite.
        OSError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    require_finite(model)
    with replace_folder(folder) as partial:
        model.save_pretrained(partial, selected_adapters=[TRAINED_ADAPTER])
        write_json(partial / RECORD_NAME, {"schema": RECORD_SCHEMA, **record})
        (partial / "README.md").write_text(card, encoding="utf-8")


def require_finite(model: nn.Module) -> None:
    """Reject what a diverged run left behind, before it is written.

    Raises:
        ValueError: trained weights are not finite.
    """
    bad = [name for name, p in model.named_parameters() if p.requires_grad and not torch.isfinite(p).all()]
    if bad:
        raise ValueError(f"The run left non-finite weights ({bad[0]} and {len(bad) - 1} more); they are not saved.")


def load_record(folder: str | Path) -> dict:
    """The `unlearning_config.json` of an adapter folder.

    Raises:
        FileNotFoundError: `folder` is no adapter folder of this toolkit.
    """
    path = Path(folder) / RECORD_NAME
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} has no {RECORD_NAME}, so it is no adapter of llm-unlearn: give the `adapter` folder of a run."
        )
    return json.loads(path.read_text(encoding="utf-8"))


def merge_adapter(model: PeftModel, folder: str | Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Fold all adapters into the weights and write a plain model folder with its tokenizer.

    Merging cannot be revoked, and rounds where the weights are bf16: evaluate the merged model before it is used.

    Raises:
        ValueError: there is no adapter, or the base is quantised and its weights cannot hold the sum.
    """
    if not isinstance(model, PeftModel):
        raise ValueError("The model has no adapter to merge: give the `adapter` folder of a run.")
    if getattr(model.get_base_model(), "is_quantized", False):
        raise ValueError(
            "The base is quantised and cannot take up an adapter: load it without `quantization_config`, then merge."
        )
    merged = model.merge_and_unload(adapter_names=_active_names(model))
    with replace_folder(folder) as partial:
        merged.save_pretrained(partial)
        tokenizer.save_pretrained(partial)


def _reference_names(model: PeftModel) -> list[str]:
    return [name for name in model.peft_config if name.startswith(REFERENCE_ADAPTER)]


def _active_names(model: PeftModel) -> list[str]:
    active = model.base_model.active_adapter
    return [active] if isinstance(active, str) else list(active)


def _activate(model: PeftModel, names: list[str]) -> None:
    model.base_model.set_adapter(names)
    # set_adapter makes every active adapter trainable.
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(f".{TRAINED_ADAPTER}." in name and TRAINED_ADAPTER in names)


def _linear_names(model: PeftModel) -> list[str]:
    head = model.get_output_embeddings()
    names = set()
    for name, module in model.base_model.model.named_modules():
        inside_adapter = "lora_" in name or name.endswith(".base_layer")
        if isinstance(module, nn.Linear | Conv1D | LoraLayer) and module is not head and not inside_adapter:
            names.add(name.rsplit(".", 1)[-1])
    return sorted(names)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
