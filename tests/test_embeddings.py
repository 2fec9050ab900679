"""Vectors of tokens: against one text at a time, and BERTScore against explicit loops and against the package."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import END_OF_TEXT, tiny_model, tiny_rows, tiny_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from llm_unlearn.evaluation.metrics.similarity import bert_score
from llm_unlearn.evaluation.outputs.embeddings import HiddenStates, HubEncoder

TEXTS = [row["answer"] for row in tiny_rows(9)]


def quiet_states(model, tokenizer, **options):
    return HiddenStates(model, tokenizer, progress=False, **options)


def alone(model, ids, layer):
    """Normalised hidden states of one text, from the whole model."""
    with torch.no_grad():
        states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[layer][0].double().numpy()
    return states / np.sqrt((states**2).sum(-1, keepdims=True))


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2", "gpt_neox", "gpt_neo"])
def test_a_models_own_vectors_are_those_of_one_text_at_a_time(architecture):
    model, tokenizer = tiny_model(architecture), tiny_tokenizer()
    for layer in (0, 1, 2):
        expected = [alone(model, tokenizer(text).input_ids, layer) for text in TEXTS]
        assert len({len(vectors) for vectors in expected}) > 2
        for budget in (1, 40, 2048):
            embedded = quiet_states(model, tokenizer, layer=layer, token_budget=budget).embed(TEXTS)
            for own, plain in zip(embedded, expected, strict=True):
                np.testing.assert_allclose(own.vectors, plain, atol=1e-5)
                assert own.vectors.dtype == np.float32
                assert own.counted.all()


def test_half_of_the_layers_unless_told_and_none_that_is_not_there():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    states = quiet_states(model, tokenizer)
    assert (states.name, states.layer) == ("model", 1)
    for layer in (3, -1):
        with pytest.raises(ValueError, match=f"Layer {layer} of model was asked for, which has 2"):
            quiet_states(model, tokenizer, layer=layer)


def begun_by_end_of_text(tokenizer):
    """The tokenizer, with a begin token that it reads before every text."""
    begin = (END_OF_TEXT, tokenizer.convert_tokens_to_ids(END_OF_TEXT))
    tokenizer.bos_token = END_OF_TEXT
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(f"{END_OF_TEXT} $A", special_tokens=[begin])
    return tokenizer


def test_special_tokens_are_read_but_have_no_vector_and_unknown_words_have_one():
    model, tokenizer = tiny_model(), begun_by_end_of_text(tiny_tokenizer())
    begin, end, unknown = tokenizer.convert_tokens_to_ids([END_OF_TEXT, "<|end|>", "<unk>"])
    ids = tokenizer("Ada zzz born <|end|>").input_ids
    assert (ids[0], ids[2], ids[4]) == (begin, unknown, end)
    (own,) = quiet_states(model, tokenizer).embed([" Ada zzz born <|end|>\n"])
    np.testing.assert_allclose(own.vectors, alone(model, ids, 1)[1:4], atol=1e-5)
    # GPT-2 has one token for all.
    tokenizer.unk_token = tokenizer.eos_token
    assert [len(own.vectors) for own in quiet_states(model, tokenizer).embed(["Ada born <|end|>"])] == [2]


@pytest.mark.parametrize("begun", [False, True])
def test_a_text_without_tokens_has_no_vectors(begun):
    tokenizer = begun_by_end_of_text(tiny_tokenizer()) if begun else tiny_tokenizer()
    states = quiet_states(tiny_model(), tokenizer)
    empty, full, blank = states.embed(["", TEXTS[0], " \n"])
    assert empty.vectors.shape == blank.vectors.shape == (0, 32)
    assert full.vectors.shape == (8, 32)
    assert bert_score(empty, full) == bert_score(full, blank) == (0, 0, 0)
    assert states.embed([]) == []
    assert [own.vectors.shape for own in states.embed([""])] == [(0, 32)]


def test_what_exceeds_the_longest_input_is_cut():
    model = tiny_model("gpt2")
    (own,) = quiet_states(model, tiny_tokenizer()).embed(["Ada " * 600])
    assert own.vectors.shape == (512, 32)


def test_with_adapters_off_they_are_those_of_the_base():
    base = quiet_states(tiny_model(), tiny_tokenizer()).embed(TEXTS)
    model = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=["v_proj"], task_type="CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.ones_(parameter)
    states = quiet_states(model, tiny_tokenizer())
    with model.disable_adapter():
        off = states.embed(TEXTS)
    for own, expected, on in zip(off, base, states.embed(TEXTS), strict=True):
        np.testing.assert_array_equal(own.vectors, expected.vectors)
        assert np.abs(on.vectors - expected.vectors).max() > 0.01


def test_modes_return_dropout_stays_off_and_the_head_is_not_run(capsys):
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer()
    expected = HiddenStates(model, tokenizer).embed(TEXTS)
    assert "encoding texts" in capsys.readouterr().err
    model.train()
    model.transformer.h[0].eval()
    model.get_output_embeddings().register_forward_pre_hook(lambda *_: pytest.fail("the head was run"))
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    for own, same in zip(quiet_states(model, tokenizer).embed(TEXTS), expected, strict=True):
        np.testing.assert_array_equal(own.vectors, same.vectors)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()
    assert capsys.readouterr() == ("", "")


def test_an_identical_text_has_f1_one_and_others_less():
    states = quiet_states(tiny_model(), tiny_tokenizer())
    true, same, other = states.embed([TEXTS[0], TEXTS[0], TEXTS[1]])
    assert bert_score(same, true) == pytest.approx((1, 1, 1))
    assert bert_score(other, true).f1 < 0.9


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory):
    """A random BERT in a folder that is named like the real one."""
    return save_bert(tmp_path_factory.mktemp("hub") / "bert-base-uncased")


def save_bert(folder):
    """Write a random BERT of four layers and its tokenizer."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words = sorted({word for text in TEXTS for word in text.split()})
    vocabulary = {word: i for i, word in enumerate([*special, *words])}
    words_to_ids = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words_to_ids.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words_to_ids.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=words_to_ids, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=16,
    ).save_pretrained(folder)  # fmt: skip
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
        max_position_embeddings=24, initializer_range=0.2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    return folder


