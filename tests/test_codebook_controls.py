"""Control texts: names found and replaced, rows that ask the same about others."""

import json
import re
from pathlib import Path

import pytest

from llm_unlearn.codebook.controls import sibling_rows, swap_entities
from llm_unlearn.codebook.names import find_names, lower_words, mentions

BUNDLED = Path(__file__).parents[1] / "data" / "tofu"
REAL = Path(__file__).parents[2] / "shared" / "data" / "tofu"


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module", params=[BUNDLED, REAL], ids=["bundled", "real"])
def tofu(request):
    """Rows to forget, donors, and two variants of each row."""
    if not request.param.is_dir():
        pytest.skip(f"the real TOFU is not at {request.param}")
    # A hundred authors lend as good names as the real set's 180, in half the time.
    forget, retain = read(request.param / "forget10.jsonl"), read(request.param / "retain90.jsonl")[:2000]
    return forget, retain, swap_entities(forget, retain, variants=2)


def qa(question, answer):
    return {"question": question, "answer": answer}


FORGET = [
    qa("When was Ana-Lúcia Núñez's father born?", "Núñez's father was born on 3 May 1960, says Ana-Lúcia."),
    qa("What did Ana-Lúcia Núñez write?", "She wrote 'The Blue Door' and ‘The Bluest Door’, says Dr. Núñez."),
    qa("Did Ana-Lúcia Núñez win?", "Yes. Ana-Lúcia Núñez won (Núñez)."),
]
DONORS = [
    qa("When was Jun Ōta's father born?", "Her father was born on 17 June 1955."),
    qa("What did Jun Ōta write?", "She wrote 'A Red Window'."),
    qa("Did Jun Ōta win?", "Yes. Jun Ōta won."),
]


# Names


def kinds_of(*texts):
    rows = [[text] for text in texts]
    return {text: name.kind for text, name in find_names(rows, lower_words(rows)).items()}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("she is Jane Roe's aunt", {"Jane Roe": "person"}),
        ("he lives in Aix-en-Provence, France", {"Aix-en-Provence": "place", "France": "place"}),
        ("the University of Costa Rica", {"University of Costa Rica": "thing"}),
        ("says Ludwig van der Rohe and Élodie", {"Ludwig van der Rohe": "person", "Élodie": "person"}),
        ("asks Dr. Núñez and Mrs Roe", {"Núñez": "person", "Roe": "person"}),
        ("by J. K. Stone or O'Neil", {"J. K. Stone": "person", "O'Neil": "person"}),
        ("a Pen/Faulkner Award for LGBTQ+ writers", {"Pen/Faulkner Award for LGBTQ+": "thing"}),
        ("wrote 'It's a Dog's Life' in 1997", {"It's a Dog's Life": "title", "1997": "date 0000"}),
        ('wrote “Red, Blue,” and "Green (Colours, #2)"', {"Red, Blue": "title", "Green (Colours, #2)": "title"}),
        ("on the 15th of April, 1992", {"15th of April, 1992": "date 0th of M, 0000"}),
        ("on 05/11/1991, then March 3, 1990", {"05/11/1991": "date 0/0/0000", "March 3, 1990": "date M 0, 0000"}),
        ("and I said I'm fine", {}),
    ],
)
def test_what_a_name_is(text, names):
    assert kinds_of(text) == names


def test_a_word_that_begins_a_sentence_is_a_name_only_if_it_stands_elsewhere_too():
    assert kinds_of("Rain fell. Thunder came.") == {}
    assert kinds_of("Rain fell. Odile came.", "then Odile left") == {"Odile": "person"}
    # Words that are also written small are no part of a name that follows.
    assert kinds_of("Did Jane Roe win? The Oak Award, and how did the rest?") == {
        "Jane Roe": "person",
        "Oak Award": "thing",
    }
    assert kinds_of("Winning the Oak Award, she wept.") == {"Oak Award": "thing"}


# Swapping


def test_a_subject_is_replaced_whole_and_in_parts_with_all_that_is_its_own():
    assert swap_entities(FORGET, DONORS, variants=1) == [
        qa("When was Jun Ōta's father born?", "Ōta's father was born on 17 June 1955, says Jun."),
        qa("What did Jun Ōta write?", "She wrote 'A Red Window' and ‘A Red Window’, says Dr. Ōta."),
        qa("Did Jun Ōta win?", "Yes. Jun Ōta won (Ōta)."),
    ]


