"""What the benchmarks share: peak memory of a process, and what its numbers depend on."""

import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("torch", "transformers", "peft", "accelerate")


def reset_peak() -> int:
    """Start a new peak of resident memory, where the system can (Linux); bytes resident now."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        print("The peak of resident memory cannot be reset here: loading the model counts too.", file=sys.stderr)
    return peak_bytes()


def peak_bytes() -> int:
    """Peak of resident memory in bytes."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def machine(threads: int) -> dict:
    """What the numbers depend on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "system": platform.platform(),
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
    }
