"""Rows from files, folders and the hub: what is accepted, and what the errors say."""

import csv
import gzip
import json
import subprocess
import sys

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from llm_unlearn import paths
from llm_unlearn.data import sources
from llm_unlearn.data.sources import form_of, list_splits, load_rows, map_columns

ROWS = [{"question": f"Who is {i}?", "answer": f'Nobody\u2028knows {i}, "really".'} for i in range(6)]


def json_lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write(path, rows=ROWS):
    """Write rows in the kind of file that the name asks for."""
    if path.name.endswith(".jsonl"):
        path.write_text(json_lines(rows), encoding="utf-8")
    elif path.name.endswith(".jsonl.gz"):
        path.write_bytes(gzip.compress(json_lines(rows).encode()))
    elif path.name.endswith(".json"):
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    elif path.name.endswith(".csv"):
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "forget10.jsonl")
    write(tmp_path / "retain90.jsonl", ROWS[::-1])
    return tmp_path


@pytest.fixture
def hub(monkeypatch):
    """Stand in for the hub, with two data sets: one of two configurations, one of two splits."""
    data = {
        "locuslab/TOFU": {"forget10": {"train": ROWS}, "retain90": {"train": ROWS[::-1]}},
        "me/mine": {"default": {"train": ROWS, "test": ROWS[:2]}},
    }

    def load_dataset(source, config, split):
        if config not in data[source]:
            raise ValueError(f"BuilderConfig '{config}' not found. Available: {list(data[source])}")
        return datasets.Dataset.from_list(data[source][config][split])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda source: list(data[source]))
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda source, config: list(data[source][config]))


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".json", ".csv", ".parquet"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path, ending):
    path = write(tmp_path / f"facts{ending}")
    assert load_rows(None, path).to_list() == ROWS
    assert load_rows("facts", tmp_path).to_list() == ROWS
    assert list_splits(tmp_path) == ["facts"]
    assert list_splits(path) == ["train"]


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("forget10", ROWS),
        ("forget10[1:3]", ROWS[1:3]),
        ("forget10[:2]", ROWS[:2]),
        ("forget10[-2:]", ROWS[-2:]),
        ("forget10[2:-1]", ROWS[2:-1]),
        ("forget10[4:99]", ROWS[4:]),
        ("forget10[:]", ROWS),
    ],
)
def test_row_slices_are_those_of_python(folder, split, expected):
    assert load_rows(split, folder).to_list() == expected


def test_a_file_has_the_split_train(folder):
    path = folder / "forget10.jsonl"
    assert load_rows("train[:2]", path).to_list() == load_rows("[:2]", str(path)).to_list() == ROWS[:2]
    with pytest.raises(ValueError, match="one split, `train`.*'forget10'.*the folder as the source"):
        load_rows("forget10", path)


@pytest.mark.parametrize(
    "split", ["forget10[0:4:2]", "forget10[3]", "forget10[10%:]", "forget10[1:2", "forget10[1:2]x"]
)
def test_other_slices_are_errors(folder, split):
    with pytest.raises(ValueError, match=r"retain90\[0:160\]"):
        load_rows(split, folder)


@pytest.mark.parametrize("split", ["forget10[3:3]", "forget10[6:]"])
def test_a_slice_without_rows_is_an_error(folder, split):
    with pytest.raises(ValueError, match=r"has no rows \(6 before the slice\)"):
        load_rows(split, folder)


def test_a_missing_split_names_those_there_are(folder):
    with pytest.raises(ValueError, match="There is no split 'forget1'. Did you mean 'forget10'.*: forget10, retain90"):
        load_rows("forget1", folder)
    with pytest.raises(ValueError, match="none was named.*`forget10`, `retain90`"):
        load_rows(None, folder)
    with pytest.raises(ValueError, match="has no splits: .*`.jsonl`"):
        (folder / "empty").mkdir()
        load_rows("forget10", folder / "empty")


def test_two_files_of_one_split_are_an_error(folder):
    write(folder / "forget10.csv")
    with pytest.raises(ValueError, match=r"any of `forget10.csv`, `forget10.jsonl`"):
        load_rows("forget10", folder)
    assert len(load_rows("retain90", folder)) == 6


@pytest.mark.parametrize("source", ["./nowhere", "../nowhere", "/nowhere/at/all", "~/nowhere-at-all", "nowhere.jsonl"])
def test_what_looks_like_a_path_is_never_asked_of_the_hub(monkeypatch, source):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("asked the hub"))
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda *_: pytest.fail("asked the hub"))
    with pytest.raises(FileNotFoundError, match="no file or folder .*nowhere"):
        load_rows("forget10", source)
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        list_splits(source)


