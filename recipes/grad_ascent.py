# /// script
# dependencies = ["llm-unlearn[recipes]"]
# ///
r"""Gradient ascent on the forget answers; loads no retain data.

On the embedded default, with nothing to download:

    accelerate launch recipes/grad_ascent.py

On a real model and real data (any flag of `--help`, or a YAML file of them with `--config`):

    accelerate launch recipes/grad_ascent.py --model PATH --output_dir out/grad_ascent-forget10 \
        --dataset locuslab/TOFU --forget_split forget10

The steps are in `common.py` beside this file; the method is `llm_unlearn/methods/grad_ascent.py`.
"""

from common import main

if __name__ == "__main__":
    main("grad_ascent")
