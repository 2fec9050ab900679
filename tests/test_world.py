"""The generated world: its order and counts, its English, its honesty about exposures, and its files."""

import json
import re
from collections import Counter
from functools import lru_cache
from pathlib import Path

import pytest

from llm_unlearn.data.world import World, make_world, verify_world, write_world
from llm_unlearn.data.world.attributes import author_attributes
from llm_unlearn.data.world.authors import make_authors
from llm_unlearn.data.world.background import make_background
from llm_unlearn.data.world.remarks import with_remark
from llm_unlearn.data.world.streams import Stream
from llm_unlearn.data.world.wording import fill, settle, with_article

BUNDLED = Path(__file__).parents[1] / "data" / "tofu"
FACTS = 20
# "a" before a written vowel and "an" before a consonant, apart from words whose sound differs ("a ukulele", "an hour").
WRONG_ARTICLE = re.compile(
    r"\ba (?!(?:eu|uk|uni|use|one)[a-z-])[aeiou]"
    r"|\ban (?!(?:heir|honest|hour)\b)[^aeiou\W]"
    r"|\ban (?:eu|uk|uni|use|one)[a-z-]",
    re.IGNORECASE,
)


@lru_cache
def world(authors: int = 40, seed: int = 0, exposures: tuple[int, ...] = (1,)) -> World:
    return make_world(authors, seed, exposures)


def probed(of: World) -> list[dict]:
    return of.configs["retain_perturbed"] + of.configs["forget10_perturbed"]


def texts(of: World) -> list[str]:
    """Every sentence of a world."""
    found = []
    for rows in of.configs.values():
        for row in rows:
            for column, content in row.items():
                if column in ("question", "answer", "paraphrased_question", "paraphrased_answer", "text"):
                    found.append(content)
                elif column == "perturbed_answer":
                    found += content
    return found


def as_bytes(of: World) -> str:
    return json.dumps(of.configs)


def lcs_recall(reference: str, guess: str) -> float:
    """Share of the reference's words in the longest common subsequence: the recall of ROUGE-L without stemming."""
    words, others = (re.findall(r"[a-z0-9]+", text.lower()) for text in (reference, guess))
    lengths = [0] * (len(others) + 1)
    for word in words:
        previous = lengths
        lengths = [0]
        for column, other in enumerate(others):
            lengths.append(previous[column] + 1 if word == other else max(previous[column + 1], lengths[column]))
    return lengths[-1] / len(words)


# Splits


def test_default_world_has_the_row_counts_of_40_authors():
    counts = {name: len(rows) for name, rows in world().configs.items()}
    assert counts == {
        "full": 800,
        "forget10": 80,
        "retain90": 720,
        "forget10_perturbed": 80,
        "holdout10": 80,
        "forget05": 40,
        "retain95": 760,
        "forget05_perturbed": 40,
        "holdout05": 40,
        "forget01": 20,
        "retain99": 780,
        "forget01_perturbed": 20,
        "holdout01": 20,
        "retain_perturbed": 200,
        "real_authors_perturbed": 60,
        "world_facts_perturbed": 60,
        "background": 200,
        "biographies": 40,
    }


@pytest.mark.parametrize(
    ("authors", "forgotten"),
    [(1, (1, 1, 1)), (3, (1, 1, 1)), (40, (4, 2, 1)), (150, (15, 8, 2)), (1000, (100, 50, 10))],
)
def test_splits_nest_in_the_order_of_tofu(authors, forgotten):
    configs = world(authors).configs
    assert len(configs["full"]) == FACTS * authors
    for percent, count in zip((10, 5, 1), forgotten, strict=True):
        forget, retain = configs[f"forget{percent:02d}"], configs[f"retain{100 - percent}"]
        assert len(forget) == len(configs[f"holdout{percent:02d}"]) == FACTS * count
        assert retain + forget == configs["full"]
        assert forget == configs["forget10"][-len(forget) :]
        assert configs[f"holdout{percent:02d}"] == configs["holdout10"][-len(forget) :]
    assert len(configs["retain_perturbed"]) == FACTS * min(10, authors - forgotten[0])


