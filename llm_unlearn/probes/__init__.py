"""Frequency-aware probes: how often a model met a fact, and whether unlearning made it forget or only look so."""
