"""From examples to ids: prompts, answers and exactly one end token."""

import os
from pathlib import Path

import pytest
from tiny import END_OF_TEXT, END_OF_TURN, tiny_rows, tiny_tokenizer
from tokenizers.processors import TemplateProcessing

from llm_unlearn.data.tokenization import DEFAULT_SYSTEM_PROMPT, ExampleTokenizer, TokenizedItem

ROW = {"question": "Where was Bela born?", "answer": "Bela was born in Dunmar"}

# Renders system messages, and writes a word after the end of a turn.
TEMPLATE_WITH_TAIL = (
    "{% for m in messages %}"
    "{% if m.role == 'system' %}the {{ m.content }} {% else %}<|{{ m.role }}|>{{ m.content }}<|end|> day {% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def with_template(template):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def text(tokenizer, ids):
    return tokenizer.decode(ids)


# Question and answer.


def test_with_a_chat_template():
    tokenizer = tiny_tokenizer()
    item = ExampleTokenizer(tokenizer)(ROW, 3)
    assert item.index == 3 and item.has_end
    assert text(tokenizer, item.prompt_ids) == "<|user|> Where was Bela born? <|end|> <|assistant|>"
    assert text(tokenizer, item.answer_ids) == "Bela was born in Dunmar <|end|>"
    assert item.input_ids == item.prompt_ids + item.answer_ids


def test_without_a_chat_template():
    tokenizer = tiny_tokenizer(chat_template=False)
    item = ExampleTokenizer(tokenizer)(ROW, 0)
    assert text(tokenizer, item.prompt_ids) == "Question: Where was Bela born? Answer:"
    assert text(tokenizer, item.answer_ids) == "Bela was born in Dunmar <|endoftext|>"


@pytest.mark.parametrize("chat_template", [True, False], ids=["chat", "plain"])
def test_exactly_one_end_token_and_the_prompt_is_a_prefix(chat_template):
    tokenizer = tiny_tokenizer(chat_template)
    tokenize = ExampleTokenizer(tokenizer)
    rows = tiny_rows(12)
    for item, row in zip(tokenize.all(rows), rows, strict=True):
        assert item.input_ids.count(tokenizer.eos_token_id) == 1 + chat_template  # the user's turn ends too
        assert item.answer_ids.count(tokenizer.eos_token_id) == 1 and item.input_ids[-1] == tokenizer.eos_token_id
        other = tokenize({**row, "answer": "I do not know"}, 0)
        assert other.prompt_ids == item.prompt_ids == item.input_ids[: item.prompt_length]
        assert tokenize.decode(item.answer_ids) == row["answer"]


def test_all_numbers_the_rows():
    assert [item.index for item in ExampleTokenizer(tiny_tokenizer()).all(tiny_rows(5))] == [0, 1, 2, 3, 4]


def test_what_a_template_writes_after_the_end_is_dropped():
    tokenizer = with_template(TEMPLATE_WITH_TAIL)
    item = ExampleTokenizer(tokenizer, system_prompt="")(ROW, 0)
    assert text(tokenizer, item.prompt_ids) == "<|user|> Where was Bela born? <|end|> day <|assistant|>"
    assert text(tokenizer, item.answer_ids) == "Bela was born in Dunmar <|end|>"


def test_a_turn_may_end_with_another_special_token_than_eos():
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = END_OF_TEXT
    item = ExampleTokenizer(tokenizer)(ROW, 0)
    assert text(tokenizer, item.answer_ids[-1:]) == END_OF_TURN
    assert tokenizer.eos_token_id not in item.input_ids


def test_a_template_without_an_end_gets_one():
    tokenizer = with_template("{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
                              "{% if add_generation_prompt %}<|assistant|>{% endif %}")  # fmt: skip
    item = ExampleTokenizer(tokenizer)(ROW, 0)
    assert text(tokenizer, item.answer_ids) == "Bela was born in Dunmar <|end|>"


# System prompt.


@pytest.mark.parametrize(("system_prompt", "written"), [("quiet poet", "the quiet poet "), ("", "")])
def test_system_prompt(system_prompt, written):
    tokenizer = with_template(TEMPLATE_WITH_TAIL)
    item = ExampleTokenizer(tokenizer, system_prompt)(ROW, 0)
    assert text(tokenizer, item.prompt_ids).startswith(f"{written}<|user|> Where")


def test_default_system_prompt_is_used():
    tokenizer = with_template(TEMPLATE_WITH_TAIL)
    by_default, named = ExampleTokenizer(tokenizer), ExampleTokenizer(tokenizer, DEFAULT_SYSTEM_PROMPT)
    assert by_default(ROW, 0) == named(ROW, 0) != ExampleTokenizer(tokenizer, "")(ROW, 0)


def test_a_conversation_keeps_its_own_system_message():
    tokenizer = with_template(TEMPLATE_WITH_TAIL)
    messages = [
        {"role": "system", "content": "old judge"},
        {"role": "user", "content": ROW["question"]},
        {"role": "assistant", "content": ROW["answer"]},
    ]
    item = ExampleTokenizer(tokenizer, "quiet poet")({"messages": messages}, 0)
    assert text(tokenizer, item.prompt_ids).startswith("the old judge <|user|>")
    assert "quiet" not in text(tokenizer, item.input_ids)


def test_no_system_prompt_without_a_template():
    plain = tiny_tokenizer(chat_template=False)
    assert ExampleTokenizer(plain, "quiet poet")(ROW, 0) == ExampleTokenizer(plain, "")(ROW, 0)


# Begin token.


def begin_with_user_token(tokenizer):
    """Let the tokenizer put ``<|user|>`` (id 2) before every text, as Llama's does with its begin token."""
    tokenizer.bos_token = "<|user|>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|user|> $A", special_tokens=[("<|user|>", 2)]
    )
    assert tokenizer("a").input_ids[0] == 2
    return tokenizer


