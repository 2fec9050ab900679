"""From examples to the texts that are compared, and from many texts to chunks of bounded size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from llm_unlearn.data.sources import EXAMPLE_FORMS, form_of

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

CHUNK_ROWS = 4096
"""Most texts that are held and encoded at once."""

CHUNK_CHARACTERS = 2**23
"""Characters at which a chunk ends early, so that books need no more memory than sentences."""


class TextTokens(Protocol):
    """How texts are counted in tokens."""

    def encode(self, text: str) -> list[int]:
        """The ids of the tokens of `text`."""

    def cut(self, text: str, start: int, stop: int) -> str:
        """Tokens `start` to `stop` of `text`, as text."""


class WordTokens:
    """Words split on white space, numbered as they come; for use where there is no tokenizer."""

    def __init__(self):
        self._ids: dict[str, int] = {}

    def encode(self, text: str) -> list[int]:
        """See `TextTokens`."""
        return [self._ids.setdefault(word, len(self._ids)) for word in text.split()]

    def cut(self, text: str, start: int, stop: int) -> str:
        """See `TextTokens`."""
        return " ".join(text.split()[start:stop])


class ModelTokens:
    """The tokens of a model, without special ones.

    Args:
        tokenizer: the model's.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        """See `TextTokens`."""
        # Not verbose: a text longer than the model's context is no mistake here.
        return self._tokenizer(text, add_special_tokens=False, verbose=False).input_ids

    def cut(self, text: str, start: int, stop: int) -> str:
        """See `TextTokens`."""
        return self._tokenizer.decode(self.encode(text)[start:stop])


def text_of(
    example: Mapping[str, Any], text_slice: tuple[int, int] | None = None, tokens: TextTokens | None = None
) -> str:
    """What of an example is compared with other examples.

    Args:
        example (`Mapping[str, Any]`):
            An example in one of the four forms of `data.sources`.
        text_slice (`tuple[int, int]`, *optional*):
            The tokens of a plain text that are compared; the released code takes (100, 200) of 200. A text that ends
            before the slice begins is compared as a whole, and so is every example of another form. Unset, the whole
            text.
        tokens (`TextTokens`, *optional*):
            What `text_slice` counts. Unset, words.

    Returns:
        `str`: question and answer, prompt and completion, the contents of all messages, or the text.
    """
    form = form_of(example)
    if form == "question_answer":
        return f"{example['question']}\n{example['answer']}"
    if form == "prompt_completion":
        return example["prompt"] + example["completion"]
    if form == "messages":
        return "\n".join(message["content"] for message in example["messages"])
    if text_slice is None:
        return example["text"]
    return (tokens or WordTokens()).cut(example["text"], *text_slice) or example["text"]


class RowTexts(Sequence[str]):
    """The texts of a data set, made when they are read and never held together.

    Args:
        rows (`datasets.Dataset`):
            Rows in one of the four forms.
        text_slice, tokens:
            See `text_of`.
    """

    def __init__(self, rows: Dataset, text_slice: tuple[int, int] | None = None, tokens: TextTokens | None = None):
        # Other columns would be decoded with every row for nothing.
        self._rows = rows.select_columns(list(EXAMPLE_FORMS[form_of(rows.column_names)]))
        self._text_slice = text_slice
        self._tokens = tokens or WordTokens()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, position: int) -> str:
        return text_of(self._rows[position], self._text_slice, self._tokens)

    def __iter__(self) -> Iterator[str]:
        return (text_of(row, self._text_slice, self._tokens) for row in self._rows)


def chunked(texts: Iterable[str]) -> Iterator[list[str]]:
    """Consecutive texts in lists of at most `CHUNK_ROWS`, closed early at `CHUNK_CHARACTERS`."""
    chunk: list[str] = []
    characters = 0
    for text in texts:
        chunk.append(text)
        characters += len(text)
        if len(chunk) == CHUNK_ROWS or characters >= CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def normalised(text: str) -> str:
    """`text` without differences of case and white space."""
    return " ".join(text.split()).casefold()
