"""Decoding, greedy unless said otherwise, in which a finished row stops costing.

`model.generate` carries every row of a batch to the end of its longest and copies the whole cache of keys and values at
every token; on TOFU's answers either doubles the time. Here rows leave the batch when they are done, and the cache
grows in place. Texts are those of `model.generate`, which the tests compare.
"""

import inspect
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer

from llm_unlearn.data.tokenization import ExampleTokenizer, TokenizedItem
from llm_unlearn.evaluation.outputs.sharding import without_peft
from llm_unlearn.forward import only_positions

# Leaving the batch costs a copy of the cache, so rows leave together once they are this share of it.
_FINISHED_SHARE = 0.25
# Keys and values of one batch.
_CACHE_BYTES = {"cpu": 2**27, "other": 2**31}
# Columns that are added to a full cache at once.
_CACHE_BLOCK = 64

Choose = Callable[[Sequence[int], Float[Tensor, "rows vocab"]], Int[Tensor, " rows"]]
"""Which token comes next: the numbers of the rows still written, and their logits, to one token each."""


def most_probable(rows: Sequence[int], logits: Float[Tensor, "rows vocab"]) -> Int[Tensor, " rows"]:
    """The greedy choice; of equally probable tokens the one with the lowest id."""
    return logits.argmax(-1)


class GrowingLayer(DynamicLayer):
    """A layer's keys and values, ``(batch, heads, tokens, dim)``, as views into buffers with room for more."""

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Append along the tokens, in place wherever there is room."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._buffers = [key_states[..., :0, :], value_states[..., :0, :]]
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if end > self._buffers[0].shape[-2] or self._buffers[0].shape[0] != key_states.shape[0]:
            self._buffers = [
                _with_room(old, new, end + _CACHE_BLOCK)
                for old, new in ((self.keys, key_states), (self.values, value_states))
            ]
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[..., start:end, :] = new
        self.keys, self.values = (buffer[..., :end, :] for buffer in self._buffers)
        return self.keys, self.values


def _with_room(old: Tensor, new: Tensor, columns: int) -> Tensor:
    batch, heads, _, dim = new.shape
    buffer = new.new_zeros(batch, heads, columns, dim)
    if old.numel():
        buffer[..., : old.shape[-2], :] = old
    return buffer


def new_cache() -> Cache:
    """An empty cache of keys and values."""
    return Cache(layer_class_to_replicate=GrowingLayer)


