"""What a comparison of measurements says: forgetting, disagreement, protocols, warnings, several runs."""

from dataclasses import replace

import numpy as np
import pytest
from tiny import tiny_model
from tiny_probe import (
    counts_of,
    measured,
    plain_facts,
    probe_tokenizer,
    tiny_frequency_probe,
)

from llm_unlearn.data.tofu import load_tofu
from llm_unlearn.data.tokenization import ExampleTokenizer
from llm_unlearn.models import load_model, load_tokenizer
from llm_unlearn.paths import data_dir
from llm_unlearn.probes.disagreement import rate_over_sizes, verdict_on_statements
from llm_unlearn.probes.frequency import FrequencyProbe
from llm_unlearn.probes.matched import Checkpoint, check_level, match_utility, retained
from llm_unlearn.probes.measurement import Said
from llm_unlearn.probes.seeds import average_over_seeds
from llm_unlearn.probes.settings import ProbeSettings
from llm_unlearn.probes.world import facts_of_world

# Comparison.


def probe_of(facts, values, **settings):
    to_forget = [fact for fact in facts if fact.role == "forget"]
    options = {"resamples": 300, "permutations": 999, **settings}
    return FrequencyProbe(facts, counts_of(to_forget, values), probe_tokenizer(), ProbeSettings(**options))


def test_forgetting_gates_and_disagreement_by_hand():
    facts = [*plain_facts(6), *plain_facts(2, "retain"), *plain_facts(1, "neighbour")]
    probe = probe_of(facts, [1, 2, 10, 20, 100, 200], buckets=(10, 100))
    before = [measured(fact) for fact in facts]
    before[5] = measured(facts[5], knows=False)
    after = list(before)
    # P1 a twentieth of .8, both statements no longer right, and nothing said: gone for both.
    after[0] = measured(facts[0], p1=0.04, knows=False, margins=(-1.0, -1.0))
    # The same, and still said: hidden.
    after[1] = measured(facts[1], p1=0.04, margins=(-1.0, -1.0))
    # As improbable, but the statements are right: probability does not say it is gone. Not said: apparent.
    after[2] = measured(facts[2], p1=0.04, knows=False)
    # More than a tenth is left: neither.
    after[3] = measured(facts[3], p1=0.084, margins=(-1.0, 1.0))
    # It rose.
    after[4] = measured(facts[4], p1=1.0)
    after[6] = measured(facts[6], p1=0.6)
    after[8] = measured(facts[8], p1=0.4, knows=False)
    result = probe.compare(before, after)

    assert [row.f_p1 for row in result.rows[:5]] == pytest.approx([0.95, 0.95, 0.95, 0.895, -0.25])
    assert [row.f_generation for row in result.rows[:5]] == [1, 0, 1, 0, 0]
    assert [row.known for row in result.rows] == [True] * 5 + [False] + [True] * 3
    assert [(row.prob_forgotten, row.gen_forgotten) for row in result.rows[:6]] == [
        (True, True),
        (True, False),
        (False, True),
        (False, False),
        (False, False),
        (None, None),
    ]
    table = result.disagreement
    assert (table.both, table.hidden, table.apparent, table.neither, table.uses_p2) == (1, 1, 1, 2, True)
    low, medium, high = result.buckets
    assert [(b.name, b.n, b.n_known, b.lowest, b.highest) for b in result.buckets] == [
        ("below 10", 2, 2, 1, 2),
        ("10 to 100", 2, 2, 10, 20),
        ("100 and more", 2, 1, 100, 200),
    ]
    assert low.forgetting["p1"].value == pytest.approx(0.95)
    assert medium.forgetting["p1"].value == pytest.approx((0.95 + 0.895) / 2)
    assert high.forgetting["p1"].value == pytest.approx(-0.25), "over the one that was known"
    assert low.forgotten == {"prob": 1.0, "gen": 0.5}
    assert (low.disagreement.both, low.disagreement.hidden) == (1, 1)
    assert low.x == pytest.approx((np.log10(2) + np.log10(3)) / 2)
    assert (low.confidence, low.answer_tokens) == (pytest.approx(0.8), 4)
    assert low.before["p2"] == 1 and low.after["p2"] == pytest.approx(0.5)
    assert low.before["p1"] == pytest.approx(0.8) and low.after["p1"] == pytest.approx(0.04)
    assert low.after["g1_alias"] == 0.5 and low.after["g2_max"] is None
    # (.25 + 0) / 2 over retained facts, .5 and 1 over the neighbour.
    assert low.drops["retain/p1"].value == pytest.approx(0.125)
    assert low.drops["neighbour/p1"].value == pytest.approx(0.5)
    assert low.drops["neighbour/generation"].value == 1
    assert "others/p1" not in low.drops
    assert result.associations["p1"].gap.value == pytest.approx(-0.25 - 0.95)
    assert result.protocol == "mixed" and result.runs == ("unlearned",)


