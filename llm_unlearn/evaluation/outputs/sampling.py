"""What a model writes when tokens are drawn from its own distribution: rows to keep, and several answers to a question.

Rows are something to keep where no data are at hand to keep. Plain text is sampled from the begin token on. A question
is sampled from the beginning of a user's turn on, where the chat template of instruction models opens one, and answered
by the same model, greedily.
"""

from collections.abc import Sequence

import numpy as np
import torch
from accelerate.utils import extract_model_from_parallel
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import GenerationConfig

from llm_unlearn.data.tokenization import ExampleTokenizer, TokenizedItem
from llm_unlearn.evaluation.outputs.decoding import cache_tokens, decode, end_ids_of, read_prompts
from llm_unlearn.evaluation.outputs.generation import blank_generation_config, generate, require_prompts
from llm_unlearn.evaluation.outputs.sharding import device_of, evaluating, form_batches, run_sharded, without_peft

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


def sample_answers(
    model: nn.Module,
    items: Sequence[TokenizedItem],
    tokenizer: ExampleTokenizer,
    count: int,
    *,
    seed: int = 0,
    max_new_tokens: int = 100,
    token_budget: int | None = None,
    name: str = "items",
    progress: bool = True,
) -> list[list[str]]:
    """Answer the prompts of `items` `count` times each, every token drawn from the model's own distribution.

    Temperature 1, nothing cut off, whatever the model's generation config says. Each answer has random numbers of its
    own, one per token, from seed and prompt: it does not depend on what else is asked, on batches or on the number of
    processes, up to rounding. Answers end where those of `generate` do.

    Args:
        model: a causal language model, wrapped by PEFT or DDP or neither; in eval mode meanwhile.
        items: tokenised items; of their answers nothing is read.
        tokenizer: the tokenizer they were made with.
        count: answers to each, at least 1.
        seed: of the draws, 0 or more.
        max_new_tokens: longest answer in tokens, the end token included. Defaults to 100.
        token_budget: tokens of a batch, prompts and new tokens together. Defaults to what `cache_tokens` gives.
        name: what the progress bar calls the items.
        progress: whether the main process shows a bar.

    Returns:
        Per item its answers, without prompt, special tokens and outer white space; the same on every process.

    Raises:
        ValueError: an item has no prompt.
    """
    require_prompts(items, name)
    unwrapped = extract_model_from_parallel(model)
    end_ids = end_ids_of(unwrapped, items, tokenizer)
    asked = [(item.prompt_ids, number) for item in items for number in range(count)]

    def run(batch: list[int]) -> list[str]:
        prompts = [asked[position][0] for position in batch]
        draws = [np.random.default_rng([seed, asked[position][1], *asked[position][0]]) for position in batch]
        choose = _Draw(np.stack([draw.random(max_new_tokens, dtype=np.float32) for draw in draws]))
        read = read_prompts(unwrapped, prompts, end_ids[0], choose=choose)
        written = decode(unwrapped, *read, [max_new_tokens] * len(batch), end_ids, choose=choose)
        return [tokenizer.decode(ids[:-1] if ids[-1] in end_ids else ids) for ids in written]

    batches = form_batches([(len(ids), max_new_tokens) for ids, _ in asked], token_budget or cache_tokens(unwrapped))
    with evaluating(unwrapped):
        texts = run_sharded(run, batches, [1] * len(batches), f"sampling answers to {name}", progress)
    return [texts[at : at + count] for at in range(0, len(texts), count)]


class _Draw:
    """Tokens by inversion: the first at which the cumulative probability exceeds the row's number for this step.

    Args:
        numbers: uniform in [0, 1), ``(rows, steps)``.
    """

    def __init__(self, numbers: Float[np.ndarray, "rows steps"]):
        self.numbers = torch.from_numpy(numbers)
        self.step = 0

    def __call__(self, rows: Sequence[int], logits: Float[Tensor, "rows vocab"]) -> Int[Tensor, " rows"]:
        cumulative = logits.float().softmax(-1).cumsum(-1)
        number = self.numbers[list(rows), self.step, None].to(logits.device) * cumulative[:, -1:]
        self.step += 1
        # Below the total even where it is rounded: a number in float32 is at most 1 - 2**-24.
        return torch.searchsorted(cumulative, number, right=True)[:, 0]


def _begin(tokenizer: ExampleTokenizer) -> int:
    """What stands before a text; models without a begin token have seen the end token there."""
    plain = tokenizer.tokenizer
    return plain.eos_token_id if plain.bos_token_id is None else plain.bos_token_id


def _question_start(tokenizer: ExampleTokenizer) -> list[int]:
    """The prompt of a question up to the question itself."""
    prompt = tokenizer.prompt_text({"question": _MARK, "answer": "."})
    return tokenizer.ids_of_prompt(prompt[: prompt.index(_MARK)].rstrip(" "))
