"""The controlled experiment on frequency: targets of known exposures, runs with checkpoints, pieces, tables."""
