"""Evaluation while a run trains: what each epoch did, which one to keep, and when to stop."""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from llm_unlearn.evaluation.evaluator import Evaluator
from llm_unlearn.evaluation.metrics import higher_is_better
from llm_unlearn.evaluation.outputs.sharding import process_state
from llm_unlearn.evaluation.report import EvalReport
from llm_unlearn.files import replace_folder

BEST_NAME = "best/trained.safetensors"


class EvaluationCallback(TrainerCallback, ExportableState):
    """Evaluates the model of a `Trainer` per epoch or every N steps, on all its processes, and logs the numbers.

    Logged are all metrics with a value, as ``eval/<name>``. With an objective, the weights of the best evaluation are
    put back when training ends, and training ends early once `patience` evaluations in a row were no better. The
    trained weights of the best evaluation are held once more, on the CPU, and written to ``best/`` in the output
    folder, so that a resumed run knows them; what was found so far goes into checkpoints. A resumed run is the
    uninterrupted one, also where it was killed between the checkpoint of an epoch's last step and the evaluation of
    that epoch, or after patience had run out.

    Args:
        evaluator: what to evaluate; in the tier `train` a fraction of an epoch's time.
        every: steps between evaluations; None for one after every epoch.
        objective: name of a metric to keep the best of, such as ``tuning_score``; None to keep the last weights.
        patience: evaluations without improvement after which to stop; None to go on to the end.
        reference: report of the retain model, for metrics that compare with it.

    Attributes:
        history: step and value of the objective of each evaluation, None where that was not measured; empty without an
            objective.
        evaluated_at: step of the last evaluation, with an objective or without; 0 before the first.

    Raises:
        ValueError: `every` or `patience` are not positive, `patience` comes without an objective, or the objective
            has no direction or cannot be measured.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        every: int | None = None,
        objective: str | None = None,
        patience: int | None = None,
        reference: EvalReport | None = None,
    ):
        for name, value in (("every", every), ("patience", patience)):
            if value is not None and value < 1:
                raise ValueError(f"`{name}` is {value}; it counts steps or evaluations and must be at least 1.")
        if patience is not None and objective is None:
            raise ValueError("`patience` waits for an improvement: name the `--objective` to be improved.")
        if objective is not None:
            evaluator.require([objective], has_before=False, has_reference=reference is not None)
            if higher_is_better(objective) is None:
                raise ValueError(
                    f"Neither direction of `{objective}` is better, so it cannot be an `--objective`: name a metric "
                    "with a direction, such as tuning_score."
                )
        self.evaluator = evaluator
        self.every = every
        self.objective = objective
        self.patience = patience
        self.reference = reference
        self.history: list[tuple[int, float | None]] = []
        self.evaluated_at = 0
        self._best: dict[str, Tensor] | None = None
        self._trainer: Trainer | None = None

    def attach(self, trainer: Trainer) -> None:
        """Add this callback to a trainer, through which it logs."""
        self._trainer = trainer
        trainer.add_callback(self)

    @property
    def best_step(self) -> int | None:
        """Step of the best evaluation so far, the first of equals; a collapsed model has no value and is never it."""
        measured = [(step, value) for step, value in self.history if value is not None]
        if not measured:
            return None
        sign = 1 if higher_is_better(self.objective) else -1
        return max(measured, key=lambda entry: sign * entry[1])[0]

    def state(self) -> dict:
        """Kept in checkpoints."""
        return {"args": {}, "attributes": {"history": self.history, "evaluated_at": self.evaluated_at}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **_: Any
    ) -> None:
        saved = state.stateful_callbacks.get(type(self).__name__, {}).get("attributes", {})
        self.history = [(int(step), value) for step, value in saved.get("history", [])]
        self.evaluated_at = int(saved.get("evaluated_at", 0))
        self._best = _read(Path(args.output_dir) / BEST_NAME, self.best_step)
        # The checkpoint of an epoch's last step is written before that epoch ends, and Trainer resumes from it with the
        # next epoch: the end of this one never comes. There, and nowhere else, `epoch` is a whole number.
        at_end_of_epoch = state.global_step > 0 and float(state.epoch).is_integer()
        if self.every is None and at_end_of_epoch and self.evaluated_at < state.global_step:
            self._evaluate(args, state, control, model)
        if self._out_of_patience:
            control.should_training_stop = True

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **_: Any
    ) -> None:
        if self.every is not None and state.global_step % self.every == 0 and not self._out_of_patience:
            self._evaluate(args, state, control, model)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **_: Any
    ) -> None:
        if self.every is None and not self._out_of_patience:
            self._evaluate(args, state, control, model)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **_: Any
    ) -> None:
        if self._best is None:
            return
        trained = _trained(model)
        with torch.no_grad():
            for name, weight in self._best.items():
                trained[name].copy_(weight)
        self._trainer.log({"eval/best_step": float(self.best_step)})

    def _evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module
    ) -> None:
        report = EvalReport.compare(self.evaluator.evaluate(model), reference=self.reference)
        measured = {name: record.value for name, record in report.metrics.items() if record.value is not None}
        self._trainer.log({f"eval/{name}": value for name, value in measured.items()})
        self.evaluated_at = state.global_step
        if self.objective is None:
            return
        self.history.append((state.global_step, measured.get(self.objective)))
        if self.best_step == state.global_step:
            self._best = {name: weight.detach().cpu().clone() for name, weight in _trained(model).items()}
            if process_state().is_main_process:
                file = Path(args.output_dir) / BEST_NAME
                with replace_folder(file.parent) as partial:
                    save_file(self._best, partial / file.name, metadata={"step": str(state.global_step)})
        if self._out_of_patience:
            control.should_training_stop = True

    @property
    def _out_of_patience(self) -> bool:
        """Whether the run is over.

        One resumed in this state takes and logs one more step, because Trainer looks at its flag only after a step.
        That step is not evaluated, and the best weights are put back over it.
        """
        since = [step for step, _ in self.history if self.best_step is None or step > self.best_step]
        return self.patience is not None and len(since) >= self.patience


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _read(file: Path, step: int | None) -> dict[str, Tensor] | None:
    """The weights in `file`, if they are those of `step`."""
    if step is None or not file.is_file():
        return None
    with safe_open(file, framework="pt") as weights:
        if weights.metadata().get("step") != str(step):
            # Of a later step, which the resumed run will reach again.
            return None
        return {name: weights.get_tensor(name) for name in weights.keys()}  # noqa: SIM118
