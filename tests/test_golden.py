"""Released per-item logs give the released figures: Llama-3.2-1B on TOFU forget10, target and retain90 model."""

import gzip
import json
import math
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from llm_unlearn.evaluation.metrics.aggregates import mem
from llm_unlearn.evaluation.metrics.forget_quality import forget_quality, ks_statistic
from llm_unlearn.evaluation.metrics.likelihood import normalised_probability, probability, wrong_answer_probability
from llm_unlearn.evaluation.metrics.membership import (
    auc,
    privleak,
    reference_score,
    relative_difference,
    s_mia,
    tpr_at_fpr,
    zlib_score,
)
from llm_unlearn.evaluation.metrics.memorization import exact_memorization, extraction_strength
from llm_unlearn.evaluation.metrics.overlap import rouge
from llm_unlearn.evaluation.metrics.truth_ratio import closer_to_1_better, prob_mean, true_better, truth_ratio
from llm_unlearn.evaluation.metrics.utility import model_utility

GOLDEN = Path(__file__).parents[2] / "shared" / "golden"
TARGET, RETAIN = "llama32_1b_target_forget10", "llama32_1b_retain90"
MODELS = (TARGET, RETAIN)
EPSILON = 1e-10
SETS = {"retain": "retain", "real_authors": "ra", "world_facts": "wf"}
ATTACKS = ("loss", "zlib", "min_k", "min_k_plus_plus", "gradnorm")

pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason="the released logs do not lie beside this checkout")


@cache
def log(model):
    with gzip.open(GOLDEN / f"{model}.json.gz", "rt", encoding="utf-8") as file:
        return json.load(file)


def column(entry, name="score"):
    """One value, or one list of values, per item."""
    items = entry["value_by_index"]
    assert list(items) == [str(row) for row in range(len(items))]
    return np.array([item[name] for item in items.values()])


def losses(model, kind):
    return column(log(model)[f"{kind}_Prob"], "avg_loss")


def forget_losses(model):
    return losses(model, "forget_Q_A_PARA"), losses(model, "forget_Q_A_PERT")


def forget_ratios(model, mean="geometric"):
    return truth_ratio(*forget_losses(model), mean, EPSILON)


def attack(model, name, subset):
    return column(log(model)[f"mia_{name}"][subset])


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", ["forget_Q_A", "forget_Q_A_PARA", "retain_Q_A", "ra_Q_A", "wf_Q_A"])
def test_probability(model, kind):
    entry = log(model)[f"{kind}_Prob"]
    values = probability(losses(model, kind))
    # Both columns of the logs are rounded to float32.
    np.testing.assert_allclose(values, column(entry, "prob"), rtol=2e-7, atol=0)
    assert values.mean() == pytest.approx(entry["agg_value"], rel=1e-7)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", ["forget_Q_A_PERT", "retain_Q_A_PERT", "ra_Q_A_PERT", "wf_Q_A_PERT"])
def test_wrong_answer_probability(model, kind):
    assert wrong_answer_probability(losses(model, kind)).mean() == pytest.approx(
        log(model)[f"{kind}_Prob"]["agg_value"], rel=1e-7
    )


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", ["ra", "wf"])
def test_normalised_probability(model, kind):
    entry = log(model)[f"{kind}_Q_A_Prob_normalised"]
    values = normalised_probability(losses(model, f"{kind}_Q_A"), losses(model, f"{kind}_Q_A_PERT"), EPSILON)
    np.testing.assert_allclose(values, column(entry, "prob"), rtol=1e-6, atol=0)
    assert values.mean() == pytest.approx(entry["agg_value"], rel=1e-7)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("name", "true", "wrong", "aggregate"),
    [
        ("forget_truth_ratio", "forget_Q_A_PARA", "forget_Q_A_PERT", closer_to_1_better),
        ("retain_Truth_Ratio", "retain_Q_A_PARA", "retain_Q_A_PERT", true_better),
        ("ra_Truth_Ratio", "ra_Q_A", "ra_Q_A_PERT", true_better),
        ("wf_Truth_Ratio", "wf_Q_A", "wf_Q_A_PERT", true_better),
    ],
)
def test_truth_ratio(model, name, true, wrong, aggregate):
    ratios = truth_ratio(losses(model, true), losses(model, wrong), "geometric", EPSILON)
    np.testing.assert_allclose(ratios, column(log(model)[name]), rtol=1e-12)
    # The release divides by R + 1e-10 where we divide by R.
    assert aggregate(ratios).mean() == pytest.approx(log(model)[name]["agg_value"], rel=1e-9)


def test_truth_ratio_of_the_first_item():
    true, wrong = (column[:1] for column in forget_losses(TARGET))
    assert truth_ratio(true, wrong, "geometric", EPSILON)[0] == pytest.approx(0.228772, abs=5e-7)
    assert truth_ratio(true, wrong, "arithmetic")[0] == pytest.approx(0.240397, abs=5e-7)


