"""What codes stand for, in numbers and on a page; and the plot of a plan's curve."""

import json
import re
from dataclasses import asdict, replace
from math import log2
from xml.etree import ElementTree

import pytest
import torch
import torch.nn.functional as F
from codebooks import delete, tiny_codebook, trained_like
from pages import ATTACK, Page, assert_alone, assert_nothing_of_others_runs
from tiny import tiny_rows, tiny_tokenizer

from llm_unlearn.codebook.curve import CurvePoint
from llm_unlearn.codebook.inspection import _around, _reader, inspect_codes
from llm_unlearn.codebook.page import codes_page
from llm_unlearn.codebook.plot import trade_off
from llm_unlearn.data.tokenization import ExampleTokenizer
from llm_unlearn.evaluation.html import svg_file

TOKENIZE = ExampleTokenizer(tiny_tokenizer())
ROWS = {"target": tiny_rows(10), "control": tiny_rows(20, first=40)}


UNUSED = 7


@pytest.fixture(scope="module")
def codebook():
    """With one code that nothing uses: encodings are not negative."""
    codebook = trained_like(tiny_codebook())
    codebook.bottleneck.codebook.weight.data[UNUSED] = -1
    return codebook


def look(codebook, **options):
    return inspect_codes(codebook, ROWS["target"], ROWS["control"], TOKENIZE, progress=False, **options)


@pytest.fixture(scope="module")
def inspection(codebook):
    return look(codebook)


@pytest.fixture(scope="module")
def by_hand(codebook):
    """Every use of a code, one text at a time: set, row, position, code, cosine; and the number of tokens per set."""
    uses, tokens = [], {"target": 0, "control": 0}
    seen = []
    for name, rows in ROWS.items():
        for item in TOKENIZE.all(rows):
            seen.clear()
            with torch.no_grad(), codebook.bottleneck.observed(seen.append):
                codebook(input_ids=torch.tensor([item.input_ids]))
            for position, token in enumerate(item.input_ids):
                if token in TOKENIZE.special_ids:
                    continue
                tokens[name] += 1
                z = seen[0].z[0, position]
                for code in seen[0].codes[0, position].tolist():
                    cosine = F.cosine_similarity(z, codebook.bottleneck.codebook.weight[code], dim=0).item()
                    uses.append((name, item.index, position, code, cosine))
    return uses, tokens


def test_frequencies_and_enrichment_are_those_of_a_count_by_hand(inspection, by_hand):
    uses, tokens = by_hand
    assert inspection.tokens == tokens and inspection.texts == {"target": 10, "control": 20}
    for code in inspection.codes:
        n = {name: sum(use[0] == name and use[3] == code.code for use in uses) for name in ROWS}
        assert (code.target_tokens, code.control_tokens) == (n["target"], n["control"])
        assert code.target_share == n["target"] / tokens["target"]
        expected = {name: (n[name] + 0.5) / (tokens[name] + 1) for name in ROWS}
        assert code.enrichment == pytest.approx(log2(expected["target"] / expected["control"]))
        assert sum(times for _, times in code.commonest) <= n["target"] + n["control"]
    used = {use[3] for use in uses}
    assert {code.code for code in inspection.codes} == used and inspection.left_out == 0
    assert inspection.unused == 40 - len(used)
    ranks = [code.enrichment for code in inspection.codes]
    assert ranks == sorted(ranks, reverse=True)


def test_the_uses_shown_are_the_nearest_ones_each_wording_once(inspection, by_hand):
    items = {name: TOKENIZE.all(rows) for name, rows in ROWS.items()}
    for code in inspection.codes:
        for name in ROWS:
            shown = [use for use in code.uses if use.of == name]
            mine = sorted((use for use in by_hand[0] if use[0] == name and use[3] == code.code), key=lambda u: -u[4])
            assert len(shown) <= 4 and bool(shown) == bool(mine)
            expected = {}
            for _, row, position, _, cosine in mine:
                expected.setdefault(_around(items[name][row].input_ids, position, _reader(TOKENIZE)), cosine)
            assert [use.cosine for use in shown] == pytest.approx(list(expected.values())[:4], abs=1e-4)
            assert len({(use.before, use.token, use.after) for use in shown}) == len(shown)
            for use in shown:
                whole = TOKENIZE.tokenizer.decode(items[name][use.row].input_ids, skip_special_tokens=True)
                told = f"{use.before}{use.token}{use.after}".strip("…")
                assert " ".join(told.split()) in " ".join(whole.split())
                assert len(use.before.strip("… ").split()) <= 8 and use.token == use.token.strip() != ""


def test_the_commonest_tokens_are_counted_over_both_sets(inspection, by_hand):
    items = {name: TOKENIZE.all(rows) for name, rows in ROWS.items()}
    code = max(inspection.codes, key=lambda code: code.target_tokens)
    words = [
        TOKENIZE.tokenizer.decode([items[name][row].input_ids[position]])
        for name, row, position, number, _ in by_hand[0]
        if number == code.code
    ]
    assert code.commonest[0][1] == max(words.count(word) for word in words)
    assert all(words.count(word) == times for word, times in code.commonest)


