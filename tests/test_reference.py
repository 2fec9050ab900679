"""The table of the reference's distributions: a KL over k tokens and the rest, read once."""

import pytest
import torch
from runs import assert_close, losses, make_trainer, trained_weights
from tiny import tiny_model, tiny_rows, tiny_tokenizer

from llm_unlearn.data.collator import collate
from llm_unlearn.data.pairing import ForgetRetainDataset, ItemWeights
from llm_unlearn.data.tokenization import ExampleTokenizer
from llm_unlearn.forward import answer_logits, concatenate
from llm_unlearn.functional import bucket_logits

VOCABULARY = 120

TERMS = {
    "kl": ("grad_diff", {"retain_loss": "kl"}),
    "scored": ("icu", {"kl_mask_pad": True}),
    "everywhere": ("icu", {"kl_mask_pad": False, "kl_form": "kl"}),
    "reverse": ("icu", {"kl_mask_pad": True, "kl_form": "kl", "kl_direction": "rev"}),
}
"""Every form of the KL: method and options."""


@pytest.fixture
def make(tmp_path):
    """A trainer with one form of the KL, for two epochs of three steps."""

    def make(term, **options):
        method, own = TERMS[term]
        # Not Adam, which would make whole steps of rounding errors: at the start no KL has a gradient.
        defaults = {"num_train_epochs": 2, "optim": "sgd", "learning_rate": 0.1}
        return make_trainer(method, tmp_path, **(own | defaults | options))

    return make


def kls(trainer):
    """The KL of every step."""
    return [line.get("loss/kl", line["loss/retain"]) for line in losses(trainer)]


def assert_same_runs(ours, theirs):
    for trainer in (ours, theirs):
        trainer.train()
        assert trainer.guard.reason is None
    for our_line, their_line in zip(losses(ours), losses(theirs), strict=True):
        for name in their_line.keys() & {"loss", "loss/forget", "loss/retain", "loss/kl", "grad_norm"}:
            assert our_line[name] == pytest.approx(their_line[name], rel=1e-5, abs=1e-5), name
    assert_close(trained_weights(ours.model), trained_weights(theirs.model), atol=1e-5)
    assert abs(kls(theirs)[-1] - kls(theirs)[0]) > 1e-3, "the KL had something to say"


@pytest.mark.parametrize(
    ("term", "lora"),
    [
        ("kl", True),
        # Without an adapter only what the table stands in for differs: one form of the KL shows it.
        pytest.param("kl", False, marks=pytest.mark.slow),
        ("scored", True),
        # Its positions are those of the next case, its reference that of all cases with an adapter.
        pytest.param("everywhere", True, marks=pytest.mark.slow),
        ("everywhere", False),
        ("reverse", True),
    ],
)
def test_over_the_whole_vocabulary_the_table_changes_nothing(term, lora, make):
    """With all weights in training, the table stands in for the second model."""
    with_table = make(term, lora=lora, reference_top_k=VOCABULARY)
    assert with_table.ref_model is None
    assert_same_runs(with_table, make(term, lora=lora, ref_model=None if lora else tiny_model()))
    assert with_table.reference.top_k.logits.shape[1] == VOCABULARY


@pytest.mark.parametrize("term", ["kl", "everywhere"])
def test_over_few_tokens_the_kl_is_smaller(term, make):
    runs = [make(term, max_steps=2, **k) for k in ({}, {"reference_top_k": 4})]
    for trainer in runs:
        trainer.train()
    (start, full), (top_start, top) = map(kls, runs)
    # Without a gradient of the KL in the first step, the weights are the same in the second.
    assert [start, top_start] == pytest.approx([0.0, 0.0], abs=1e-5)
    assert 0 < top < 0.9 * full