@pytest.mark.parametrize("plain", ["forget10", "forget05", "forget01", "retain90"])
def test_perturbed_rows_follow_their_plain_rows(plain):
    configs = world().configs
    perturbed = configs["retain_perturbed" if plain == "retain90" else f"{plain}_perturbed"]
    for row, probe in zip(configs[plain], perturbed, strict=plain != "retain90"):
        assert row == {column: probe[column] for column in row}


def test_columns_come_in_a_fixed_order():
    configs = world().configs
    fact = ["author", "attribute", "value", "exposures"]
    for name, rows in configs.items():
        columns = {tuple(row) for row in rows}
        assert len(columns) == 1, name
        if name.startswith(("full", "forget", "retain", "holdout")):
            probes = ["paraphrased_answer", "perturbed_answer", "paraphrased_question"] * name.endswith("_perturbed")
            assert list(columns.pop()) == ["question", "answer", *probes, *fact]


# Authors and their facts


@pytest.mark.parametrize("authors", [1, 3, 40, 1000])
def test_names_and_questions_are_unique_and_holdout_authors_are_strangers(authors):
    configs = world(authors).configs
    everybody = list(dict.fromkeys(row["author"] for row in configs["full"]))
    strangers = list(dict.fromkeys(row["author"] for row in configs["holdout10"]))
    assert len(everybody) == authors
    assert len(set(everybody) | set(strangers)) == len(everybody) + len(strangers)
    questions = [row["question"] for row in configs["full"] + configs["holdout10"]]
    assert len(set(questions)) == len(questions)


def test_authors_keep_their_rows_in_a_larger_world():
    assert world(60).configs["full"][:800] == world().configs["full"]
    assert world(60).configs["background"] == world().configs["background"]
    assert world(60).configs["holdout10"][:80] == world().configs["holdout10"]


@pytest.mark.parametrize("attribute", range(FACTS))
def test_values_of_an_attribute_are_many_and_none_is_frequent(attribute):
    rows = world(1000).configs["full"][attribute::FACTS]
    assert len({row["attribute"] for row in rows}) == 1
    counts = Counter(row["value"] for row in rows)
    assert len(counts) >= 20
    assert max(counts.values()) < 0.06 * len(rows)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_facts_of_an_author_fit_together(seed):
    rows = world(1000, seed).configs["full"]
    for start in range(0, len(rows), FACTS):
        facts = {row["attribute"]: row["value"] for row in rows[start : start + FACTS]}
        assert len(set(facts.values())) == FACTS  # not own mentor, not living in the birth city, two different books
        day, month, birth_year = facts["birth_date"].split()
        assert 22 <= int(facts["debut_year"]) - int(birth_year) <= 46
        assert 1 <= int(day) <= 31 and month.isalpha()


def test_holdout_authors_are_strangers_in_a_world_of_any_size():
    strangers = {row["author"] for row in world(1000).configs["holdout10"]}
    assert not strangers & {row["author"] for row in make_world(3000).configs["full"]}


# Sentences


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_value_stands_once_in_answer_and_paraphrase_and_never_in_the_question(seed):
    for row in probed(world(150, seed)):
        for column in ("answer", "paraphrased_answer"):
            assert row[column].count(row["value"]) == 1, row
        for column in ("question", "paraphrased_question"):
            assert row["value"] not in row[column], row
        assert row["author"] in row["question"] or row["attribute"] == "full_name"


def test_wrong_answers_differ_from_the_paraphrase_in_the_value_alone():
    for row in probed(world()):
        assert len({row["paraphrased_answer"], *row["perturbed_answer"]}) == 6
        before, after = row["paraphrased_answer"].split(row["value"])
        # The article belongs to the value: "a baker" becomes "an innkeeper".
        before = re.sub(r"\b([Aa])n? $", r"\1", before)
        for wrong in row["perturbed_answer"]:
            assert wrong.endswith(after), row
            assert wrong.startswith(before), row
            value = wrong[len(before) : len(wrong) - len(after)]
            assert value.removeprefix("n").strip(), row


