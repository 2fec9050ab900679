"""A bottleneck in a model: its place, what passes it and what does not, adapters, and files."""

import copy
import json

import pytest
import torch
from codebooks import (
    IDS,
    SITES,
    bottleneck_weights,
    delete,
    logits_of,
    make_codebook_trainer,
    tiny_codebook,
    tiny_t5,
    trained_like,
    used_codes,
    with_deletions,
)
from peft import PeftModel, get_peft_model
from runs import assert_equal, probe_logits
from safetensors.torch import load_file
from tiny import tiny_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TrainerCallback
from transformers.models.gpt_neox.configuration_gpt_neox import GPTNeoXConfig

from llm_unlearn.adapters import attach_adapter, lora_config
from llm_unlearn.codebook.model import CodebookModel
from llm_unlearn.models import fingerprint, identity, load_model

# Its place.


@pytest.mark.parametrize(
    ("family", "site", "dtype"),
    [(*place, torch.float32) for place in SITES] + [("llama", "post_attn", torch.bfloat16)],
    ids=str,
)
def test_switched_off_or_taken_out_it_leaves_no_bit_behind(family, site, dtype):
    model = tiny_model(family).to(dtype)
    plain, weights = logits_of(model), fingerprint(model)
    codebook = tiny_codebook(model, site=site)
    changed = logits_of(model)
    assert (changed - plain).abs().max() > 0.1
    assert torch.equal(logits_of(codebook), changed)
    with codebook.disabled():
        assert torch.equal(logits_of(model), plain)
        with codebook.disabled():
            pass
        assert torch.equal(logits_of(model), plain)
    assert torch.equal(logits_of(model), changed)
    assert codebook.detach() is model
    assert torch.equal(logits_of(model), plain) and fingerprint(model) == weights
    assert not model._forward_pre_hooks and not [name for name, _ in model.named_modules() if "codebook" in name]
    again = tiny_codebook(model, site=site)
    assert torch.equal(logits_of(again), changed)
    with pytest.raises(ValueError, match=r"has a codebook bottleneck already: `detach` that one first"):
        tiny_codebook(model)


@pytest.mark.parametrize(("family", "site"), SITES)
@torch.no_grad()
def test_what_later_layers_read_is_what_the_bottleneck_says(family, site):
    """Built apart: the layer is run on its own, and the bottleneck's output computed from what the layer says."""
    model = tiny_model(family)
    layers = model.base_model.h if family == "gpt2" else model.base_model.layers
    came, attended, went = {}, {}, {}
    attention = next(
        module for name, module in layers[0].named_children() if name in ("self_attn", "attn", "attention")
    )
    handles = [
        layers[0].register_forward_pre_hook(lambda _m, args: came.update(x=args[0])),
        attention.register_forward_hook(lambda _m, _args, out: attended.update(x=out[0])),
        layers[0].register_forward_hook(lambda _m, _args, out: went.update(x=out)),
    ]
    logits_of(model)
    for handle in handles:
        handle.remove()
    codebook = tiny_codebook(model, site=site)
    expected = codebook.bottleneck(came["x"] + attended["x"] if site == "post_attn" else went["x"])
    seen = {}
    place = {"llama": "post_attention_layernorm", "qwen2": "post_attention_layernorm", "gpt2": "ln_2"}
    module = layers[1] if site == "block" else getattr(layers[0], place[family])
    module.register_forward_pre_hook(lambda _m, args: seen.update(x=args[0]))
    logits_of(model)
    torch.testing.assert_close(seen["x"], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("family", "site"), SITES)
@torch.no_grad()
def test_nothing_passes_round_it(family, site):
    """With all codes alike no later layer can tell one text from another."""
    codebook = tiny_codebook(family, site=site)
    first, second = logits_of(codebook)
    assert (first - second).abs().max() > 0.1
    codebook.bottleneck.codebook.weight.copy_(codebook.bottleneck.codebook.weight[0].expand(40, -1))
    first, second = logits_of(codebook)
    # Beside the attention, the layer's input is taken away and added again, which rounds.
    assert torch.equal(first, second) if site == "block" else (first - second).abs().max() < 1e-5


