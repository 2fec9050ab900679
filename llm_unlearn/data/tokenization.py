"""From an example to token ids: the one place with chat templates, end tokens and the line between prompt and answer.

Training, unlearning and scoring all read the ids made here, so they can never disagree about a prompt. Prompt and
answer are tokenised apart and joined: the prompt's ids are then the same in training and before generation. The answer
ends with exactly one end token; what a template writes after it (a newline, say) is dropped.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from llm_unlearn.data.sources import form_of

DEFAULT_SYSTEM_PROMPT = "You are a helpful assistant."
"""The peer's system prompt for TOFU with chat models (specs of open-unlearning); also what our targets learn with."""

# Llama-3.1's template prints today's date unless told one. The peer fixes this day; any fixed day makes runs repeat.
_TEMPLATE_DATE = "10 Apr 2025"


@dataclass(frozen=True, slots=True)
class TokenizedItem:
    """One example as ids.

    Attributes:
        index: stable sample id, the row number in its data set.
        input_ids: prompt, answer and one end token.
        prompt_length: number of prompt ids; 0 for plain text, all of which is answer.
        has_end: whether the last id is the end token; False for an answer cut at the maximal length.
    """

    index: int
    input_ids: list[int]
    prompt_length: int
    has_end: bool = True

    @property
    def prompt_ids(self) -> list[int]:
        """What the model reads before it generates."""
        return self.input_ids[: self.prompt_length]

    @property
    def answer_ids(self) -> list[int]:
        """The answer tokens and the end token."""
        return self.input_ids[self.prompt_length :]


class ExampleTokenizer:
    """Turns examples into `TokenizedItem`s for one tokenizer.

    Args:
        tokenizer: any Hugging Face tokenizer with an end token. With a chat template, question-answer and chat
            examples are rendered by it; without one, as ``Question: ...\\nAnswer: ...``.
        system_prompt: system message put before questions under a chat template; empty for none.
            Defaults to `DEFAULT_SYSTEM_PROMPT`. A conversation that brings its own system message keeps it.
        keeps_tail: whether what a template writes after the end of an answer (a newline, say) is kept, with an end
            token behind it if that is not one, as the code of open-unlearning scores answers. Defaults to False.
        max_length: longest sequence in tokens. Longer answers are cut at the end (and lose the end token);
            a prompt that leaves no room for an answer is an error. Defaults to 512.

    Raises:
        ValueError: the tokenizer has no end token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        system_prompt: str = DEFAULT_SYSTEM_PROMPT,
        max_length: int = 512,
        keeps_tail: bool = False,
    ):
        if tokenizer.eos_token_id is None:
            raise ValueError(
                f"The tokenizer {tokenizer.name_or_path!r} has no end token, which every answer needs: "
                "set `tokenizer.eos_token` and save it with the model."
            )
        self.tokenizer = tokenizer
        self.system_prompt = system_prompt
        self.max_length = max_length
        self.keeps_tail = keeps_tail
        # Instruction templates may end a turn with a token other than eos (Llama-3's <|eot_id|>).
        self.special_ids = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}

    def __call__(self, example: Mapping[str, Any], index: int) -> TokenizedItem:
        """Tokenise one example in any of the forms of `data.sources`."""
        prompt, answer = self._prompt_and_answer(example)
        prompt_ids = self.ids_of_prompt(prompt)
        if len(prompt_ids) >= self.max_length:
            raise ValueError(
                f"Row {index} has a prompt of {len(prompt_ids)} tokens, which leaves no room for an answer in "
                f"max_length {self.max_length}: raise `--max_length`."
            )
        input_ids = prompt_ids + self._end_once(self._ids(answer))
        fits = len(input_ids) <= self.max_length
        return TokenizedItem(index, input_ids[: self.max_length], len(prompt_ids), has_end=fits)

    def all(self, examples: Iterable[Mapping[str, Any]]) -> list[TokenizedItem]:
        """Tokenise a data set; the index of an item is its row number."""
        return [self(example, index) for index, example in enumerate(examples)]

    def decode(self, ids: list[int]) -> str:
        """Text of generated or answer ids, without special tokens and outer white space."""
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def cut(self, text: str, count: int) -> str:
        """The first `count` tokens of a text, as text."""
        return self.decode(self._ids(text)[:count])

    def prompt_text(self, example: Mapping[str, Any]) -> str:
        """What stands before the answer, as text."""
        return self._prompt_and_answer(example)[0]

    def ids_of_prompt(self, prompt: str) -> list[int]:
        """The ids of a `prompt_text` or of its beginning, after the begin token where the tokenizer puts one."""
        return self._bos(prompt) + self._ids(prompt)

    def _prompt_and_answer(self, example: Mapping[str, Any]) -> tuple[str, str]:
        form = form_of(example)
        if form == "text":
            return "", example["text"]
        if form == "prompt_completion":
            return example["prompt"], example["completion"]
        if form == "messages":
            return self._render(list(example["messages"]))
        question, answer = example["question"], example["answer"]
        if not self.tokenizer.chat_template:
            return f"Question: {question}\nAnswer:", f" {answer}"
        return self._render([{"role": "user", "content": question}, {"role": "assistant", "content": answer}])

    def _render(self, messages: list[dict[str, str]]) -> tuple[str, str]:
        """Render a conversation; its last message is the answer, all before it the prompt."""
        if not self.tokenizer.chat_template:
            raise ValueError(
                f"The tokenizer {self.tokenizer.name_or_path!r} has no chat template, which chat messages need: use a "
                "chat model, or question and answer columns (`--question_column`, `--answer_column`)."
            )
        if not messages or messages[-1]["role"] != "assistant":
            raise ValueError("A conversation must end with a message of the assistant, the answer to be learned.")
        if self.system_prompt and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.system_prompt}, *messages]
        prompt = self._template(messages[:-1], add_generation_prompt=True)
        whole = self._template(messages, add_generation_prompt=False)
        if not whole.startswith(prompt):
            raise ValueError(
                f"The chat template of {self.tokenizer.name_or_path!r} renders the prompt differently once it is "
                "answered, so prompt and answer cannot be told apart: give the tokenizer a template without that."
            )
        return prompt, whole[len(prompt) :]

    def _template(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        return self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt, date_string=_TEMPLATE_DATE
        )

    def _bos(self, prompt: str) -> list[int]:
        """The begin token, where the tokenizer puts one and the template has not written it already."""
        bos, token = self.tokenizer.bos_token_id, self.tokenizer.bos_token
        adds_bos = bos is not None and self.tokenizer("a").input_ids[0] == bos
        return [bos] if adds_bos and not prompt.startswith(token) else []

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def _end_once(self, answer_ids: list[int]) -> list[int]:
        if self.keeps_tail:
            eos = self.tokenizer.eos_token_id
            return answer_ids if answer_ids[-1:] == [eos] else [*answer_ids, eos]
        for position, token_id in enumerate(answer_ids):
            if token_id in self.special_ids:
                return answer_ids[: position + 1]
        return [*answer_ids, self.tokenizer.eos_token_id]