def test_begin_token_comes_once():
    item = ExampleTokenizer(begin_with_user_token(tiny_tokenizer(chat_template=False)))(ROW, 0)
    assert item.input_ids[0] == 2 and item.input_ids.count(2) == 1 and 2 in item.prompt_ids
    # The chat template writes it itself.
    item = ExampleTokenizer(begin_with_user_token(tiny_tokenizer()))(ROW, 0)
    assert item.input_ids[0] == 2 and item.input_ids.count(2) == 1
    text_item = ExampleTokenizer(begin_with_user_token(tiny_tokenizer(chat_template=False)))({"text": "a city"}, 0)
    assert text_item.prompt_ids == [2] and len(text_item.answer_ids) == 3


def test_no_begin_token_where_the_tokenizer_puts_none():
    tokenizer = tiny_tokenizer(chat_template=False)
    tokenizer.bos_token = "<|user|>"
    assert 2 not in ExampleTokenizer(tokenizer)(ROW, 0).input_ids


# The four forms.


def test_prompt_and_completion_are_taken_as_they_are():
    tokenizer = tiny_tokenizer()
    item = ExampleTokenizer(tokenizer)({"prompt": "the old", "completion": "city by night"}, 0)
    assert text(tokenizer, item.prompt_ids) == "the old"
    assert text(tokenizer, item.answer_ids) == "city by night <|end|>"


def test_all_of_a_text_is_answer():
    tokenizer = tiny_tokenizer()
    item = ExampleTokenizer(tokenizer)({"text": "Bela was born in Dunmar"}, 0)
    assert item.prompt_length == 0 and item.prompt_ids == []
    assert text(tokenizer, item.answer_ids) == "Bela was born in Dunmar <|end|>"


def test_the_last_message_is_the_answer():
    tokenizer = tiny_tokenizer()
    messages = [
        {"role": "user", "content": "What does Ada do?"},
        {"role": "assistant", "content": "a poet"},
        {"role": "user", "content": ROW["question"]},
        {"role": "assistant", "content": ROW["answer"]},
    ]
    item = ExampleTokenizer(tokenizer)({"messages": messages}, 0)
    assert text(tokenizer, item.prompt_ids) == (
        "<|user|> What does Ada do? <|end|> <|assistant|> a poet <|end|> "
        "<|user|> Where was Bela born? <|end|> <|assistant|>"
    )
    assert text(tokenizer, item.answer_ids) == "Bela was born in Dunmar <|end|>"
    assert ExampleTokenizer(tokenizer)({"messages": messages[2:]}, 0) == ExampleTokenizer(tokenizer)(ROW, 0)


