"""The bundled facts: whole, consistent, and counted as they are written."""

import hashlib
import json
import re

import pytest

from llm_unlearn.paths import data_dir
from llm_unlearn.probes.answers import contains, normalised, recall_of
from llm_unlearn.probes.buckets import make_buckets
from llm_unlearn.probes.cautions import cautions_about_facts
from llm_unlearn.probes.counts import load_counts, read_counts
from llm_unlearn.probes.counts.normalise import normalise_name
from llm_unlearn.probes.facts import read_facts
from llm_unlearn.probes.statements import statement

FOLDER = data_dir() / "facts"
COUNTS, PROXY = FOLDER / "counts_wikipedia_leads.jsonl", FOLDER / "proxy_wordfreq.csv"
FILES = {name: read_facts(FOLDER / f"{name}.jsonl") for name in ("capitals", "books")}
ALL = tuple({fact.id: fact for facts in FILES.values() for fact in facts}.values())


def of_role(name, role):
    return [fact for fact in FILES[name] if fact.role == role]


def test_the_checksums_are_those_of_the_files():
    files = json.loads((FOLDER / "checksums.json").read_text())["files"]
    assert sorted(files) == sorted(path.name for path in FOLDER.iterdir() if path.suffix in (".jsonl", ".csv"))
    for name, told in files.items():
        content = (FOLDER / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == told["sha256"], name
        # The first line of counts says where they come from, that of a table names its columns.
        heads = name.startswith(("counts", "proxy"))
        assert content.count(b"\n") - heads == told["rows"], name


def test_there_are_as_many_facts_as_the_page_says():
    assert {name: len(of_role(name, "forget")) for name in FILES} == {"capitals": 119, "books": 90}
    assert len(of_role("capitals", "neighbour")) == 30
    assert of_role("capitals", "retain") == of_role("books", "retain") and len(of_role("books", "retain")) == 50


@pytest.mark.parametrize(("name", "half"), [("capitals", 2), ("books", 21)])
def test_half_of_a_name_is_said_by_as_many_other_names_as_the_page_says(name, half):
    """Facts of which another fact's object, which is no name of theirs, has at least half of a name."""
    facts = of_role(name, "forget")
    others = {other.object: other.object_names for other in FILES[name] if other.relation == facts[0].relation}
    assert half == sum(
        any(
            recall_of(fact.object_names, said, fact.question) >= 0.5
            for object_, names in others.items()
            if object_ not in fact.object_names
            for said in names
        )
        for fact in facts
    )


def test_every_fact_is_asked_for_as_it_should_be():
    for fact in ALL:
        assert re.fullmatch(r"[a-z0-9-]+", fact.id)
        assert fact.answer == fact.template.format(subject=fact.subject, object=fact.object), fact.id
        questions = [fact.question, *fact.paraphrases]
        assert len(set(questions)) == 3, fact.id
        for question in questions:
            assert contains(question, fact.subject), question
            assert not any(contains(question, name) for name in fact.object_names), question
        if fact.reverse_question:
            assert contains(fact.reverse_question, fact.object), fact.id
            assert not any(contains(fact.reverse_question, name) for name in fact.subject_names), fact.id
        told = statement(fact, fact.object)
        assert contains(told, fact.subject) and contains(told, fact.object) and "{" not in told, fact.id


def test_wrong_objects_are_objects_of_other_facts_and_no_names_of_the_own_one():
    for fact in ALL:
        own = {normalised(name) for name in fact.object_names}
        others = {other.object for other in ALL if other.relation == fact.relation}
        assert len(set(fact.distractors)) >= 4, fact.id
        assert set(fact.distractors) <= others, fact.id
        assert own.isdisjoint(map(normalised, fact.distractors)), fact.id


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("side", ["subject_names", "object_names"])
def test_no_name_stands_for_two_facts_of_a_relation(name, side):
    for relation in {fact.relation for fact in FILES[name]}:
        if side == "object_names" and relation == "continent":
            continue  # which has many countries
        facts = [fact for fact in FILES[name] if fact.relation == relation]
        names = [normalised(one) for fact in facts for one in getattr(fact, side)]
        # A name with and without accents may be one once it is folded, within a fact.
        assert len(set(names)) == len({(fact.id, normalised(n)) for fact in facts for n in getattr(fact, side)})
        assert names


def test_no_name_of_a_place_or_author_is_a_common_word():
    common = {"us", "it", "in", "at", "no", "he", "as", "un", "washington", "delhi", "1984", "congo", "emma"}
    named = [fact for fact in ALL if fact.relation in ("capital", "author", "continent")]
    names = {normalised(name) for fact in named for name in (*fact.subject_names, *fact.object_names)}
    assert names.isdisjoint(common)
    assert all(len(name) > 1 for name in names)


def test_every_fact_has_a_count_and_a_proxy():
    ids = [fact.id for fact in ALL]
    assert sorted(read_counts(COUNTS).ids) == sorted(ids)
    for source in (f"counts:{COUNTS}", f"proxy:{PROXY}"):
        assert load_counts(source, ALL).ids == tuple(ids)


def test_the_counts_are_of_the_names_that_the_facts_have():
    provenance = read_counts(COUNTS).provenance
    names = {normalise_name(name, False) for fact in ALL for name in (*fact.subject_names, *fact.object_names)}
    assert provenance["names"] == len(names), "names were changed: count again (docs/probes.md)"
    assert provenance["window"] == 100 and provenance["documents_scanned"] == 10033
    assert len(provenance["files"][0]["sha256"]) == 64


def test_a_count_is_no_more_than_what_it_is_made_of():
    for count in read_counts(COUNTS).counts.values():
        assert count.n_so <= min(count.n_s, count.n_o)
        assert (count.d_so > 0) >= (count.n_so > 0)


def test_the_capitals_are_fit_to_be_probed_and_the_books_come_with_a_warning():
    said = {}
    for name, facts in FILES.items():
        to_forget = of_role(name, "forget")
        counts = load_counts(f"counts:{COUNTS}", to_forget)
        said[name] = list(cautions_about_facts(facts, counts))
        buckets = make_buckets({fact.id: counts[fact.id].n_so for fact in to_forget})
        assert [bucket.name for bucket in buckets] == ["zero", "low", "medium", "high"]
    assert said["capitals"] == []
    assert [text.partition(" of the facts")[0] for text in said["books"]][:1] == ["32%"]


def test_what_is_met_more_often_has_the_larger_count():
    counts, proxy = read_counts(COUNTS), load_counts(f"proxy:{PROXY}", ALL)
    for common, rare in (("france", "palau"), ("italy", "belize"), ("japan", "bhutan"), ("egypt", "tonga")):
        for numbers in (counts, proxy):
            assert numbers[f"capital-{common}"].n_so > numbers[f"capital-{rare}"].n_so
