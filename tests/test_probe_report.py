"""The report of a probe: what it says, that it says it everywhere, and that drawings stand where the numbers do."""

import csv
import io
import json
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from pages import ATTACK, Page, assert_alone, assert_drawn_inside, assert_nothing_of_others_runs, drawings
from sample_probe import SETTINGS, before_and_after, counts, facts, sample_result
from sample_report import sample_report

from llm_unlearn.evaluation import html
from llm_unlearn.evaluation.svg import number
from llm_unlearn.probes import plots, tables
from llm_unlearn.probes.frequency import FrequencyProbe
from llm_unlearn.probes.page import page, section, sections_of
from llm_unlearn.probes.records import Disagreement, Estimate, ProbeResult
from llm_unlearn.probes.report import FILES, load_result, provenance_tree, save_report, to_markdown


@pytest.fixture(scope="module")
def result():
    return sample_result()


@pytest.fixture(scope="module")
def text(result):
    return page(result)


# Files


def test_a_report_is_four_files_and_is_read_again_as_it_was(result, tmp_path):
    save_report(result, tmp_path / "probe")
    assert sorted(path.name for path in (tmp_path / "probe").iterdir()) == sorted(FILES)
    assert load_result(tmp_path / "probe") == result
    assert load_result(tmp_path / "probe" / "probe.json") == result
    many = sample_result(bucket_wise=True)
    save_report(many, tmp_path / "probe")
    assert load_result(tmp_path / "probe") == many, "a report replaces the one before"


def test_a_file_of_something_else_is_refused_with_a_sentence(result, tmp_path):
    with pytest.raises(FileNotFoundError, match="give the folder of a probe"):
        load_result(tmp_path)
    for content in ("{", "[]", '{"schema": "other"}', json.dumps({"schema": "llm-unlearn-probe/1"})):
        (tmp_path / "probe.json").write_text(content)
        with pytest.raises(ValueError, match="is no result of a probe .*make it again"):
            load_result(tmp_path)


def test_the_csv_has_every_fact_and_its_numbers_come_back(result):
    rows = list(csv.DictReader(io.StringIO(tables.facts_csv(result))))
    assert len(rows) == len(result.rows) == 72
    for written, row in zip(rows, result.rows, strict=True):
        for name, value in row.flat().items():
            if value is None:
                assert written[name] == "not measured"
            elif isinstance(value, bool):
                assert written[name] == str(value).lower()
            elif isinstance(value, (int, float)):
                assert float(written[name]) == value
            else:
                assert written[name] == value
    # Neighbours have no count here, and forgetting of what the base did not know is no forgetting.
    assert rows[-1]["count"] == "not measured" and rows[0]["prob_forgotten"] == "not measured"


def test_texts_stay_in_their_cells(result):
    hostile = 'a,"b"\nc | <b>d</b>'
    rows = [replace(row, question=hostile) for row in result.rows]
    rows = list(csv.DictReader(io.StringIO(tables.facts_csv(replace(result, rows=tuple(rows))))))
    assert {row["question"] for row in rows} == {hostile} and len(rows) == 72
    cells = [["a", "b"], ["x|y\nz", "<img>"]]
    assert tables.markdown_table(cells).splitlines()[-1] == "| x\\|y z | &lt;img> |"


# Numbers


def test_markdown_and_page_say_the_numbers_of_the_result(result, text):
    told, plain = to_markdown(result), Page(text).text()
    for outcome in ("p1", "generation"):
        rho = result.associations[outcome].spearman
        shown = f"{number(rho.value)} [{number(rho.ci95[0])}, {number(rho.ci95[1])}], p = {rho.p:.2g}"
        assert shown in told and shown in plain
    for bucket in result.buckets:
        line = next(line for line in told.splitlines() if line.startswith(f"| {bucket.name} |"))
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[2:4] == [str(bucket.n), str(bucket.n_known)]
        assert cells[5] == tables.estimate_text(bucket.forgetting["p1"])
        assert cells[9:11] == [str(bucket.disagreement.hidden), str(bucket.disagreement.apparent)]
    for warning in result.warnings:
        assert warning.replace("'", "’") in told.replace("'", "’") and warning in plain
    found = result.disagreement
    assert f"{found.hidden} hidden" in told and f"They disagree on {found.rate:.0%} of {found.n} known facts" in plain
    assert "tokens: 1234567" in told and "1234567" in plain and "abab" in plain


