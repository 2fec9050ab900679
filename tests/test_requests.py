"""The record of a request: checks, round trips, identity, and what may be published."""

import dataclasses
import hashlib
import json
import os

import pytest

from llm_unlearn.requests import KnowledgeRequest

FULL = {
    "id": "request-2024.01",
    "statement": "Where Zoë Quandt was born.",
    "exemplars": [{"question": "Where was Zoë Quandt born?", "answer": 'In Ulm: "the\nold town".'}],
    "aliases": ["Zoë Q.", "Z. Quandt"],
    "retention": [{"question": "Where is Ulm?", "answer": "On the Danube."}],
}


def request(**changes):
    return KnowledgeRequest(**{**FULL, **changes})


def test_only_id_and_statement_are_needed():
    bare = KnowledgeRequest("r1", "The recipe of the sauce.")
    assert (bare.exemplars, bare.aliases, bare.retention) == ((), (), ())
    assert KnowledgeRequest.from_json('{"id": "r1", "statement": "The recipe of the sauce."}') == bare


@pytest.mark.parametrize("name", ["r.json", "r.yaml", "deep/r.yml"])
def test_round_trip_through_a_file(tmp_path, name):
    path = request().save(tmp_path / name)
    assert KnowledgeRequest.load(path) == request()
    assert KnowledgeRequest.load(str(path)).hash == request().hash
    assert [child.name for child in path.parent.iterdir()] == [path.name]


def test_round_trip_through_text():
    assert KnowledgeRequest.from_json(request().to_json()) == request()
    assert json.loads(request().to_json()) == FULL


def test_yaml_written_by_hand(tmp_path):
    (tmp_path / "r.yaml").write_text(
        "statement: >\n  Everything about\n  the sauce.\naliases: [the sauce]\nid: r1\nexemplars:\n"
        "- answer: Salt.\n  question: What is in it?\n"
    )
    loaded = KnowledgeRequest.load(tmp_path / "r.yaml")
    assert loaded.statement == "Everything about the sauce.\n"
    assert loaded.exemplars == ({"question": "What is in it?", "answer": "Salt."},)


def test_a_request_does_not_change_after_its_checks():
    example = {"question": "a?", "answer": "b"}
    made = request(exemplars=[example])
    digest = made.hash
    example["answer"] = "c"
    assert made.hash == digest
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.statement = "something else"


def test_hash_is_that_of_the_canonical_json():
    canonical = r'{"exemplars":[{"answer":"B.","question":"\u00c4?"}],"id":"r1","statement":"S."}'
    made = KnowledgeRequest("r1", "S.", exemplars=[{"question": "Ä?", "answer": "B."}])
    assert made.hash == hashlib.sha256(canonical.encode()).hexdigest()


def test_hash_ignores_how_the_request_is_written():
    shuffled = {key: FULL[key] for key in reversed(FULL)}
    shuffled["exemplars"] = [dict(reversed(item.items())) for item in FULL["exemplars"]]
    for text in (json.dumps(shuffled, indent=7), json.dumps(shuffled, ensure_ascii=False, separators=(",", ":"))):
        assert KnowledgeRequest.from_json(text).hash == request().hash
    assert KnowledgeRequest("r1", "S.", aliases=[]).hash == KnowledgeRequest("r1", "S.").hash


@pytest.mark.parametrize(
    "change",
    [
        {"id": "other"},
        {"statement": "Where Zoë Quandt was born"},
        {"exemplars": []},
        {"aliases": ["Z. Quandt", "Zoë Q."]},
        {"exemplars": FULL["retention"], "retention": FULL["exemplars"]},
    ],
)
def test_hash_sees_every_change_of_content(change):
    assert request(**change).hash != request().hash


