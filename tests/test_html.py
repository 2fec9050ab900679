import re
from dataclasses import replace
from math import log10
from xml.etree import ElementTree

import numpy as np
import pytest
from pages import ATTACK, Page, assert_alone, assert_drawn_inside, assert_nothing_of_others_runs, drawings
from sample_report import sample_report, without_reference
from scipy.stats import ks_2samp

from llm_unlearn.evaluation import html, plots
from llm_unlearn.evaluation.plots import STYLES, Point, Series
from llm_unlearn.evaluation.report import EvalReport
from llm_unlearn.evaluation.svg import Scale, number


@pytest.fixture(scope="module")
def report():
    return sample_report()


@pytest.fixture(scope="module")
def text(report):
    return html.page(report)


def test_the_page_is_whole_and_asks_for_nothing_outside(text):
    page = Page(text)
    assert [attributes["id"] for tag, attributes in page.tags if tag == "section"] == [
        "summary", "plots", "metrics", "answers", "provenance",
    ]  # fmt: skip
    assert_alone(text, page)


def test_the_numbers_are_those_of_the_report(report, text):
    told = Page(text).text()
    for name, record in report.metrics.items():
        if record.value is None:
            continue
        row = told[told.index("All metrics") : told.index("Answers side by side")]
        interval = f" [{number(record.ci95[0])}, {number(record.ci95[1])}]" if record.ci95 else ""
        others = (number(block[name].value) for block in (report.before, report.reference))
        target = "–" if record.target is None else number(record.target)
        arrow = {True: "↑ ", False: "↓ ", None: ""}[record.higher_is_better]
        assert (
            f"{name.rpartition('/')[2]} {arrow}{number(record.value)}{interval} {' '.join(others)} {target} 40 fixed"
            in row
        )
    details = report.metrics["forget_quality"].details
    assert (
        f"D = {number(details['statistic'])}, log10 p = {number(details['log10_p'])}, n = 40, m = 40, method = exact"
        in told
    )
    assert "It needs gradients; ask for it with `--tier full` mia_gradnorm" in told


def test_the_gap_in_the_plot_reads_as_the_tested_one():
    # 63/400 lies between two printed numbers, and differences of shares of 400 fall on either side of it.
    report = sample_report(400)
    statistic = report.metrics["forget_quality"].details["statistic"]
    assert statistic == 63 / 400
    assert html.page(report).count(f"D = {number(statistic)}") == 3


def test_what_data_and_models_say_is_text(report):
    items = [{**item, "question": ATTACK, "answer": ATTACK, "text": ATTACK} for item in report.items]
    items = [{**item, "before": {**item["before"], "text": ATTACK}} for item in items]
    hostile = replace(report, items=items, provenance={**report.provenance, "model": ATTACK, ATTACK: {ATTACK: ATTACK}})
    text = html.page(hostile)
    page = Page(text)
    assert_nothing_of_others_runs(text, page)
    assert page.text().count(ATTACK) >= 3 * len(items)
    assert drawings(text)


def test_a_reference_made_in_another_way_is_said_in_the_summary(report, text):
    assert not Page(text).of_class("notes")
    others = {
        "before": {"tier": "full", "precision": "float32"},
        "reference": {"tier": ATTACK, "precision": "bfloat16"},
    }
    page = Page(html.page(replace(report, provenance={**report.provenance, **others})))
    summary = page.text().split("Plots", 2)[1]
    assert len(page.of_class("notes")) == 1
    for key, values in (("tier", ("full", "full", ATTACK)), ("precision", ("float32", "float32", "bfloat16"))):
        told = "this model: {}; before: {}; retain model: {}.".format(*values)
        assert f"This evaluation and those beside it differ in {key}. {told}" in summary


def test_every_item_has_its_answers_and_numbers(report, text):
    page = Page(text)
    rows = page.of_class("item")
    assert len(rows) == 80
    assert [row["data-set"] for row in rows] == [item["set"] for item in report.items]
    assert [float(row["data-probability"]) for row in rows] == [item["probability"] for item in report.items]
    item = report.items[3]
    answers = f"before {item['before']['text']} probability {number(item['before']['probability'])}"
    assert answers in page.text()
    assert item["reference"]["text"] in page.text()


def test_items_without_answers_are_counted_not_shown(report):
    items = [
        item if item["row"] < 5 else {**item, "text": None, "before": {}, "reference": {}} for item in report.items
    ]
    page = Page(html.page(replace(report, items=items)))
    assert len(page.of_class("item")) == 10
    assert "70 of 80 items were scored without generating an answer" in page.text()
    none = [{**item, "text": None, "before": {}, "reference": {}} for item in report.items]
    page = Page(html.page(replace(report, items=none)))
    assert not page.of_class("item") and "No answers were generated" in page.text()


