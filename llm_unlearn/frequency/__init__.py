"""Frequency-aware training, experimental: frequent facts weigh more in the forget loss, buckets stop at one target."""