def test_redacted_holds_no_personal_text():
    public = request().redacted()
    assert public == {
        "id": "request-2024.01",
        "hash": request().hash,
        "exemplars": 1,
        "aliases": 2,
        "retention": 1,
    }
    for secret in ("Zo", "Quandt", "Ulm", "born", "Danube"):
        assert secret not in json.dumps(public, ensure_ascii=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": ""}, "`id` is empty"),
        ({"id": "../up"}, "cannot name a folder"),
        ({"id": "a b"}, "cannot name a folder"),
        ({"id": "x" * 101}, "cannot name a folder"),
        ({"id": 17}, "`id` is 17 of type int.*in quotes"),
        ({"statement": "  "}, "`statement` is empty"),
        ({"statement": None}, "`statement` is empty"),
        ({"aliases": "Zoë"}, "`aliases` is 'Zoë' of type str: give a list"),
        ({"aliases": ["Zoë", ""]}, r"`aliases\[1\]` is empty"),
        ({"exemplars": {"question": "a", "answer": "b"}}, "`exemplars` is .* of type dict: give a list"),
        ({"exemplars": ["a"]}, r"`exemplars\[0\]` is 'a' of type str: give a `question` and an `answer`"),
        ({"exemplars": [{"question": "a"}]}, r"`exemplars\[0\].answer` is empty"),
        ({"retention": [{"question": "a", "answer": 3}]}, r"`retention\[0\].answer` is 3 of type int"),
        (
            {"retention": [{"question": "a", "anwser": "b"}]},
            r"no key of `retention\[0\]` 'anwser'. Did you mean 'answer'",
        ),
        ({"retention": FULL["exemplars"]}, r"`retention\[0\]` is also `exemplars\[0\]`"),
    ],
)
def test_invalid_fields_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        request(**change)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"id": "r1", "statment": "S."}', "no field 'statment'. Did you mean 'statement'"),
        ('{"id": "r1"}', "not a valid request: `statement` is missing"),
        ('["r1"]', "of type list, but it needs the fields id, statement"),
        ('{"id": "r1",\n', "cut or not JSON .*line 2"),
        ("", "cut or not JSON"),
    ],
)
def test_invalid_json_is_explained(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        KnowledgeRequest.from_json(text)
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(ValueError, match=r"r\.json is " + ".*"):
        KnowledgeRequest.load(tmp_path / "r.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id: [r1\n", r"r\.yaml is not YAML \(expected .*\): mend line 2\."),
        ("", r"r\.yaml is not a valid request: it is empty"),
        ("id: 2024-01-31\nstatement: S.\n", "`id` is datetime.date.*in quotes"),
        ("id: !!python/object/apply:os.getcwd []\n", "not YAML .*mend line 1"),
        ("id: r1\nstatement: \x01\n", "not YAML"),
    ],
)
def test_invalid_yaml_is_explained(tmp_path, text, message):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        KnowledgeRequest.load(tmp_path / "r.yaml")


def test_files_of_other_kinds_and_missing_files(tmp_path):
    with pytest.raises(ValueError, match="name a request file .json, .yaml or .yml"):
        request().save(tmp_path / "r.pkl")
    with pytest.raises(ValueError, match="no known kind"):
        KnowledgeRequest.load(tmp_path / "r.txt")
    with pytest.raises(FileNotFoundError, match="no request file .*`--request`"):
        KnowledgeRequest.load(tmp_path / "r.json")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_save_leaves_the_old_request(tmp_path):
    path = request().save(tmp_path / "r.json")
    with pytest.raises(UnicodeEncodeError):
        request(statement="half a character \ud800").save(path)
    assert KnowledgeRequest.load(path) == request()
    assert [child.name for child in tmp_path.iterdir()] == ["r.json"]


def test_save_replaces_the_file_instead_of_writing_into_it(tmp_path):
    path = request().save(tmp_path / "r.json")
    os.link(path, tmp_path / "old.json")
    request(statement="Another.").save(path)
    assert KnowledgeRequest.load(path).statement == "Another."
    assert KnowledgeRequest.load(tmp_path / "old.json") == request()
