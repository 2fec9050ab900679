"""The gradient pass: how strongly an answer pulls at the weights, for the gradient-norm attack (metrics.md 7.1).

The norm of one item's gradient is found for a whole batch at once, and no gradient of a weight is ever stored. Hooks
keep what went into each layer, ``a``, and see the gradient ``g`` of what came out, for every token. A linear layer's
gradient is ``sum_t g_t a_t^T``, and its norm needs only inner products between tokens (ghost norms, Goodfellow,
arXiv:1510.01799; Li et al., arXiv:2110.05679)::

    ||sum_t g_t a_t^T||^2 = sum_{t,s} <g_t, g_s> <a_t, a_s>

Weights are not asked for at all, so quantised ones do as well.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from accelerate.utils import extract_model_from_parallel
from jaxtyping import Float, Int
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from llm_unlearn.evaluation.outputs.scoring import Branches
from llm_unlearn.evaluation.outputs.sharding import device_of, evaluating, form_batches, run_sharded
from llm_unlearn.forward import AnswerScores, answer_logits
from llm_unlearn.functional import IGNORE_INDEX, answer_mask

# Activations are kept as in training; by estimate this bounds them to 10 GB with an 8B model at half precision.
# A CPU is hardly faster with more.
_TOKEN_BUDGET = {"cpu": 256, "other": 2048}


class UnknownGradient(ValueError):
    """The model has a layer whose gradient cannot be had without gradients of weights.

    Attributes:
        reason: which, and why.
    """

    def __init__(self, reason: str):
        super().__init__(f"gradnorm is not measured: {reason}")
        self.reason = reason


def gradient_norms(
    model: nn.Module,
    questions: Sequence[Branches],
    *,
    token_budget: int | None = None,
    name: str = "answers",
    progress: bool = True,
) -> list[float]:
    """Mean over parameter tensors of ``||d loss / d tensor||_2``, loss = token-mean NLL of the answer; >= 0.

    The tensors are those of the model without adapters, whatever adapters are active: their gradients are those of the
    merged model's tensors, so adapter, merged and plain models compare. Tied weights are one tensor; one that takes no
    part in the forward does not count. Dropout is off.

    Args:
        model: a causal language model, wrapped by PEFT or DDP or neither, plain or quantised by bitsandbytes; in eval
            mode meanwhile. Neither ``grad`` nor ``requires_grad`` of any parameter is changed afterwards.
        questions: prompts, of whose answers the first counts.
        token_budget: tokens of a batch, padding included. Defaults to 256 on a CPU and 2048 elsewhere.
        name: what the progress bar calls the answers.
        progress: whether the main process shows a bar.

    Returns:
        One norm per question, in order, the same on every process.

    Raises:
        ValueError: an answer is empty, or the model has a layer whose gradient cannot be had this way ("gradnorm is not
            measured: ...").
    """
    for number, question in enumerate(questions):
        if not question.prompt or not question.answers[0]:
            raise ValueError(f"Question {number} of the {name} has an empty answer: leave the row out, or answer it.")
    unwrapped = extract_model_from_parallel(model)
    device = device_of(unwrapped)
    layers = _measured_layers(unwrapped)
    lengths = [len(question.prompt) + len(question.answers[0]) for question in questions]
    budget = token_budget or _TOKEN_BUDGET.get(device.type, _TOKEN_BUDGET["other"])
    batches = form_batches([(length, 0) for length in lengths], budget)
    costs = [len(batch) * max(lengths[position] for position in batch) for batch in batches]

    def run(positions: list[int]) -> list[float]:
        return _norms_of_batch(unwrapped, layers, [questions[position] for position in positions], device)

    with evaluating(unwrapped), _without_weight_gradients(unwrapped):
        return run_sharded(run, batches, costs, f"gradients of {name}", progress)


@contextmanager
def _without_weight_gradients(model: nn.Module) -> Iterator[None]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _measured_layers(model: nn.Module) -> list[nn.Module]:
    """Layers that hold parameters of the model itself, not of an adapter."""
    tuners = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    for tuner in tuners:
        # Others (DoRA, IA3) do not only add to what the base layer gives, so its gradient is not the merged layer's.
        if not isinstance(tuner, LoraLayer) or tuner.lora_variant:
            raise _not_measured(tuner, "is an adapter other than plain LoRA; merge it first")
    bases = {part for tuner in tuners for part in tuner.get_base_layer().modules()}
    added = {part for tuner in tuners for part in tuner.modules()} - bases
    layers = [
        module
        for module in model.modules()
        if module not in added and any(True for _ in module.parameters(recurse=False))
    ]
    tied = {_base(model.get_input_embeddings()), _base(model.get_output_embeddings())}
    owners: dict[nn.Parameter, nn.Module] = {}
    for layer in layers:
        if not (_is_linear(layer) or _is_embedding(layer) or _is_norm(layer)):
            raise _not_measured(layer, "is neither linear, nor an embedding, nor a norm")
        # bitsandbytes 0.50: the kernel for weights repacked on a CPU has no backward.
        if getattr(getattr(layer.weight, "quant_state", None), "packing_format_for_cpu", False):
            raise _not_measured(layer, "was repacked for inference only; load the model anew")
        for parameter in layer.parameters(recurse=False):
            if {owners.setdefault(parameter, layer), layer} not in ({layer}, tied):
                raise _not_measured(layer, "shares a parameter with another")
    return layers


def _is_linear(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear | Conv1D)


def _is_embedding(layer: nn.Module) -> bool:
    # A subclass with a forward of its own may scale, or look up something else than what it is given.
    return type(layer).forward is nn.Embedding.forward


def _is_norm(layer: nn.Module) -> bool:
    vectors = all(parameter.dim() == 1 for parameter in layer.parameters(recurse=False))
    return vectors and not list(layer.children())


def _not_measured(layer: nn.Module, reason: str) -> UnknownGradient:
    return UnknownGradient(f"a layer of type {type(layer).__name__} {reason}.")


def _norms_of_batch(
    model: nn.Module, layers: list[nn.Module], questions: Sequence[Branches], device: torch.device
) -> list[float]:
    batch = _collate(questions, device)
    ghosts = _GhostNorms(model, batch)
    with torch.enable_grad():
        with ExitStack() as hooks:
            for layer in layers:
                hooks.callback(layer.register_forward_hook(ghosts.watch).remove)
            answers = answer_logits(model, model, batch)
        (-AnswerScores.of(answers).means.sum()).backward()
    return torch.stack([squares.clamp_min(0).sqrt() for squares in ghosts.squares.values()]).mean(0).tolist()


def _collate(questions: Sequence[Branches], device: torch.device) -> dict[str, Tensor]:
    """Right-padded; no position behind an answer can change its loss, so padding has gradient 0 everywhere."""
    shape = (len(questions), max(len(question.prompt) + len(question.answers[0]) for question in questions))
    batch = {"input_ids": torch.zeros(shape, dtype=torch.long), "labels": torch.full(shape, IGNORE_INDEX)}
    for row, question in enumerate(questions):
        ids = torch.tensor(question.prompt + question.answers[0])
        batch["input_ids"][row, : len(ids)] = ids
        batch["labels"][row, len(question.prompt) : len(ids)] = ids[len(question.prompt) :]
    return {key: tensor.to(device) for key, tensor in batch.items()}


class _GhostNorms:
    """Squared gradient norms, ``(batch,)`` per parameter, filled in while the backward pass goes through the layers.

    Attributes:
        squares: by id of the parameter.
    """

    def __init__(self, model: nn.Module, batch: dict[str, Tensor]):
        self.squares: dict[int, Float[Tensor, " batch"]] = {}
        self._input_ids = batch["input_ids"]
        self._answer_lengths = answer_mask(batch["labels"]).sum(1).tolist()
        self._head = _base(model.get_output_embeddings())
        self._embedding = _base(model.get_input_embeddings())
        self._tied = self._head.weight is self._embedding.weight
        self._head_rows: list[tuple[Tensor, Tensor]] = []
        self._seen: set[nn.Module] = set()

    def watch(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Forward hook: remember what went in, and be called when the gradient of what came out is known."""
        if layer in self._seen:
            raise _not_measured(layer, "runs twice in one forward")
        self._seen.add(layer)
        a = inputs[0].detach()
        if _is_embedding(layer) and len(a) == 1:
            # Positions, looked up once for all rows: from here on each row has its own.
            a, output = (tensor.expand(len(self._input_ids), *tensor.shape[1:]) for tensor in (a, output))
        if layer is not self._head and len(a) != len(self._input_ids):
            raise _not_measured(layer, "does not keep the items of a batch apart")
        if not output.requires_grad:
            output = output.detach().requires_grad_()
        output.register_hook(partial(self._measure, layer, a))
        return output

    def _measure(self, layer: nn.Module, a: Tensor, g: Tensor) -> None:
        if layer is self._head:
            self._measure_head(layer, a, g)
        elif _is_linear(layer):
            a, g = a.flatten(1, -2), g.flatten(1, -2).float()
            self._record(layer.weight, _linear_squares(a.float(), g))
            if layer.bias is not None:
                self._record(layer.bias, _squares(g.sum(1)))
        elif _is_embedding(layer):
            self._measure_embedding(layer, a, g.float())
        else:
            for name, gradient in _norm_gradients(layer, a, g).items():
                self._record(layer.get_parameter(name), _squares(gradient.float()))

    def _measure_head(self, head: nn.Module, a: Tensor, g: Tensor) -> None:
        """Only answer positions come through the head, row after row."""
        rows = [(a_row.float(), g_row.float()) for a_row, g_row in zip(*(self._split(x) for x in (a, g)), strict=True)]
        self._record(head.weight, torch.cat([_linear_squares(a_row[None], g_row[None]) for a_row, g_row in rows]))
        if head.bias is not None:
            self._record(head.bias, torch.stack([g_row.sum(0).square().sum() for _, g_row in rows]))
        if self._tied:
            self._head_rows = [
                (a_row, g_row[:, ids]) for (a_row, g_row), ids in zip(rows, self._input_ids, strict=True)
            ]

    def _split(self, tensor: Tensor) -> tuple[Tensor, ...]:
        return tensor.split(self._answer_lengths)

    def _measure_embedding(self, layer: nn.Module, ids: Int[Tensor, "batch tokens"], g: Tensor) -> None:
        """Row v of the gradient is the sum of ``g_t`` over the places of token v."""
        if layer.padding_idx is not None:
            # As autograd has it: this row is not trained from below.
            g = g.masked_fill((ids == layer.padding_idx)[..., None], 0)
        same = ids[:, :, None] == ids[:, None, :]
        squares = (torch.bmm(g, g.mT) * same).sum((1, 2))
        if self._tied and layer is self._embedding:
            # ||E + H||^2 = ||E||^2 + ||H||^2 + 2 <E, H>, with <E, H> = sum_t <g_t, H[x_t]> and H[v] = sum_s g_s[v] a_s.
            crossed = [(g_ids * (a @ g_row.T)).sum() for (a, g_ids), g_row in zip(self._head_rows, g, strict=True)]
            squares = squares + 2 * torch.stack(crossed)
        self._record(layer.weight, squares)

    def _record(self, parameter: nn.Parameter, squares: Float[Tensor, " batch"]) -> None:
        """A parameter has one layer; only that of a tied head and embedding comes twice."""
        known = self.squares.get(id(parameter))
        self.squares[id(parameter)] = squares if known is None else known + squares


def _base(layer: nn.Module) -> nn.Module:
    return layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer


def _linear_squares(a: Float[Tensor, "batch n a"], g: Float[Tensor, "batch n g"]) -> Float[Tensor, " batch"]:
    """``||sum_t g_t a_t^T||^2`` per item, through n x n inner products or the a x g gradient, whichever is smaller."""
    tokens, wide, high = a.shape[1], a.shape[2], g.shape[2]
    if tokens * (wide + high) < wide * high:
        return (torch.bmm(a, a.mT) * torch.bmm(g, g.mT)).sum((1, 2))
    return _squares(torch.bmm(g.mT, a))


def _squares(gradients: Float[Tensor, "batch ..."]) -> Float[Tensor, " batch"]:
    return gradients.flatten(1).square().sum(1)


def _norm_gradients(layer: nn.Module, a: Tensor, g: Tensor) -> dict[str, Tensor]:
    """Gradients of the vectors of a norm, ``(batch, size)`` each, by running it again item by item."""
    vectors = {name: parameter.detach() for name, parameter in layer.named_parameters(recurse=False)}

    def pull(vectors: dict[str, Tensor], a: Tensor, g: Tensor) -> Tensor:
        return (torch.func.functional_call(layer, vectors, (a[None],)) * g[None]).sum()

    gradient: Callable[..., dict[str, Tensor]] = torch.func.vmap(torch.func.grad(pull), in_dims=(None, 0, 0))
    return gradient(vectors, a, g)