@pytest.mark.parametrize("site", ["block", "post_attn"])
@torch.no_grad()
def test_nothing_passes_round_it_in_t5(site):
    model = tiny_t5()
    start = {"decoder_input_ids": torch.tensor([[0, 9], [0, 9]])}
    plain = logits_of(model, **start)
    codebook = tiny_codebook(model, site=site, layer=None)
    assert codebook.config.layer == 2, "the paper's: the third encoder layer"
    changed = logits_of(codebook, **start)
    assert (changed - plain).abs().max() > 1e-2 and (changed[0] - changed[1]).abs().max() > 1e-2
    with codebook.disabled():
        assert torch.equal(logits_of(codebook, **start), plain)
    codebook.bottleneck.codebook.weight.copy_(codebook.bottleneck.codebook.weight[0].expand(40, -1))
    first, second = logits_of(codebook, **start)
    assert torch.equal(first, second)


@torch.no_grad()
def test_in_t5_it_is_behind_the_attention_and_its_residual():
    model = tiny_t5()
    block = model.encoder.block[1]
    seen = {}
    handle = block.layer[1].register_forward_pre_hook(lambda _m, args: seen.update(before=args[0]))
    logits_of(model, decoder_input_ids=torch.tensor([[0], [0]]))
    handle.remove()
    codebook = tiny_codebook(model, site="post_attn", layer=1)
    block.layer[1].register_forward_pre_hook(lambda _m, args: seen.update(after=args[0]))
    codebook.generate(IDS, max_new_tokens=3, do_sample=False)
    torch.testing.assert_close(seen["after"], codebook.bottleneck(seen["before"]), rtol=0, atol=1e-5)


