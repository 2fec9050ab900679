"""All that frequency-aware training needs besides a model, checked before one is loaded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llm_unlearn.frequency.config import FrequencyConfig
from llm_unlearn.frequency.counts import counts_of_rows
from llm_unlearn.frequency.weights import frequency_weights, log_counts
from llm_unlearn.probes.buckets import make_buckets


@dataclass(frozen=True)
class FrequencyPlan:
    """What each forget row weighs, and which rows stop together.

    Attributes:
        rows: number of forget rows.
        weights: factor on the loss of each forget row, mean 1; None where all weigh alike.
        buckets: by name the positions of its rows, from the lowest counts to the highest; empty without `freq_stop`.
        ranges: smallest and largest count of each bucket.
    """

    rows: int
    weights: tuple[float, ...] | None = None
    buckets: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @classmethod
    def of(cls, config: FrequencyConfig, rows: Sequence[Mapping[str, Any]]) -> "FrequencyPlan":
        """Plan a run.

        Args:
            config: the run's arguments, with `freq_counts`.
            rows: the forget rows, in the order of the forget set.

        Raises:
            ValueError, FileNotFoundError: the counts cannot be read, or are such that nothing can follow from them, see
                `counts_of_rows`, `frequency_weights` and `probes.buckets.make_buckets`.
        """
        rows = list(rows)
        counts = counts_of_rows(config.freq_counts, rows)
        x = log_counts(counts)
        weights = tuple(frequency_weights(x, config.freq_weight).tolist()) if config.freq_weight else None
        if config.freq_stop is None:
            return cls(len(rows), weights)
        buckets = make_buckets(
            {str(row): count for row, count in enumerate(counts)}, tuple(config.freq_edges) or "quantiles"
        )
        return cls(
            len(rows),
            weights,
            {bucket.name: tuple(map(int, bucket.ids)) for bucket in buckets},
            {bucket.name: (bucket.lowest, bucket.highest) for bucket in buckets},
        )
