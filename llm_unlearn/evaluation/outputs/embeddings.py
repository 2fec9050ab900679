"""Texts as one unit vector per token, for `bert_score`: from the model at hand, or from an encoder of the hub."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate.utils import extract_model_from_parallel
from jaxtyping import Float
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerBase

from llm_unlearn.evaluation.metrics.similarity import TokenVectors
from llm_unlearn.evaluation.outputs.sharding import (
    device_of,
    evaluating,
    form_batches,
    process_state,
    run_sharded,
    without_peft,
)

# Tokens of a batch. Hidden states of all layers are held at once: 0.3 GB in fp32 for a model of 16 layers, 2048 wide.
_BATCH_TOKENS = 2048
# Tokenizers say 1e30 where they know no limit, which is no length they can be asked for.
_LONGEST = 2**20


class TextEncoder(Protocol):
    """What turns texts into vectors of their tokens.

    Attributes:
        name: "model" or the encoder's name, for logs and records.
        layer: whose hidden states are taken; 0 is the embedding.
    """

    name: str
    layer: int

    def embed(self, texts: Sequence[str]) -> list[TokenVectors]:
        """One record per text, in order, in float32, the same on every process."""
        ...


class HiddenStates:
    """A causal model's own hidden states of a middle layer; needs nothing that is not there already.

    The model is used as it stands: whoever wants what it knew before unlearning switches its adapters off meanwhile.
    The head is not run. Special tokens are read where the tokenizer adds them, since models lean on the first token,
    but have no vector.

    Args:
        model: a causal language model, wrapped by PEFT or DDP or neither; in eval mode meanwhile.
        tokenizer: its Hugging Face tokenizer.
        layer: layer whose output is taken. Unset, half of the layers: the last ones turn towards the next token, and
            middle ones serve comparison best in most models (Skean et al., arXiv:2502.02013). A starting point.
        token_budget: tokens of a batch, padding included. Defaults to 2048.
        progress: whether the main process shows a bar.

    Raises:
        ValueError: the model has no such layer.
    """

    name = "model"

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        layer: int | None = None,
        *,
        token_budget: int = _BATCH_TOKENS,
        progress: bool = True,
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.layer = _layer_of(without_peft(extract_model_from_parallel(model)), layer, 1 / 2, self.name)
        self.token_budget = token_budget
        self.progress = progress
        # Words that the tokenizer does not know are words; GPT-2 calls its end token unknown as well.
        self._special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id} | {tokenizer.eos_token_id}

    def embed(self, texts: Sequence[str]) -> list[TokenVectors]:
        """Encode texts; one without tokens has no vectors. What exceeds the model's longest input is cut off."""
        whole = without_peft(extract_model_from_parallel(self.model))
        limit = _longest_input(whole, self.tokenizer)
        rows = [self.tokenizer(text.strip()).input_ids[:limit] for text in texts]
        vectors = _unit_vectors(
            whole.base_model, rows, self.layer, 0, self.token_budget, self.progress, {"use_cache": False}
        )
        kept = [[token not in self._special for token in row] for row in rows]
        return [TokenVectors.of(own[np.array(keep, dtype=bool)]) for own, keep in zip(vectors, kept, strict=True)]


class HubEncoder:
    """An encoder such as bert-base-uncased; with `bert_score` the number of the package `bert-score`, version 0.3.13.

    That is its raw number, without idf and rescaling. As there, [CLS] and [SEP] do not count in the means but may be
    matched, and texts are cut at the encoder's longest input. Compared with the package on encoders of BERT's kind.

    Args:
        name: hub id or folder. ``google-bert/bert-base-uncased`` and ``bert-base-uncased`` are the same; the package
            knows only the second.
        layer: layer whose output is taken. Unset, three quarters of the layers: the package's 9 of 12 for
            bert-base-uncased and 18 of 24 for bert-large-uncased. Others in its table differ (roberta-base: 10).
        token_budget: tokens of a batch, padding included. Defaults to 2048.
        progress: whether the main process shows a bar.

    Raises:
        ValueError: the encoder cannot be loaded, or has no such layer.
    """

    def __init__(
        self, name: str, layer: int | None = None, *, token_budget: int = _BATCH_TOKENS, progress: bool = True
    ):
        loaded, model, self.tokenizer = _load(name)
        # A path is personal.
        self.name = Path(loaded).name if Path(loaded).is_dir() else _short(loaded)
        self.layer = _layer_of(model, layer, 3 / 4, self.name)
        self.model = (model.get_encoder() if model.config.is_encoder_decoder else model).to(process_state().device)
        self.token_budget = token_budget
        self.progress = progress

    def embed(self, texts: Sequence[str]) -> list[TokenVectors]:
        """Encode texts, the encoder's special tokens included."""
        limit = _longest_input(self.model, self.tokenizer)
        rows = [self.tokenizer(text.strip(), truncation=True, max_length=limit).input_ids for text in texts]
        # RoBERTa reads positions off the ids that are padding.
        pad_id = self.tokenizer.pad_token_id or 0
        vectors = _unit_vectors(self.model, rows, self.layer, pad_id, self.token_budget, self.progress, {})
        edges = {self.tokenizer.cls_token_id, self.tokenizer.sep_token_id}
        return [
            TokenVectors(own, np.array([token not in edges for token in row], dtype=bool))
            for own, row in zip(vectors, rows, strict=True)
        ]


