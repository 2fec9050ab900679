import copy

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import tiny_model, tiny_rows, tiny_tokenizer
from torch import nn
from transformers import BitsAndBytesConfig

from llm_unlearn.data.tokenization import ExampleTokenizer
from llm_unlearn.evaluation.outputs import gradients
from llm_unlearn.evaluation.outputs.gradients import gradient_norms
from llm_unlearn.evaluation.outputs.scoring import Branches
from llm_unlearn.models import load_model

ITEMS = ExampleTokenizer(tiny_tokenizer()).all(tiny_rows(7))
QUESTIONS = [Branches.of([item]) for item in ITEMS]


def model_of(architecture, tied):
    config = copy.deepcopy(tiny_model(architecture).config)
    config.tie_word_embeddings = tied
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = type(tiny_model(architecture))(config)
        # Biases and norms off their initial zeros and ones.
        for parameter in model.parameters():
            if parameter.dim() == 1:
                nn.init.uniform_(parameter, 0.3, 1.2)
    return model.eval()


def autograd(model, question):
    """The definition: one item, `loss.backward`, the mean of the norms of all parameter tensors."""
    model.zero_grad()
    input_ids = torch.tensor([question.prompt + question.answers[0]])
    labels = input_ids.clone()
    labels[0, : len(question.prompt)] = -100
    model(input_ids=input_ids, labels=labels).loss.backward()
    return torch.stack([parameter.grad.norm() for parameter in model.parameters()]).mean().item()


def expected_of(model, questions=QUESTIONS):
    model = copy.deepcopy(model).requires_grad_(True)
    return [autograd(model, question) for question in questions]


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2", "gpt_neo", "gpt_neox"])
def test_norms_are_those_of_autograd_one_item_at_a_time(architecture, tied):
    model = model_of(architecture, tied)
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied
    expected = expected_of(model)
    assert max(expected) > 1.1 * min(expected)
    np.testing.assert_allclose(gradient_norms(model, QUESTIONS, progress=False), expected, rtol=1e-5)


@pytest.mark.parametrize("budget", [1, 60, 10_000])
def test_the_size_of_batches_does_not_matter(budget):
    model = model_of("llama", True)
    norms = gradient_norms(model, QUESTIONS, token_budget=budget, progress=False)
    np.testing.assert_allclose(norms, expected_of(model), rtol=1e-5)


def test_both_ways_to_a_linear_layers_norm_agree():
    generator = torch.Generator().manual_seed(0)
    for tokens in (3, 30):  # 6 x 8 = 48 against 3 x 14 = 42 and 30 x 14 = 420
        a, g = torch.randn(2, tokens, 6, generator=generator), torch.randn(2, tokens, 8, generator=generator)
        expected = torch.einsum("bti,btj->bij", a, g).square().sum((1, 2))
        torch.testing.assert_close(gradients._linear_squares(a, g), expected)


def test_a_long_sequence_takes_both_ways():
    """So long that the weights' gradients are smaller than the tokens' inner products, but for the head."""
    model = model_of("llama", False)
    long = [Branches(list(range(1, 60)), [list(range(60, 110)) * 2])]
    norms = gradient_norms(model, [*long, *QUESTIONS[:2]], progress=False)
    np.testing.assert_allclose(norms, expected_of(model, [*long, *QUESTIONS[:2]]), rtol=1e-5)