def test_a_local_folder_wins_over_a_hub_id(folder, monkeypatch):
    (folder / "locuslab").mkdir()
    folder.joinpath("locuslab/TOFU").mkdir()
    write(folder / "locuslab/TOFU/forget10.jsonl", ROWS[:1])
    monkeypatch.chdir(folder)
    assert load_rows("forget10", "locuslab/TOFU").to_list() == ROWS[:1]


def test_a_cut_line_is_named(tmp_path):
    path = write(tmp_path / "facts.jsonl")
    path.write_text(path.read_text(encoding="utf-8")[:-20], encoding="utf-8")
    with pytest.raises(ValueError, match=r"Line 6 of .*facts\.jsonl is cut or not JSON"):
        load_rows("facts", tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n\n["y"]\n', "Line 3 of .*a.jsonl is a list"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\xff"}\n', "not text in UTF-8"),
        ("a.jsonl", b'{"text": "x"}\n{"text": 3}\n', "values of different kinds"),
        ("a.jsonl", b"", "has no rows"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "x"}\n' * 99, mtime=0)[:-9], "not a whole gzip file"),
        ("a.jsonl.gz", b'{"text": "x"}\n', "not a whole gzip file"),
        ("a.json", b'{"text": "x"}', "not a list of objects"),
        ("a.json", b'{"text": "x"}\n{"text": "y"}\n', r"Line 2 of .*\.jsonl if it holds one object per line"),
        ("a.csv", b"question,answer\nwho,me\nwho,me,you\n", "Line 3 of .*has not the 2 fields"),
        ("a.csv", b"question,answer\nwho\n", "Line 2 of .*has not the 2 fields"),
        ("a.csv", b'question,answer\nwho,"me\n', "not CSV after line 1"),
        ("a.parquet", b"PAR1 and then nothing", "not a parquet file"),
        ("a.txt", b"x", "is of no known kind: .*`.jsonl`"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_rows(None, tmp_path / name)


def test_columns_that_appear_late_are_kept(tmp_path):
    path = write(tmp_path / "facts.jsonl", [ROWS[0], {**ROWS[1], "author": "A"}])
    assert load_rows(None, path)["author"][:] == [None, "A"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("facts.csv", "question,answer\r\nwho,me\r\n"),
        ("facts.jsonl", '{"question": "who", "answer": "me"}\r\n'),
        ("facts.json", '[{"question": "who", "answer": "me"}]'),
    ],
)
def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path, name, content):
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content.encode())
    assert load_rows(None, tmp_path / name).to_list() == [{"question": "who", "answer": "me"}]


def test_hub_configurations_and_splits(hub):
    assert load_rows("forget10[:2]", "locuslab/TOFU").to_list() == ROWS[:2]
    assert load_rows("retain90", "locuslab/TOFU").to_list() == ROWS[::-1]
    assert load_rows("test", "me/mine").to_list() == ROWS[:2]
    assert list_splits("locuslab/TOFU") == ["forget10", "retain90"]
    assert list_splits("me/mine") == ["train", "test"]
    with pytest.raises(ValueError, match="Did you mean 'forget10'.*forget10, retain90"):
        load_rows("forgt10", "locuslab/TOFU")
    with pytest.raises(ValueError, match="me/mine: There is no split 'validation'. Known: test, train"):
        load_rows("validation", "me/mine")


@pytest.mark.parametrize("error", [ConnectionError("Couldn't reach\nit"), RuntimeError("scripts are not supported")])
def test_an_unreachable_hub_is_one_sentence(monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    monkeypatch.setattr(datasets, "get_dataset_config_names", fail)
    with pytest.raises(FileNotFoundError, match="`llm-unlearn data get tofu`") as caught:
        load_rows("forget10", "locuslab/TOFU")
    assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="me/mine is no local path.*check the id") as caught:
        load_rows("forget10", "me/mine")
    assert "tofu" not in str(caught.value)
    with pytest.raises(FileNotFoundError):
        list_splits("me/mine")


@pytest.mark.parametrize(
    ("columns", "form"),
    [
        (["answer", "question", "author"], "question_answer"),
        (["prompt", "completion"], "prompt_completion"),
        (["messages", "prompt"], "messages"),
        (["text"], "text"),
        (["text", "answer", "question"], "question_answer"),
        ({"text": "an example will do"}, "text"),
    ],
)
def test_form_of(columns, form):
    assert form_of(columns) == form


