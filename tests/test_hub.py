"""Pushing, at the boundary of HTTP: what leaves the machine, and what never does."""

import json
import sys

import pytest
from fake_hub import fake_hub
from huggingface_hub import constants
from recipe import run_recipe, save_tiny_model, tiny_data

from llm_unlearn import cli
from llm_unlearn.card import model_card
from llm_unlearn.hub import PUBLISHED, check_push, push_adapter

# The hub's client passes bytes to its HTTP library in a way which that one has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

TOKEN = "hf_a_secret_of_the_tests"
FILES = {"adapter_model.safetensors", "adapter_config.json", "unlearning_config.json", "README.md"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model and tiny data."""
    folder = tmp_path_factory.mktemp("push")
    save_tiny_model(folder / "model")
    tiny_data(folder / "data")
    return folder


def flags(folder, out):
    return [
        "--model", folder / "model", "--dataset", folder / "data", "--forget_split", "forget",
        "--retain_split", "retain", "--output_dir", out, "--max_steps", 2, "--eval", "none",
    ]  # fmt: skip


@pytest.fixture
def hub(monkeypatch):
    """A hub of our own in the place of the real one."""
    with fake_hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # large files over plain HTTP
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


def command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["llm-unlearn", *map(str, arguments)])
    cli.main()


def test_a_run_pushes_its_adapter_once_at_the_end(hub, folder, tmp_path, capsys):
    push = ["--push_to_hub", "--hub_model_id", "me/forgets", "--hub_private_repo", "true"]
    run_recipe("npo", *flags(folder, tmp_path / "out"), *push)
    output = capsys.readouterr()
    assert f"{hub.endpoint}/me/forgets" in output.out
    assert len(hub.created) == 1
    assert hub.created[0].items() >= {"organization": "me", "name": "forgets", "visibility": "private"}.items()
    assert len(hub.commits) == 1
    assert set(hub.commits[0]) == FILES == set(PUBLISHED)
    adapter = tmp_path / "out" / "adapter"
    for name, content in hub.commits[0].items():
        if name.endswith(".json"):
            # The model's folder is named, its place on this machine is not.
            assert str(folder).encode() in (adapter / name).read_bytes()
            assert str(folder.parent).encode() not in content
        else:
            assert content == (adapter / name).read_bytes()
    assert (tmp_path / "out" / "checkpoint-2" / "training_args.bin").is_file(), "there was something to leak"
    assert hub.tokens == {TOKEN}
    assert TOKEN not in output.out + output.err
    for path in (tmp_path / "out").rglob("*"):
        assert path.is_dir() or TOKEN.encode() not in path.read_bytes(), path


def test_the_command_pushes_what_is_published_and_nothing_else(hub, folder, tmp_path, monkeypatch, capsys):
    run_recipe("grad_ascent", *flags(folder, tmp_path / "out"))
    adapter = tmp_path / "out" / "adapter"
    (adapter / "training_args.bin").write_bytes(b"pickle")
    assert hub.requests == []
    with pytest.raises(SystemExit) as stopped:
        command(monkeypatch, "push", adapter, "me/mine")
    assert stopped.value.code == 0
    assert [set(commit) for commit in hub.commits] == [FILES]

    # A hub that refuses costs the push, not the adapter.
    hub.refuses = True
    with pytest.raises(SystemExit) as stopped:
        command(monkeypatch, "push", adapter, "you/yours")
    message = stopped.value.code
    assert message.startswith(f"error: The hub did not take {adapter} as you/yours (")
    assert "no right to write here" in message
    assert f"`llm-unlearn push {adapter} you/yours`" in message
    assert "\n" not in message
    output = capsys.readouterr()
    assert TOKEN not in message + output.out + output.err
    assert {path.name for path in adapter.iterdir()} == FILES | {"training_args.bin"}


def test_nothing_is_pushed_unless_asked(hub, folder, tmp_path):
    run_recipe("npo", *flags(folder, tmp_path / "out"), "--hub_model_id", "me/forgets")
    assert hub.requests == []


def test_what_would_fail_at_the_end_fails_at_the_start(monkeypatch):
    with pytest.raises(ValueError, match="give `--hub_model_id USER/NAME`"):
        check_push(None, TOKEN)
    with pytest.raises(ValueError, match="'me/mine/ours' cannot name a repository"):
        check_push("me/mine/ours", TOKEN)
    monkeypatch.setattr("llm_unlearn.hub.get_token", lambda: None)
    with pytest.raises(ValueError, match="run `hf auth login`, or set HF_TOKEN"):
        check_push("me/mine")


def test_only_a_whole_adapter_folder_is_pushed(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no adapter of llm-unlearn"):
        push_adapter(tmp_path, "me/mine")
    (tmp_path / "unlearning_config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"lacks adapter_model.safetensors, adapter_config.json, README.md"):
        push_adapter(tmp_path, "me/mine")


def test_a_card_names_a_hub_base_and_hides_a_local_one(folder, tmp_path):
    run_recipe("grad_ascent", *flags(folder, tmp_path / "out"))
    adapter = tmp_path / "out" / "adapter"
    card = (adapter / "README.md").read_text()
    assert "base_model:" not in card
    assert str(folder) not in card
    record = json.loads((adapter / "unlearning_config.json").read_text())
    assert "no retain set was used" in card
    assert "| `lr_scheduler_type` | linear |" in card
    card = model_card({**record, "base": {**record["base"], "source": "org/model"}}, None)
    assert card.startswith("---\nbase_model: org/model\n")
