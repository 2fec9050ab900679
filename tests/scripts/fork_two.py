"""Runs a script on two processes that are copies of this one: importing torch, most of their time, is done once.

``python fork_two.py SCRIPT FLAGS``; each copy finds in its environment what torchrun would have put there.
"""

import gc
import os
import runpy
import signal
import sys
from pathlib import Path


def start(rank: int, script: str) -> tuple[int, int]:
    """Start one process; its id, and where it waits for the port at which the processes meet."""
    reads, writes = os.pipe()
    child = os.fork()
    if child:
        os.close(reads)
        return child, writes
    os.close(writes)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": os.read(reads, 16).decode()}
    # The first process opens no port of its own, as under torchrun.
    os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    runpy.run_path(script, run_name="__main__")
    sys.exit()


if __name__ == "__main__":
    _, script, *flags = sys.argv
    sys.argv = [script, *flags]
    sys.path[0] = str(Path(script).parent)  # where the script's own folder would be
    import runs  # noqa: F401
    import torch

    # What the script imports; it does its work under the name of a main module only.
    runpy.run_path(script, run_name="imported")

    gc.freeze()  # each `Trainer.train` collects garbage, and need not look for it among all modules
    children = [start(rank, script) for rank in range(2)]
    # Only now, for a forked process has no threads, and this store is one.
    store = torch.distributed.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    for _, writes in children:
        os.write(writes, str(store.port).encode())
    waiting = {child for child, _ in children}
    failed = False
    while waiting:
        child, status = os.wait()
        waiting.remove(child)
        if status and not failed:
            failed = True
            for other in waiting:  # it would wait for the one that failed
                os.kill(other, signal.SIGTERM)
    sys.exit(failed)
