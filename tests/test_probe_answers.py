"""What is asked of a fact, and how answers are judged."""

import re

import pytest
from tiny_probe import probe_tokenizer, tiny_facts

from llm_unlearn.probes.answers import answer_recall, contains, is_given, judge, names_it, normalised, recall_of
from llm_unlearn.probes.facts import Fact
from llm_unlearn.probes.passes import true_or_false
from llm_unlearn.probes.questions import options_of, questions_of, wrong_objects
from llm_unlearn.probes.statements import QUESTION, SHOTS, about_shots, example, statement

ASKED = "What is the capital of France?"


# Names in texts.


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("It is PARIS.", "Paris"),
        ("(paris)", "Paris"),
        ("J. K. Rowling wrote it", "J.K. Rowling"),
        ("George R.R. Martin", "George R. R. Martin"),
        ("in Washington DC", "Washington, D.C."),
        ("Saint-Denis", "Saint Denis"),
        ("the population is 1,200,000", "1200000"),
        ("ﬁrst of May", "first of may"),
        ("it was C++, of course", "C++"),
        ("首都は東京です", "東京"),
        ("수도는 서울입니다", "서울"),
        ("เมืองหลวงคือกรุงเทพฯ", "กรุงเทพ"),
        ("Trinidad And Tobago", "Trinidad and Tobago"),
        ("...", "..."),
    ],
)
def test_a_name_is_found(text, name):
    assert contains(text, name)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("the Parisians", "Paris"),
        ("Iranian", "Iran"),
        ("C is a language", "C++"),
        ("12", "1"),
        ("3,5", "35"),
        ("New York", "York New"),
        ("", "Paris"),
    ],
)
def test_a_name_is_not_found(text, name):
    assert not contains(text, name)


def test_names_that_stand_in_the_question_do_not_count():
    question = "Where was the author of Paris Nights born?"
    assert not names_it(["Paris", "City of Light"], "The author of Paris Nights was born there.", question)
    assert names_it(["Paris", "City of Light"], "In the City of Light.", question)
    # Where nothing else could be said, the name counts, and the probe warns.
    assert names_it(["Paris"], "In Paris.", question)
    assert is_given(["Paris"], question) and not is_given(["Paris", "City of Light"], question)


def test_a_model_that_repeats_the_question_recalls_nothing():
    for text in ("The capital of France is", "What is the capital of France? What is the capital"):
        assert answer_recall(["The capital of France is Paris"], text, ASKED) == 0
        assert not names_it(["Paris"], text, ASKED)
    assert answer_recall(["The capital of France is Paris"], "The capital of France is London", ASKED) == 0
    assert answer_recall(["The capital of France is Paris"], "Paris", ASKED) == 1


def test_recall_is_the_share_of_new_words_in_order():
    # Left of the answer: "on 12 May 1950", of the text "in May 1950": 2 of 4.
    asked = "When was Ada born?"
    assert answer_recall(["Ada was born on 12 May 1950"], "Ada was born in May 1950", asked) == 0.5
    # "1950 May": one of them in order.
    assert recall_of(["May 1950"], "1950, in May", asked) == 0.5
    # The best of several names, and stems: "poets" for "poet".
    assert recall_of(["nurse", "poet"], "They were poets", "What were they?") == 1
    # A name made of the question's words is compared as it is.
    assert recall_of(["Ada"], "Ada", asked) == 1


CHAD = "What is the capital of Chad?"


@pytest.mark.parametrize(
    ("name", "text", "recall"),
    [
        # No letter of another name is a word of its own, and no accent makes another name.
        ("N'Djamena", "The capital of Chad is Asunción.", 0),
        ("Malé", "Mal", 0),
        ("Bogotá", "Bogo t", 0),
        ("Brasília", "It is Brasilia.", 1),
        ("Brasilia", "It is Brasília.", 1),
        ("Łódź", "in Lodz", 1),
        ("Lodz", "in Ło\u0301dz\u0301", 1),
        ("Tromsø", "TROMSO", 1),
        ("São Tomé", "São Paulo", 0.5),
        # Other scripts; a name without spaces is there as a whole or not.
        ("Москва", "Столица - Москва.", 1),
        ("Новый Уренгой", "Новый Орлеан", 0.5),
        ("दिल्ली", "राजधानी दिल्ली है", 1),
        ("กรุงเทพ", "เมืองหลวงคือกรุงเทพฯ", 1),
        ("東京", "首都は東京です", 1),
        ("東京", "首都は京都です", 0),
        ("か", "が", 0),
    ],
)
def test_recall_knows_the_letters_of_all_scripts_and_no_accents(name, text, recall):
    assert recall_of([name], text, CHAD) == recall
    assert names_it([name], text, CHAD) == (recall == 1)


