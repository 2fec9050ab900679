"""Where a bottleneck sits in a model: hooks on one layer, so that layers keep their classes and weights their names.

`block` replaces what a layer hands on. `post_attn` replaces the sum of a layer's input r and its attention a: a hook on
the attention returns ``B(r + a) - r``, to which the layer itself adds r. That sum does not exist where attention and
feed-forward both read the layer's input (GPT-NeoX in its usual form, Phi), so such layers are refused.
"""

import inspect
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from jaxtyping import Bool, Float
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from llm_unlearn.codebook.bottleneck import CodebookBottleneck
from llm_unlearn.codebook.config import CodebookConfig

CHILD_NAME = "codebook"

# A layer's attention, and the norms before it and before the feed-forward, as families call them.
_ATTENTION = (
    ("self_attn", "input_layernorm", "post_attention_layernorm"),
    ("attn", "ln_1", "ln_2"),
    ("attention", "input_layernorm", "post_attention_layernorm"),
)


class StopForwardError(Exception):
    """Ends a forward pass at the bottleneck's place."""


def bare(model: nn.Module) -> PreTrainedModel:
    """The model of `transformers` inside, adapters in its layers included."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def stack_of(model: nn.Module) -> tuple[nn.Module, nn.ModuleList]:
    """The module that runs the layers, and the layers: a decoder's, or the encoder's where there is one.

    Raises:
        ValueError: the model is built in a way unknown here.
    """
    inner = bare(model)
    stack = inner.get_encoder() if inner.config.is_encoder_decoder else inner.base_model
    for name in ("layers", "h", "block"):
        layers = getattr(stack, name, None)
        if isinstance(layers, nn.ModuleList) and len(layers):
            return stack, layers
    raise ValueError(
        f"{type(inner).__name__} keeps its layers where this version does not find them: use a model of the "
        "Llama, Qwen, GPT-2, GPT-NeoX or T5 family."
    )


def resolve(config: CodebookConfig, model: nn.Module) -> CodebookConfig:
    """The config with its layer and width, checked against the model.

    Raises:
        ValueError: there is no such layer, or its site is not to be had.
    """
    inner = bare(model)
    _, layers = stack_of(model)
    default = 2 if inner.config.is_encoder_decoder else round(0.4 * (len(layers) - 1))
    layer = min(default, len(layers) - 1) if config.layer is None else config.layer
    if not 0 <= layer < len(layers):
        raise ValueError(
            f"The model has {len(layers)} layers, 0 to {len(layers) - 1}, but the bottleneck was asked for in layer "
            f"{layer}: choose one of them (`--layer`)."
        )
    if layer == len(layers) - 1 and not inner.config.is_encoder_decoder:
        raise ValueError(
            f"Layer {layer} is the last one, after which nothing is left to read what the codes say: choose an earlier "
            "one (`--layer`)."
        )
    width = inner.config.get_text_config().hidden_size
    if config.d_model not in (None, width):
        raise ValueError(
            f"The codebook was made for a model of width {config.d_model}, but this one has {width}: give the model it "
            "was trained with."
        )
    parameter = next(layers[layer].parameters())
    if parameter.device.type == "meta":
        raise ValueError(f"Layer {layer} is offloaded to disk, where no hook reaches it: load the model in memory.")
    config.layer, config.d_model = layer, width
    if config.site == "post_attn":
        _attention_of(layers[layer], inner)
    return config


def parameters_below(model: nn.Module, config: CodebookConfig) -> list[nn.Parameter]:
    """The weights that decide what comes to the bottleneck: embeddings, earlier layers, adapters in them.

    Args:
        model: with or without the bottleneck.
        config: of the bottleneck, resolved.
    """
    stack, layers = stack_of(model)
    layer = layers[config.layer]
    modules = [child for child in stack.children() if isinstance(child, nn.Embedding)] + list(layers[: config.layer])
    if config.site == "block":
        modules.append(layer)
    else:
        modules.append(_attention_of(layer, bare(model)))
        modules += [getattr(layer, name) for name in _names_in(layer)[:2]]
    # A module may be there twice: Gemma's attention ends in a norm.
    return list({id(parameter): parameter for module in modules for parameter in module.parameters()}.values())


class BottleneckSite:
    """The hooks that put a bottleneck in its place, and take it out again.

    Args:
        model: a causal LM or T5, plain or wrapped by PEFT, not yet by DDP or FSDP.
        bottleneck: becomes a child of the model, where trainers find its weights.
        config: of the bottleneck, resolved.

    """

    def __init__(self, model: nn.Module, bottleneck: CodebookBottleneck, config: CodebookConfig):
        inner = bare(model)
        stack, layers = stack_of(model)
        layer = layers[config.layer]
        self._captured: list[Tensor] | None = None
        self._bottleneck, self._inner = bottleneck, inner
        # T5 has no begin token.
        self._bos = getattr(inner.config.get_text_config(), "bos_token_id", None) if config.exempt_bos else None
        self._exempt: Bool[Tensor, "batch tokens"] | None = None
        self._text: Bool[Tensor, "batch tokens"] | None = None
        self._gate_layer = inner.config.get_text_config().num_hidden_layers
        self._residual: Tensor | None = None
        inner.register_module(CHILD_NAME, bottleneck)
        self._parameters = tuple(inspect.signature(stack.forward).parameters)
        self._handles = [stack.register_forward_pre_hook(self._before_stack, with_kwargs=True)]
        if config.site == "block":
            self._handles.append(layer.register_forward_hook(self._after_block, with_kwargs=True))
            return
        attention = _attention_of(layer, inner)
        if inner.config.is_encoder_decoder:
            # T5's attention module adds its input by itself.
            self._handles.append(attention.register_forward_hook(self._after_block, with_kwargs=True))
            return
        self._handles.append(layer.register_forward_pre_hook(self._before_layer, with_kwargs=True))
        self._handles.append(attention.register_forward_hook(self._after_attention, with_kwargs=True))

    def captured(self, forward: Callable[[], Any]) -> list[Float[Tensor, "batch tokens d"]]:
        """Run `forward` up to the bottleneck's place and return what came there, exempt tokens as NaN.

        What lies above is not run, and the bottleneck neither.
        """
        self._captured = []
        try:
            with suppress(StopForwardError):
                forward()
            return self._captured
        finally:
            self._captured = None

    def remove(self) -> None:
        """Take the bottleneck out; the model is what it was."""
        for handle in self._handles:
            handle.remove()
        delattr(self._inner, CHILD_NAME)

    # Hooks.

    def _before_stack(self, _module: nn.Module, args: tuple, kwargs: dict) -> None:
        given = dict(zip(self._parameters, args, strict=False)) | kwargs
        ids, cache = given.get("input_ids"), given.get("past_key_values")
        self._text = self._exempt = None
        if ids is None:
            return
        started = cache is not None and cache.get_seq_length() > 0
        self._text = text = _text_so_far(given.get("attention_mask"), started)
        if self._bos is not None and not (started and text is None):
            text = torch.ones_like(ids, dtype=torch.bool) if text is None else text
            first = text & (text.cumsum(-1) == 1)
            self._exempt = (ids == self._bos) & first[:, -ids.shape[1] :]

    def _before_layer(self, _module: nn.Module, args: tuple, kwargs: dict) -> None:
        self._residual = args[0] if args else kwargs["hidden_states"]

    def _after_block(self, _module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        return _on_first(output, lambda x: self._replace(x, args, kwargs))

    def _after_attention(self, _module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        if self._captured is None and not self._bottleneck.enabled:
            # Taking the residual away and adding it again would round.
            return output
        residual = self._residual
        return _on_first(output, lambda a: self._replace(residual + a, args, kwargs) - residual)

    def _replace(self, x: Tensor, args: tuple, kwargs: dict) -> Tensor:
        if self._captured is not None:
            self._captured.append(x if self._exempt is None else x.masked_fill(self._exempt[..., None], torch.nan))
            raise StopForwardError
        bottleneck = self._bottleneck
        if not bottleneck.enabled:
            return x
        if bottleneck.enc.weight.device != x.device:
            bottleneck.to(x.device)
        count_hits = None
        if bottleneck.is_gated:
            caches = (value for value in (*args, *kwargs.values()) if isinstance(value, Cache))
            cache, text = next(caches, None), self._text

            def count_hits(hits: Tensor) -> Tensor:
                return self._hits_so_far(hits, text, cache)

        return bottleneck(x, self._exempt, count_hits)

    def _hits_so_far(self, hits: Tensor, text: Tensor | None, cache: Cache | None) -> Tensor:
        """Hits of each token and all before it in its text.

        The hits of past tokens lie in the cache of keys and values, as one more layer: whatever selects, repeats,
        reorders or crops the texts in a cache does the same to them.
        """
        everything = hits
        if cache is not None:
            if cache.is_compileable:
                raise ValueError(
                    "A static cache has no place for what the mode 'gated' counts: generate with the usual one, "
                    "without `cache_implementation`."
                )
            while len(cache.layers) <= self._gate_layer:
                cache.layers.append((cache.layer_class_to_replicate or DynamicLayer)())
            everything = cache.layers[self._gate_layer].update(hits[:, None], hits[:, None])[0][:, 0]
        if text is not None:
            # The mask of now: whoever rearranges a cache puts anything where padding is.
            everything = everything * text[:, -everything.shape[1] :, None]
        return everything.cumsum(1)[:, -hits.shape[1] :]


def _text_so_far(mask: Any, started: bool) -> Bool[Tensor, "batch tokens"] | None:
    """Which tokens are text and which padding, those in the cache too; None where the mask does not say.

    Args:
        mask: as models take it: of tokens, or of pairs of tokens, or one of pairs for each kind of layer.
        started: whether there are tokens in the cache.
    """
    if isinstance(mask, dict):
        mask = next((one for one in mask.values() if one is not None), None)
    if mask is None or mask.dim() == 2:
        return None if mask is None else mask.bool()
    if started:
        return None
    # Padding does not even see itself.
    own = mask[:, 0].diagonal(dim1=-2, dim2=-1)
    return own if own.dtype == torch.bool else own == 0


def _on_first(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Layers hand on a tensor, or a tuple of which it is the first."""
    return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)


def _attention_of(layer: nn.Module, inner: PreTrainedModel) -> nn.Module:
    """What to hook for `post_attn`: a module whose output the layer adds to its own input, and nothing else."""
    if inner.config.is_encoder_decoder:
        return layer.layer[0]
    names = _names_in(layer)
    if not names or getattr(inner.config, "use_parallel_residual", False):
        raise ValueError(
            f"The layers of {type(inner).__name__} do not add attention before the feed-forward reads it, so there is "
            "no site 'post_attn': use the site 'block'."
        )
    # Gemma 2 and 3 norm what attention says before it is added.
    normed = hasattr(layer, "pre_feedforward_layernorm")
    return layer.post_attention_layernorm if normed else getattr(layer, names[0])


def _names_in(layer: nn.Module) -> tuple[str, ...]:
    """Which names of `_ATTENTION` a layer has; none where attention and feed-forward do not have a norm each.

    They have in every family whose residuals come one after another.
    """
    return next((names for names in _ATTENTION if all(hasattr(layer, name) for name in names)), ())
