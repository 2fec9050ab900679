"""The retain rows beside the forget rows: what is recorded of them, and that all processes have the same."""

import json
from pathlib import Path

import pytest
from datasets import Dataset
from recipe import run_on_two_processes
from scripts.sharded_partners import N_FORGET, N_POOL, cases, find, write_pools
from tiny import tiny_rows, tiny_tokenizer

from llm_unlearn.data.tokenization import ExampleTokenizer
from llm_unlearn.flags import DataFlags, PairingFlags
from llm_unlearn.partners import find_partners
from llm_unlearn.paths import public_name

HERE = Path(__file__).parent
TOKENIZE = ExampleTokenizer(tiny_tokenizer())


def text_rows(*texts):
    return Dataset.from_list([{"text": text} for text in texts])


@pytest.fixture
def pool(tmp_path):
    """Of its texts the third has the words of the first forget text, the first some of the second's."""
    path = tmp_path / "of_jane_doe" / "pool.jsonl"
    path.parent.mkdir()
    rows = ["Bela was born in Arlen", "a quiet street", "Ada was a famous poet", "the old mill"]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    return path


def test_rows_are_those_that_somebody_meets(pool):
    forget = text_rows("Ada was a famous judge", "Cato was born in Arlen", "a famous poet")
    found = find_partners(
        PairingFlags("nearest", pair_pool=str(pool)), DataFlags(), forget, "unused", TOKENIZE, progress=False
    )
    assert found.rows["text"][:] == ["Bela was born in Arlen", "Ada was a famous poet"]
    assert found.of == [[1], [0], [1]]
    assert (found.record["rows"], found.record["pool_rows"], found.record["distinct_partners"]) == (2, 4, 2)
    assert found.summary.startswith("3 pairs with 2 distinct partners.")


def test_the_record_names_no_folder_of_this_machine(pool, monkeypatch):
    encoder = pool.parent / "encoder"
    encoder.mkdir()
    monkeypatch.setattr("llm_unlearn.partners.pair_texts", pair_by_tfidf)
    pairing = PairingFlags("nearest", pair_pool=str(pool), pair_encoder=str(encoder))
    record = find_partners(pairing, DataFlags(), text_rows("Ada was born"), "unused", TOKENIZE, progress=False).record
    assert (record["pool"], record["encoder"]) == ("pool.jsonl", "encoder")
    assert "jane" not in json.dumps(record)


def pair_by_tfidf(forget, pool, _pairing, *rest):
    from llm_unlearn.pairs import pair_texts

    return pair_texts(forget, pool, PairingFlags("nearest"), *rest)


def test_public_names(tmp_path, monkeypatch):
    (tmp_path / "home" / "corpus").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "home")
    for local in (
        str(tmp_path / "home" / "corpus"),
        "corpus",
        "./corpus/",
        "~/corpus",
        "../home/corpus",
        "corpus/../corpus",
    ):
        assert public_name(local) == "corpus"
    monkeypatch.chdir(tmp_path / "home" / "corpus")
    assert public_name(".") == "corpus" and public_name("..") == "home"
    # A path may be gone by the time its name is asked for.
    assert public_name("/home/jane/gone.jsonl") == public_name("~/jane/gone.jsonl") == "gone.jsonl"
    for hub_id in ("locuslab/TOFU", "sentence-transformers/all-MiniLM-L6-v2", "tfidf", "self"):
        assert public_name(hub_id) == hub_id


# Two processes.


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """What each of two processes found, in one launch: starting up takes longer than all searches."""
    out = tmp_path_factory.mktemp("two_processes")
    write_pools(out / "data")
    run_on_two_processes(HERE / "scripts" / "sharded_partners.py", out)
    ranks = [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert [rank["processes"] for rank in ranks] == [2, 2]
    return out / "data", ranks


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one_process") / "data"
    write_pools(folder)
    return lambda name, rank=0: find(name, cases(folder)[name], rank)


@pytest.mark.parametrize("name", ["tfidf", "index", "index_again", "self"])
def test_all_processes_have_the_partners_of_one(name, two_processes, one_process):
    _, ranks = two_processes
    expected = one_process(name)
    assert len(expected["of"]) == N_FORGET
    assert ranks[0][name] == expected
    assert ranks[1][name] == expected
    if name != "self":
        assert all(row in tiny_rows(N_POOL, first=30) for row in expected["rows"])


def test_the_second_process_alone_would_have_found_others(one_process, tmp_path):
    """Else the test above could not fail."""
    write_pools(tmp_path / "data")
    alone = find("index", cases(tmp_path / "data")["index"], rank=1)
    assert alone["of"] != one_process("index")["of"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no_pool", "no file or folder"),
        ("forget_texts", f"All {N_FORGET} texts of the pool are forget texts"),
        ("no_index", "is not empty and holds no index of encodings: name another `--pair_index`"),
    ],
)
def test_an_error_ends_all_processes_with_the_same_sentence(name, said, two_processes):
    _, ranks = two_processes
    assert said in ranks[0][name]["error"] and "\n" not in ranks[0][name]["error"]
    assert ranks[1][name] == ranks[0][name]


def test_one_index_is_written_whole(two_processes):
    folder, _ = two_processes
    assert sorted(path.name for path in (folder / "index").iterdir()) == ["index.json", "rows-00000.safetensors"]
    assert json.loads((folder / "index" / "index.json").read_text())["rows"] == N_POOL