def test_the_two_by_two_table_has_each_case_in_its_place(result):
    found = replace(result, disagreement=Disagreement(both=11, hidden=5, apparent=3, neither=21, uses_p2=False))
    assert tables.disagreement_cells(found)[1:] == [
        ["gone by generation", "11", "3 apparent"],
        ["not gone by generation", "5 hidden", "21"],
    ]
    # 8 of 40; chance .4 * .35 + .6 * .65 = .53, so that kappa is (.8 - .53) / .47.
    assert tables.disagreement_text(found).startswith("They disagree on 20% of 40 known facts; Cohen's κ 0.574.")
    assert "P1 alone" in tables.disagreement_text(found)


def test_what_the_run_took_from_others_stands_beside_its_bucket(result):
    header, *rows = tables.bucket_cells(result)
    at = header.index("F of facts to keep, answer likelihood")
    # All probabilities of neighbours and kept facts fell by a tenth.
    assert {row[at] for row in rows} == {"0.100"}
    assert "F of other buckets, answer likelihood" not in header
    many = sample_result(bucket_wise=True)
    assert "F of other buckets, answer likelihood" in tables.bucket_cells(many)[0]


def test_what_was_not_measured_reads_so_everywhere():
    # Nobody knows anything, nothing was sampled, and P2 does not count.
    some = facts(30)
    before, _ = before_and_after(some, counts(some))
    blank = [replace(one, said=tuple(replace(s, recall=0.0, alias=False) for s in one.said)) for one in before]
    blank = [replace(one, samples=None, leaks=None) for one in blank]
    result = FrequencyProbe(some, counts(some), None, SETTINGS).compare(blank, blank)
    cells = tables.probe_cells(result)
    assert {cell for row in cells[1:] for cell in row[1:]} == {"not measured"}
    assert all(cell.startswith("not measured") for row in tables.association_cells(result)[1:] for cell in row[1:])
    assert "They disagree on not measured" in tables.disagreement_text(result)
    told = Page(page(result)).text()
    assert "Not drawn: There is no known fact to draw" in told and "P2: not measured: the base model knows no" in told
    assert not drawings(page(result))
    assert not re.search(r"\b(None|nan)\b", to_markdown(result))


def test_a_probe_that_the_base_fails_is_not_shown_as_a_number():
    some = facts()
    before, after = before_and_after(some, counts(some))
    # The base calls everything false.
    before = [replace(one, p2_margin=-1.0) for one in before]
    failed = FrequencyProbe(some, counts(some), None, SETTINGS).compare(before, after)
    row = next(row for row in tables.probe_cells(failed) if row[0].startswith("P2"))
    assert set(row[1:]) == {"not measured"}
    told = Page(page(failed)).text()
    assert "P2: not measured: the balanced accuracy on True/False statements of the base model is 0.50" in told
    assert "Gone by probability rests on P1 alone" in told


def test_a_model_that_always_says_false_is_flagged():
    # Both statements are called false: a balanced accuracy of one half.
    always = sample_result(p2_margin=-3.0, p2_twin_margin=-3.0)
    assert always.statements["unlearned"].always == "False" and always.gates["p2"].passed
    told = Page(page(always)).text()
    assert "answers 'False' to (nearly) all statements" in told
    rows = tables.statement_cells(always)
    assert rows[2] == ["unlearned", "0%", "100%", "0.500", "-0.500", "False"]
    assert rows[1][-1] == "–"


