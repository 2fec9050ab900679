"""Every mistake of a user ends in one sentence that says what to do, and leaves nothing behind."""

import errno
import json
import os
import subprocess
import sys

import pytest
from peft import PeftModel
from recipe import ENVIRONMENT, refused, run_recipe, save_tiny_model, tiny_data, write_rows
from tiny import tiny_rows

from llm_unlearn import files
from llm_unlearn.paths import recipes_dir
from llm_unlearn.run import check_output


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def flags(model, data, tmp_path):
    return ["--model", model, "--dataset", data, "--forget_split", "forget", "--retain_split", "retain"] + [
        "--output_dir", tmp_path / "out", "--max_steps", 2, "--eval", "none"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--retain_coeff", 2], ["no flag '--retain_coeff'", "Did you mean '--retain_coef'?", "--help"]),
        (["--retain_coeff=2"], ["no flag '--retain_coeff'", "Did you mean '--retain_coef'?"]),
        (["--beta", "much"], ["--beta", "'much'"]),
        (["--beta", -1], ["`beta` is -1.0", "must be positive"]),
        (["--beta"], ["--beta", "expected one argument"]),
        (["--retain_loss", "kll"], ["--retain_loss", "'kll'", "nll"]),
        (["--eval", "all"], ["--eval", "'all'", "quick"]),
        (["stray"], ["stray"]),
        (["--config"], ["`--config` needs a YAML file"]),
        (["--config", "--overwrite"], ["`--config` needs a YAML file"]),
        (["--config", "nowhere.yaml"], ["no file nowhere.yaml"]),
        (["--config", "npo-tetsbed"], ["Did you mean 'npo-testbed'?"]),
        (["--forget_split", "forgot"], ["no split 'forgot'", "Did you mean 'forget'?"]),
        (["--forget_split", "forget[0:0]"], ["has no rows"]),
        (["--retain_split", "full"], ["6 of the 14 rows of the retain set are also in the forget set"]),
        (["--question_column", "q"], ["no column 'q'", "--question_column"]),
        (["--dataset", "/nowhere"], ["no file or folder /nowhere"]),
        (["--model", "/nowhere"], ["/nowhere", "`--model`"]),
        (["--request", "nowhere.json"], ["no request file nowhere.json"]),
        (["--reference", "nowhere"], ["no report at nowhere"]),
        (["--resume_from_checkpoint", "true"], ["no checkpoint to resume from"]),
        (["--push_to_hub"], ["--hub_model_id USER/NAME"]),
        (["--push_to_hub", "--hub_model_id", "a/b/c"], ["'a/b/c'", "--hub_model_id USER/NAME"]),
        (["--push_to_hub", "--hub_model_id", "me/mine", "--no_use_peft"], ["pushes adapters", "`hf upload`"]),
        (["--load_in_4bit", "--no_use_peft"], ["cannot be trained in full"]),
        (["--dtype", "bfloat16", "--no_use_peft"], ["--dtype float32", "--use_peft"]),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_a_mistake_is_explained(more, said, flags, tmp_path, capsys):
    message = refused("npo", *flags, *more)
    for text in said:
        assert text in message
    assert len(message) < 500
    assert not (tmp_path / "out").exists()
    assert "usage:" not in capsys.readouterr().err, "two hundred flags would hide the sentence"


@pytest.mark.parametrize(
    ("preset", "said"),
    [
        ("retain_coeff: 2\n", ["preset.yaml", "'retain_coeff'", "Did you mean 'retain_coef'?"]),
        ("learning_ratee: 0.5\n", ["Did you mean 'learning_rate'?"]),
        ("retain_loss: kll\n", ["--retain_loss", "'kll'"]),
        ("beta: much\n", ["--beta", "'much'"]),
        ("beta:\n", ["`beta` has no value"]),
        ("- beta\n- 0.1\n", ["must hold `flag: value` lines"]),
        ("", ["must hold `flag: value` lines"]),
        ("beta: [1\n", ["is not YAML"]),
    ],
)
def test_a_mistake_in_a_preset_is_explained(preset, said, flags, tmp_path):
    (tmp_path / "preset.yaml").write_text(preset)
    message = refused("npo", *flags, "--config", tmp_path / "preset.yaml")
    for text in said:
        assert text in message
    assert not (tmp_path / "out").exists()


def test_an_empty_forget_set(flags, tmp_path):
    write_rows(tmp_path / "empty" / "forget.jsonl", [])
    write_rows(tmp_path / "empty" / "retain.jsonl", tiny_rows(2))
    assert "has no rows" in refused("npo", *flags, "--dataset", tmp_path / "empty")


def test_data_without_a_column_that_is_understood(flags, tmp_path):
    write_rows(tmp_path / "odd" / "forget.jsonl", [{"q": "Who?", "a": "Ada"}])
    message = refused("npo", *flags, "--dataset", tmp_path / "odd")
    assert "`q`, `a`" in message
    assert "--question_column Q --answer_column A" in message


def test_a_folder_that_is_no_model(flags, tmp_path):
    (tmp_path / "folder").mkdir()
    message = refused("npo", *flags, "--model", tmp_path / "folder")
    assert "neither config.json nor adapter_config.json" in message
    assert "--model" in message


def test_a_reference_about_other_rows(flags, tmp_path):
    run_recipe("npo", *flags[:-1], "train")
    message = refused(
        "npo", *flags[:-1], "train", "--output_dir", tmp_path / "new", "--forget_split", "forget[1:3]",
        "--reference", tmp_path / "out",
    )  # fmt: skip
    assert "reference report was made on other data" in message
    assert not (tmp_path / "new").exists()


def test_an_output_folder_that_holds_another_run(flags, tmp_path):
    run_recipe("npo", *flags)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    message = refused("simnpo", *flags)
    assert "already holds a run" in message
    for remedy in ("--output_dir", "--resume_from_checkpoint true", "--overwrite"):
        assert remedy in message
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


def test_an_output_folder_that_is_a_file(flags, tmp_path):
    (tmp_path / "out").write_text("mine")
    assert "is a file" in refused("npo", *flags)


def test_the_last_whole_checkpoint_is_resumed(tmp_path):
    for step, files_there in {9: ["trainer_state.json"], 10: ["trainer_state.json"], 11: ["optimizer.pt"]}.items():
        (tmp_path / f"checkpoint-{step}").mkdir()
        for name in files_there:
            (tmp_path / f"checkpoint-{step}" / name).write_text("{}")
    (tmp_path / "checkpoint-old").mkdir()
    assert check_output(tmp_path, "true", overwrite=False) == str(tmp_path / "checkpoint-10")
    with pytest.raises(ValueError, match="no checkpoint"):
        check_output(tmp_path, str(tmp_path / "checkpoint-11"), overwrite=False)


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def left_behind(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_full_disk_while_the_adapter_is_saved(flags, tmp_path, monkeypatch):
    monkeypatch.setattr(PeftModel, "save_pretrained", no_space)
    message = refused("npo", *flags, "--save_strategy", "no")
    assert message.startswith(f"{tmp_path}/out/adapter could not be written (No space left on device): free space")
    assert left_behind(tmp_path / "out") == ["log.jsonl"]


def test_a_full_disk_while_the_record_is_saved(flags, tmp_path, monkeypatch):
    # The weights are already written when the disk fills up.
    monkeypatch.setattr(files.Path, "write_text", lambda path, *args, **kwargs: no_space())
    monkeypatch.setattr("llm_unlearn.progress.RunLog.on_train_begin", lambda *_, **__: None)
    message = refused("npo", *flags, "--save_strategy", "no")
    assert "could not be written (No space left on device)" in message
    assert left_behind(tmp_path / "out") == ["log.jsonl"]


_WITH_A_FULL_DISK = """
import resource, runpy, signal, sys
limit, script, *sys.argv[1:] = sys.argv[1:]
sys.path.insert(0, script.rpartition("/")[0])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
sys.argv[0] = script
runpy.run_path(script, run_name="__main__")
"""


@pytest.mark.parametrize("checkpoints", [True, False])
def test_files_that_really_cannot_grow(checkpoints, flags, tmp_path):
    # The limit lets the log through, and cuts the adapter, which Rust and torch write without Python's help.
    script = str(recipes_dir() / "npo.py")
    more = ["--save_strategy", "epoch" if checkpoints else "no", "--lora_r", 8, "--use_cpu", "--disable_tqdm", "true"]
    command = [sys.executable, "-c", _WITH_A_FULL_DISK, "20000", script, *map(str, [*flags, *more])]
    result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    cut = "checkpoint-1" if checkpoints else "adapter"
    assert result.stderr.splitlines()[-1].startswith(f"error: {tmp_path}/out/{cut} could not be written")
    assert "free space" in result.stderr
    assert left_behind(tmp_path / "out") == ["log.jsonl"]


def test_bad_weights_are_not_saved(flags, tmp_path):
    # Far too large a step: the guard stops the run and keeps the last good adapter, whose weights are finite.
    run_recipe("npo", *flags, "--learning_rate", "1e30", "--warmup_steps", 0, "--max_steps", 4)
    record = json.loads((tmp_path / "out" / "adapter" / "unlearning_config.json").read_text())
    assert record["stopped"]
