# /// script
# dependencies = ["llm-unlearn[recipes]"]
# ///
r"""Gradient difference: ascent on forget, NLL (or `--retain_loss kl`) on retain.

On the embedded default, with nothing to download:

    accelerate launch recipes/grad_diff.py

On a real model and real data (any flag of `--help`, or a YAML file of them with `--config`):

    accelerate launch recipes/grad_diff.py --model PATH --output_dir out/grad_diff-forget10 \
        --dataset locuslab/TOFU --forget_split forget10 --retain_split retain90

The steps are in `common.py` beside this file; the method is `llm_unlearn/methods/grad_diff.py`.
"""

from common import main

if __name__ == "__main__":
    main("grad_diff")