@pytest.mark.parametrize(("model", "published"), [(TARGET, 0.685), (RETAIN, 0.567)])
def test_truth_ratio_as_prob_mean(model, published):
    values = prob_mean(*forget_losses(model), "geometric", EPSILON)
    assert values.mean() == pytest.approx(published, abs=5e-4)
    np.testing.assert_allclose(values, 1 / (1 + column(log(model)["forget_truth_ratio"])), atol=1e-6)


def test_forget_quality():
    result = forget_quality(forget_ratios(TARGET), forget_ratios(RETAIN))
    assert result.p == 3.9054713571083378e-22 == log(TARGET)["forget_quality"]["agg_value"]
    assert (result.statistic, result.n, result.m, result.method) == (0.35, 400, 400, "exact")
    assert result.log10_p == pytest.approx(-21.4083, abs=5e-5)
    # Without an epsilon, or upside down, the order of the ratios is the same.
    for change in (lambda ratios: 1 / ratios, np.log):
        assert forget_quality(change(forget_ratios(TARGET)), change(forget_ratios(RETAIN))).p == result.p
    assert ks_statistic(forget_ratios(TARGET), forget_ratios(RETAIN)) == pytest.approx(0.35, abs=1e-12)


@pytest.mark.parametrize(
    ("mean", "rows", "distance", "p"), [("geometric", 300, 0.35, 1.06e-16), ("arithmetic", 400, 0.3375, 1.4e-20)]
)
def test_forget_quality_of_other_variants(mean, rows, distance, p):
    result = forget_quality(forget_ratios(TARGET, mean)[:rows], forget_ratios(RETAIN, mean)[:rows])
    assert result.p == pytest.approx(p, rel=0.005)
    assert (result.statistic, result.n) == (distance, rows)


def utility_parts(model):
    parts = {}
    for name, kind in SETS.items():
        true = f"{kind}_Q_A_PARA" if name == "retain" else f"{kind}_Q_A"
        wrong = losses(model, f"{kind}_Q_A_PERT")
        plain = losses(model, f"{kind}_Q_A")
        generated = log(model)[f"{kind}_Q_A_ROUGE"]
        if name == "retain":
            parts[f"{name}/probability"] = probability(plain).mean()
        else:
            parts[f"{name}/normalised_probability"] = normalised_probability(plain, wrong, EPSILON).mean()
        overlap = rouge(column(generated, "ground_truth").tolist(), column(generated, "generation").tolist())
        parts[f"{name}/rouge_l_recall"] = overlap["rouge_l_recall"].mean()
        parts[f"{name}/truth_ratio"] = true_better(truth_ratio(losses(model, true), wrong, "geometric", EPSILON)).mean()
    return {name: float(value) for name, value in parts.items()}


@pytest.mark.parametrize(
    ("model", "published"),
    [
        (TARGET, [0.8707, 0.7933, 0.5180, 0.4136, 0.7970, 0.5273, 0.4363, 0.8279, 0.6201]),
        (RETAIN, [0.8804, 0.8301, 0.5139, 0.3923, 0.8295, 0.5035, 0.4289, 0.8023, 0.6175]),
    ],
)
def test_model_utility_and_its_nine_parts(model, published):
    parts = utility_parts(model)
    assert list(parts.values()) == pytest.approx(published, abs=5e-5)
    assert model_utility(parts) == pytest.approx(log(model)["model_utility"]["agg_value"], abs=1e-8)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", ["forget", "retain", "ra", "wf"])
def test_rouge_of_every_item(model, kind):
    entry = log(model)[f"{kind}_Q_A_ROUGE"]
    overlap = rouge(column(entry, "ground_truth").tolist(), column(entry, "generation").tolist())
    for ours, theirs in [
        ("rouge_1_recall", "rouge1_recall"),
        ("rouge_l_recall", "rougeL_recall"),
        ("rouge_l_f1", "rougeL_f1"),
    ]:
        np.testing.assert_allclose(overlap[ours], column(entry, theirs), rtol=0, atol=1e-12)
    assert overlap["rouge_l_recall"].mean() == pytest.approx(entry["agg_value"], abs=1e-12)


def hits(model):
    """Hits that have the released scores: they are fractions of T labels, so their denominators tell T.

    A score of 1/T may be the floor; then the last label counts as missed.
    """
    fractions = {
        (name, metric): [Fraction(score).limit_denominator(200) for score in column(log(name)[metric])]
        for name in MODELS
        for metric in ("exact_memorization", "extraction_strength")
    }
    items = []
    for row in range(400):
        length = math.lcm(*(scores[row].denominator for scores in fractions.values()))
        total, at_end = (
            int(fractions[model, metric][row] * length) for metric in ("exact_memorization", "extraction_strength")
        )
        at_end = 0 if at_end == 1 else at_end
        item = np.zeros(length, dtype=bool)
        item[length - at_end :] = True
        item[: total - at_end] = True
        items.append(item)
    return items


