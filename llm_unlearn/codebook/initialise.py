"""First weights of a bottleneck, from the activations that will go through it.

The encoder begins as a rotation about the mean, which all tokens share and no code need say, and the codes as the
centres of clusters of what it makes of the tokens (spherical k-means, begun from tokens that are far from each other,
so that rare words get codes, too), divided by S: the S nearest codes then sum up to the mean of S similar tokens. The
decoder is the ridge regression from the sums back to the activations, the best one for these codes. Random weights
would let nothing through at first.
"""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from llm_unlearn.codebook.model import CodebookModel
from llm_unlearn.codebook.search import top_codes
from llm_unlearn.codebook.seq2seq import kind_of
from llm_unlearn.data.tokenization import TokenizedItem
from llm_unlearn.evaluation.outputs.sharding import device_of, evaluating

# Relative to the mean variance of a coordinate.
_RIDGE = 1e-3
# Relative to the mean eigenvalue.
_FLOOR = 1e-2
# Of the codes, at most, that begin as one token each; the others divide what is frequent by its surroundings.
_TOKEN_SHARE = 0.8
# Relative to a code's length, so that tokens seen twice do not become one code twice.
_NOISE = 1e-2
# Of drawing seeds, and of moving centres.
_ROUNDS, _STEPS = 4, 3
_BATCH = 32


def initialise(
    codebook: CodebookModel,
    batches: Iterable[dict[str, Tensor]],
    max_tokens: int = 50_000,
    seed: int = 0,
    whiten: bool = False,
) -> float:
    """Set encoder, codes and decoder from data.

    Codes are the centres of clusters of directions. Where activations vary more with what stands around a token than
    with the token, so do clusters, and no code is one subject's. `whiten` has the encoder read ``C^(-1/2) norm(x)``, C
    the covariance of the normed activations of one and the same token, as in linear discriminant analysis: what
    surrounds a token weighs the same in all directions, and those in which tokens differ stand out. Up to four fifths
    of the clusters then begin as the means of the most frequent tokens. Ours.

    Args:
        codebook: the model, whose bottleneck is overwritten.
        batches: ``input_ids`` and ``attention_mask``, on the model's device. Read until `max_tokens` are seen.
        max_tokens: how many activations are kept; 50,000 as in our toy runs. They take ``4 d`` bytes each.
        seed: chooses the tokens that become codes.
        whiten: see above.

    Returns:
        The share of the activations' variance that is lost: 0 is perfect, 1 as good as their mean.

    Raises:
        ValueError: the batches hold no token.
    """
    x, ids = activations(codebook, batches, max_tokens)
    bottleneck, config = codebook.bottleneck, codebook.config
    bottleneck.reset_parameters()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        normed = bottleneck.normalise(x)
        centre = normed.mean(0)
        if whiten:
            bottleneck.enc.weight.copy_(bottleneck.enc.weight @ whitening(normed, ids))
        bottleneck.enc.bias.copy_(-bottleneck.enc.weight @ centre)
        z = bottleneck.encode(x)
        counted = z.norm(dim=-1) > 0
        first = _token_means(z[counted], ids[counted], int(_TOKEN_SHARE * config.num_codes)) if whiten else z[:0]
        codes = _centres(z[counted], config.num_codes, generator, first)
        if config.combine == "sum":
            codes = codes / config.top_s
        bottleneck.codebook.weight.copy_(codes)
        q = bottleneck._sum(bottleneck.search(z)[None], None)[0]
        weight, bias = _ridge(q, x)
        bottleneck.dec.weight.copy_(weight)
        bottleneck.dec.bias.copy_(bias)
        bottleneck.x_variance.copy_((x - x.mean(0)).square().mean())
        lost = (bottleneck.dec(q) - x).square().mean() / bottleneck.x_variance
    return float(lost)


