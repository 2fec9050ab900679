"""`eval/lm_harness.py` on base, adapter and merged model, with a task of our own; without the network."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from recipe import run_on_two_processes, save_tiny_model
from transformers import AutoConfig, AutoModelForCausalLM

from llm_unlearn.adapters import attach_adapter, lora_config, merge_adapter, save_adapter
from llm_unlearn.data.tokenization import ExampleTokenizer
from llm_unlearn.evaluation.outputs.scoring import Branches, score
from llm_unlearn.models import load_model, load_tokenizer
from llm_unlearn.paths import data_dir, eval_dir

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = eval_dir() / "lm_harness.py"
TARGET = data_dir() / "testbed" / "target"
OWN_TASK = ["--include_path", "tests/lm_tasks", "--tasks", "world_authors", "--apply_chat_template"]
ROWS = [
    json.loads(line)
    for line in (data_dir() / "tofu" / "real_authors_perturbed.jsonl").read_text(encoding="utf-8").splitlines()
]


@pytest.fixture(autouse=True)
def in_checkout(monkeypatch):
    """Where the task's file says its data are."""
    monkeypatch.chdir(ROOT)


def run_harness(model, out, *flags):
    """The results of the script in this process: its record, and its rows by metric."""
    with pytest.MonkeyPatch.context() as patch:
        command = ["lm_harness.py", "--model", model, "--output_dir", out, *(flags or OWN_TASK)]
        patch.setattr(sys, "argv", [*map(str, command)])
        patch.setenv("ACCELERATE_USE_CPU", "true")
        runpy.run_path(str(SCRIPT), run_name="__main__")
    record = json.loads((out / "lm_harness.json").read_text(encoding="utf-8"))
    return record, {row["metric"]: row for row in record["results"]}


def refused(model, out, *flags):
    """The one sentence in which the script refuses to run."""
    with pytest.raises(SystemExit) as stopped:
        run_harness(model, out, *flags)
    message = stopped.value.code
    assert isinstance(message, str) and message.startswith("error: ") and "\n" not in message
    assert not out.exists()
    return message


def save_layer(source, folder, noise):
    """An adapter on `source` whose second matrices are noise of this size; 0 is a fresh adapter, which adds nothing."""
    model = attach_adapter(load_model(source, torch.float32), lora_config(r=4, lora_alpha=8), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B.default" in name:
                weight.normal_(0, noise, generator=generator)
    save_adapter(model, folder, {"method": "noise", "base": {"source": str(source)}}, "# card")
    return folder


def own_accuracies(model, tokenizer):
    """Accuracy and length-normalised accuracy from our own scoring pass, without the end token, which lm-eval omits."""
    tokenize = ExampleTokenizer(tokenizer)
    questions, choices = [], []
    for row in ROWS:
        choices.append([row["answer"], *row["perturbed_answer"]])
        items = [tokenize({"question": row["question"], "answer": choice}, 0) for choice in choices[-1]]
        questions.append(Branches(items[0].prompt_ids, [item.answer_ids for item in items]))
    right = []
    for texts, scores in zip(choices, score(model, questions, progress=False), strict=True):
        sums = np.array([answer.logprobs[:-1].sum(dtype=np.float64) for answer in scores])
        right.append([sums.argmax() == 0, (sums / [len(text) for text in texts]).argmax() == 0])
    return np.mean(right, axis=0)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    return save_layer(TARGET, tmp_path_factory.mktemp("noise") / "adapter", noise=0.7)


@pytest.fixture(scope="module")
def compared(adapter, tmp_path_factory):
    out = tmp_path_factory.mktemp("compared") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return run_harness(adapter, out, *OWN_TASK, "--compare_base", "True"), out


def test_the_testbed_knows_its_world_and_a_random_model_does_not(tmp_path):
    record, target = run_harness(TARGET, tmp_path / "target")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(TARGET)).save_pretrained(tmp_path / "random")
    load_tokenizer(TARGET).save_pretrained(tmp_path / "random")
    _, random = run_harness(tmp_path / "random", tmp_path / "out")
    assert target["acc"]["value"] > 0.9
    # Chance is 15 of 60, with a standard deviation of 3.4.
    assert random["acc"]["value"] < 0.45
    assert target["acc"]["n"] == random["acc"]["n"] == 60
    assert target["acc"]["base"] is None and target["acc"]["difference"] is None
    assert record["provenance"]["kind"] == "model"
    assert record["provenance"]["versions"]["lm-eval"]


