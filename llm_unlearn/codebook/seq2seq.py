"""Encoder-decoder models (T5) beside causal ones: what an example is to each, and how it is scored and answered.

A causal model reads prompt and answer in a row. An encoder-decoder model reads the prompt in its encoder, where the
bottleneck sits, and writes the answer in its decoder, whose own words never pass the bottleneck: what a deletion does
shows in free generation (`translate`), since a loss on given answers leaks them.

`kind_of(model)` has what differs. All that reads codes or trains a bottleneck goes through it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from transformers import AutoModelForSeq2SeqLM, GenerationConfig, PreTrainedModel

from llm_unlearn.codebook.config import CodebookConfig
from llm_unlearn.codebook.model import BASE_FOLDER, CodebookModel
from llm_unlearn.codebook.site import bare
from llm_unlearn.data.collator import Half, collate
from llm_unlearn.data.tokenization import ExampleTokenizer, TokenizedItem
from llm_unlearn.evaluation.outputs.generation import blank_generation_config, new_token_cap
from llm_unlearn.evaluation.outputs.sharding import device_of, evaluating, form_batches, run_sharded
from llm_unlearn.forward import AnswerLogits, answer_logits, only_positions
from llm_unlearn.functional import IGNORE_INDEX
from llm_unlearn.models import CODEBOOK_CONFIG, check_source

_BATCH_TOKENS = {"cpu": 4096, "other": 32768}


class PairTokenizer(ExampleTokenizer):
    """Turns examples into items for an encoder-decoder model: ``source </s>`` is prompt, ``target </s>`` answer.

    Args:
        tokenizer, system_prompt, keeps_tail: as in `ExampleTokenizer`.
        max_length: longest source, and longest target, in tokens. Longer ones are cut at the end; a source keeps its
            end token. Defaults to 512.

    Raises:
        ValueError: the tokenizer has no end token.
    """

    def __call__(self, example: dict[str, Any], index: int) -> TokenizedItem:
        """Tokenise one example in any of the forms of `data.sources` but plain text.

        Raises:
            ValueError: there is nothing for the encoder to read.
        """
        source, target = self._prompt_and_answer(example)
        if not source.strip():
            raise ValueError(
                f"Row {index} has no source, which the encoder reads: give rows with a prompt and a completion "
                "(`--source_column`, `--target_column`)."
            )
        source_ids, target_ids = self.ids_of_prompt(source), self._end_once(self._ids(target))
        fits = len(target_ids) <= self.max_length
        return TokenizedItem(index, source_ids + target_ids[: self.max_length], len(source_ids), has_end=fits)

    def ids_of_prompt(self, prompt: str) -> list[int]:
        """What the encoder reads: at most `max_length` ids, the last of them the end token."""
        return [*self._ids(prompt)[: self.max_length - 1], self.tokenizer.eos_token_id]


def collate_pairs(items: Sequence[TokenizedItem], weights: Sequence[float] | None = None, *, pad_id: int = 0) -> Half:
    """Pad `items` to a batch of sources and targets; `collate` for encoder-decoder models.

    Args:
        items, weights, pad_id: as in `collate`.

    Returns:
        `input_ids`, `attention_mask`: ``(batch, source tokens)``; `labels`: ``(batch, target tokens)``; `index`,
        `weight`: ``(batch,)``.
    """
    sources = [TokenizedItem(item.index, item.prompt_ids, item.prompt_length) for item in items]
    targets = [TokenizedItem(item.index, item.answer_ids, 0) for item in items]
    return {**collate(sources, weights, pad_id=pad_id), "labels": collate(targets)["labels"]}


def pair_logits(model: nn.Module, unwrapped: nn.Module, batch: dict[str, Tensor]) -> AnswerLogits:
    """`answer_logits` of an encoder-decoder model: of each target token, given the source and the target before it.

    Args:
        model: the module to call, wrapped or not.
        unwrapped: the same model without wrappers.
        batch: as `collate_pairs` makes it.
    """
    labels = batch["labels"]
    answered = labels != IGNORE_INDEX
    before = bare(unwrapped).prepare_decoder_input_ids_from_labels(labels)
    with only_positions(unwrapped, answered):
        logits = model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            decoder_input_ids=before,
            use_cache=False,
        ).logits
    return AnswerLogits(logits, labels[answered], answered.nonzero()[:, 0], len(labels))


@dataclass(frozen=True)
class ModelKind:
    """How a kind of model takes examples.

    Attributes:
        tokenizer: makes items of them; `prompt_ids` of an item is what passes the bottleneck before an answer.
        collate: makes a batch of items, whose `input_ids` and `attention_mask` pass the bottleneck.
        logits: runs the model over a batch and returns its logits where it answers.
    """

    tokenizer: type[ExampleTokenizer]
    collate: Callable[..., Half]
    logits: Callable[[nn.Module, nn.Module, dict[str, Tensor]], AnswerLogits]


CAUSAL = ModelKind(ExampleTokenizer, collate, answer_logits)
ENCODER_DECODER = ModelKind(PairTokenizer, collate_pairs, pair_logits)


def kind_of(model: nn.Module) -> ModelKind:
    """The kind of a model, plain or wrapped by PEFT."""
    return ENCODER_DECODER if bare(model).config.is_encoder_decoder else CAUSAL


def load_pair_model(source: str | Path, dtype: torch.dtype | None = None, **kwargs: Any) -> PreTrainedModel:
    """`load_model` for an encoder-decoder model, in eval mode.

    Args:
        source: hub id, or model folder.
        dtype: of the weights. Unset: float32 on CPU, bfloat16 on GPU.
        kwargs: passed to `AutoModelForSeq2SeqLM.from_pretrained`. `trust_remote_code` is off.

    Raises:
        ValueError: there is no model in `source`, or none with encoder and decoder.
    """
    check_source(source)
    if dtype is None:
        dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    try:
        model = AutoModelForSeq2SeqLM.from_pretrained(source, dtype=dtype, trust_remote_code=False, **kwargs)
    except ValueError as error:
        if "Unrecognized configuration class" not in str(error):
            raise
        raise ValueError(
            f"The model in {source} is no encoder-decoder model: give one such as T5, or use `codeunlearn.py` for a "
            "causal model."
        ) from error
    return model.eval()


def load_pair_codebook(folder: str | Path, dtype: torch.dtype | None = None, **kwargs: Any) -> CodebookModel:
    """`CodebookModel.load` for an encoder-decoder model: the base, the bottleneck and its requests in force.

    Args:
        folder: as `save_pretrained` wrote it.
        dtype, kwargs: as in `load_pair_model`; unset, the dtype the codebook was saved with.

    Raises:
        FileNotFoundError: `folder` is no codebook folder.
        ValueError: the base is not where the folder says; see also `CodebookModel.from_pretrained`.
    """
    own, base = Path(folder) / BASE_FOLDER, CodebookConfig.load(folder).base or {}
    if dtype is None and "dtype" in base:
        dtype = getattr(torch, base["dtype"])
    source = str(own) if own.is_dir() else base.get("source")
    if source is None:
        raise ValueError(
            f"{Path(folder) / CODEBOOK_CONFIG} does not say which model it is for: use "
            "`CodebookModel.from_pretrained` with that model."
        )
    return CodebookModel.from_pretrained(load_pair_model(source, dtype, **kwargs), folder)


def translate(
    model: nn.Module,
    items: Sequence[TokenizedItem],
    tokenizer: ExampleTokenizer,
    max_new_tokens: int = 200,
    *,
    name: str = "texts",
    progress: bool = True,
) -> list[str]:
    """What the model answers to each source, greedily.

    An answer ends with the end token, or at `new_token_cap` of its own target's length, so that a model which has lost
    its way does not ramble on; what else is in its batch does not matter, rounding aside. What the model's own
    generation config says (beams, penalties) is left out.

    Args:
        model: an encoder-decoder model, wrapped or not; in eval mode meanwhile.
        items: as `PairTokenizer` makes them; of the targets only the lengths are read.
        tokenizer: which made them.
        max_new_tokens: longest answer in tokens.
        name: what the progress bar calls the items.
        progress: whether the main process shows a bar.

    Returns:
        One text per item, in order, the same on every process.
    """
    unwrapped = extract_model_from_parallel(model)
    inner, device = bare(unwrapped), device_of(unwrapped)
    end = tokenizer.tokenizer.eos_token_id
    caps = [new_token_cap(len(item.answer_ids), max_new_tokens) for item in items]

    def run(batch: list[int]) -> list[str]:
        inputs = collate_pairs([items[i] for i in batch])
        config = GenerationConfig(
            max_new_tokens=max(caps[i] for i in batch),
            do_sample=False,
            num_beams=1,
            decoder_start_token_id=inner.config.decoder_start_token_id,
            eos_token_id=end,
            pad_token_id=end if inner.config.pad_token_id is None else inner.config.pad_token_id,
        )
        written = inner.generate(
            input_ids=inputs["input_ids"].to(device),
            attention_mask=inputs["attention_mask"].to(device),
            generation_config=config,
        )
        # The first id is the decoder's start.
        rows = zip(batch, written[:, 1:].tolist(), strict=True)
        return [tokenizer.decode(_until(ids[: caps[i]], end)) for i, ids in rows]

    budget = _BATCH_TOKENS.get(device.type, _BATCH_TOKENS["other"])
    batches = form_batches([(item.prompt_length, cap) for item, cap in zip(items, caps, strict=True)], budget)
    costs = [max(caps[i] for i in batch) for batch in batches]
    with evaluating(unwrapped), blank_generation_config(inner):
        return run_sharded(run, batches, costs, f"translating {name}", progress)


def _until(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end)] if end in ids else ids
