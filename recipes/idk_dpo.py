# /// script
# dependencies = ["llm-unlearn[recipes]"]
# ///
r"""IdkDPO: prefer a refusal to the answer.

On the embedded default, with nothing to download:

    accelerate launch recipes/idk_dpo.py

On a real model and real data (any flag of `--help`, or a YAML file of them with `--config`):

    accelerate launch recipes/idk_dpo.py --model PATH --output_dir out/idk_dpo-forget10 \
        --dataset locuslab/TOFU --forget_split forget10 --retain_split retain90

The steps are in `common.py` beside this file; the method is `llm_unlearn/methods/idk_dpo.py`.
"""

from common import main

if __name__ == "__main__":
    main("idk_dpo")
