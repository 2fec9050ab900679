"""TOFU: loading, fetching whole or not at all, and finding every kind of damage."""

import json
import shutil
from pathlib import Path

import datasets
import pytest

from llm_unlearn.data import tofu
from llm_unlearn.data.tofu import TOFU_CONFIGS, TOFU_ORDER, check_disjoint, checksum, get_tofu, load_tofu, verify_tofu

REAL = Path(__file__).parents[2] / "shared" / "data" / "tofu"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason=f"the real TOFU is not at {REAL}")


def pair(number):
    return {"question": f"Question {number}?", "answer": f"Answer {number}."}


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read_rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A benchmark of three configurations and its facts, with the same checks as the real one."""
    full = [pair(number) for number in range(5)]
    perturbed = [{**row, "perturbed_answer": ["x", "y"], "original_answer": "z"} for row in full[3:]]
    folder = tmp_path / "source"
    sets = {"full": full, "retain90": full[:3], "forget10": full[3:], "forget10_perturbed": perturbed}
    facts = {}
    for name, rows in sets.items():
        write_rows(folder / f"{name}.jsonl", rows)
        columns = TOFU_CONFIGS["world_facts_perturbed" if "perturbed" in name else "full"].columns
        facts[name] = tofu.TofuConfig(len(rows), columns, checksum(rows, columns))
    facts["holdout10"] = tofu.TofuConfig(2, ("question", "answer"))
    monkeypatch.setattr(tofu, "TOFU_CONFIGS", facts)
    return folder


def test_load_drops_the_extra_column_and_takes_slices(small):
    assert load_tofu("forget10[1:]", small).to_list() == [pair(4)]
    perturbed = load_tofu("forget10_perturbed[-1:]", small)
    assert perturbed.to_list() == [{**pair(4), "perturbed_answer": ["x", "y"]}]


def test_load_reads_the_bundled_data_unless_told_otherwise(small, tmp_path, monkeypatch):
    monkeypatch.setattr(tofu, "data_dir", lambda: tmp_path / "bundled")
    write_rows(tmp_path / "bundled" / "tofu" / "forget10.jsonl", [{**pair(9), "author": "A", "exposures": 4}])
    assert load_tofu("forget10").to_list() == [{**pair(9), "author": "A", "exposures": 4}]


def test_load_needs_the_columns_of_the_schema(tmp_path):
    write_rows(tmp_path / "forget10.jsonl", [{"text": "a passage"}])
    write_rows(tmp_path / "retain_perturbed.jsonl", [pair(0)])
    with pytest.raises(ValueError, match="no column `question`, `answer`, only `text`"):
        load_tofu("forget10", tmp_path)
    with pytest.raises(ValueError, match="no column `perturbed_answer`"):
        load_tofu("retain_perturbed[:1]", tmp_path)
    with pytest.raises(ValueError, match="Did you mean 'retain_perturbed'"):
        load_tofu("retain_pertrubed", tmp_path)


def test_get_writes_only_the_columns_in_use_and_says_what_is_absent(small, tmp_path):
    findings = get_tofu(tmp_path / "deep" / "copy", small)
    assert len(findings) == 1 and findings[0].startswith("holdout10 is absent: membership inference on forget10")
    assert sorted(path.name for path in (tmp_path / "deep").rglob("*")) == sorted(
        ["copy", "full.jsonl", "retain90.jsonl", "forget10.jsonl", "forget10_perturbed.jsonl"]
    )
    assert read_rows(tmp_path / "deep/copy/forget10_perturbed.jsonl")[0] == {**pair(3), "perturbed_answer": ["x", "y"]}


def test_get_takes_holdout_sets_where_there_are_some(small, tmp_path):
    write_rows(small / "holdout10.jsonl", [pair(7), pair(8)])
    assert get_tofu(tmp_path / "copy", small) == []
    assert read_rows(tmp_path / "copy/holdout10.jsonl") == [pair(7), pair(8)]


def test_get_fills_an_empty_folder_and_leaves_a_whole_copy_alone(small, tmp_path):
    (tmp_path / "copy").mkdir()
    first = get_tofu(tmp_path / "copy", small)
    stamp = (tmp_path / "copy/full.jsonl").stat().st_mtime_ns
    assert get_tofu(tmp_path / "copy", tmp_path / "nowhere") == first
    assert (tmp_path / "copy/full.jsonl").stat().st_mtime_ns == stamp


def test_get_refuses_a_folder_with_something_else(small, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="mine is not empty and holds something else.*another folder"):
        get_tofu(tmp_path / "mine", small)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("damage", ["a wrong row", "a missing file", "a cut line"])
def test_get_leaves_nothing_behind_when_it_fails(small, tmp_path, damage):
    path = small / "retain90.jsonl"
    if damage == "a wrong row":
        write_rows(path, [pair(0), pair(1), pair(99)])
    elif damage == "a missing file":
        path.unlink()
    else:
        path.write_text(path.read_text()[:-5])
    with pytest.raises(ValueError, match="retain90"):
        get_tofu(tmp_path / "copy", small)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_get_from_nowhere_makes_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError):
        get_tofu(tmp_path / "deep/copy", tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


def test_verify_reports_all_problems_together(small):
    write_rows(small / "retain90.jsonl", [pair(0), pair(2), pair(1)])
    write_rows(small / "full.jsonl", [pair(number) for number in range(4)])
    write_rows(small / "forget10_perturbed.jsonl", [pair(3), pair(4)])
    write_rows(small / "holdout10.jsonl", [pair(7)])
    with pytest.raises(ValueError) as caught:
        verify_tofu(small)
    assert str(caught.value).splitlines()[1:] == [
        "- full has 4 rows instead of 5",
        "- retain90 has other content than the benchmark (checksum)",
        "- forget10_perturbed has no column `perturbed_answer`",
        "- holdout10 has 1 rows instead of 2",
        "- full differs from retain90 + forget10 from row 1 on",
    ]
    assert "`llm-unlearn data get tofu`" in str(caught.value)


def test_checksum_ignores_how_a_file_is_written(tmp_path):
    columns = ("question", "answer")
    expected = checksum([{"question": "Où?", "answer": "Ici."}], columns)
    for line in ('{"answer":"Ici.","question":"O\\u00f9?"}', '{ "question": "Où?" ,  "answer": "Ici.", "more": 1}\r\n'):
        (tmp_path / "rows.jsonl").write_bytes(line.encode())
        assert checksum(load_tofu("rows", tmp_path), columns) == expected


@pytest.mark.parametrize(
    "rows",
    [
        [{"question": "Où?", "answer": "Ici. "}],
        [{"question": "Ici.", "answer": "Où?"}],
        [{"question": "Où?", "answer": "Ici."}] * 2,
    ],
)
def test_checksum_sees_every_change_of_content(rows):
    assert checksum(rows, ("question", "answer")) != checksum(
        [{"question": "Où?", "answer": "Ici."}], ("question", "answer")
    )


def test_every_order_fact_has_the_right_number_of_rows():
    for name, parts in TOFU_ORDER:
        counted = sum(len(range(TOFU_CONFIGS[part].rows)[rows]) for part, rows in parts)
        assert counted == TOFU_CONFIGS[name].rows, name


@needs_real
def test_the_real_benchmark_is_whole():
    assert [finding.split()[0] for finding in verify_tofu(REAL)] == ["holdout10", "holdout05", "holdout01"]


@needs_real
def test_a_damaged_real_copy_is_found(tmp_path):
    copy = tmp_path / "tofu"
    shutil.copytree(REAL, copy, copy_function=shutil.copyfile)
    copy.chmod(0o755)
    forget = read_rows(copy / "forget01.jsonl")
    forget[17], forget[18] = forget[18], forget[17]
    write_rows(copy / "forget01.jsonl", forget)
    wrong = read_rows(copy / "world_facts_perturbed.jsonl")
    wrong[3]["perturbed_answer"].pop()
    write_rows(copy / "world_facts_perturbed.jsonl", wrong)
    (copy / "retain95.jsonl").unlink()
    with (copy / "retain_perturbed.jsonl").open("r+b") as file:
        file.truncate(600_000)
    with pytest.raises(ValueError) as caught:
        verify_tofu(copy)
    problems = [line.split(": Line")[0] for line in str(caught.value).splitlines()[1:]]
    assert problems == [
        "- retain95 is missing",
        "- forget01 has other content than the benchmark (checksum)",
        "- retain_perturbed cannot be read",
        "- world_facts_perturbed has other content than the benchmark (checksum)",
        "- forget01 differs from forget10[360:400] from row 17 on",
        "- forget01_perturbed differs from forget01 from row 17 on",
    ]


@needs_real
def test_get_copies_the_real_benchmark(tmp_path):
    get_tofu(tmp_path / "tofu", REAL)
    assert (tmp_path / "tofu/forget10.jsonl").read_bytes() == (REAL / "forget10.jsonl").read_bytes()
    assert load_tofu("real_authors_perturbed[:1]", REAL).column_names == ["question", "answer", "perturbed_answer"]
    assert [path.name for path in tmp_path.iterdir()] == ["tofu"]


@needs_real
def test_real_forget_and_retain_splits_are_disjoint_only_if_they_fit():
    check_disjoint(load_tofu("forget10", REAL), load_tofu("retain90", REAL))
    with pytest.raises(ValueError, match=r"^200 of the 3800 .* the first is row 3600 .*`--retain_split`"):
        check_disjoint(load_tofu("forget10", REAL), load_tofu("retain95", REAL))


def rows_of(*numbers, **more):
    return datasets.Dataset.from_list([{**pair(number), **more} for number in numbers])


def test_shared_rows_are_found_whatever_else_they_carry():
    check_disjoint(rows_of(1, 2), rows_of(3, 4))
    check_disjoint(rows_of(1, 2), None)
    with pytest.raises(ValueError, match=r"^2 of the 3 rows .* the first is row 1 \('Question 2\?'\)"):
        check_disjoint(rows_of(1, 2, author="A"), rows_of(3, 2, 1))


def test_an_empty_forget_set_is_an_error():
    with pytest.raises(ValueError, match="forget set has no rows.*`--forget_split`"):
        check_disjoint(rows_of(1).select([]), rows_of(2))


def test_forms_that_differ_share_nothing():
    check_disjoint(rows_of(1), datasets.Dataset.from_list([{"text": "Question 1?"}]))