def test_a_base_without_probability_gives_no_forgetting():
    facts = plain_facts(4)
    probe = probe_of(facts, [1, 2, 3, 4])
    before = [measured(facts[0], p1=0.0), *(measured(fact) for fact in facts[1:])]
    result = probe.compare(before, [measured(fact) for fact in facts])
    assert result.rows[0].f_p1 is None and result.rows[0].f_generation == 0
    assert result.associations["p1"].spearman.n == 3
    assert any("no probability at all" in warning for warning in result.warnings)


@pytest.mark.parametrize(
    ("knows", "paraphrase", "known"),
    [(True, None, True), (False, None, False), (False, 0.5, True), (False, 0.49, False)],
)
def test_a_fact_is_known_by_name_or_by_half_a_paraphrase(knows, paraphrase, known):
    facts = plain_facts(3)
    said = measured(facts[0], knows=knows).said
    if paraphrase is not None:
        said += (Said("paraphrase", "?", "some", paraphrase, False),)
    before = [replace(measured(facts[0]), said=said), *(measured(fact) for fact in facts[1:])]
    assert probe_of(facts, [1, 2, 3]).compare(before, before).rows[0].known == known


@pytest.mark.parametrize(("recall", "gone"), [(0.49, True), (0.5, False)])
def test_half_of_an_answer_is_not_gone(recall, gone):
    facts = plain_facts(3)
    before = [measured(fact) for fact in facts]
    said = (Said("direct", facts[0].question, "some", recall, False),)
    result = probe_of(facts, [1, 2, 3]).compare(before, [replace(before[0], said=said), *before[1:]])
    assert result.rows[0].gen_forgotten == gone
    assert result.rows[0].f_generation == pytest.approx(1 - recall)


def test_statements_count_only_where_the_base_passes_them():
    facts = plain_facts(8)
    probe = probe_of(facts, range(1, 9))
    # Balanced accuracy (8 + 4) / 16 = .75 passes; (8 + 3) / 16 does not.
    for right, passes in ((4, True), (3, False)):
        margins = [(1.0, -1.0 if i < right else 1.0) for i in range(8)]
        before = [measured(fact, margins=own) for fact, own in zip(facts, margins, strict=True)]
        after = [measured(fact, p1=0.01, margins=own) for fact, own in zip(facts, margins, strict=True)]
        result = probe.compare(before, after)
        gate = result.gates["p2"]
        assert (gate.passed, gate.accuracy, gate.n) == (passes, (8 + right) / 16, 8)
        assert (gate.reason is None) == passes
        # With statements the pairs that are both right are not gone; without, the likelihood alone decides.
        assert result.disagreement.uses_p2 == passes
        assert result.disagreement.hidden == (8 - right if passes else 8)
        assert (result.buckets[0].before["p2"] is None) == (not passes)
        assert (result.buckets[0].before["p2_margin"] is None) == (not passes)
        assert result.buckets[0].before["p1"] is not None


def test_options_count_only_where_the_base_passes_them():
    facts = plain_facts(4)
    probe = probe_of(facts, range(1, 5))
    # Ranks 1, 1, 2 and 5 of 5 beat 4, 4, 3 and 0 of 4: 11 / 16. With 4 for 5 it is 12 / 16.
    for last, passes in ((5, False), (4, True)):
        before = [measured(f, p3_rank=rank) for f, rank in zip(facts, (1, 1, 2, last), strict=True)]
        result = probe.compare(before, before)
        gate = result.gates["p3"]
        assert (gate.passed, gate.accuracy) == (passes, (16 - last) / 16)
        assert (result.buckets[0].before["p3"] is None) == (not passes)
    without = [measured(f, p3_rank=None, p3_options=None, margins=(1.0, None)) for f in facts]
    gates = probe.compare(without, without).gates
    assert not gates["p2"].passed and not gates["p3"].passed
    assert "wrong object" in gates["p2"].reason
    unknown = [measured(f, knows=False) for f in facts]
    assert "knows no fact" in probe.compare(unknown, unknown).gates["p3"].reason