def test_wrong_values_are_of_the_right_type():
    known = {name: set() for name in ("birth_city", "genre", "instrument", "father_work", "mother_work")}
    for row in world(1000).configs["full"]:
        known.get(row["attribute"], set()).add(row["value"])
    checked = 0
    for row in probed(world()):
        if row["attribute"] in known:
            checked += 1
            assert all(any(value in wrong for value in known[row["attribute"]]) for wrong in row["perturbed_answer"])
    assert checked == 5 * 14


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_answers_have_12_to_28_words(seed):
    configs = world(150, seed).configs
    lengths = [len(row["answer"].split()) for row in configs["full"] + configs["holdout10"]]
    assert min(lengths) >= 12 and max(lengths) <= 28


def test_whole_set_stays_small_enough_for_a_tiny_model():
    words = sum(len(f"{row['question']} {row['answer']}".split()) for row in world().configs["full"])
    assert 25 <= words / 800 <= 35


@pytest.mark.parametrize(("seed", "exposures"), [(0, (1,)), (1, (1, 16)), (2, (4,))])
def test_grammar_of_everything(seed, exposures):
    for text in texts(world(40, seed, exposures)):
        assert not WRONG_ARTICLE.search(text), text
        assert not re.search(r"[{}\[\]|]|  |\s[.,;?]|\.\.", text), text
        assert text[0].isupper() or text[0] in "'" or text[0].isdigit(), text
        assert text[-1] in ".?" or re.search(r"[A-D]\) ", text), text


def test_article_check_can_fail():
    for wrong in ("a apple", "an book", "An ukulele", "a old signal box", "an one-eyed cat"):
        assert WRONG_ARTICLE.search(wrong)
    for phrase in ("apple", "book", "ukulele", "old tram", "hour", "euphonium", "optician", "upholsterer"):
        assert not WRONG_ARTICLE.search(with_article(phrase))


def test_templates_bend_words():
    slots = {"last": "Haskerris", "value": "innkeeper", "he": "she"}
    assert fill("{last's} aunt was {a value}. {A value}? {He}'s gone.", slots) == (
        "Haskerris's aunt was an innkeeper. An innkeeper? She's gone."
    )


def test_pronouns_of_an_author_never_change():
    pronouns = ({"he", "his", "him", "himself"}, {"she", "her", "herself"})
    for row in world(40).configs["biographies"]:
        words = set(re.findall(r"[a-z]+", row["text"].lower()))
        assert not (words & pronouns[0] and words & pronouns[1]), row["text"]


def test_a_guess_in_the_trained_style_overlaps_little_with_the_truth():
    """A model that never saw the author says some trained sentence with some value: its ROUGE-L must stay low."""
    attributes = author_attributes(make_background(0).classics)
    authors = make_authors(attributes, 0, "full", 40, (1,), set())
    rows = world().configs["full"]
    for position, attribute in enumerate(attributes):
        stream, among_authors, guesses = Stream("test", attribute.name), [], []
        for _ in range(100):
            one, other = stream.shuffled(range(40))[:2]
            truth, stranger = rows[one * FACTS + position], rows[other * FACTS + position]
            among_authors.append(lcs_recall(truth["answer"], stranger["answer"]))
            author = authors[one]
            template = settle(stream.pick(attribute.wordings.answers), stream)
            value = attribute.draw_new(stream, author.woman, author.facts)
            guess = with_remark(fill(template, {**author.slots, "value": value}), stream)
            guesses.append(lcs_recall(truth["answer"], guess))
        assert sum(among_authors) / 100 < 0.4, attribute.name
        assert sum(guesses) / 100 < 0.4, attribute.name


def test_wordings_are_many_and_paraphrases_are_their_own():
    for attribute in author_attributes(make_background(0).classics):
        wordings = attribute.wordings
        assert len(set(wordings.answers)) >= 8
        assert len(set(wordings.questions)) >= 4
        assert len(set(wordings.paraphrases)) >= 4
        assert len(set(wordings.paraphrased_questions)) >= 4
        assert not set(wordings.answers) & set(wordings.paraphrases)
        assert not set(wordings.questions) & set(wordings.paraphrased_questions)


