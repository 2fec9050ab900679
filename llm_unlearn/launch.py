"""How a recipe is started with one or several processes on the machine at hand."""

import os
import shlex
import subprocess
import sys
from pathlib import Path


def launch_command(script: Path, arguments: list[str], num_processes: int) -> tuple[list[str], dict[str, str]]:
    """The command that starts `script`, and the environment variables it needs.

    One process needs no launcher. Several on GPUs are `accelerate launch`. Several on a CPU are torchrun over gloo:
    ``accelerate launch --cpu --num_processes 2`` silently starts a single process (accelerate 1.15).

    Raises:
        ValueError: `num_processes` is below 1, or above the number of GPUs on a machine that has some.
    """
    if num_processes < 1:
        raise ValueError(f"`--num_processes` is {num_processes}; it must be at least 1.")
    if num_processes == 1:
        return [sys.executable, str(script), *arguments], {}
    import torch

    gpus = torch.cuda.device_count()
    if gpus:
        if num_processes > gpus:
            raise ValueError(f"`--num_processes` is {num_processes}, but there are {gpus} GPUs: give at most {gpus}.")
        launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(num_processes)]
        return [sys.executable, *launcher, str(script), *arguments], {}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(num_processes)]
    # Half of the cores each: two processes with all cores' threads would wait for each other.
    threads = max(1, torch.get_num_threads() // num_processes)
    environment = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": str(threads)}
    return [sys.executable, *launcher, str(script), *arguments], environment


def start(script: Path, arguments: list[str], num_processes: int) -> None:
    """Run a script for a command, say how, and end the command with its exit code.

    Raises:
        typer.Exit: always.
        ValueError: see `launch_command`.
    """
    import typer

    command, environment = launch_command(script, arguments, num_processes)
    typer.echo("Starting: " + shlex.join([*(f"{k}={v}" for k, v in environment.items()), *command]))
    raise typer.Exit(subprocess.run(command, env={**os.environ, **environment}).returncode)
