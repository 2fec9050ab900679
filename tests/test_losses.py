"""Objectives against numbers derived by hand: one answer token, four words."""

import math

import pytest
import torch
import torch.nn.functional as F

from llm_unlearn.functional import token_kl, token_logps
from llm_unlearn.losses import ascent_loss, dpo_loss, npo_loss, simnpo_loss

LOGITS, REFERENCE = [2.0, 1.0, 0.0, -1.0], [1.5, 1.0, 0.0, -0.5]
ANSWER, ALTERNATE = 0, 2


def log_prob(logits, token):
    return logits[token] - math.log(sum(math.exp(z) for z in logits))


LOGP, REF = log_prob(LOGITS, ANSWER), log_prob(REFERENCE, ANSWER)
ALT_LOGP, ALT_REF = log_prob(LOGITS, ALTERNATE), log_prob(REFERENCE, ALTERNATE)


def value(number):
    return torch.tensor([number], dtype=torch.float64)


def golden(expected):
    return pytest.approx(expected, abs=1e-6)


def test_the_example_is_the_one_of_the_table():
    assert [math.exp(log_prob(LOGITS, v)) for v in range(4)] == golden([0.643914, 0.236883, 0.087144, 0.032059])
    assert [math.exp(log_prob(REFERENCE, v)) for v in range(4)] == golden([0.508907, 0.308668, 0.113552, 0.068873])
    computed = token_logps(torch.tensor([LOGITS, LOGITS]), torch.tensor([ANSWER, ALTERNATE]))
    assert computed.tolist() == golden([LOGP, ALT_LOGP])


def test_golden_values():
    assert ascent_loss(value(LOGP), None).item() == golden(-0.440190)
    assert npo_loss(value(LOGP), value(REF), beta=0.1).item() == golden(14.099628)
    assert simnpo_loss(value(LOGP), beta=4.5, delta=0.0).item() == golden(0.057435)
    dpo = dpo_loss(value(ALT_LOGP), value(LOGP), value(ALT_REF), value(REF), beta=0.1)
    assert dpo.item() == golden(14.369193)


def test_golden_kl_in_both_directions():
    z, reference = torch.tensor([LOGITS]), torch.tensor([REFERENCE])
    assert token_kl(reference, z).item() == golden(0.044683)
    assert token_kl(z, reference).item() == golden(0.041228)


@pytest.mark.parametrize("beta", [0.05, 0.1, 2.0])
def test_value_at_the_reference(beta):
    s = torch.tensor([-3.0, -40.0])
    alternate = torch.tensor([-5.0, -1.0])
    at_reference = torch.full((2,), 2 / beta * math.log(2))
    torch.testing.assert_close(npo_loss(s, s, beta), at_reference)
    torch.testing.assert_close(dpo_loss(alternate, s, alternate, s, beta), at_reference)


def test_value_of_simnpo_at_its_margin():
    assert simnpo_loss(torch.tensor([-1.5]), beta=2.0, delta=1.5).item() == pytest.approx(math.log(2))


def test_margin_of_simnpo_stands_inside_beta():
    # The paper's margin outside beta: log sigmoid(beta l - gamma) with gamma = beta delta.
    beta, delta, nll = 3.5, 1.0, 2.0
    paper = -2 / beta * math.log(1 / (1 + math.exp(-(beta * nll - beta * delta))))
    assert simnpo_loss(torch.tensor([-nll]), beta, delta).item() == pytest.approx(paper)


def test_ranges_on_random_logits():
    generator = torch.Generator().manual_seed(0)
    logps, reference, other, other_reference = -torch.rand(4, 500, generator=generator) * 200
    ascent = ascent_loss(logps, cap=10.0)
    assert ascent.min() >= -10.0 and ascent.max() <= 0.0
    assert ascent_loss(logps, None).min() < -100.0
    dpo = dpo_loss(other, logps, other_reference, reference, beta=0.1)
    for loss in (npo_loss(logps, reference, beta=0.1), simnpo_loss(logps, beta=4.5, delta=1.0), dpo):
        assert torch.isfinite(loss).all() and loss.min() >= 0.0


def test_extreme_log_probabilities_stay_finite():
    unlikely = torch.tensor([-1e4], requires_grad=True)
    zero = torch.tensor([0.0])
    for loss in (npo_loss(unlikely, zero, 0.1), simnpo_loss(unlikely, 4.5, 0.0), npo_loss(zero, unlikely, 0.1)):
        (gradient,) = torch.autograd.grad(loss, unlikely)
        assert torch.isfinite(loss) and torch.isfinite(gradient)


def test_cap_stops_the_ascent_and_its_gradient():
    mean_logps = torch.tensor([-2.0, -9.0], requires_grad=True)
    loss = ascent_loss(mean_logps, cap=5.0)
    assert loss.tolist() == [-2.0, -5.0]
    loss.sum().backward()
    assert mean_logps.grad.tolist() == [1.0, 0.0]


def test_gradient_of_npo_is_that_of_ascent_times_a_factor_that_fades():
    logps = torch.tensor([-1.0, -10.0, -60.0], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([-1.0, -2.0, -3.0], dtype=torch.float64)
    beta = 0.1
    npo_loss(logps, reference, beta).sum().backward()
    p, p_ref = (logps.detach().exp() ** beta, reference.exp() ** beta)
    torch.testing.assert_close(logps.grad, 2 * p / (p + p_ref))
    assert logps.grad[0] == pytest.approx(1.0) and logps.grad[2] < 0.01


OBJECTIVES = {
    "ascent": lambda s, m, alt: ascent_loss(m, None),
    "ascent_capped": lambda s, m, alt: ascent_loss(m, math.log(50)),
    "npo": lambda s, m, alt: npo_loss(s, s.detach() + 0.3, 0.1),
    "simnpo": lambda s, m, alt: simnpo_loss(m, 4.5, 0.5),
    "dpo": lambda s, m, alt: dpo_loss(alt, s, alt.detach() + 0.2, s.detach() - 0.1, 0.1),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_small_step_makes_the_answer_less_likely(name):
    generator = torch.Generator().manual_seed(1)
    targets = torch.randint(50, (6,), generator=generator)
    replacement = (targets + 7) % 50
    # A model that knows the answer: every objective fades once it is forgotten.
    logits = torch.randn(6, 50, generator=generator) + 4.0 * F.one_hot(targets, 50)
    logits.requires_grad_()

    def per_sequence(z, tokens):
        return token_logps(z, tokens).view(2, 3)

    before = per_sequence(logits, targets)
    alternate = per_sequence(logits, replacement)
    OBJECTIVES[name](before.sum(-1), before.mean(-1), alternate.sum(-1)).sum().backward()
    stepped = (logits - 1e-3 * logits.grad).detach()
    assert (per_sequence(stepped, targets) < before).all()
    if name == "dpo":
        assert (per_sequence(stepped, replacement) > alternate).all()
