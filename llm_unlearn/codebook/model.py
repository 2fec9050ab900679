"""A model with a codebook bottleneck in it, in the manner of PEFT: put in, switch off, take out, save, load, push."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from llm_unlearn.adapters import TRAINED_ADAPTER, load_reference_adapter, newest_adapter
from llm_unlearn.codebook.bottleneck import CodebookBottleneck
from llm_unlearn.codebook.config import CodebookConfig
from llm_unlearn.codebook.registry import DeletionRegistry
from llm_unlearn.codebook.site import CHILD_NAME, BottleneckSite, bare, resolve
from llm_unlearn.files import replace_folder
from llm_unlearn.models import fingerprint, load_model

WEIGHTS_NAME = "codebook.safetensors"
ADAPTER_FOLDER, BASE_FOLDER = "lora", "base"
# Not part of the file: the requests say what is deleted.
_MASKS = ("refilled", "ablated", "gate_triggers", "gated", "gate_thresholds")
# How names begin under which models and adapters write, publish or fold themselves, all without the bottleneck.
_NOT_FORWARDED = ("save", "push", "merge", "unload")


def get_codebook_model(
    model: PreTrainedModel | PeftModel, config: CodebookConfig, *, whitened: bool = False
) -> "CodebookModel":
    """Put a bottleneck with random weights into `model`; `initialise` gives it better ones.

    Args:
        model: a causal LM or T5, plain, quantised, or with adapters. It is changed in place: until `detach`, every call
            of it goes through the bottleneck.
        config: `layer` and `d_model` are filled in.
        whitened: whether first weights will be made with `init_whiten`, which needs each direction and its opposite:
            an unset `code_dim` then becomes 2 d.

    Raises:
        ValueError: the model has a bottleneck already, no such layer, or the site does not exist in it.
    """
    if whitened and config.code_dim is None:
        config.code_dim = 2 * resolve(config, model).d_model
    return CodebookModel(model, config)


class CodebookModel(nn.Module):
    """A model and the bottleneck in it. Calls, `generate` and other names go through to the model, but for those that
    would save, push or merge it without the bottleneck.

    The bottleneck must stay: forgetting is what it does not let pass, and the facts are still in the weights. There is
    therefore no merging; whoever takes the bottleneck out has the knowledge back.

    Args:
        model, config: as in `get_codebook_model`.

    Attributes:
        base_model: the model, hooks in place; evaluate and adapt this one like any other.
        site: the hooks, a `BottleneckSite`.
        bottleneck: the `CodebookBottleneck`, a child of the model under the name `codebook`.
        config: its `CodebookConfig`.
        registry: the requests whose codes are deleted.
        trained: what was trained beside the bottleneck, and is saved with it: "bottleneck" (nothing), "lora" (the
            newest adapter, in `lora/`) or "full" (all weights, in `base/`).
    """

    def __init__(self, model: PreTrainedModel | PeftModel, config: CodebookConfig):
        super().__init__()
        inner = bare(model)
        if hasattr(inner, CHILD_NAME):
            raise ValueError("The model has a codebook bottleneck already: `detach` that one first.")
        self.config = resolve(config, model)
        bottleneck = CodebookBottleneck(config).to(next(inner.parameters()).device)
        self.site = BottleneckSite(model, bottleneck, config)
        # Or the base's own `save_pretrained` would write them.
        inner._keys_to_ignore_on_save = set(inner._keys_to_ignore_on_save or ()) | {
            f"{CHILD_NAME}.{name}" for name in bottleneck.state_dict()
        }
        self.base_model = model
        self.registry = DeletionRegistry()
        self.trained: Literal["bottleneck", "lora", "full"] = "bottleneck"

    @property
    def bottleneck(self) -> CodebookBottleneck:
        """The bottleneck."""
        return getattr(bare(self.base_model), CHILD_NAME)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's forward, through the bottleneck."""
        return self.base_model(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_model":
                raise
            if name.startswith(_NOT_FORWARDED):
                raise AttributeError(
                    f"`{name}` is the model's own and knows nothing of the bottleneck, without which nothing is "
                    "forgotten: use `save_pretrained` or `push_to_hub` of the codebook model, or, if the model without "
                    f"bottleneck is meant, `base_model.{name}`."
                ) from None
            return getattr(self.base_model, name)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Within the context the model computes what it does without the bottleneck, bit for bit."""
        was = self.bottleneck.enabled
        self.bottleneck.enabled = False
        try:
            yield
        finally:
            self.bottleneck.enabled = was

    def detach(self) -> PreTrainedModel | PeftModel:
        """Take the bottleneck out and return the model as it was given (with what was trained in it)."""
        model = self.base_model
        inner = bare(model)
        inner._keys_to_ignore_on_save = {
            name for name in inner._keys_to_ignore_on_save if not name.startswith(f"{CHILD_NAME}.")
        }
        self.site.remove()
        return model

    def merge_and_unload(self, *_: Any, **__: Any) -> NoReturn:
        """Not to be had.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            "A codebook bottleneck cannot be merged into weights: it chooses codes per token, and forgetting lasts "
            "only while it is in the model. Save it beside the model (`save_pretrained`), or take it out (`detach`)."
        )

    def delete(self) -> None:
        """Put the registry into force: exactly the codes of its requests in force are deleted."""
        self.bottleneck.set_deleted(**self.registry.deleted())

    def purge(self, request_id: str) -> None:
        """Remove the vectors of an active request's codes for good; see `CodeUnlearner.purge`.

        Raises:
            KeyError: there is no such request.
            ValueError: it is not active, or another request in force holds some of its codes in another mode.
        """
        require_purgeable(self.registry, request_id)
        record = self.registry[request_id]
        bottleneck = self.bottleneck
        if record.mode == "refill":
            kept = [code for code in range(self.config.num_codes) if code not in set(record.codes)]
            bottleneck.drop_rows(kept)
            self.config.num_codes = len(kept)
            self.registry.renumber(kept)
        else:
            bottleneck.forget_vectors(record.erasable)
        self.registry.set_status(request_id, "purged")
        self.delete()

    # Files.

    def save_pretrained(self, folder: str | Path, card: str | None = None) -> None:
        """Write config, weights and requests, and what was trained together with the bottleneck.

        Args:
            folder: written as a whole or not at all.
            card: contents of `README.md`.

        Raises:
            ValueError: the weights are not finite.
            OSError: the folder cannot be written; nothing is left behind.
        """
        state = self.bottleneck.state_dict()
        bad = [
            name for name, tensor in state.items() if tensor.is_floating_point() and not torch.isfinite(tensor).all()
        ]
        if bad:
            raise ValueError(f"The codebook has weights that are not finite ({bad[0]}); it is not saved.")
        if self.config.base is None:
            self.config.base = {"source": getattr(bare(self.base_model).config, "_name_or_path", None)}
        self.config.base["dtype"] = str(self.base_model.get_input_embeddings().weight.dtype).removeprefix("torch.")
        if self.trained == "full" or "fingerprint" not in self.config.base:
            # Weights that are trained here may be others than at the last saving.
            self.config.base |= self._base_identity()
        with replace_folder(folder) as partial:
            self.config.save(partial)
            tensors = {name: tensor.cpu().contiguous() for name, tensor in state.items() if name not in _MASKS}
            save_file(tensors, partial / WEIGHTS_NAME)
            self.registry.save(partial, codebook_hash=self.weights_hash())
            if self.trained == "lora":
                _save_newest_adapter(self.base_model, partial / ADAPTER_FOLDER)
            if self.trained == "full":
                bare(self.base_model).save_pretrained(partial / BASE_FOLDER)
            if card:
                (partial / "README.md").write_text(card, encoding="utf-8")

    def save_requests(self, folder: str | Path) -> None:
        """Write the requests into a folder that already holds this codebook.

        Raises:
            FileNotFoundError: `folder` is no codebook folder.
            ValueError: it holds a codebook with other weights, of which these requests would delete something else.
        """
        own = self.weights_hash()
        if read_requests(folder)[1] != own:
            raise ValueError(
                f"The codebook in {folder} has other weights than this one, so its codes mean something else: give the "
                "folder it was loaded from, or save it whole (`save_pretrained`)."
            )
        self.registry.save(Path(folder), own)

    def push_to_hub(
        self, repo_id: str, *, private: bool | None = None, token: str | None = None, card: str | None = None
    ) -> str:
        """Save to a temporary folder and upload that, with the requests; returns the address of the repository.

        Of the requests only which codes are deleted is published (`DeletionRegistry.redacted`), of folders on this
        machine only their own names.

        Args:
            repo_id: "USER/NAME"; created if needed.
            private: whether a new repository is private; unset follows the account's default.
            token: unset means the one of `hf auth login` or of the variable HF_TOKEN. It is never logged or written.
            card: contents of `README.md`; unset, a card that says that nothing was measured.

        Raises:
            ValueError: no valid `repo_id`, no token, or the weights are not finite.
            OSError: the hub cannot be reached or refuses.
        """
        # It stands on this module.
        from llm_unlearn.hub import push_codebook_model

        return push_codebook_model(self, repo_id, private, token, card)

    @classmethod
    def from_pretrained(cls, model: PreTrainedModel | PeftModel, folder: str | Path) -> "CodebookModel":
        """Put the bottleneck saved in `folder` into `model`, the one it was trained with, and its requests into force.

        Raises:
            FileNotFoundError: `folder` is no codebook folder.
            ValueError: it belongs to another model, another quantisation, or its requests to another codebook.
        """
        folder = Path(folder)
        config = CodebookConfig.load(folder)
        saved = dict(config.base or {})
        codebook = cls(model, config)
        try:
            found = codebook._base_identity()
            for key, what in (("quantization", "quantisation"), ("fingerprint", "weights")):
                if key in saved and saved[key] != found[key]:
                    raise ValueError(
                        f"The codebook in {folder} was made for a model of other {what} ({saved.get('source')}): codes "
                        "mean something only in the model they were trained with; load that one."
                    )
            state = load_file(folder / WEIGHTS_NAME, device=str(codebook.bottleneck.enc.weight.device))
            current = codebook.bottleneck.state_dict()
            codebook.bottleneck.load_state_dict({**current, **state})
            codebook.bottleneck.requires_grad_(False)
            codebook.registry = DeletionRegistry.load(folder, codebook_hash=codebook.weights_hash())
            codebook.delete()
        except Exception:
            codebook.detach()
            raise
        if (folder / ADAPTER_FOLDER).is_dir():
            codebook.base_model = load_reference_adapter(model, folder / ADAPTER_FOLDER)
            codebook.trained = "lora"
        if (folder / BASE_FOLDER).is_dir():
            codebook.trained = "full"
        return codebook

    @classmethod
    def load(cls, folder: str | Path, dtype: torch.dtype | None = None, **kwargs: Any) -> "CodebookModel":
        """Load the model that a codebook folder belongs to, and the bottleneck into it.

        Args:
            folder: as `save_pretrained` wrote it.
            dtype, kwargs: as in `load_model`. Unset, the dtype and the quantisation the codebook was saved with.

        Raises:
            ValueError: the model is not where the folder says; see also `from_pretrained`.
        """
        own, base = Path(folder) / BASE_FOLDER, CodebookConfig.load(folder).base or {}
        source = str(own) if own.is_dir() else base.get("source")
        if source is None:
            raise ValueError(f"{folder} does not say which model it is for: use `from_pretrained` with that model.")
        if dtype is None and "dtype" in base:
            dtype = getattr(torch, base["dtype"])
        if base.get("quantization"):
            kwargs = {"quantization_config": BitsAndBytesConfig(**base["quantization"])} | kwargs
        return cls.from_pretrained(load_model(source, dtype, **kwargs), folder)

    def weights_hash(self) -> str:
        """SHA-256 of the bottleneck's weights, without what is deleted; requests belong to one such hash."""
        return _hash(self.bottleneck.state_dict())

    def _base_identity(self) -> dict:
        """The model without bottleneck and without the adapter trained with it, told apart from all others."""
        inner = bare(self.base_model)
        bottleneck = self.bottleneck
        delattr(inner, CHILD_NAME)
        try:
            # An adapter trained with the bottleneck is one more part of it, not of the model it was put into.
            weights = fingerprint(self.base_model, leave_out=TRAINED_ADAPTER)
        finally:
            inner.register_module(CHILD_NAME, bottleneck)
        quantization = getattr(inner.config, "quantization_config", None)
        return {"fingerprint": weights, "quantization": quantization and _plain(quantization)}