def cache_tokens(model: nn.Module) -> int:
    """Tokens whose keys and values take 128 MB on a CPU and 2 GB elsewhere; at least 1024."""
    config, weight = without_peft(model).config.get_text_config(), model.get_input_embeddings().weight
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    per_token = 2 * config.num_hidden_layers * heads * width * weight.element_size()
    return max(1024, _CACHE_BYTES.get(weight.device.type, _CACHE_BYTES["other"]) // per_token)


def read_prompts(
    model: nn.Module,
    prompts: Sequence[list[int]],
    pad_id: int,
    last: Sequence[int] | None = None,
    choose: Choose = most_probable,
) -> tuple[Cache, Int[Tensor, "batch tokens"], Int[Tensor, " n"]]:
    """Read prompts of different lengths, padded on the left.

    Args:
        model: an unwrapped causal model (a `PeftModel` is fine) in eval mode.
        prompts: token ids, none empty.
        pad_id: any id; padding is masked, from lengths and never from ids.
        last: behind how many of each prompt's last tokens a next token is wanted. Defaults to 1 each.
        choose: how it is chosen. Defaults to the most probable.

    Returns:
        The cache, the attention mask that belongs to it, and the next tokens, prompt after prompt.
    """
    input_ids, mask = pad_left(prompts, pad_id)
    device = model.get_input_embeddings().weight.device
    input_ids, mask = input_ids.to(device), mask.to(device)
    cache = new_cache()
    counts = torch.tensor(last or [1] * len(prompts), device=device)
    columns = torch.arange(mask.shape[1], device=device)
    with only_positions(model, columns >= mask.shape[1] - counts[:, None]):
        logits = _forward(model, input_ids, mask, (mask.cumsum(-1) - 1).clamp_min(0), cache)
    return cache, mask, choose(range(len(logits)), logits)


def branch_off(
    cache: Cache, mask: Int[Tensor, "batch tokens"], rows: Int[Tensor, " n"], lengths: Int[Tensor, " n"]
) -> tuple[Cache, Int[Tensor, "n longest"]]:
    """The cache after only the first `lengths[i]` tokens of row `rows[i]`, and its mask; as if just read.

    Prefixes are moved to the last columns rather than masked in place, so that windowed attention sees no gap.
    """
    width = int(lengths.max())
    offsets = torch.arange(width, device=mask.device) - width + lengths[:, None]
    first = mask.shape[1] - mask.sum(-1)[rows]
    columns = (first[:, None] + offsets).clamp_min(0)
    branched = new_cache()
    for number, layer in enumerate(cache.layers):
        keys, values = (states[rows[:, None], :, columns].transpose(1, 2) for states in (layer.keys, layer.values))
        branched.update(keys, values, number)
    return branched, (offsets >= 0).long()


def decode(
    model: nn.Module,
    cache: Cache,
    mask: Int[Tensor, "batch tokens"],
    tokens: Int[Tensor, " batch"],
    caps: Sequence[int],
    end_ids: Sequence[int],
    enough: Callable[[int, list[int]], bool] = lambda row, ids: False,
    choose: Choose = most_probable,
) -> list[list[int]]:
    """Go on from what is in the cache.

    Args:
        model: as for `read_prompts`.
        cache: what was read.
        mask: which columns of the cache each row may see; those it may see are its first tokens in order.
        tokens: the next token of each row, already known.
        caps: most new tokens of each row, at least 1, the known one included.
        end_ids: ids that end a row.
        enough: whether a row, which has written these ids, may stop there. Defaults to never.
        choose: how the next token is chosen. Defaults to greedily.

    Returns:
        New tokens per row, the end token included where one came.
    """
    written: list[list[int]] = [[] for _ in caps]
    rows = list(range(len(caps)))
    ends = set(end_ids)
    over = [False] * len(caps)
    while True:
        for row, token in zip(rows, tokens.tolist(), strict=True):
            if not over[row]:
                written[row].append(token)
                over[row] = _done(written[row], caps[row], ends) or enough(row, written[row])
        going = [i for i, row in enumerate(rows) if not over[row]]
        if not going:
            return written
        if len(rows) - len(going) >= _FINISHED_SHARE * len(rows):
            kept = torch.tensor(going, device=mask.device)
            cache.batch_select_indices(kept)
            mask, tokens, rows = mask[kept], tokens[kept], [rows[i] for i in going]
        position_ids = mask.sum(-1, keepdim=True)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        tokens = choose(rows, _forward(model, tokens[:, None], mask, position_ids, cache)[:, -1])


def pad_left(
    prompts: Sequence[list[int]], pad_id: int
) -> tuple[Int[Tensor, "batch tokens"], Int[Tensor, "batch tokens"]]:
    """Prompts that all end at the last column, and their attention mask."""
    length = max(len(prompt) for prompt in prompts)
    input_ids = torch.full((len(prompts), length), pad_id)
    mask = torch.zeros((len(prompts), length), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        input_ids[row, length - len(prompt) :] = torch.tensor(prompt)
        mask[row, length - len(prompt) :] = 1
    return input_ids, mask


def end_ids_of(model: nn.Module, items: Sequence[TokenizedItem], tokenizer: ExampleTokenizer) -> list[int]:
    """All ids that end an answer; the tokenizer's first, which also serves as padding."""
    eos = tokenizer.tokenizer.eos_token_id
    configured = model.generation_config.eos_token_id
    others = set(configured) if isinstance(configured, list) else {configured} - {None}
    others |= {item.input_ids[-1] for item in items if item.has_end}
    return [eos, *sorted(others - {eos})]


def _done(ids: list[int], cap: int, ends: set[int]) -> bool:
    return len(ids) >= cap or bool(ids and ids[-1] in ends)


def _forward(model: nn.Module, input_ids: Tensor, mask: Tensor, position_ids: Tensor, cache: Cache) -> Tensor:
    # Models that read positions off the attention mask (BLOOM) take none.
    takes = "position_ids" in inspect.signature(without_peft(model).forward).parameters
    positions = {"position_ids": position_ids} if takes else {}
    return model(input_ids=input_ids, attention_mask=mask, past_key_values=cache, use_cache=True, **positions).logits
