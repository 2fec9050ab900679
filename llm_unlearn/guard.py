"""Stops a run that is going wrong and keeps the last adapter that was still good."""

import math
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState
from transformers.utils import logging

if TYPE_CHECKING:
    from llm_unlearn.trainer import UnlearningTrainer

logger = logging.get_logger(__name__)


class DivergenceGuard(TrainerCallback, ExportableState):
    """Looks at every optimiser step before it is taken.

    A step is refused, and the run ends, when a part of its loss is not finite, when its retain loss passes
    `max_retain_loss`, or, without a retain term, when the norm of the trained weights passes `max_weight_growth` times
    its value at the start. Under an adapter the weights then go back to those of the last step that passed; all
    weights in training are not copied, and the message names the last checkpoint instead.

    Attributes:
        reason: why the run was stopped; None while all is well.
    """

    def __init__(self, trainer: "UnlearningTrainer"):
        self.trainer = trainer
        self.reason: str | None = None
        self.start_norm: float | None = None
        self.start_retain: float | None = None
        self._good: list[Tensor] | None = None

    def state(self) -> dict:
        """Kept in checkpoints, so that a resumed run measures growth from the same start."""
        return {"args": {}, "attributes": {"start_norm": self.start_norm, "start_retain": self.start_retain}}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.trainer.begin_run()
        saved = state.stateful_callbacks.get(type(self).__name__, {}).get("attributes", {})
        self.reason, self._good = None, None
        self.start_norm = saved.get("start_norm") or self._norm()
        self.start_retain = saved.get("start_retain")

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.trainer.begin_epoch(state.global_step)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        losses = self.trainer.finish_step()
        # The losses speak of the weights as they are now, before this step.
        self.reason = self._judge(losses)
        if self.reason is None:
            self._remember()
            return control
        self._stop(f"step {state.global_step + 1}: {self.reason}")
        self.trainer.model.zero_grad()  # makes the optimiser step that follows an empty one
        control.should_training_stop = True
        return control

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        # No loss was ever computed with the weights of this step, and perhaps none will be.
        last_look = control.should_save or control.should_training_stop
        if self.reason is None and last_look and not math.isfinite(self._norm()):
            self.reason = "the weights are not finite"
            self._stop(f"step {state.global_step}: {self.reason}")
            control.should_training_stop = True
        # A checkpoint of a run gone wrong would replace the last good one.
        control.should_save = control.should_save and self.reason is None
        return control

    on_epoch_end = on_step_end

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._good = None

    def _judge(self, losses: dict[str, float]) -> str | None:
        args = self.trainer.args
        for name, value in losses.items():
            if not math.isfinite(value):
                return f"{name} is {value}"
        retain = losses.get("loss/retain")
        if retain is not None:
            if self.start_retain is None:
                if retain == 0:  # no row of this step counted
                    return None
                self.start_retain = retain
            limit = args.max_retain_loss
            if limit is None:
                limit = self.start_retain + math.log(self.trainer.vocab_size) / 2
            return f"the retain loss {retain:.3f} passed max_retain_loss {limit:.3f}" if retain > limit else None
        growth = self._norm() / self.start_norm
        if not growth <= args.max_weight_growth:
            return f"the weight norm grew {growth:.1f}-fold, past max_weight_growth {args.max_weight_growth:g}"
        return None

    def _stop(self, what: str) -> None:
        if self._good is None:
            kept = "nothing was restored; go back to the last checkpoint"
        else:
            kept = "the adapter of the last good step was kept"
            with torch.no_grad():
                torch._foreach_copy_(self._trained(), self._good)
        logger.warning(f"Run stopped at {what}; {kept}.")

    def _remember(self) -> None:
        if not isinstance(self.trainer.model, PeftModel):
            return
        with torch.no_grad():
            if self._good is None:
                self._good = [weight.detach().clone() for weight in self._trained()]
            else:
                torch._foreach_copy_(self._good, self._trained())

    def _trained(self) -> list[Tensor]:
        return [weight for weight in self.trainer.model.parameters() if weight.requires_grad]

    def _norm(self) -> float:
        norms = torch._foreach_norm([weight.detach() for weight in self._trained()])
        return float(torch.stack([norm.float() for norm in norms]).norm())