@pytest.mark.parametrize(
    ("interval", "said"),
    [
        ((-0.5, -0.1), "Frequent facts were forgotten less: the interval lies below 0."),
        ((-0.5, 0.1), "No tendency can be told: the interval holds 0."),
        ((0.1, 0.5), "Frequent facts were forgotten more: the interval lies above 0."),
        (None, "Whether frequent facts were harder to unlearn cannot be told."),
    ],
)
def test_a_finding_is_what_its_interval_says(result, interval, said):
    rho = Estimate(None if interval is None else sum(interval) / 2, interval, 40)
    assert tables.finding(replace(result.associations["p1"], spearman=rho)) == said


def test_there_is_no_tendency_against_the_permutation_p(result):
    def said(interval, p):
        return tables.finding(replace(result.associations["p1"], spearman=Estimate(interval[0], interval, 40, p)))

    assert said((-0.45, -0.22), 0.13) == "No tendency can be told: the interval does not hold 0, but p is 0.13."
    assert said((0.22, 0.45), 0.05).startswith("No tendency can be told")
    assert said((-0.45, -0.22), 0.049) == "Frequent facts were forgotten less: the interval lies below 0."
    assert said((-0.45, 0.22), 0.13) == "No tendency can be told: the interval holds 0."


def test_an_estimate_is_told_with_all_that_belongs_to_it():
    assert tables.estimate_text(Estimate(-0.25, (-0.5, 0.0), 30, 0.0123)) == "-0.250 [-0.500, 0.000], p = 0.012"
    assert tables.estimate_text(Estimate(-0.25, None, 3)) == "-0.250"
    assert tables.estimate_text(Estimate(None, note="not measured: no known facts")) == "not measured: no known facts"


def test_provenance_is_shown_as_a_tree_without_lists_of_mappings():
    tree = provenance_tree({"files": [{"name": "a.txt", "sha": "1"}, {"sha": "2"}], "runs": ["x", "y"], "none": []})
    assert tree == {"files": {"a.txt": {"name": "a.txt", "sha": "1"}, "2": {"sha": "2"}}, "runs": "x, y", "none": None}


def test_counts_are_shown_from_both_ends():
    some = facts(30)
    cells = tables.count_cells(counts(some), shown=4)
    # 3k + k²/4 of k = 29, 28 and of k = 1, 0.
    assert [row[:2] for row in cells[1:]] == [
        ["fact-29", "297"], ["fact-28", "280"], ["…", ""], ["fact-1", "3"], ["fact-0", "0"],
    ]  # fmt: skip
    assert len(tables.count_cells(counts(some), shown=30)) == 31
    assert tables.count_text(counts(some)).startswith("30 facts; 3% have the count 0")


# Pages


def test_the_page_is_whole_and_asks_for_nothing_outside(text):
    parsed = Page(text)
    assert [attributes["id"] for tag, attributes in parsed.tags if tag == "section"] == [
        "summary", "plots", "tables", "facts", "provenance",
    ]  # fmt: skip
    assert_alone(text, parsed)
    assert len(parsed.of_class("item")) == 72
    assert len(drawings(text)) == 4


def test_facts_are_tagged_and_found_by_bucket_and_count(result, text):
    items = Page(text).of_class("item")
    assert {item["data-set"] for item in items} == {"zero", "low", "medium", "high", "neighbour", "retain"}
    counted = [item for item in items if "data-probability" in item]
    assert [float(item["data-probability"]) for item in counted] == [
        r.count for r in result.rows if r.count is not None
    ]
    backwards = Page(page(replace(result, rows=result.rows[::-1]))).of_class("item")
    assert [item["data-set"] for item in backwards[-12:]] == ["retain"] * 6 + ["neighbour"] * 6
    many = page(sample_result(bucket_wise=True))
    assert Page(many).text().count("run low") == 20 + 12, "its own facts, and the twelve others"