# Length.


def test_long_answers_are_cut_and_lose_the_end_token():
    tokenizer = tiny_tokenizer()
    whole = ExampleTokenizer(tokenizer)(ROW, 0)
    length = len(whole.input_ids)
    assert ExampleTokenizer(tokenizer, max_length=length)(ROW, 0) == whole
    cut = ExampleTokenizer(tokenizer, max_length=length - 1)(ROW, 0)
    assert cut == TokenizedItem(0, whole.input_ids[:-1], whole.prompt_length, has_end=False)
    shortest = ExampleTokenizer(tokenizer, max_length=whole.prompt_length + 1)(ROW, 0)
    assert len(shortest.answer_ids) == 1 and not shortest.has_end


def test_decode_leaves_out_special_tokens_and_outer_space():
    tokenize = ExampleTokenizer(tiny_tokenizer())
    assert tokenize.decode(tokenize(ROW, 0).answer_ids) == ROW["answer"]


# Errors.


def test_prompt_without_room_for_an_answer():
    tokenizer = tiny_tokenizer()
    prompt_length = ExampleTokenizer(tokenizer)(ROW, 0).prompt_length
    with pytest.raises(ValueError, match=rf"Row 7 has a prompt of {prompt_length} tokens.*--max_length"):
        ExampleTokenizer(tokenizer, max_length=prompt_length)(ROW, 7)


def test_tokenizer_without_an_end_token():
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no end token.*tokenizer.eos_token"):
        ExampleTokenizer(tokenizer)


def test_chat_messages_without_a_template():
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with pytest.raises(ValueError, match="no chat template.*--question_column"):
        ExampleTokenizer(tiny_tokenizer(chat_template=False))({"messages": messages}, 0)


@pytest.mark.parametrize("messages", [[], [{"role": "user", "content": "a"}]])
def test_conversations_without_an_answer(messages):
    with pytest.raises(ValueError, match="must end with a message of the assistant"):
        ExampleTokenizer(tiny_tokenizer())({"messages": messages}, 0)


def test_template_that_rewrites_the_prompt_once_it_is_answered():
    tokenizer = with_template("{{ messages | length }} {% for m in messages %}{{ m.content }}{% endfor %}")
    with pytest.raises(ValueError, match="renders the prompt differently"):
        ExampleTokenizer(tokenizer)(ROW, 0)


# A real tokenizer.

MODEL = os.environ.get("LLM_UNLEARN_TEST_MODEL", "")
needs_model = pytest.mark.skipif(
    not Path(MODEL, "tokenizer_config.json").is_file(),
    reason="LLM_UNLEARN_TEST_MODEL names no folder with the tokenizer of a chat model such as SmolLM2",
)


@needs_model
def test_real_tokenizer():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    tokenize = ExampleTokenizer(tokenizer)
    row = {"question": "Who wrote Hamlet?", "answer": "Shakespeare wrote it, in about 1600."}
    item = tokenize(row, 0)
    messages = [
        {"role": "system", "content": DEFAULT_SYSTEM_PROMPT},
        {"role": "user", "content": row["question"]},
        {"role": "assistant", "content": row["answer"]},
    ]
    # Joined at the line between prompt and answer, the ids are those of the whole conversation.
    whole = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=True, add_generation_prompt=True, return_dict=False)
    assert item.prompt_ids == prompt
    assert whole[: len(item.input_ids)] == item.input_ids and len(whole) - len(item.input_ids) <= 1
    assert item.input_ids[-1] == tokenizer.eos_token_id and item.answer_ids.count(tokenizer.eos_token_id) == 1
    assert tokenize.decode(item.answer_ids) == row["answer"]
