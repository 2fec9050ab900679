"""Adapters, and models that come as base + adapter: put on, revoked, saved, rebuilt, merged, fingerprinted."""

import copy
import errno
import json

import pytest
import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from runs import assert_close, assert_equal, frozen_weights, losses, make_trainer, probe_logits, trained_weights
from tiny import tiny_model, tiny_rows, tiny_tokenizer
from transformers import BitsAndBytesConfig

from llm_unlearn.adapters import (
    RECORD_NAME,
    attach_adapter,
    load_record,
    lora_config,
    merge_adapter,
    save_adapter,
    without_newest_adapter,
)
from llm_unlearn.data.collator import collate
from llm_unlearn.data.tokenization import ExampleTokenizer
from llm_unlearn.forward import AnswerScores, answer_logits
from llm_unlearn.models import adapter_layers, fingerprint, load_model, load_tokenizer

ARCHITECTURES = ["llama", "gpt2"]


def save_base(folder, architecture="llama"):
    """A plain model folder with its tokenizer."""
    tiny_model(architecture).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def train_layer(source, folder, method="simnpo", **options):
    """One unlearning run on top of `source`; its adapter folder."""
    trainer = make_trainer(method, folder, model=load_model(source), **options)
    trainer.train()
    record = {"method": method, "base": {"source": str(source)}}
    save_adapter(trainer.model, folder / "adapter", record, "# card")
    return folder / "adapter"


@pytest.fixture(scope="module", params=ARCHITECTURES)
def stack(request, tmp_path_factory):
    """A base and two adapters, each trained on what lies below."""
    folder = tmp_path_factory.mktemp(request.param)
    base = save_base(folder / "base", request.param)
    first = train_layer(base, folder / "first")
    second = train_layer(first, folder / "second", seed=7)
    return base, first, second


