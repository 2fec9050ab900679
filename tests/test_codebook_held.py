"""Codes that tell tokens apart (`init_whiten`), and training that leaves them as they are (`hold_bottleneck`)."""

from types import SimpleNamespace

import pytest
import torch
from codebooks import SITES, bottleneck_weights, make_codebook_trainer, tiny_bottleneck, tiny_codebook, tiny_t5
from tiny import tiny_model, tiny_rows, tiny_tokenizer

from llm_unlearn.codebook import initialise as first_weights
from llm_unlearn.codebook.config import CodebookConfig
from llm_unlearn.codebook.initialise import initialise, initialise_from, whitening
from llm_unlearn.codebook.model import get_codebook_model
from llm_unlearn.codebook.reading import read_codes
from llm_unlearn.codebook.site import parameters_below
from llm_unlearn.data.tokenization import ExampleTokenizer

TOKENIZE = ExampleTokenizer(tiny_tokenizer())


# First weights.


def test_whitening_undoes_what_varies_within_a_token():
    # Around its mean, token 0 varies by 2 along the first axis and token 1 by 1 along the second: C = diag(8, 2) / 2.
    x = torch.tensor([[12.0, 5.0], [8.0, 5.0], [-3.0, 1.0], [-3.0, -1.0]])
    floor = 0.01 * (4 + 1) / 2
    expected = torch.diag(torch.tensor([(4 + floor) ** -0.5, (1 + floor) ** -0.5]))
    assert torch.allclose(whitening(x, torch.tensor([7, 7, 3, 3])), expected, atol=1e-6)
    # It is that of the tokens, whatever their order and wherever their means are.
    order = torch.tensor([2, 0, 3, 1])
    moved = x + torch.tensor([[0.0, 9.0], [0.0, 9.0], [4.0, 0.0], [4.0, 0.0]])
    assert torch.allclose(whitening(moved[order], torch.tensor([7, 7, 3, 3])[order]), expected, atol=1e-6)
    assert torch.equal(whitening(x, torch.arange(4)), torch.eye(2)), "no two are of one token"


def test_whitened_codes_are_twice_as_long_as_the_model_is_wide():
    for asked, whitened, length in ((None, True, 64), (None, False, 32), (40, True, 40)):
        codebook = get_codebook_model(tiny_model(), CodebookConfig(num_codes=20, code_dim=asked), whitened=whitened)
        assert codebook.bottleneck.codebook.weight.shape == (20, length)


def test_codes_tell_tokens_apart_where_their_surroundings_are_louder(monkeypatch):
    """Twelve tokens lie apart in two directions, and their surroundings vary as much in each of six others."""
    generator = torch.Generator().manual_seed(0)
    angles = torch.arange(12) * 2 * torch.pi / 12
    ids = torch.arange(12).repeat(50)
    x = torch.zeros(600, 8)
    x[:, 0], x[:, 1] = angles.cos()[ids], angles.sin()[ids]
    x += 0.02 * torch.randn(x.shape, generator=generator)
    x[:, 2:] += torch.randn((600, 6), generator=generator)
    monkeypatch.setattr(first_weights, "activations", lambda codebook, batches, most: (x, ids))

    def purity(whiten):
        bottleneck = tiny_bottleneck(24, 1, code_dim=16, norm="none")
        codebook = SimpleNamespace(bottleneck=bottleneck, config=bottleneck.config)
        initialise(codebook, [], seed=0, whiten=whiten)
        codes = bottleneck.search(bottleneck.encode(x))[:, 0]
        table = torch.zeros(24, 12).index_put_((codes, ids), torch.ones(600), accumulate=True)
        return (table.max(1).values.sum() / 600).item()

    assert purity(whiten=True) > 0.9
    assert purity(whiten=False) < 0.5


