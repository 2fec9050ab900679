import io
import json
import runpy
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from recipe import refused, run_recipe, save_tiny_model, tiny_data, write_rows
from rich.console import Console
from tiny import tiny_rows, tiny_tokenizer

from llm_unlearn.codebook.trainer import CodeUnlearnConfig
from llm_unlearn.evaluation.rendering import IN_TERMINAL
from llm_unlearn.evaluation.report import EvalReport
from llm_unlearn.evaluation.svg import number
from llm_unlearn.finetune import FinetuneConfig
from llm_unlearn.methods import METHODS
from llm_unlearn.models import adapter_layers, fingerprint, load_model
from llm_unlearn.paths import recipes_dir

RECIPES = [*METHODS, "finetune"]
PRESETS = sorted((recipes_dir() / "configs").glob("*.yaml"))
DELETION = recipes_dir() / "configs" / "codeunlearn_forget-testbed.yaml"
TRANSLATION = recipes_dir() / "configs" / "codeunlearn_t5-paper.yaml"  # parsed in test_codeunlearn_t5.py


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def flags(model, data, tmp_path):
    """Two steps on the tiny data, without evaluation, into `tmp_path / "out"`."""
    return ["--model", model, "--dataset", data, "--forget_split", "forget", "--retain_split", "retain"] + [
        "--output_dir", tmp_path / "out", "--max_steps", 2, "--eval", "none"
    ]  # fmt: skip


def method_of(preset):
    return {"kl_min": "grad_diff"}.get(preset.stem, preset.stem.rpartition("-")[0])