def test_the_encoder_of_t5_runs_it_once_for_a_whole_generation():
    codebook = tiny_codebook(tiny_t5(), site="post_attn", layer=None)
    seen = []
    with torch.no_grad(), codebook.bottleneck.observed(seen.append):
        codebook.generate(IDS, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    assert [observed.x.shape for observed in seen] == [(2, 10, 32)]


@torch.no_grad()
def test_layers_that_hand_on_a_tuple_keep_the_rest_of_it():
    """As older versions' layers and T5's do."""
    model = tiny_model()
    plain = tiny_codebook(tiny_model())
    layer = model.model.layers[0]
    seen = {}

    def as_tuple(self, *args, **kwargs):
        return type(self).forward(self, *args, **kwargs), "attention weights"

    layer.forward = as_tuple.__get__(layer)
    codebook = tiny_codebook(model)
    # Behind the bottleneck's hook, as the model would unpack it.
    layer.register_forward_hook(lambda _m, _args, out: (seen.update(out=out), out[0])[1])
    assert torch.equal(logits_of(codebook), logits_of(plain))
    assert isinstance(seen["out"], tuple) and seen["out"][1] == "attention weights"


@pytest.mark.parametrize("site", ["block", "post_attn"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_layers_below_and_the_whole_bottleneck_get_gradients(family, site):
    codebook = tiny_codebook(family, site=site)
    codebook(input_ids=IDS).logits.pow(2).mean().backward()
    names = {name for name, parameter in codebook.base_model.named_parameters() if parameter.grad is None}
    assert not names
    below = codebook.base_model.get_input_embeddings().weight.grad
    assert below[IDS.unique()].abs().amax(-1).min() > 0
    assert {name for name, parameter in codebook.bottleneck.named_parameters() if not parameter.grad.any()} == set()
    used = {code for text in used_codes(codebook) for token in text for code in token}
    assert set(codebook.bottleneck.codebook.weight.grad.any(-1).nonzero()[:, 0].tolist()) == used


# Who may have one.


def test_a_place_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match=r"has 2 layers, 0 to 1, but the bottleneck was asked for in layer 7"):
        tiny_codebook(layer=7)
    with pytest.raises(ValueError, match=r"asked for in layer -1"):
        tiny_codebook(layer=-1)
    with pytest.raises(ValueError, match=r"Layer 1 is the last one.*choose an earlier"):
        tiny_codebook(layer=1)
    with pytest.raises(ValueError, match=r"made for a model of width 64, but this one has 32"):
        tiny_codebook(d_model=64)
    with pytest.raises(ValueError, match=r"GPTNeoXForCausalLM do not add attention before.*use the site 'block'"):
        tiny_codebook("gpt_neox", site="post_attn")
    model = tiny_model()
    plain = logits_of(model)
    with pytest.raises(ValueError, match="layer 7"):
        tiny_codebook(model, layer=7)
    assert torch.equal(logits_of(model), plain) and not hasattr(model, "codebook")


@torch.no_grad()
def test_a_neox_whose_residuals_come_one_after_another_has_both_places():
    neox = tiny_model("gpt_neox")
    config = GPTNeoXConfig(**{**neox.config.to_dict(), "use_parallel_residual": False})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    codebook = tiny_codebook(model, site="post_attn")
    codebook.bottleneck.codebook.weight.copy_(codebook.bottleneck.codebook.weight[0].expand(40, -1))
    first, second = logits_of(codebook)
    assert (first - second).abs().max() < 1e-5


def test_the_unset_layer_is_four_tenths_up():
    config = copy.deepcopy(tiny_model().config)
    config.update({"num_hidden_layers": 6, "layer_types": None})
    codebook = tiny_codebook(AutoModelForCausalLM.from_config(config), layer=None)
    assert (codebook.config.layer, codebook.config.d_model) == (2, 32)


def test_there_is_no_merging():
    with pytest.raises(TypeError, match="cannot be merged into weights"):
        tiny_codebook().merge_and_unload()


@pytest.mark.parametrize("name", ["merge_adapter", "unload", "save_distributed_checkpoint", "push_to_hub_merged"])
def test_what_would_write_the_model_without_it_is_not_forwarded(name):
    model = get_peft_model(tiny_model(), lora_config(r=4))
    model.push_to_hub_merged = lambda *_: None  # as another library may add it
    codebook = tiny_codebook(model)
    with pytest.raises(AttributeError, match=f"knows nothing of the bottleneck.*`base_model.{name}`"):
        getattr(codebook, name)
    assert not hasattr(codebook, name) and codebook.get_nb_trainable_parameters()[0] > 0


# Copies, and what the base writes.


@torch.no_grad()
def test_a_copy_has_a_bottleneck_of_its_own():
    codebook = with_deletions(tiny_codebook("llama"), "gated")
    expected = logits_of(codebook)
    twin = copy.deepcopy(codebook)
    assert torch.equal(logits_of(twin), expected)
    twin.bottleneck.codebook.weight.zero_()
    twin.registry.set_status("request", "revoked")
    twin.delete()
    assert not torch.equal(logits_of(twin), expected)
    assert torch.equal(logits_of(codebook), expected)
    assert codebook.registry["request"].status == "active"
    twin.detach()
    assert torch.equal(logits_of(codebook), expected)
    with codebook.disabled():
        assert torch.equal(logits_of(twin.base_model), logits_of(codebook))


@torch.no_grad()
def test_the_base_is_saved_without_the_codebook(tmp_path):
    model = tiny_model()
    plain = logits_of(model)
    codebook = tiny_codebook(model)
    model.save_pretrained(tmp_path)
    assert not [name for name in load_file(tmp_path / "model.safetensors") if "codebook" in name]
    assert torch.equal(logits_of(load_model(tmp_path)), plain)
    codebook.detach()
    assert not [name for name in model._keys_to_ignore_on_save or () if "codebook" in name]


@pytest.mark.parametrize(("family", "site"), [("llama", "block"), ("gpt2", "post_attn")])
@torch.no_grad()
def test_adapters_come_and_go_around_it(family, site):
    codebook = with_deletions(tiny_codebook(family, site=site), "ablate")
    expected = logits_of(codebook)
    model = attach_adapter(codebook.base_model, lora_config(r=2), seed=0)
    codebook.base_model = model
    assert torch.equal(logits_of(codebook), expected), "an adapter begins as nothing"
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert names and not [name for name in names if "codebook" in name]
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(1))
    adapted = logits_of(codebook)
    assert not torch.equal(adapted, expected)
    with model.disable_adapter():
        assert torch.equal(logits_of(codebook), expected)
    with codebook.disabled():
        without = logits_of(codebook)
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits_of(merged), adapted, rtol=0, atol=1e-4)
    assert merged.codebook is codebook.bottleneck
    codebook.base_model = merged
    torch.testing.assert_close(logits_of(codebook.detach()), without, rtol=0, atol=1e-4)


