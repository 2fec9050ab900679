"""`recipes/icu.py` and `--refine` on other recipes, as a user starts them, with good input and bad."""

import json

import pytest
import torch
from recipe import refused, run_recipe, save_tiny_model, tiny_data, write_rows
from tiny import tiny_model, tiny_rows
from transformers import BitsAndBytesConfig, TrainingArguments

import llm_unlearn.models
from llm_unlearn.refinement.callback import FILE_NAME


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def flags(model, data, tmp_path):
    return ["--model", model, "--dataset", data, "--forget_split", "forget", "--retain_split", "retain"] + [
        "--output_dir", tmp_path / "out", "--num_train_epochs", 2, "--eval", "none", "--save_strategy", "no",
        "--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 1, "--el_n", 3,
    ]  # fmt: skip


def record(tmp_path):
    return json.loads((tmp_path / "out" / "adapter" / "unlearning_config.json").read_text())


@pytest.mark.parametrize("method", ["npo", "simnpo", "grad_ascent", "idk_dpo"])
def test_any_objective_can_be_refined(method, flags, tmp_path, capsys):
    run_recipe(method, *flags, "--refine", "--iur_bleu", 0, "--iur_bert_f1", 0.2, "--iur_beams", 1)
    refinement = record(tmp_path)["refinement"]
    assert (refinement["judge"], refinement["encoder"], refinement["bert_f1"]) == ("text", "model", 0.2)
    assert refinement["outcome"] and refinement["outcome"] in " ".join(capsys.readouterr().out.split())
    looks = [json.loads(line) for line in (tmp_path / "out" / FILE_NAME).read_text().splitlines()]
    assert len(looks) == 3 * 6, "before training and after two epochs"
    assert {look["active"] for look in looks[:6]} == {True, False}
    assert all(look["active"] == (look["bert_f1"] >= 0.2) for look in looks)
    assert record(tmp_path)["arguments"]["iur_bert_f1"] == 0.2


def test_a_run_without_refinement_says_nothing_of_it(flags, tmp_path):
    run_recipe("npo", *flags)
    written = record(tmp_path)
    assert written["refinement"] is None and written["pairing"] is None
    assert not any(name.startswith("iur_") for name in written["arguments"])
    assert not (tmp_path / "out" / FILE_NAME).exists()


def test_the_run_says_which_pairs_it_made_and_the_report_too(flags, tmp_path):
    flags = [*flags, "--eval", "train", "--iur_judge", "none", "--stop_ma", 0.0]
    run_recipe("icu", *flags, "--pair_k", 3, "--pair_rotate")
    pairing = record(tmp_path)["pairing"]
    assert (pairing["pool"], pairing["encoder"], pairing["pairs"]) == ("retain split", "tfidf", 6)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["provenance"]["run"]["pairing"] == pairing
    assert report["provenance"]["run"]["refinement"]["judge"] == "none"


@pytest.mark.parametrize("form", ["question_answer", "text"])
def test_nothing_but_forget_rows_is_needed(form, model, tmp_path, capsys):
    """The retain rows are the model's own texts."""
    rows = tiny_rows(6) if form == "question_answer" else [{"text": row["answer"]} for row in tiny_rows(6)]
    own = ["--text_column", "text", "--iur_prefix", 2, 4] if form == "text" else []
    source = write_rows(tmp_path / "rows.jsonl", rows)
    run_recipe(
        "icu", "--model", model, "--dataset", source, "--forget_split", "train", "--pair_pool", "self", *own,
        "--output_dir", tmp_path / "out", "--eval", "none", "--num_train_epochs", 1, "--save_strategy", "no",
        "--iur_judge", "none", "--stop_ma", 0, "--el_n", 2, "--el_start", 2,
    )  # fmt: skip
    written = record(tmp_path)
    assert written["data"]["retain"] is None
    assert written["pairing"]["pool"] == "self" and written["pairing"]["pool_rows"] > 6
    assert "Pairs: 6 pairs" in capsys.readouterr().out


def test_a_run_in_which_all_was_forgotten_at_the_start_ends_at_once_and_says_so(flags, tmp_path, capsys):
    run_recipe("icu", *flags)
    assert "every forget item was forgotten at the start" in " ".join(capsys.readouterr().out.split())
    assert record(tmp_path)["steps"] <= 1


def test_a_run_in_which_nothing_is_ever_forgotten_ends_at_the_cap_and_says_so(flags, capsys):
    run_recipe("icu", *flags, "--iur_bleu", 0, "--iur_bert_f1", 0)
    output = " ".join(capsys.readouterr().out.split())
    assert "the stop rule was not reached within 2 epochs, with 6 of 6 forget items active" in output


