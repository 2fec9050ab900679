"""Rows that a model writes by itself: a function of seed and count, in the form of the forget set."""

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer
from tokenizers.processors import TemplateProcessing

from llm_unlearn.data.tokenization import ExampleTokenizer
from llm_unlearn.evaluation.outputs import sampling
from llm_unlearn.evaluation.outputs.sampling import sample_rows

TOKENIZE = ExampleTokenizer(tiny_tokenizer())


def rows(count=12, questions=False, seed=0, **options):
    options = {"max_new_tokens": 8, "progress": False} | options
    return sample_rows(tiny_model().train(), TOKENIZE, count, questions=questions, seed=seed, **options)


def test_texts_are_a_function_of_the_seed_and_leave_the_random_state_alone():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = rows()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert rows() == first
    assert rows(seed=1) != first
    assert len(first) == 12 and all(row.keys() == {"text"} and row["text"] for row in first)
    assert len({row["text"] for row in first}) == 12


def test_batches_draw_from_seeds_of_their_own(monkeypatch):
    """So that it does not matter which process draws a batch."""
    monkeypatch.setattr(sampling, "_BATCH", 4)
    assert rows(count=8)[:4] == rows(count=4)
    texts = [row["text"] for row in rows(count=8)]
    assert set(texts[:4]) != set(texts[4:])


def test_questions_come_with_the_models_own_answers():
    model = tiny_model()
    mode = model.training
    own = sample_rows(model, TOKENIZE, 6, questions=True, max_new_tokens=8, progress=False)
    assert model.training == mode
    assert own and all(row.keys() == {"question", "answer"} and row["answer"] for row in own)
    row = own[0]
    prompt = torch.tensor([TOKENIZE({"question": row["question"], "answer": "."}, 0).prompt_ids])
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 1, "eos_token_id": [0, 1]}
    written = model.generate(prompt, attention_mask=torch.ones_like(prompt), **settings)
    assert TOKENIZE.decode(written[0, prompt.shape[1] :].tolist()) == row["answer"]


def test_texts_follow_the_models_distribution():
    """First tokens against the probabilities of the model, which sampling neither sharpens nor cuts off.

    Instruction models come with a generation config that would.
    """
    model = tiny_model()
    own = model.generation_config
    own.update(do_sample=True, temperature=0.3, top_p=0.5, repetition_penalty=1.5)
    with torch.no_grad():
        p = model(input_ids=torch.tensor([[1]])).logits[0, -1].softmax(-1)
    likely = int(p.argmax())
    word = TOKENIZE.tokenizer.decode([likely])
    drawn = sampling._sample(model, TOKENIZE, [1], 640, seed=3, max_new_tokens=1, progress=False)
    share = sum(text == word.strip() for text in drawn) / 640
    assert share == pytest.approx(p[likely].item(), abs=4 * (p[likely].item() / 640) ** 0.5)
    assert model.generation_config is own and own.temperature == 0.3


@pytest.mark.parametrize(
    ("chat_template", "begins", "start"),
    [(True, False, ["<|user|>"]), (False, False, ["Question:"]), (False, True, ["<|assistant|>", "Question:"])],
    ids=["chat", "plain", "plain after a begin token"],
)
def test_questions_start_as_the_prompts_of_a_run_do(chat_template, begins, start):
    plain = tiny_tokenizer(chat_template)
    if begins:
        plain.bos_token, mark = "<|assistant|>", ("<|assistant|>", plain.convert_tokens_to_ids("<|assistant|>"))
        plain.backend_tokenizer.post_processor = TemplateProcessing(single="<|assistant|> $A", special_tokens=[mark])
    assert sampling._question_start(ExampleTokenizer(plain)) == plain.convert_tokens_to_ids(start)


def test_a_model_that_writes_nothing_is_told(monkeypatch):
    monkeypatch.setattr(sampling, "_sample", lambda *_: ["", ""])
    with pytest.raises(ValueError, match="nothing but empty texts.*--pair_pool"):
        rows(count=2)