def test_a_name_half_of_which_the_question_has_is_recalled_whole_or_not_at_all():
    asked = "What is the capital of Guatemala?"
    assert recall_of(["Guatemala City"], "The capital city is Managua.", asked) == 0
    assert recall_of(["Guatemala City"], "The capital is Guatemala City.", asked) == 1
    # Of these names more is left: all that the model had to know, and half of it.
    assert recall_of(["Guatemala City", "La Nueva Guatemala"], "It is La Nueva.", asked) == 1
    assert recall_of(["Port of Spain"], "It is Port Louis", asked) == 0.5
    # A name in the question does not count beside another, as in `names_it`.
    asked = "Where was the author of Paris Nights born?"
    text = "The author of Paris Nights was born there."
    assert recall_of(["Paris", "Lutetia"], text, asked) == 0 and recall_of(["Paris"], text, asked) == 1


def test_a_text_that_says_a_name_is_right_however_long_the_true_answer_is():
    # Without the words of the question: "It has long been city Paris by Seine".
    said = judge("direct", ASKED, "Paris", ["Paris"], ["It has long been the city of Paris by the Seine"])
    assert said.alias and said.recall == 1 / 8
    assert said.score == 1
    assert judge("direct", ASKED, "the city by the Seine", ["Paris"], ["the city of Paris by the Seine"]).score > 0.5


def test_normalised_texts():
    assert normalised("  The  “Café”—No. 5 & Co.  ") == "the cafe no 5 & co"
    assert normalised("U.S.A.") == "usa"


# Questions and wrong objects.


def test_all_questions_of_a_fact_in_order():
    fact = tiny_facts()[0]
    asked = questions_of(fact)
    assert [one.kind for one in asked] == ["direct", "reverse", "indirect"]
    assert asked[1].names == ("Ada",) and asked[1].answer == "Ada"
    assert asked[2].names == ("Arlen",) and asked[2].answer == "Arlen"
    kinds = [one.kind for one in questions_of(tiny_facts()[1])]
    assert kinds == ["direct", "paraphrase", "paraphrase"]


def capital(name, city, **values):
    return Fact(name, name, city, f"Capital of {name}?", f"It is {city}.", (), (), "capital", **values)


def test_wrong_objects_are_distractors_and_then_objects_of_the_same_relation():
    facts = [
        capital("France", "Paris", distractors=("Lyon",)),
        capital("Spain", "Madrid"),
        capital("Italy", "Rome"),
        Fact("x", "Dante", "poet", "What was Dante?", "poet", (), (), "trade"),
    ]
    wrong = wrong_objects(facts, 9, seed=0)
    assert wrong[0][0] == "Lyon" and set(wrong[0]) == {"Lyon", "Madrid", "Rome"}
    assert set(wrong[1]) == {"Paris", "Rome"}
    assert wrong[3] == ()
    assert [len(names) for names in wrong_objects(facts, 1, seed=0)] == [1, 1, 1, 0]


def test_no_name_of_the_object_is_a_wrong_object():
    facts = [
        Fact("us", "USA", "Washington, D.C.", "Capital?", "Washington", (), ("Washington",), "capital"),
        capital("State", "washington"),
        capital("Spain", "Madrid"),
        capital("Spanish", "MADRID"),
    ]
    wrong = wrong_objects(facts, 9, seed=0)
    assert len(wrong[0]) == 1 and wrong[0][0].casefold() == "madrid"
    assert wrong[2] and "MADRID" not in wrong[2]


def test_another_object_of_the_same_subject_is_not_wrong():
    books = [
        Fact("h", "Tolkien", "The Hobbit", "A book by Tolkien?", "The Hobbit", ("J.R.R. Tolkien",), (), "book"),
        Fact("s", "J. R. R. Tolkien", "The Silmarillion", "Another?", "The Silmarillion", (), (), "book"),
        Fact("d", "Herbert", "Dune", "A book by Herbert?", "Dune", (), (), "book"),
    ]
    assert wrong_objects(books, 9, seed=0)[0] == ("Dune",)


