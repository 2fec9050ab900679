"""Rows that a model writes by itself: something to keep where no data are at hand to keep.

Plain text is sampled from the begin token on. A question is sampled from the beginning of a user's turn on, where the
chat template of instruction models opens one, and answered by the same model, greedily.
"""

from collections.abc import Sequence

import torch
from accelerate.utils import extract_model_from_parallel
from torch import nn
from transformers import GenerationConfig

from llm_unlearn.data.tokenization import ExampleTokenizer
from llm_unlearn.evaluation.outputs.generation import blank_generation_config, generate
from llm_unlearn.evaluation.outputs.sharding import device_of, evaluating, run_sharded, without_peft

# Rows sampled together; part of what a seed means.
_BATCH = 32
# Empty, repeated and unfinished texts are dropped; beyond this share of them there is no use in going on.
_MOST_ROUNDS = 4
# Where the user's text begins in a rendered conversation.
_MARK = "\N{SNOWMAN}"


def sample_rows(
    model: nn.Module,
    tokenizer: ExampleTokenizer,
    count: int,
    *,
    questions: bool,
    seed: int = 0,
    max_new_tokens: int = 100,
    progress: bool = True,
) -> list[dict[str, str]]:
    """Rows in the form of the forget set, written by the model: ``{"text"}``, or ``{"question", "answer"}``.

    Drawn from the model's own distribution (temperature 1, nothing cut off, whatever its generation config says), a
    pure function of model, seed and count on one machine, on however many processes.

    Args:
        model: a causal language model, wrapped by PEFT or DDP or neither; in eval mode meanwhile. What it should keep
            is what it knew before unlearning: call it before training.
        tokenizer: its tokenizer.
        count: rows wanted, at least 1; fewer come where the model repeats itself.
        questions: whether questions with answers are wanted, or plain text.
        seed: of the draw.
        max_new_tokens: longest text, question or answer, in tokens. Defaults to 100.
        progress: whether the main process shows progress bars.

    Raises:
        ValueError: the model wrote nothing that could be used.
    """
    start = _question_start(tokenizer) if questions else [_begin(tokenizer)]
    texts: dict[str, None] = {}
    rounds = 0
    while len(texts) < count and rounds < _MOST_ROUNDS:
        wanted = count - len(texts)
        written = _sample(model, tokenizer, start, wanted, seed + 7_919 * rounds, max_new_tokens, progress)
        # A question is one line; templates close it with an end token, plain prompts with a line break.
        lines = [text.split("\n")[0].strip() if questions else text for text in written]
        texts |= dict.fromkeys(text for text in lines if text)
        rounds += 1
    if not texts:
        raise ValueError(
            "The model wrote nothing but empty texts when it was asked for some of its own: name a pool with "
            "`--pair_pool` instead of `self`."
        )
    if not questions:
        return [{"text": text} for text in texts]
    items = [tokenizer({"question": question, "answer": "."}, row) for row, question in enumerate(texts)]
    answers = generate(model, items, tokenizer, [max_new_tokens] * len(items), name="own questions", progress=progress)
    return [
        {"question": question, "answer": answer.text}
        for question, answer in zip(texts, answers, strict=True)
        if answer.text
    ]


def _sample(
    model: nn.Module,
    tokenizer: ExampleTokenizer,
    start: Sequence[int],
    count: int,
    seed: int,
    max_new_tokens: int,
    progress: bool,
) -> list[str]:
    unwrapped = extract_model_from_parallel(model)
    bare, device = without_peft(unwrapped), device_of(unwrapped)
    eos = tokenizer.tokenizer.eos_token_id
    config = GenerationConfig(
        do_sample=True,
        top_k=0,
        max_new_tokens=max_new_tokens,
        eos_token_id=eos,
        pad_token_id=eos,
    )

    def run(batch: list[int]) -> list[str]:
        ids = torch.tensor([list(start)] * len(batch), device=device)
        # `generate` draws from the global state, which is put back; each batch has a seed of its own, so that it does
        # not matter which process draws it.
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed((seed * 1_000_003 + batch[0]) % 2**63)
            whole = bare.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)
        return [tokenizer.decode(row) for row in whole[:, len(start) :].tolist()]

    batches = [list(range(at, min(at + _BATCH, count))) for at in range(0, count, _BATCH)]
    with evaluating(unwrapped), blank_generation_config(bare):
        return run_sharded(run, batches, [1] * len(batches), "sampling the model's own texts", progress)


def _begin(tokenizer: ExampleTokenizer) -> int:
    """What stands before a text; models without a begin token have seen the end token there."""
    plain = tokenizer.tokenizer
    return plain.eos_token_id if plain.bos_token_id is None else plain.bos_token_id


def _question_start(tokenizer: ExampleTokenizer) -> list[int]:
    """The prompt of a question up to the question itself."""
    prompt = tokenizer.prompt_text({"question": _MARK, "answer": "."})
    return tokenizer.ids_of_prompt(prompt[: prompt.index(_MARK)].rstrip(" "))
