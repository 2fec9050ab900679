"""The bottleneck: encoder, discrete codes, decoder. What a layer says goes through a few of K codes, and nothing round
it.

For a token's activation x of length d, with ``W_e, b_e, W_d, b_d`` and the codes ``c_1 ... c_K`` of length m:

    z = ReLU(W_e norm(x) + b_e)          Omega = the S codes of largest cos(z, c_k)
    q = sum_{k in Omega} c_k             y = W_d q + b_d

y takes the place of x: there is no residual or error term, so that what the codes cannot say is lost to all later
    layers.
Gradients pass the choice straight through: the decoder reads ``u = q + (z - stop(z))``, whose value is exactly q.

CodeUnlearn (arXiv 2410.10866), reconstructed from its reviews; the codes of one layer after Codebook Features (arXiv
2310.17230). Ours: the norm before the encoder, without which training collapses, and all in fp32.

A deleted code can leave in two ways. *Refilled* codes are not found any more and the next nearest take their place, as
"removing codes from the codebook" implies. *Ablated* codes are found and say nothing. *Gated* ones are ablated only
in texts on the request's subject, from where such a text has used enough of the codes that betray the subject (the
triggers, after the sequence gate of arXiv 2504.08192).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from llm_unlearn.codebook.config import CodebookConfig
from llm_unlearn.codebook.search import top_codes

# Added to squared lengths before a division; a zero vector then stays zero.
_EPS = 1e-6


@dataclass(frozen=True)
class Observation:
    """One pass through the bottleneck, in fp32.

    Attributes:
        x: ``(batch, tokens, d)``, what came in.
        z: ``(batch, tokens, m)``, encoded.
        codes: ``(batch, tokens, S)``, the codes found, nearest first, the ablated ones among them.
        q: ``(batch, tokens, m)``, what they sum up to.
        y: ``(batch, tokens, d)``, what went out, of exempt tokens too.
        exempt: ``(batch, tokens)``, tokens that passed by; None where none did.
    """

    x: Float[Tensor, "batch tokens d"]
    z: Float[Tensor, "batch tokens m"]
    codes: Int[Tensor, "batch tokens S"]
    q: Float[Tensor, "batch tokens m"]
    y: Float[Tensor, "batch tokens d"]
    exempt: Bool[Tensor, "batch tokens"] | None


@dataclass(frozen=True)
class Gate:
    """Codes that are ablated in a text from where it has used `triggers` `threshold` times."""

    triggers: Sequence[int]
    codes: Sequence[int]
    threshold: float


class Affine(nn.Module):
    """``W x + b``; no `nn.Linear`, so that whatever adapts or quantises "all linear layers" leaves it alone."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Float[Tensor, "... i"]) -> Float[Tensor, "... o"]:
        """``W x + b``."""
        return F.linear(x, self.weight, self.bias)