# A model that always says "False".


def test_a_model_that_always_says_false_is_flagged_and_at_chance():
    probe, model = tiny_frequency_probe(), tiny_model(seed=3)
    before = probe.measure(model, progress=False)
    known = [
        replace(one, said=(replace(one.said[0], alias=True), *one.said[1:]), p2_margin=1.0, p2_twin_margin=-1.0)
        for one in before
    ]
    false = probe.tokenizer.tokenizer.convert_tokens_to_ids("False")

    def always_false(module, inputs, logits):
        logits[..., false] += 100
        return logits

    model.lm_head.register_forward_hook(always_false)
    after = probe.measure(model, progress=False)
    # A test of true statements alone sees a perfect forgetting.
    assert all(one.p2_margin < -50 for one in after)
    result = probe.compare(known, after)
    verdict = result.statements["unlearned"]
    assert (verdict.always, verdict.balanced_accuracy, verdict.bias) == ("False", 0.5, -0.5)
    assert result.statements["before"].always is None
    assert result.gates["p2"].passed
    assert any("'unlearned' answers 'False' to (nearly) all statements" in warning for warning in result.warnings)


def test_verdicts_on_statements_by_hand():
    facts = plain_facts(20)
    margins = [(1.0, -1.0)] * 8 + [(-1.0, -1.0)] * 10 + [(0.0, 1.0)] * 2
    verdict = verdict_on_statements(measured(f, margins=own) for f, own in zip(facts, margins, strict=True))
    # True statements: 8 of 20; a margin of 0 is right for neither. Twins: 18 of 20.
    assert (verdict.true_accuracy, verdict.false_accuracy, verdict.n) == (0.4, 0.9, 20)
    assert (verdict.balanced_accuracy, verdict.bias) == (pytest.approx(0.65), pytest.approx(-0.25))
    assert verdict.always is None
    # "True" in 38 of 40 answers, and in 37.
    for wrong, always in ((2, "True"), (3, None)):
        margins = [(1.0, -1.0)] * wrong + [(1.0, 1.0)] * (20 - wrong)
        verdict = verdict_on_statements(measured(f, margins=own) for f, own in zip(facts, margins, strict=True))
        assert verdict.always == always
    assert verdict_on_statements([measured(facts[0], margins=(1.0, None))]) is None


# Counts and forgetting.


def planted(counts, noise, seed=0):
    """Facts that are the harder to forget the more frequent they are."""
    facts = plain_facts(len(counts))
    random = np.random.default_rng(seed)
    before = [measured(fact) for fact in facts]
    f = 0.95 - 0.3 * np.log10(1 + np.array(counts)) + noise * random.normal(size=len(counts))
    after = [measured(fact, p1=0.8 * (1 - own), knows=own < 0.6) for fact, own in zip(facts, f, strict=True)]
    return facts, before, after


def test_a_planted_relation_is_found_and_vanishes_when_counts_are_shuffled():
    random = np.random.default_rng(1)
    counts = (10 ** random.uniform(0, 2.5, size=90)).round()
    facts, before, after = planted(counts, noise=0.15)
    found = probe_of(facts, counts).compare(before, after).associations
    for outcome in ("p1", "generation"):
        estimates = found[outcome]
        assert estimates.spearman.ci95[1] < 0 and estimates.spearman.p <= 0.002
        assert estimates.kendall.value < 0 and estimates.slope.ci95[1] < 0 and estimates.gap.ci95[1] < 0
        assert estimates.partial.ci95 is not None
    assert found["p1"].slope.value == pytest.approx(-0.3, abs=0.06)
    shuffled = probe_of(facts, random.permutation(counts)).compare(before, after).associations
    for outcome in ("p1", "generation"):
        assert shuffled[outcome].spearman.ci95[0] < 0 < shuffled[outcome].spearman.ci95[1]
        assert shuffled[outcome].gap.ci95[0] < 0 < shuffled[outcome].gap.ci95[1]


