"""One forward with logits at answer positions only equals the plain forward."""

import pytest
import torch
from tiny import tiny_model, tiny_rows, tiny_tokenizer

from llm_unlearn.adapters import attach_adapter, lora_config
from llm_unlearn.data.collator import collate
from llm_unlearn.data.tokenization import ExampleTokenizer
from llm_unlearn.forward import AnswerScores, answer_logits, concatenate, only_positions, split_rows
from llm_unlearn.functional import answer_mask, answer_rows, answer_targets, token_logps

# peft 0.21 reads a name that transformers 5.23 calls deprecated, and tells how it treats GPT-2's transposed layers.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning"),
]

ARCHITECTURES = ["llama", "qwen2", "gpt2", "gpt_neo"]


def make_model(architecture, peft):
    """In fp64, in which sums of another order differ by nothing that could hide a mistake."""
    model = tiny_model(architecture, seed=0).double()
    if not peft:
        return model
    model = attach_adapter(model, lora_config(r=2), seed=0).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2, generator=generator)
    return model.eval()


def make_half(count, first=0):
    """Rows of different lengths, padded with the end token, which also ends every answer."""
    tokenizer = tiny_tokenizer(chat_template=False)
    items = ExampleTokenizer(tokenizer).all(tiny_rows(count, first))
    half = collate(items, pad_id=tokenizer.eos_token_id)
    assert not half["attention_mask"].all() and (half["labels"] == tokenizer.eos_token_id).sum() == count
    return half


def full_logits(model, half):
    return model(input_ids=half["input_ids"], attention_mask=half["attention_mask"], use_cache=False).logits


@pytest.mark.parametrize("peft", [False, True], ids=["plain", "peft"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_answer_logits_are_the_full_logits_at_the_answer_positions(architecture, peft):
    model, half = make_model(architecture, peft), make_half(5)
    answers = answer_logits(model, model, half)
    mask = answer_mask(half["labels"])
    assert answers.logits.shape == (int(mask.sum()), 120)
    torch.testing.assert_close(answers.logits, full_logits(model, half)[mask], rtol=1e-9, atol=1e-9)
    assert answers.targets.tolist() == answer_targets(half["labels"]).tolist()
    assert answers.rows.tolist() == answer_rows(half["labels"]).tolist()
    assert answers.batch_size == 5


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradients_are_those_of_the_full_logits(architecture):
    model, half = make_model(architecture, peft=True), make_half(3)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    mask, targets = answer_mask(half["labels"]), answer_targets(half["labels"])
    plain = torch.autograd.grad(token_logps(full_logits(model, half)[mask], targets).mean(), trained)
    ours = torch.autograd.grad(AnswerScores.of(answer_logits(model, model, half)).token_logps.mean(), trained)
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("peft", [False, True], ids=["plain", "peft"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_one_forward_for_all_halves_equals_one_each(architecture, peft):
    model = make_model(architecture, peft)
    halves = [make_half(4), make_half(2, first=4), make_half(3, first=6)]
    halves[1] = {key: value[:, :-2] if value.ndim == 2 else value for key, value in halves[1].items()}
    joined = concatenate(halves)
    assert joined["input_ids"].shape == (9, max(half["input_ids"].shape[1] for half in halves))
    parts = split_rows(answer_logits(model, model, joined), [4, 2, 3])
    assert len(parts) == 3
    for part, half in zip(parts, halves, strict=True):
        alone = answer_logits(model, model, half)
        torch.testing.assert_close(part.logits, alone.logits, rtol=1e-9, atol=1e-9)
        assert part.targets.tolist() == alone.targets.tolist()
        assert part.rows.tolist() == alone.rows.tolist()
        assert part.batch_size == alone.batch_size
        scores, scores_alone = AnswerScores.of(part), AnswerScores.of(alone)
        torch.testing.assert_close(scores.sums, scores_alone.sums, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(scores.means, scores_alone.means, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_rows_without_an_answer_keep_their_place():
    model, half = make_model("llama", peft=False), make_half(4)
    half["labels"][[0, 3]] = -100
    first, second = split_rows(answer_logits(model, model, half), [1, 3])
    assert len(first.targets) == 0 and AnswerScores.of(first).sums.tolist() == [0.0]
    sums = AnswerScores.of(second).sums
    assert sums.shape == (3,) and sums[2] == 0.0 and (sums[:2] < 0).all()


@torch.no_grad()
def test_what_stands_on_padding_does_not_matter():
    model, half = make_model("llama", peft=True), make_half(5)
    other = {**half, "input_ids": half["input_ids"].where(half["attention_mask"].bool(), torch.tensor(77))}
    ours, theirs = answer_logits(model, model, half), answer_logits(model, model, other)
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=0, atol=0)


def test_concatenate_pads_each_key_with_its_own_value():
    short = {"input_ids": torch.tensor([[5]]), "attention_mask": torch.tensor([[1]]), "labels": torch.tensor([[5]])}
    long = {key: torch.full((1, 3), 1) for key in short}
    joined = concatenate([short, long])
    assert joined["input_ids"][0].tolist() == [5, 0, 0]
    assert joined["attention_mask"][0].tolist() == [1, 0, 0]
    assert joined["labels"][0].tolist() == [5, -100, -100]


@pytest.mark.parametrize("peft", [False, True], ids=["plain", "peft"])
def test_the_hook_is_gone_afterwards(peft):
    model, half = make_model("llama", peft), make_half(2)
    head = model.get_output_embeddings()
    with torch.no_grad():
        before = full_logits(model, half)
        answer_logits(model, model, half)
        assert not head._forward_pre_hooks
        assert torch.equal(full_logits(model, half), before)


def test_the_hook_is_gone_also_after_an_exception():
    model, half = make_model("llama", peft=False), make_half(2)
    head = model.get_output_embeddings()
    with pytest.raises(RuntimeError, match="stop"), only_positions(model, answer_mask(half["labels"])):
        assert head._forward_pre_hooks
        raise RuntimeError("stop")
    assert not head._forward_pre_hooks
    broken = {**half, "input_ids": half["input_ids"] + 10_000}
    with pytest.raises(IndexError):
        answer_logits(model, model, broken)
    assert not head._forward_pre_hooks
