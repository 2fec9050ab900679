"""The version, alone in a file that imports nothing, so that builds and `--version` read it at once."""

__version__ = "0.1.0"
