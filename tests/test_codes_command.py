"""`llm-unlearn codes`: look, plan, apply, revoke and purge on a folder, and what goes wrong at the command line."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from codebooks import tiny_codebook, trained_like
from pages import Page
from recipe import ENVIRONMENT, save_tiny_model, write_rows
from tiny import tiny_rows, tiny_tokenizer

from llm_unlearn import cli
from llm_unlearn.codebook import actions
from llm_unlearn.codebook.model import CodebookModel, read_requests
from llm_unlearn.codebook.registry import DeletionRecord
from llm_unlearn.data.tokenization import ExampleTokenizer
from llm_unlearn.models import load_model
from llm_unlearn.requests import KnowledgeRequest

ROWS = [{"question": row["question"], "answer": row["answer"]} for row in tiny_rows(100)]
FORGET, RETAIN = ROWS[0::10], [row for i, row in enumerate(ROWS) if i % 10]  # all on Ada, and on the nine others


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A codebook folder with its model, and data beside it."""
    place = tmp_path_factory.mktemp("codes")
    source = save_tiny_model(place / "model")
    codebook = trained_like(tiny_codebook(load_model(source), num_codes=300, top_s=2), 100)
    codebook.config.base = {"source": str(source)}
    codebook.save_pretrained(place / "codebook", card="# A card\n")
    for name, rows in {"forget": FORGET, "retain": RETAIN, "other": RETAIN[:40]}.items():
        write_rows(place / "data" / f"{name}.jsonl", rows)
    request = KnowledgeRequest("ada", "Forget Ada.", tuple(FORGET), ("Ada",), tuple(RETAIN))
    request.save(place / "request.json")
    return place


@pytest.fixture
def place(made, tmp_path):
    """A copy of the codebook folder; data and model stay where they are."""
    shutil.copytree(made / "codebook", tmp_path / "codebook")
    return tmp_path


@pytest.fixture
def data(made):
    return ["--dataset", made / "data", "--forget_split", "forget", "--retain_split", "retain"]


