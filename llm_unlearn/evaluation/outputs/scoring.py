"""The teacher-forced pass: log-probability, top-1 hit and, where asked, more, for every token of every given answer.

The answers to one question are scored as a tree (`trees`), and what all questions begin with, such as a system
message, is read once for all. The result is that of one sequence per answer, up to rounding; every pass first checks
this on one question, and where the model does not follow such a mask (windowed or recurrent attention) it goes back to
one sequence per answer.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat

import numpy as np
import torch
from accelerate.utils import extract_model_from_parallel
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers.cache_utils import Cache

from llm_unlearn.evaluation.outputs.decoding import new_cache
from llm_unlearn.evaluation.outputs.sharding import device_of, evaluating, form_batches, run_sharded, without_peft
from llm_unlearn.evaluation.outputs.trees import Batch, Branches, common_prefix
from llm_unlearn.forward import only_positions
from llm_unlearn.functional import token_moments

# A chunk of logits is held a few times over in fp32: 2**21 entries are 8 MiB each, whatever the vocabulary.
_CHUNK_ENTRIES = 2**21
# Logits of one batch: 128 MB in fp32. Larger batches are hardly faster once a matrix product fills the cores.
_BATCH_ENTRIES = {"cpu": 2**25, "other": 2**29}


@dataclass(frozen=True, eq=False)
class ItemScores:
    """What one teacher-forced pass tells about one answer, per answer token (the end token included).

    Attributes:
        logprobs: ``log p(y_t | prompt, y_<t)``, in nats, ``(T,)``, float32, <= 0.
        hits: whether ``y_t`` is the most probable token, ``(T,)``. Of equally probable tokens the one with the lowest
            id counts, as in greedy decoding.
        mean: mean of ``log p(v)`` for ``v ~ p`` at the same position, ``(T,)``, float32; None unless asked for.
        std: its standard deviation, ``(T,)``, float32; None unless asked for.
        js: Jensen-Shannon divergence between ``p`` and the unigram teacher, in bits, in [0, 1], ``(T,)``, float32;
            None unless a teacher was given.
        ranks: place of ``y_t`` among all tokens by probability, 1 where `hits`, ``(T,)``, int64; None unless asked for.
    """

    logprobs: Float[np.ndarray, " T"]
    hits: Bool[np.ndarray, " T"]
    mean: Float[np.ndarray, " T"] | None = None
    std: Float[np.ndarray, " T"] | None = None
    js: Float[np.ndarray, " T"] | None = None
    ranks: Int[np.ndarray, " T"] | None = None

    @property
    def loss(self) -> float:
        """Token-mean negative log-likelihood, in nats."""
        return -float(self.logprobs.mean(dtype=np.float64))


def score(
    model: nn.Module,
    questions: Sequence[Branches],
    *,
    unigram: Float[Tensor, " vocab"] | None = None,
    ranks: bool = False,
    token_budget: int | None = None,
    share_prompts: bool = True,
    name: str = "answers",
    progress: bool = True,
) -> list[list[ItemScores]]:
    """Score all answers to all questions under `model`.

    Args:
        model: a causal language model, wrapped by PEFT or DDP or neither; in eval mode meanwhile.
        questions: prompts with their answers.
        unigram: probabilities of a teacher that knows only how frequent tokens are; given, `ItemScores.js` is filled.
        ranks: whether `ItemScores.ranks` is filled. Defaults to False: it is one more comparison of the vocabulary
            per answer token.
        token_budget: tokens of a batch, padding included. Defaults to as many as give 2**25 logits on a CPU (128 MB)
            and 2**29 elsewhere, at most 8192.
        share_prompts: whether what answers and prompts share is read once. Defaults to True; False is the plain way.
        name: what the progress bar calls the answers.
        progress: whether the main process shows a bar.

    Returns:
        Per question one record per answer, in order, the same on every process.

    Raises:
        ValueError: an answer has no token that could be scored.
    """
    for number, question in enumerate(questions):
        if not question.prompt or not all(question.answers):
            raise ValueError(f"Question {number} of the {name} has an empty answer: leave the row out, or answer it.")
    unwrapped = extract_model_from_parallel(model)
    device = device_of(unwrapped)
    vocabulary = unwrapped.get_output_embeddings().weight.shape[0]
    entries = _BATCH_ENTRIES.get(device.type, _BATCH_ENTRIES["other"])
    token_budget = token_budget or max(256, min(8192, entries // vocabulary))
    unigram = None if unigram is None else unigram.to(device, torch.float32)

    with evaluating(unwrapped):
        shares = share_prompts and any(len(question.answers) > 1 for question in questions) and _takes_trees(unwrapped)
        prefix = _read_prefix(unwrapped, questions, device) if shares else None
        shared = prefix is not None and _follows_trees(unwrapped, questions, prefix, device)
        units = list(questions) if shared else [unit for question in questions for unit in question.apart()]
        batches = form_batches([(unit.n_tokens, 0) for unit in units], token_budget)
        costs = [len(batch) * max(units[position].n_tokens for position in batch) for batch in batches]

        def run(positions: list[int]) -> list[list[ItemScores]]:
            batch = [units[position] for position in positions]
            return _score_batch(unwrapped, batch, unigram, device, prefix if shared else None, ranks)

        scored = iter(run_sharded(run, batches, costs, f"scoring {name}", progress))
    if shared:
        return list(scored)
    return [[next(scored)[0] for _ in question.answers] for question in questions]


@dataclass(frozen=True, eq=False)
class _Prefix:
    """What all prompts begin with, read once: keys and values per layer, ``(1, heads, length, dim)``."""

    length: int
    states: list[tuple[Tensor, Tensor]]

    def cache(self, batch_size: int) -> Cache:
        """A cache that holds the prefix for every row of a batch."""
        cache = new_cache()
        for layer, states in enumerate(self.states):
            cache.update(*(state.expand(batch_size, -1, -1, -1) for state in states), layer)
        return cache


def _read_prefix(model: nn.Module, questions: Sequence[Branches], device: torch.device) -> _Prefix:
    tokens = common_prefix(questions)
    if not tokens:
        return _Prefix(0, [])
    cache = new_cache()
    ids = torch.tensor([tokens], device=device)
    with only_positions(model, torch.zeros_like(ids, dtype=torch.bool)):
        model(input_ids=ids, past_key_values=cache, use_cache=True)
    return _Prefix(len(tokens), [(layer.keys, layer.values) for layer in cache.layers])


def _score_batch(
    model: nn.Module,
    units: Sequence[Branches],
    unigram: Tensor | None,
    device: torch.device,
    prefix: _Prefix | None = None,
    ranks: bool = False,
) -> list[list[ItemScores]]:
    """Score one batch; with a prefix as trees behind it, without as one sequence per answer."""
    layout = Batch.of(units, prefix.length if prefix else 0)
    inputs = {"input_ids": layout.input_ids.to(device), "use_cache": False}
    if prefix:
        dtype = model.get_input_embeddings().weight.dtype
        inputs["position_ids"] = layout.position_ids.to(device)
        inputs["attention_mask"] = layout.attention_mask(dtype).to(device)
        if prefix.length:
            inputs |= {"past_key_values": prefix.cache(len(units)), "use_cache": True}
    # A single answer needs no mask: what stands to the right of a token changes nothing in a causal model.
    with only_positions(model, layout.predicts.to(device)):
        logits = model(**inputs).logits
    sources, targets = torch.tensor(layout.sources, device=device), torch.tensor(layout.targets, device=device)
    detailed = layout.detailed[layout.predicts].to(device)
    lse, best, details = _distributions(logits, detailed, unigram)
    logprobs = logits[sources, targets].float() - lse[sources]
    hits = best[sources] == targets
    records = torch.cat([torch.stack([logprobs, hits.float()]), details[:, sources]]).cpu().numpy()
    ends = np.cumsum(layout.lengths)[:-1]
    per_answer = iter(np.split(records, ends, axis=1))
    per_rank = iter(np.split(_ranks(logits, sources, targets).cpu().numpy(), ends)) if ranks else repeat(None)
    return [
        [
            _item_scores(next(per_answer), next(per_rank), unit.detailed and i == 0, unigram is not None)
            for i in range(len(unit.answers))
        ]
        for unit in units
    ]


def _item_scores(record: np.ndarray, ranks: np.ndarray | None, detailed: bool, with_js: bool) -> ItemScores:
    logprobs, hits, mean, std, js = record
    # Copies: a view would keep the arrays of the whole batch alive.
    own = {"logprobs": logprobs.copy(), "hits": hits.astype(bool), "ranks": None if ranks is None else ranks.copy()}
    if detailed:
        own |= {"mean": mean.copy(), "std": std.copy()} | ({"js": js.copy()} if with_js else {})
    return ItemScores(**own)


def _distributions(
    logits: Float[Tensor, "marked vocab"], detailed: Bool[Tensor, " marked"], unigram: Tensor | None
) -> tuple[Float[Tensor, " marked"], Int[Tensor, " marked"], Float[Tensor, "3 marked"]]:
    """Log-sum-exp, arg-max, and mean, deviation and divergence where `detailed`; a bounded chunk of rows at a time."""
    rows = max(1, _CHUNK_ENTRIES // logits.shape[1])
    lses, bests, details = [], [], []
    for chunk, wanted in zip(logits.split(rows), detailed.split(rows), strict=True):
        fp32 = chunk.float()
        lse = fp32.logsumexp(-1)
        lses.append(lse)
        bests.append(fp32.argmax(-1))
        record = torch.full((3, len(chunk)), torch.nan, device=chunk.device)
        if wanted.any():
            kept = fp32[wanted]
            record[0, wanted], record[1, wanted] = token_moments(kept)
            if unigram is not None:
                record[2, wanted] = _js_bits(kept - lse[wanted, None], unigram)
        details.append(record)
    return torch.cat(lses), torch.cat(bests), torch.cat(details, dim=1)


def _ranks(
    logits: Float[Tensor, "marked vocab"], sources: Int[Tensor, " n"], targets: Int[Tensor, " n"]
) -> Int[Tensor, " n"]:
    """One more than the tokens that are more probable, or as probable with a lower id: greedy decoding takes rank 1."""
    rows = max(1, _CHUNK_ENTRIES // logits.shape[1])
    ids = torch.arange(logits.shape[1], device=logits.device)
    ranks = []
    for source, target in zip(sources.split(rows), targets.split(rows), strict=True):
        chunk = logits[source]
        own = chunk.gather(-1, target[:, None])
        ranks.append(1 + ((chunk > own) | ((chunk == own) & (ids < target[:, None]))).sum(-1))
    return torch.cat(ranks)


def _js_bits(log_p: Float[Tensor, "n vocab"], q: Float[Tensor, " vocab"]) -> Float[Tensor, " n"]:
    """``JS(p, q) = (KL(p || m) + KL(q || m)) / 2``, ``m = (p + q) / 2``, in bits: 0 for equals, 1 for disjoint."""
    p = log_p.exp()
    log_m = ((p + q) / 2).log()
    p_part = torch.where(p > 0, p * (log_p - log_m), 0).sum(-1)
    q_part = torch.where(q > 0, q * (q.log() - log_m), 0).sum(-1)
    return (p_part + q_part) / (2 * np.log(2))


def _takes_trees(model: nn.Module) -> bool:
    """Whether the model takes masks and positions of the caller's, and the usual cache, and reads nothing else."""
    plain = without_peft(model)
    if any(getattr(module, "is_gated", False) for module in plain.modules()):
        # A codebook's gate counts what a text has used so far, and siblings would count for each other.
        return False
    return (
        plain.config._attn_implementation in ("sdpa", "eager")
        and "position_ids" in inspect.signature(plain.forward).parameters
        and not plain._is_stateful
    )


def _follows_trees(model: nn.Module, questions: Sequence[Branches], prefix: _Prefix, device: torch.device) -> bool:
    """Whether `model` scores the branches of a tree as it scores them apart, tried on the question with most tokens."""
    # A mask given whole replaces a model's own window, which then must be wider than any path through a tree.
    window = getattr(without_peft(model).config.get_text_config(), "sliding_window", None)
    if window and window < max(max(question.tree.depths) + 1 for question in questions):
        return False
    tree = max(questions, key=lambda question: question.n_tokens)
    together = _score_batch(model, [tree], None, device, prefix)[0]
    apart = [scores[0] for scores in _score_batch(model, tree.apart(), None, device)]
    pairs = zip(together, apart, strict=True)
    gaps = np.concatenate([np.abs(one.logprobs - other.logprobs) for one, other in pairs])
    # Rounding gives 1e-5 in fp32 and a few hundredths in bf16; a mask that is not followed gives tenths and more.
    tolerance = 1e-3 if model.get_input_embeddings().weight.dtype == torch.float32 else 5e-2
    return bool(np.nanmean(gaps) < tolerance) if not np.isnan(gaps).all() else True
