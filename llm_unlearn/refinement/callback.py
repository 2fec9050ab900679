"""Iterative refinement as a callback for any objective: look, flag, leave out, stop.

ICU (arXiv 2407.20271) judges every forget sequence before training and after each epoch. What is forgotten gets flag 0
and leaves the loss, together with the sequence paired with it; flags are judged anew each time, so that what comes back
is trained again. The run ends when the forget set's mean MA and EL_n have fallen below their thresholds, or when no
item is active.

The sampler stays at full length: flags are weights in the plan of the next epoch (`data.pairing`), so schedules, epochs
and resumption are those of any run. Every process looks at the same gathered numbers and comes to the same flags.
"""

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from peft import PeftModel
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from llm_unlearn.data.pairing import ItemWeights
from llm_unlearn.evaluation.metrics.similarity import calibrate_threshold
from llm_unlearn.evaluation.outputs.embeddings import HiddenStates
from llm_unlearn.evaluation.outputs.sharding import process_state
from llm_unlearn.files import write_text
from llm_unlearn.reference import reference_model
from llm_unlearn.refinement.judges import Judge, MemoryJudge, NoJudge, TextJudge, Thresholds, stop_reached
from llm_unlearn.refinement.look import Look
from llm_unlearn.refinement.plan import RefinementPlan
from llm_unlearn.refinement.thresholds import from_holdout

if TYPE_CHECKING:
    from llm_unlearn.trainer import UnlearningTrainer

FILE_NAME = "refinement.jsonl"


