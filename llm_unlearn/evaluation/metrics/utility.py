"""Model utility: what the model still does well, as one number."""

from collections.abc import Iterable, Mapping

import numpy as np

from llm_unlearn.evaluation.statistics import Estimate

PARTS = (
    "retain/probability",
    "retain/rouge_l_recall",
    "retain/truth_ratio",
    "real_authors/normalised_probability",
    "real_authors/rouge_l_recall",
    "real_authors/truth_ratio",
    "world_facts/normalised_probability",
    "world_facts/rouge_l_recall",
    "world_facts/truth_ratio",
)
"""The nine metrics that model utility joins, each in [0, 1]; truth ratios as `true_better`."""


def harmonic_mean(values: Iterable[Estimate]) -> Estimate:
    """``HM = k / sum_i 1/v_i``, at most k times the smallest value; 0 if any value is 0, NaN if any is NaN.

    Values may be arrays, of one value per resample: the mean then is, too.

    Raises:
        ValueError: if there are no values, or one is negative.
    """
    values = list(values)
    parts = np.asarray(values, dtype=np.float64)
    if not len(parts) or (parts < 0).any():
        raise ValueError(f"A harmonic mean takes one or more values of at least 0, but was given {values}.")
    with np.errstate(divide="ignore"):
        mean = len(parts) / (1 / parts).sum(axis=0)
    return mean if mean.ndim else float(mean)


def model_utility(parts: Mapping[str, Estimate]) -> Estimate:
    """``MU``, the harmonic mean of nine: probability, ROUGE-L recall and truth ratio on three sets; in [0, 1].

    Higher is better; one part of 0 makes it 0. Target: the value of the model before unlearning (.599 for Llama-3.2-1B
    on TOFU). Source: TOFU (arXiv:2401.06121), section 2.2. Variants differ in the parts, see `metrics.truth_ratio`
    and `normalised_probability`.

    Args:
        parts: the value of every name in `PARTS`.

    Raises:
        ValueError: if a part is missing or unknown, or negative.
    """
    if set(parts) != set(PARTS):
        missing, unknown = sorted(set(PARTS) - set(parts)), sorted(set(parts) - set(PARTS))
        raise ValueError(f"Model utility joins nine parts; missing: {missing}, unknown: {unknown}.")
    return harmonic_mean(parts[name] for name in PARTS)
