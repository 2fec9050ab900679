"""Every method on every architecture: a new method earns these tests with its row in the registry."""

import copy
import math
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from runs import assert_equal, frozen_weights, losses, make_trainer, probe_logits, trained_weights
from tiny import tiny_model, tiny_rows, tiny_tokenizer

from llm_unlearn.adapters import save_adapter, without_newest_adapter
from llm_unlearn.finetune import FinetuneConfig, FinetuneTrainer
from llm_unlearn.methods import METHODS, get_method
from llm_unlearn.trainer import UnlearningTrainer

ROOT = Path(__file__).parents[1]
ARCHITECTURES = ["llama", "qwen2", "gpt2", "gpt_neox"]
WITH_RETAIN = [method for method in METHODS if method != "grad_ascent"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("method", METHODS)
def test_a_run_moves_the_adapter_alone_and_the_adapter_is_the_whole_result(method, architecture, tmp_path):
    model = tiny_model(architecture)
    before = probe_logits(model)
    trainer = make_trainer(method, tmp_path, model=model, n_forget=6)
    trained, frozen = trained_weights(trainer.model), frozen_weights(trainer.model)
    assert all("lora_" in name for name in trained)
    assert not any(".lm_head." in name for name in trained)
    trainer.train()

    assert trainer.state.global_step == 3
    after = trained_weights(trainer.model)
    assert after.keys() == trained.keys()
    assert all(not torch.equal(after[name], trained[name]) for name in trained), "every adapter weight has a gradient"
    assert_equal(frozen_weights(trainer.model), frozen)

    steps = losses(trainer)
    assert [line["step"] for line in steps] == [1, 2, 3]
    parts = {"loss", "loss/forget", "logps/forget"} | ({"loss/retain"} if method in WITH_RETAIN else set())
    for line in steps:
        assert parts <= line.keys()
        assert ("loss/retain" in line) == (method in WITH_RETAIN)
        assert all(math.isfinite(line[name]) for name in parts)
        total = trainer.args.forget_coef * line["loss/forget"]
        weight = 1.5 if method == "icu" else trainer.args.retain_coef  # of learn and KL term together
        total += weight * line.get("loss/retain", 0)
        assert line["loss"] == pytest.approx(total, abs=1e-4)  # the Trainer rounds nothing but its own printing

    changed = probe_logits(trainer.model)
    assert (changed - before).abs().max() > 1e-3
    save_adapter(trainer.model, tmp_path / "adapter", {"method": method}, "card")
    reloaded = PeftModel.from_pretrained(tiny_model(architecture), tmp_path / "adapter")
    assert torch.equal(probe_logits(reloaded), changed)
    with reloaded.disable_adapter():
        assert torch.equal(probe_logits(reloaded), before)
    with without_newest_adapter(trainer.model):
        assert torch.equal(probe_logits(trainer.model), before)
    assert torch.equal(probe_logits(trainer.model), changed)
    assert torch.equal(probe_logits(trainer.model.unload()), before)


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    """A model that has learned the rows of `make_trainer`, made by the code that makes real targets."""
    args = FinetuneConfig(
        output_dir=str(tmp_path_factory.mktemp("target")),
        num_train_epochs=25,
        per_device_train_batch_size=14,
        gradient_accumulation_steps=1,
        learning_rate=1e-2,
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
    )
    trainer = FinetuneTrainer(tiny_model(), args, tiny_rows(6) + tiny_rows(8, first=20), tiny_tokenizer())
    trainer.train()
    return trainer.model


@pytest.mark.parametrize("method", METHODS)
def test_the_forget_answers_become_unlikely(method, target, tmp_path):
    # The coefficient is 1 also for SimNPO, whose default of an eighth takes longer.
    options = {"num_train_epochs": 8, "forget_coef": 1.0, "forget_cap": "ln_vocab"}
    trainer = make_trainer(method, tmp_path, model=copy.deepcopy(target), **options)
    trainer.train()
    steps = losses(trainer)
    assert steps[0]["logps/forget"] > -0.3, "the target knows them"
    assert steps[-1]["logps/forget"] < -1.0
    assert steps[-1]["loss/forget"] < steps[0]["loss/forget"]
    if method in WITH_RETAIN:
        assert steps[-1]["loss/retain"] < -steps[-1]["logps/forget"], "what is kept stays likelier than what is not"


@pytest.mark.parametrize("method", METHODS)
def test_full_fine_tuning(method, tmp_path):
    trainer = make_trainer(method, tmp_path, lora=False, learning_rate=1e-3)
    before = trained_weights(trainer.model)
    # Everything trains: a plain model has no weights that are not parameters.
    assert set(before) >= set(dict(trainer.model.named_parameters()))
    trainer.train()
    after = trained_weights(trainer.model)
    assert all(not torch.equal(after[name], before[name]) for name in before)
    trainer.model.save_pretrained(tmp_path / "model")
    reloaded = type(trainer.model).from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert torch.equal(probe_logits(reloaded), probe_logits(trainer.model))


@pytest.mark.parametrize("method", METHODS)
def test_full_fine_tuning_of_bf16_weights_is_refused(method, tmp_path):
    with pytest.raises(ValueError, match=r"weights are torch.bfloat16.*--dtype float32.*--use_peft"):
        make_trainer(method, tmp_path, model=tiny_model().bfloat16(), lora=False)


@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_over_bf16_weights_is_fp32(method, tmp_path):
    trainer = make_trainer(method, tmp_path, model=tiny_model().bfloat16())
    frozen = frozen_weights(trainer.model)
    trainer.train()
    assert all(weight.dtype == torch.float32 for weight in trained_weights(trainer.model).values())
    assert all(tensor.dtype == torch.bfloat16 for name, tensor in frozen.items() if "inv_freq" not in name)
    assert_equal(frozen_weights(trainer.model), frozen)
    assert all(math.isfinite(line["loss"]) for line in losses(trainer))


# The registry and what stands beside it.


def test_registry_files_recipes_and_presets_agree():
    names = set(METHODS)
    files = {path.stem for path in (ROOT / "llm_unlearn" / "methods").glob("*.py")} - {"__init__"}
    recipes = {path.stem for path in (ROOT / "recipes").glob("*.py")} - {"common", "finetune"}
    # Recipes of other things than a method.
    recipes = {name for name in recipes if not name.startswith(("codeunlearn", "probe_"))}
    presets = {path.stem.removesuffix("-testbed") for path in (ROOT / "recipes" / "configs").glob("*-testbed.yaml")}
    assert files == names
    assert recipes == names
    assert presets == names | {"codeunlearn", "codeunlearn_forget"}


@pytest.mark.parametrize("method", METHODS)
def test_a_row_of_the_registry_tells_the_truth(method):
    row = get_method(method)
    config, trainer = row.load()
    assert config.__name__ == f"{row.class_prefix}Config"
    assert trainer.__name__ == f"{row.class_prefix}Trainer"
    assert trainer.__bases__ == (UnlearningTrainer,), "methods are final: nothing between them and the base"
    # ICU's is a property: it depends on the forget loss.
    assert ("reference log-probs" in row.needs) == (trainer.needs_reference_logps is True)
    needs_retain = config(output_dir="unused", report_to="none", use_cpu=True).retain_coef > 0
    assert ("retain set" in row.needs) == needs_retain
    module = __import__(f"llm_unlearn.methods.{method}", fromlist=["_"])
    assert row.paper in module.__doc__
    assert "Badge: *" in module.__doc__
    assert "| paper | here |" in module.__doc__


def test_an_unknown_method_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"no method 'nppo'. Did you mean 'npo'\? Known: grad_ascent, "):
        get_method("nppo")


@pytest.mark.parametrize("method", METHODS)
def test_a_preset_holds_fields_of_its_config_and_nothing_else(method):
    config, _ = METHODS[method].load()
    preset = yaml.safe_load((ROOT / "recipes" / "configs" / f"{method}-testbed.yaml").read_text())
    # lora_* and pair_* are flags of the recipe.
    own = {key: value for key, value in preset.items() if not key.startswith(("lora_", "pair_"))}
    config(output_dir="unused", report_to="none", use_cpu=True, **own)
