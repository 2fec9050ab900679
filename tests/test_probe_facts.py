"""The facts of a file: what is read, and what is refused."""

import json
from dataclasses import replace

import pytest

from llm_unlearn.probes.facts import Fact, read_facts, write_facts

ROW = {
    "id": "fr",
    "subject": "France",
    "object": "Paris",
    "question": "What is the capital of France?",
    "answer": "It is Paris.",
    "subject_aliases": ["French Republic", "France"],
    "object_aliases": [],
    "relation": "capital",
}


def write(path, *rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_facts_are_read_and_written_as_they_are(tmp_path):
    more = ROW | {
        "id": "de",
        "subject": "Deutschland",
        "object_aliases": ["パリ"],
        "paraphrases": ["Which city?"],
        "distractors": ["Rome"],
        "reverse_question": "Whose capital is Paris?",
        "indirect_questions": ["Where is the Louvre?"],
        "role": "retain",
        "template": "{object} is the capital of {subject}.",
        "cluster": "Germany",
    }
    facts = read_facts(write(tmp_path / "a.jsonl", "\ufeff" + json.dumps(ROW), "", more))
    assert facts[0] == Fact(**ROW | {"subject_aliases": ("French Republic", "France"), "object_aliases": ()})
    assert facts[0].role == "forget" and facts[0].paraphrases == () and facts[0].template is None
    assert facts[0].subject_names == ("France", "French Republic") and facts[0].object_names == ("Paris",)
    assert facts[1].distractors == ("Rome",) and facts[1].object_names == ("Paris", "パリ")
    write_facts(tmp_path / "b" / "b.jsonl", facts)
    assert read_facts(tmp_path / "b" / "b.jsonl") == facts
    assert "パリ" in (tmp_path / "b" / "b.jsonl").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"subject_aliases": None}, r"Line 2 .* `subject_aliases` of fact 'x' is None: give a list of texts, \[\] for"),
        ({"object_aliases": "Paname"}, "`object_aliases` of fact 'x' is 'Paname': give a list"),
        ({"paraphrases": ["a", ""]}, "`paraphrases` of fact 'x' is '': give a text that is not empty"),
        ({"subject": " "}, "`subject` of fact 'x' is ' '"),
        ({"id": 3}, "`id` of fact 3 is 3: give a text"),
        ({"reverse_question": ""}, "`reverse_question` of fact 'x' is ''"),
        ({"cluster": " "}, "`cluster` of fact 'x' is ' '"),
        ({"role": "keep"}, "Fact 'x': There is no role 'keep'. Known: forget, neighbour, retain."),
        ({"template": "{subject} is it."}, r"`template` of fact 'x' .* with \{subject\} and \{object\}"),
        ({"distractors": ["Rome", "PARIS"]}, "Fact 'x' has its own object 'PARIS' among its distractors"),
        ({"object_aliases": ["france"]}, "Fact 'x' has 'France' as a name of subject and object"),
        ({"objekt": "Paris"}, "Line 2 .*: There is no key 'objekt'. Did you mean 'object'?"),
        ({"id": "fr"}, "more than one fact with the id 'fr'"),
    ],
)
def test_a_fact_that_cannot_be_asked_is_refused_with_its_line(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_facts(write(tmp_path / "a.jsonl", ROW, ROW | {"id": "x"} | change))


@pytest.mark.parametrize("key", ROW)
def test_every_key_without_a_default_must_be_there(key, tmp_path):
    row = {name: value for name, value in ROW.items() if name != key}
    with pytest.raises(ValueError, match=rf"Line 1 of .*a.jsonl lacks `{key}`: add the key") as caught:
        read_facts(write(tmp_path / "a.jsonl", row))
    assert ("an empty list says" in str(caught.value)) == key.endswith("aliases")


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    with pytest.raises(FileNotFoundError, match="There is no file .*--facts FILE"):
        read_facts(path)
    for content, message in (
        (['{"id": '], r"Line 1 of .* is cut or not JSON \(Expecting value at character 8\)"),
        (["[]"], "Line 1 of .* is a list"),
        ([""], "has no facts"),
    ):
        with pytest.raises(ValueError, match=message):
            read_facts(write(path, *content))
    path.write_bytes(json.dumps(ROW | {"subject": "é"}, ensure_ascii=False).encode("latin-1"))
    with pytest.raises(ValueError, match="is not text in UTF-8"):
        read_facts(path)
    fact = Fact(**ROW | {"subject_aliases": (), "object_aliases": ()})
    with pytest.raises(ValueError, match="more than one fact with the id 'fr'"):
        write_facts(path, [fact, replace(fact, subject="F")])