def initialise_from(
    codebook: CodebookModel, items: Sequence[TokenizedItem], max_tokens: int, seed: int = 0, whiten: bool = False
) -> float:
    """`initialise` from tokenised texts, in an order drawn from `seed`; the same on every process."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(items), generator=generator).tolist()
    device, kind = device_of(codebook.base_model), kind_of(codebook.base_model)
    batches = (kind.collate([items[i] for i in order[at : at + _BATCH]]) for at in range(0, len(order), _BATCH))
    on_device = ({name: batch[name].to(device) for name in ("input_ids", "attention_mask")} for batch in batches)
    return initialise(codebook, on_device, max_tokens, seed, whiten)


def activations(
    codebook: CodebookModel, batches: Iterable[dict[str, Tensor]], max_tokens: int
) -> tuple[Float[Tensor, "n d"], Int[Tensor, " n"]]:
    """What comes to the bottleneck's place in the undisturbed model, and of which tokens: counted ones only, at most
    `max_tokens`.

    Raises:
        ValueError: the batches hold no token.
    """
    found: list[Tensor] = []
    ids: list[Tensor] = []
    with evaluating(codebook.base_model):
        for batch in batches:
            inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
            (x,) = codebook.site.captured(lambda inputs=inputs: codebook.base_model(**inputs))
            rows = x.float()[batch["attention_mask"].bool()]
            counted = rows.isfinite().all(-1)
            found.append(rows[counted])
            ids.append(batch["input_ids"][batch["attention_mask"].bool()][counted])
            if sum(map(len, found)) >= max_tokens:
                break
    if not sum(map(len, found)):
        raise ValueError("There are no tokens to initialise the codebook from: give some text.")
    return torch.cat(found)[:max_tokens], torch.cat(ids)[:max_tokens]


def whitening(x: Float[Tensor, "n d"], ids: Int[Tensor, " n"]) -> Float[Tensor, "d d"]:
    """``C^(-1/2)``, C the pooled covariance of the rows of `x` that share an id; the identity where no two do.

    C's small eigenvalues, which a few tokens cannot tell, are raised by a hundredth of their mean (ours).
    """
    tokens, place = ids.unique(return_inverse=True)
    x = x.double()
    means = torch.zeros(len(tokens), x.shape[1], dtype=x.dtype, device=x.device).index_add_(0, place, x)
    means /= torch.bincount(place)[:, None]
    within = x - means[place]
    values, vectors = torch.linalg.eigh(within.T @ within / max(len(x) - len(tokens), 1))
    if not values.sum() > 0:
        return torch.eye(len(values), device=x.device)
    scales = (values.clamp_min(0) + _FLOOR * values.mean()).rsqrt()
    return ((vectors * scales) @ vectors.T).float()


def _token_means(z: Tensor, ids: Tensor, most: int) -> Tensor:
    """The mean encoding of each token, of the `most` frequent ones; of equally frequent ones those of lower id."""
    tokens, place, counts = ids.unique(return_inverse=True, return_counts=True)
    means = torch.zeros(len(tokens), z.shape[1], device=z.device).index_add_(0, place, z) / counts[:, None]
    return means[counts.argsort(descending=True, stable=True)[:most]]


def _centres(z: Tensor, count: int, generator: torch.Generator, first: Tensor) -> Tensor:
    """Centres of `count` clusters of directions, each as long as its tokens are on average, and a little noise.

    Beside the `first` centres, seeds are drawn in rounds, a token the likelier the less it is like any seed so far
    (after k-means||, Bahmani et al. 2012). With fewer tokens than clusters, tokens are seeds several times.
    """
    directions = F.normalize(z, dim=-1)
    chance = torch.ones(len(z), dtype=torch.float64)
    if len(first):
        chance = (1 - _nearest(directions, F.normalize(first, dim=-1))[1]).clamp_min(0).double().cpu()
    seeds = torch.empty(0, dtype=torch.long)
    drawn_in_all = count - len(first)
    for round_ in range(1, _ROUNDS + 1):
        wanted = drawn_in_all * round_ // _ROUNDS - len(seeds)
        few = int((chance > 0).sum()) < wanted
        drawn = torch.multinomial(chance + (few * 1e-9), wanted, replacement=few, generator=generator)
        seeds = torch.cat([seeds, drawn])
        if round_ < _ROUNDS:
            chosen = F.normalize(torch.cat([first, z[seeds]]), dim=-1)
            chance = (1 - _nearest(directions, chosen)[1]).clamp_min(0).double().cpu()
    centres = torch.cat([first, z[seeds]])
    for _ in range(_STEPS):
        owner = _nearest(directions, F.normalize(centres, dim=-1))[0]
        sums = torch.zeros_like(centres).index_add_(0, owner, z)
        sizes = torch.bincount(owner, minlength=count)[:, None]
        centres = torch.where(sizes > 0, sums / sizes.clamp_min(1), centres)
    noise = torch.randn(centres.shape, generator=generator).to(centres.device)
    return centres + noise * (_NOISE * centres.norm(dim=-1, keepdim=True) / centres.shape[-1] ** 0.5)


def _nearest(directions: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest centre of each direction, and the cosine."""
    owner = top_codes(directions, centres, 1)[:, 0]
    return owner, (directions * centres[owner]).sum(-1)


def _ridge(q: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The decoder of least squared error, a little shrunk: in fp64, where the sums of a million terms
    keep their sense."""
    q64, x64 = q.double(), x.double()
    q_mean, x_mean = q64.mean(0), x64.mean(0)
    q64, x64 = q64 - q_mean, x64 - x_mean
    gram = q64.T @ q64
    gram.diagonal().add_(_RIDGE * gram.diagonal().mean() + 1e-12)
    weight = torch.linalg.solve(gram, q64.T @ x64).T
    return weight.float(), (x_mean - weight @ q_mean).float()
