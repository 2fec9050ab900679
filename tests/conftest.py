"""For the whole suite: no network, one thread per process, and short collections of garbage."""

import gc
import os

# Before anything imports huggingface_hub or torch, and for the processes that tests start.
os.environ["HF_HUB_OFFLINE"] = "1"
# Threads that wait for each other on a busy machine make tiny models ten times slower.
os.environ["OMP_NUM_THREADS"] = "1"


def pytest_collection_finish():
    """Collect no garbage among what all imports have made: each `Trainer.train` asks for a full collection."""
    gc.collect()
    gc.freeze()