def test_what_facts_and_models_say_is_text():
    some = tuple(replace(fact, question=ATTACK, answer=ATTACK, subject=f"{ATTACK} {fact.id}") for fact in facts(30))
    number_of = replace(counts(some), label=ATTACK)
    before, after = before_and_after(some, number_of)
    said = [replace(one, said=(replace(one.said[0], text=ATTACK), *one.said[1:])) for one in after]
    probe = FrequencyProbe(some, number_of, None, SETTINGS)
    before = [replace(one, said=(replace(one.said[0], text=ATTACK), *one.said[1:])) for one in before]
    hostile = probe.compare(before, said, provenance={"model": ATTACK, ATTACK: {ATTACK: [{"name": ATTACK}]}})
    hostile = replace(hostile, warnings=(*hostile.warnings, ATTACK))
    for whole in (page(hostile), html.page(sample_report(), [section(hostile)])):
        parsed = Page(whole)
        assert_nothing_of_others_runs(whole, parsed)
        assert drawings(whole) and ATTACK in parsed.text()


def test_the_report_of_a_run_gets_a_section(result, tmp_path):
    sample_report().save(tmp_path)
    alone = (tmp_path / "report.html").read_text()
    assert 'id="frequency"' not in alone and sections_of(tmp_path) == []
    save_report(result, tmp_path)
    text = (tmp_path / "report.html").read_text()
    parsed = Page(text)
    assert_alone(text, parsed)
    assert [attributes["id"] for tag, attributes in parsed.tags if tag == "section"] == [
        "summary", "plots", "metrics", "frequency", "answers", "provenance",
    ]  # fmt: skip
    assert ("a", {"href": "#frequency"}) in parsed.tags
    own = Page(section(result).html)
    assert len(drawings(section(result).html)) == 4 and "Provenance of the probe" in own.text()
    # The single facts are on the page of the probe; here each is a point at most.
    assert not own.of_class("item") and f"What is the capital of {result.rows[7].subject}?" not in own.text()


# Drawings


def marks(svg):
    """Marks with a title: their place and what it says."""
    found = []
    for element in ElementTree.fromstring(svg).iter():
        title = element.find("title")
        if title is None:
            continue
        if element.tag == "circle":
            place = float(element.get("cx")), float(element.get("cy"))
        elif element.tag == "rect":
            place = float(element.get("y")), float(element.get("height"))
        else:
            place = tuple(map(float, re.findall(r"-?[\d.]+", element.get("transform"))[:2]))
        found.append((place, title.text))
    return found


def test_counts_stand_at_their_logarithm_with_a_place_for_zero():
    # log10(1 + 0) = 0, log10(1 + 9) = 1, log10(1 + 99) = 2.
    scale = plots.CountScale(0, 99, 100, 300)
    assert [scale(count) for count in (0, 9, 99)] == pytest.approx([100, 200, 300])
    assert scale.ticks() == [0, 1, 3, 10, 30]
    assert plots.CountScale(0, 16, 0, 1).ticks() == [0, 1, 3, 10]
    assert plots.CountScale(5, 20000, 0, 1).ticks() == [10, 100, 1000, 10000]


def test_a_fact_stands_where_its_count_and_its_forgetting_are(result):
    svg = plots.count_against_forgetting(result.known(), "p1", result.associations["p1"].slope, result.label)
    found = {title.partition(":")[0]: place for place, title in marks(svg)}
    rows = {f"{row.subject} → {row.object}": row for row in result.known()}
    assert found.keys() == rows.keys()
    high, low = (max(rows, key=lambda k: rows[k].f_p1), min(rows, key=lambda k: rows[k].f_p1))
    assert found[high][1] < found[low][1], "more forgotten is further up"
    names = sorted(rows, key=lambda k: rows[k].count)
    assert found[names[-1]][0] > found[names[0]][0] + 300
    assert "co-occurrences within 100 tokens" in svg
    unmeasured = plots.count_against_forgetting(result.known(), "p1", Estimate(None), result.label)
    assert len(re.findall('class="line"', svg)) == len(re.findall('class="line"', unmeasured)) + 1


