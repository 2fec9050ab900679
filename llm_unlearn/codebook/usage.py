"""Which codes training uses, the revival of those it does not, and the alarm when few are left."""

from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llm_unlearn.codebook.bottleneck import Observation

if TYPE_CHECKING:
    from llm_unlearn.codebook.trainer import CodeUnlearnTrainer

# Revival ends here: a code needs the rest of the run to find its place.
LAST_REVIVAL = 0.7
# A codebook of which fewer are in use says hardly anything; ours, from toy runs in which training had collapsed.
_LEAST_USED, _LEAST_SHARE = 4, 0.02
# Without a norm before the encoder its output grew 60-fold within 100 steps, and 50,000-fold within 200.
_LARGEST_GROWTH = 30.0
_KEPT_TOKENS = 4096


class CodeUsage(TrainerCallback):
    """Counts the codes that tokens use, between logs and since their last revival.

    Args:
        trainer: the trainer.
    """

    def __init__(self, trainer: "CodeUnlearnTrainer"):
        self._trainer = trainer
        self._counts: Tensor | None = None
        self._zeros: list[Tensor] = []
        self._norms: list[Tensor] = []
        self._first_norm: float | None = None
        self._recent: list[Tensor] = []
        self._every = 0

    def saw(self, observed: Observation, counted: Tensor) -> None:
        """Take in one pass; nothing here waits for a GPU."""
        bottleneck = self._trainer.codebook.bottleneck
        codes, z = observed.codes[counted], observed.z.detach()[counted]
        bottleneck.last_used[codes.reshape(-1)] = self._trainer.state.global_step + 1
        counts = torch.bincount(codes.reshape(-1), minlength=self._trainer.codebook.config.num_codes)
        self._counts = counts if self._counts is None else self._counts + counts
        norms = z.norm(dim=-1)
        self._zeros.append((norms == 0).float().mean())
        self._norms.append(norms.mean())
        self._recent.append(z[: _KEPT_TOKENS - sum(map(len, self._recent))])

    def summary(self) -> dict[str, float]:
        """The use of codes since the last summary, over all processes; see `CodeUnlearnTrainer`.

        Raises:
            RuntimeError: so few codes are in use, or the encoder's output has grown so much, that training has failed.
        """
        trainer = self._trainer
        reduce = trainer.accelerator.reduce
        counts = reduce(self._counts, reduction="sum").double()
        zero = reduce(torch.stack(self._zeros).mean(), reduction="mean").item()
        norm = reduce(torch.stack(self._norms).mean(), reduction="mean").item()
        self._counts, self._zeros, self._norms = None, [], []
        shares = counts[counts > 0] / counts.sum()
        used, last_used = int((counts > 0).sum()), self._share_last_used()
        since_revival = int((last_used > max(trainer.state.global_step - self._every, 0)).sum())
        self._first_norm = self._first_norm or norm
        config = trainer.codebook.config
        least = max(_LEAST_USED * config.top_s, int(_LEAST_SHARE * config.num_codes))
        seen_enough = trainer.state.global_step >= self._every
        if (seen_enough and since_revival < min(least, config.num_codes)) or norm > _LARGEST_GROWTH * self._first_norm:
            raise RuntimeError(
                f"The codebook has collapsed: {since_revival} of {config.num_codes} codes are in use, and encodings "
                f"have length {norm:.3g} ({self._first_norm:.3g} at first); lower `--learning_rate`, and keep a "
                "`--norm`."
            )
        return {
            "codes/used": used,
            "codes/dead": config.num_codes - since_revival,
            "codes/perplexity": float((-(shares * shares.log()).sum()).exp()),
            "codes/zero": zero,
            "codes/z_norm": norm,
        }

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        # The state's number of epochs holds where the run's length is given in steps, too.
        steps_per_epoch = max(1, round(state.max_steps / max(state.num_train_epochs, 1)))
        # Of a short run an eighth, so that revival comes at all before it ends.
        self._every = self._trainer.args.revive_every or max(1, min(5 * steps_per_epoch, state.max_steps // 8))
        self._first_norm = None
        if not state.global_step:
            # Those of an earlier run, which the bottleneck keeps, are of other steps.
            self._trainer.codebook.bottleneck.last_used.zero_()

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._recent = []

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        due = state.global_step % self._every == 0 and state.global_step <= LAST_REVIVAL * state.max_steps
        if due and args.revive and not args.hold_bottleneck:
            self._revive(state.global_step)
        if control.should_save:
            self._share_last_used()

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if control.should_save:
            self._share_last_used()

    def _share_last_used(self) -> Tensor:
        """The last use of each code on any process, which all processes then know, and write into their checkpoint."""
        last_used = self._trainer.codebook.bottleneck.last_used
        return last_used.copy_(self._trainer.accelerator.reduce(last_used, reduction="max"))

    def _revive(self, step: int) -> None:
        trainer = self._trainer
        bottleneck = trainer.codebook.bottleneck
        unused = (self._share_last_used() <= step - self._every).nonzero()[:, 0]
        if not len(unused):
            return
        # In the order of the step's rows, so that any number of processes and any accumulation draw the same tokens.
        recent = gather_object([[z.cpu() for z in self._recent]])
        tokens = torch.cat([z for at_once in zip(*recent, strict=True) for z in at_once])[:_KEPT_TOKENS]
        if not len(tokens):
            return
        generator = torch.Generator().manual_seed(trainer.args.seed + step)
        values = tokens[torch.randint(len(tokens), (len(unused),), generator=generator)]
        if trainer.codebook.config.combine == "sum":
            values = values / trainer.codebook.config.top_s
        codes = bottleneck.codebook.weight
        with torch.no_grad():
            codes[unused] = values.to(codes.device)
        state = trainer.optimizer.state.get(codes, {})
        for name in ("exp_avg", "exp_avg_sq"):
            if name in state:
                state[name][unused] = 0
        bottleneck.last_used[unused] = step
