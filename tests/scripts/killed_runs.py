"""Starts each run of `RUNS` in a process of its own that kills itself in the middle. For `test_resume`."""

import gc
import os
import signal
import sys
from pathlib import Path

from runs import make_trainer
from tiny import tiny_model
from transformers import TrainerCallback

from llm_unlearn.progress import RunLog

sys.path.append(str(Path(__file__).parent))
from sharded_training import REFINEMENT  # noqa: E402

# Four steps per epoch, twelve in all; checkpoints every two or three steps, so that most fall into an epoch.
SHARED = {"n_forget": 8, "num_train_epochs": 3, "save_strategy": "steps", "save_total_limit": 1}
RUNS = {
    # name: (method, architecture, killed after step, options)
    "lora": ("npo", "llama", 7, {"save_steps": 3}),
    "dropout": ("simnpo", "gpt2", 6, {"save_steps": 3}),
    "accumulated": ("idk_dpo", "llama", 3, {"save_steps": 1, "n_forget": 10, "gradient_accumulation_steps": 2}),
    # Killed within the second epoch, after a checkpoint within it; by then some rows are out of the loss.
    "refined": ("icu", "llama", 7, {"save_steps": 3, "refine": True, "kl_mask_pad": True, **REFINEMENT}),
    # The checkpoint after the last step of an epoch is written before the look that belongs to it.
    "refined_late": ("icu", "llama", 5, {"save_steps": 4, "refine": True, "kl_mask_pad": True, **REFINEMENT}),
    "full": ("npo", "llama", 7, {"save_steps": 3, "lora": False, "learning_rate": 1e-3}),
    # The retain rows' distributions before unlearning are gone, but for the table in the checkpoint.
    "full_top_k": ("icu", "llama", 7, {"save_steps": 3, "lora": False, "learning_rate": 1e-3, "reference_top_k": 8}),
    "full_idk": ("idk_dpo", "llama", 4, {"save_steps": 4, "lora": False, "learning_rate": 1e-3, "retain_coef": 0.0}),
}


class KillAfter(TrainerCallback):
    """SIGKILL, as an out-of-memory killer would: nothing gets to clean up."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def make_run(name, folder, callbacks=()):
    method, architecture, _, options = RUNS[name]
    return make_trainer(
        method, folder, model=tiny_model(architecture), callbacks=[RunLog(folder), *callbacks], **(SHARED | options)
    )


if __name__ == "__main__":
    gc.freeze()  # each `Trainer.train` collects garbage, and need not look for it among all modules
    for name, (*_, step, _options) in RUNS.items():
        # Forked before anything was computed: importing torch and transformers anew each time would take minutes.
        child = os.fork()
        if child == 0:
            make_run(name, Path(sys.argv[1]) / name, [KillAfter(step)]).train()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, f"{name}: {status}"
