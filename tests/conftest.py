"""For the whole suite: no network, and one thread per process."""

import os

# Before anything imports huggingface_hub or torch, and for the processes that tests start.
os.environ["HF_HUB_OFFLINE"] = "1"
# Threads that wait for each other on a busy machine make tiny models ten times slower.
os.environ["OMP_NUM_THREADS"] = "1"
