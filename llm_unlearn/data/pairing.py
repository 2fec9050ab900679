"""Which forget item meets which retain item, in which order: a pure function of (seed, epoch, position).

An epoch visits every forget item once, each with one retain item. The plan is made for the whole run's *global* batch
(rows per optimiser step over all processes and accumulation), so 1, 2 or 8 processes see the same pairs in the same
steps. Where the global batch does not divide the forget set, the last step is filled up with rows of weight zero.

Each half of a row has a weight. A step's loss is the weighted mean ``sum_i w_i l_i / sum_i w_i`` over its real rows, so
an item of weight zero leaves it as if it were not in the data. The weights in the plan are already divided by their
mean over the global batch: what a process computes is a plain mean of weighted rows, without asking the others.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch.utils.data import Dataset, Sampler

from llm_unlearn.data.tokenization import TokenizedItem

# Streams of the same seed that must not repeat each other.
_ORDER, _GROUPS, _RETAIN, _ALTERNATE = range(4)


@dataclass(frozen=True, slots=True)
class Pair:
    """One row of a batch: positions in the forget, retain and alternate sets, and the weights of its halves.

    `forget_weight` is that of the forget half, and of the alternate half where there is one.
    """

    forget: int
    retain: int | None
    alternate: int | None
    forget_weight: float
    retain_weight: float


@dataclass
class ItemWeights:
    """How much each item counts, by its position in the forget set; it may change between epochs.

    Attributes:
        forget: weight of the item in the forget term, ``>= 0``.
        retain: weight in the retain term of the retain item that stands beside it, ``>= 0``.
    """

    forget: list[float]
    retain: list[float]

    @classmethod
    def equal(cls, count: int) -> "ItemWeights":
        """All items count alike."""
        return cls([1.0] * count, [1.0] * count)

    def times(self, other: "ItemWeights | None") -> "ItemWeights":
        """The products; the same weights where there are no others."""
        if other is None:
            return self
        pairs = ((self.forget, other.forget), (self.retain, other.retain))
        return ItemWeights(*([a * b for a, b in zip(own, others, strict=True)] for own, others in pairs))


def _generator(seed: int, epoch: int, stream: int) -> torch.Generator:
    # Large odd factors keep (seed, epoch, stream) apart; the generator mixes the bits.
    return torch.Generator().manual_seed((seed * 1_000_003 + epoch * 7_919 + stream) % 2**63)


def _draw(count: int, pool: int, seed: int, epoch: int, stream: int) -> list[int]:
    """`count` draws from ``range(pool)`` as whole permutations in a row, so that all are used before one repeats."""
    generator = _generator(seed, epoch, stream)
    draws: list[int] = []
    while len(draws) < count:
        draws += torch.randperm(pool, generator=generator).tolist()
    return draws[:count]


def plan_epoch(
    n_forget: int,
    n_retain: int,
    n_alternate: int,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    lengths: Sequence[int] | None = None,
    retain_lengths: Sequence[int] = (),
    partners: Sequence[Sequence[int]] = (),
    weights: ItemWeights | None = None,
) -> list[Pair]:
    """The rows of one epoch, in order; their number is a multiple of `batch_size`.

    Args:
        n_forget: number of forget items, at least 1.
        n_retain: number of retain items; 0 for a run without a retain set.
        n_alternate: number of alternate answers to draw from; 0 for a run without.
        batch_size: global batch: rows per optimiser step over all processes and accumulation steps.
        seed: seed of the run.
        epoch: epoch number, from 0.
        lengths: tokens of each forget item; when given, steps are made of pairs of similar length (drawn from windows
            of eight steps, so that the order stays random on the large scale).
        retain_lengths: tokens of each retain item, which then count as part of a pair's length.
        partners: for each forget item the retain items it meets, one per epoch in turn; empty where they are drawn.
        weights: weights of the items; None where all count alike.

    Each forget item occurs once, besides what fills up the last step. Retain and alternate items are drawn without
    replacement until all were used; which one an item meets depends on (seed, epoch, item) alone, not on batch size or
    order.
    """
    order = torch.randperm(n_forget, generator=_generator(seed, epoch, _ORDER)).tolist()
    if partners and n_retain:
        retain = [own[epoch % len(own)] for own in partners]
    else:
        retain = _draw(n_forget, n_retain, seed, epoch, _RETAIN) if n_retain else [None] * n_forget
    alternate = _draw(n_forget, n_alternate, seed, epoch, _ALTERNATE) if n_alternate else [None] * n_forget
    if lengths is not None:
        partners = [retain_lengths[j] for j in retain] if n_retain and retain_lengths else [0] * n_forget
        totals = [own + partner for own, partner in zip(lengths, partners, strict=True)]
        order = _group_by_length(order, totals, batch_size, _generator(seed, epoch, _GROUPS))

    weights = weights or ItemWeights.equal(n_forget)
    pairs = []
    for start in range(0, n_forget, batch_size):
        real = order[start : start + batch_size]
        of_forget, of_retain = (
            _divided_by_mean([w[i] for i in real], batch_size) for w in (weights.forget, weights.retain)
        )
        pairs += [Pair(i, retain[i], alternate[i], *w) for i, *w in zip(real, of_forget, of_retain, strict=True)]
        pairs += [Pair(i, retain[i], alternate[i], 0.0, 0.0) for i in (order * batch_size)[: batch_size - len(real)]]
    return pairs


def _divided_by_mean(weights: list[float], batch_size: int) -> list[float]:
    """Weights whose sum is the batch size; all zero where they are."""
    total = sum(weights)
    return [weight * batch_size / total for weight in weights] if total else weights


def _group_by_length(
    order: list[int], lengths: Sequence[int], batch_size: int, generator: torch.Generator
) -> list[int]:
    window = 8 * batch_size
    steps: list[list[int]] = []
    for start in range(0, len(order), window):
        mixed = sorted(order[start : start + window], key=lambda i: lengths[i], reverse=True)
        steps += [mixed[at : at + batch_size] for at in range(0, len(mixed), batch_size)]
    # Only the last step may be short: the plan fills up at the end.
    full, short = [s for s in steps if len(s) == batch_size], [s for s in steps if len(s) < batch_size]
    shuffled = [full[i] for i in torch.randperm(len(full), generator=generator).tolist()]
    return [i for step in [*shuffled, *short] for i in step]


class ForgetRetainDataset(Dataset):
    """Tokenised forget, retain and alternate items, addressed by `Pair`.

    Args:
        forget: items to forget.
        retain: items to keep; empty for a run without a retain set.
        alternate: for each forget item, the candidate replacement answers, tokenised with the same prompt
            (refusals, rewritten answers); empty for a run without.
        forget_end_token: whether the forget half scores the end token. Defaults to True;
            False is the form of the papers that unlearn the answer's words only.
        partners: for each forget item the positions in `retain` of the items it meets, at least one, one per epoch in
            turn; empty where they are drawn at random.

    Raises:
        ValueError: no forget items, alternates or partners of another number than the forget set, a forget item
            without partners, or a partner that is no position in `retain`.
    """

    def __init__(
        self,
        forget: Sequence[TokenizedItem],
        retain: Sequence[TokenizedItem] = (),
        alternate: Sequence[Sequence[TokenizedItem]] = (),
        forget_end_token: bool = True,
        partners: Sequence[Sequence[int]] = (),
    ):
        if not forget:
            raise ValueError("The forget set is empty: name a split or rows with at least one item (`--forget_split`).")
        if alternate and len(alternate) != len(forget):
            raise ValueError(f"{len(alternate)} lists of alternates were given for {len(forget)} forget items.")
        if partners and len(partners) != len(forget):
            raise ValueError(f"{len(partners)} lists of retain partners were given for {len(forget)} forget items.")
        for row, own in enumerate(partners):
            if not own:
                raise ValueError(f"Forget item {row} has no retain partner: give it at least one position in `retain`.")
            beyond = [position for position in own if not 0 <= position < len(retain)]
            if beyond:
                raise ValueError(
                    f"Forget item {row} has the retain partner {beyond[0]}, and there are {len(retain)} retain items: "
                    "give positions in `retain`, counted from 0."
                )
        self.forget = [item if forget_end_token else _without_end(item) for item in forget]
        self.retain = list(retain)
        self.alternate = [list(candidates) for candidates in alternate]
        self.partners = [list(own) for own in partners]

    def __len__(self) -> int:
        return len(self.forget)

    def __getitem__(self, pair: Pair) -> dict:
        row = {"forget": (self.forget[pair.forget], pair.forget_weight)}
        if pair.retain is not None:
            row["retain"] = (self.retain[pair.retain], pair.retain_weight)
        if pair.alternate is not None:
            row["alternate"] = (self.alternate[pair.forget][pair.alternate], pair.forget_weight)
        return row

    @property
    def n_alternates(self) -> int:
        """Candidates per forget item; 0 without alternates."""
        return len(self.alternate[0]) if self.alternate else 0

    @property
    def lengths(self) -> list[int]:
        """Tokens of each forget item."""
        return [len(item.input_ids) for item in self.forget]


def _without_end(item: TokenizedItem) -> TokenizedItem:
    return replace(item, input_ids=item.input_ids[:-1], has_end=False) if item.has_end else item


class PairSampler(Sampler[Pair]):
    """Yields the plan of one epoch after another.

    Args:
        dataset: the data set whose pairs are planned.
        batch_size: global batch, see `plan_epoch`.
        seed: seed of the run.
        group_by_length: make steps of similar length.

    Attributes:
        weights: weights of the items, read when an epoch begins; refinement sets them.
        frequency: further weights, which multiply with them (`llm_unlearn.frequency`); None without.
    """

    def __init__(self, dataset: ForgetRetainDataset, batch_size: int, seed: int, group_by_length: bool = False):
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.group_by_length = group_by_length
        self.weights = ItemWeights.equal(len(dataset))
        self.frequency: ItemWeights | None = None
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate at the start of an epoch, also when a run resumes."""
        self.epoch = epoch

    def plan(self, epoch: int) -> list[Pair]:
        """The rows of `epoch`."""
        return plan_epoch(
            len(self.dataset.forget),
            len(self.dataset.retain),
            self.dataset.n_alternates,
            batch_size=self.batch_size,
            seed=self.seed,
            epoch=epoch,
            lengths=self.dataset.lengths if self.group_by_length else None,
            retain_lengths=[len(item.input_ids) for item in self.dataset.retain],
            partners=self.dataset.partners,
            weights=self.weights.times(self.frequency),
        )

    def __iter__(self) -> Iterator[Pair]:
        return iter(self.plan(self.epoch))

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch_size) * self.batch_size
