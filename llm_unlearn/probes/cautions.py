"""What limits a result, in whole sentences: too few facts, too little spread, runs that cannot be compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median

from llm_unlearn.probes.answers import is_given
from llm_unlearn.probes.counts.record import FactCounts
from llm_unlearn.probes.facts import Fact, listed
from llm_unlearn.probes.questions import questions_of
from llm_unlearn.probes.records import ProbeResult
from llm_unlearn.probes.statements import about_shots
from llm_unlearn.probes.statistics import FEWEST_CLUSTERS

MOST_ZERO = 0.3
"""Share of zero counts above which a warning is due; by specification, as the two below."""

FEWEST_DECADES = 1.0
FEWEST_KNOWN = 20

LEAST_P1 = 0.01
"""Median P1 of facts that the base model answers below which their answers are not worded as it would; ours."""

UTILITY_TOLERANCE = 0.05
"""Difference of what two runs took from retained facts above which they are not at matched utility; ours."""


def cautions_about_facts(facts: Sequence[Fact], counts: FactCounts) -> Iterator[str]:
    """What is to be said before any model is run.

    Args:
        facts: all facts.
        counts: of the facts to be forgotten.
    """
    if counts.share_zero > MOST_ZERO:
        yield (
            f"{counts.share_zero:.0%} of the facts to be forgotten have the count 0: their names may be written "
            "otherwise in what was counted; add aliases, or count a larger corpus."
        )
    if counts.decades < FEWEST_DECADES:
        yield (
            f"Counts of the facts to be forgotten span {counts.decades:.2f} powers of ten: below one, an effect of the "
            "count is hardly to be seen."
        )
    if not any(fact.role == "retain" for fact in facts):
        yield (
            "No fact is to be retained, so that a model which is damaged as a whole looks like one that forgot: add "
            "facts whose `role` is 'retain'."
        )
    given = [f.id for f in facts if any(is_given(question.names, question.text) for question in questions_of(f))]
    if given:
        yield (
            f"A question of {listed(given)} holds its own answer, so that repeating the question counts as answering "
            "it: reword it."
        )
    shown = about_shots(facts)
    if shown:
        yield f"{listed(shown)} are told by the examples before True/False statements: leave the facts out."


def cautions_about_result(result: ProbeResult, left_out: Sequence[str]) -> Iterator[str]:
    """What is to be said about a result.

    Args:
        result: without warnings as yet.
        left_out: ids of facts to be forgotten that no statistic is about.
    """
    if left_out:
        yield (
            f"{len(left_out)} facts to be forgotten are in no statistic, because buckets were made equally large or "
            f"their bucket has no run of its own: {listed(left_out, 5)}."
        )
    for bucket in result.buckets:
        if bucket.n_known < FEWEST_KNOWN:
            yield (
                f"The base model knows {bucket.n_known} of {bucket.n} facts in the bucket {bucket.name!r}: with fewer "
                f"than {FEWEST_KNOWN}, its numbers say little."
            )
    for name, verdict in result.statements.items():
        if verdict.always:
            model = "The base model" if name == "before" else f"The model of the run {name!r}"
            yield (
                f"{model} answers {verdict.always!r} to (nearly) all statements, true or false: balanced accuracy "
                f"{verdict.balanced_accuracy:.2f}, bias {verdict.bias:+.2f}. That is a habit, not a sign of what it "
                "knows; a test of true statements alone would have taken it for one."
            )
    before = sorted({row.id: row.before.p1 for row in result.known()}.values())
    if before and median(before) < LEAST_P1:
        yield (
            f"The base model answers {len(before)} questions and gives the true answers hardly any probability (median "
            f"P1 {median(before):.1e}), because it words them otherwise. P1, P3 and P4 then say little: write `answer` "
            "as the model would, such as 'The capital of France is Paris.'."
        )
    known, clusters = result.known(), {row.cluster for row in result.known()}
    if len(clusters) < min(FEWEST_CLUSTERS, len(known)):
        yield (
            f"The {len(known)} known facts share {len(clusters)} subjects: with fewer than {FEWEST_CLUSTERS}, facts "
            "are drawn one by one, and intervals are too narrow where facts of a subject are forgotten together."
        )
    without = [row.id for row in result.known() if row.f_p1 is None]
    if without:
        yield f"The base model gives {listed(without, 5)} no probability at all, so that P1 has no F there."
    if result.provenance.get("stage") == "pretrained":
        yield (
            "Facts are unlearned from a model that was only pretrained: there, popular facts are reported to be "
            "answered better after GA, GradDiff and NPO than before (DUET, arXiv:2602.19612, Table 1). Compare with a "
            "base that was fine-tuned on the facts."
        )
    if result.protocol == "bucket-wise":
        yield from _unequal_utility(result)


def _unequal_utility(result: ProbeResult) -> Iterator[str]:
    drops = {b.run: b.drops["retain/p1"].value for b in result.buckets if b.drops["retain/p1"].value is not None}
    if len(drops) > 1 and max(drops.values()) - min(drops.values()) > UTILITY_TOLERANCE:
        shown = ", ".join(f"{run} {drop:+.2f}" for run, drop in drops.items())
        yield (
            f"The runs of the buckets are not at the same utility (relative drop of P1 on retained facts: {shown}), so "
            "that one may only have been trained longer: compare checkpoints of equal utility (`match_utility`)."
        )
