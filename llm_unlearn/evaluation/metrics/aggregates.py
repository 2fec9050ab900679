"""One number out of several. None of them is a headline: an average hides one failure, so always show what went in.

Higher is better throughout, and a part of 0 makes the whole 0. A part that was not measured makes an aggregate not
measured: nothing here takes None.
"""

from collections.abc import Iterable
from typing import Literal

import numpy as np

from llm_unlearn.evaluation.metrics.utility import harmonic_mean
from llm_unlearn.evaluation.statistics import Estimate


def mem(
    extraction_strength: Estimate, exact_memorization: Estimate, paraphrase_probability: Estimate, truth_ratio: Estimate
) -> Estimate:
    """``Mem = HM(1-ES, 1-EM, 1-P(paraphrase), 1-TR)`` on the forget set, in [0, 1], what is no longer memorised.

    Target: the retain model's value (.58 for Llama-3.2-1B on TOFU forget10); well above it is over-forgetting.
    Source: OpenUnlearning (arXiv:2506.12618), with ES floored and the last label dropped; we default to `fixed` parts.

    Args:
        extraction_strength: mean over the forget set.
        exact_memorization: likewise.
        paraphrase_probability: mean probability of the paraphrased answers.
        truth_ratio: mean of `prob_mean`.
    """
    return harmonic_mean(
        1 - part for part in (extraction_strength, exact_memorization, paraphrase_probability, truth_ratio)
    )


def priv(s_mia: Iterable[Estimate]) -> Estimate:
    """``Priv = HM(s_MIA)`` over the attacks loss, zlib, min-k and min-k++, in [0, 1]; target 1, the retain model's.

    Source: OpenUnlearning (arXiv:2506.12618); formula of `s_mia` from the code of UDS (arXiv:2605.24614).
    """
    return harmonic_mean(s_mia)


def utility_ratio(model_utility: Estimate, fluency: Estimate, before: Estimate) -> Estimate:
    """``Utility = min(1, HM(MU, fluency) / before)``, in [0, 1]; target 1. NaN if `before` is 0.

    Source: OpenUnlearning (arXiv:2506.12618). With `metrics.fluency` it is reported as ``utility_offline``.

    Args:
        model_utility: MU of the unlearned model.
        fluency: mean fluency of its texts on the forget set.
        before: the same harmonic mean for the model before unlearning.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.minimum(1.0, harmonic_mean((model_utility, fluency)) / np.float64(before))
    return np.where(np.equal(before, 0), np.nan, ratio)[()]


def overall(mem: Estimate, priv: Estimate, utility: Estimate) -> Estimate:
    """``Overall = HM(Mem, Priv, Utility)``, in [0, 1]; target: the retain model's value (.81 for Llama-3.2-1B).

    Source: OpenUnlearning (arXiv:2506.12618). With an offline utility it is reported as ``overall_offline``.
    """
    return harmonic_mean((mem, priv, utility))


def aus(
    before_kept: Estimate, after_kept: Estimate, forget: Estimate, mode: Literal["concept", "sample"] = "concept"
) -> Estimate:
    """``AUS = (1 - (A_before - A_after)) / (1 + delta)``, the adaptive unlearning score, in [0, 2].

    Target: the retain model's value; above 1 where the kept score has risen. Show it with its three parts. Source:
    DUCK (arXiv:2312.02052).

    Args:
        before_kept: A_before, a score in [0, 1] on what is to be kept, before unlearning.
        after_kept: A_after, the same after it. In mode `sample` on unseen text of the same kind.
        forget: the same kind of score on the forget set, in [0, 1].
        mode: `concept`: the forget score is to vanish, ``delta = |forget|``; `sample`: it is to be that of unseen
            samples, ``delta = |A_after - forget|``.

    Raises:
        ValueError: if `mode` is neither of the two.
    """
    if mode not in ("concept", "sample"):
        raise ValueError(f"AUS has the modes 'concept' and 'sample', not {mode!r}.")
    delta = abs(forget) if mode == "concept" else abs(after_kept - forget)
    return (1 - (before_kept - after_kept)) / (1 + delta)