def test_a_page_without_a_retain_model_says_why(report):
    page = Page(html.page(without_reference(report)))
    told = page.text()
    assert "No reference report; make one with" in told
    assert "Forget quality against model utility. Not drawn" in told
    assert "The gap D is not drawn" in told
    assert not [a for a in page.of_class("gap")]


def test_a_report_of_one_model_and_an_empty_one_have_pages(report):
    alone = EvalReport(report.metrics, items=[{k: v for k, v in i.items() if k not in STYLES} for i in report.items])
    page = Page(html.page(alone))
    assert "this model" in page.text() and "retain model" not in page.text().split("All metrics")[1].split("forget")[0]
    assert "None of the headline metrics was measured" in html.page(EvalReport({}))


@pytest.mark.parametrize(
    ("name", "value", "interval", "state", "told"),
    [
        # Before 0.654, target 0.090: the whole way is 0.564, of which 5 % are 0.028.
        ("forget/extraction_strength", 0.11, (0.1, 0.12), "good", "above"),
        ("forget/extraction_strength", 0.13, (0.12, 0.14), "away", "above"),
        ("forget/extraction_strength", 0.13, (0.08, 0.18), "good", "the interval holds the target"),
        # Knowing less than a model that never learned it is no success.
        ("forget/extraction_strength", 0.0, (0.0, 0.0), "away", "below"),
        ("model_utility", 0.7, (0.69, 0.71), "good", "has reached its target"),
        ("model_utility", 0.4, (0.39, 0.41), "away", "below"),
        ("forget_quality", 0.06, None, "good", "cannot be told"),
        ("forget_quality", 0.04, None, "away", "differ"),
    ],
)
def test_nearness_is_judged_by_the_target(report, name, value, interval, state, told):
    record = replace(report.metrics[name], value=value, ci95=interval)
    text = html.page(replace(report, metrics={name: record}))
    (card,) = Page(text).of_class("card")
    assert card["class"] == f"card {state}"
    assert told in re.search(r'class="verdict">(.*?)</p>', text)[1]


def test_the_gap_is_the_kolmogorov_smirnov_statistic():
    random = np.random.default_rng(0)
    first, second = random.lognormal(size=40), random.lognormal(0.5, size=37)
    at, f, g = plots.ks_gap(first, second)
    assert abs(f - g) == pytest.approx(ks_2samp(first, second).statistic, abs=1e-12)
    assert f == np.mean(first <= at) and g == np.mean(second <= at)


def test_the_distribution_function_steps_where_the_values_are():
    # 4 values: at each the line rises by a quarter; 100 lies 2 decades right of 1.
    text = plots.truth_ratio_cdfs([Series("a", STYLES["after"], [1, 10, 10, 100, None, float("nan"), 0.0])])
    path = next(p for p in ElementTree.fromstring(text).iter("path") if "H" in p.get("d") and p.get("class") == "line")
    steps = [tuple(map(float, step)) for step in re.findall(r"H([\d.]+)V([\d.]+)", path.get("d"))]
    assert len(steps) == 4
    assert steps[1][0] == steps[2][0] == pytest.approx((steps[0][0] + steps[3][0]) / 2, abs=0.1)
    rises = np.diff([float(re.match(r"M\S+ ([\d.]+)", path.get("d"))[1]), *(y for _, y in steps)])
    assert rises == pytest.approx([rises[0]] * 4, abs=0.11) and rises[0] < 0


def test_the_plane_has_a_point_per_model_and_the_retain_model_as_a_star():
    points = [Point("a<b", STYLES["before"], 0.6, -20.0), Point("b", STYLES["after"], 0.5, log10(0.5))]
    drawing = ElementTree.fromstring(plots.quality_utility_plane(points, retain_utility=0.55))
    titles = [title.text for title in drawing.iter("title")]
    assert titles == [
        "retain model: model utility 0.550",
        "a<b: utility 0.600, log10 p -20.000",
        "b: utility 0.500, log10 p -0.301",
    ]
    assert "p = .05" in [text.text for text in drawing.iter("text")]


def test_plots_stay_inside_their_frames_and_tell_what_they_show(text):
    assert_drawn_inside(text)


def test_plots_without_data_are_errors_with_a_sentence():
    with pytest.raises(ValueError, match="no finite truth ratio"):
        plots.truth_ratio_cdfs([Series("a", STYLES["after"], [None, float("nan")])])
    with pytest.raises(ValueError, match="at least one"):
        plots.before_after([], "probability")
    with pytest.raises(ValueError, match="at least one"):
        plots.quality_utility_plane([])


@pytest.mark.parametrize(
    ("low", "high", "log", "expected"),
    [
        (0, 1, False, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (-22, 2, False, [-20, -15, -10, -5, 0]),
        (-1, 0.5, True, [0.1, 0.2, 0.5, 1, 2]),
        (-4, 4, True, [1e-4, 1e-2, 1, 100, 1e4]),
    ],
)
def test_ticks_are_round_numbers(low, high, log, expected):
    assert Scale(low, high, 0, 100, log).ticks() == pytest.approx(expected)
