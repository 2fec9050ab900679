"""The teacher-forced pass: log-probability, top-1 hit and, where asked, more, for every token of every given answer.

The answers to one question (the true one, its paraphrase, the wrong ones) are scored as a tree. The question is read
once and each answer hangs on it as a branch of its own: one sequence, an attention mask that keeps the branches apart,
and positions that start anew behind the question. On TOFU that halves the tokens. The result is that of one sequence
per answer, up to rounding; every pass first checks this on one question, and where the model does not follow such a
mask (windowed or recurrent attention) it goes back to one sequence per answer.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from accelerate.utils import extract_model_from_parallel
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from llm_unlearn.data.tokenization import TokenizedItem
from llm_unlearn.evaluation.outputs.sharding import device_of, evaluating, form_batches, run_sharded
from llm_unlearn.forward import only_positions
from llm_unlearn.functional import token_moments

# A chunk of logits is held a few times over in fp32: 2**22 entries are 16 MiB each, whatever the vocabulary.
_CHUNK_ENTRIES = 2**22
# Logits of one batch: 256 MB in fp32. Larger batches are no faster once a matrix product fills the cores.
_BATCH_ENTRIES = {"cpu": 2**26, "other": 2**29}


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
    """

    logprobs: Float[np.ndarray, " T"]
    hits: Bool[np.ndarray, " T"]
    mean: Float[np.ndarray, " T"] | None = None
    std: Float[np.ndarray, " T"] | None = None
    js: Float[np.ndarray, " T"] | None = None

    @property
    def loss(self) -> float:
        """Token-mean negative log-likelihood, in nats."""
        return -float(self.logprobs.mean(dtype=np.float64))


@dataclass(frozen=True, eq=False)
class Branches:
    """Answers to one prompt, to be scored together.

    Attributes:
        prompt: what comes before every answer, at least one token: something must predict the first.
        answers: token ids of each answer, end token included; none is empty.
        detailed: whether the first answer, the true one, gets mean, deviation and divergence too.
    """

    prompt: list[int]
    answers: list[list[int]]
    detailed: bool = True

    @classmethod
    def of(cls, items: Sequence[TokenizedItem], detailed: bool = True) -> "Branches":
        """The answers of items that share their prompt. Plain text has none: its first token serves as one."""
        at = max(items[0].prompt_length, 1)
        return cls(items[0].input_ids[:at], [item.input_ids[at:] for item in items], detailed)

    @property
    def n_tokens(self) -> int:
        """Tokens the model reads; the last of an answer predicts nothing more and is left out."""
        return len(self.prompt) + sum(len(answer) - 1 for answer in self.answers)

    def apart(self) -> list["Branches"]:
        """One sequence per answer."""
        return [Branches(self.prompt, [answer], self.detailed and i == 0) for i, answer in enumerate(self.answers)]


def score(
    model: nn.Module,
    questions: Sequence[Branches],
    *,
    unigram: Float[Tensor, " vocab"] | None = None,
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
        token_budget: tokens of a batch, padding included. Defaults to as many as give 2**26 logits on a CPU (256 MB)
            and 2**29 elsewhere, at most 8192.
        share_prompts: whether a prompt is read once for all its answers. Defaults to True; False is the plain way.
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
        shared = share_prompts and _follows_trees(unwrapped, questions, device)
        units = list(questions) if shared else [unit for question in questions for unit in question.apart()]
        batches = form_batches([(unit.n_tokens, 0) for unit in units], token_budget)
        costs = [len(batch) * max(units[position].n_tokens for position in batch) for batch in batches]

        def run(positions: list[int]) -> list[list[ItemScores]]:
            return _score_batch(unwrapped, [units[position] for position in positions], unigram, device)

        scored = iter(run_sharded(run, batches, costs, f"scoring {name}", progress))
    if shared:
        return list(scored)
    return [[next(scored)[0] for _ in question.answers] for question in questions]


@dataclass
class _Layout:
    """A batch of trees as tensors, ``(batch, tokens)`` unless said otherwise.

    `branch` is 0 in the prompt, ``j + 1`` in answer j, -1 in padding; `predicts` marks the positions whose logits are
    wanted; `detailed` those whose distribution is. `sources` and `targets` hold, answer after answer, which of the
    marked positions predicts a token, and the token; `lengths` the tokens of each answer.
    """

    input_ids: Int[Tensor, "batch tokens"]
    position_ids: Int[Tensor, "batch tokens"]
    branch: Int[Tensor, "batch tokens"]
    predicts: Bool[Tensor, "batch tokens"]
    detailed: Bool[Tensor, "batch tokens"]
    sources: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, units: Sequence[Branches]) -> "_Layout":
        shape = (len(units), max(unit.n_tokens for unit in units))
        layout = cls(
            torch.zeros(shape, dtype=torch.long),
            torch.zeros(shape, dtype=torch.long),
            torch.full(shape, -1),
            torch.zeros(shape, dtype=torch.bool),
            torch.zeros(shape, dtype=torch.bool),
        )
        marked = 0
        for row, unit in enumerate(units):
            start = len(unit.prompt)
            fed = [answer[:-1] for answer in unit.answers]
            ids = [*unit.prompt, *(token for answer in fed for token in answer)]
            positions = [*range(start), *(start + i for answer in fed for i in range(len(answer)))]
            branches = [0] * start + [j + 1 for j, answer in enumerate(fed) for _ in answer]
            layout.input_ids[row, : len(ids)] = torch.tensor(ids)
            layout.position_ids[row, : len(ids)] = torch.tensor(positions)
            layout.branch[row, : len(ids)] = torch.tensor(branches)
            # The last prompt token predicts the first token of every answer, each fed token the one behind it.
            layout.predicts[row, start - 1 : len(ids)] = True
            layout.detailed[row, start - 1 : start + len(fed[0])] = unit.detailed
            first = marked
            marked += 1
            for answer in unit.answers:
                layout.sources += [first, *range(marked, marked + len(answer) - 1)]
                layout.targets += answer
                layout.lengths.append(len(answer))
                marked += len(answer) - 1
        return layout

    def attention_mask(self, dtype: torch.dtype) -> Float[Tensor, "batch 1 tokens tokens"]:
        """Added to attention scores: 0 where a position may look (back, at the prompt or its own branch), else -max."""
        order = torch.arange(self.branch.shape[1])
        back = order[:, None] >= order[None, :]
        near = (self.branch[:, None, :] == 0) | (self.branch[:, :, None] == self.branch[:, None, :])
        mask = torch.zeros(near.shape, dtype=dtype).masked_fill_(~(near & back), torch.finfo(dtype).min)
        return mask[:, None]