@pytest.mark.parametrize("which", ["target", "adapter"])
def test_accuracies_are_those_of_our_own_scoring(which, adapter, compared):
    (_, rows), _ = compared
    model = load_model(TARGET if which == "target" else adapter, torch.float32)
    expected = own_accuracies(model, load_tokenizer(TARGET))
    found = [row["base"] if which == "target" else row for row in (rows["acc"], rows["acc_norm"])]
    assert [row["value"] for row in found] == pytest.approx(expected.tolist(), abs=1e-12)
    for row in found:
        # The standard error of a mean of 60 values of 0 and 1.
        assert row["stderr"] == pytest.approx(np.sqrt(row["value"] * (1 - row["value"]) / 59), abs=1e-12)


def test_base_and_adapter_stand_side_by_side(compared):
    (record, rows), out = compared
    accuracy = rows["acc"]
    assert accuracy["base"]["value"] > 0.9
    assert 0.5 < accuracy["value"] < 0.9
    assert accuracy["difference"] == pytest.approx(accuracy["value"] - accuracy["base"]["value"])
    assert record["provenance"]["kind"] == "adapter"
    assert record["provenance"]["base"] == [str(TARGET)]
    page = (out / "lm_harness.md").read_text(encoding="utf-8")
    assert "| task | metric | base | adapter | difference | n |" in page
    assert f"| world_authors | acc ↑ | {accuracy['base']['value']:.4f} ± " in page
    assert f" | {accuracy['value']:.4f} ± {accuracy['stderr']:.4f} | {accuracy['difference']:+.4f} | 60 |" in page
    assert sorted(path.name for path in out.iterdir()) == ["lm_harness.json", "lm_harness.md"]


def test_adapter_and_merged_model_agree(adapter, compared, tmp_path):
    merge_adapter(load_model(adapter, torch.float32), tmp_path / "merged", load_tokenizer(TARGET))
    _, merged = run_harness(tmp_path / "merged", tmp_path / "out")
    (_, rows), _ = compared
    for metric, row in merged.items():
        assert row["value"] == rows[metric]["value"]
        assert row["stderr"] == rows[metric]["stderr"]


def test_the_base_of_stacked_adapters_keeps_the_first(adapter, compared, tmp_path):
    """A fresh adapter adds nothing, so it and its base, target plus first adapter, are one model."""
    second = save_layer(adapter, tmp_path / "second", noise=0.0)
    _, stacked = run_harness(second, tmp_path / "out", *OWN_TASK, "--compare_base", "True")
    (_, rows), _ = compared
    for metric, row in stacked.items():
        assert row["value"] == row["base"]["value"] == rows[metric]["value"]
        assert row["difference"] == 0


def test_two_processes_share_the_documents(adapter, compared, tmp_path):
    done = run_on_two_processes(SCRIPT, "--model", adapter, "--output_dir", tmp_path / "out", *OWN_TASK)
    assert done.stdout.count("General ability") == 1
    # The first process's progress: half of 60 documents with 4 choices.
    assert "120/120" in done.stderr and "240/240" not in done.stderr
    record = json.loads((tmp_path / "out" / "lm_harness.json").read_text(encoding="utf-8"))
    assert record["provenance"]["num_processes"] == 2
    (_, rows), _ = compared
    for row in record["results"]:
        assert (row["value"], row["n"]) == (rows[row["metric"]]["value"], 60)


def test_fewer_documents_and_other_batches(tmp_path):
    flags = [*OWN_TASK, "--limit", "7", "--batch_size", "3", "--num_fewshot", "0"]
    record, rows = run_harness(TARGET, tmp_path / "out", *flags)
    assert rows["acc"]["n"] == 7
    assert record["provenance"]["limit"] == 7
    assert "`--limit 7`" in (tmp_path / "out" / "lm_harness.md").read_text(encoding="utf-8")