@pytest.fixture
def command(monkeypatch):
    """Run `llm-unlearn codes ARGUMENTS` in this process; returns its exit code or the message on stderr."""
    monkeypatch.setenv("COLUMNS", "120")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["llm-unlearn", "codes", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return stopped.value.code

    return run


@torch.no_grad()
def logits_of(folder):
    codebook, tokenize = CodebookModel.load(folder), ExampleTokenizer(tiny_tokenizer())
    return torch.cat([codebook(input_ids=torch.tensor([tokenize(row, 0).input_ids])).logits[0] for row in FORGET])


def files_of(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


# Looking


def test_show_lists_codes_and_writes_a_page_and_json(command, place, data, capsys, tmp_path):
    flags = [*data[:2], "--target", "forget", "--control", "retain", "--top", 7]
    outputs = ["--html", tmp_path / "codes.html", "--json", tmp_path / "codes.json"]
    before = files_of(place / "codebook")
    assert command("show", place / "codebook", *flags, *outputs) == 0
    output = capsys.readouterr().out
    for column in ("code", "R", "target", "control", "state", "commonest tokens"):
        assert column in output
    assert "Ada×" in output and re.search(r"\d+ more codes are in use or deleted\.", output)
    written = json.loads((tmp_path / "codes.json").read_text())
    assert (written["target"], written["control"]) == ("forget", "retain") and len(written["codes"]) == 7
    assert written["texts"] == {"target": 10, "control": 90}
    page = Page((tmp_path / "codes.html").read_text())
    assert [int(row["data-code"]) for row in page.of_class("item")] == [code["code"] for code in written["codes"]]
    # Folders are personal: of a local model only the last part is shown.
    assert "model model" in page.text() and str(place) not in page.text()
    assert files_of(place / "codebook") == before


def test_show_takes_numbers_of_codes(command, place, data, capsys):
    flags = [*data[:2], "--target", "forget", "--control", "retain"]
    assert command("show", place / "codebook", *flags, "--codes", "17,3") == 0
    rows = re.findall(r"^ *(\d+) +[+–-]", capsys.readouterr().out, flags=re.MULTILINE)
    assert rows == ["17", "3"]


# Planning


def test_plan_shows_codes_and_changes_nothing(command, place, data, capsys):
    before = files_of(place / "codebook")
    assert command("plan", place / "codebook", *data, "--id", "ada") == 0
    output = capsys.readouterr().out
    sizes = re.search(r"Request 'ada' would delete of 300 codes (\d+) at level 0, (\d+) at level 1, (\d+) at", output)
    assert 0 < int(sizes[1]) <= int(sizes[2]) <= int(sizes[3])
    assert "Nothing was changed" in output and "Mean probability" not in output
    assert re.search(r"^Mode gated(: \d+ triggers, used at least \d| is not to be had: )", output, flags=re.MULTILINE)
    assert files_of(place / "codebook") == before


def test_a_plan_with_a_plot_is_swept(command, place, data, capsys, tmp_path):
    flags = ["--selection", "paper", "--levels", 2, 6, "--control", "other", "--plot", tmp_path / "plot.svg"]
    assert command("plan", place / "codebook", *data, *flags) == 0
    output = capsys.readouterr().out
    assert "Mean probability of answers" in output and "nothing" in output
    for mode in ("ablate", "refill", "gated"):
        for chosen in ("selected", "random"):
            assert len(re.findall(rf"^{mode} .* {chosen} ", output, flags=re.MULTILINE)) == 2
    drawing = (tmp_path / "plot.svg").read_text()
    assert drawing.startswith("<svg") and "forget probability" in drawing and "rise of retain loss" in drawing


# Deleting


def test_apply_revoke_and_purge_change_the_folder_as_they_say(command, place, data, capsys):
    folder = place / "codebook"
    start, files = logits_of(folder), files_of(folder)
    assert command("requests", folder) == 0
    assert "has no requests" in capsys.readouterr().out
    assert command("apply", folder, *data, "--id", "ada", "--strength", 0) == 0
    assert "Request 'ada' deletes" in capsys.readouterr().out
    registry, _ = read_requests(folder)
    assert registry["ada"].mode == "ablate" and registry["ada"].grounds["strength"] == 0
    assert "Ada" not in (folder / "requests.json").read_text(), "numbers and hashes only"
    deleted = logits_of(folder)
    assert not torch.equal(deleted, start)
    assert {name for name, content in files_of(folder).items() if files.get(name) != content} == {"requests.json"}

    assert command("requests", folder) == 0
    output = capsys.readouterr().out
    assert re.search(rf"ada +active +ablate +{len(registry['ada'].codes)} +20\d\d-", output)
    assert "threshold" not in output, "there are no gates"

    assert command("revoke", folder, "ada") == 0
    assert read_requests(folder)[0]["ada"].status == "revoked" and torch.equal(logits_of(folder), start)
    assert "only an active request can be purged" in command("purge", folder, "ada", "--yes")

    assert command("apply", folder, *data, "--id", "ada", "--strength", 0) == 0
    assert torch.equal(logits_of(folder), deleted)
    before = files_of(folder)
    message = command("purge", folder, "ada")
    assert f"would remove the vectors of {len(registry['ada'].codes)} codes from" in message
    assert "gate" not in message and "add `--yes`" in message
    assert files_of(folder) == before
    assert command("purge", folder, "ada", "--yes") == 0
    assert read_requests(folder)[0]["ada"].status == "purged" and torch.equal(logits_of(folder), deleted)
    assert files_of(folder)["codebook.safetensors"] != before["codebook.safetensors"]
    assert (folder / "README.md").read_text() == "# A card\n"
    assert "purged, which cannot be undone" in command("revoke", folder, "ada")


def test_of_a_gate_the_triggers_are_purged_and_it_stays_in_force(command, place, capsys):
    folder = place / "codebook"
    codebook = CodebookModel.load(folder)
    for name, status in (("once", "purged"), ("kept", "active")):
        codebook.registry.add(DeletionRecord(name, (1, 2), "ablate", status=status))
    codebook.registry.add(DeletionRecord("gone", (1, 2), "refill", status="purged"))
    codebook.registry.add(DeletionRecord("ada", (3, 5, 7, 9, 11), "gated", triggers=(5, 7), threshold=2.5))
    codebook.save_requests(folder)
    in_force = {record.id for record in read_requests(folder)[0].in_force}
    assert {"kept", "ada"} <= in_force and "gone" not in in_force

    def listed():
        assert command("requests", folder) == 0
        return capsys.readouterr().out

    output = listed()
    assert "triggers" in output and "threshold" in output
    assert re.search(r"ada +active +gated +5 +2 +2\.5 ", output)
    assert re.search(r"kept +active +ablate +2 +– +– ", output) and re.search(r"gone +purged +refill", output)
    assert bool(re.search(r"once +purged, in force +ablate", output)) == ("once" in in_force)

    message = command("purge", folder, "ada")
    assert "would remove the vectors of 2 triggers from" in message
    assert "its gate would stay in force and ablate 5 codes: add `--yes`" in message
    assert command("purge", folder, "ada", "--yes") == 0
    said = capsys.readouterr().out
    assert "the vectors of 2 triggers are gone" in said and "gate stays in force and ablates 5 codes." in said
    assert re.search(r"ada +purged, in force +gated +5 +2 +2\.5 ", listed())


def test_a_request_from_a_file_at_a_strength_that_is_found(command, place, made, data, capsys):
    folder = place / "codebook"
    flags = ["--request", made / "request.json", "--selection", "paper", "--mode", "refill", "--levels", 2]
    flags += ["--max_retain_rise", 5]
    assert command("apply", folder, *data[:2], *flags) == 0
    assert "Mean probability" in capsys.readouterr().out
    record = read_requests(folder)[0]["ada"]
    assert record.mode == "refill" and record.grounds["strength"] == 0 and len(record.grounds["curve"]) == 2
    assert record.grounds["request_hash"] == KnowledgeRequest.load(made / "request.json").hash


def test_requests_are_saved_only_where_the_codebook_lies(place, made):
    codebook = CodebookModel.load(place / "codebook")
    codebook.bottleneck.codebook.weight.data[0] += 1
    with pytest.raises(ValueError, match="has other weights than this one"):
        codebook.save_requests(place / "codebook")
    with pytest.raises(FileNotFoundError, match="give the `codebook` folder of a run"):
        codebook.save_requests(made / "data")


def test_a_codebook_is_loaded_in_the_precision_it_was_saved_with(made, tmp_path):
    codebook = tiny_codebook(load_model(made / "model", torch.bfloat16))
    codebook.config.base = {"source": str(made / "model")}
    codebook.save_pretrained(tmp_path / "codebook")
    assert CodebookModel.load(tmp_path / "codebook").dtype == torch.bfloat16


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["show", "{data}"], "has no codebook_config.json: give the `codebook` folder of a run"),
        (["plan", "{data}"], "has no codebook_config.json"),
        (["apply", "{data}"], "has no codebook_config.json"),
        (["requests", "{data}"], "has no codebook_config.json"),
        (["revoke", "{data}", "x"], "has no codebook_config.json"),
        (["purge", "{data}", "x", "--yes"], "has no codebook_config.json"),
        (["show"], "the following arguments are required: folder: `llm-unlearn codes show --help`"),
        (["show", "{folder}", "--codes", "3,x"], "`--codes` is '3,x'; give whole numbers such as 3,17"),
        (
            ["show", "{folder}", "{show}", "--codes", "300"],
            "Code 300 was asked for, but the codes are numbered 0 to 299",
        ),
        (["show", "{folder}", "{show}", "--top", "0"], "`--top` is 0; list at least 1 code"),
        (["show", "{folder}", "--html", "{data}"], "is a folder: name a file for `--html`"),
        (["show", "{folder}", "--dataset", "{data}", "--target", "forgot"], "Did you mean 'forget'?"),
        (["show", "{folder}", "--dataset", "{data}", "--target", "forget[5:5]"], "'forget[5:5]' of"),
        (["show", "{folder}", "--targt", "x"], "--targt"),
        (["plan", "{folder}", "{splits}", "--plot", "out.png"], "`--plot` is 'out.png', but plots are drawn as SVG"),
        (["plan", "{folder}", "{splits}", "--control", "swop"], "There is no split 'swop'"),
        (
            ["plan", "{folder}", "--dataset", "{data}", "--forget_split", "retain", "--retain_split", "retain"],
            "also in",
        ),
        (["plan", "{folder}", "{splits}", "--request", "{data}/no.json"], "There is no request file"),
        (["plan", "{folder}", "{splits}", "--levels", "2", "900"], "Lists of 900 codes were asked for"),
        (["apply", "{folder}", "{splits}", "--strength", "high"], "`--strength` is 'high'; give auto, or a position"),
        (["apply", "{folder}", "{splits}", "--strength", "3"], "Strength 3 was asked for; the plan has 3, from 0"),
        (["apply", "{folder}", "{splits}", "--max_retain_rise", "-1"], "give a rise from 0 up, and a share from"),
        (["apply", "{folder}", "{splits}", "--mode", "erase"], "invalid choice: 'erase'"),
        (["revoke", "{folder}", "ada"], "There is no request 'ada'"),
        (["purge", "{folder}", "ada", "--yes"], "There is no request 'ada'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_ends_in_one_sentence_and_changes_nothing(command, place, made, arguments, said):
    known = {
        "{data}": [made / "data"],
        "{folder}": [place / "codebook"],
        "{show}": ["--dataset", made / "data", "--target", "forget", "--control", "retain"],
        "{splits}": ["--dataset", made / "data", "--forget_split", "forget", "--retain_split", "retain"],
    }
    words = [word for argument in arguments for word in known.get(argument, [argument])]
    before = files_of(place / "codebook")
    message = command(*(str(word).replace("{data}", str(made / "data")) for word in words))
    assert isinstance(message, str), "exit code 1, with the message on stderr"
    assert message.startswith("error: ") and said in message
    assert "\n" not in message
    assert files_of(place / "codebook") == before and [path.name for path in place.iterdir()] == ["codebook"]


def test_requests_of_other_weights_are_refused(command, place, made):
    content = json.loads((place / "codebook" / "requests.json").read_text())
    (place / "codebook" / "requests.json").write_text(json.dumps({**content, "codebook": "0"}))
    for verb in (["requests"], ["revoke", "ada"]):
        assert "belong to a codebook with other weights" in command(verb[0], place / "codebook", *verb[1:])


@pytest.mark.parametrize("verb", ["show", "plan", "apply"])
def test_help_lists_all_flags_and_loads_no_torch(verb):
    code = (
        f"import sys; from llm_unlearn.cli import main; sys.argv = ['llm-unlearn', 'codes', '{verb}', '--help']\n"
        "try: main()\nfinally: print('HEAVY', {'torch', 'datasets', 'peft', 'scipy'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "HEAVY set()"
    kind = {"show": actions.ShowFlags, "plan": actions.PlanFlags, "apply": actions.ApplyFlags}[verb]
    assert {field.name for field in dataclasses.fields(kind)} <= set(re.findall(r"--(\w+)", done.stdout))
