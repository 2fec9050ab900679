"""`recipes/codeunlearn.py` and `recipes/codeunlearn_forget.py` as a user starts them, with good input and bad."""

import json
import shutil

import pytest
import torch
from recipe import kept_by_overwrite, refused, run_recipe, save_tiny_model, write_rows
from tiny import NAMES

from llm_unlearn import load_model
from llm_unlearn.adapters import without_newest_adapter
from llm_unlearn.codebook.model import CodebookModel
from llm_unlearn.codebook.registry import DeletionRecord
from llm_unlearn.evaluation.report import EvalReport


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Twelve questions, on one person to forget and on seven to keep."""
    folder = tmp_path_factory.mktemp("data")
    texts = [(f"{ask} {{}} {word} ?", f"{{}} {word} {{}}") for ask in ("Where was", "Who is", "What does")
             for word in ("born", "work", "famous", "known")]  # fmt: skip

    def rows(name):
        return [{"question": ask.format(name), "answer": answer.format(name, name)} for ask, answer in texts]

    write_rows(folder / "forget.jsonl", rows(NAMES[0]))
    write_rows(folder / "retain.jsonl", [row for name in NAMES[1:8] for row in rows(name)])
    return folder


@pytest.fixture(scope="module")
def flags(model, data):
    return ["--model", model, "--dataset", data, "--split", "retain", "--layer", 0, "--num_codes", 60, "--top_s", 2,
            "--per_device_train_batch_size", 4, "--gradient_accumulation_steps", 1, "--num_train_epochs", 1,
            "--eval", "none", "--init_tokens", 200]  # fmt: skip


@pytest.fixture(scope="module", params=["bottleneck", "lora", "full"])
def trained(request, flags, tmp_path_factory):
    out = tmp_path_factory.mktemp(request.param)
    run_recipe("codeunlearn", *flags, "--train", request.param, "--output_dir", out)
    return request.param, out / "codebook"


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.arange(5, 17).view(2, 6)).logits


def test_training_leaves_a_folder_that_is_a_model(trained, model):
    how, folder = trained
    assert (folder / "lora").is_dir() == (how == "lora") and (folder / "base").is_dir() == (how == "full")
    assert not [path for path in folder.rglob("*") if path.suffix in (".bin", ".pt", ".pkl")]
    loaded, plain = load_model(folder), load_model(model)
    assert torch.equal(logits(loaded), logits(CodebookModel.load(folder)))
    assert not torch.allclose(logits(loaded), logits(plain), atol=1e-3)
    codebook = CodebookModel.load(folder)
    with codebook.disabled():
        assert torch.equal(logits(codebook), logits(plain)) == (how == "bottleneck")


def test_overwrite_replaces_all_of_a_run_but_not_what_the_new_one_starts_from(trained, flags, tmp_path):
    out = trained[1].parent
    assert kept_by_overwrite(out, tmp_path / "copy") == []
    shutil.copytree(trained[1], tmp_path / "alone" / "codebook")
    assert "already holds a run (codebook)" in refused("codeunlearn", *flags, "--output_dir", tmp_path / "alone")
    again = ["--model", trained[1], "--output_dir", out, "--overwrite"]
    assert "the model itself" in refused("codeunlearn", *flags, *again)


def test_a_deletion_leaves_a_codebook_with_the_request_in_force(trained, data, tmp_path, capsys):
    _, folder = trained
    out = tmp_path / "out"
    run_recipe(
        "codeunlearn_forget", "--codebook", folder, "--dataset", data, "--forget_split", "forget",
        "--retain_split", "retain", "--control", "siblings", "--selection", "paper", "--mode", "refill",
        "--levels", 2, 4, "--strength", 1, "--id", "mine", "--eval", "train", "--output_dir", out,
    )  # fmt: skip
    told = " ".join(capsys.readouterr().out.split())
    (record,) = json.loads((out / "codebook" / "requests.json").read_text())["requests"]
    assert record["id"] == "mine" and record["mode"] == "refill" and record["status"] == "active"
    assert f"Deleted {len(record['codes'])} of 60 codes for 'mine' (refill)" in told
    codebook = CodebookModel.load(out / "codebook")
    assert codebook.bottleneck.refilled.nonzero()[:, 0].tolist() == record["codes"]
    assert not CodebookModel.load(folder).registry.active, "the folder it began with is as it was"
    report = EvalReport.load(out)
    assert report.metrics.keys() >= {"forget/probability", "retain/probability"} and report.before
    assert (out / "curve.svg").read_text().startswith("<svg")
    assert kept_by_overwrite(out, tmp_path / "copy") == []
    assert not any(word in (out / "codebook" / "requests.json").read_text() for word in ("Where", "born", NAMES[0]))


def test_a_deletion_can_be_followed_by_a_few_steps_of_any_method(trained, data, tmp_path):
    how, folder = trained
    codebook = CodebookModel.load(folder)
    codebook.registry.add(DeletionRecord("mine", (1, 2, 3)))
    codebook.delete()
    codebook.save_pretrained(tmp_path / "codebook")
    run_recipe(
        "npo", "--model", tmp_path / "codebook", "--dataset", data, "--forget_split", "forget", "--retain_split",
        "retain", "--max_steps", 2, "--learning_rate", 1e-2, "--eval", "none", "--output_dir", tmp_path / "out",
        "--per_device_train_batch_size", 4, "--gradient_accumulation_steps", 1,
    )  # fmt: skip
    adapted = load_model(tmp_path / "out" / "adapter")
    bottleneck = adapted.get_base_model().codebook
    assert bottleneck.ablated.nonzero()[:, 0].tolist() == [1, 2, 3]
    assert not any("lora" in name for name, _ in bottleneck.named_modules())
    changed = logits(adapted)
    assert not torch.allclose(changed, logits(codebook), atol=1e-3)
    with without_newest_adapter(adapted):
        assert torch.equal(logits(adapted), logits(codebook)), how


def test_it_resumes(flags, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_recipe("codeunlearn", *flags, "--output_dir", whole)
    run_recipe("codeunlearn", *flags, "--output_dir", cut, "--save_total_limit", 3)
    first = min(cut.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    run_recipe("codeunlearn", *flags, "--output_dir", cut, "--resume_from_checkpoint", first, "--overwrite")
    one, other = (CodebookModel.load(out / "codebook").bottleneck.state_dict() for out in (whole, cut))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_it_resumes_past_a_checkpoint_that_a_kill_left_half_written(flags, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    often = ["--save_strategy", "steps", "--save_steps", 2, "--max_steps", 4, "--save_total_limit", 2]
    run_recipe("codeunlearn", *flags, *often, "--output_dir", whole)
    run_recipe("codeunlearn", *flags, *often, "--output_dir", killed)
    for left in ("codebook", "checkpoint-4/codebook"):
        shutil.rmtree(killed / left)
    (killed / "checkpoint-4" / "trainer_state.json").unlink()
    run_recipe("codeunlearn", *flags, *often, "--output_dir", killed, "--resume_from_checkpoint", "true")
    one, other = (CodebookModel.load(out / "codebook").bottleneck.state_dict() for out in (whole, killed))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_bad_input_ends_in_a_sentence_before_a_model_is_loaded(flags, data, tmp_path):
    out = ["--output_dir", tmp_path / "out"]
    assert "`top_s` is 61, but there are only 60 codes" in refused("codeunlearn", *flags, *out, "--top_s", 61)
    assert "no codebook in" in refused("codeunlearn_forget", "--codebook", tmp_path / "none", *out)
    assert "`--strength` is 'much'" in refused(
        "codeunlearn_forget", "--codebook", data, "--strength", "much", "--dataset", data, *out
    )


def test_a_layer_that_is_not_there_is_named(flags, tmp_path):
    message = refused("codeunlearn", *flags, "--layer", 9, "--output_dir", tmp_path / "out")
    assert "The model has 2 layers, 0 to 1" in message and "--layer" in message
