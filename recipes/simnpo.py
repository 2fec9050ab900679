# /// script
# dependencies = ["llm-unlearn[recipes]"]
# ///
r"""SimNPO: length-normalised NPO without a reference.

On the embedded default, with nothing to download:

    accelerate launch recipes/simnpo.py

On a real model and real data (any flag of `--help`, or a YAML file of them with `--config`):

    accelerate launch recipes/simnpo.py --model PATH --output_dir out/simnpo-forget10 \
        --dataset locuslab/TOFU --forget_split forget10 --retain_split retain90

The steps are in `common.py` beside this file; the method is `llm_unlearn/methods/simnpo.py`.
"""

from common import main

if __name__ == "__main__":
    main("simnpo")
