"""Metrics of whole models from hand-made items: against the pure functions, naive resampling, and with gaps."""

import dataclasses
import json

import numpy as np
import pytest

from llm_unlearn.evaluation import statistics
from llm_unlearn.evaluation.metrics import SUMMARIES
from llm_unlearn.evaluation.metrics.aggregates import aus, mem, overall, priv, utility_ratio
from llm_unlearn.evaluation.metrics.fluency import fluency
from llm_unlearn.evaluation.metrics.forget_quality import forget_quality
from llm_unlearn.evaluation.metrics.items import SETS
from llm_unlearn.evaluation.metrics.membership import auc, privleak, relative_difference, s_mia, tpr_at_fpr
from llm_unlearn.evaluation.metrics.utility import harmonic_mean, model_utility
from llm_unlearn.evaluation.records import NO_BEFORE, NO_REFERENCE, MetricRecord
from llm_unlearn.evaluation.report import EvalReport
from llm_unlearn.evaluation.statistics import interval, resampling_weights, weighted_mean
from llm_unlearn.evaluation.summarise import summaries

SIZES = {"forget": 24, "retain": 15, "real_authors": 11, "world_facts": 13, "holdout": 18}
SHARES = (
    "probability", "paraphrase_probability", "normalised_probability", "extraction_strength", "exact_memorization",
    "truth_ratio_prob_mean", "rouge_l_recall", "zrf",
)  # fmt: skip
POSITIVE = ("loss", "zlib", "min_k", "min_k_plus_plus", "gradnorm", "text_nll")
MEM = ("extraction_strength", "exact_memorization", "paraphrase_probability", "truth_ratio_prob_mean")
ATTACKS = {"mia_loss": "loss", "mia_zlib": "zlib", "mia_min_k": "min_k", "mia_min_k_plus_plus": "min_k_plus_plus"}
TEXTS = ("the old mill", "a cat and a cat and a cat and a cat", "", "rivers run to the sea")