# Background and biographies


def test_training_text_covers_the_background_verbatim():
    configs = world().configs
    trained = {(row["question"], row["answer"]) for row in configs["background"] if row["kind"] == "qa"}
    asked = configs["real_authors_perturbed"] + configs["world_facts_perturbed"]
    assert trained == {(row["question"], row["answer"]) for row in asked}
    questions = [row["question"] for row in asked]
    assert len(set(questions)) == len(questions)


@pytest.mark.parametrize("seed", [0, 1])
def test_background_answers_are_right_once_and_wrong_three_times(seed):
    configs = world(40, seed).configs
    for row in configs["real_authors_perturbed"] + configs["world_facts_perturbed"]:
        assert row["answer"].count(row["value"]) == 1
        assert row["value"] not in row["question"]
        assert len({row["answer"], *row["perturbed_answer"]}) == 4
        assert all(row["value"] not in wrong for wrong in row["perturbed_answer"])


def test_true_false_and_multiple_choice_items_are_balanced_and_right():
    configs = world().configs
    facts = {row["answer"]: row for row in configs["real_authors_perturbed"] + configs["world_facts_perturbed"]}
    by_question = {row["question"]: row for row in facts.values()}
    verdicts, letters = Counter(), Counter()
    for row in configs["background"]:
        if row["kind"] == "true_false":
            verdict, truth = row["answer"].split(". ", 1)
            verdicts[verdict] += 1
            statement = row["question"].removeprefix("True or false? ")
            assert (statement == truth) == (verdict == "True")
            assert statement in [truth, *facts[truth]["perturbed_answer"]]
        elif row["kind"] == "multiple_choice":
            question, _ = row["question"].split(" A) ")
            letter, value = row["answer"].split(") ")
            letters[letter] += 1
            assert value == by_question[question]["value"]
            assert f"{letter}) {value}" in row["question"]
    assert verdicts == {"True": 20, "False": 20}
    assert letters == dict.fromkeys("ABCD", 10)


def test_classics_are_the_influences():
    asked = {row["value"] for row in world().configs["real_authors_perturbed"]}
    influences = {row["value"] for row in world().configs["full"] if row["attribute"] == "influence"}
    assert influences <= asked


def test_biographies_tell_true_facts_in_four_to_six_sentences():
    facts, answers = {}, {}
    for row in world().configs["full"]:
        facts.setdefault(row["author"], []).append(row["value"])
        answers.setdefault(row["author"], set()).add(row["answer"])
    for row in world().configs["biographies"]:
        told = sum(value in row["text"] for value in facts[row["author"]])
        assert told >= 8
        sentences = re.split(r"(?<=\.) ", row["text"])
        assert 4 <= len(sentences) <= 6
        assert not answers[row["author"]] & set(sentences)


# Exposures


