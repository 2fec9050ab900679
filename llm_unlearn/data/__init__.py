"""Data: loading, tokenisation, pairing, batching, and the generator of the bundled world."""