def test_facts_the_base_did_not_know_have_no_say():
    counts = list(range(1, 41))
    facts, before, after = planted(counts, noise=0.05)
    alone = probe_of(facts[:30], counts[:30]).compare(before[:30], after[:30])
    before[30:] = [measured(fact, knows=False) for fact in facts[30:]]
    with_unknown = probe_of(facts, counts).compare(before, after)
    ours, theirs = (result.associations["p1"].spearman for result in (with_unknown, alone))
    assert (ours.value, ours.p, ours.n) == (theirs.value, theirs.p, 30)


def test_zero_counts_are_neither_the_lowest_bucket_of_the_gap_nor_left_out_of_the_correlation():
    facts = plain_facts(9)
    probe = probe_of(facts, [0, 0, 0, 1, 1, 10, 10, 100, 100], buckets=(10, 100))
    before = [measured(fact) for fact in facts]
    after = [
        measured(fact, p1=p1) for fact, p1 in zip(facts, [0.8, 0.8, 0.7, 0.08, 0.08, 0.4, 0.4, 0.72, 0.72], strict=True)
    ]
    result = probe.compare(before, after)
    assert [bucket.name for bucket in result.buckets] == ["zero", "below 10", "10 to 100", "100 and more"]
    assert result.associations["p1"].gap.value == pytest.approx(0.1 - 0.9)
    assert result.associations["p1"].spearman.n == 9


# Protocols.


def bucket_wise():
    facts = [*plain_facts(6), *plain_facts(2, "retain")]
    probe = probe_of(facts, [1, 2, 10, 20, 100, 200], buckets=(10, 100))
    before = [measured(fact) for fact in facts]
    # The first run forgets its own facts, half of the medium ones and a tenth of what is retained.
    low = [measured(fact, p1=p1) for fact, p1 in zip(facts, [0, 0, 0.4, 0.4, 0.8, 0.8, 0.72, 0.72], strict=True)]
    high = [measured(fact, p1=p1) for fact, p1 in zip(facts, [0.8] * 4 + [0.6] * 2 + [0.4] * 2, strict=True)]
    return probe, before, low, high


def test_a_bucket_is_read_from_its_own_run():
    probe, before, low, high = bucket_wise()
    # In whatever order the runs are given.
    result = probe.compare(before, {"100 and more": high, "below 10": low})
    assert result.protocol == "bucket-wise"
    assert [bucket.name for bucket in result.buckets] == ["below 10", "100 and more"]
    first, last = result.buckets
    assert (first.run, last.run) == ("below 10", "100 and more")
    assert first.forgetting["p1"].value == 1 and last.forgetting["p1"].value == pytest.approx(0.25)
    assert first.drops["others/p1"].value == pytest.approx((0.5 + 0.5 + 0 + 0) / 4)
    assert last.drops["others/p1"].value == pytest.approx(0)
    assert first.drops["retain/p1"].value == pytest.approx(0.1)
    assert last.drops["retain/p1"].value == pytest.approx(0.5)
    assert result.associations["p1"].gap.value == pytest.approx(-0.75)
    assert [(row.id, row.run) for row in result.rows] == [
        ("forget0", "below 10"),
        ("forget1", "below 10"),
        ("forget4", "100 and more"),
        ("forget5", "100 and more"),
        ("retain0", "below 10"),
        ("retain0", "100 and more"),
        ("retain1", "below 10"),
        ("retain1", "100 and more"),
    ]
    assert set(result.statements) == {"before", "below 10", "100 and more"}
    text = " ".join(result.warnings)
    assert "2 facts to be forgotten are in no statistic" in text and "'forget2', 'forget3'" in text
    assert "not at the same utility" in text and "below 10 +0.10, 100 and more +0.50" in text


def test_runs_at_the_same_utility_are_not_warned_about():
    probe, before, low, high = bucket_wise()
    high = [*high[:6], *low[6:]]
    result = probe.compare(before, {"below 10": low, "10 to 100": low, "100 and more": high})
    assert not [warning for warning in result.warnings if "utility" in warning or "no statistic" in warning]


