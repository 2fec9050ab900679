"""Names as the tokens of an index."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

MAX_VOCABULARY = 65_535
"""Tokens are numbers of 16 bits, of which the last one stands before every document."""


class Encoder:
    """A tokenizer, without special tokens around a text.

    Args:
        folder: where its `tokenizer.json` is.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: the vocabulary is larger than `MAX_VOCABULARY`.
    """

    # What may stand before a name. A tokenizer joins a space to the word behind it, and mostly nothing else; without
    # what stands before, the tokens would be those of the end of a longer word, too.
    _BEFORE = (" ", "\n", "(", '"', "“")

    def __init__(self, folder: str | Path) -> None:
        from tokenizers import Tokenizer

        path = Path(folder).expanduser() / "tokenizer.json"
        if not path.is_file():
            raise FileNotFoundError(f"There is no {path}: give a folder with a fast tokenizer as `--tokenizer`.")
        self._tokenizer = Tokenizer.from_file(str(path))
        self.name = Path(folder).name
        size = self._tokenizer.get_vocab_size(with_added_tokens=True)
        if size > MAX_VOCABULARY:
            raise ValueError(
                f"The tokenizer {folder} has {size} tokens, and an index holds at most {MAX_VOCABULARY}: give one with "
                "a smaller vocabulary as `--tokenizer`."
            )
        # What decides about tokens, however the file is laid out.
        content = json.loads(path.read_text(encoding="utf-8"))
        decides = {key: content.get(key) for key in ("model", "normalizer", "pre_tokenizer", "added_tokens")}
        self.sha256 = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()

    def all(self, texts: list[str]) -> list[list[int]]:
        """The tokens of each text."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def clause(self, names: Sequence[str], case_sensitive: bool) -> list[list[int]]:
        """All token sequences of these names, without those that hold another one: that one would count twice."""
        spelled = dict.fromkeys(names)
        if not case_sensitive:
            spelled = dict.fromkeys(form for name in names for form in (name, name.lower(), name.upper()))
        lead = self.all(["of"])[0]
        sequences = []
        for name in spelled:
            word, *behind = self.all([f" {name}", *(f"of{before}{name}" for before in self._BEFORE)])
            sequences += [word, *(ids[len(lead) :] for ids in behind if ids[: len(lead)] == lead)]
        sequences = [list(ids) for ids in dict.fromkeys(map(tuple, sequences))]
        return [ids for ids in sequences if not any(holds(ids, other) for other in sequences if other != ids)]


def holds(longer: list[int], shorter: list[int]) -> bool:
    """Whether a sequence of tokens occurs within another."""
    n = len(shorter)
    return any(longer[start : start + n] == shorter for start in range(len(longer) - n + 1))