@pytest.fixture(scope="module")
def llama_stack(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama_stack")
    base = save_base(folder / "base")
    return base, train_layer(base, folder / "first")


# A model that is itself base + adapter.


def test_load_model_rebuilds_the_whole_stack(stack):
    base, first, second = stack
    assert adapter_layers(base) == []
    assert adapter_layers(first) == [str(base), str(first)]
    assert adapter_layers(second) == [str(base), str(first), str(second)]
    logits = [probe_logits(load_model(source)) for source in stack]
    assert (logits[0] - logits[1]).abs().max() > 1e-3
    assert (logits[1] - logits[2]).abs().max() > 1e-3
    # Each layer was saved by a run that stood on those below, and is found there bit for bit.
    model = load_model(second)
    assert model.base_model.active_adapters == ["reference_0", "reference_1"]
    assert not any(weight.requires_grad for weight in model.parameters())
    assert not model.training
    model.base_model.set_adapter(["reference_0"])
    assert torch.equal(probe_logits(model), logits[1])
    with model.disable_adapter():
        assert torch.equal(probe_logits(model), logits[0])
    assert load_tokenizer(second).get_vocab() == tiny_tokenizer().get_vocab()


def test_a_stack_is_found_by_the_records_not_by_the_name_of_the_base(llama_stack, tmp_path):
    """peft's own field names the plain base of every layer."""
    _, first = llama_stack
    second = train_layer(first, tmp_path)
    config = json.loads((second / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] != str(first)
    assert load_record(second)["base"]["source"] == str(first)


@pytest.mark.parametrize("method", ["npo", "idk_dpo", "simnpo"])
@pytest.mark.parametrize("retain_loss", ["nll", "kl"])
def test_the_reference_is_the_model_with_the_adapters_it_came_with(method, retain_loss, stack, tmp_path):
    _, _, second = stack
    came = load_model(second)
    trainer = make_trainer(method, tmp_path, model=load_model(second), retain_loss=retain_loss)
    frozen, before = frozen_weights(trainer.model), probe_logits(came)
    assert any(".reference_1." in name for name in frozen)
    assert all(".default." in name for name in trained_weights(trainer.model))
    assert torch.equal(probe_logits(trainer.model), before), "a fresh adapter adds exact zeros"
    trainer.train()

    if retain_loss == "kl" and trainer.model.config.model_type == "llama":  # GPT-2's dropout is on in training
        assert losses(trainer)[0]["loss/retain"] == pytest.approx(0, abs=1e-6)
    if method != "simnpo":
        half = collate(ExampleTokenizer(tiny_tokenizer()).all(tiny_rows(6)), pad_id=0)
        with torch.no_grad():
            sums = AnswerScores.of(answer_logits(came, came, half)).sums
        torch.testing.assert_close(trainer.reference.logps.forget_sums, sums, rtol=1e-5, atol=1e-4)
    assert_equal(frozen_weights(trainer.model), frozen)
    changed = probe_logits(trainer.model)
    assert (changed - before).abs().max() > 1e-3

    # Revoked by switching off, and by removing.
    with without_newest_adapter(trainer.model):
        assert torch.equal(probe_logits(trainer.model), before)
    assert torch.equal(probe_logits(trainer.model), changed)
    assert all(".default." in name for name in trained_weights(trainer.model))
    trainer.model.base_model.set_adapter(["reference_0", "reference_1"])
    trainer.model.delete_adapter("default")
    assert torch.equal(probe_logits(trainer.model), before)


def test_a_third_layer_is_saved_and_rebuilt(stack, tmp_path):
    _, _, second = stack
    trainer = make_trainer("npo", tmp_path, model=load_model(second))
    trainer.train()
    save_adapter(trainer.model, tmp_path / "adapter", {"base": {"source": str(second)}}, "card")
    # Only the trained adapter is written, at the top of the folder.
    names = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", RECORD_NAME, "README.md"}
    rebuilt = load_model(tmp_path / "adapter")
    assert sorted(rebuilt.peft_config) == ["reference_0", "reference_1", "reference_2"]
    assert torch.equal(probe_logits(rebuilt), probe_logits(trainer.model))


def test_a_run_on_a_stack_resumes(stack, tmp_path):
    _, first, _ = stack
    options = {"num_train_epochs": 2, "save_strategy": "epoch", "save_total_limit": None}
    whole = make_trainer("npo", tmp_path, model=load_model(first), **options)
    whole.train()
    resumed = make_trainer("npo", tmp_path / "resumed", model=load_model(first), **options)
    frozen = frozen_weights(resumed.model)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert resumed.model.base_model.active_adapters == ["reference_0", "default"]
    assert_close(trained_weights(resumed.model), trained_weights(whole.model), atol=1e-6)
    assert_equal(frozen_weights(resumed.model), frozen)
    torch.testing.assert_close(resumed.reference.logps.forget_sums, whole.reference.logps.forget_sums)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox"])
def test_all_linear_layers_are_the_same_on_a_stack(architecture, tmp_path):
    def adapted(model, adapter):
        return {
            name for name, module in model.named_modules() if isinstance(module, LoraLayer) and adapter in module.lora_A
        }

    plain = attach_adapter(tiny_model(architecture), lora_config(r=2), seed=0)
    # A first layer that touches a part of the modules only.
    target = {"llama": "q_proj", "gpt2": "c_fc", "gpt_neox": "dense"}[architecture]
    partial = attach_adapter(
        tiny_model(architecture), LoraConfig(r=2, target_modules=[target], task_type="CAUSAL_LM"), seed=0
    )
    partial.save_pretrained(tmp_path / "partial")
    stacked = PeftModel.from_pretrained(tiny_model(architecture), tmp_path / "partial", adapter_name="reference_0")
    stacked = attach_adapter(stacked, lora_config(r=2), seed=0)
    assert adapted(stacked, "default") == adapted(plain, "default")
    assert adapted(stacked, "reference_0") < adapted(plain, "default")
    assert trained_weights(stacked).keys() == trained_weights(plain).keys()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_adapter_of_a_stack_is_fp32(dtype, llama_stack, tmp_path):
    _, first = llama_stack
    trainer = make_trainer("npo", tmp_path, model=load_model(first, dtype), max_steps=1)
    trainer.train()
    by_kind = {"lora_": set(), "base": set()}
    for name, parameter in trainer.model.named_parameters():
        by_kind["lora_" if "lora_" in name else "base"].add(parameter.dtype)
    assert by_kind == {"lora_": {torch.float32}, "base": {dtype}}


def test_a_second_trainable_adapter_is_refused(llama_stack):
    model = attach_adapter(tiny_model(), lora_config(r=2), seed=0)
    with pytest.raises(ValueError, match=r"already has an adapter 'default'.*`llm_unlearn.load_model`.*merge it first"):
        attach_adapter(model, lora_config(r=2), seed=0)


# Randomness and identity.


def test_the_adapter_depends_on_the_seed_alone_and_leaves_the_global_state(llama_stack):
    _, first = llama_stack
    for make in (tiny_model, lambda: load_model(first)):
        adapters = []
        for seed in (3, 3, 4):
            model = make()
            torch.manual_seed(len(adapters))
            before = torch.get_rng_state()
            adapters.append(trained_weights(attach_adapter(model, lora_config(r=2), seed=seed)))
            assert torch.equal(torch.get_rng_state(), before)
        assert_equal(adapters[0], adapters[1])
        assert any(not torch.equal(adapters[0][name], adapters[2][name]) for name in adapters[0])


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox"])
def test_a_fingerprint_is_that_of_the_model_one_started_from(architecture, tmp_path):
    model = tiny_model(architecture)
    plain = fingerprint(model)
    assert plain == fingerprint(tiny_model(architecture))
    trainer = make_trainer("simnpo", tmp_path, model=model)
    assert fingerprint(trainer.model) == plain
    trainer.train()
    assert fingerprint(trainer.model) == plain
    assert fingerprint(trainer.model.unload()) == plain

    for change in ("one weight", "dtype", "seed"):
        other = tiny_model(architecture, seed=1 if change == "seed" else 0)
        if change == "one weight":
            with torch.no_grad():
                next(other.parameters()).view(-1)[5].add_(1e-4)
        assert fingerprint(other.bfloat16() if change == "dtype" else other) != plain


def test_a_fingerprint_of_a_stack_covers_its_adapters(stack, tmp_path):
    base, first, second = stack
    prints = [fingerprint(load_model(source)) for source in stack]
    assert len(set(prints)) == 3
    trainer = make_trainer("simnpo", tmp_path, model=load_model(second), max_steps=2)
    trainer.train()
    assert fingerprint(trainer.model) == prints[2]
    with torch.no_grad():
        next(p for n, p in trainer.model.named_parameters() if ".reference_0." in n).view(-1)[0].add_(1e-4)
    assert fingerprint(trainer.model) != prints[2]


# Saving.


@pytest.fixture
def trained(tmp_path):
    trainer = make_trainer("simnpo", tmp_path / "run", max_steps=1)
    trainer.train()
    return trainer.model


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_saved_adapter_explains_itself(trained, tmp_path):
    save_adapter(trained, tmp_path / "adapter", {"method": "simnpo"}, "# card\n")
    assert load_record(tmp_path / "adapter") == {"schema": "llm-unlearn/adapter/1", "method": "simnpo"}
    assert (tmp_path / "adapter" / "README.md").read_text() == "# card\n"
    assert trained.training and trained_weights(trained), "saving changes nothing"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    with pytest.raises(FileNotFoundError, match=r"has no unlearning_config.json.*give the `adapter` folder"):
        load_record(tmp_path)


@pytest.mark.parametrize("older", [False, True], ids=["new", "over an older one"])
@pytest.mark.parametrize("where", ["weights", "record", "card"])
def test_a_full_disk_leaves_nothing_half_written(where, older, trained, tmp_path, monkeypatch):
    place = tmp_path / "out"
    if older:
        save_adapter(trained, place / "adapter", {"method": "older"}, "older")
    before = contents(tmp_path)
    parts = {
        "weights": "peft.peft_model.safe_save_file",
        "record": "llm_unlearn.adapters.write_json",
        "card": "pathlib.Path.write_text",
    }

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(parts[where], full)
    with pytest.raises(OSError, match="adapter could not be written.*No space left.*free space or choose another"):
        save_adapter(trained, place / "adapter", {"method": "newer"}, "newer")
    monkeypatch.undo()
    assert contents(tmp_path) == before
    assert {path.name for path in place.iterdir()} == ({"adapter"} if older else set())
    save_adapter(trained, place / "adapter", {"method": "newer"}, "newer")
    assert load_record(place / "adapter")["method"] == "newer"
    assert {path.name for path in place.iterdir()} == {"adapter"}


def test_weights_that_are_not_finite_are_not_saved(trained, tmp_path):
    with torch.no_grad():
        next(weight for weight in trained.parameters() if weight.requires_grad).view(-1)[3] = torch.nan
    with pytest.raises(ValueError, match=r"non-finite weights \(.*lora_A.default.weight and 0 more\)"):
        save_adapter(trained, tmp_path / "adapter", {}, "card")
    assert not (tmp_path / "adapter").exists()


# Merging.


def test_a_merged_model_is_a_plain_model_with_the_same_logits(stack, tmp_path):
    _, first, second = stack
    trainer = make_trainer("simnpo", tmp_path / "run", model=load_model(second))
    trainer.train()
    expected = probe_logits(trainer.model)
    merge_adapter(trainer.model, tmp_path / "merged", tiny_tokenizer())
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    merged = load_model(tmp_path / "merged")
    assert not isinstance(merged, PeftModel)
    torch.testing.assert_close(probe_logits(merged), expected, rtol=0, atol=1e-5)
    assert load_tokenizer(tmp_path / "merged").get_vocab() == tiny_tokenizer().get_vocab()


# Quantised bases. bitsandbytes' layers also run on a CPU.


def quantised(folder, bits):
    """A function that loads a quantised model, a little wider than the tiny one: 4-bit blocks hold 64 values."""
    config = copy.deepcopy(tiny_model().config)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16}
    config.update({"hidden_size": 64, "intermediate_size": 128, **heads})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        type(tiny_model())(config).save_pretrained(folder)
    kinds = {4: {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, 8: {"load_in_8bit": True}}
    return lambda: load_model(folder, torch.float32, quantization_config=BitsAndBytesConfig(**kinds[bits]))


@pytest.mark.parametrize("bits", [4, 8])
def test_an_evaluation_before_training_does_not_change_the_gradients(bits, tmp_path):
    """On CPUs that compute in bf16, bitsandbytes would repack 4-bit weights for a kernel without backward."""
    load, results = quantised(tmp_path / "base", bits), []
    for evaluated in (False, True):
        model = load()
        if evaluated:
            probe_logits(model)
        trainer = make_trainer("simnpo", tmp_path, model=model)
        trainer.model.train()
        batch = next(iter(trainer.get_train_dataloader()))
        trainer.compute_loss(trainer.model, batch).backward()
        results.append({name: p.grad for name, p in trainer.model.named_parameters() if p.requires_grad})
    assert_equal(*results)
    assert all(grad.abs().max() > 0 for name, grad in results[0].items() if "lora_B" in name)


def test_4_bit_weights_repacked_before_we_got_them_are_refused(tmp_path):
    model = quantised(tmp_path / "base", 4)()
    layer = model.model.layers[0].self_attn.q_proj
    layer.weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(ValueError, match=r"repacked the model's 4-bit weights.*load it anew, with"):
        attach_adapter(model, lora_config(r=2), seed=0)


@pytest.mark.parametrize("retain_loss", ["nll", "kl"])
@pytest.mark.parametrize("bits", [4, 8])
def test_an_adapter_over_a_quantised_base(bits, retain_loss, tmp_path):
    load = quantised(tmp_path / "base", bits)
    model = load()
    before, started_from = probe_logits(model), fingerprint(model)
    trainer = make_trainer("npo", tmp_path / "run", model=model, retain_loss=retain_loss)
    frozen = frozen_weights(trainer.model)
    assert {torch.uint8 if bits == 4 else torch.int8} <= {tensor.dtype for tensor in frozen.values()}
    trained = trained_weights(trainer.model)
    assert {weight.dtype for weight in trained.values()} == {torch.float32}
    trainer.train()
    assert trainer.state.global_step == 3
    assert_equal(frozen_weights(trainer.model), frozen)
    after = trained_weights(trainer.model)
    assert all(not torch.equal(after[name], trained[name]) for name in trained)
    assert fingerprint(trainer.model) == started_from
    if retain_loss == "kl":
        # 8-bit layers treat outlying columns apart, and which those are depends on the whole batch.
        assert losses(trainer)[0]["loss/retain"] == pytest.approx(0, abs=1e-6 if bits == 4 else 5e-3)

    changed = probe_logits(trainer.model)
    assert (changed - before).abs().max() > 1e-3
    with without_newest_adapter(trainer.model):
        assert torch.equal(probe_logits(trainer.model), before)
    save_adapter(trainer.model, tmp_path / "adapter", {}, "card")
    assert torch.equal(probe_logits(PeftModel.from_pretrained(load(), tmp_path / "adapter")), changed)
    with pytest.raises(ValueError, match=r"quantised and cannot take up an adapter.*then merge"):
        merge_adapter(trainer.model, tmp_path / "merged", tiny_tokenizer())
    assert not (tmp_path / "merged").exists()


def test_full_fine_tuning_of_a_quantised_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"--use_peft"):
        make_trainer("npo", tmp_path, model=quantised(tmp_path / "base", 4)(), lora=False)