def test_what_is_enriched_and_what_is_not():
    """Every word of a sentence has a code, and so has every name that stands in it elsewhere."""
    target = [{"text": "people Ada was born in"}] * 6
    control = [{"text": f"people {name} was born in"} for name in ("Bela", "Cato", "Dora", "Emil")] * 5
    codebook, seen = tiny_codebook(num_codes=9, top_s=1), []
    with torch.no_grad(), codebook.bottleneck.observed(seen.append):
        for row in (target[0], *control[:4]):
            codebook(input_ids=torch.tensor([TOKENIZE(row, 0).input_ids]))
    words = [seen[0].z[0, :5], *(one.z[0, 1:2] for one in seen[1:])]
    codebook.bottleneck.codebook.weight.data.copy_(torch.cat(words))
    found = inspect_codes(codebook, target, control, TOKENIZE, progress=False)
    people, ada = (next(code for code in found.codes if code.code == number) for number in (0, 1))
    assert ada.enriched and ada.commonest == (("Ada", 6),) and (ada.target_tokens, ada.control_tokens) == (6, 0)
    # One of 26 choose 6 ways to divide the texts, and one of at most 9 tests.
    assert ada.q <= 9 / 230_230 + 1e-9
    assert not people.enriched and people.enrichment == pytest.approx(0, abs=0.1) and people.q == 1


def test_codes_can_be_named_and_need_not_be_in_use(codebook, inspection):
    known = inspection.codes[3]
    found = look(codebook, codes=[UNUSED, known.code, UNUSED], uses=1)
    assert [code.code for code in found.codes] == [UNUSED, known.code]
    assert found.codes[0].enrichment is None and found.codes[0].uses == () and found.codes[0].q == 1
    assert found.codes[1].uses[0] == known.uses[0]
    assert found.left_out == len(inspection.codes) - 1


def test_at_most_so_many_are_listed_and_the_rest_is_counted(codebook, inspection):
    found = look(codebook, top=5)
    assert found.codes == inspection.codes[:5]
    assert found.left_out == len(inspection.codes) - 5


def test_deleted_purged_and_dead_codes_say_so():
    codebook = trained_like(tiny_codebook())
    one, two, three = (code.code for code in look(codebook).codes[:3])
    delete(codebook, "ablate", [one, two], "first")
    delete(codebook, "refill", [two], "second")
    codebook.bottleneck.forget_vectors([three])
    # Training lasted 100 steps, and its last revival was at step 70.
    codebook.bottleneck.last_used[:] = torch.tensor([100, 71, 70, 0])[torch.arange(40) % 4]
    found = {code.code: code for code in look(codebook, codes=range(40)).codes}
    assert found[one].requests == ("first",) and found[two].requests == ("first", "second")
    assert found[three].requests == () and found[three].purged
    assert [code for code in found if found[code].dead] == [code for code in range(40) if code % 4 > 1]
    assert look(codebook).codebook["deleted"] == 2
    # Codes are counted as the texts would use them, whatever is deleted.
    assert found[one].target_tokens > 0


def test_nothing_is_dead_in_a_codebook_that_was_never_trained(inspection):
    assert not any(code.dead for code in inspection.codes)


def test_an_inspection_is_json(inspection):
    assert json.loads(json.dumps(asdict(inspection)))["codes"][0]["code"] == inspection.codes[0].code


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"codes": [3, 40]}, "Code 40 was asked for, but the codes are numbered 0 to 39"),
        ({"codes": [-1]}, "Code -1"),
        ({"top": 0}, "`top` is 0"),
        ({"uses": 0}, "`uses` 0"),
    ],
    ids=str,
)
def test_what_cannot_be_listed(codebook, options, said):
    with pytest.raises(ValueError, match=said):
        look(codebook, **options)


def test_texts_without_tokens(codebook):
    with pytest.raises(ValueError, match="The control texts have no tokens"):
        inspect_codes(codebook, ROWS["target"], [], TOKENIZE, progress=False)


def test_a_letter_of_several_tokens_is_cut_in_the_middle():
    """Bytes of one letter do not decode by themselves."""

    def read(ids):
        return bytes(ids).decode("utf-8", errors="replace")

    ids = list("zé x".encode())
    assert _around(ids, 0, read) == ("", "z", "é x")
    assert _around(ids, 1, read) == ("z", "�", "� x")
    assert _around(ids, 3, read) == ("zé", "' '", "x")


# The page


def test_the_page_shows_every_code_and_asks_for_nothing_outside(codebook, inspection):
    text = codes_page(inspection, "forget10", "retain90")
    page = Page(text)
    assert_alone(text, page)
    shown = page.of_class("item")
    assert [int(row["data-code"]) for row in shown] == [code.code for code in inspection.codes]
    assert [float(row["data-r"]) for row in shown] == [code.enrichment for code in inspection.codes]
    told, first = page.text(), inspection.codes[0]
    assert "forget10: 10 with" in told and "left out" not in told
    assert f"R {first.enrichment:+.2f} target {first.target_tokens} tokens" in told
    assert sum(tag == "mark" for tag, _ in page.tags) == sum(len(code.uses) for code in inspection.codes)
    # Without JavaScript there is nothing to search with, and everything to read.
    assert [attributes for tag, attributes in page.tags if tag == "form"] == [{"class": "controls", "hidden": None}]
    assert not any("hidden" in row for row in shown)