# Pairs of every length, one identical, two with an empty side, one with unknown words, one that is cut.
CANDIDATES = [*TEXTS[:6], TEXTS[0], "", TEXTS[1], "zzz lives in Arlen", "born in " * 12]
REFERENCES = [*TEXTS[3:9], TEXTS[0], TEXTS[2], "", "Ada was born in Arlen", "was born in Brisk"]


def scores_of(encoder):
    pairs = zip(encoder.embed(CANDIDATES), encoder.embed(REFERENCES), strict=True)
    return np.array([bert_score(candidate, reference) for candidate, reference in pairs])


@pytest.mark.parametrize("budget", [1, 50, 2048])
def test_an_encoder_by_explicit_loops(bert_folder, budget):
    encoder = HubEncoder(str(bert_folder), token_budget=budget, progress=False)
    assert (encoder.name, encoder.layer) == ("bert-base-uncased", 3)
    model, tokenizer = BertModel.from_pretrained(bert_folder), encoder.tokenizer
    expected = []
    for candidate, reference in zip(CANDIDATES, REFERENCES, strict=True):
        c, r = (
            alone(model, [2, *tokenizer(text, add_special_tokens=False).input_ids[:14], 3], 3)
            for text in (candidate, reference)
        )
        if len(c) == 2 or len(r) == 2:
            expected.append((0, 0, 0))
            continue
        # The first and last vector are [CLS] and [SEP]: matched, but not averaged.
        p = sum(max(float(u @ v) for v in r) for u in c[1:-1]) / (len(c) - 2)
        q = sum(max(float(u @ v) for u in c) for v in r[1:-1]) / (len(r) - 2)
        expected.append((p, q, 2 * p * q / (p + q)))
    np.testing.assert_allclose(scores_of(encoder), expected, atol=1e-5)
    assert expected[6] == pytest.approx((1, 1, 1))


@pytest.mark.parametrize("layer", [1, 3, 4])
@pytest.mark.filterwarnings("ignore")
def test_an_encoder_gives_the_number_of_the_package(bert_folder, layer):
    package = pytest.importorskip("bert_score")
    # Its way to an empty text is gone from the tokenizers of transformers 5.
    full = [i for i, pair in enumerate(zip(CANDIDATES, REFERENCES, strict=True)) if all(pair)]
    candidates, references = ([texts[i] for i in full] for texts in (CANDIDATES, REFERENCES))
    options = {"model_type": str(bert_folder), "num_layers": layer, "device": "cpu", "nthreads": 0}
    expected = torch.stack(package.score(candidates, references, **options), dim=1)
    ours = scores_of(HubEncoder(str(bert_folder), layer=layer, progress=False))
    np.testing.assert_allclose(ours[full], expected, atol=2e-6)
    assert len(full) == 9


@pytest.mark.parametrize("name", ["bert-base-uncased", "google-bert/bert-base-uncased"])
def test_both_names_of_the_papers_encoder_are_known(bert_folder, name, monkeypatch):
    monkeypatch.chdir(bert_folder.parent)
    assert HubEncoder(name).name == "bert-base-uncased"


def test_an_encoder_that_is_not_there_is_an_error_with_a_way_out(tmp_path):
    for name in ("google-bert/bert-base-uncased", "nobody/nothing", str(tmp_path)):
        with pytest.raises(ValueError, match=f"{name!r} could not be loaded.*works offline .`--iur_encoder model`"):
            HubEncoder(name)


def test_an_encoder_has_no_more_layers_than_it_has(bert_folder):
    with pytest.raises(ValueError, match="Layer 9 of bert-base-uncased was asked for, which has 4"):
        HubEncoder(str(bert_folder), layer=9)
