"""Probes a tiny model; as a script, writes what each of several processes measured."""

import json
import sys
from pathlib import Path

from tiny import tiny_model
from tiny_probe import tiny_frequency_probe
from torch.nn.parallel import DistributedDataParallel

from llm_unlearn.evaluation.outputs.sharding import process_state

SEED = 3
# Many small batches.
BUDGET = 250


def probed(wrap=lambda model: model) -> dict:
    """Two models and their comparison, as JSON."""
    probe = tiny_frequency_probe()
    before, after = (
        probe.measure(wrap(tiny_model(seed=seed)), token_budget=BUDGET, progress=False) for seed in (SEED, SEED + 1)
    )
    result = probe.compare(before, after)
    return json.loads(json.dumps({"measured": [one.to_dict() for one in before], "result": result.to_dict()}))


def counted(model, forwards: list):
    """The model, which notes each of its forwards."""
    model.register_forward_hook(lambda *_: forwards.append(1))
    return model


def main(out: Path) -> None:
    """What this process measures, and how many forwards it ran for it."""
    state = process_state()
    forwards = []
    found = probed(lambda model: DistributedDataParallel(counted(model, forwards)))
    found |= {"processes": state.num_processes, "forwards": len(forwards)}
    (out / f"rank{state.process_index}.json").write_text(json.dumps(found))
    state.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