def test_the_page_says_what_is_left_out_and_what_is_deleted(inspection):
    first = replace(inspection.codes[0], requests=("ada",), enriched=True, purged=True, dead=True, enrichment=None)
    page = Page(codes_page(replace(inspection, codes=(first,), left_out=1234), "a", "b"))
    assert "1 codes are listed; 1,234 more that are in use or deleted are left out." in page.text()
    (row,) = page.of_class("item")
    assert row["data-kind"] == "enriched deleted dead" and row["data-r"] == ""
    assert "deleted for ada purged dead R –" in page.text()


def test_what_texts_and_requests_say_is_text(inspection):
    first = inspection.codes[0]
    use = replace(first.uses[0], before=ATTACK, token=ATTACK, after=ATTACK)
    hostile = replace(first, uses=(use,), commonest=((ATTACK, 3),), requests=(ATTACK,))
    named = {**inspection.codebook, "model": ATTACK, "site": ATTACK}
    text = codes_page(replace(inspection, codes=(hostile,), codebook=named), ATTACK, ATTACK)
    page = Page(text)
    assert_nothing_of_others_runs(text, page)
    assert page.text().count(ATTACK) >= 9


# The plot


def point(mode, n, probability, loss, chosen="selected"):
    return CurvePoint(mode, 0, n, chosen, 1.0, probability, loss, 0.5)


CURVE = [
    point("none", 0, 0.9, 0.5),
    point("ablate", 40, 0.05, 0.53),
    point("ablate", 20, 0.1, 0.51),
    point("ablate", 20, 0.8, 0.505, "random"),
    point("gated", 20, 0.3, 0.49),
]


def test_the_plot_has_a_line_per_mode_and_random_codes_beside_it():
    drawing = ElementTree.fromstring(trade_off(CURVE))
    lines = [path for path in drawing.iter("path") if path.get("class") == "line"]
    # Two panels of three lines, and the key of random codes, dashed as they are.
    assert len(lines) == 7 and sum(path.get("stroke-dasharray") is not None for path in lines) == 3
    words = [text.text for text in drawing.iter("text")]
    for told in ("ablate", "gated", "as many random codes", "deleted codes", "forget probability"):
        assert words.count(told) == 1
    assert "rise of retain loss, %" in words and "refill" not in words
    titles = [title.text for title in drawing.iter("title")]
    assert "ablate, 40 codes: 0.050" in titles and "ablate, 20 random codes: 0.800" in titles
    # 0.53 / 0.5 is a rise of 6 %, 0.49 / 0.5 a fall of 2 %.
    assert "ablate, 40 codes: 6.000" in titles and "gated, 20 codes: -2.000" in titles
    assert "forget probability: 0.900 with none deleted, then 0.050 to 0.800" in drawing.get("aria-label")


def test_lines_begin_where_nothing_is_deleted_and_go_on_by_the_number_of_codes():
    drawing = ElementTree.fromstring(trade_off(CURVE))
    paths = [path.get("d") for path in drawing.iter("path") if path.get("class") == "line" and "L" in path.get("d")]
    for path in paths:
        places = [tuple(map(float, place.split())) for place in path[1:].split("L") if " " in place]
        assert places[0][0] == 56 and [x for x, _ in places] == sorted(x for x, _ in places)
    assert sum(path.count("L") == 2 for path in paths) == 2


def test_a_plan_without_texts_to_keep_has_one_panel():
    curve = [replace(one, retain_loss=None, retain_probability=None) for one in CURVE if one.chosen == "selected"]
    words = [text.text for text in ElementTree.fromstring(trade_off(curve)).iter("text")]
    assert "forget probability" in words and "deleted codes" in words
    assert "rise of retain loss, %" not in words and "as many random codes" not in words


@pytest.mark.parametrize("curve", [[], CURVE[:1], CURVE[1:]], ids=["nothing", "start", "no start"])
def test_a_plot_without_a_curve_is_an_error_with_a_sentence(curve):
    with pytest.raises(ValueError, match=r"no curve to draw: `sweep` it first"):
        trade_off(curve)


def test_a_plot_in_a_file_of_its_own_brings_its_looks_along():
    text = svg_file(trade_off(CURVE))
    drawing = ElementTree.fromstring(text)
    assert drawing.tag == "{http://www.w3.org/2000/svg}svg"
    assert "var(" not in text and "color:#0b63b0" in text
    style = next(drawing.iter("{http://www.w3.org/2000/svg}style")).text
    assert re.search(r"svg text \{ font: 13px .* fill: #1c2330; \}", style)