def test_the_paper_preset_is_the_released_code(tmp_path):
    """Loss, flags, rules and optimiser of the released script for 125M parameters."""
    from common import ModelArguments, UnlearnArguments, parse

    from llm_unlearn.methods.icu import ICUConfig

    classes = (UnlearnArguments, ICUConfig, ModelArguments)
    argv = ["--config", "icu-paper", "--model", "unused", "--output_dir", str(tmp_path), "--use_cpu"]
    data, args, model = parse("icu", argv, *classes)
    released = {
        "forget_coef": 1.0, "learn_coef": 0.5, "kl_coef": 1.0, "forget_loss": "ga", "forget_token_scope": "all",
        "kl_form": "ce", "kl_direction": "fwd", "kl_mask_pad": False, "learning_rate": 5e-6, "adam_beta1": 0.9,
        "adam_beta2": 0.98, "weight_decay": 0.0, "warmup_steps": 0, "max_grad_norm": 0.0, "seed": 42,
        "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "max_length": 200, "refine": True,
        "iur_judge": "text", "iur_prefix": [100, 150], "iur_context": "prefix", "iur_new_tokens": 50, "iur_beams": 2,
        "iur_bleu": 0.01, "iur_smoothing": "none", "iur_rule": "or", "iur_reentry": True, "iur_drop_partner": True,
        "iur_every": 1, "iur_patience": 1, "iur_screen": False, "stop_ma": 0.5994, "stop_el": 0.0499,
        "stop_rule": "and", "el_n": 10, "el_start": 150, "el_denominator": "label",
    }  # fmt: skip
    assert {name: getattr(args, name) for name in released} == released
    assert args.lr_scheduler_type == "constant" and not model.use_peft
    pairs = {"pairing": "nearest", "pair_k": 10, "pair_rank": 0, "pair_rotate": False, "pair_max_overlap": None}
    assert {name: getattr(data, name) for name in pairs} == pairs and data.pair_text_slice == [100, 200]
    # What the preset states are also the defaults, but for what belongs to a model or to full weights.
    own = {"learning_rate", "seed", "max_length", "stop_ma", "stop_el", "adam_beta2", "weight_decay", "warmup_steps",
           "max_grad_norm", "gradient_accumulation_steps", "iur_new_tokens", "forget_token_scope"}  # fmt: skip
    plain = ICUConfig(output_dir=str(tmp_path), use_cpu=True)
    shared = released.keys() - own
    assert {name: getattr(plain, name) for name in shared} == {name: released[name] for name in shared}


@pytest.mark.parametrize(("more", "models"), [([], 2), (["--reference_top_k", 8], 1)], ids=["all tokens", "top k"])
def test_all_weights_are_trained_with_a_second_model_or_with_a_table(more, models, flags, tmp_path, monkeypatch):
    loaded, load_model = [], llm_unlearn.models.load_model
    monkeypatch.setattr("llm_unlearn.models.load_model", lambda *a, **k: loaded.append(1) or load_model(*a, **k))
    run_recipe("icu", *flags, "--no_use_peft", "--no_refine", "--max_steps", 1, *more)
    assert len(loaded) == models
    record = json.loads((tmp_path / "out" / "model" / "unlearning_config.json").read_text())
    assert record["arguments"].get("reference_top_k") == (more[1] if more else None)


def no_model(*_args, **_kwargs):
    raise AssertionError("the mistake was to be found before a model is loaded")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--iur_judge", "memory"], r"'memory' compares with .*--reference.*--holdout_split.*--stop_ma"),
        (["--iur_judge", "none"], r"'none' compares with .*--stop_el"),
        (["--iur_judge", "psychic"], "invalid choice: 'psychic'"),
        (["--pair_pool", "FORGET"], "forget texts"),
        (["--pair_max_overlap", "1"], "--pair_max_overlap.*--pair_pool"),
        (["--pair_encoder", "bm25", "--pair_index", "x"], "`--pair_index` .* dense"),
        (["--pairing", "random", "--pair_pool", "x"], "`--pair_pool` is for neighbours.* `--pairing nearest`"),
        (["--pair_pool", "self", "--pair_pool_split", "x"], "`--pair_pool_split` is 'x'.* no splits"),
        (["--pair_k", "2", "--pair_rank", "2"], "--pair_rank"),
        (["--iur_prefixx", "1"], "no flag '--iur_prefixx'. Did you mean '--iur_prefix'"),
        (["--learn_coef", "-1"], "`learn_coef` is -1"),
        (["--retain_coef", "2"], "weigh its terms by `learn_coef`"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_a_model_is_loaded(more, message, flags, data, tmp_path, monkeypatch):
    import re

    monkeypatch.setattr("llm_unlearn.models.load_model", no_model)
    more = [data / "forget.jsonl" if flag == "FORGET" else flag for flag in more]
    assert re.search(message, refused("icu", *flags, *more))
    assert not (tmp_path / "out" / "adapter").exists()


def test_texts_that_are_shorter_than_their_prompt_are_refused(model, tmp_path, monkeypatch):
    monkeypatch.setattr("llm_unlearn.models.load_model", no_model)
    source = write_rows(tmp_path / "rows.jsonl", [{"text": row["answer"]} for row in tiny_rows(9)])
    message = refused(
        "icu", "--model", model, "--dataset", source, "--text_column", "text", "--forget_split", "train[0:4]",
        "--retain_split", "train[4:9]", "--output_dir", tmp_path / "out",
    )  # fmt: skip
    assert "Row 0 of the forget rows has" in message and "--iur_prefix" in message


def test_fewer_pool_texts_than_forget_texts_repeat(flags, tmp_path, capsys):
    run_recipe("icu", *flags, "--retain_split", "retain[0:2]", "--no_refine", "--max_steps", 1)
    assert record(tmp_path)["pairing"]["rows"] <= 2
    assert "6 pairs with" in capsys.readouterr().out


@pytest.mark.parametrize("quantised", [False, True])
def test_partners_that_need_the_model_are_found_on_the_runs_device(quantised, flags, monkeypatch):
    """On a device that every machine has: one without memory. A quantised model lies where it was loaded to."""
    model = tiny_model()
    if quantised:
        model.config.quantization_config = BitsAndBytesConfig(load_in_8bit=True)

    def found(pairing, data, forget, split, tokenizer, model=None, *_):
        raise ValueError(f"asked on {model.device.type}")

    monkeypatch.setattr("llm_unlearn.models.load_model", lambda *_, **__: model)
    monkeypatch.setattr("llm_unlearn.partners.find_partners", found)
    monkeypatch.setattr(
        TrainingArguments, "device", property(lambda args: args._setup_devices and torch.device("meta"))
    )
    assert refused("icu", *flags, "--pair_encoder", "model") == f"asked on {'cpu' if quantised else 'meta'}"
