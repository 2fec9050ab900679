"""How hard is each fact to forget, given how often the model met it, and was it really forgotten?

Reproduces the questions of "Not All Data Are Unlearned Equally" (arXiv:2504.05058): facts that are frequent in
pretraining are reported to be harder to unlearn, and evaluations by probability and by generation to disagree. Facts
are sorted into buckets by count, every fact is asked in several ways before and after unlearning, and what was
forgotten is set against the count. What differs from the released evaluation: answers are judged without the prompt,
every True/False statement has a false twin, aliases count as answers, and only facts that the base model knew count.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from llm_unlearn.probes.buckets import make_buckets
from llm_unlearn.probes.cautions import cautions_about_facts, cautions_about_result
from llm_unlearn.probes.comparison import Comparison
from llm_unlearn.probes.counts.record import FactCounts
from llm_unlearn.probes.facts import Fact, listed, require_unique_ids
from llm_unlearn.probes.measurement import FactMeasurement
from llm_unlearn.probes.records import ProbeResult
from llm_unlearn.probes.settings import ProbeSettings
from llm_unlearn.suggest import unknown

if TYPE_CHECKING:
    from torch import nn

    from llm_unlearn.data.tokenization import ExampleTokenizer
    from llm_unlearn.probes.passes import Passes

BEFORE = "before"
"""How results call the base model."""


class FrequencyProbe:
    """Measures facts on models, and compares a model before unlearning with one after.

    Args:
        facts (`Iterable[Fact]`):
            Facts to be forgotten, and, for the price of it, neighbours and facts to be retained.
        counts (`FactCounts`):
            How often each was met; every fact to be forgotten needs a count.
        tokenizer (`ExampleTokenizer`):
            That of the models, with the system prompt they were trained with.
        settings (`ProbeSettings`, *optional*):
            Defaults to `ProbeSettings()`.

    Attributes:
        buckets: facts to be forgotten, sorted by count; the bucket-wise protocol needs a run for each.

    Raises:
        ValueError: two facts have the same id, a count is missing, all counts are the same, or a bucket is empty.
    """

    def __init__(
        self,
        facts: Iterable[Fact],
        counts: FactCounts,
        tokenizer: ExampleTokenizer,
        settings: ProbeSettings | None = None,
    ):
        self.facts = tuple(facts)
        self.counts = counts
        self.tokenizer = tokenizer
        self.settings = settings or ProbeSettings()
        require_unique_ids(self.facts, "The list of facts")
        to_forget = [fact.id for fact in self.facts if fact.role == "forget"]
        counts.require(to_forget)
        self.buckets = make_buckets(
            {fact_id: counts[fact_id].n_so for fact_id in to_forget},
            self.settings.buckets,
            equal_size=self.settings.equal_size,
            seed=self.settings.seed,
        )

    @cached_property
    def _passes(self) -> Passes:
        # Imports torch and transformers, which comparing measurements does without.
        from llm_unlearn.probes.passes import Passes

        return Passes(self.facts, self.tokenizer, self.settings)

    def measure(
        self, model: nn.Module, *, token_budget: int | None = None, progress: bool = True
    ) -> list[FactMeasurement]:
        """Probe every fact on a model, in the order of the facts; the same on every process.

        Three passes, and a fourth where samples are wanted: all answers and options are scored, all statements are
        scored, all questions are answered greedily, all direct questions are answered by sampling. For the base of an
        adapter, switch it off meanwhile. Measurements go to JSON and back, so that those of a base can be kept.

        Args:
            model: a causal language model, wrapped by PEFT or DDP or neither; in eval mode meanwhile.
            token_budget: tokens of a batch, for less memory or more speed. Defaults to what each pass chooses by
                vocabulary and cache, as in `score`, `generate` and `sample_answers`.
            progress: whether the main process shows progress bars.

        Raises:
            ValueError: a prompt is too long for the tokenizer's `max_length`, or the model gives no numbers.
        """
        return self._passes.run(model, token_budget=token_budget, progress=progress)

    def compare(
        self,
        before: Sequence[FactMeasurement],
        after: Sequence[FactMeasurement] | Mapping[str, Sequence[FactMeasurement]],
        *,
        run: str = "unlearned",
        stage: Literal["pretrained", "finetuned"] | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> ProbeResult:
        """Compare measurements of the base model with those after unlearning.

        Args:
            before: of the base model.
            after: of the model that unlearned all facts to be forgotten (protocol "mixed"), or by name of the bucket of
                models that each unlearned one bucket ("bucket-wise"). A bucket without a run serves as neighbourhood.
            run: how the result calls the run of the mixed protocol.
            stage: whether the base was "pretrained" only, or "finetuned" on the facts; unset, nothing is said.
            provenance: what to record of models and runs, as JSON.

        Raises:
            ValueError: measurements lack facts or were made with other settings, a bucket does not exist, or a run is
                called "before".
        """
        bucket_wise = isinstance(after, Mapping)
        runs = dict(after) if isinstance(after, Mapping) else {run: after}
        names = [bucket.name for bucket in self.buckets]
        for name in runs if bucket_wise else ():
            if name not in names:
                raise ValueError(unknown("bucket", name, names))
        if BEFORE in runs or not runs:
            raise ValueError(
                f"The runs are called {list(runs)}: give one or more, and none of them {BEFORE!r}, which is the base."
            )
        base = self._by_id(before, BEFORE)
        measured = {name: self._by_id(of_run, name) for name, of_run in runs.items()}
        for name, of_run in measured.items():
            self._require_alike(base, of_run, name)
        counts = self.counts.select(fact.id for fact in self.facts if fact.role == "forget")
        comparison = Comparison(
            self.facts,
            self.counts,
            self.buckets,
            base,
            {name: measured[name] for name in names if name in measured} if bucket_wise else measured,
            "bucket-wise" if bucket_wise else "mixed",
            self.settings,
        )
        result = comparison.result(
            (),
            {
                "counts": dict(counts.provenance),
                "source": counts.source,
                "share_zero": counts.share_zero,
                "share_approx": counts.share_approx,
                "stage": stage,
                **(provenance or {}),
            },
        )
        in_statistics = {row.id for row in result.rows if row.bucket is not None}
        left_out = [fact_id for fact_id in counts.ids if fact_id not in in_statistics]
        warnings = [*cautions_about_facts(self.facts, counts), *cautions_about_result(result, left_out)]
        return replace(result, warnings=tuple(warnings))

    def _by_id(self, measured: Sequence[FactMeasurement], name: str) -> dict[str, FactMeasurement]:
        by_id = {one.id: one for one in measured}
        missing = [fact.id for fact in self.facts if fact.id not in by_id]
        if missing:
            raise ValueError(
                f"The measurements {name!r} lack {listed(missing)}: measure all facts on every model with `measure`."
            )
        return by_id

    def _require_alike(
        self, base: Mapping[str, FactMeasurement], after: Mapping[str, FactMeasurement], name: str
    ) -> None:
        for fact in self.facts:
            asked = [_what_was_asked(of_model[fact.id]) for of_model in (base, after)]
            if asked[0] != asked[1]:
                raise ValueError(
                    f"Fact {fact.id!r} was not asked in the same way in {BEFORE!r} and {name!r}: measure both models "
                    "with the same facts, tokenizer and settings."
                )


def _what_was_asked(measured: FactMeasurement) -> tuple:
    samples = None if measured.samples is None else len(measured.samples)
    questions = [(one.kind, one.question) for one in measured.said]
    return measured.twin, measured.p3_options, measured.answer_tokens, samples, questions
