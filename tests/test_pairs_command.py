"""`llm-unlearn pairs`, its flags, and its page."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from recipe import save_tiny_model, write_rows
from tiny import tiny_model

from llm_unlearn import cli, pairs
from llm_unlearn.data.tofu import load_tofu
from llm_unlearn.evaluation.outputs import sharding
from llm_unlearn.flags import DataFlags, PairingFlags
from llm_unlearn.pairs import PairsArguments

PAGE = Path(__file__).parents[1] / "docs" / "pairing.md"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"pair_k": 0}, "`--pair_rank` is 0 and `--pair_k` 0"),
        ({"pair_rank": 10}, "`--pair_rank` is 10 and `--pair_k` 10"),
        ({"pair_rank": -1}, "`--pair_rank` is -1"),
        ({"pair_max_overlap": 0}, "`--pair_max_overlap` is 0"),
        ({"pair_text_slice": [100]}, r"`--pair_text_slice` is \[100\]"),
        ({"pair_text_slice": [200, 100]}, r"`--pair_text_slice` is \[200, 100\]"),
        ({"pair_search": "faiss"}, "sparse"),
        ({"pairing": "nearest", "pair_index": "x", "pair_encoder": "bm25"}, "sparse"),
        ({"pair_pool": "x"}, "`--pair_pool` is for neighbours.* add `--pairing nearest`"),
        ({"pair_pool_split": "x"}, "`--pair_pool_split` is for neighbours.* add `--pairing nearest`"),
        ({"pair_index": "x", "pair_encoder": "model"}, "`--pair_index` is for neighbours.* add `--pairing nearest`"),
        ({"pairing": "nearest", "pair_pool": "self", "pair_pool_split": "x"}, "`--pair_pool_split` is 'x'.* no splits"),
    ],
)
def test_flags_that_cannot_be_meant(flags, said):
    with pytest.raises(ValueError, match=said) as raised:
        PairingFlags(**flags)
    assert "\n" not in str(raised.value)


def test_flags_of_a_preset_may_stand_beside_random_pairs():
    """All that a bundled preset has; and all flags together under nearest pairs."""
    PairingFlags("random", pair_k=3, pair_rank=1, pair_rotate=True, pair_max_overlap=8, pair_text_slice=[100, 200])
    PairingFlags("nearest", pair_pool="x", pair_pool_split="y", pair_encoder="model", pair_index="z")


def test_the_slice_of_the_flags():
    assert PairingFlags().text_slice is None
    assert PairingFlags(pair_text_slice=[100, 200]).text_slice == (100, 200)


def command(monkeypatch, *arguments):
    """Run `llm-unlearn pairs ARGUMENTS` in this process; returns its exit code or the message on stderr."""
    monkeypatch.setattr(sys, "argv", ["llm-unlearn", "pairs", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return stopped.value.code


def test_the_command_shows_pairs_and_writes_all(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("COLUMNS", "120")
    flags = ["--forget_split", "forget01", "--retain_split", "retain90[0:200]", "--rows", 2, "--pair_max_overlap", 8]
    assert command(monkeypatch, *flags, "--output_file", tmp_path / "pairs.json") == 0
    output = capsys.readouterr().out
    for column in ("forget text", "partner", "score", "longest run", "10-grams"):
        assert column in output
    assert re.search(r"20 pairs with \d+ distinct partners\. Longest common run: median [\d.]+ tokens", output)
    written = json.loads((tmp_path / "pairs.json").read_text())
    assert written["settings"]["pair_max_overlap"] == 8 and written["settings"]["pairing"] == "nearest"
    assert len(written["pairs"]) == written["summary"]["pairs"] == 20
    assert written["summary"]["skipped_neighbours"] == sum(len(pair["skipped"]) for pair in written["pairs"]) > 0
    retain, first = load_tofu("retain90"), written["pairs"][0]["partners"][0]
    assert first["text"] == f"{retain[first['row']]['question']}\n{retain[first['row']]['answer']}"
    assert first.keys() == {"row", "text", "score", "longest_run", "shared_10grams"}


def test_the_command_with_a_model_a_pool_and_an_index(monkeypatch, capsys, tmp_path):
    model = save_tiny_model(tmp_path / "model")
    forget = write_rows(tmp_path / "forget.jsonl", [{"q": "Where was Ada born?", "a": "Ada was born in Arlen"}])
    pool = write_rows(tmp_path / "pool.jsonl", [{"text": f"{name} was born in [Brisk]"} for name in ("Bela", "Cato")])
    flags = ["--model", model, "--dataset", forget, "--question_column", "q", "--answer_column", "a"]
    flags += ["--forget_split", "train", "--pair_pool", pool, "--pair_encoder", "model", "--pair_rotate"]
    flags += ["--pair_index", tmp_path / "index"]
    assert command(monkeypatch, *flags) == 0
    assert command(monkeypatch, *flags) == 0
    assert "1 pairs with 1 distinct" in capsys.readouterr().out
    assert (tmp_path / "index" / "index.json").is_file()


@pytest.mark.parametrize("quantised", [False, True])
def test_a_model_encodes_where_this_process_runs_and_a_quantised_one_is_left_where_it_is(
    quantised, monkeypatch, tmp_path
):
    """On a device that every machine has: one without memory."""
    source, model = str(save_tiny_model(tmp_path)), tiny_model()
    if quantised:
        model.config.quantization_config = {"load_in_4bit": True}
    monkeypatch.setattr("llm_unlearn.models.load_model", lambda _: model)
    monkeypatch.setattr(sharding, "process_state", lambda: SimpleNamespace(device=torch.device("meta")))
    loaded, _ = pairs._load(source, "model")
    assert {weight.device.type for weight in loaded.parameters()} == {"cpu" if quantised else "meta"}
    assert pairs._load(source, "tfidf")[0] is None


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--pair_pool", "self"], "sampled from the model when a run starts"),
        (["--pair_encoder", "model"], "add `--model`"),
        (["--pair_rank", 12], "`--pair_rank` is 12"),
        (["--forget_split", "forget11"], "Did you mean"),
        (["--pairing", "random", "--pair_pool", "x"], "add `--pairing nearest`"),
        (["--pair_pool", "/nowhere"], "no file or folder /nowhere"),
        (["--output_file", "{tmp}"], "is a folder"),
        (["--retain_split", "forget10"], "All 80 texts of the pool are forget texts"),
        (["--model", "/nowhere"], "/nowhere is no model folder"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_mistake_at_the_command_ends_in_one_sentence(flags, said, monkeypatch, tmp_path):
    message = command(monkeypatch, *(str(flag).replace("{tmp}", str(tmp_path)) for flag in flags))
    assert isinstance(message, str) and message.startswith("error: ") and said in message
    assert "\n" not in message and list(tmp_path.iterdir()) == []


def test_help_lists_all_flags_and_loads_no_torch():
    code = (
        "import sys; from llm_unlearn.cli import main; sys.argv = ['llm-unlearn', 'pairs', '--help']\n"
        "try: main()\nfinally: print('HEAVY', {'torch', 'datasets', 'peft', 'sklearn'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "HEAVY set()"
    assert flags_of_the_command() <= set(re.findall(r"--(\w+)", done.stdout))


def flags_of_the_command():
    kinds = (PairsArguments, DataFlags, PairingFlags)
    return {field.name for kind in kinds for field in dataclasses.fields(kind)}


def test_the_page_knows_every_flag_of_pairing_and_no_other():
    text = PAGE.read_text(encoding="utf-8")
    mentioned = set(re.findall(r"--(\w+)", text))
    assert {field.name for field in dataclasses.fields(PairingFlags)} <= mentioned
    assert mentioned <= flags_of_the_command() | {"config", "output_dir", "help"}