def _unit_vectors(
    model: nn.Module,
    rows: Sequence[list[int]],
    layer: int,
    pad_id: int,
    token_budget: int,
    progress: bool,
    options: dict[str, Any],
) -> list[Float[np.ndarray, "tokens dim"]]:
    """Hidden states behind `layer` for each row of ids, scaled to length 1, whatever shares its batch."""
    device = device_of(model)
    # Where the tokenizer adds nothing, an empty text leaves nothing to run.
    asked = [i for i, ids in enumerate(rows) if ids]

    def run(batch: list[int]) -> list[Float[np.ndarray, "tokens dim"]]:
        chosen = [torch.tensor(rows[asked[position]]) for position in batch]
        lengths = torch.tensor([len(ids) for ids in chosen])
        input_ids = pad_sequence(chosen, batch_first=True, padding_value=pad_id)
        mask = (torch.arange(input_ids.shape[1]) < lengths[:, None]).long()
        output = model(
            input_ids=input_ids.to(device), attention_mask=mask.to(device), output_hidden_states=True, **options
        )
        units = nn.functional.normalize(output.hidden_states[layer].float(), dim=-1).cpu().numpy()
        # Copies: a view would keep the array of the whole batch alive.
        return [unit[:length].copy() for unit, length in zip(units, lengths, strict=True)]

    batches = form_batches([(len(rows[i]), 0) for i in asked], token_budget)
    costs = [len(batch) * max(len(rows[asked[position]]) for position in batch) for batch in batches]
    with evaluating(model):
        encoded = iter(run_sharded(run, batches, costs, "encoding texts", progress))
    nothing = np.zeros((0, model.config.get_text_config().hidden_size), dtype=np.float32)
    return [next(encoded) if ids else nothing for ids in rows]


def _layer_of(model: nn.Module, layer: int | None, share: float, name: str) -> int:
    count = model.config.get_text_config().num_hidden_layers
    layer = round(share * count) if layer is None else layer
    if not 0 <= layer <= count:
        raise ValueError(f"Layer {layer} of {name} was asked for, which has {count}: give a `layer` from 0 to {count}.")
    return layer


def _longest_input(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> int:
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or _LONGEST
    return min(tokenizer.model_max_length, positions, _LONGEST)


def _load(name: str) -> tuple[str, nn.Module, PreTrainedTokenizerBase]:
    """The spelling that worked, the encoder in eval mode, and its tokenizer."""
    short = _short(name)
    # The hub moved the first BERTs below their owner; a cache or a folder may have either spelling.
    spellings = dict.fromkeys([name, short, f"google-bert/{short}"] if short.startswith("bert-") else [name])
    for spelling in spellings:
        try:
            tokenizer = AutoTokenizer.from_pretrained(spelling, trust_remote_code=False)
            model = AutoModel.from_pretrained(
                spelling, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
            )
        except (OSError, ValueError) as error:
            cause = error
        else:
            return spelling, model.eval(), tokenizer
    raise ValueError(
        f"The encoder {name!r} could not be loaded: give a folder with an encoder in safetensors and its tokenizer, or "
        "the name of one that is in the cache or can be downloaded, or take the model's own hidden states, which works "
        "offline (`--iur_encoder model`)."
    ) from cause


def _short(name: str) -> str:
    return name.removeprefix("google-bert/")
