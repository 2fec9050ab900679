"""Load a model and its tokenizer: a plain folder, a hub id, or a PEFT or codebook folder with its base."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from llm_unlearn.adapters import RECORD_NAME, TRAINED_ADAPTER, load_reference_adapter, pin_4bit_weights

ADAPTER_CONFIG = "adapter_config.json"
CODEBOOK_CONFIG = "codebook_config.json"


def load_model(source: str | Path, dtype: torch.dtype | None = None, **kwargs: Any) -> nn.Module:
    """Load a causal LM in eval mode.

    Args:
        source: hub id, model folder, PEFT folder or codebook folder. Of a PEFT folder the base is loaded first, with
            the
            adapters that base came with, then the adapter, frozen and active: together they are "the model". So is
            what a codebook folder belongs to, with the bottleneck in it and its requests in force.
        dtype: dtype of the weights. Unset means float32 on CPU and bfloat16 on GPU (transformers' own default would
            silently follow the checkpoint); of a codebook folder, the dtype it was saved with.
        kwargs: passed to `AutoModelForCausalLM.from_pretrained` (`quantization_config`, `revision`, ...).
            `trust_remote_code` is off.

    Raises:
        ValueError: `source` is a folder without a model, or a path that does not exist.
    """
    check_source(source)
    layers = adapter_layers(source)
    base = layers[0] if layers else source
    if (Path(base) / CODEBOOK_CONFIG).is_file():
        # It stands on this module.
        from llm_unlearn.codebook.model import CodebookModel

        model = CodebookModel.load(base, dtype, **kwargs).base_model
    else:
        if dtype is None:
            dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
        model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, trust_remote_code=False, **kwargs)
        pin_4bit_weights(model)
    for folder in layers[1:]:
        model = load_reference_adapter(model, folder)
    return model.eval()


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model; of a PEFT or codebook folder without one, that of its base."""
    check_source(source)
    if (codebook := Path(source) / CODEBOOK_CONFIG).is_file():
        return load_tokenizer(json.loads(codebook.read_text(encoding="utf-8"))["base"]["source"])
    layers = [source] if (Path(source) / "tokenizer_config.json").is_file() else adapter_layers(source)[:1] or [source]
    if layers[0] != source:
        return load_tokenizer(layers[0])
    return AutoTokenizer.from_pretrained(source, trust_remote_code=False)


def adapter_layers(source: str | Path) -> list[str]:
    """What a PEFT folder stands on: ``[base, adapter, ..., source]``; empty for a plain model or a hub id."""
    config = Path(source) / ADAPTER_CONFIG
    if not config.is_file():
        return []
    record = Path(source) / RECORD_NAME
    if record.is_file():
        base = json.loads(record.read_text(encoding="utf-8"))["base"]
        return [*(adapter_layers(base["source"]) or [base["source"]]), str(source)]
    base = json.loads(config.read_text(encoding="utf-8"))["base_model_name_or_path"]
    return [*(adapter_layers(base) or [base]), str(source)]


def check_source(source: str | Path) -> None:
    """Reject what can be no model, before anything is loaded.

    Raises:
        ValueError: see `load_model`.
    """
    path = Path(source)
    if path.is_dir():
        if not any((path / name).is_file() for name in ("config.json", ADAPTER_CONFIG, CODEBOOK_CONFIG)):
            raise ValueError(
                f"The folder {source} has neither config.json nor {ADAPTER_CONFIG}, so it holds no model: give a model "
                "folder, a PEFT folder, a codebook folder, or a hub id (`--model`)."
            )
    elif path.exists() or str(source).startswith((".", "/", "~")):
        raise ValueError(f"{source} is no model folder: give a folder that exists, or a hub id (`--model`).")


def absolute(source: str | Path) -> str:
    """A local folder as an absolute path, which still names it from elsewhere; a hub id as it is."""
    return str(Path(source).resolve()) if Path(source).exists() else str(source)


def require_fp32(model: nn.Module) -> None:
    """Reject full fine-tuning of low-precision weights.

    Raises:
        ValueError: a weight is not fp32.
    """
    low = next((parameter.dtype for parameter in model.parameters() if parameter.dtype != torch.float32), None)
    if low is not None:
        raise ValueError(
            f"The model's weights are {low}, in which most full fine-tuning updates round to nothing: load it in fp32 "
            "(`--dtype float32`) or train an adapter (`--use_peft`)."
        )


def fingerprint(model: nn.Module, leave_out: str | None = TRAINED_ADAPTER) -> str:
    """SHA-256 over the names, shapes, types and bytes of all weights but those of one adapter.

    A model has the same fingerprint before an adapter is put on it, while the adapter trains, and after it was
    removed; it takes about a second per gigabyte.

    Args:
        model: the model.
        leave_out: name of the adapter, by default the one in training; None for all weights.
    """
    digest = hashlib.sha256()
    weights = {
        name.replace("base_model.model.", "").replace(".base_layer", ""): tensor
        for name, tensor in model.state_dict().items()
        if isinstance(tensor, torch.Tensor) and f".{leave_out}." not in name
    }
    for name, tensor in sorted(weights.items()):
        flat = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(flat.shape)} {flat.dtype}".encode())
        digest.update(flat.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def identity(model: nn.Module, weights: str | None = None) -> str:
    """SHA-256 over everything in a model that decides its outputs.

    That is all weights, the settings, and of every adapted layer which adapters are on, merged, and how they scale: a
    model whose adapter or codebook is switched off for a while is another one.

    Args:
        model: the model.
        weights: `fingerprint` of all its weights, where it is known.
    """
    layers = [
        [name, layer.disable_adapters, layer.active_adapters, layer.merged_adapters, getattr(layer, "scaling", None)]
        for name, layer in model.named_modules()
        if isinstance(layer, BaseTunerLayer)
    ]
    adapters = {name: config.to_dict() for name, config in getattr(model, "peft_config", {}).items()}
    # Of which the weights say what is deleted, but not where it is, nor whether it is on.
    codebooks = [
        [name, part.enabled, {key: value for key, value in vars(part.config).items() if key not in ("base", "seed")}]
        for name, part in model.named_modules()
        if _is_codebook(part)
    ]
    settings = [model.config.to_dict(), adapters, layers, weights or fingerprint(model, leave_out=None), *codebooks]
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=_as_text).encode()).hexdigest()


def _is_codebook(module: nn.Module) -> bool:
    from llm_unlearn.codebook.bottleneck import CodebookBottleneck

    return isinstance(module, CodebookBottleneck)


def _as_text(value: Any) -> Any:
    return sorted(map(str, value)) if isinstance(value, set) else str(value)