def test_the_line_of_least_squares_goes_through_the_means(result):
    slope = result.associations["p1"].slope
    svg = plots.count_against_forgetting(result.known(), "p1", slope, result.label)
    path = next(p for p in ElementTree.fromstring(svg).iter("path") if p.get("class") == "line")
    x1, y1, x2, y2 = map(float, re.findall(r"[\d.]+", path.get("d")))
    rows = result.known()
    # Two facts of known place tell the scale of either axis.
    circles = {title: place for place, title in marks(svg)}
    at = {row.id: next(place for title, place in circles.items() if f"{row.subject} →" in title) for row in rows}
    first, last = min(rows, key=lambda r: r.x), max(rows, key=lambda r: r.x)
    up, down = max(rows, key=lambda r: r.f_p1), sorted(rows, key=lambda r: r.f_p1)[len(rows) // 2]
    per_x = (at[last.id][0] - at[first.id][0]) / (last.x - first.x)
    per_f = (at[up.id][1] - at[down.id][1]) / (up.f_p1 - down.f_p1)
    assert (y2 - y1) / (x2 - x1) == pytest.approx(slope.value * per_f / per_x, rel=0.03)


def test_f_below_minus_one_stands_at_the_edge(result):
    rows = list(result.known())
    rows[0], rows[1] = replace(rows[0], f_p1=-1.0), replace(rows[1], f_p1=-25.0)
    places = [place for place, _ in marks(plots.count_against_forgetting(rows[:2], "p1", Estimate(None), result.label))]
    assert places[0][1] == places[1][1]


def test_bars_are_as_high_as_the_means_of_their_buckets(result):
    svg = plots.forgetting_by_bucket(result.buckets)
    heights = {title.partition(": F ")[0]: height for (_, height), title in marks(svg)}
    values = {
        f"{bucket.name}, {name}": bucket.forgetting[outcome].value
        for bucket in result.buckets
        for outcome, name in (("p1", "answer likelihood"), ("generation", "generated answers"))
        if bucket.forgetting[outcome].value is not None
    }
    assert heights.keys() == values.keys() and len(values) == 6, "the bucket of count 0 has no known fact"
    per_unit = heights["low, answer likelihood"] / values["low, answer likelihood"]
    for name, value in values.items():
        assert heights[name] == pytest.approx(abs(value) * per_unit, abs=0.2), name


def test_the_four_cases_of_gone_or_not_are_counted_in_the_legend(result):
    svg = plots.probability_against_generation(result.known(), 0.1, 0.5)
    found = result.disagreement
    for told in (
        f"gone in both ({found.both})",
        f"hidden: still answered ({found.hidden})",
        f"apparent: still probable ({found.apparent})",
        f"gone in neither ({found.neither})",
    ):
        assert told in svg
    assert len(marks(svg)) == found.n == 54
    with pytest.raises(ValueError, match="no known fact"):
        plots.probability_against_generation([], 0.1, 0.5)
    with pytest.raises(ValueError, match="none has a known fact"):
        plots.forgetting_by_bucket([])


def test_plots_stay_inside_their_frames_and_tell_what_they_show(text):
    assert_drawn_inside(text)


def test_more_buckets_than_styles_share_them():
    styles = plots.bucket_styles([f"{10**k} to {10 ** (k + 1)}" for k in range(8)])
    assert len(styles) == 8 and len(set(styles.values())) == 6
    assert list(plots.bucket_styles(["high", "low", None, "zero"])) == ["zero", "low", "high"]


def test_a_result_is_what_the_report_is_made_of(result):
    assert isinstance(result, ProbeResult) and result.provenance["stage"] == "finetuned"