# Files.


def request_all_modes(codebook):
    ids = torch.tensor(used_codes(codebook)).flatten().unique().tolist()
    delete(codebook, "refill", ids[:4], "one")
    delete(codebook, "ablate", ids[3:8], "two")
    delete(codebook, "gated", ids[8:14], "three", threshold=2)
    delete(codebook, "ablate", ids[14:16], "four")
    codebook.registry.set_status("four", "revoked")
    codebook.delete()
    return codebook


@torch.no_grad()
def test_it_comes_back_from_its_folder(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "model")
    codebook = request_all_modes(trained_like(tiny_codebook(load_model(tmp_path / "model"))))
    expected = logits_of(codebook)
    codebook.save_pretrained(tmp_path / "codebook", card="A card.")
    files = {path.name for path in (tmp_path / "codebook").iterdir()}
    assert files == {"codebook_config.json", "codebook.safetensors", "requests.json", "README.md"}

    for loaded in (
        CodebookModel.from_pretrained(load_model(tmp_path / "model"), tmp_path / "codebook"),
        CodebookModel.load(tmp_path / "codebook"),
    ):
        assert torch.equal(logits_of(loaded), expected)
        assert_equal(bottleneck_weights(loaded), bottleneck_weights(codebook))
        assert list(loaded.registry) == list(codebook.registry) and loaded.config == codebook.config
        assert not [name for name, parameter in loaded.bottleneck.named_parameters() if parameter.requires_grad]
    loaded.save_pretrained(tmp_path / "again")
    for name in ("codebook_config.json", "codebook.safetensors", "requests.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "codebook" / name).read_bytes()
    for request in list(loaded.registry):
        loaded.registry.set_status(request.id, "revoked")
    loaded.delete()
    assert torch.equal(logits_of(loaded), logits_of(trained_like(tiny_codebook(model))))


def test_a_loaded_codebook_is_in_the_precision_it_was_saved_in(tmp_path):
    tiny_model().bfloat16().save_pretrained(tmp_path / "model")
    codebook = with_deletions(tiny_codebook(load_model(tmp_path / "model", torch.bfloat16)), "ablate")
    codebook.save_pretrained(tmp_path / "codebook")
    for loaded in (CodebookModel.load(tmp_path / "codebook"), load_model(tmp_path / "codebook")):
        assert loaded.get_input_embeddings().weight.dtype == torch.bfloat16
        assert torch.equal(logits_of(loaded), logits_of(codebook))
    # Another one has other ties and other codes.
    with pytest.raises(ValueError, match="other weights"):
        load_model(tmp_path / "codebook", torch.float32)


def test_a_model_with_it_on_off_or_elsewhere_is_another_one():
    """Or a cached evaluation of the one would be shown for the other."""
    codebook = with_deletions(tiny_codebook("llama"), "ablate")
    found = [identity(codebook.base_model)]
    with codebook.disabled():
        found.append(identity(codebook.base_model))
    codebook.registry.set_status("request", "revoked")
    codebook.delete()
    found.append(identity(codebook.base_model))
    for other in (tiny_codebook(site="post_attn"), tiny_codebook(top_s=4), tiny_codebook(tiny_model()).detach()):
        found.append(identity(other.base_model if isinstance(other, CodebookModel) else other))
    assert len(set(found)) == 6
    assert found[2] == identity(tiny_codebook("llama").base_model)


def refused_without_trace(model, folder, said):
    plain = logits_of(model)
    with pytest.raises(ValueError, match=said):
        CodebookModel.from_pretrained(model, folder)
    assert torch.equal(logits_of(model), plain) and not hasattr(model, "codebook")


def test_a_codebook_of_another_model_is_refused(tmp_path):
    codebook = tiny_codebook("llama")
    codebook.save_pretrained(tmp_path / "codebook")
    refused_without_trace(
        tiny_model(seed=1), tmp_path / "codebook", r"made for a model of other weights.*load that one"
    )
    config = copy.deepcopy(tiny_model().config)
    config.update({"hidden_size": 64, "head_dim": 16})
    wider = AutoModelForCausalLM.from_config(config).eval()
    refused_without_trace(wider, tmp_path / "codebook", r"made for a model of width 32, but this one has 64")
    file = tmp_path / "codebook" / "codebook_config.json"
    file.write_text(file.read_text().replace('"layer": 0', '"layer": 5'))
    refused_without_trace(tiny_model(), tmp_path / "codebook", r"has 2 layers, 0 to 1.*in layer 5")


def test_requests_of_another_codebook_are_refused(tmp_path):
    for seed in (0, 1):
        codebook = tiny_codebook("llama", seed=seed)
        delete(codebook, "ablate", [1, 2])
        codebook.save_pretrained(tmp_path / str(seed))
    foreign = (tmp_path / "1" / "requests.json").read_text()
    (tmp_path / "0" / "requests.json").write_text(foreign)
    refused_without_trace(tiny_model(), tmp_path / "0", r"requests.json belong to a codebook with other weights")
    (tmp_path / "0" / "requests.json").unlink()
    assert len(CodebookModel.from_pretrained(tiny_model(), tmp_path / "0").registry) == 0
    with pytest.raises(FileNotFoundError, match=r"has no codebook_config.json"):
        CodebookModel.from_pretrained(tiny_model(), tmp_path / "nowhere")


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    codebook = tiny_codebook("llama")
    with torch.no_grad():
        codebook.bottleneck.dec.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"not finite \(dec.weight\); it is not saved"):
        codebook.save_pretrained(tmp_path / "codebook")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("with_adapter", [False, True], ids=["plain", "adapted"])