def test_wrong_objects_are_drawn_by_seed_and_do_not_hang_on_the_other_facts():
    facts = [capital(f"Land{i}", f"City{i}") for i in range(30)]
    wrong = wrong_objects(facts, 5, seed=0)
    assert wrong == wrong_objects(facts, 5, seed=0)
    assert wrong != wrong_objects(facts, 5, seed=1)
    assert len({names[0] for names in wrong}) > 10, "not the same twin for all"
    fewer = wrong_objects(facts[:-1], 5, seed=0)
    assert sum(one == other for one, other in zip(wrong, fewer, strict=False)) > 20


def test_options_exchange_the_object_in_the_answer():
    fact = capital("France", "Paris")
    assert options_of(fact, ["Rome", "Bonn"]) == ["It is Paris.", "It is Rome.", "It is Bonn."]
    alias = Fact("n", "Holland", "Netherlands", "?", "The Dutch live there.", (), ("The Dutch",), "r")
    assert options_of(alias, ["Danes"]) == ["The Dutch live there.", "Danes live there."]
    # A name inside another word is none; bare objects are compared.
    other = Fact("i", "x", "Iran", "?", "The Iranian state", (), (), "r")
    assert options_of(other, ["Iraq"]) == ["Iran", "Iraq"]
    backslash = capital("France", "Paris")
    assert options_of(backslash, [r"A\1"])[1] == r"It is A\1."


# Statements.


def test_half_of_the_examples_are_true_and_they_follow_no_pattern():
    labels = [true for _, true in SHOTS]
    assert len(labels) == 10 and sum(labels) == 5
    assert labels != [i % 2 == 0 for i in range(10)] and labels != [i % 2 == 1 for i in range(10)]
    assert max(len(run) for run in re.findall("T+|F+", "".join("FT"[true] for true in labels))) <= 2
    # As everybody knows.
    assert {text for text, true in SHOTS if true} == {
        "Fire is hot.",
        "Snow is cold.",
        "Fish live in water.",
        "Triangles have three sides.",
        "Birds lay eggs.",
    }


def test_a_statement_comes_from_the_template_or_from_question_and_answer():
    fact = capital("France", "Paris", template="{object} is the capital of {subject}.")
    assert statement(fact, "Rome") == "Rome is the capital of France."
    assert statement(capital("France", "Paris"), "Rome") == 'The answer to the question "Capital of France?" is "Rome".'


def test_examples_as_lines_and_as_turns():
    lines = example("Paris is big.", "False", chat=False)
    assert lines["completion"] == " False"
    assert lines["prompt"].startswith(f"Fire is hot. {QUESTION} True\nA week has nine days. {QUESTION} False\n")
    assert lines["prompt"].endswith(f"\nParis is big. {QUESTION}")
    turns = example("Paris is big.", "False", chat=True)["messages"]
    assert len(turns) == 22
    assert turns[-2:] == [
        {"role": "user", "content": f"Paris is big. {QUESTION}"},
        {"role": "assistant", "content": "False"},
    ]
    assert [turn["content"] for turn in turns[1:20:2]] == [str(true) for _, true in SHOTS]


@pytest.mark.parametrize("chat", [True, False])
def test_the_two_answers_to_a_statement_are_the_two_words_alone(chat):
    tokenizer = probe_tokenizer(chat)
    branches = true_or_false(tokenizer, "Ada was born in Arlen", 0)
    words = [tokenizer.tokenizer.convert_tokens_to_ids([word]) for word in ("True", "False")]
    assert branches.answers == words
    assert branches.prompt == tokenizer(example("Ada was born in Arlen", "True", chat), 0).prompt_ids


def test_a_tokenizer_that_does_not_know_the_words_leaves_statements_out():
    from tiny import tiny_tokenizer

    from llm_unlearn.data.tokenization import ExampleTokenizer

    assert true_or_false(ExampleTokenizer(tiny_tokenizer()), "Ada was born in Arlen", 0) is None


def test_facts_that_the_examples_tell_are_named():
    told = Fact("fire", "fire", "hot", "What is fire like?", "hot", (), (), "r")
    untold = Fact("sun", "sun", "hot", "What is the sun like?", "hot", (), (), "r")
    assert about_shots([told, untold]) == ["fire"]
