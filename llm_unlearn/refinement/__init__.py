"""Iterative refinement, for any objective: look at what is forgotten, leave it out of the loss, stop when all is."""
