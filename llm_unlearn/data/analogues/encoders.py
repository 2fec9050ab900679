"""From texts to the rows of a matrix whose inner products say how alike they are.

An encoder is any object with the four members of `Encoder`. Nothing heavy is imported until one is made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from llm_unlearn.data.analogues.search import Matrix

N_FEATURES = 2**20
"""Columns to which words are hashed, scikit-learn's default: what is kept of words does not grow with the pool."""

_INSTALL = "install it with `pip install 'llm-unlearn[{extra}]'`"


class Encoder(Protocol):
    """Texts to rows; pool and queries may be encoded differently.

    Attributes:
        name: what was asked for and, where that does not say it all, a fingerprint of the weights; a saved index
            belongs to one such name.
    """

    name: str

    def fit(self, chunks: Iterable[Sequence[str]]) -> None:
        """Learn what is needed about the whole pool, which is passed once before anything is encoded."""

    def encode_pool(self, texts: Sequence[str]) -> Matrix:
        """``(texts, dimension)``: dense float32, or sparse in rows."""

    def encode_queries(self, texts: Sequence[str]) -> Matrix:
        """``(texts, dimension)``, of the same kind."""


def make_encoder(
    name: str,
    model: PreTrainedModel | nn.Module | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Encoder:
    """The encoder called `name`.

    Args:
        name (`str`):
            `tfidf`, `bm25`, `model`, or else a sentence-transformers model by name or path. The released code of ICU
            uses `sentence-transformers/all-MiniLM-L6-v2`.
        model, tokenizer (*optional*):
            For `model` alone: the causal language model whose hidden states are compared.

    Raises:
        ValueError: a package is missing, there is no such model, or `model` was asked for and none was given.
    """
    if name == "tfidf":
        return TfidfEncoder()
    if name == "bm25":
        return Bm25Encoder()
    if name != "model":
        return SentenceEncoder(name)
    if model is None or tokenizer is None:
        raise ValueError("The encoder `model` compares hidden states of a model, and none was given: add `--model`.")
    return ModelEncoder(model, tokenizer)


class _WordCounts:
    """Counts of hashed words, and in how many texts of the pool each occurs: 8 bytes for each of `N_FEATURES`."""

    def __init__(self):
        try:
            from sklearn.feature_extraction.text import HashingVectorizer
        except ModuleNotFoundError as error:
            raise ValueError(
                f"The encoders `tfidf` and `bm25` need scikit-learn: {_INSTALL.format(extra='recipes')}."
            ) from error
        # Words of one letter count as well: names of variables, initials and numbers.
        self._vectorizer = HashingVectorizer(
            n_features=N_FEATURES, alternate_sign=False, norm=None, token_pattern=r"(?u)\b\w+\b"
        )
        self.n_texts = 0
        self.n_words = 0
        self.document_frequency = np.zeros(N_FEATURES, dtype=np.int64)

    def fit(self, chunks: Iterable[Sequence[str]]) -> None:
        self.n_texts = self.n_words = 0
        self.document_frequency[:] = 0
        for texts in chunks:
            counts = self(texts)
            self.n_texts += counts.shape[0]
            self.n_words += int(counts.data.sum())
            self.document_frequency += np.bincount(counts.indices, minlength=N_FEATURES)

    def __call__(self, texts: Sequence[str]) -> Any:
        return self._vectorizer.transform(texts)


class TfidfEncoder:
    """Words weighted by how rare they are: ``tf * (ln((1 + N) / (1 + df)) + 1)``, rows of unit length (cosine).

    The weights are those of scikit-learn's `TfidfVectorizer`; N and df (texts with the word) are those of the pool. Two
    words that are hashed to one of the `N_FEATURES` columns count as the same. A word that no text of the pool has
    makes a query less similar to all texts alike.

    Raises:
        ValueError: scikit-learn is not installed.
    """

    name = "tfidf"

    def __init__(self):
        self._counts = _WordCounts()

    def fit(self, chunks: Iterable[Sequence[str]]) -> None:
        """See `Encoder`: count the texts in which each word occurs."""
        self._counts.fit(chunks)

    def encode_pool(self, texts: Sequence[str]) -> Matrix:
        """See `Encoder`."""
        rows = self._counts(texts)
        frequency = self._counts.document_frequency[rows.indices]
        rows.data = rows.data * (np.log((1 + self._counts.n_texts) / (1 + frequency)) + 1)
        norms = np.sqrt(np.bincount(_row_numbers(rows), weights=rows.data**2, minlength=len(texts)))
        rows.data = rows.data / norms[_row_numbers(rows)]
        return rows

    encode_queries = encode_pool


class Bm25Encoder:
    """BM25: the inner product of a query's word counts with the weights of a text is its score.

    ``weight(w, d) = idf(w) * tf * (k1 + 1) / (tf + k1 * (1 - b + b * |d| / mean |d|))``,
    ``idf(w) = ln(1 + (N - df + 0.5) / (df + 0.5))``, which is never negative; tf is the count of w in d, ``|d|`` the
    words of d. Scores have no upper bound and grow with the query, which changes no order.

    Args:
        k1: how soon more occurrences of a word add no more; a customary value.
        b: how much long texts are discounted, from 0 to 1; a customary value.

    Raises:
        ValueError: scikit-learn is not installed.
    """

    name = "bm25"

    def __init__(self, k1: float = 1.5, b: float = 0.75):
        self._counts = _WordCounts()
        self._k1 = k1
        self._b = b

    def fit(self, chunks: Iterable[Sequence[str]]) -> None:
        """See `Encoder`: count the texts in which each word occurs, and the words."""
        self._counts.fit(chunks)

    def encode_pool(self, texts: Sequence[str]) -> Matrix:
        """See `Encoder`: the weights."""
        rows = self._counts(texts)
        n_texts, frequency = self._counts.n_texts, self._counts.document_frequency[rows.indices]
        idf = np.log1p((n_texts - frequency + 0.5) / (frequency + 0.5))
        numbers = _row_numbers(rows)
        lengths = np.bincount(numbers, weights=rows.data, minlength=len(texts))[numbers]
        mean_length = max(1, self._counts.n_words) / n_texts
        discount = self._k1 * (1 - self._b + self._b * lengths / mean_length)
        rows.data = idf * rows.data * (self._k1 + 1) / (rows.data + discount)
        return rows

    def encode_queries(self, texts: Sequence[str]) -> Matrix:
        """See `Encoder`: the counts."""
        return self._counts(texts)


def _row_numbers(rows: Any) -> np.ndarray:
    """The row of each stored value of a sparse matrix."""
    return np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))


