"""Token-level quantities against numbers worked out by hand."""

import math
from itertools import pairwise

import pytest
import torch
from beartype import beartype
from jaxtyping import TypeCheckError, jaxtyped

from llm_unlearn import functional
from llm_unlearn.functional import (
    IGNORE_INDEX,
    answer_mask,
    answer_rows,
    answer_targets,
    bucket_logits,
    row_mean,
    row_sum,
    token_cross_entropy,
    token_kl,
    token_logps,
    token_moments,
)

_ = IGNORE_INDEX
LABELS = torch.tensor(
    [
        [_, _, 7, 8, 9],
        [_, _, _, _, _],
        [_, 5, _, 6, _],
        [3, 4, _, _, _],
    ]
)
ROWS = torch.tensor([0, 0, 0, 2, 2, 3])

# p = (1/2, 1/4, 1/4) and q = (1/4, 1/4, 1/2); logits may be shifted by any constant.
P, Q = torch.tensor([[0.5, 0.25, 0.25]]).log() + 3.0, torch.tensor([[0.25, 0.25, 0.5]]).log() - 1.0


def test_answer_positions_stand_one_before_their_labels():
    assert answer_mask(LABELS).int().tolist() == [
        [0, 1, 1, 1, 0],
        [0, 0, 0, 0, 0],
        [1, 0, 1, 0, 0],
        [1, 0, 0, 0, 0],
    ]


def test_targets_and_rows_follow_the_order_of_the_positions():
    # The first token of a sequence (3, in the last row) is predicted by nothing.
    assert answer_targets(LABELS).tolist() == [7, 8, 9, 5, 6, 4]
    assert answer_rows(LABELS).tolist() == ROWS.tolist()
    assert answer_mask(LABELS).sum() == len(ROWS)


def test_shift_by_one():
    """Logits that announce the next token score every answer token with probability 1, and others with 0."""
    ids = torch.tensor([[4, 1, 3, 2], [2, 2, 0, 1]])
    labels = ids.clone()
    labels[:, :2] = _
    announcing = torch.zeros(2, 4, 5)
    announcing[:, :-1] = torch.nn.functional.one_hot(ids[:, 1:], 5) * 100.0
    mask = answer_mask(labels)
    assert token_logps(announcing[mask], answer_targets(labels)).tolist() == pytest.approx([0.0] * 4)
    unshifted = torch.nn.functional.one_hot(ids, 5) * 100.0
    assert (token_logps(unshifted[mask], answer_targets(labels)) < -50).tolist() == [True, True, True, True]


def test_token_logps():
    logits = torch.cat([P, P, Q])
    logps = token_logps(logits, torch.tensor([0, 1, 2]))
    assert logps.tolist() == pytest.approx([math.log(0.5), math.log(0.25), math.log(0.5)])


def test_low_precision_logits_are_scored_in_fp32():
    logits = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0)).bfloat16()
    targets = torch.tensor([0, 1, 2, 3])
    exact = logits.double().log_softmax(-1)[torch.arange(4), targets]
    logps = token_logps(logits, targets)
    assert logps.dtype == torch.float32
    torch.testing.assert_close(logps, exact.float(), rtol=1e-6, atol=1e-6)
    assert token_kl(logits, logits.flip(0)).dtype == torch.float32
    assert token_moments(logits)[0].dtype == torch.float32


def test_token_kl():
    # KL(p || q) = 1/2 ln 2 + 0 + 1/4 ln(1/2) = 1/4 ln 2, and the same the other way round by symmetry.
    assert token_kl(P, Q).tolist() == pytest.approx([math.log(2) / 4])
    assert token_kl(P, P).tolist() == pytest.approx([0.0], abs=1e-7)
    uniform = torch.zeros(1, 3)
    # KL(u || p) = ln(1/3) - mean ln p, KL(p || u) = ln 3 - H(p).
    assert token_kl(uniform, P).item() == pytest.approx(math.log(1 / 3) + math.log(32) / 3)
    assert token_kl(P, uniform).item() == pytest.approx(math.log(3) - 1.5 * math.log(2))


