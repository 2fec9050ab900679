"""What a person and a log file see while a run trains."""

import json
import math
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

LOG_NAME = "log.jsonl"


def show_live_losses(trainer: Trainer) -> None:
    """Give `trainer` one bar with the parts of the loss, instead of the stock bar with a line per log."""
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(LiveLosses())


class LiveLosses(TrainerCallback):
    """One progress bar over the optimiser steps, with the parts of the loss beside it."""

    def __init__(self):
        self._bar: tqdm | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero and not args.disable_tqdm:
            self._bar = tqdm(total=state.max_steps, initial=state.global_step, desc="training", unit="step")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict, **_: Any
    ) -> None:
        shown = {name: logs[name] for name in ("loss", "loss/forget", "loss/retain") if name in logs}
        if self._bar is not None and shown:
            self._bar.set_postfix({name.removeprefix("loss/"): f"{value:.3f}" for name, value in shown.items()})

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class RunLog(TrainerCallback):
    """Writes every log line to ``OUT/log.jsonl``; a resumed run continues after the checkpoint's lines."""

    def __init__(self, folder: str | Path):
        self._path = Path(folder) / LOG_NAME

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text("".join(_json_line(line) for line in state.log_history), encoding="utf-8")

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(_json_line(state.log_history[-1]))


def _json_line(logs: dict[str, Any]) -> str:
    # JSON knows no NaN: the step at which the guard stops a run has null for the part that was not finite.
    finite = {k: v if not isinstance(v, float) or math.isfinite(v) else None for k, v in logs.items()}
    return json.dumps(finite, allow_nan=False) + "\n"