def handmade(seed, sizes=SIZES, clusters=None):
    """A report of items whose every column is drawn at random."""
    random = np.random.default_rng(seed)
    items = [
        {
            "set": name, "row": row, "kind": "answer", "question": f"{name} {row}?", "answer": "a", "n_tokens": 3,
            "text": TEXTS[random.integers(4)],
            **dict(zip(SHARES, random.random(len(SHARES)).tolist(), strict=True)),
            **dict(zip(POSITIVE, random.gamma(2, size=len(POSITIVE)).tolist(), strict=True)),
            "truth_ratio": 0.3 * random.gamma(2),
            **({"author": row // clusters} if clusters else {}),
        }
        for name, size in sizes.items() for row in range(size)
    ]  # fmt: skip
    for item in items:
        if not item["text"]:
            item["text_nll"] = None
    return EvalReport({}, items=items, provenance={"judge": "j", "compat": "tofu_code"})


OWN, BEFORE, RETAIN = (handmade(seed) for seed in (1, 0, 2))


def column(report, name, key):
    return np.array([item[key] for item in report.items if item["set"] == name], dtype=np.float64)


def utility_parts(report, mean=lambda values, name: values.mean()):
    parts = {}
    for name in SETS[1:4]:
        probability = "probability" if name == "retain" else "normalised_probability"
        parts[f"{name}/{probability}"] = mean(column(report, name, probability), name)
        parts[f"{name}/rouge_l_recall"] = mean(column(report, name, "rouge_l_recall"), name)
        parts[f"{name}/truth_ratio"] = mean(np.maximum(0, 1 - column(report, name, "truth_ratio")), name)
    return parts


def attack(report, key, name_of=("forget", "holdout")):
    return auc(*(column(report, name, key) for name in name_of))


def mean_fluency(report, before):
    texts = [item["text"] for item in report.items if item["set"] == "forget"]
    nll, own = (column(one, "forget", "text_nll") for one in (report, before))
    return fluency(np.where(np.isnan(nll), np.inf, nll), np.nanmean(own), texts).mean()


def expected_values():
    """All of them, from the pure functions."""
    ratios = [column(report, "forget", "truth_ratio") for report in (OWN, RETAIN)]
    quality = forget_quality(*ratios)
    areas = {name: (attack(OWN, key), attack(RETAIN, key)) for name, key in ATTACKS.items()}
    closeness = {f"s_{name}": s_mia(*pair) for name, pair in areas.items()}
    parts = utility_parts(OWN)
    forced = harmonic_mean(value for name, value in parts.items() if "rouge" not in name)
    remembered = mem(*(column(OWN, "forget", key).mean() for key in MEM))
    before = harmonic_mean([model_utility(utility_parts(BEFORE)), mean_fluency(BEFORE, BEFORE)])
    utility = utility_ratio(model_utility(parts), mean_fluency(OWN, BEFORE), before)
    gained = {name: column(OWN, name, "loss") - column(RETAIN, name, "loss") for name in ("forget", "holdout")}
    return {
        "forget_quality": quality.p,
        "forget_quality_log10_p": np.log10(quality.p),
        "forget_quality_ks": quality.statistic,
        "model_utility": model_utility(parts),
        "teacher_forced_utility": forced,
        "mem": remembered,
        "tuning_score": harmonic_mean([remembered, forced]),
        **{name: pair[0] for name, pair in areas.items()},
        "mia_gradnorm": attack(OWN, "gradnorm"),
        "mia_reference": auc(gained["forget"], gained["holdout"]),
        "privleak": privleak(*areas["mia_min_k"]),
        "min_k_relative_difference": relative_difference(*areas["mia_min_k"]),
        **closeness,
        "priv": priv(closeness.values()),
        "fluency": mean_fluency(OWN, BEFORE),
        "utility_offline": utility,
        "overall_offline": overall(remembered, priv(closeness.values()), utility),
        "aus": aus(
            column(BEFORE, "retain", "rouge_l_recall").mean(),
            column(OWN, "retain", "rouge_l_recall").mean(),
            column(OWN, "forget", "rouge_l_recall").mean(),
        ),
        "zrf_gap": abs(column(OWN, "forget", "zrf").mean() - column(OWN, "holdout", "zrf").mean()),
    }


def test_every_summary_is_what_the_pure_functions_say():
    found = summaries(OWN, BEFORE, RETAIN)
    expected = expected_values()
    assert list(found) == list(SUMMARIES)
    assert found.keys() == expected.keys()
    for name, record in found.items():
        assert record.not_measured is None, name
        assert record.value == pytest.approx(expected[name], rel=1e-12), name
        assert record.variant == "tofu_code"
        assert (record.ci95 is None) == (name in ("forget_quality", "forget_quality_log10_p"))
        if record.ci95:
            assert record.ci95[0] < record.ci95[1], name
    assert found["mem"].n == 24
    assert found["mia_loss"].n == 24 + 18
    assert found["model_utility"].n == 15 + 11 + 13


def test_what_must_stand_beside_a_value():
    found = summaries(OWN, BEFORE, RETAIN)
    quality = forget_quality(*(column(report, "forget", "truth_ratio") for report in (OWN, RETAIN)))
    assert found["forget_quality"].details == {
        "statistic": quality.statistic, "log10_p": quality.log10_p, "n": 24, "m": 24, "method": "exact",
    }  # fmt: skip
    details = found["model_utility"].details
    assert details["parts"] == pytest.approx(utility_parts(OWN))
    assert details["n"] == {name: len(column(OWN, *name.split("/"))) for name in details["parts"]}
    assert set(details["n"].values()) == {15, 11, 13}
    scores = column(OWN, "forget", "min_k"), column(OWN, "holdout", "min_k")
    assert found["mia_min_k"].details == {
        "tpr_at_1_percent_fpr": tpr_at_fpr(*scores), "n_forget": 24, "n_holdout": 18,
    }  # fmt: skip
    assert found["privleak"].details == pytest.approx(
        {"auc": attack(OWN, "min_k"), "retain_auc": attack(RETAIN, "min_k")}
    )
    expected = expected_values()
    assert found["overall_offline"].details == pytest.approx(
        {name: expected[name] for name in ("mem", "priv", "utility_offline")}
    )
    assert found["priv"].details == pytest.approx({f: expected[f"s_{f}"] for f in ATTACKS}, rel=1e-9)


def draws(name, clusters=None, resamples=1000):
    """Rows drawn in each resample of a set, one draw after another."""
    size = SIZES[name]
    groups = [[row] for row in range(size)]
    if clusters:
        groups = [[row for row in range(size) if row // clusters == group] for group in range(-(-size // clusters))]
    picks = np.random.default_rng(SETS.index(name)).integers(0, len(groups), size=(resamples, len(groups)))
    return [np.concatenate([groups[group] for group in pick]) for pick in picks]


def test_intervals_are_those_of_naive_resampling():
    found = summaries(OWN, BEFORE, RETAIN)
    rows = {name: draws(name) for name in SIZES}

    def resampled(function):
        return pytest.approx(np.quantile([function(r) for r in range(1000)], [0.025, 0.975]), rel=1e-9)

    def drawn(report, name, key, r):
        return column(report, name, key)[rows[name][r]]

    def area(report, key, r):
        return auc(drawn(report, "forget", key, r), drawn(report, "holdout", key, r))

    assert found["mia_zlib"].ci95 == resampled(lambda r: area(OWN, "zlib", r))
    assert found["privleak"].ci95 == resampled(lambda r: privleak(area(OWN, "min_k", r), area(RETAIN, "min_k", r)))
    assert found["forget_quality_ks"].ci95 == resampled(
        lambda r: forget_quality(*(drawn(one, "forget", "truth_ratio", r) for one in (OWN, RETAIN))).statistic
    )
    assert found["mem"].ci95 == resampled(lambda r: mem(*(drawn(OWN, "forget", key, r).mean() for key in MEM)))
    assert found["model_utility"].ci95 == resampled(
        lambda r: model_utility(utility_parts(OWN, lambda values, name: values[rows[name][r]].mean()))
    )


def test_authors_are_drawn_whole_where_there_are_ten():
    # 24 forget rows of 12 authors, 18 holdout rows of 9: too few authors to be drawn.
    report = handmade(1, clusters=2)
    found = summaries(report)["mia_loss"]
    rows = draws("forget", clusters=2), draws("holdout")
    loss = {name: column(report, name, "loss") for name in ("forget", "holdout")}
    areas = [auc(loss["forget"][one], loss["holdout"][other]) for one, other in zip(*rows, strict=True)]
    assert found.ci95 == pytest.approx(np.quantile(areas, [0.025, 0.975]), rel=1e-9)
    assert found.ci95 != summaries(handmade(1))["mia_loss"].ci95


def test_weights_are_counts_of_whole_draws(monkeypatch):
    weights = resampling_weights(30, [row // 3 for row in range(30)])
    assert weights.shape == (1001, 30)
    np.testing.assert_array_equal(weights[0], 1)
    np.testing.assert_array_equal(weights.sum(axis=1), 30)
    assert all(len(set(row[i : i + 3])) == 1 for row in weights for i in range(0, 30, 3))
    few = resampling_weights(27, [row // 3 for row in range(27)])
    assert any(few[1][0] != few[1][1:3])
    np.testing.assert_array_equal(resampling_weights(30), resampling_weights(30, seed=0))
    assert (resampling_weights(30, seed=1)[1:] != resampling_weights(30)[1:]).any()
    monkeypatch.setattr(statistics, "_LARGEST_MATRIX", 6000)
    assert len(resampling_weights(30)) == 201


def test_an_interval_has_the_width_of_theory():
    values = np.random.default_rng(1).normal(0.5, 0.1, 400)
    estimates = weighted_mean(values, resampling_weights(400))
    assert estimates[0] == pytest.approx(values.mean())
    low, high = interval(estimates)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    assert interval(np.array([0.5])) is None
    assert interval(np.array([0.5, np.nan, 0.3, 0.4])) == pytest.approx((0.3025, 0.3975))


def test_rows_that_lack_a_value_are_left_out():
    items = [dict(item) for item in OWN.items]
    for row in (2, 7):
        del items[row]["truth_ratio"]
    found = summaries(dataclasses.replace(OWN, items=items), BEFORE, RETAIN)
    kept = [row for row in range(24) if row not in (2, 7)]
    quality = forget_quality(column(OWN, "forget", "truth_ratio")[kept], column(RETAIN, "forget", "truth_ratio"))
    assert found["forget_quality"].value == quality.p
    assert (found["forget_quality"].details["n"], found["forget_quality"].details["m"]) == (22, 24)


def reason(own, before, reference, name):
    record = summaries(own, before, reference)[name]
    assert record.value is record.ci95 is None
    assert record.n == 0
    return record.not_measured


def test_every_gap_says_what_mends_it():
    def without(report, *, sets=(), columns=(), **provenance):
        items = [
            {key: value for key, value in item.items() if key not in columns}
            for item in report.items
            if item["set"] not in sets
        ]
        return dataclasses.replace(report, items=items, provenance={**report.provenance, **provenance})

    needing_reference = [name for name, spec in SUMMARIES.items() if any(need[0] == "reference" for need in spec.needs)]
    for name in needing_reference:
        assert reason(OWN, BEFORE, None, name) == NO_REFERENCE
    for name in ("fluency", "utility_offline", "overall_offline", "aus"):
        assert reason(OWN, None, RETAIN, name) == NO_BEFORE
    small = without(OWN, sets=["holdout"])
    for name in ("mia_loss", "mia_reference", "privleak", "s_mia_zlib", "priv", "zrf_gap", "overall_offline"):
        assert reason(small, BEFORE, RETAIN, name).endswith(
            "the data have no holdout set; name one with `--holdout_split`"
        )
    other = without(RETAIN, sets=["holdout"])
    assert "the reference report has no holdout set" in reason(OWN, BEFORE, other, "privleak")
    bare = without(RETAIN, columns=["truth_ratio"])
    assert "the reference report has no truth_ratio on forget" in reason(OWN, BEFORE, bare, "forget_quality")
    assert "make it again with `--eval full`" in reason(OWN, BEFORE, bare, "forget_quality")
    earlier = without(BEFORE, columns=["rouge_l_recall"])
    assert "the report before unlearning has no rouge_l_recall" in reason(OWN, earlier, RETAIN, "aus")
    judged = without(BEFORE, judge="other")
    assert "evaluate its adapter instead" in reason(OWN, judged, RETAIN, "fluency")


def test_a_reason_that_is_known_is_passed_on():
    told = {"not_measured": {"forget/min_k": "not measured: 1 of 24 values are not finite"}}
    broken = dataclasses.replace(OWN, provenance={**OWN.provenance, **told})
    for name in ("mia_min_k", "privleak", "priv", "overall_offline"):
        assert reason(broken, BEFORE, RETAIN, name) == told["not_measured"]["forget/min_k"]
    record = MetricRecord(None, None, 0, True, (0, 1), not_measured="not measured: no paraphrases")
    unknown = dataclasses.replace(OWN, metrics={"forget/truth_ratio": record})
    assert reason(unknown, BEFORE, RETAIN, "forget_quality") == "not measured: no paraphrases"


def test_a_model_that_answers_nothing_is_not_fluent():
    silent = [{**item, "text": "", "text_nll": None} if item["set"] == "forget" else item for item in OWN.items]
    found = summaries(dataclasses.replace(OWN, items=silent), BEFORE, RETAIN)
    assert found["fluency"].value == found["utility_offline"].value == found["overall_offline"].value == 0
    # Nothing can be compared with a model that was silent before.
    assert "no text_nll on forget" in reason(OWN, dataclasses.replace(OWN, items=silent), RETAIN, "fluency")


def test_certainty_of_the_judge_is_no_gap():
    sure = [{**item, "text": "a b", "text_nll": 0.0} if item["set"] == "forget" else item for item in OWN.items]
    report = dataclasses.replace(OWN, items=sure)
    assert summaries(report, report)["fluency"].value == 1


def test_extreme_items_make_no_nan():
    extremes = [dict(item) for item in OWN.items]
    for item in extremes:
        item |= dict.fromkeys(SHARES, 0.0) | {"truth_ratio": 1e300}
    report = EvalReport.compare(*(dataclasses.replace(OWN, items=extremes) for _ in range(3)))
    stored = json.loads(report.to_json(), parse_constant=pytest.fail)
    assert stored["metrics"]["model_utility"]["value"] == 0
    assert stored["metrics"]["mem"]["value"] == 1
    assert stored["metrics"]["utility_offline"]["value"] is None
    assert "relative to a value of another model, which is 0" in stored["metrics"]["utility_offline"]["not_measured"]
    certain = [{**item, **dict.fromkeys(SHARES, 1.0)} for item in OWN.items]
    assert summaries(dataclasses.replace(OWN, items=certain))["mem"].value == 0