def test_what_a_comparison_refuses():
    probe, before, low, _ = bucket_wise()
    with pytest.raises(ValueError, match="no bucket 'lowest'"):
        probe.compare(before, {"lowest": low})
    with pytest.raises(ValueError, match="give one or more"):
        probe.compare(before, {})
    with pytest.raises(ValueError, match="none of them 'before'"):
        probe.compare(before, low, run="before")
    with pytest.raises(ValueError, match="'unlearned' lack 'retain1'"):
        probe.compare(before, low[:-1])
    with pytest.raises(ValueError, match="'before' lack 'forget0'"):
        probe.compare(before[1:], low)
    for change in ({"twin": "other"}, {"answer_tokens": 5}, {"samples": ("a",), "leaks": 0}, {"p3_options": 2}):
        with pytest.raises(ValueError, match="'forget0' was not asked in the same way"):
            probe.compare(before, [replace(low[0], **change), *low[1:]])


def test_what_a_probe_refuses():
    facts = plain_facts(4)
    with pytest.raises(ValueError, match="more than one fact with the id 'forget0'"):
        FrequencyProbe([*facts, facts[0]], counts_of(facts, [1, 2, 3, 4]), probe_tokenizer())
    with pytest.raises(ValueError, match="no count .made-up counts. of 'forget3'"):
        FrequencyProbe(facts, counts_of(facts[:3], [1, 2, 3]), probe_tokenizer())
    with pytest.raises(ValueError, match="have the same count, 2"):
        FrequencyProbe(facts, counts_of(facts, [2] * 4), probe_tokenizer())
    with pytest.raises(ValueError, match="no fact to be forgotten"):
        retain = plain_facts(4, "retain")
        FrequencyProbe(retain, counts_of(retain, [1, 2, 3, 4]), probe_tokenizer())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"buckets": "thirds"}, "'quantiles', 'decades', or edges"),
        ({"buckets": (10, 10)}, "ascending"),
        ({"buckets": ()}, "one or more numbers above 0"),
        ({"buckets": (0, 10)}, "above 0"),
        ({"reference": "both"}, "'object' or 'answer'"),
        ({"leak_samples": -1}, "give 0 or more"),
        ({"max_new_tokens": 0}, "give 1 or more"),
        ({"resamples": 10}, "give 100 or more"),
        ({"seed": -1}, "give 0 or more"),
        ({"known_recall": 0}, "above 0 and at most 1"),
        ({"gone_recall": 1.1}, "above 0 and at most 1"),
        ({"gone_p1": 1}, "between 0 and 1"),
        ({"gate": 0.5}, "which is chance"),
    ],
)
def test_settings_out_of_range(values, message):
    with pytest.raises(ValueError, match=message):
        ProbeSettings(**values)


# Warnings.


def test_warnings_about_facts_and_counts():
    facts = [
        replace(fact, question=f"Is it {fact.object}?") if fact.id == "forget3" else fact for fact in plain_facts(10)
    ]
    before = [measured(fact) for fact in facts]
    quiet = probe_of([*plain_facts(60), *plain_facts(1, "retain")], [*range(1, 61)])
    fine = [measured(fact) for fact in quiet.facts]
    assert quiet.compare(fine, fine).warnings == ()

    text = " ".join(probe_of(facts, [0] * 4 + [1, 1, 2, 2, 3, 3]).compare(before, before, stage="pretrained").warnings)
    assert "40% of the facts to be forgotten have the count 0" in text
    # log10(4) - log10(1).
    assert "span 0.60 powers of ten" in text
    assert "No fact is to be retained" in text
    assert "'forget3' holds its own answer" in text
    assert "knows 4 of 4 facts in the bucket 'zero'" in text
    assert "only pretrained" in text and "2602.19612" in text
    # Exactly at the bounds nothing is said.
    edge = probe_of(facts, [0] * 3 + [9] * 2 + [4] * 2 + [1, 2, 3]).compare(before, before)
    assert not any("count 0" in warning or "powers of ten" in warning for warning in edge.warnings)
    assert not any("pretrained" in warning for warning in edge.warnings)