@pytest.mark.parametrize("name", RECIPES)
def test_help_names_the_flags(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        run_recipe(name, "--help")
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: {name}.py")
    own = ["--split"] if name == "finetune" else ["--forget_split", "--retain_coef", "--eval", "--request"]
    for flag in ["--model", "--dataset", "--question_column", "--use_peft", "--push_to_hub", *own]:
        assert f" {flag} " in text, flag


@pytest.mark.parametrize("method", METHODS)
def test_two_steps_make_an_adapter(method, flags, model, tmp_path, capsys):
    # A random model knows none of the rows, so refinement would find nothing to do.
    run_recipe(method, *flags, *(["--no_refine"] if method == "icu" else []))
    adapter = tmp_path / "out" / "adapter"
    assert {path.name for path in adapter.iterdir()} == {
        "adapter_model.safetensors", "adapter_config.json", "unlearning_config.json", "README.md"
    }  # fmt: skip
    record = json.loads((adapter / "unlearning_config.json").read_text())
    assert (record["method"], record["steps"], record["base"]["source"]) == (method, 2, str(model))
    assert record["base"]["fingerprint"] == fingerprint(load_model(model))
    assert len((tmp_path / "out" / "log.jsonl").read_text().splitlines()) >= 2
    output = capsys.readouterr()
    assert "optimiser steps" in output.out
    assert f"Wrote {adapter}" in output.out.replace("Wrote \n", "Wrote ").replace("\n", "")
    assert "{'loss'" not in output.out, "the parts of the loss stand beside the bar"
    assert "training: 100%" in output.err
    assert "loss=" in output.err

    unlearned = PeftModel.from_pretrained(load_model(model), adapter)
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        changed = unlearned(input_ids=ids).logits
        with unlearned.disable_adapter():
            assert torch.equal(unlearned(input_ids=ids).logits, load_model(model)(input_ids=ids).logits)
    assert not torch.equal(changed, load_model(model)(input_ids=ids).logits)


@pytest.mark.parametrize(
    "preset", [path for path in PRESETS if path not in (DELETION, TRANSLATION)], ids=lambda path: path.stem
)
def test_a_preset_parses_against_its_recipe(preset, tmp_path):
    from common import ModelArguments, UnlearnArguments, parse

    if method_of(preset) == "codeunlearn":
        arguments = runpy.run_path(str(recipes_dir() / "codeunlearn.py"))["CodebookArguments"]
        classes = (arguments, CodeUnlearnConfig, ModelArguments)
    else:
        classes = (UnlearnArguments, METHODS[method_of(preset)].load()[0], ModelArguments)
    argv = ["--model", "unused", "--output_dir", str(tmp_path), "--use_cpu"]
    data_args, args, model_args = parse(method_of(preset), ["--config", preset.stem, *argv], *classes)
    assert isinstance(args.num_train_epochs, float)
    if method_of(preset) != "codeunlearn":
        assert model_args.use_peft == (preset.stem != "icu-paper"), "the authors train all weights"
    if preset.stem == "kl_min":
        assert args.retain_loss == "kl"
    if preset.stem.endswith("-forget10"):
        assert (data_args.dataset, data_args.forget_split) == ("locuslab/TOFU", "forget10")
        assert args.train_batch_size * args.gradient_accumulation_steps == 32
    # The command line goes over the preset.
    _, args, _ = parse(method_of(preset), [f"--config={preset}", *argv, "--num_train_epochs=3"], *classes)
    assert args.num_train_epochs == 3


def test_the_preset_of_deletion_parses_and_the_command_line_goes_over_it(monkeypatch):
    from common import parse_plainly

    arguments = runpy.run_path(str(recipes_dir() / "codeunlearn_forget.py"))["ForgetArguments"]
    monkeypatch.setattr("sys.argv", ["codeunlearn_forget.py", "--config", DELETION.stem, "--mode", "refill"])
    args = parse_plainly("codeunlearn_forget", arguments)
    assert (args.control, args.selection, args.strength, args.mode) == ("siblings", "paper", "auto", "refill")


def test_a_preset_means_what_the_flags_mean(tmp_path):
    from common import ModelArguments, UnlearnArguments, parse

    config, _ = METHODS["npo"].load()
    preset = tmp_path / "mine.yaml"
    preset.write_text(
        "model: m\nlearning_rate: 1e-4\nuse_peft: false\nlora_target_modules: [q_proj, v_proj]\nmax_steps: -1\n"
        "retain_loss: kl\nsystem_prompt: '--- quite: terse'\nlr_scheduler_kwargs: {num_cycles: 2}\nuse_cpu: true\n"
    )
    classes = (UnlearnArguments, config, ModelArguments)
    _, args, model_args = parse("npo", ["--config", str(preset), "--output_dir", str(tmp_path)], *classes)
    assert (model_args.model_name_or_path, model_args.use_peft) == ("m", False)
    assert model_args.lora_target_modules == ["q_proj", "v_proj"]
    assert (args.learning_rate, args.max_steps, args.retain_loss) == (1e-4, -1, "kl")
    assert args.system_prompt == "--- quite: terse"
    assert args.lr_scheduler_kwargs == {"num_cycles": 2}


def test_without_a_model_the_preset_of_the_embedded_default_is_used_and_shown(tmp_path, capsys):
    from common import ModelArguments, UnlearnArguments, parse

    config, _ = METHODS["npo"].load()
    classes = (UnlearnArguments, config, ModelArguments)
    argv = ["--output_dir", str(tmp_path), "--use_cpu", "--beta", "0.7"]
    _, args, _ = parse("npo", argv, *classes, testbed=True)
    shown = capsys.readouterr().out
    assert "npo-testbed.yaml" in shown
    assert f"--learning_rate={args.learning_rate}" in shown
    assert args.learning_rate != config(output_dir=str(tmp_path), use_cpu=True).learning_rate
    assert args.beta == 0.7
    _, args, _ = parse("npo", [*argv, "--model=x"], *classes, testbed=True)
    assert args.learning_rate is None
    assert capsys.readouterr().out == ""


def test_the_tables_fit_a_terminal(flags, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    run_recipe("npo", *flags[:-1], "quick")
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    report = EvalReport.load(tmp_path / "out")
    shown = [name for name in IN_TERMINAL if name in report.metrics and report.metrics[name].value is not None]
    assert "forget/rouge_l_recall" in shown
    for name in shown:
        row = next(line for line in lines if line.startswith(name))
        assert number(report.metrics[name].value) in row
    assert not any("retain model" in line and "after" in line for line in lines), "nothing is known of it"
    assert any("no reference report" in line for line in lines)
    # With a reference its column is there, and still every name is whole, also the longest.
    whole = EvalReport.compare(report, report, report)
    whole = EvalReport(
        *({name: whole.metrics["forget/probability"] for name in IN_TERMINAL} for _ in range(3))
    )  # fmt: skip
    console = Console(width=80, file=io.StringIO())
    console.print(whole.table())
    text = console.file.getvalue()
    assert all(name in text for name in IN_TERMINAL)
    assert "…" not in text


def test_the_training_tier_shows_no_answers(flags, capsys):
    run_recipe("grad_diff", *flags[:-1], "train")
    output = capsys.readouterr().out
    assert "forget/probability" in output
    assert "Answers to questions" not in output


def as_messages(row):
    return {"messages": [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]}


@pytest.mark.parametrize(
    ("form", "columns", "change"),
    [
        ("prompt", ["--prompt_column", "p", "--completion_column", "c"],
         lambda row: {"p": row["question"], "c": f" {row['answer']}"}),
        ("messages", ["--messages_column", "messages"], as_messages),
        ("text", ["--text_column", "t"], lambda row: {"t": f"{row['question']} {row['answer']}"}),
    ],
)  # fmt: skip
def test_data_of_any_form_are_evaluated_before_and_after(form, columns, change, model, tmp_path):
    rows = [change(row) for row in tiny_rows(12)]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    run_recipe(
        "npo", "--model", model, "--dataset", file, "--forget_split", "train[:4]", "--retain_split", "train[4:]",
        "--output_dir", tmp_path / "out", "--max_steps", 1, *columns,
    )  # fmt: skip
    report = EvalReport.load(tmp_path / "out")
    assert report.metrics["forget/probability"].n == 4
    assert report.metrics["retain/probability"].n == 8
    rouge = report.metrics["forget/rouge_l_recall"]
    if form == "text":
        assert rouge.value is None
        assert "plain text" in rouge.not_measured
        assert not report.has_answers
    else:
        assert rouge.n == 4
        assert report.items[0]["question"] == tiny_rows(1)[0]["question"]


def test_what_was_to_be_forgotten_is_not_in_the_adapter_folder(flags, tmp_path):
    secret = [{"question": "Where was Hana born?", "answer": "Hana was born in Ilmen"}]
    kept = [{"question": "What does Ada do?", "answer": "Ada is a baker"}]
    request = {"id": "r-1", "statement": "Forget the city of Hana", "exemplars": secret, "retention": kept}
    (tmp_path / "request.json").write_text(json.dumps({**request, "aliases": ["Hana Gostin"]}))
    run_recipe("npo", *flags[:-1], "quick", "--request", tmp_path / "request.json")
    out = tmp_path / "out"
    assert "Hana was born in Ilmen" in (out / "report.md").read_text(), "the local report shows the answers"
    assert json.loads((out / "request.json").read_text())["exemplars"] == secret
    for file in (out / "adapter").iterdir():
        content = file.read_bytes()
        for text in (b"Hana", b"Ilmen", b"Ada", b"baker", str(tmp_path).encode()):
            assert text not in content or (text == str(tmp_path).encode() and file.suffix == ".json"), (file, text)
    record = json.loads((out / "adapter" / "unlearning_config.json").read_text())
    assert record["request"] | {"hash": "-"} == {"id": "r-1", "hash": "-", "exemplars": 1, "aliases": 1, "retention": 1}
    assert EvalReport.load(out).metrics["retain/probability"].n == 1, "the request's own retention examples"


def test_all_weights_can_be_trained(flags, tmp_path):
    run_recipe("grad_diff", *flags, "--no_use_peft", "--retain_loss", "kl")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model", "checkpoint-2", "log.jsonl"}
    assert load_model(tmp_path / "out" / "model").dtype == torch.float32
    record = json.loads((tmp_path / "out" / "model" / "unlearning_config.json").read_text())
    assert (record["method"], record["arguments"]["retain_loss"]) == ("grad_diff", "kl")


def test_four_bit_base(flags, tmp_path):
    pytest.importorskip("bitsandbytes")
    run_recipe("npo", *flags, "--load_in_4bit")
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()


def test_overwrite_replaces_a_run_but_not_before_the_new_one_can_start(flags, tmp_path):
    run_recipe("npo", *flags)
    first = (tmp_path / "out" / "adapter" / "unlearning_config.json").read_text()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert "no split" in refused("npo", *flags, "--overwrite", "--forget_split", "nowhere")
    assert (tmp_path / "out" / "adapter" / "unlearning_config.json").read_text() == first
    run_recipe("simnpo", *flags, "--overwrite")
    assert json.loads((tmp_path / "out" / "adapter" / "unlearning_config.json").read_text())["method"] == "simnpo"
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["npo", "finetune"])
def test_overwrite_does_not_remove_the_model_that_a_run_starts_from(name, model, data, tmp_path):
    own = Path(shutil.copytree(model, tmp_path / "out" / "model"))
    message = refused(name, "--model", own, "--dataset", data, "--output_dir", tmp_path / "out", "--overwrite")
    assert message.startswith(f"`--overwrite` would remove {own}, the model itself")
    assert load_model(own)


# Fine-tuning.


@pytest.fixture
def learn(model, data, tmp_path):
    """Fine-tune on the tiny data into a folder of this name; returns the folder."""

    def run(name, *more):
        out = tmp_path / name
        run_recipe("finetune", "--model", model, "--dataset", data, "--output_dir", out, *more)
        return out

    return run


def test_finetuning_learns_its_split(learn, data, model, tmp_path, capsys):
    out = learn("target", "--num_train_epochs", 30, "--learning_rate", 1e-2, "--per_device_train_batch_size", 14,
                "--gradient_accumulation_steps", 1)  # fmt: skip
    assert "Forecast: 14 rows" in capsys.readouterr().out
    losses = [line["loss"] for line in map(json.loads, (out / "log.jsonl").read_text().splitlines()) if "loss" in line]
    assert losses[-1] < 0.3 < losses[0]
    # What it wrote is what the unlearning recipes take.
    run_recipe("npo", "--model", out / "model", "--dataset", data, "--forget_split", "forget", "--retain_split",
               "retain", "--output_dir", tmp_path / "out", "--max_steps", 1)  # fmt: skip
    assert EvalReport.load(tmp_path / "out").before["forget/probability"].value > 0.5


def test_a_resumed_run_ends_as_one_never_stopped(learn):
    short = ["--per_device_train_batch_size", 7, "--gradient_accumulation_steps", 1, "--split", "full"]
    short += ["--learning_rate", 1e-3, "--num_train_epochs", 3, "--lr_scheduler_type", "constant"]
    whole = learn("whole", *short)
    learn("cut", *short, "--max_steps", 2)
    # Killed while it wrote its second checkpoint: that one has no state and is passed over.
    unfinished = whole.parent / "cut" / "checkpoint-3"
    unfinished.mkdir()
    (unfinished / "model.safetensors").write_bytes(b"half")
    cut = learn("cut", *short, "--resume_from_checkpoint", "true")
    assert fingerprint(load_model(cut / "model")) == fingerprint(load_model(whole / "model"))


def test_an_adapter_can_be_fine_tuned_also_upon_another(learn, tmp_path):
    first = learn("first", "--use_peft", "--max_steps", 2)
    assert not (first / "model").exists()
    second = learn("second", "--use_peft", "--max_steps", 2, "--model", first / "adapter")
    layers = adapter_layers(second / "adapter")
    assert layers[1:] == [str(first / "adapter"), str(second / "adapter")]
    assert isinstance(load_model(second / "adapter"), PeftModel)
    message = refused("finetune", "--model", first / "adapter", "--output_dir", tmp_path / "third")
    assert "comes with an adapter" in message
    assert not (tmp_path / "third").exists()


def test_finetuning_needs_a_model(tmp_path):
    message = refused("finetune", "--output_dir", tmp_path / "out")
    assert "--model" in message
    assert "`llm-unlearn testbed`" in message


def test_finetuning_under_lora_has_a_learning_rate_of_its_own(learn):
    rates = {}
    for name, more in {"full": [], "lora": ["--use_peft"]}.items():
        out = learn(name, "--max_steps", 1, "--warmup_steps", 0, *more)
        rates[name] = json.loads((out / "log.jsonl").read_text().splitlines()[0])["learning_rate"]
    assert rates == {"full": 1e-5, "lora": 1e-4}
    assert FinetuneConfig(output_dir="unused", use_cpu=True, learning_rate=3e-4).learning_rate == 3e-4


def test_the_tokenizer_needs_no_pad_token():
    assert tiny_tokenizer().pad_token is None, "every run above was made without one"
