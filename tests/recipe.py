"""How the tests run a recipe, in this process with the flags of a command line, and a script on two processes."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import tiny_model, tiny_rows, tiny_tokenizer

from llm_unlearn.paths import recipes_dir
from llm_unlearn.run import remove_earlier

if str(recipes_dir()) not in sys.path:
    sys.path.insert(0, str(recipes_dir()))  # where a script's own folder would be, for `from common import main`

# For child processes: an end to waiting for a hub, and one thread, because the tests share the machine.
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def run_recipe(name: str, *flags: object) -> None:
    """Run `recipes/<name>.py FLAGS` on the CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{name}.py", *map(str, flags), "--use_cpu"])
        runpy.run_path(str(recipes_dir() / f"{name}.py"), run_name="__main__")


def refused(name: str, *flags: object) -> str:
    """The one sentence in which a recipe refuses to run."""
    with pytest.raises(SystemExit) as stopped:
        run_recipe(name, *flags)
    message = stopped.value.code
    assert isinstance(message, str), "exit code 1, with the message on stderr"
    assert message.startswith("error: ")
    assert "\n" not in message
    return message.removeprefix("error: ")


def run_on_two_processes(script: Path, *flags: object, torchrun: bool = False) -> subprocess.CompletedProcess[str]:
    """Run a script, which finds the modules of the tests, on two processes of the CPU; returns what it printed.

    Started by torchrun, three processes import torch one by one; else two are forked from one that has imported it.
    """
    here = Path(__file__).parent
    environment = {
        **ENVIRONMENT,
        "ACCELERATE_USE_CPU": "true",
        "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)]),
    }
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2]
    command = [sys.executable, *(launcher if torchrun else [here / "scripts" / "fork_two.py"]), script, *flags]
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done


def kept_by_overwrite(out: Path, copy: Path) -> list[str]:
    """What `--overwrite` would leave in the folder of a run; tried on a copy."""
    shutil.copytree(out, copy)
    remove_earlier(copy)
    return sorted(path.name for path in copy.iterdir())


def save_tiny_model(folder: Path, chat_template: bool = True) -> Path:
    """A model folder with its tokenizer, which has no pad token."""
    tiny_model().save_pretrained(folder)
    tiny_tokenizer(chat_template).save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: list[dict]) -> Path:
    """A file of JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def tiny_data(folder: Path) -> Path:
    """A data set of three splits in a folder: 6 rows to forget, 8 to keep, and both together."""
    forget, retain = tiny_rows(6), tiny_rows(8, first=20)
    for name, rows in {"forget": forget, "retain": retain, "full": [*retain, *forget]}.items():
        write_rows(folder / f"{name}.jsonl", rows)
    return folder
