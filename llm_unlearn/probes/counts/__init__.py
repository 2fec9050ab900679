"""How often a fact was met: in a corpus, in an index of one, in our own fine-tuning, or as a table says."""

from llm_unlearn.probes.counts.record import FactCount, FactCounts, read_counts, write_counts
from llm_unlearn.probes.counts.sources import load_counts

__all__ = ["FactCount", "FactCounts", "load_counts", "read_counts", "write_counts"]