def test_answers_that_the_model_would_word_otherwise_are_warned_about():
    facts = plain_facts(5)
    probe = probe_of(facts, [1, 2, 3, 4, 500])
    for middle, warned in ((0.009, True), (0.01, False)):
        before = [measured(f, p1=p1) for f, p1 in zip(facts, [0.0001, 0.0002, middle, 0.9, 0.9], strict=True)]
        found = [warning for warning in probe.compare(before, before).warnings if "words them otherwise" in warning]
        assert bool(found) == warned


def test_facts_left_out_for_equal_sizes_are_named():
    facts = plain_facts(9)
    probe = probe_of(facts, [1] * 5 + [10] * 2 + [100] * 2, buckets=(10, 100), equal_size=True)
    before = [measured(fact) for fact in facts]
    result = probe.compare(before, before)
    assert [bucket.n for bucket in result.buckets] == [2, 2, 2]
    assert len(result.rows) == 9 and sum(row.bucket is None for row in result.rows) == 3
    assert "3 facts to be forgotten are in no statistic" in " ".join(result.warnings)
    assert len(result.known()) == 6


def test_a_result_says_where_it_comes_from():
    facts = plain_facts(4)
    probe = probe_of(facts, [0, 1, 2, 3], buckets="decades", seed=5)
    before = [measured(fact) for fact in facts]
    result = probe.compare(before, before, stage="finetuned", provenance={"model": "m"})
    assert result.provenance == {
        "counts": {"file": "none"},
        "source": "counts",
        "share_zero": 0.25,
        "share_approx": 0.0,
        "stage": "finetuned",
        "model": "m",
    }
    assert result.label == "made-up counts"
    assert set(result.seeds.values()) == {5} and result.settings["seed"] == 5
    assert result.settings["buckets"] == "decades"


# Several runs.


def test_checkpoints_are_chosen_at_a_common_utility():
    fast = [Checkpoint(str(i), utility) for i, utility in enumerate([1.0, 0.9, 0.71, 0.5])]
    slow = [Checkpoint(str(i), utility) for i, utility in enumerate([1.0, 0.95, 0.8, 0.7])]
    match = match_utility({"fast": fast, "slow": slow})
    # The slow run got to .7 and no further.
    assert match.level == 0.7
    assert {run: one.name for run, one in match.chosen.items()} == {"fast": "2", "slow": "3"}
    assert match.to_json() == {
        "level": 0.7,
        "chosen": {"fast": {"checkpoint": "2", "utility": 0.71}, "slow": {"checkpoint": "3", "utility": 0.7}},
    }
    assert match_utility({"fast": fast, "slow": slow}, level=0.92, tolerance=0.04).chosen["slow"].name == "1"
    with pytest.raises(ValueError, match="within 0.02 of the utility 0.900: slow has 0.950 at 1"):
        match_utility({"fast": fast, "slow": slow}, level=0.9)
    with pytest.raises(ValueError, match="'slow' has no checkpoint"):
        match_utility({"fast": fast, "slow": []})
    with pytest.raises(ValueError, match="no runs"):
        match_utility({})
    # A run alone has no name.
    with pytest.raises(ValueError, match="utility 0.600: the run has 0.500 at 3 as"):
        match_utility({"": fast}, level=0.6)
    with pytest.raises(ValueError, match="The run has no checkpoint"):
        match_utility({"": []})


def test_what_is_matched_at_is_checked_before_anything_is_measured():
    for match, level, tolerance in [(False, None, 0.02), (True, 1, 0), (True, 0.5, 1), (True, None, 0.02)]:
        check_level(match, level, tolerance)
    for tolerance in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="`--utility_tolerance` is"):
            check_level(False, None, tolerance)
    for level in (0, -0.1, 1.01, 3, float("nan")):
        with pytest.raises(ValueError, match="`--utility_level` is .*: give a share"):
            check_level(True, level, 0.02)
    with pytest.raises(ValueError, match="nothing is matched at it: add `--match_utility`"):
        check_level(False, 0.5, 0.02)