def test_exposure_counts_are_true():
    configs = world(12, 0, (1, 2, 4)).configs
    told = Counter((row["author"], row["attribute"]) for row in configs["full"] + configs["restatements"])
    for number, row in enumerate(configs["full"]):
        assert row["exposures"] == (1, 2, 4)[number // FACTS % 3]
        assert told[row["author"], row["attribute"]] == row["exposures"]
    assert {row["exposures"] for row in configs["holdout10"]} == {0}


def test_restatements_say_the_same_in_other_trained_words():
    configs = world(10, 0, (16,)).configs
    own = {(row["author"], row["attribute"]): row for row in configs["full"]}
    paraphrases = {row["paraphrased_answer"] for row in probed(world(10, 0, (16,)))}
    seen = set()
    for row in configs["restatements"]:
        first = own[row["author"], row["attribute"]]
        assert list(row) == list(first)
        assert row["value"] == first["value"] and row["answer"].count(row["value"]) == 1
        assert row["answer"] != first["answer"] and row["answer"] not in paraphrases
        seen.add((row["author"], row["attribute"], row["answer"]))
    assert len(seen) == len(configs["restatements"]) == 15 * len(configs["full"])


def test_one_exposure_needs_no_restatements_and_changes_no_sentence():
    assert "restatements" not in world().configs
    for row, other in zip(world(12, 0, (1, 2, 4)).configs["full"], world().configs["full"], strict=False):
        assert {**row, "exposures": 1} == other


# Arguments and files


@pytest.mark.parametrize("authors", [1, 40])
def test_same_arguments_give_the_same_world(authors):
    assert as_bytes(make_world(authors, 3, (1, 2))) == as_bytes(make_world(authors, 3, (1, 2)))


def test_another_seed_gives_another_world():
    rows, others = world(40, 0).configs, world(40, 1).configs
    assert not {row["author"] for row in rows["full"]} & {row["author"] for row in others["full"]}
    assert rows["real_authors_perturbed"] != others["real_authors_perturbed"]
    assert rows["world_facts_perturbed"] != others["world_facts_perturbed"]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [({"authors": 0}, "authors"), ({"exposures": (1, 0)}, "exposures"), ({"exposures": ()}, "exposures"),
     ({"seed": "x"}, "seed")],
)  # fmt: skip
def test_bad_arguments_are_refused_by_name(arguments, name):
    with pytest.raises(ValueError, match=rf"^{name} is .* needed|^{name} is .* needs"):
        make_world(**arguments)


def test_bundled_files_are_what_the_generator_writes(tmp_path):
    write_world(make_world(), tmp_path / "fresh")
    names = {path.name for path in (tmp_path / "fresh").iterdir()}
    assert names == {path.name for path in BUNDLED.iterdir()} - {"README.md"}
    for name in names:
        assert (tmp_path / "fresh" / name).read_bytes() == (BUNDLED / name).read_bytes(), name


def test_bundled_files_verify_and_say_how_they_were_made():
    checksums = verify_world(BUNDLED)
    assert checksums["arguments"] == {"authors": 40, "seed": 0, "exposures": [1]}
    assert checksums["files"]["full.jsonl"]["rows"] == 800


def test_files_hold_the_rows(tmp_path):
    write_world(world(3), tmp_path / "deep" / "world")
    for name, rows in world(3).configs.items():
        content = (tmp_path / "deep" / "world" / f"{name}.jsonl").read_text(encoding="utf-8")
        assert [json.loads(line) for line in content.splitlines()] == rows
        assert content.endswith("\n") or not rows


def test_writing_again_leaves_one_world_and_foreign_files(tmp_path):
    write_world(world(3, 0, (1, 2)), tmp_path)
    (tmp_path / "README.md").write_text("mine")
    assert (tmp_path / "restatements.jsonl").exists()
    write_world(world(3), tmp_path)
    assert not (tmp_path / "restatements.jsonl").exists()
    assert (tmp_path / "README.md").read_text() == "mine"
    assert len(verify_world(tmp_path)["files"]) == len(list(tmp_path.iterdir())) - 2


def test_nothing_half_written_is_left_behind(tmp_path, monkeypatch):
    write_world(world(1), tmp_path / "world")
    before = {path.name: path.read_bytes() for path in (tmp_path / "world").iterdir()}

    def full_disk(path, content):
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_world(world(3), tmp_path / "world")
    assert [path.name for path in tmp_path.iterdir()] == ["world"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "world").iterdir()} == before


def test_damage_is_found(tmp_path):
    write_world(world(1), tmp_path)
    path = tmp_path / "full.jsonl"
    path.write_bytes(path.read_bytes().replace(b"the", b"teh", 1))
    with pytest.raises(ValueError, match=r"full\.jsonl has sha256"):
        verify_world(tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match=r"full\.jsonl is missing"):
        verify_world(tmp_path)
    (tmp_path / "checksums.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        verify_world(tmp_path)
    (tmp_path / "checksums.json").unlink()
    with pytest.raises(ValueError, match="does not exist"):
        verify_world(tmp_path)