def test_a_long_encoding_holds_each_direction_and_its_opposite():
    bottleneck = tiny_bottleneck(40, 3, code_dim=16, norm="none", unit_z=False)
    x = torch.randn((5, 8), generator=torch.Generator().manual_seed(0))
    z = bottleneck.encode(x)
    back = (z[:, :8] - z[:, 8:]) @ bottleneck.enc.weight[:8]
    assert torch.allclose(back, x, atol=1e-5), "an orthogonal map, both halves of which come through"


def test_first_weights_do_not_build_on_earlier_ones():
    codebooks = [tiny_codebook() for _ in range(2)]
    items = TOKENIZE.all(tiny_rows(20))
    initialise_from(codebooks[0], items, 1000, 1, whiten=True)
    for codebook in codebooks:
        initialise_from(codebook, items, 1000, 0, whiten=True)
    first, second = map(bottleneck_weights, codebooks)
    assert all(torch.equal(first[name], second[name]) for name in first)


# Training.


@pytest.mark.parametrize(("family", "site"), [*SITES, ("t5", "post_attn"), ("t5", "block")])
def test_what_lies_below_is_what_the_bottlenecks_input_depends_on(family, site):
    """By gradients: of the sum of the squared activations at the bottleneck's place."""
    model = tiny_t5() if family == "t5" else tiny_model(family)
    codebook = tiny_codebook(model, site=site, layer=1 if family == "t5" else 0)
    below = parameters_below(model, codebook.config)
    assert len({id(parameter) for parameter in below}) == len(below)
    (x,) = codebook.site.captured(lambda: model(input_ids=torch.arange(5, 15)[None]))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    (x.nan_to_num() * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    listed = {names[id(parameter)] for parameter in below}
    assert reached <= listed
    # Biases of keys shift all scores alike; they are listed, and nothing comes of them.
    assert all("bias" in name or "attn" in name or "attention" in name for name in listed - reached)


@pytest.mark.parametrize("train", ["lora", "full"])
@pytest.mark.parametrize("site", ["block", "post_attn"])
def test_training_leaves_codes_and_all_below_them_as_they_are(tmp_path, train, site):
    codebook = tiny_codebook(site=site)
    items = TOKENIZE.all(tiny_rows(20))
    initialise_from(codebook, items, 1000)
    before = [reading.codes for reading in read_codes(codebook, items, TOKENIZE, progress=False)]
    trainer = make_codebook_trainer(
        tmp_path, codebook=codebook, train=train, hold_bottleneck=True, max_steps=3, learning_rate=1e-2
    )
    start = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    moved = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, start[name])}
    held = {id(parameter) for parameter in parameters_below(trainer.model, codebook.config)}
    names = {name for name, p in trainer.model.named_parameters() if id(p) not in held and "codebook" not in name}
    trained = {name for name in names if train == "full" or "lora" in name}
    # The first steps of an adapter may leave the one of its halves that starts at random where it is.
    assert moved <= trained and (moved == trained or train == "lora") and moved
    assert any("mlp" in name and ".0." in name for name in moved) == (site == "post_attn")
    after = [reading.codes for reading in read_codes(codebook, items, TOKENIZE, progress=False)]
    assert all((one == other).all() for one, other in zip(before, after, strict=True))
    parts = {name for entry in trainer.state.log_history for name in entry if name.startswith("loss/")}
    assert parts == {"loss/lm"}, "the other terms move nothing"


def test_held_codes_are_not_revived(tmp_path):
    codebook = tiny_codebook(num_codes=300)
    initialise_from(codebook, TOKENIZE.all(tiny_rows(4)), 1000)
    start = codebook.bottleneck.codebook.weight.detach().clone()
    trainer = make_codebook_trainer(
        tmp_path, codebook=codebook, train="full", hold_bottleneck=True, max_steps=6, revive_every=2
    )
    trainer.train()
    assert torch.equal(codebook.bottleneck.codebook.weight, start)
    assert (codebook.bottleneck.last_used == 0).any(), "some are not in use"


def test_something_must_be_left_to_train(tmp_path):
    with pytest.raises(ValueError, match="`hold_bottleneck` leaves nothing to train"):
        make_codebook_trainer(tmp_path, hold_bottleneck=True)