def test_an_adapter_trained_with_it_is_saved_and_loaded_with_it(with_adapter, tmp_path):
    """The model may itself come with an adapter; a request and another save take nothing away."""
    tiny_model().save_pretrained(tmp_path / "model")
    if with_adapter:
        other = attach_adapter(load_model(tmp_path / "model"), lora_config(r=2), seed=3)
        with torch.no_grad():
            for name, parameter in other.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
        other.save_pretrained(tmp_path / "adapted")
    source = tmp_path / ("adapted" if with_adapter else "model")
    codebook = trained_like(tiny_codebook(load_model(source)))
    codebook.config.base = {"source": str(source)}
    trainer = make_codebook_trainer(tmp_path / "run", codebook=codebook, train="lora", learning_rate=1e-2)
    trainer.train()
    expected = probe_logits(codebook.base_model)
    codebook.save_pretrained(tmp_path / "0")
    assert (tmp_path / "0" / "lora" / "adapter_model.safetensors").is_file()
    for round_ in range(1 if with_adapter else 2):
        loaded = CodebookModel.load(tmp_path / str(round_))
        assert loaded.trained == "lora" and isinstance(loaded.base_model, PeftModel)
        assert torch.equal(probe_logits(loaded), expected)
        delete(loaded, "ablate", [1, 2, 3], f"request-{round_}")
        changed = probe_logits(loaded)
        loaded.save_pretrained(tmp_path / str(round_ + 1))
        again = CodebookModel.load(tmp_path / str(round_ + 1))
        assert torch.equal(probe_logits(again), changed)
        for request in list(again.registry):
            again.registry.set_status(request.id, "revoked")
        again.delete()
        again.save_pretrained(tmp_path / str(round_ + 1))
    with pytest.raises(ValueError, match="other weights"):
        CodebookModel.from_pretrained(tiny_model(seed=1), tmp_path / "0")


def test_weights_trained_with_it_are_saved_and_loaded_with_it(tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    codebook = trained_like(tiny_codebook(load_model(tmp_path / "model")))
    # Saved before, when the model was another one.
    codebook.save_pretrained(tmp_path / "before")
    make_codebook_trainer(tmp_path / "run", codebook=codebook, train="full").train()
    expected = probe_logits(codebook.base_model)
    codebook.save_pretrained(tmp_path / "codebook")
    loaded = CodebookModel.load(tmp_path / "codebook")
    assert loaded.trained == "full" and torch.equal(probe_logits(loaded), expected)
    delete(loaded, "ablate", [1, 2, 3])
    loaded.save_pretrained(tmp_path / "again")
    again = CodebookModel.load(tmp_path / "again")
    assert torch.equal(probe_logits(again), probe_logits(loaded))
    with pytest.raises(ValueError, match="other weights"):
        CodebookModel.from_pretrained(load_model(tmp_path / "model"), tmp_path / "codebook")


# Quantised models.


@pytest.fixture(scope="module")
def wide_folder(tmp_path_factory):
    """A Llama a little wider than the tiny one: 4-bit blocks hold 64 values."""
    folder = tmp_path_factory.mktemp("wide")
    config = copy.deepcopy(tiny_model().config)
    config.update({"hidden_size": 64, "intermediate_size": 128, "num_key_value_heads": 4, "head_dim": 16})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def quantised(folder, kind="nf4"):
    pytest.importorskip("bitsandbytes")
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=kind)
    return load_model(folder, torch.float32, quantization_config=config)


