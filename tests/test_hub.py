"""Pushing, at the boundary of HTTP: what leaves the machine, and what never does."""

import json
import shutil
import sys

import pytest
import torch
from codebooks import delete, tiny_codebook, trained_like
from fake_hub import fake_hub
from huggingface_hub import constants
from recipe import run_recipe, save_tiny_model, tiny_data
from tiny import tiny_rows, tiny_tokenizer

from llm_unlearn import cli
from llm_unlearn.adapters import attach_adapter, lora_config
from llm_unlearn.card import model_card
from llm_unlearn.codebook.model import CodebookModel
from llm_unlearn.codebook.unlearner import CodeUnlearner
from llm_unlearn.data.tokenization import ExampleTokenizer
from llm_unlearn.hub import PUBLISHED, PUBLISHED_CODEBOOK, check_push, push_adapter, push_codebook
from llm_unlearn.models import load_model

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


# Codebooks

IDS = torch.arange(5, 25).reshape(2, 10)
ADAPTER_FILES = {"lora/adapter_model.safetensors", "lora/adapter_config.json"}


def codebook_of(folder, trained="bottleneck"):
    """A codebook that has forgotten Ada, as the loaded model."""
    model = load_model(folder / "model")
    if trained == "lora":
        model = attach_adapter(model, lora_config(r=4), seed=0)
        torch.nn.init.ones_(model.base_model.model.model.layers[0].mlp.up_proj.lora_B["default"].weight)
    codebook = trained_like(tiny_codebook(model, num_codes=300, top_s=2), 100)
    codebook.trained = trained
    rows = [{"question": row["question"], "answer": row["answer"]} for row in tiny_rows(100)]
    unlearner = CodeUnlearner(codebook, ExampleTokenizer(tiny_tokenizer()), progress=False)
    plan = unlearner.plan(rows[0::10], [row for i, row in enumerate(rows) if i % 10], id="r1")
    unlearner.apply(plan, 0, "ablate", max_silent=1)
    return codebook


def written(commit, folder):
    """The files of a commit in a folder."""
    for name, content in commit.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@torch.no_grad()
def logits_of(codebook):
    return codebook(input_ids=IDS).logits


@pytest.mark.parametrize("trained", ["bottleneck", "lora", "full"])
def test_a_codebook_model_pushes_itself_with_the_bottleneck_and_its_requests(hub, folder, tmp_path, trained, capfd):
    codebook = codebook_of(folder, trained)
    assert codebook.push_to_hub("me/codes", private=True) == f"{hub.endpoint}/me/codes"
    assert hub.created[0].items() >= {"organization": "me", "name": "codes", "visibility": "private"}.items()
    (commit,) = hub.commits
    base = {"base/config.json", "base/generation_config.json", "base/model.safetensors"}
    assert set(commit) == {*PUBLISHED_CODEBOOK} | {"lora": ADAPTER_FILES, "full": base}.get(trained, set())
    for name, content in commit.items():
        assert str(folder.parent).encode() not in content, name
    assert json.loads(commit["codebook_config.json"])["base"]["source"] == "model"
    card = commit["README.md"].decode()
    assert "300 codes" in card and "1 requests in force" in card and "not measured" in card
    assert hub.tokens == {TOKEN} and TOKEN not in "".join(capfd.readouterr())
    assert not any(TOKEN.encode() in content for content in commit.values())

    model = load_model(folder / "model")
    if trained != "bottleneck":
        assert "base_model:" not in card
    loaded = CodebookModel.from_pretrained(model, written(commit, tmp_path / "pulled"))
    assert [record.id for record in loaded.registry.in_force] == ["ablate"]
    torch.testing.assert_close(logits_of(loaded), logits_of(codebook))
    with loaded.disabled():
        assert not torch.equal(logits_of(loaded), logits_of(codebook))