class CodebookBottleneck(nn.Module):
    """See the module docstring. Weights are fp32 whatever the model's are.

    Args:
        config: with `d_model` set.

    Attributes:
        enc, dec: the encoder and the decoder.
        codebook: the codes, ``codebook.weight`` of shape ``(K, m)``.
        refilled, ablated: ``(K,)`` bool, the deleted codes by how they leave.
        purged: ``(K,)`` bool, codes whose vector is gone for good: only their direction is left, and they say nothing.
        last_used: ``(K,)``, the training step that used each code last.
        x_variance: ``()``, the mean variance of a coordinate of x, the unit of reconstruction errors; 1 until measured.
        enabled: whether the bottleneck is in force; see `CodebookModel.disabled`.
    """

    def __init__(self, config: CodebookConfig):
        super().__init__()
        d, m, n_codes = config.d_model, config.code_dim or config.d_model, config.num_codes
        self.config = config
        self.enc, self.dec = Affine(d, m), Affine(m, d)
        # Not `nn.Embedding(n_codes, m)`, which would draw from the global random state.
        self.codebook = nn.Embedding.from_pretrained(torch.empty(n_codes, m), freeze=False)
        for name in ("refilled", "ablated", "purged"):
            self.register_buffer(name, torch.zeros(n_codes, dtype=torch.bool))
        self.register_buffer("last_used", torch.zeros(n_codes, dtype=torch.long))
        self.register_buffer("x_variance", torch.ones(()))
        for name in ("gate_triggers", "gated"):
            self.register_buffer(name, torch.zeros(0, n_codes, dtype=torch.bool))
        self.register_buffer("gate_thresholds", torch.zeros(0))
        self.enabled = True
        self._observer: Callable[[Observation], None] | None = None
        self._directions: tuple[tuple, Tensor] | None = None
        self._any_deleted = (False, False, False)
        self.float()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Random weights from the config's seed; `initialise` makes better ones from activations."""
        # Weights are drawn on the CPU, so that every device starts from the same.
        generator = torch.Generator().manual_seed(self.config.seed)
        with torch.no_grad():
            for affine in (self.enc, self.dec):
                drawn = torch.empty(affine.weight.shape)
                nn.init.orthogonal_(drawn, generator=generator)
                affine.weight.copy_(drawn)
                affine.bias.zero_()
            m, d = self.enc.weight.shape
            if m >= 2 * d:
                # Each direction and its opposite, of which ReLU lets one through: nothing is lost.
                square = nn.init.orthogonal_(torch.empty(d, d), generator=generator).to(self.enc.weight.device)
                self.enc.weight[: 2 * d] = torch.cat([square, -square])
            drawn = torch.empty(self.codebook.weight.shape).normal_(generator=generator).abs_()
            self.codebook.weight.copy_(drawn / math.sqrt(drawn.shape[1]))

    # Deletion.

    def set_deleted(
        self, refilled: Sequence[int] = (), ablated: Sequence[int] = (), gates: Sequence[Gate] = ()
    ) -> None:
        """Delete exactly these codes; those deleted before and not named come back.

        Raises:
            ValueError: a code that does not exist, or so many refilled ones that fewer than S are left to be found.
        """
        n_codes = self.config.num_codes
        for code in (*refilled, *ablated, *(code for gate in gates for code in (*gate.triggers, *gate.codes))):
            if not 0 <= code < n_codes:
                raise ValueError(f"Code {code} was to be deleted, but the codes are numbered 0 to {n_codes - 1}.")
        left = n_codes - len(set(refilled))
        if left < self.config.top_s:
            raise ValueError(
                f"Deleting {len(set(refilled))} of {n_codes} codes would leave {left}, and every token needs "
                f"{self.config.top_s}: delete fewer, or use the mode 'ablate', which leaves the codes in place."
            )
        device = self.refilled.device
        for buffer, codes in ((self.refilled, refilled), (self.ablated, ablated)):
            buffer.zero_()
            buffer[torch.tensor(sorted(set(codes)), dtype=torch.long, device=device)] = True
        self.gate_triggers, self.gated = torch.zeros(2, len(gates), n_codes, dtype=torch.bool, device=device)
        for i, gate in enumerate(gates):
            for row, codes in ((self.gate_triggers[i], gate.triggers), (self.gated[i], gate.codes)):
                row[torch.tensor(sorted(set(codes)), dtype=torch.long, device=device)] = True
        self.gate_thresholds = torch.tensor([float(gate.threshold) for gate in gates], device=device)
        self._notice_deleted()

    def _notice_deleted(self) -> None:
        # Asked once here, not at every token: on a GPU each question would wait for it.
        dead = self.ablated | self.purged
        self._any_deleted = (bool(self.refilled.any()), bool(dead.any()), bool(len(self.gated)))

    def drop_rows(self, kept: Sequence[int]) -> None:
        """Keep only these codes, which are renumbered in this order."""
        rows = torch.tensor(kept, device=self.refilled.device)
        self.codebook = nn.Embedding.from_pretrained(self.codebook.weight.detach()[rows], freeze=True)
        for name in ("refilled", "ablated", "purged", "last_used"):
            setattr(self, name, getattr(self, name)[rows])
        self.gate_triggers, self.gated = self.gate_triggers[:, rows], self.gated[:, rows]
        self._notice_deleted()

    def forget_vectors(self, codes: Sequence[int]) -> None:
        """Leave of these codes only their direction: they are found as before, and say nothing."""
        rows = torch.tensor(sorted(set(codes)), device=self.refilled.device)
        with torch.no_grad():
            self.codebook.weight[rows] = self.directions()[rows]
        self.purged[rows] = True
        self._notice_deleted()

    @property
    def is_gated(self) -> bool:
        """Whether a text's past decides what is deleted in it."""
        return self._any_deleted[2]

    # The pass.

    def forward(
        self,
        x: Float[Tensor, "batch tokens d"],
        exempt: Bool[Tensor, "batch tokens"] | None = None,
        count_hits: Callable[[Tensor], Tensor] | None = None,
    ) -> Float[Tensor, "batch tokens d"]:
        """What later layers read in place of `x`, in the dtype of `x`.

        Args:
            x: the activations.
            exempt: tokens that pass by unchanged.
            count_hits: from the hits on each gate of the tokens given, ``(batch, tokens, gates)``, to those of each
                token and all before it in its text. Defaults to a running sum over the tokens given.
        """
        x32 = x.float()
        # Under autocast, as a Trainer with `bf16` runs it, all this would be in bf16, where cosines are full of ties.
        with torch.autocast(x.device.type, enabled=False):
            z = self.encode(x32)
            codes = self.search(z)
            q = self._sum(codes, self._closed(z, codes, exempt, count_hits))
            y = self.dec(q + (z - z.detach()))
        if self._observer is not None:
            self._observer(Observation(x32, z, codes, q, y, exempt))
        if exempt is not None:
            y = torch.where(exempt[..., None], x32, y)
        return y.to(x.dtype)

    def encode(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... m"]:
        """``z = ReLU(W_e norm(x) + b_e)``, at root mean square 1 where the config says so."""
        z = F.relu(self.enc(self.normalise(x)))
        return F.rms_norm(z, z.shape[-1:], eps=_EPS) if self.config.unit_z else z

    def normalise(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """What the encoder reads: the activations, normed as the config says."""
        if self.config.norm == "rms":
            return F.rms_norm(x.float(), x.shape[-1:], eps=_EPS)
        if self.config.norm == "layer":
            return F.layer_norm(x.float(), x.shape[-1:], eps=_EPS)
        return x.float()

    def search(
        self, z: Float[Tensor, "... m"], k: int | None = None, *, ignore_deleted: bool = False
    ) -> Int[Tensor, "... k"]:
        """The `k` nearest codes (default S), nearest first.

        Args:
            z: encoded vectors.
            k: how many.
            ignore_deleted: whether refilled codes are found too.
        """
        bias = None
        if self._any_deleted[0] and not ignore_deleted:
            bias = torch.zeros(len(self.refilled), device=z.device).masked_fill_(self.refilled, -math.inf)
        flat, k = z.detach().reshape(-1, z.shape[-1]), k or self.config.top_s
        return top_codes(flat, self.directions(), k, bias).view(*z.shape[:-1], k)

    def directions(self) -> Float[Tensor, "K m"]:
        """The codes at length 1; outside training made anew only after they have changed."""
        weight = self.codebook.weight
        if self.training:
            # Some optimisers and FSDP write codes without counting a version.
            self._directions = None
            return F.normalize(weight.detach(), dim=-1)
        state = (weight._version, weight.data_ptr(), weight.device)
        if self._directions is None or self._directions[0] != state:
            self._directions = (state, F.normalize(weight.detach(), dim=-1))
        return self._directions[1]

    def _closed(
        self, z: Tensor, codes: Tensor, exempt: Tensor | None, count_hits: Callable[[Tensor], Tensor] | None
    ) -> Tensor | None:
        """Which of the codes found an open gate silences, ``(batch, tokens, S)``; None where there are no gates."""
        if not self.is_gated:
            return None
        # A trigger that another request refills still tells what the text is about.
        seen = self.search(z, ignore_deleted=True) if self._any_deleted[0] else codes
        hits = self.gate_triggers.T[seen].sum(-2).float()  # (batch, tokens, gates)
        if exempt is not None:
            hits = hits.masked_fill(exempt[..., None], 0)
        so_far = hits.cumsum(1) if count_hits is None else count_hits(hits)
        open_ones = (so_far >= self.gate_thresholds)[..., None, :]
        return (self.gated.T[codes] & open_ones).any(-1)

    def _sum(self, codes: Tensor, closed: Tensor | None) -> Tensor:
        shape, width = codes.shape[:-1], codes.shape[-1]
        weights = None
        if self._any_deleted[1]:
            weights = (~(self.ablated | self.purged)[codes]).float()
        if closed is not None:
            weights = (~closed).float() if weights is None else weights.masked_fill(closed, 0)
        flat = codes.reshape(-1, width)
        weights = None if weights is None else weights.reshape(-1, width)
        q = F.embedding_bag(flat, self.codebook.weight, mode="sum", per_sample_weights=weights)
        if self.config.combine == "mean":
            q = q / width
        return q.view(*shape, -1)

    @contextmanager
    def observed(self, observer: Callable[[Observation], None]) -> Iterator[None]:
        """Within the context `observer` is called at every pass."""
        if self._observer is not None:
            raise RuntimeError("The bottleneck is observed already: leave the first context before entering another.")
        self._observer = observer
        try:
            yield
        finally:
            self._observer = None

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: object) -> None:
        # The number of gates is not known before they are read.
        for name in ("gate_triggers", "gated", "gate_thresholds"):
            if prefix + name in state_dict:
                setattr(self, name, torch.empty_like(state_dict[prefix + name], device=self.refilled.device))
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._notice_deleted()