def test_help_appears_without_lm_eval_and_without_torch():
    code = (
        f"import runpy, sys; sys.argv = ['lm_harness.py', '--help']; sys.modules['lm_eval'] = None\n"
        f"try: runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
        "except SystemExit as stop: assert not stop.code\n"
        "assert not {'torch', 'accelerate', 'datasets'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "--compare_base" in done.stdout


def test_without_lm_eval_it_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert "pip install 'llm-unlearn[lm-eval]'" in refused(TARGET, tmp_path / "out")


BROKEN = "task: broken\ndataset_path: json\ndataset_kwargs: {data_files: {test: nowhere.jsonl}}\ntest_split: test\n"


@pytest.mark.parametrize(
    ("flags", "sentences"),
    [
        (["--tasks", "world_author"], ["There is no task (`--tasks`) 'world_author'", "Did you mean 'world_authors'?"]),
        (["--tasks", " , "], ["`--tasks` names no task"]),
        (["--tasks", "world_authors", "--limit", "0"], ["`--limit` is 0"]),
        (["--tasks", "world_authors", "--num_fewshot", "-1"], ["`--num_fewshot` is -1"]),
        (["--tasks", "world_authors", "--batch_size", "many"], ["`--batch_size` is 'many'"]),
        (["--tasks", "world_authors", "--compare_base"], ["`--compare_base`", "no PEFT folder"]),
        (["--tasks", "world_authors", "--include_path", "nowhere"], ["`--include_path` is nowhere"]),
        (["--tasks", "broken"], ["The task 'broken' could not be prepared", "nowhere.jsonl"]),
        (["--tasks", "world_authors", "--limits", "3"], ["--limits"]),
    ],
)
def test_bad_input_ends_in_one_sentence(flags, sentences, tmp_path, monkeypatch):
    from lm_eval.tasks import TaskManager

    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "broken.yaml").write_text(BROKEN, encoding="utf-8")
    own = (ROOT / "tests" / "lm_tasks" / "world_authors.yaml").read_text(encoding="utf-8")
    (tmp_path / "tasks" / "world_authors.yaml").write_text(own, encoding="utf-8")
    # Reading lm-eval's own tasks takes 14 s and changes nothing here.
    init = TaskManager.__init__
    monkeypatch.setattr(
        TaskManager, "__init__", lambda self, **options: init(self, **{**options, "include_defaults": False})
    )
    message = refused(TARGET, tmp_path / "out", "--include_path", tmp_path / "tasks", *flags)
    for sentence in sentences:
        assert sentence in message


@pytest.mark.parametrize(
    ("model", "sentence"), [("nowhere/", "nowhere"), ("./nowhere", "is no model folder"), ("tests", "holds no model")]
)
def test_a_model_that_is_none(model, sentence, tmp_path):
    assert sentence in refused(model, tmp_path / "out")


def test_a_template_that_is_not_there(tmp_path):
    model = save_tiny_model(tmp_path / "model", chat_template=False)
    assert "has no chat template: drop `--apply_chat_template`" in refused(model, tmp_path / "out")


def test_what_is_not_a_number_is_not_written_as_one():
    script = runpy.run_path(str(SCRIPT))
    results = {
        "results": {"t": {"alias": "t", "sample_len": 3, "acc,none": float("nan"), "acc_stderr,none": "N/A"}},
        "higher_is_better": {"t": {"acc": True}},
        "n-shot": {"t": 0},
        "versions": {"t": 1.0},
    }
    (row,) = script["rows_of"](results)
    assert (row["metric"], row["value"], row["stderr"], row["n"]) == ("acc", None, None, 3)
    (row,) = script["beside"]([row], [{**row, "value": 0.5}])
    assert row["difference"] is None
    assert script["table"]([row], "adapter", True)[1] == ["t", "acc ↑", "0.5000", "–", "–", "3"]
