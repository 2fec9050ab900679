"""What an issue report needs to say about a machine."""

import os
import platform

import torch

from llm_unlearn.evaluation.report import versions


def describe_environment() -> dict[str, str]:
    """Versions, devices and threads; no names of users, hosts or tokens."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        **{name: str(version) for name, version in versions().items()},
        "platform": platform.platform(),
        "cpus": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "gpus": ", ".join(gpus) or "none",
    }
