"""What a run may set about the frequency of its forget rows."""

import math
from dataclasses import dataclass, field


@dataclass
class FrequencyConfig:
    """Arguments of frequency-aware training (`frequency.callback`), shared by all methods; experimental [ours].

    Off unless `freq_weight` or `freq_stop` is set: frequent facts are said to be harder to unlearn (arXiv 2504.05058),
    and that paper proposes no method.

    Args:
        freq_weight (`float`, defaults to 0, off): kappa of the forget weights ``w_i ~ 1 + kappa zscore(x_i)``, see
            `frequency.weights`. Above 0, frequent facts weigh more; below 0, rare ones.
        freq_stop (`float`, *optional*): share of its probability, in (0, 1), that a bucket of forget rows must lose to
            leave the loss: ``1 - mean_i p(y_i) / mean_i p_0(y_i)`` over the rows of the bucket, p the per-token
            (geometric mean) probability of an answer, p_0 the same before unlearning. Looked at after every epoch; a
            bucket that falls back below comes back. The run ends when all buckets are there. Unset: no such rule.
        freq_edges (`list[float]`, defaults to none): counts at which a bucket begins, ascending and above 0. Unset: the
            quantiles .33 and .67 of the counts. A count of 0 has a bucket of its own either way.
        freq_counts (`str`, *optional*): where the counts come from: a column of the forget rows; the `exposures.json`
            of a fine-tuning, or the model folder that holds it; or a table (.csv, .jsonl, .json, .parquet) with the
            columns `question` and `count`.
    """

    freq_weight: float = field(
        default=0.0, metadata={"help": "Experimental: kappa of forget weights by frequency, 1 + kappa z(x). 0: off."}
    )
    freq_stop: float | None = field(
        default=None,
        metadata={"help": "Experimental: share of probability whose loss takes a frequency bucket out. Unset: off."},
    )
    freq_edges: list[float] = field(
        default_factory=list,
        metadata={"help": "Counts at which a bucket begins, such as 10 100. Unset: at the quantiles .33 and .67."},
    )
    freq_counts: str | None = field(
        default=None,
        metadata={"help": "Counts for both: column of the forget rows, exposures.json, or table of question,count."},
    )

    @property
    def uses_frequency(self) -> bool:
        """Whether anything depends on counts."""
        return bool(self.freq_weight) or self.freq_stop is not None

    def check_frequency(self) -> None:
        """Reject what cannot be meant.

        Raises:
            ValueError: a value is out of its range, or counts and what needs them do not come together.
        """
        if not math.isfinite(self.freq_weight):
            raise ValueError(f"`freq_weight` is {self.freq_weight}; it must be a finite number, 0 for equal weights.")
        if self.freq_stop is not None and not 0 < self.freq_stop < 1:
            raise ValueError(
                f"`freq_stop` is {self.freq_stop}; it is the share of probability to be lost, above 0 and below 1."
            )
        ascending = all(low < high for low, high in zip([0.0, *self.freq_edges], self.freq_edges, strict=False))
        if not ascending or not all(map(math.isfinite, self.freq_edges)):
            raise ValueError(f"`freq_edges` is {self.freq_edges}; give ascending counts above 0, such as 10 100.")
        if self.freq_edges and self.freq_stop is None:
            raise ValueError(f"`freq_edges` is {self.freq_edges} and no bucket is stopped: add `--freq_stop SHARE`.")
        if self.uses_frequency and not self.freq_counts:
            raise ValueError(
                "`freq_weight` and `freq_stop` need to know how often each fact was met: name a column of the forget "
                "rows, an exposures.json or a table with `--freq_counts`."
            )
        if self.freq_counts and not self.uses_frequency:
            raise ValueError(
                f"`freq_counts` is {self.freq_counts!r} and nothing uses counts: add `--freq_weight KAPPA` or "
                "`--freq_stop SHARE`, or drop it."
            )
