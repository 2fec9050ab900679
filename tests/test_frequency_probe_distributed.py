"""Two processes measure what one measures."""

import json
import os
import subprocess
import sys
from pathlib import Path

from scripts.sharded_probe import counted, probed


def test_two_processes_measure_what_one_does(tmp_path):
    here = Path(__file__).parent
    environment = {
        **os.environ,
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)]),
    }
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launcher, str(here / "scripts" / "sharded_probe.py"), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert [rank["processes"] for rank in ranks] == [2, 2]
    assert ranks[0]["measured"] == ranks[1]["measured"]
    assert ranks[0]["result"] == ranks[1]["result"]
    # To the last digit: both run the very same batches.
    forwards = []
    alone = probed(lambda model: counted(model, forwards))
    assert alone["measured"] == ranks[0]["measured"]
    assert alone["result"] == ranks[0]["result"]
    # Each did a share: what is tried on every process are three forwards of each scoring pass.
    assert sum(rank["forwards"] for rank in ranks) <= len(forwards) + 12
    assert all(0.25 * len(forwards) < rank["forwards"] < 0.75 * len(forwards) for rank in ranks)