def test_a_token_that_the_embedding_does_not_train():
    model = model_of("llama", True)
    model.model.embed_tokens.padding_idx = QUESTIONS[0].prompt[2]
    np.testing.assert_allclose(gradient_norms(model, QUESTIONS, progress=False), expected_of(model), rtol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_an_adapter_counts_as_what_it_would_be_merged(architecture):
    plain = model_of(architecture, tied=False)
    targets = {"llama": ["q_proj", "down_proj", "embed_tokens", "lm_head"], "gpt2": ["c_attn", "c_proj", "wpe"]}[
        architecture
    ]
    config = LoraConfig(r=2, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM", lora_dropout=0.5)
    adapted = get_peft_model(copy.deepcopy(plain), config)
    merged = expected_of(copy.deepcopy(adapted).merge_and_unload())
    before = gradient_norms(plain, QUESTIONS, progress=False)
    adapted.train()
    np.testing.assert_allclose(gradient_norms(adapted, QUESTIONS, progress=False), merged, rtol=1e-5)
    assert np.abs(np.array(before) / merged - 1).max() > 0.01
    with adapted.disable_adapter():
        np.testing.assert_allclose(gradient_norms(adapted, QUESTIONS, progress=False), before, rtol=1e-5)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_base(bits, tmp_path):
    config = copy.deepcopy(tiny_model().config)
    config.update({"hidden_size": 64, "intermediate_size": 128, "num_key_value_heads": 4, "head_dim": 16})
    type(tiny_model())(config).save_pretrained(tmp_path)
    kinds = {4: {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, 8: {"load_in_8bit": True}}
    load = {"quantization_config": BitsAndBytesConfig(**kinds[bits])}
    quantised = load_model(tmp_path, torch.float32, **load)
    plain = load_model(tmp_path, torch.float32, **load).dequantize().float()
    # 8-bit layers also round what goes into them, and their gradients.
    tolerance = {4: 1e-5, 8: 0.05}[bits]
    np.testing.assert_allclose(gradient_norms(quantised, QUESTIONS, progress=False), expected_of(plain), rtol=tolerance)
    if bits == 4:
        quantised.model.layers[1].mlp.up_proj.weight.quant_state.packing_format_for_cpu = True
        with pytest.raises(ValueError, match="gradnorm is not measured: a layer of type Linear4bit was repacked"):
            gradient_norms(quantised, QUESTIONS, progress=False)


def test_half_precision_is_measured_in_fp32():
    model = model_of("llama", True)
    norms = gradient_norms(model.to(torch.bfloat16), QUESTIONS, progress=False)
    np.testing.assert_allclose(norms, expected_of(model.float()), rtol=0.05)


def test_nothing_stays_behind(capsys):
    model = model_of("gpt2", True).train()
    model.transformer.h[0].attn.c_attn.weight.requires_grad_(False)
    flags = [parameter.requires_grad for parameter in model.parameters()]

    def assert_untouched():
        assert [parameter.requires_grad for parameter in model.parameters()] == flags
        assert all(parameter.grad is None for parameter in model.parameters())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
        assert all(module.training for module in model.modules())
        assert torch.is_grad_enabled()

    first = gradient_norms(model, QUESTIONS[:2], name="forget")
    assert "gradients of forget" in capsys.readouterr().err
    assert_untouched()
    assert gradient_norms(model, QUESTIONS[:2], progress=False) == first, "dropout is off"
    model.transformer.ln_f.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
    with pytest.raises(RuntimeError, match="out of memory"):
        gradient_norms(model, QUESTIONS, progress=False)
    model.transformer.ln_f._forward_pre_hooks.clear()
    assert_untouched()


def test_gradients_held_by_a_training_step_are_kept():
    model = model_of("llama", False)
    autograd(model, QUESTIONS[0])
    held = [parameter.grad.clone() for parameter in model.parameters()]
    gradient_norms(model, QUESTIONS[1:3], progress=False)
    assert all(torch.equal(parameter.grad, one) for parameter, one in zip(model.parameters(), held, strict=True))


class Gate(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.ones(3, 4))


def test_what_cannot_be_measured_says_so():
    model = model_of("llama", False)
    model.model.layers[0].mlp.gate = Gate()
    with pytest.raises(ValueError, match="gradnorm is not measured: a layer of type Gate is neither linear"):
        gradient_norms(model, QUESTIONS, progress=False)
    model = model_of("llama", False)
    model.model.layers[1] = model.model.layers[0]
    with pytest.raises(ValueError, match="gradnorm is not measured: a layer of type LlamaRMSNorm runs twice"):
        gradient_norms(model, QUESTIONS, progress=False)
    model = model_of("llama", False)
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    with pytest.raises(ValueError, match="gradnorm is not measured: a layer of type Linear shares a parameter"):
        gradient_norms(model, QUESTIONS, progress=False)
    dora = LoraConfig(r=2, target_modules=["q_proj"], use_dora=True, task_type="CAUSAL_LM")
    with pytest.raises(ValueError, match="gradnorm is not measured: a layer of type Linear is an adapter other than"):
        gradient_norms(get_peft_model(model_of("llama", False), dora), QUESTIONS, progress=False)
    with pytest.raises(ValueError, match="Question 0 of the retain has an empty answer"):
        gradient_norms(model, [Branches([5], [[]])], name="retain")