class ModelEncoder:
    """The last hidden states of a causal language model, averaged over the tokens of a text, at unit length (cosine).

    The model is asked below its head, so no logits are made; in eval mode, which every part leaves as it was before.

    Args:
        model: a transformers model, or a peft model with its adapters as they are.
        tokenizer: its tokenizer.
        batch_size: texts in one forward pass. Defaults to 32, a starting point.
        max_tokens: tokens of a text that are read; no more than the context of the model. Defaults to 512.
    """

    def __init__(
        self,
        model: PreTrainedModel | nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int = 32,
        max_tokens: int = 512,
    ):
        from peft import PeftModel

        # The `base_model` of a peft model is its adapter; that of a transformers model is all but the head.
        self._model = (model.get_base_model() if isinstance(model, PeftModel) else model).base_model
        self._tokenizer = tokenizer
        self._batch_size = batch_size
        self._max_tokens = max_tokens
        self.name = f"model {_fingerprint(self._model)}, {max_tokens} tokens"

    def fit(self, chunks: Iterable[Sequence[str]]) -> None:
        """See `Encoder`: a text's row depends on nothing else."""

    def encode_pool(self, texts: Sequence[str]) -> np.ndarray:
        """See `Encoder`.

        Raises:
            ValueError: a hidden state is not finite.
        """
        import torch

        ids = self._tokenizer(list(texts), truncation=True, max_length=self._max_tokens).input_ids
        # A text without tokens needs a row as well: that of the first token there is.
        ids = [row or [0] for row in ids]
        # Texts of similar length together: less padding.
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        batches = [order[at : at + self._batch_size] for at in range(0, len(order), self._batch_size)]
        with torch.no_grad(), _evaluating(self._model):
            means = np.concatenate([self._means([ids[i] for i in batch]).cpu().numpy() for batch in batches])
        if not np.isfinite(means).all():
            raise ValueError(
                "The hidden states of the model are not finite numbers: give a sound model with `--model`."
            )
        rows = np.empty_like(means)
        rows[order] = means
        return rows

    encode_queries = encode_pool

    def _means(self, ids: list[list[int]]) -> torch.Tensor:
        import torch

        rows = [torch.tensor(row) for row in ids]
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in ids])
        mask = (torch.arange(padded.shape[1]) < lengths[:, None]).long()
        device = self._model.get_input_embeddings().weight.device
        padded, mask = padded.to(device), mask.to(device)
        hidden = self._model(input_ids=padded, attention_mask=mask, use_cache=False).last_hidden_state.float()
        means = (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
        return torch.nn.functional.normalize(means, dim=-1)


class SentenceEncoder:
    """A model of sentence-transformers, at unit length (cosine).

    Args:
        name: its name or path.

    Raises:
        ValueError: sentence-transformers is not installed, or has no such model.
    """

    def __init__(self, name: str):
        unlike = (
            f"{name!r} is none of the encoders tfidf, bm25 and model, so it is taken for a sentence-transformers model"
        )
        try:
            from sentence_transformers import SentenceTransformer
        except ModuleNotFoundError as error:
            raise ValueError(
                f"{unlike}, which needs {error.name}: {_INSTALL.format(extra='similarity')}, or use another "
                "`--pair_encoder`."
            ) from error
        try:
            self._model = SentenceTransformer(name, trust_remote_code=False, model_kwargs={"use_safetensors": True})
        except Exception as error:  # the hub client raises classes of half a dozen libraries
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise ValueError(
                f"{unlike}, which could not be loaded ({reason}): name another `--pair_encoder`."
            ) from error
        self.name = f"{name} {_fingerprint(self._model)}"

    def fit(self, chunks: Iterable[Sequence[str]]) -> None:
        """See `Encoder`: a text's row depends on nothing else."""

    def encode_pool(self, texts: Sequence[str]) -> np.ndarray:
        """See `Encoder`."""
        return self._model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False)

    encode_queries = encode_pool


def _fingerprint(model: nn.Module) -> str:
    """Tells models apart by the first values of every weight, without reading gigabytes."""
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().reshape(-1)[:64].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode, and afterwards every module in the mode it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
