"""Frequency-aware training as a callback for any objective: weights by count, buckets that stop at a common target.

Weights are factors on the forget loss of each row (`UnlearningTrainer.item_weights`). They are no part of the plan of
an epoch, whose weights are divided by their mean over a step: there a step of rare facts would weigh as much as one of
frequent facts. A step's forget loss is ``mean_i w_i l_i`` over the rows that are in the loss; as the w_i have mean 1
over the forget set, so has the epoch.

Which rows are in the loss is a flag in the plan of the next epoch, as in refinement (`refinement.callback`), and
multiplies with that one's flags. A row's weight does not depend on which others are in the loss.
"""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from llm_unlearn.data.pairing import ItemWeights
from llm_unlearn.evaluation.outputs.scoring import score
from llm_unlearn.evaluation.outputs.trees import Branches
from llm_unlearn.frequency.plan import FrequencyPlan
from llm_unlearn.paths import public_name

if TYPE_CHECKING:
    from llm_unlearn.trainer import UnlearningTrainer

_BY_BUCKET = ("forgotten", "active")


class FrequencyHook(TrainerCallback, ExportableState):
    """Weighs and stops the forget rows of an `UnlearningTrainer` as its config says (`FrequencyConfig`).

    Args:
        trainer: the trainer, to which this callback adds itself; after its refinement, where it has one.
        plan: weights and buckets of the forget rows.
        progress: whether the main process shows progress bars.

    Attributes:
        forgotten: by bucket the share of probability lost at the last look (see `FrequencyConfig.freq_stop`).
        active: by bucket whether it is in the loss.
        outcome: in a sentence how stopping ended; None while it goes on, and without `freq_stop`.

    Raises:
        ValueError: the plan is of another number of rows than the trainer's forget set.
    """

    def __init__(self, trainer: "UnlearningTrainer", plan: FrequencyPlan, *, progress: bool = True):
        n = len(trainer.train_dataset.forget)
        if plan.rows != n:
            raise ValueError(f"The plan is for {plan.rows} forget rows and the trainer has {n}: plan it anew.")
        self.config = trainer.args
        self.plan = plan
        self.progress = progress
        self._trainer = trainer
        self._begin_anew()
        trainer.item_weights = None if plan.weights is None else torch.tensor(plan.weights, dtype=torch.float32)
        trainer.add_callback(self)

    def _begin_anew(self) -> None:
        self.forgotten = dict.fromkeys(self.plan.buckets, 0.0)
        self.active = dict.fromkeys(self.plan.buckets, True)
        self.outcome: str | None = None
        self._before: dict[str, float] | None = None
        self._looked_at_step = -1

    def state(self) -> dict:
        """Kept in checkpoints."""
        return {
            "args": {},
            "attributes": {
                "forgotten": self.forgotten,
                "active": self.active,
                "outcome": self.outcome,
                "before": self._before,
                "looked_at_step": self._looked_at_step,
            },
        }

    # Events.

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.config.freq_stop is None:
            return
        self._restore(state)
        if self.outcome is not None:
            self._end(control, self.outcome)
        elif self._before is None:
            self._before = self._measure()
        elif self._looked_at_step < state.global_step and _ends_an_epoch(state):
            # Killed after the last step of an epoch, and before the look that belongs to it.
            self._look(state, control)
        self._flag()

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        stops = self.config.freq_stop is not None and self.outcome is None
        if stops and self._looked_at_step < state.global_step and _ends_an_epoch(state):
            self._look(state, control)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.config.freq_stop is not None and self.outcome is None:
            left = [name for name, active in self.active.items() if active]
            self.outcome = (
                f"after {state.epoch:g} epochs these buckets had not lost enough: {', '.join(left) or 'none'}"
            )

    # What happens then.

    def _restore(self, state: TrainerState) -> None:
        saved = state.stateful_callbacks.get(type(self).__name__, {}).get("attributes")
        self._begin_anew()
        if not saved:
            return
        if saved["active"].keys() != self.active.keys():
            raise ValueError(
                f"The checkpoint is of a run with the buckets {', '.join(saved['active'])}, and this one has "
                f"{', '.join(self.active)}: go on with the same `--freq_counts` and `--freq_edges`, or start anew."
            )
        # In the order of the plan: a checkpoint sorts its keys.
        self.forgotten, self.active = ({name: saved[key][name] for name in self.active} for key in _BY_BUCKET)
        self._before, self._looked_at_step, self.outcome = (
            saved[key] for key in ("before", "looked_at_step", "outcome")
        )

    def _measure(self) -> dict[str, float]:
        """By bucket the mean per-token probability of the forget answers; the same on every process."""
        model = self._trainer.accelerator.unwrap_model(self._trainer.model, keep_torch_compile=False)
        questions = [Branches.of([item], detailed=False) for item in self._trainer.train_dataset.forget]
        scored = score(model, questions, name="forget rows", progress=self.progress)
        p: Float[np.ndarray, " n"] = np.exp([-of_one[0].loss for of_one in scored])
        return {name: float(p[list(own)].mean()) for name, own in self.plan.buckets.items()}

    def _look(self, state: TrainerState, control: TrainerControl) -> None:
        for name, now in self._measure().items():
            before = self._before[name]
            # Nothing can be lost of a probability that was 0.
            self.forgotten[name] = 1 - now / before if before else 1.0
            self.active[name] = self.forgotten[name] < self.config.freq_stop
        self._looked_at_step = state.global_step
        rows = self._flags(self._trainer.sampler.weights.forget)
        shares = {f"frequency/{name}": round(share, 6) for name, share in self.forgotten.items()}
        self._trainer.log({"frequency/active": float(sum(flag > 0 for flag in rows)), **shares})
        if not any(self.active.values()):
            share = f"{self.config.freq_stop:.0%}"
            self._end(control, f"every bucket had lost {share} of its probability after {state.epoch:g} epochs")
        elif not any(rows):
            self._end(control, f"no forget row was in the loss any more after {state.epoch:g} epochs")
        self._flag()

    def _flags(self, others: list[float]) -> list[float]:
        """Per forget row its flag, times that of `others`."""
        flags = list(others)
        for name, own in self.plan.buckets.items():
            for i in own:
                flags[i] *= self.active[name]
        return flags

    def _flag(self) -> None:
        n = len(self._trainer.train_dataset.forget)
        # The Trainer takes a step before it looks whether to stop, which must be an empty one.
        goes_on = float(self.outcome is None)
        # What is kept stays under pressure while other buckets are trained.
        self._trainer.sampler.frequency = ItemWeights(self._flags([goes_on] * n), [goes_on] * n)

    def _end(self, control: TrainerControl, outcome: str) -> None:
        self.outcome = outcome
        control.should_training_stop = True

    def record(self) -> dict[str, Any]:
        """What a run's record says of it; JSON."""
        config, weights = self.config, self.plan.weights
        return {
            "experimental": True,
            "counts": public_name(config.freq_counts),
            "kappa": config.freq_weight or None,
            "weights": None if weights is None else {"lowest": min(weights), "highest": max(weights)},
            "stop": config.freq_stop,
            "buckets": {
                name: {"rows": len(own), "counts": list(self.plan.ranges[name])}
                for name, own in self.plan.buckets.items()
            },
            "forgotten": None if config.freq_stop is None else self.forgotten,
            "outcome": self.outcome,
        }


def _ends_an_epoch(state: TrainerState) -> bool:
    epoch = state.epoch or 0.0
    return round(epoch) > 0 and math.isclose(epoch, round(epoch), abs_tol=1e-6)