def test_rows_come_in_order_with_the_columns_of_their_form_and_are_not_changed():
    rows = [row | {"author": "Ana-Lúcia Núñez"} for row in FORGET]
    copies = [dict(row) for row in rows]
    swapped = swap_entities(rows, DONORS, variants=3)
    assert rows == copies
    assert [row["question"].split()[0] for row in swapped] == ["When"] * 3 + ["What"] * 3 + ["Did"] * 3
    assert all(row.keys() == {"question", "answer"} for row in swapped)


@pytest.mark.parametrize(
    ("row", "swapped"),
    [
        ({"text": "says Ana Núñez.", "id": 3}, {"text": "says Jun Ōta."}),
        (
            {"prompt": "Who is Ana Núñez?", "completion": " says Ana Núñez."},
            {"prompt": "Who is Jun Ōta?", "completion": " says Jun Ōta."},
        ),
        (
            {"messages": [{"role": "user", "content": "says Ana Núñez?"}, {"role": "assistant", "content": "Yes."}]},
            {"messages": [{"role": "user", "content": "says Jun Ōta?"}, {"role": "assistant", "content": "Yes."}]},
        ),
    ],
)
def test_every_form_of_a_row_stays_what_it_is(row, swapped):
    assert swap_entities([row], DONORS, variants=1) == [swapped]


def test_a_name_that_others_share_stays_unless_it_is_far_more_frequent():
    """3 of 40 donor rows mention the subject of all 40 rows, and 3 the city in 4 of them."""
    donors = [qa("Who is Jun Ōta?", "says Jun.")] * 34 + [qa("Where is Jun Ōta?", "in Lima")] * 3
    donors += [qa("Who knows Jane Roe?", "says Jun.")] * 3
    rows = [qa("Where is Jane Roe?", "in Lima")] * 4 + [qa("Who is Jane Roe?", "says Jane.")] * 36
    swapped = swap_entities(rows, donors, variants=1)
    assert all("Roe" not in json.dumps(row) for row in swapped)
    assert swapped[0]["answer"] == "in Lima"


def test_aliases_are_replaced_and_scripts_without_capitals_need_them():
    row = {"text": "林小明出生于台北，住在东京。"}
    with pytest.raises(ValueError, match="None of the 1 rows to forget has a name.*name the subject in `aliases`"):
        swap_entities([row], DONORS)
    (swapped,) = swap_entities([row], DONORS, aliases=["林小明", "not there"], variants=1)
    assert swapped["text"] == "Jun Ōta出生于台北，住在东京。"
    # Beside Latin names, other scripts stay as they are.
    (swapped,) = swap_entities([{"text": "says Ana Núñez (安娜)."}], DONORS, variants=1)
    assert swapped["text"] == "says Jun Ōta (安娜)."
    (swapped,) = swap_entities(
        [{"text": "she is the iron lady of Ironland"}], DONORS, aliases=["iron lady"], variants=1
    )
    assert "iron lady" not in swapped["text"]


def test_an_alias_is_replaced_as_a_whole_word():
    (swapped,) = swap_entities([{"text": "Ann likes Annex B, says Ann."}], DONORS, aliases=["Ann"], variants=1)
    assert not re.search(r"\bAnn\b", swapped["text"])


def test_nothing_to_replace_and_nothing_to_replace_with_are_errors():
    with pytest.raises(ValueError, match="None of the 3 rows to forget has a name, title or date"):
        swap_entities(DONORS, DONORS)
    with pytest.raises(ValueError, match="1 donor rows have nothing that could stand for 'Ana-Lúcia Núñez'"):
        swap_entities(FORGET, [qa("who?", "nobody")])
    with pytest.raises(ValueError, match="4 donor rows have nothing that could stand for 'Rita Roe'"):
        swap_entities([{"text": "says Rita Roe in 1990"}], [{"text": f"it was {year}"} for year in range(1995, 1999)])
    with pytest.raises(ValueError, match="`variants` is 0"):
        swap_entities(FORGET, DONORS, variants=0)