@pytest.mark.parametrize(
    ("model", "em", "es"),
    [(TARGET, 0.9739357572793961, 0.706268493976531), (RETAIN, 0.5848885098844767, 0.05895894128954535)],
)
def test_exact_memorization_and_extraction_strength(model, em, es):
    np.testing.assert_allclose(
        exact_memorization(hits(model)), column(log(model)["exact_memorization"]), rtol=0, atol=1e-7
    )
    np.testing.assert_allclose(
        extraction_strength(hits(model), floor=True), column(log(model)["extraction_strength"]), rtol=0, atol=1e-12
    )
    assert exact_memorization(hits(model)).mean() == pytest.approx(em, abs=1e-8)
    assert extraction_strength(hits(model), floor=True).mean() == pytest.approx(es, abs=1e-12)


def test_the_floor_is_a_third_of_the_extraction_strength_of_the_retain_model():
    floored, strict = extraction_strength(hits(RETAIN), floor=True), extraction_strength(hits(RETAIN))
    assert (strict == 0).mean() == pytest.approx(0.61, abs=0.05)
    assert floored[strict == 0].mean() == pytest.approx(0.032, abs=0.003)
    assert (floored - strict).mean() / floored.mean() == pytest.approx(1 / 3, abs=0.06)


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("model", MODELS)
def test_areas_under_the_curve(model, name):
    area = auc(attack(model, name, "forget"), attack(model, name, "holdout"))
    assert area == pytest.approx(log(model)[f"mia_{name}"]["auc"], abs=1e-12)
    # 400 forget items against 400 of the holdout.
    assert area * 320_000 == pytest.approx(round(area * 320_000), abs=1e-6)


def test_the_reference_attack_needs_losses_only():
    """The release ran its bfloat16 retain model again for this attack, and got losses .01 off those of its own log."""
    entry = log(TARGET)["mia_reference"]
    recorded = [column(entry[subset]) for subset in ("forget", "holdout")]
    ours = [
        reference_score(attack(TARGET, "loss", subset), attack(RETAIN, "loss", subset))
        for subset in ("forget", "holdout")
    ]
    assert max(np.abs(mine - theirs).max() for mine, theirs in zip(ours, recorded, strict=True)) < 0.06
    assert np.abs(ours[0] - recorded[0]).mean() == pytest.approx(0.010, abs=5e-4)
    assert auc(*recorded) == pytest.approx(entry["auc"], abs=1e-12) == 0.99848125
    assert auc(*ours) == pytest.approx(0.99845625, abs=1e-12)


@pytest.mark.parametrize("model", MODELS)
def test_the_loss_attack_scores_are_the_losses_and_zlib_divides_them(model):
    loss = losses(model, "forget_Q_A")
    np.testing.assert_array_equal(loss, attack(model, "loss", "forget"))
    answers = column(log(model)["forget_Q_A_ROUGE"], "ground_truth").tolist()
    np.testing.assert_allclose(zlib_score(loss, answers), attack(model, "zlib", "forget"), rtol=1e-12)


def test_summaries_of_the_attacks():
    areas = {
        (model, name): auc(attack(model, name, "forget"), attack(model, name, "holdout"))
        for model in MODELS
        for name in ATTACKS
    }
    target, retain = areas[TARGET, "min_k"], areas[RETAIN, "min_k"]
    assert (target, retain) == (pytest.approx(0.99665, abs=1e-12), pytest.approx(0.3826125, abs=1e-12))
    assert privleak(target, retain) == pytest.approx(log(TARGET)["privleak"]["agg_value"], abs=1e-9)
    assert privleak(target, retain) == pytest.approx(-99.457391, abs=5e-7)
    assert privleak(retain, 0.5) == pytest.approx(23.4775, abs=5e-8)
    assert privleak(retain, 0.5) == pytest.approx(log(RETAIN)["privleak"]["agg_value"], abs=1e-9)
    assert relative_difference(target, retain) == pytest.approx(100 * (0.99665 / 0.3826125 - 1))
    # Where the set is known the attack is more than twice as good as on the retain model, which leaves nothing.
    assert s_mia(target, retain) == 0
    assert s_mia(retain, retain) == 1
    rates = [tpr_at_fpr(attack(model, "min_k", "forget"), attack(model, "min_k", "holdout")) for model in MODELS]
    # Far above and near the 1 % of chance.
    assert rates == [1.0, 0.015]


def test_mem_of_the_retain_model():
    """From its own items; the golden .58218 is another evaluation of this model, whose EM is .5901."""
    means = [column(log(RETAIN)[name]).mean() for name in ("extraction_strength", "exact_memorization")]
    paraphrase = probability(losses(RETAIN, "forget_Q_A_PARA")).mean()
    ratio = prob_mean(*forget_losses(RETAIN), "geometric", EPSILON).mean()
    assert mem(*means, paraphrase, ratio) == pytest.approx(0.58485, abs=5e-6)