def _score_batch(
    model: nn.Module, units: Sequence[Branches], unigram: Tensor | None, device: torch.device
) -> list[list[ItemScores]]:
    layout = _Layout.of(units)
    inputs = {"input_ids": layout.input_ids.to(device), "use_cache": False}
    # Without branches no mask is needed: what stands to the right of a token changes nothing in a causal model.
    if any(len(unit.answers) > 1 for unit in units):
        dtype = model.get_input_embeddings().weight.dtype
        inputs["position_ids"] = layout.position_ids.to(device)
        inputs["attention_mask"] = layout.attention_mask(dtype).to(device)
    with only_positions(model, layout.predicts.to(device)):
        logits = model(**inputs).logits
    sources, targets = torch.tensor(layout.sources, device=device), torch.tensor(layout.targets, device=device)
    detailed = layout.detailed[layout.predicts].to(device)
    lse, best, details = _distributions(logits, detailed, unigram)
    logprobs = logits[sources, targets].float() - lse[sources]
    hits = best[sources] == targets
    records = torch.cat([torch.stack([logprobs, hits.float()]), details[:, sources]]).cpu().numpy()
    per_answer = iter(np.split(records, np.cumsum(layout.lengths)[:-1], axis=1))
    return [
        [
            _item_scores(next(per_answer), unit.detailed and i == 0, unigram is not None)
            for i in range(len(unit.answers))
        ]
        for unit in units
    ]


def _item_scores(record: np.ndarray, detailed: bool, with_js: bool) -> ItemScores:
    logprobs, hits, mean, std, js = record
    # Copies: a view would keep the arrays of the whole batch alive.
    own = {"logprobs": logprobs.copy(), "hits": hits.astype(bool)}
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


def _js_bits(log_p: Float[Tensor, "n vocab"], q: Float[Tensor, " vocab"]) -> Float[Tensor, " n"]:
    """``JS(p, q) = (KL(p || m) + KL(q || m)) / 2``, ``m = (p + q) / 2``, in bits: 0 for equals, 1 for disjoint."""
    p = log_p.exp()
    log_m = ((p + q) / 2).log()
    p_part = torch.where(p > 0, p * (log_p - log_m), 0).sum(-1)
    q_part = torch.where(q > 0, q * (q.log() - log_m), 0).sum(-1)
    return (p_part + q_part) / (2 * np.log(2))


def _follows_trees(model: nn.Module, questions: Sequence[Branches], device: torch.device) -> bool:
    """Whether `model` scores the branches of a tree as it scores them apart, tried on the question with most tokens."""
    trees = [question for question in questions if len(question.answers) > 1]
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not trees or plain.config._attn_implementation not in ("sdpa", "eager"):
        return False
    if "position_ids" not in inspect.signature(plain.forward).parameters:
        return False
    # A mask given whole replaces a model's own window, which then must be wider than any path through a tree.
    window = getattr(plain.config.get_text_config(), "sliding_window", None)
    if window and window < max(len(tree.prompt) + max(map(len, tree.answers)) for tree in trees):
        return False
    tree = max(trees, key=lambda tree: tree.n_tokens)
    together = _score_batch(model, [tree], None, device)[0]
    apart = [scores[0] for scores in _score_batch(model, tree.apart(), None, device)]
    pairs = zip(together, apart, strict=True)
    gaps = np.concatenate([np.abs(one.logprobs - other.logprobs) for one, other in pairs])
    # Rounding gives 1e-5 in fp32 and a few hundredths in bf16; a mask that is not followed gives tenths and more.
    tolerance = 1e-3 if model.get_input_embeddings().weight.dtype == torch.float32 else 5e-2
    return bool(np.nanmean(gaps) < tolerance) if not np.isnan(gaps).all() else True