def test_columns_of_no_form_name_the_flags():
    with pytest.raises(ValueError, match="`question`, `reply`.*--question_column Q --answer_column A") as caught:
        form_of(["question", "reply"])
    for flag in ("--prompt_column", "--completion_column", "--messages_column", "--text_column"):
        assert flag in str(caught.value)


def dataset(**columns):
    return datasets.Dataset.from_dict(columns)


def test_named_columns_take_their_roles():
    rows = dataset(q=["who?"], reply=["me"], author=["A"])
    mapped = map_columns(rows, {"question": "q", "answer": "reply"})
    assert mapped.to_list() == [{"question": "who?", "answer": "me", "author": "A"}]


def test_a_role_that_is_not_named_is_its_own_column():
    rows = dataset(question=["who?"], paraphrased_question=["whom?"], answer=["me"])
    mapped = map_columns(rows, {"question": "paraphrased_question"})
    assert mapped.to_list() == [{"question": "whom?", "answer": "me"}]


def test_columns_can_change_places():
    rows = dataset(question=["me"], answer=["who?"])
    mapped = map_columns(rows, {"question": "answer", "answer": "question"})
    assert mapped.to_list() == [{"question": "who?", "answer": "me"}]


def test_the_named_form_is_the_one_that_is_used():
    mapped = map_columns(dataset(question=["q"], answer=["a"], bio=["b"]), {"text": "bio"})
    assert form_of(mapped.column_names) == "text"
    assert mapped["text"][:] == ["b"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"question": "qu", "answer": "a"},
            "no column 'qu'. Did you mean 'que'.*: a, que. Give `--question_column`",
        ),
        ({"question": "que"}, "no column 'answer'.*--answer_column"),
        ({"question": "a", "answer": "a"}, "cannot be both `question`, `answer`"),
        ({"qestion": "que"}, "no role of a column 'qestion'. Did you mean 'question'"),
        ({"question": "que", "completion": "a"}, "belong to different forms"),
    ],
)
def test_columns_that_cannot_be_mapped(columns, message):
    with pytest.raises(ValueError, match=message):
        map_columns(dataset(que=["q"], a=["a"]), columns)


def test_rows_must_hold_text():
    for value, problem in ((None, "nothing"), (" \n", "empty text")):
        with pytest.raises(ValueError, match=f"Row 1 has {problem} in column `answer`"):
            map_columns(dataset(question=["a", "b"], answer=["c", value]))
    with pytest.raises(ValueError, match="Row 0 has a value of type int instead of text in column `text`"):
        map_columns(dataset(text=[1]))
    with pytest.raises(ValueError, match="has no rows"):
        map_columns(dataset(question=[], answer=[]))


def test_only_a_prompt_may_be_empty():
    assert len(map_columns(dataset(prompt=[""], completion=["a"]))) == 1
    with pytest.raises(ValueError, match="column `completion`"):
        map_columns(dataset(prompt=["a"], completion=[""]))


def test_messages_are_roles_and_contents():
    good = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    assert map_columns(dataset(chat=[good]), {"messages": "chat"})["messages"][:] == [good]
    for bad in ([], [{"role": "user"}], [{"from": "user", "value": "q"}], "q"):
        with pytest.raises(ValueError, match="messages"):
            map_columns(dataset(messages=[bad]))


def test_importing_the_loaders_imports_nothing_heavy():
    code = (
        "import sys, llm_unlearn.data.sources, llm_unlearn.data.tofu, llm_unlearn.requests\n"
        "print([name for name in ('torch', 'datasets', 'transformers', 'pyarrow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_local_files_leave_nothing_in_a_cache(folder, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("wrote a cache"))
    before = sorted(folder.rglob("*"))
    assert load_rows("forget10[:3]", folder).cache_files == []
    assert sorted(folder.rglob("*")) == before


def test_bundled_folders_in_wheel_checkout_and_neither(tmp_path, monkeypatch):
    package = tmp_path / "llm_unlearn"
    package.mkdir()
    monkeypatch.setattr(paths, "_PACKAGE", package)
    (tmp_path / "data").mkdir()
    with pytest.raises(FileNotFoundError, match="_data"):
        paths.data_dir()
    (tmp_path / "pyproject.toml").touch()
    assert paths.data_dir() == tmp_path / "data"
    with pytest.raises(FileNotFoundError, match="recipes"):
        paths.recipes_dir()
    (package / "_data").mkdir()
    (package / "_recipes").mkdir()
    assert paths.data_dir() == package / "_data"
    assert paths.recipes_dir() == package / "_recipes"


def test_every_role_belongs_to_one_form():
    roles = [role for form in sources.EXAMPLE_FORMS.values() for role in form]
    assert len(roles) == len(set(roles))