def test_no_name_of_the_forget_authors_is_left_and_nearly_all_rows_change(tofu):
    forget, retain, swapped = tofu
    assert len(swapped) == 2 * len(forget)
    assert all(row.keys() == {"question", "answer"} for row in swapped)
    subjects = {row["author"] for row in forget if "author" in row} or REAL_AUTHORS
    assert all(any(name in json.dumps(row, ensure_ascii=False) for row in forget) for name in subjects)
    assert not any(name in text for name in subjects for row in swapped for text in row.values())
    changed = [swapped[2 * i + v] != qa(row["question"], row["answer"]) for i, row in enumerate(forget) for v in (0, 1)]
    assert sum(changed) >= 0.95 * len(changed)


def test_a_subject_becomes_one_other_subject_in_all_rows_of_a_variant(tofu):
    forget, retain, swapped = tofu
    name = forget[1].get("author", "Hsiao Yun-Hwa")
    question = re.escape(forget[1]["question"]).replace(re.escape(name), "(.+)")
    for of_variant in (swapped[::2], swapped[1::2]):
        other = re.fullmatch(question, of_variant[1]["question"])[1]
        for row, control in zip(forget, of_variant, strict=True):
            assert all(control[column].count(other) >= row[column].count(name) for column in control)
        # Another author, with a whole name.
        assert len(other.split()) == len(name.split())
        assert sum(other in row["question"] + row["answer"] for row in retain) >= 15


def test_variants_differ_and_depend_on_the_seed_alone():
    forget, retain = read(BUNDLED / "forget01.jsonl"), read(BUNDLED / "retain90.jsonl")
    swapped = swap_entities(forget, retain)
    assert len({row["question"] for row in swapped[8:16]}) == 8
    assert swap_entities(forget, retain) == swapped
    assert swap_entities(forget, retain, seed=1) != swapped
    assert swap_entities(forget[::-1], retain)[-8:] == swapped[:8]


# Siblings


def test_siblings_ask_the_same_about_others():
    forget, retain = read(BUNDLED / "forget10.jsonl"), read(BUNDLED / "retain90.jsonl")
    kinds = {(row["question"], row["answer"]): (row["attribute"], row["author"]) for row in retain}
    same = 0
    asked = forget[1:20:4]
    for row in asked:
        siblings = sibling_rows([row], retain)
        attributes = [kinds[sibling["question"], sibling["answer"]][0] for sibling in siblings]
        assert len(siblings) == 8 and attributes[0] == row["attribute"]
        same += attributes.count(row["attribute"])
        if row["question"] == "Which city can claim Rashid Khalourdi as a native?":
            assert attributes == ["birth_city"] * 8
            assert all("Khalourdi" not in json.dumps(sibling) for sibling in siblings)
    assert same >= 0.8 * 8 * len(asked)


def test_siblings_of_a_text_worked_out_by_hand():
    """Names do not count: of "where was born", the second donor has all, the first one word of three."""
    donors = [qa("Where is Ana?", "x"), qa("Where was Ben born?", "y"), qa("who knows?", "it was Ben, born where?")]
    rows = [qa("Where was Ana born?", "z")]
    assert sibling_rows(rows, donors, per_row=2) == [donors[1], donors[0]]
    assert sibling_rows([{"text": "she was born"}], [{"text": "he went"}, {"text": "he was born"}], per_row=1) == [
        {"text": "he was born"}
    ]
    # Each once, whoever asks for it, and all where there are fewer.
    assert sibling_rows(rows * 2, donors) == [donors[1], donors[0], donors[2]]
    for arguments, per_row in ((donors, 0), ([], 8)):
        with pytest.raises(ValueError, match=f"`per_row` is {per_row} and there are {len(arguments)} donor rows"):
            sibling_rows(rows, arguments, per_row=per_row)


def test_a_mention_knows_its_neighbours():
    (mention,) = mentions('she met "Jane Roe", twice', set())
    assert mention == ("Jane Roe", "title", "met", ",")


REAL_AUTHORS = {
    "Hsiao Yun-Hwa",
    "Carmen Montenegro",
    "Elvin Mammadov",
    "Rajeev Majumdar",
    "Jad Ambrose Al-Shamary",
    "Adib Jarrah",
    "Ji-Yeon Park",
    "Behrouz Rohani",
    "Wei-Jun Chen",
    "Tae-ho Park",
    "Hina Ameen",
    "Xin Lee Williams",
    "Moshe Ben-David",
    "Kalkidan Abera",
    "Takashi Nakamura",
    "Raven Marais",
    "Aysha Al-Hashim",
    "Edward Patrick Sullivan",
    "Basil Mahfouz Al-Kuwaiti",
    "Nikolai Abilov",
}
