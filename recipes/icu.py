# /// script
# dependencies = ["llm-unlearn[recipes]"]
# ///
r"""ICU: iterative contrastive unlearning.

On the embedded default, with nothing to download:

    accelerate launch recipes/icu.py

On a real model and real data (any flag of `--help`, or a YAML file of them with `--config`; the preset `icu-paper` has
the released code's values):

    accelerate launch recipes/icu.py --config icu-recommended --model PATH --reference RETAIN_REPORT \
        --dataset locuslab/TOFU --forget_split forget10 --retain_split retain90 --output_dir out/icu-forget10

The steps are in `common.py` beside this file; the method is `llm_unlearn/methods/icu.py`, the refinement
`llm_unlearn/refinement/`, the pairs `llm_unlearn/data/analogues/`.
"""

from common import main

if __name__ == "__main__":
    main("icu", pairing="nearest")