# Each form once and each way of training once; the other two pairings bring nothing new.
@pytest.mark.parametrize(
    ("lora", "term"),
    [
        pytest.param(True, "everywhere", id="lora-everywhere"),
        pytest.param(False, "kl", id="full-kl"),
        pytest.param(True, "kl", id="lora-kl", marks=pytest.mark.slow),
        pytest.param(False, "everywhere", id="full-everywhere", marks=pytest.mark.slow),
    ],
)
def test_the_table_holds_what_the_model_said_before(lora, term, make):
    # GPT-2 has dropout, so that what is read in train mode would be random.
    before = tiny_model("gpt2")
    trainer = make(term, model=tiny_model("gpt2"), lora=lora, n_forget=3, reference_top_k=5)
    trainer.train()
    retain, everywhere = trainer.train_dataset.retain, trainer.retain_everywhere
    drawn = sorted({pair.retain for epoch in range(2) for pair in trainer.sampler.plan(epoch)})
    assert trainer.reference.top_k.offsets.diff().nonzero()[:, 0].tolist() == drawn != list(range(8))
    assert trainer.reference.top_k.ids.dtype == torch.int32

    for rows in (drawn, drawn[::-1], drawn[1:2]):
        batch = concatenate([collate([retain[i] for i in rows])], trainer.retain_length)
        with torch.no_grad():
            logits = answer_logits(before, before, batch, everywhere).logits
        kept = trainer.reference.top_k.of(torch.tensor(rows))
        assert torch.equal(kept.ids.sort().values, logits.topk(5).indices.sort().values)
        assert torch.equal(kept.beside(logits)[1], bucket_logits(logits, kept.ids))
        torch.testing.assert_close(*kept.beside(logits), rtol=1e-4, atol=1e-4)


def test_the_table_is_read_in_one_pass_and_the_reference_never_again(make):
    model, calls = tiny_model(), []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    make("kl", model=model, num_train_epochs=3, reference_top_k=4).train()
    # Two terms in nine steps, and the eight retain rows in one batch.
    assert len(calls) == 2 * 9 + 1


@pytest.mark.parametrize("term", ["scored", "everywhere"])
def test_rows_out_of_the_loss_leave_the_others_their_own(term, make):
    """Refinement drops rows of a batch, and partners with them."""
    flags = [0.0, 1.0, 1.0, 0.0, 1.0, 0.0]
    runs = [make(term, per_device_train_batch_size=3, **k) for k in ({"reference_top_k": VOCABULARY}, {})]
    for trainer in runs:
        trainer.sampler.weights = ItemWeights(flags, flags)
    assert_same_runs(*runs)


def test_pairs_for_evaluation_are_compared_over_as_many_tokens(tmp_path):
    tokenize = ExampleTokenizer(tiny_tokenizer())
    pairs = ForgetRetainDataset(tokenize.all(tiny_rows(3, first=50)), tokenize.all(tiny_rows(3, first=60)))
    values = []
    for options in ({}, {"reference_top_k": VOCABULARY}, {"reference_top_k": 4}):
        trainer = make_trainer("simnpo", tmp_path, eval_dataset=pairs, retain_loss="kl", **options)
        with torch.no_grad():
            for weight in trainer.model.parameters():
                if weight.requires_grad:
                    weight += 0.05
        values.append(trainer.evaluate()["eval_loss"])
        assert trainer.reference.top_k is None, "ids of evaluation pairs are not those of the table"
    assert values[1] == pytest.approx(values[0], rel=1e-5)
    assert values[2] < values[0] - 1e-3


def test_a_longer_second_run_reads_the_rows_that_it_draws(make):
    trainer = make("kl", n_forget=2, num_train_epochs=1, reference_top_k=8)
    trainer.train()
    rows = trainer.reference.top_k.offsets.diff().count_nonzero()
    trainer.args.num_train_epochs = 6
    trainer.train()
    assert trainer.guard.reason is None and len(losses(trainer)) == 6
    assert trainer.reference.top_k.offsets.diff().count_nonzero() > rows