def test_gradient_of_token_kl_is_the_difference_of_the_distributions():
    logits = Q.clone().requires_grad_()
    token_kl(P, logits).sum().backward()
    assert logits.grad[0].tolist() == pytest.approx([0.25 - 0.5, 0.0, 0.5 - 0.25], abs=1e-6)


def test_buckets_are_some_tokens_and_all_others_together():
    # p = (1/2, 1/4, 1/8, 1/8), in any order and shifted by any constant, against u, uniform.
    p, u = torch.tensor([[0.125, 0.5, 0.125, 0.25]]).log() - 7.0, torch.zeros(1, 4)
    top, two, all_four = (torch.tensor([ids]) for ids in ([1], [1, 3], [3, 0, 1, 2]))
    assert bucket_logits(p, top).softmax(-1)[0].tolist() == pytest.approx([1 / 2, 1 / 2])
    assert bucket_logits(p, two).softmax(-1)[0].tolist() == pytest.approx([1 / 2, 1 / 4, 1 / 4])
    assert bucket_logits(p, all_four).softmax(-1)[0].tolist() == pytest.approx([1 / 4, 1 / 8, 1 / 2, 1 / 8])
    assert bucket_logits(p.bfloat16(), two).dtype == torch.float32

    def kl(ids):
        return token_kl(bucket_logits(p, ids), bucket_logits(u, ids)).item()

    # 1/2 ln 2 + 1/2 ln((1/2) / (3/4)); with two tokens 1/2 ln 2 + 1/4 ln 1 + 1/4 ln(1/2), the ratio of both others.
    assert kl(top) == pytest.approx(math.log(2) / 2 + math.log(2 / 3) / 2, rel=1e-5)
    assert kl(two) == pytest.approx(math.log(2) / 4, rel=1e-5)
    assert [kl(all_four), token_kl(p, u).item()] == pytest.approx([math.log(2) / 4] * 2, rel=1e-5)
    assert token_cross_entropy(bucket_logits(p, top), bucket_logits(u, top)).item() == pytest.approx(
        math.log(4) / 2 + math.log(4 / 3) / 2
    )


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_the_kl_over_buckets_grows_with_their_number_up_to_the_kl_over_the_vocabulary(reverse):
    generator = torch.Generator().manual_seed(0)
    reference, logits = (3 * torch.randn(50, 40, generator=generator) for _ in range(2))

    def kl(pair):
        return token_kl(*reversed(pair)) if reverse else token_kl(*pair)

    most_probable = reference.argsort(-1, descending=True)
    values = [kl([bucket_logits(z, most_probable[:, :k]) for z in (reference, logits)]) for k in (1, 4, 16, 39, 40)]
    for fewer, more in pairwise(values):
        assert (fewer <= more + 1e-5).all() and fewer.mean() <= more.mean() + 1e-6
    assert values[0].mean() < 0.9 * values[-1].mean()
    # With one token left, the last bucket is that token.
    for last in values[-2:]:
        torch.testing.assert_close(last, kl((reference, logits)), rtol=1e-5, atol=1e-5)