def test_of_requests_only_what_is_deleted_is_published(hub, folder):
    codebook = codebook_of(folder)
    delete(codebook, "ablate", [3, 4], "a person's name")
    delete(codebook, "refill", [10], "another")
    delete(codebook, "gated", [4, 20], "a third", threshold=2.0, triggers=[5])
    delete(codebook, "ablate", [50], "taken back")
    codebook.registry.set_status("taken back", "revoked")
    codebook.delete()
    expected = logits_of(codebook)
    ablated = sorted({*codebook.registry["r1"].codes, 3, 4})
    codebook.push_to_hub("me/codes", token="hf_another")
    assert hub.tokens == {"hf_another"}
    told = json.loads(hub.commits[0]["requests.json"])["requests"]
    assert [(r["id"], r["mode"], r["codes"], r["triggers"], r["threshold"]) for r in told] == [
        ("refill", "refill", [10], [], None),
        ("ablate", "ablate", ablated, [], None),
        ("gate-1", "gated", [4, 20], [5], 2.0),
    ]
    assert all((r["status"], r["created"], r["grounds"]) == ("active", None, {}) for r in told)
    assert b"person" not in b"".join(hub.commits[0].values())
    codebook.registry = codebook.registry.redacted()
    codebook.delete()
    assert torch.equal(logits_of(codebook), expected)


def test_the_command_pushes_a_codebook_folder_and_nothing_else_in_it(hub, folder, tmp_path, monkeypatch, capsys):
    place = tmp_path / "codebook"
    codebook_of(folder, "lora").save_pretrained(place, card="# A card\n")
    (place / "training_args.bin").write_bytes(b"pickle")
    (place / "request.json").write_text("who it was")
    (place / "lora" / "README.md").write_text(f"base_model: {folder}")
    with pytest.raises(SystemExit) as stopped:
        command(monkeypatch, "push", place, "me/codes", "--private")
    assert stopped.value.code == 0
    assert f"{hub.endpoint}/me/codes" in capsys.readouterr().out
    (commit,) = hub.commits
    assert set(commit) == {*PUBLISHED_CODEBOOK} | ADAPTER_FILES
    assert hub.created[0]["visibility"] == "private"
    assert commit["README.md"] == b"# A card\n"
    for name in ("codebook.safetensors", "lora/adapter_model.safetensors"):
        assert commit[name] == (place / name).read_bytes()
    for name in ("codebook_config.json", "lora/adapter_config.json"):
        assert str(folder).encode() in (place / name).read_bytes() and str(folder).encode() not in commit[name]

    hub.refuses = True
    with pytest.raises(SystemExit) as stopped:
        command(monkeypatch, "push", place, "you/yours")
    message = stopped.value.code
    assert message.startswith(f"error: The hub did not take {place} as you/yours (") and "\n" not in message
    assert f"`llm-unlearn push {place} you/yours`" in message and TOKEN not in message
    with pytest.raises(OSError, match=r"did not take the codebook as me/x .*`llm-unlearn push FOLDER me/x`") as caught:
        codebook_of(folder).push_to_hub("me/x")
    assert TOKEN not in str(caught.value)


def test_only_a_whole_codebook_folder_is_pushed(hub, folder, tmp_path):
    codebook = codebook_of(folder)
    with pytest.raises(ValueError, match="'me/mine/ours' cannot name a repository"):
        codebook.push_to_hub("me/mine/ours")
    place = tmp_path / "codebook"
    codebook.save_pretrained(place)
    with pytest.raises(FileNotFoundError, match=r"lacks README.md.*`CodebookModel.push_to_hub`"):
        push_codebook(place, "me/codes")
    codebook.save_pretrained(place, card="# A card\n")
    shutil.move(place / "requests.json", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"lacks requests.json"):  # or nothing would be forgotten
        push_codebook(place, "me/codes")
    content = json.loads((tmp_path / "requests.json").read_text())
    (place / "requests.json").write_text(json.dumps(content | {"codebook": "0" * 64}))
    with pytest.raises(ValueError, match="belong to a codebook with other weights"):
        push_codebook(place, "me/codes")
    with pytest.raises(FileNotFoundError, match="has no codebook_config.json"):
        push_codebook(tmp_path, "me/codes")
    assert hub.requests == []