class IterativeRefinement(TrainerCallback, ExportableState):
    """Refines the run of an `UnlearningTrainer` as its config says (`RefinementConfig`).

    Args:
        trainer: the trainer, to which this callback adds itself.
        plan: the items, and where forgetting begins.
        progress: whether the main process shows progress bars.

    Attributes:
        thresholds: where forgetting begins; known once training has begun.
        bert_f1: the threshold on BERTScore in use; None unless the judge is "text".
        active: per item whether it is in the loss.
        outcome: in a sentence how the run ended; None while it goes on.

    Raises:
        ValueError: BERTScore would compare vectors of a model that the run does not keep.
    """

    def __init__(self, trainer: "UnlearningTrainer", plan: RefinementPlan, *, progress: bool = True):
        self.config = trainer.args
        self.probes = plan.probes
        self.thresholds = plan.thresholds
        self.progress = progress
        self.bert_f1: float | None = None
        self.active = [True] * len(self.probes)
        self.outcome: str | None = None
        self._trainer = trainer
        self._holdout = plan.holdout
        self._judge: Judge = NoJudge()
        self._begin_anew()
        self._encoder = plan.encoder
        self._given_f1 = plan.bert_f1
        compares = self.config.iur_judge == "text" and plan.encoder is None
        if compares and trainer.ref_model is None and not isinstance(trainer.model, PeftModel):
            raise ValueError(
                "BERTScore compares vectors of the model before unlearning, which a run that trains all weights does "
                "not keep: pass `ref_model`, train an adapter (`--use_peft`), or name an encoder (`--iur_encoder`)."
            )
        trainer.add_callback(self)

    def _begin_anew(self) -> None:
        self.active = [True] * len(self.probes)
        self._forgotten_looks = [0] * len(self.probes)
        self._loss_when_judged = [math.nan] * len(self.probes)
        self._looked_at_step = -1
        self._epochs = 0.0
        self._seconds = {"looking": 0.0, "training": 0.0}
        self._epoch_began = 0.0

    def state(self) -> dict:
        """Kept in checkpoints."""
        return {
            "args": {},
            "attributes": {
                "active": self.active,
                "forgotten_looks": self._forgotten_looks,
                "loss_when_judged": [None if math.isnan(loss) else loss for loss in self._loss_when_judged],
                "looked_at_step": self._looked_at_step,
                "seconds": self._seconds,
                "thresholds": None if self.thresholds is None else vars(self.thresholds),
                "bert_f1": self.bert_f1,
                "outcome": self.outcome,
            },
        }

    # Events.

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._restore(state)
        if self.outcome is not None:
            self._end(control, self.outcome)
            return
        self._prepare()
        if state.global_step == 0:
            # ICU ignores the verdict of this look; only where nothing is left to forget there is nothing to do.
            self._look(state)
            if not any(self.active):
                self._end(control, "every forget item was forgotten at the start, so nothing was trained")
        elif self._looked_at_step < state.global_step and _epochs(args, state) is not None:
            # Killed after the last step of an epoch, and before the look that belongs to it.
            self._refine(state, control, _epochs(args, state))
        self._weigh()

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._epoch_began = time.perf_counter()

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._seconds["training"] += time.perf_counter() - self._epoch_began
        epochs = _epochs(args, state)
        # None where a run was ended within an epoch.
        if epochs is not None and self.outcome is None and self._looked_at_step < state.global_step:
            self._refine(state, control, epochs)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._epochs = state.epoch
        if self.outcome is None:
            left = f"{sum(self.active)} of {len(self.active)} forget items active"
            self.outcome = f"the stop rule was not reached within {state.epoch:g} epochs, with {left}"

    # What happens then.

    def _restore(self, state: TrainerState) -> None:
        saved = state.stateful_callbacks.get(type(self).__name__, {}).get("attributes")
        path = Path(self.config.output_dir) / FILE_NAME
        self.outcome = saved["outcome"] if saved else None
        if not saved:
            self._begin_anew()
            if process_state().is_main_process:
                path.unlink(missing_ok=True)
            return
        self.active = saved["active"]
        self._forgotten_looks = saved["forgotten_looks"]
        self._loss_when_judged = [math.nan if loss is None else loss for loss in saved["loss_when_judged"]]
        self._looked_at_step = saved["looked_at_step"]
        self._seconds = saved["seconds"]
        self.thresholds = saved["thresholds"] and Thresholds(**saved["thresholds"])
        self.bert_f1 = saved["bert_f1"]
        if path.is_file() and process_state().is_main_process:
            # Looks of later steps will be taken again.
            # Not `splitlines`, which breaks at more than line feeds; what follows the last one was cut by a kill.
            *lines, _ = path.read_text(encoding="utf-8").split("\n")
            kept = [line for line in lines if json.loads(line)["step"] <= self._looked_at_step]
            write_text(path, "".join(f"{line}\n" for line in kept))

    def _prepare(self) -> None:
        """Thresholds and judge; what must be measured is measured under the model before unlearning."""
        config, tokenize = self.config, self._trainer.tokenize
        if self.thresholds is None:
            with self._before_unlearning() as model:
                self.thresholds = from_holdout(config, model, self._holdout, tokenize, self.progress)
        if config.iur_judge == "memory":
            self._judge = MemoryJudge(self.thresholds)
        if config.iur_judge == "text":
            # Where all weights are trained, the model before unlearning is another one.
            before = self._trainer.ref_model or self._unwrapped()
            encoder = self._encoder or HiddenStates(before, tokenize.tokenizer, progress=False)
            if self.bert_f1 is None:
                self.bert_f1 = self._given_f1
            if self.bert_f1 is None:
                with self._before_unlearning():
                    vectors = encoder.embed(self.probes.references)
                self.bert_f1 = calibrate_threshold(vectors, config.seed)
            self._judge = TextJudge(
                config, self.probes.references, encoder, self._before_unlearning, self.bert_f1, lazy=config.iur_screen
            )

    def _refine(self, state: TrainerState, control: TrainerControl, epochs: int) -> None:
        if epochs % self.config.iur_every:
            return
        look, reached = self._look(state)
        if reached:
            self._end(control, f"the stop rule was reached after {epochs} epochs: {self._against_thresholds(look)}")
        elif not any(self.active):
            self._end(control, f"no forget item was active any more after {epochs} epochs")
        self._weigh()

    def _look(self, state: TrainerState) -> tuple[Look, bool]:
        """Look, set the flags, write it all down; and whether the stop rule is reached."""
        began = time.perf_counter()
        look = Look(self._unwrapped(), self.probes, self.config, self._trainer.tokenize, self.progress)
        settled = self._settled(look)
        doubtful = [i for i in range(len(self.probes)) if i not in settled]
        forgotten = self._judge.forgotten(look, doubtful) | settled
        for i in doubtful:
            self._loss_when_judged[i] = float(look.loss[i])
        self._forgotten_looks = [n + 1 if i in forgotten else 0 for i, n in enumerate(self._forgotten_looks)]
        for i, looks in enumerate(self._forgotten_looks):
            dropped_before = not self.active[i] and not self.config.iur_reentry
            self.active[i] = not (looks >= self.config.iur_patience or dropped_before)
        reached = stop_reached(look, self.thresholds, self.config.stop_rule)
        self._looked_at_step = state.global_step
        seconds = time.perf_counter() - began
        self._seconds["looking"] += seconds
        self._report(look, state, seconds)
        return look, reached

    def _settled(self, look: Look) -> set[int]:
        """Forgotten items that are no more likely than when they were judged; they need no text to stay forgotten."""
        if not self.config.iur_screen:
            return set()
        return {i for i, active in enumerate(self.active) if not active and look.loss[i] >= self._loss_when_judged[i]}

    def _weigh(self) -> None:
        # The Trainer takes a step before it looks whether to stop, which must be an empty one.
        flags = [float(active and self.outcome is None) for active in self.active]
        keeps_partners = not self.config.iur_drop_partner and any(flags)
        self._trainer.sampler.weights = ItemWeights(flags, [1.0] * len(flags) if keeps_partners else flags)

    def _end(self, control: TrainerControl, outcome: str) -> None:
        self.outcome = outcome
        self._weigh()
        control.should_training_stop = True

    def _report(self, look: Look, state: TrainerState, seconds: float) -> None:
        means = {f"refine/{name}": look.mean(name) for name in look.columns}
        if means.get("refine/el") is None:
            # The stop rule measures no more than it needs; a bound of 0 says nothing.
            means["refine/el_at_least"] = look.at_least("el") or None
        total = sum(self._seconds.values())
        self._trainer.log(
            {
                "refine/active": float(sum(self.active)),
                **{name: value for name, value in means.items() if value is not None},
                "refine/generated": float(look.n_generated),
                "refine/seconds": round(seconds, 3),
                "refine/share_of_time": round(self._seconds["looking"] / total, 3),
            }
        )
        if process_state().is_main_process:
            path = Path(self.config.output_dir) / FILE_NAME
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.writelines(self._lines(look, state))

    def _lines(self, look: Look, state: TrainerState) -> Iterator[str]:
        """Per item one line of JSON: its flag, and what this look measured of it."""
        for i, active in enumerate(self.active):
            numbers = {name: float(values[i]) for name, values in look.columns.items() if np.isfinite(values[i])}
            row = {"step": state.global_step, "row": self.probes.whole[i].index, "active": active, **numbers}
            yield json.dumps({**row, "text": look.texts[i]}, ensure_ascii=False, allow_nan=False) + "\n"

    def _against_thresholds(self, look: Look) -> str:
        limits = {"ma": ("MA", self.thresholds.ma), "el": (f"EL_{self.config.el_n}", self.thresholds.el)}
        return ", ".join(
            f"mean {shown} {look.mean(name):.4f} (threshold {limit:.4f})"
            for name, (shown, limit) in limits.items()
            if limit is not None and look.mean(name) is not None
        )

    def record(self) -> dict[str, Any]:
        """What a run's record says of its refinement; JSON."""
        return {
            "judge": self.config.iur_judge,
            "encoder": (self._encoder.name if self._encoder else "model") if self.config.iur_judge == "text" else None,
            "bert_f1": self.bert_f1,
            "thresholds": None if self.thresholds is None else vars(self.thresholds),
            "active": sum(self.active),
            "items": len(self.active),
            "without_el": self.probes.n_without_el,
            "epochs": self._epochs,
            "seconds": {name: round(value, 3) for name, value in self._seconds.items()},
            "outcome": self.outcome,
        }

    def _unwrapped(self) -> nn.Module:
        return self._trainer.accelerator.unwrap_model(self._trainer.model, keep_torch_compile=False)

    @contextmanager
    def _before_unlearning(self) -> Iterator[nn.Module]:
        model, ref_model = self._unwrapped(), self._trainer.ref_model
        if ref_model is None and not isinstance(model, PeftModel):
            yield model  # all weights are trained; asked only before the first step
            return
        with reference_model(model, model, ref_model) as reference:
            yield reference


def _epochs(args: TrainingArguments, state: TrainerState) -> int | None:
    """Epochs that are over, where the run stands exactly at the end of one; None within an epoch."""
    epoch = state.epoch or 0.0
    whole = round(epoch)
    return whole if whole and math.isclose(epoch, whole, abs_tol=1e-6) else None
