"""Two processes measure what one measures."""

import json
from pathlib import Path

from recipe import run_on_two_processes
from scripts.sharded_probe import counted, probed


def test_two_processes_measure_what_one_does(tmp_path):
    run_on_two_processes(Path(__file__).parent / "scripts" / "sharded_probe.py", tmp_path)
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
