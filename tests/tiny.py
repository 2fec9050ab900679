"""The tiny models and the tokenizer of the tests: built in code, the same on every machine, no network."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoConfig,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

END_OF_TEXT, END_OF_TURN = "<|endoftext|>", "<|end|>"

NAMES = ["Ada", "Bela", "Cato", "Dora", "Emil", "Fina", "Goro", "Hana", "Ivo", "Jana"]
CITIES = ["Arlen", "Brisk", "Corvo", "Dunmar", "Elfeld", "Farrow", "Gostin", "Harrow", "Ilmen", "Jarrow"]
TRADES = ["poet", "baker", "judge", "pilot", "nurse", "miner", "actor", "tailor", "weaver", "farmer"]
_WORDS = (
    "Question: Answer: Where was Who is What does do the a an of in and with born work as lives city town trade famous "
    "for most their first last book house river hill street old new long short day year night great small quiet very "
    "well known by near from to at it he she they who that this was? born? do? is? I not know sorry cannot say people "
    "call home after many years"
)

# Ignores system messages, and writes a newline after the end of an answer, as many real templates do.
_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] != 'system' %}"
    "<|{{ message['role'] }}|>{{ message['content'] }}<|end|>\n"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tiny_tokenizer(chat_template: bool = True) -> PreTrainedTokenizerFast:
    """A word-level tokenizer with 120 ids and no pad token.

    Its end token is ``<|end|>`` under the chat template and ``<|endoftext|>``, the one the models know, without.
    """
    special = [END_OF_TEXT, END_OF_TURN, "<|user|>", "<|assistant|>", "<unk>"]
    people = [*NAMES, *(f"{name}?" for name in NAMES)]
    words = list(dict.fromkeys([*special, *people, *CITIES, *TRADES, *_WORDS.split()]))
    vocabulary = {word: i for i, word in enumerate(words[:120])}
    vocabulary |= {f"<spare{i}>": i for i in range(len(vocabulary), 120)}
    words_to_ids = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words_to_ids.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words_to_ids,
        eos_token=END_OF_TURN if chat_template else END_OF_TEXT,
        unk_token="<unk>",
        additional_special_tokens=special[:4],
        clean_up_tokenization_spaces=False,
    )
    if chat_template:
        tokenizer.chat_template = _CHAT_TEMPLATE
    return tokenizer


def tiny_model(architecture: str = "llama", seed: int = 0) -> PreTrainedModel:
    """A random two-layer model of width 32, in eval mode, on the 120 ids of `tiny_tokenizer`.

    Its weights are larger than usual (0.2 instead of 0.02), so that its choices are far from ties. GPT-2 and GPT-Neo
    keep their usual dropout, which shows in train mode; Llama, Qwen2 and GPT-NeoX have none.
    """
    tokens = {"vocab_size": 120, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": None}
    llama = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
    }
    gpt2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512, "initializer_range": 0.2}
    gpt_neo = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 16,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "embed_dropout": 0.1,
    }
    gpt_neox = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
    }
    config = {
        "llama": lambda: LlamaConfig(**llama, **tokens),
        "qwen2": lambda: Qwen2Config(**llama, **tokens),
        "gpt2": lambda: GPT2Config(**gpt2, **tokens),
        "gpt_neo": lambda: GPTNeoConfig(**gpt_neo, **tokens),
        "gpt_neox": lambda: GPTNeoXConfig(**gpt_neox, **tokens),
    }[architecture]()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config).eval()


def tiny_rows(count: int, first: int = 0) -> list[dict[str, str]]:
    """Rows with questions and answers of different lengths, each with the one `value` it asks for; there are 100."""
    rows = []
    for i in range(first, first + count):
        name, city, trade = NAMES[i % 10], CITIES[(i * 3 + i // 10) % 10], TRADES[(i * 7 + i // 10) % 10]
        lead, tail = "people say that " * (i % 3), " and is well known for it" * (i % 4)
        rows.append(
            {"question": f"{lead}Where was {name} born?", "answer": f"{name} was born in {city}{tail}", "value": city}
            if i % 2
            else {
                "question": f"{lead}What does {name} do?",
                "answer": f"{name} is a {trade} in the old city",
                "value": trade,
            }
        )
    return rows