def read_requests(folder: str | Path) -> tuple[DeletionRegistry, str]:
    """The requests of a codebook folder and the hash of its weights, without loading the model.

    Raises:
        FileNotFoundError: `folder` is no codebook folder.
        ValueError: the requests belong to a codebook with other weights.
    """
    CodebookConfig.load(folder)
    weights = _hash(load_file(Path(folder) / WEIGHTS_NAME))
    return DeletionRegistry.load(Path(folder), codebook_hash=weights), weights


def require_purgeable(registry: DeletionRegistry, request_id: str) -> None:
    """Refuse what `CodebookModel.purge` cannot do, and why.

    Raises:
        KeyError, ValueError: see there.
    """
    record = registry[request_id]
    if record.status != "active":
        raise ValueError(f"Request {request_id!r} is {record.status}; only an active request can be purged.")
    for other in registry.in_force:
        shared = {*record.codes, *record.triggers} & {*other.codes, *other.triggers}
        if shared and (other.mode == "refill") != (record.mode == "refill"):
            revoke = f"{other.id!r} first" if other.status == "active" else f"{request_id!r}, as that one is purged"
            raise ValueError(
                f"Request {other.id!r} deletes {len(shared)} of the same codes in the mode {other.mode!r}, which needs "
                f"them to be as they are: revoke {revoke}."
            )


def _hash(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        if name not in (*_MASKS, "last_used"):
            flat = tensor.detach().cpu().contiguous()
            digest.update(f"{name} {tuple(flat.shape)} {flat.dtype}".encode())
            digest.update(flat.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _save_newest_adapter(model: PeftModel, folder: Path) -> None:
    """Write an adapter to the top of `folder`, where peft puts only those named "default"."""
    name = newest_adapter(model)
    model.save_pretrained(folder, selected_adapters=[name])
    if (folder / name).is_dir():
        for file in (folder / name).iterdir():
            file.rename(folder / file.name)
        (folder / name).rmdir()


def _plain(quantization: Any) -> dict:
    content = quantization if isinstance(quantization, dict) else quantization.to_dict()
    return {name: value for name, value in content.items() if name.startswith(("load", "bnb")) and value is not None}