@pytest.mark.parametrize("train", ["bottleneck", "lora"])
def test_over_a_4_bit_model(train, wide_folder, tmp_path):
    codebook = trained_like(tiny_codebook(quantised(wide_folder)))
    with codebook.disabled():
        plain = probe_logits(codebook)
    before = bottleneck_weights(codebook)
    trainer = make_codebook_trainer(tmp_path / "run", codebook=codebook, train=train)
    trainer.train()
    after = bottleneck_weights(codebook)
    assert all(not torch.equal(after[name], before[name]) for name in ("enc.weight", "dec.weight", "codebook.weight"))
    assert after["codebook.weight"].dtype == torch.float32
    if train == "bottleneck":
        with codebook.disabled():
            assert torch.equal(probe_logits(codebook), plain)
    delete(codebook, "ablate", [1, 2, 3])
    expected = probe_logits(codebook)
    codebook.save_pretrained(tmp_path / "codebook")
    saved = json.loads((tmp_path / "codebook" / "codebook_config.json").read_text())
    assert saved["base"]["quantization"]["bnb_4bit_quant_type"] == "nf4"
    loaded = CodebookModel.from_pretrained(quantised(wide_folder), tmp_path / "codebook")
    assert torch.equal(probe_logits(loaded), expected)
    for other in (quantised(wide_folder, "fp4"), load_model(wide_folder)):
        with pytest.raises(ValueError, match="made for a model of other quantisation"):
            CodebookModel.from_pretrained(other, tmp_path / "codebook")


def test_a_quantised_model_is_not_trained_in_full(wide_folder, tmp_path):
    with pytest.raises(ValueError, match=r"quantised, and its weights cannot be trained: use `--train lora`"):
        make_codebook_trainer(tmp_path, codebook=tiny_codebook(quantised(wide_folder)), train="full")


# Gradient checkpointing.


class KeptGradients(TrainerCallback):
    """The gradients of the last step."""

    def on_pre_optimizer_step(self, args, state, control, model, **_):
        self.found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("family", "site", "train"),
    [("llama", "block", "bottleneck"), ("llama", "post_attn", "full"), ("gpt2", "block", "full")],
)
def test_gradient_checkpointing_changes_neither_gradients_nor_counts(family, site, train, tmp_path):
    results = []
    for checkpointing in (False, True):
        model = tiny_model(family)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        trainer = make_codebook_trainer(
            tmp_path, codebook=trained_like(tiny_codebook(model, site=site)), train=train,
            activation_checkpointing=checkpointing, max_steps=1, l1_coef=0.1,
        )  # fmt: skip
        passes = []
        observe = trainer.usage.saw
        trainer.usage.saw = lambda observed, counted, o=observe, p=passes: (
            p.append(observed.codes.shape),
            o(observed, counted),
        )
        gradients = KeptGradients()
        trainer.add_callback(gradients)
        trainer.train()
        assert model.is_activation_checkpointing == checkpointing
        assert len(passes) == 1, "one pass a step is counted"
        results.append((gradients.found, trainer.state.log_history[0]))
    assert results[0][0].keys() == results[1][0].keys()
    for name, gradient in results[0][0].items():
        torch.testing.assert_close(results[1][0][name], gradient, rtol=0, atol=1e-6, msg=name)
    keys = [key for key in results[0][1] if key.startswith(("loss", "codes"))]
    assert len(keys) > 8
    assert {key: results[1][1][key] for key in keys} == pytest.approx(
        {key: results[0][1][key] for key in keys}, abs=1e-5
    )
