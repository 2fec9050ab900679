"""The bottleneck by itself: what it computes, what it selects, what a deletion does, and where gradients go."""

import copy
import math
import random

import pytest
import torch
from codebooks import tiny_bottleneck

from llm_unlearn.codebook.bottleneck import CodebookBottleneck, Gate
from llm_unlearn.codebook.config import CodebookConfig
from llm_unlearn.codebook.search import top_codes


def by_hand(combine="sum"):
    """Two dimensions, three codes, two of them for a token; x goes to the codes as it is.

    For x = (4, 1) the cosines are 4/17**.5 = .970 of c_0, 1/17**.5 = .243 of c_1 and 5/34**.5 = .857 of c_2.
    """
    bottleneck = tiny_bottleneck(3, 2, d_model=2, norm="none", unit_z=False, combine=combine)
    with torch.no_grad():
        bottleneck.enc.weight.copy_(torch.eye(2))
        bottleneck.codebook.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]]))
        bottleneck.dec.weight.copy_(torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
        bottleneck.dec.bias.copy_(torch.tensor([10.0, 20.0]))
    return bottleneck


def activations(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def observe(bottleneck, x, *args):
    """One pass: what went out, and what was observed."""
    seen = []
    with bottleneck.observed(seen.append):
        y = bottleneck(x, *args)
    (observed,) = seen
    return y, observed


def cosines(bottleneck, x):
    """In fp64 and in plain loops: the cosine of each token's encoding with each code."""
    z = bottleneck.encode(x).double().flatten(0, -2).tolist()
    codes = bottleneck.codebook.weight.double().tolist()

    def cosine(a, b):
        lengths = math.sqrt(sum(v * v for v in a)) * math.sqrt(sum(v * v for v in b))
        return sum(v * w for v, w in zip(a, b, strict=True)) / lengths

    return [[cosine(token, code) for code in codes] for token in z]


# Two dimensions, by hand.


@pytest.mark.parametrize(
    ("combine", "deleted", "expected"),
    [
        ("sum", {}, [20, 23]),  # c_0 + c_2 = (4, 3); 4 + 2 * 3 + 10 and 3 + 20
        ("sum", {"refilled": [0]}, [23, 25]),  # c_2 + c_1 = (3, 5)
        ("sum", {"ablated": [0]}, [19, 23]),  # c_2 = (3, 3)
        ("sum", {"ablated": [0, 2]}, [10, 20]),  # nothing but the decoder's bias
        ("sum", {"refilled": [0], "ablated": [2]}, [14, 22]),  # c_1 = (0, 2)
        ("sum", {"refilled": [1], "ablated": [1]}, [20, 23]),  # c_1 was not among the two
        ("mean", {}, [15, 21.5]),  # (2, 1.5)
        ("mean", {"ablated": [0]}, [14.5, 21.5]),  # (3, 3) / 2: an ablated code is a summand of zero
    ],
    ids=str,
)
@torch.no_grad()
def test_codes_are_found_combined_and_decoded(combine, deleted, expected):
    bottleneck = by_hand(combine)
    bottleneck.set_deleted(**deleted)
    assert bottleneck(torch.tensor([[[4.0, 1.0]]])).tolist() == [[expected]]


@torch.no_grad()
def test_a_gate_opens_where_a_text_has_used_its_codes_often_enough():
    bottleneck = by_hand()
    # Uses of c_0 or c_1: one by each token, since c_2 is always the other one.
    x = torch.tensor([[[4.0, 1.0], [1.0, 4.0], [4.0, 1.0], [1.0, 4.0]], [[4.0, 1.0]] * 4])
    bottleneck.set_deleted(gates=[Gate([0, 1], [0, 1], 3), Gate([0], [0], 4)])
    # Of (1, 4): c_1 + c_2 = (3, 5) and, without c_1, (3, 3). Of (4, 1): (4, 3), without c_0 (3, 3).
    expected = [[[20, 23], [23, 25], [19, 23], [19, 23]], [[20, 23], [20, 23], [19, 23], [19, 23]]]
    assert bottleneck(x).tolist() == expected
    bottleneck.set_deleted(gates=[Gate([0], [0], 4)])
    expected = [[[20, 23], [23, 25], [20, 23], [23, 25]], [[20, 23], [20, 23], [20, 23], [19, 23]]]
    assert bottleneck(x).tolist() == expected


@torch.no_grad()
def test_a_gate_is_opened_by_its_triggers_and_ablates_its_codes():
    bottleneck = by_hand()
    x = torch.tensor([[[4.0, 1.0], [1.0, 4.0], [4.0, 1.0], [1.0, 4.0]], [[1.0, 4.0]] * 4])
    # c_1 of (1, 4) goes from where c_0 was used twice; the second text never uses it, and c_0 itself stays.
    bottleneck.set_deleted(gates=[Gate([0], [1], 2)])
    expected = [[[20, 23], [23, 25], [20, 23], [19, 23]], [[23, 25]] * 4]
    assert bottleneck(x).tolist() == expected
    # Two gates know nothing of each other's triggers.
    bottleneck.set_deleted(gates=[Gate([0], [0], 3), Gate([1], [1], 4)])
    assert bottleneck(x).tolist() == [[[20, 23], [23, 25]] * 2, [[23, 25], [23, 25], [23, 25], [19, 23]]]


@torch.no_grad()
def test_the_encoder_norms_and_keeps_what_is_positive():
    x = torch.tensor([3.0, 4.0])
    expected = {"rms": [3 / 12.5**0.5, 4 / 12.5**0.5], "layer": [0.0, 1.0], "none": [3.0, 4.0]}
    for norm, encoded in expected.items():
        bottleneck = tiny_bottleneck(3, 2, d_model=2, norm=norm, unit_z=False)
        bottleneck.enc.weight.copy_(torch.eye(2))
        torch.testing.assert_close(bottleneck.encode(x), torch.tensor(encoded), rtol=0, atol=1e-5)
        if norm != "none":
            torch.testing.assert_close(bottleneck.encode(1000 * x), torch.tensor(encoded), rtol=0, atol=1e-5)
    bottleneck.enc.bias.copy_(torch.tensor([-10.0, 1.0]))
    assert bottleneck.encode(x).tolist() == [0.0, 5.0]
    # What is left may be brought to root mean square 1; of (3, 4) that is 12.5**.5.
    bottleneck.config.unit_z = True
    torch.testing.assert_close(bottleneck.encode(x), torch.tensor([0.0, 2**0.5]), rtol=0, atol=1e-5)
    bottleneck.enc.bias.zero_()
    torch.testing.assert_close(bottleneck.encode(x), torch.tensor(expected["rms"]), rtol=0, atol=1e-5)


@torch.no_grad()
def test_exempt_tokens_pass_unchanged():
    bottleneck = tiny_bottleneck(12, 3)
    x = activations(2, 4, 8)
    exempt = torch.tensor([[True, False, False, False], [False, False, True, False]])
    y, observed = observe(bottleneck, x, exempt)
    assert torch.equal(y[exempt], x[exempt])
    assert torch.equal(y[~exempt], bottleneck(x)[~exempt])
    assert torch.equal(observed.y, bottleneck(x)), "what it would have said is observed all the same"


# What is selected.


@pytest.mark.parametrize(("num_codes", "top_s", "code_dim"), [(60, 5, None), (50, 1, 6), (64, 16, 20)])
@torch.no_grad()
def test_the_codes_of_largest_cosine_are_selected(num_codes, top_s, code_dim):
    bottleneck = tiny_bottleneck(num_codes, top_s, code_dim=code_dim)
    bottleneck.codebook.weight.mul_(torch.logspace(-2, 2, num_codes)[:, None])  # length must not count
    bottleneck.codebook.weight.sub_(0.1)  # and directions may have negative parts
    x = activations(3, 7, 8)
    found = bottleneck.search(bottleneck.encode(x)).flatten(0, 1).tolist()
    assert len(found) == 21
    for mine, row in zip(found, cosines(bottleneck, x), strict=True):
        best = sorted(row, reverse=True)[:top_s]
        # Compared by what they score, which allows for a tie; nearest first.
        assert [row[code] for code in mine] == pytest.approx(best, abs=1e-6)
        assert len(set(mine)) == top_s
    assert len({tuple(mine) for mine in found}) > 10, "the tokens differ in their codes"


@torch.no_grad()
def test_the_length_of_an_encoding_does_not_change_its_codes():
    bottleneck = tiny_bottleneck(60, 5)
    z = bottleneck.encode(activations(40, 8))
    for scale in (2.0**-20, 0.25, 2.0**20):
        assert torch.equal(bottleneck.search(z * scale), bottleneck.search(z))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("num_codes", "top_s"), [(10, 1), (40, 4), (12, 12)])
@torch.no_grad()
def test_a_refilled_code_is_never_selected(num_codes, top_s, dtype):
    bottleneck = tiny_bottleneck(num_codes, top_s)
    x = activations(5, 20, 8).to(dtype)
    whole = cosines(bottleneck, x)
    draw = random.Random(0)
    for n_deleted in {0, min(3, num_codes - top_s), num_codes - top_s}:
        deleted = set(draw.sample(range(num_codes), n_deleted))
        bottleneck.set_deleted(refilled=deleted)
        y, observed = observe(bottleneck, x)
        found = observed.codes.flatten(0, 1).tolist()
        assert not deleted & {code for mine in found for code in mine}
        assert y.dtype == dtype and y.isfinite().all()
        # What takes their place is the next best of those that are left.
        for mine, row in zip(found, whole, strict=True):
            best = sorted((cosine for code, cosine in enumerate(row) if code not in deleted), reverse=True)[:top_s]
            assert [row[code] for code in mine] == pytest.approx(best, abs=1e-6)
        ignoring = bottleneck.search(bottleneck.encode(x), ignore_deleted=True)
        bottleneck.set_deleted()
        assert torch.equal(ignoring, bottleneck.search(bottleneck.encode(x)))


@torch.no_grad()
def test_deletions_that_leave_too_little_are_refused_and_change_nothing():
    bottleneck = tiny_bottleneck(10, 4)
    bottleneck.set_deleted(refilled=[1], ablated=[2], gates=[Gate([3], [3], 2)])
    before = {name: tensor.clone() for name, tensor in bottleneck.state_dict().items()}
    with pytest.raises(ValueError, match=r"Deleting 7 of 10 codes would leave 3, and every token needs 4.*'ablate'"):
        bottleneck.set_deleted(refilled=range(7))
    with pytest.raises(ValueError, match=r"Code 10 was to be deleted, but the codes are numbered 0 to 9"):
        bottleneck.set_deleted(gates=[Gate([4], [4, 10], 2)])
    with pytest.raises(ValueError, match="Code 10 was to be deleted"):
        bottleneck.set_deleted(gates=[Gate([4, 10], [4], 2)])
    with pytest.raises(ValueError, match=r"Code -1 was to be deleted"):
        bottleneck.set_deleted(ablated=[-1])
    after = bottleneck.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    bottleneck.set_deleted(refilled=range(6))
    bottleneck.set_deleted(ablated=range(10))  # all may be silent
    y = bottleneck(activations(1, 3, 8))
    assert torch.equal(y, bottleneck.dec.bias.expand(1, 3, 8))


@torch.no_grad()
def test_an_ablated_code_is_found_and_says_nothing():
    bottleneck = tiny_bottleneck(40, 4)
    x = activations(3, 6, 8)
    _, before = observe(bottleneck, x)
    dead = {0, 7, *before.codes[0, 0].tolist()}
    bottleneck.set_deleted(ablated=dead)
    _, after = observe(bottleneck, x)
    assert torch.equal(after.codes, before.codes)
    weight = bottleneck.codebook.weight
    for mine, q in zip(after.codes.flatten(0, 1).tolist(), after.q.flatten(0, 1), strict=True):
        expected = sum((weight[code] for code in mine if code not in dead), torch.zeros(8))
        torch.testing.assert_close(q, expected, rtol=1e-6, atol=1e-6)
    assert not after.q[0, 0].any()


@torch.no_grad()
def test_without_deletions_modes_and_counts_leave_no_trace():
    bottleneck = tiny_bottleneck(40, 4)
    x = activations(3, 6, 8)
    plain = bottleneck(x)
    for deleted in ({"refilled": [1, 2]}, {"ablated": [1, 2]}, {"gates": [Gate([1, 2], [1, 2], 1)]}):
        bottleneck.set_deleted(**deleted)
        bottleneck.set_deleted()
        assert torch.equal(bottleneck(x), plain)
    # A gate that no text reaches, or that no token uses, changes no bit either.
    bottleneck.set_deleted(gates=[Gate(range(40), range(40), 1e6)])
    torch.testing.assert_close(bottleneck(x), plain, rtol=1e-6, atol=1e-6)


# In pieces.


@pytest.mark.parametrize("deleted", [False, True], ids=["all", "deleted"])
@pytest.mark.parametrize("k", [1, 4, 30])
@torch.no_grad()
def test_the_search_in_pieces_finds_what_one_pass_finds(k, deleted):
    z = activations(50, 16).relu()
    directions = torch.nn.functional.normalize(activations(100, 16, seed=1), dim=-1)
    bias = torch.zeros(100).masked_fill_(torch.arange(100) % 3 == 0, -math.inf) if deleted else None
    whole = top_codes(z, directions, k, bias)
    scores = z.double() @ directions.double().T + (0 if bias is None else bias.double())
    torch.testing.assert_close(scores.gather(1, whole), scores.topk(k).values, rtol=0, atol=1e-6)
    for tokens_at_once, codes_at_once in [(7, 100), (50, 7), (25, 1), (13, 33), (100, 99)]:
        pieces = top_codes(z, directions, k, bias, tokens_at_once=tokens_at_once, codes_at_once=codes_at_once)
        assert torch.equal(pieces, whole)
    assert top_codes(z[:0], directions, k, bias).shape == (0, k)


# Gradients.


def graph(bottleneck, x):
    """One pass with the tensors between encoder and decoder, whose gradients are kept."""
    inputs = []
    handle = bottleneck.dec.register_forward_pre_hook(lambda _module, given: inputs.append(given[0]))
    y, observed = observe(bottleneck, x)
    handle.remove()
    for tensor in (inputs[0], observed.z):
        tensor.retain_grad()
    return y, observed, inputs[0]


@pytest.mark.parametrize("combine", ["sum", "mean"])
def test_gradients_pass_the_choice_straight_through(combine):
    bottleneck = tiny_bottleneck(40, 4, combine=combine)
    x = activations(3, 6, 8).requires_grad_()
    y, observed, u = graph(bottleneck, x)
    assert torch.equal(u, observed.q), "no trace of z in what the decoder reads"
    y.pow(3).sum().backward()
    assert torch.equal(observed.z.grad, u.grad) and u.grad.abs().min() > 0

    expected = torch.zeros(40, 8, dtype=torch.float64)
    for mine, grad in zip(observed.codes.flatten(0, 1).tolist(), u.grad.flatten(0, 1).double(), strict=True):
        for code in mine:
            expected[code] += grad / (4 if combine == "mean" else 1)
    codes = bottleneck.codebook.weight
    torch.testing.assert_close(codes.grad.double(), expected, rtol=1e-5, atol=1e-5)
    used = {code for mine in observed.codes.flatten(0, 1).tolist() for code in mine}
    assert set(codes.grad.any(-1).nonzero()[:, 0].tolist()) == used < set(range(40))
    for parameter in (*bottleneck.enc.parameters(), *bottleneck.dec.parameters(), x):
        assert parameter.grad.abs().max() > 0


def test_the_encoder_gets_the_gradient_of_the_identity():
    """By hand: y = W_d u + b_d and z = x, so that the gradient of y_0 in x is the first row of W_d where z > 0."""
    bottleneck = by_hand()
    x = torch.tensor([[[4.0, 1.0], [4.0, -7.0]]], requires_grad=True)
    bottleneck(x)[..., 0].sum().backward()
    assert x.grad.tolist() == [[[1.0, 2.0], [1.0, 0.0]]]
    # Both tokens have c_0 and c_2.
    assert bottleneck.codebook.weight.grad.tolist() == [[2.0, 4.0], [0.0, 0.0], [2.0, 4.0]]


def test_ablated_codes_get_no_gradient():
    bottleneck = tiny_bottleneck(40, 4)
    x = activations(3, 6, 8)
    dead = sorted({code for mine in bottleneck.search(bottleneck.encode(x)).tolist()[0] for code in mine})
    bottleneck.set_deleted(ablated=dead)
    bottleneck(x).sum().backward()
    assert not bottleneck.codebook.weight.grad[dead].any() and bottleneck.codebook.weight.grad.any()


def test_a_token_without_encoding_and_a_code_without_length_stay_finite():
    bottleneck = tiny_bottleneck(10, 3)
    with torch.no_grad():
        bottleneck.enc.bias.fill_(-1e3)
        bottleneck.codebook.weight[4] = 0
    x = activations(1, 5, 8)
    x[0, 2] = 0
    y = bottleneck(x.requires_grad_())
    y.sum().backward()
    assert y.isfinite().all() and x.grad.isfinite().all() and bottleneck.codebook.weight.grad.isfinite().all()


# Precision, copies, files.


@torch.no_grad()
def test_all_is_computed_in_fp32_whatever_the_model_computes_in():
    bottleneck = tiny_bottleneck(60, 5)
    x = activations(4, 9, 8).bfloat16()
    y, observed = observe(bottleneck, x)
    exact, in_full = observe(bottleneck, x.float())
    assert y.dtype == torch.bfloat16 and torch.equal(y, exact.bfloat16())
    assert torch.equal(observed.codes, in_full.codes)
    # As a Trainer with `bf16` runs it: the cosines of a thousand codes would be full of ties.
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under, observed = observe(bottleneck, x)
    assert torch.equal(under, y)
    assert {tensor.dtype for tensor in (observed.x, observed.z, observed.q, observed.y)} == {torch.float32}


def test_gradients_under_autocast_are_those_without():
    x = activations(2, 5, 8)
    grads = []
    for enabled in (False, True):
        bottleneck = tiny_bottleneck(60, 5)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss = bottleneck(x).pow(2).sum()
        loss.backward()
        grads.append([parameter.grad for parameter in bottleneck.parameters()])
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_changed_codes_are_searched_by_their_new_directions():
    bottleneck = tiny_bottleneck(40, 4).eval()
    z = bottleneck.encode(activations(30, 8))
    before = bottleneck.search(z)
    assert bottleneck.directions() is bottleneck.directions(), "not made anew while generating"
    bottleneck.codebook.weight.copy_(bottleneck.codebook.weight.flip(0))
    assert torch.equal(bottleneck.search(z), 39 - before)
    bottleneck.load_state_dict(tiny_bottleneck(40, 4).state_dict())
    assert torch.equal(bottleneck.search(z), before)
    # Some optimisers write past autograd, which then notices nothing.
    bottleneck.train().codebook.weight.data.copy_(bottleneck.codebook.weight.flip(0))
    assert torch.equal(bottleneck.search(z), 39 - before)
    assert torch.equal(bottleneck.eval().search(z), 39 - before)


@torch.no_grad()
def test_copies_and_state_dicts_take_deletions_along():
    bottleneck = tiny_bottleneck(40, 4).eval()
    x = activations(2, 12, 8)
    plain = bottleneck(x)
    common = bottleneck.search(bottleneck.encode(x)).flatten().bincount(minlength=40).argsort(descending=True).tolist()
    bottleneck.set_deleted(
        [common[0]], [common[1]], [Gate(common[2:5], common[3:9], 4), Gate(common[3:8], common[3:8], 2)]
    )
    deleted = bottleneck(x)
    assert not torch.equal(deleted, plain)
    other = tiny_bottleneck(40, 4, seed=1)
    other.set_deleted(gates=[Gate([1], [1], 1)])
    other.load_state_dict(bottleneck.state_dict())
    duplicate = copy.deepcopy(bottleneck)
    assert torch.equal(other(x), deleted) and torch.equal(duplicate(x), deleted)
    duplicate.set_deleted()
    assert torch.equal(duplicate(x), plain) and torch.equal(bottleneck(x), deleted)
    other.load_state_dict(tiny_bottleneck(40, 4).state_dict())
    assert torch.equal(other(x), plain)


@torch.no_grad()
def test_compiled_it_computes_the_same():
    bottleneck = tiny_bottleneck(40, 4).eval()
    x = activations(2, 12, 8)
    bottleneck.set_deleted([3, 4], [1, 5], [Gate(range(9), range(4, 20), 3)])
    compiled = torch.compile(bottleneck, backend="eager")
    for _ in range(2):
        torch.testing.assert_close(compiled(x), bottleneck(x), rtol=1e-6, atol=1e-6)


def test_first_weights_come_from_the_seed_alone():
    state = torch.random.get_rng_state()
    first, again, other = (tiny_bottleneck(40, 4, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, tensor in first.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    assert not torch.equal(other.codebook.weight, first.codebook.weight)
    assert {parameter.dtype for parameter in first.parameters()} == {torch.float32}


def test_it_is_watched_by_one_at_a_time():
    bottleneck = tiny_bottleneck(10, 2)
    seen = []
    with bottleneck.observed(seen.append):
        bottleneck(activations(1, 2, 8))
        with pytest.raises(RuntimeError, match="observed already"), bottleneck.observed(seen.append):
            pass
    bottleneck(activations(1, 2, 8))
    assert len(seen) == 1


# Vectors that are gone for good.


@torch.no_grad()
def test_dropped_rows_leave_the_others_as_they_were():
    bottleneck = tiny_bottleneck(40, 4)
    x = activations(3, 8, 8)
    gone = [0, 5, 17, 39]
    kept = [code for code in range(40) if code not in gone]
    ablated = [code for code in bottleneck.search(bottleneck.encode(x))[0, 0].tolist() if code not in gone]
    bottleneck.set_deleted(refilled=gone, ablated=ablated, gates=[Gate([1, 2, 3, 4], [3, 4, 6, 7, 8], 2)])
    before, observed = observe(bottleneck, x)
    bottleneck.drop_rows(kept)
    bottleneck.config.num_codes = len(kept)
    gate = Gate([kept.index(c) for c in (1, 2, 3, 4)], [kept.index(c) for c in (3, 4, 6, 7, 8)], 2)
    bottleneck.set_deleted(ablated=[kept.index(c) for c in ablated], gates=[gate])
    after, left = observe(bottleneck, x)
    assert bottleneck.codebook.weight.shape == (36, 8)
    renumbered = [[[kept[code] for code in mine] for mine in text] for text in left.codes.tolist()]
    assert renumbered == observed.codes.tolist()
    torch.testing.assert_close(after, before, rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_a_forgotten_vector_keeps_its_direction_and_says_nothing():
    bottleneck = tiny_bottleneck(40, 4)
    x = activations(3, 8, 8)
    gone = [*bottleneck.search(bottleneck.encode(x))[0, 0].tolist(), 11]
    bottleneck.set_deleted(ablated=gone)
    before, observed = observe(bottleneck, x)
    bottleneck.forget_vectors(gone)
    bottleneck.set_deleted()
    after, found = observe(bottleneck, x)
    assert torch.equal(found.codes, observed.codes)
    torch.testing.assert_close(after, before, rtol=1e-6, atol=1e-6)
    lengths = bottleneck.codebook.weight[gone].norm(dim=-1)
    torch.testing.assert_close(lengths, torch.ones(len(gone)), rtol=0, atol=1e-6)
    assert bottleneck.purged.nonzero()[:, 0].tolist() == sorted(gone)


# The config.


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"site": "blok"}, "Did you mean 'block'"),
        ({"combine": "add"}, "combine"),
        ({"norm": "batch"}, "norm"),
        ({"num_codes": 0}, "`num_codes` is 0; it must be at least 1"),
        ({"top_s": 0}, "`top_s` is 0"),
        ({"code_dim": 0}, "`code_dim` is 0"),
        ({"num_codes": 7, "top_s": 8}, "`top_s` is 8, but there are only 7 codes: lower `top_s` or raise `num_codes`"),
    ],
    ids=str,
)
def test_a_config_out_of_range_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        CodebookConfig(**options)


def test_a_config_comes_back_from_its_file(tmp_path):
    config = CodebookConfig(layer=3, site="post_attn", num_codes=99, top_s=4, base={"source": "x"}, d_model=16)
    config.save(tmp_path)
    assert CodebookConfig.load(tmp_path) == config
    file = tmp_path / "codebook_config.json"
    file.write_text(file.read_text().replace("codebook/1", "codebook/2"))
    with pytest.raises(ValueError, match="install the version that wrote it"):
        CodebookConfig.load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"has no codebook_config.json: give the `codebook` folder"):
        CodebookConfig.load(tmp_path / "elsewhere")


def test_nothing_of_it_looks_like_a_linear_layer_to_what_adapts_or_quantises_them():
    bottleneck = CodebookBottleneck(CodebookConfig(layer=0, d_model=8, num_codes=10, top_s=2))
    assert not [module for module in bottleneck.modules() if isinstance(module, torch.nn.Linear)]