def test_what_is_retained_is_a_share_of_the_base():
    facts = [*plain_facts(2), *plain_facts(2, "retain")]
    before = [measured(fact, p1=p1) for fact, p1 in zip(facts, [0.5, 0.5, 0.8, 0.2], strict=True)]
    after = [measured(fact, p1=p1) for fact, p1 in zip(facts, [0.0, 0.0, 0.6, 0.15], strict=True)]
    assert retained(before, after, facts) == pytest.approx(0.75)
    with pytest.raises(ValueError, match="no probability to be retained"):
        retained(before, after, facts[:2])
    match = match_utility({"run": [Checkpoint("1", 0.75, tuple(after))]})
    assert match.measurements == {"run": tuple(after)}


def test_results_of_several_seeds_are_averaged():
    counts = [*range(1, 41)]
    results = []
    for seed in range(3):
        facts, before, after = planted(counts, noise=0.15, seed=seed)
        results.append(probe_of(facts, counts).compare(before, after))
    averages = average_over_seeds(results)
    rhos = [result.associations["p1"].spearman.value for result in results]
    assert averages["p1"].spearman.value == pytest.approx(np.tanh(np.mean(np.arctanh(rhos))))
    assert averages["p1"].spearman_over_facts.value == averages["p1"].spearman.value
    assert averages["p1"].spearman_over_facts.ci95[1] < 0
    gaps = [result.associations["p1"].gap.value for result in results]
    assert averages["p1"].gap.value == pytest.approx(np.mean(gaps)) and averages["p1"].gap.n == 3
    other = probe_of(facts, [*range(2, 42)]).compare(before, after)
    with pytest.raises(ValueError, match="the same facts, counts and protocol"):
        average_over_seeds([*results, other])
    with pytest.raises(ValueError, match="one for each seed"):
        average_over_seeds([])
    unchanged = probe_of(facts, counts).compare(before, before)
    assert average_over_seeds([results[0], unchanged])["p1"].spearman.value is None


def test_the_rate_of_disagreement_over_sizes():
    facts = plain_facts(9)
    probe = probe_of(facts, [1] * 3 + [10] * 3 + [100] * 3, buckets=(10, 100))
    before = [measured(fact) for fact in facts]

    def hidden(n):
        return [measured(fact, p1=0.01 if i >= 9 - n else 0.8, margins=(-1.0, -1.0)) for i, fact in enumerate(facts)]

    results = {10.0**6 * 10**i: probe.compare(before, hidden(n)) for i, n in enumerate((0, 1, 2))}
    slopes = rate_over_sizes(results)
    assert list(slopes) == ["all", "below 10", "10 to 100", "100 and more"]
    assert slopes["all"].value == pytest.approx(1 / 9)
    assert slopes["100 and more"].value == pytest.approx(1 / 3)
    assert slopes["below 10"].value == 0
    assert rate_over_sizes(dict(list(results.items())[:2]))["all"].value is None


# The bundled testbed: models that know something, and one that never met the facts.


def test_the_retain_only_model_is_found_to_have_forgotten():
    folder = data_dir() / "testbed"
    facts = [
        *facts_of_world(load_tofu("forget10"))[:24],
        *facts_of_world(load_tofu("retain90"), role="retain")[:6],
    ]
    tokenizer = ExampleTokenizer(load_tokenizer(folder / "target"))
    counts = counts_of(facts[:24], [1, 4, 16] * 8)
    settings = ProbeSettings(leak_samples=2, resamples=200, permutations=199, buckets=(4, 16))
    probe = FrequencyProbe(facts, counts, tokenizer, settings)
    before = probe.measure(load_model(folder / "target"), progress=False)
    after = probe.measure(load_model(folder / "retain_forget10"), progress=False)
    result = probe.compare(before, after, stage="finetuned")
    assert sum(row.known for row in result.rows) >= 29
    assert all(one.p4_rank == 1 and one.g3_leak for one in before[:24])
    for bucket in result.buckets:
        assert bucket.forgotten["gen"] >= 0.75
        assert bucket.forgetting["p1"].value > 0.6 and bucket.forgetting["generation"].value > 0.7
        assert abs(bucket.drops["retain/p1"].value) < 0.1 and abs(bucket.drops["retain/generation"].value) < 0.2
        assert bucket.before["p3"] == 1 and bucket.after["p3_pairs"] < 0.75
    assert not any(question.question in said.text for question in before[0].said for said in before[0].said)
