"""Keep two lines of other libraries off our users' terminals: each named exactly, and nothing else is silenced."""

import logging
import warnings


def quiet_upstream() -> None:
    """For scripts and the command line, before anything heavy is imported; as a library we leave warnings alone."""
    # bitsandbytes, which peft imports, looks for an optional faster kernel and reports its absence on every start.
    logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(
        lambda record: not record.getMessage().startswith("Failed to load CPU gemm_4bit_forward")
    )
    # peft 0.21 asks a model by a name that transformers 5.23 has deprecated.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