def test_the_gradient_through_buckets_is_that_of_their_probabilities():
    generator = torch.Generator().manual_seed(1)
    reference, start = (2 * torch.randn(6, 9, generator=generator, dtype=torch.float64) for _ in range(2))
    ids = reference.topk(3).indices
    named = torch.zeros(6, 9, dtype=torch.bool).scatter(-1, ids, True)
    buckets, plain = start.float().requires_grad_(), start.clone().requires_grad_()
    token_kl(bucket_logits(reference, ids), bucket_logits(buckets, ids)).sum().backward()

    def outcomes(logits):
        probs = logits.softmax(-1)
        return torch.cat([probs.gather(-1, ids), probs.masked_fill(named, 0).sum(-1, keepdim=True)], -1)

    (outcomes(reference) * (outcomes(reference) / outcomes(plain)).log()).sum().backward()
    torch.testing.assert_close(buckets.grad, plain.grad.float(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("k", [1, 3, 4])
def test_buckets_of_sure_and_of_wrong_models_are_finite(k):
    sure, wrong = torch.tensor([[1e4, 0.0, 0.0, -1e4]]), torch.tensor([[-1e4, 0.0, 1e4, 0.0]], requires_grad=True)
    ids = sure.topk(k).indices
    for pair in [(sure, wrong), (wrong, sure), (sure, sure)]:
        value = token_kl(*(bucket_logits(logits, ids) for logits in pair))
        assert torch.isfinite(value).all() and (value >= 0).all()
    token_kl(bucket_logits(sure, ids), bucket_logits(wrong, ids)).sum().backward()
    assert torch.isfinite(wrong.grad).all()


def test_token_moments():
    # log p = -ln 2 with probability 1/2 and -2 ln 2 with 1/2: mean -1.5 ln 2, deviation 0.5 ln 2.
    mean, deviation = token_moments(P)
    assert mean.item() == pytest.approx(-1.5 * math.log(2))
    assert deviation.item() == pytest.approx(0.5 * math.log(2))
    mean, deviation = token_moments(torch.zeros(2, 8))
    assert mean.tolist() == pytest.approx([-math.log(8)] * 2)
    assert torch.isfinite(deviation).all() and deviation.tolist() == pytest.approx([0.0] * 2, abs=1e-3)


def test_row_sums_and_means_know_rows_without_tokens():
    values = torch.tensor([1.0, 2.0, 6.0, 5.0, 7.0, -4.0])
    assert row_sum(values, ROWS, 5).tolist() == [9.0, 0.0, 12.0, -4.0, 0.0]
    assert row_mean(values, ROWS, 5).tolist() == [3.0, 0.0, 6.0, -4.0, 0.0]


def test_gradient_of_row_mean_is_one_over_the_number_of_tokens():
    values = torch.ones(6, requires_grad=True)
    row_mean(values, ROWS, 4).sum().backward()
    assert values.grad.tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1 / 2, 1 / 2, 1.0])


def test_a_batch_without_any_answer_gives_zeros_with_a_gradient():
    labels = torch.full((2, 3), _)
    logits = torch.zeros(0, 5, requires_grad=True)
    sums = row_sum(token_logps(logits, answer_targets(labels)), answer_rows(labels), 2)
    assert sums.tolist() == [0.0, 0.0]
    sums.sum().backward()
    assert logits.grad.shape == (0, 5)


def checked(name):
    return jaxtyped(typechecker=beartype)(getattr(functional, name))


def test_shapes_are_as_declared():
    logits, targets = torch.randn(6, 9), torch.arange(6)
    assert checked("answer_mask")(LABELS).shape == LABELS.shape
    assert checked("answer_targets")(LABELS).shape == checked("answer_rows")(LABELS).shape == (6,)
    assert checked("token_logps")(logits, targets).shape == (6,)
    assert checked("token_kl")(logits, logits).shape == (6,)
    assert checked("bucket_logits")(logits, logits.topk(4).indices).shape == (6, 5)
    assert [part.shape for part in checked("token_moments")(logits)] == [(6,), (6,)]
    assert checked("row_sum")(logits[:, 0], ROWS, 4).shape == checked("row_mean")(logits[:, 0], ROWS, 4).shape == (4,)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("token_logps", (torch.randn(6, 9), torch.arange(5))),
        ("token_kl", (torch.randn(6, 9), torch.randn(6, 8))),
        ("bucket_logits", (torch.randn(6, 9), torch.zeros(5, 2, dtype=torch.long))),
        ("answer_mask", (torch.randn(4, 5),)),
        ("row_sum", (torch.randn(6), torch.arange(5), 6)),
    ],
)
def test_wrong_shapes_are_caught(name, arguments):
    with pytest.raises(TypeCheckError):
        checked(name)(*arguments)
