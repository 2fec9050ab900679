"""Every method's loss and gradients equal those of the plain way, which shares no code with the toolkit.

`benchmarks/plain.py` holds two models, runs every half apart and keeps logits over the whole vocabulary.
"""

import importlib.util
import math
from pathlib import Path

import pytest
import torch
from tiny import tiny_model, tiny_rows, tiny_tokenizer

from llm_unlearn.adapters import lora_config
from llm_unlearn.methods import METHODS

pytestmark = [
    # peft 0.21 reads a name that transformers 5.23 calls deprecated.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

_spec = importlib.util.spec_from_file_location("plain", Path(__file__).parents[1] / "benchmarks" / "plain.py")
plain = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(plain)

BATCH = 4
REFUSALS = ["I do not know", "sorry I cannot say this at all", "not well known"]

# Values far from the defaults, so that a parameter which is not passed on shows.
PARAMETERS = {
    "grad_ascent": {"forget_cap": "6.0", "forget_coef": 0.7},
    "grad_diff": {"forget_cap": "ln_vocab", "retain_coef": 2.5},
    "npo": {"beta": 0.3, "retain_coef": 2.5, "forget_coef": 0.7},
    "simnpo": {"beta": 0.9, "delta": 0.4, "retain_coef": 1.5},
    "icu": {"learn_coef": 0.7, "kl_coef": 1.3, "forget_token_scope": "suffix", "kl_form": "kl", "kl_mask_pad": True},
    "idk_dpo": {"beta": 0.2, "retain_coef": 0.5},
}
CAPS = {"grad_ascent": 6.0, "grad_diff": math.log(120)}


def make_trainer(method, tmp_path, *, lora, retain_loss="nll", n_forget=7, architecture="llama", **options):
    """A trainer in the middle of a run: its reference is the start, its weights have moved on."""
    config, trainer_class = METHODS[method].load()
    args = config(
        output_dir=str(tmp_path),
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=1,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        **PARAMETERS[method],
        **({} if method in ("grad_ascent", "icu") else {"retain_loss": retain_loss}),
        **options,
    )
    model = tiny_model(architecture, seed=3)
    reference = plain.frozen_copy(model)
    trainer = trainer_class(
        model,
        args,
        tiny_rows(n_forget),
        tiny_tokenizer(),
        # Longer answers, so that the halves of a batch differ in length.
        retain_dataset=[{**row, "answer": row["answer"] + " after many years"} for row in tiny_rows(9, first=11)],
        refusals=REFUSALS,
        peft_config=lora_config(r=3, lora_alpha=6) if lora else None,
        ref_model=plain.frozen_copy(model) if (retain_loss == "kl" or method == "icu") and not lora else None,
    )
    trainer.model.train()
    trainer.state.max_steps = 2 * math.ceil(n_forget / BATCH)
    batches = list(trainer.get_train_dataloader())
    trainer.compute_loss(trainer.model, batches[0])  # reads the reference values while the weights are the start's
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.03 * torch.randn(parameter.shape, generator=generator))
    return trainer, reference, batches


def assert_same(method, trainer, reference, batch):
    args = trainer.args
    trained = {name: weight for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    ours = trainer.compute_loss(trainer.model, batch)
    our_gradients = torch.autograd.grad(ours, trained.values())
    theirs = plain.loss(
        method,
        trainer.model,
        reference,
        batch,
        forget_coef=args.forget_coef,
        retain=(
            {"nll": args.learn_coef, "kl": args.kl_coef} if method == "icu" else {args.retain_loss: args.retain_coef}
        ),
        beta=getattr(args, "beta", None) or math.nan,
        delta=getattr(args, "delta", math.nan),
        cap=CAPS.get(method, math.inf),
    )
    their_gradients = torch.autograd.grad(theirs, trained.values())
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    for name, ours, theirs in zip(trained, our_gradients, their_gradients, strict=True):
        assert theirs.abs().max() > 1e-4, f"{name} has no gradient to compare"
        # Absolute in the scale of the weight's own gradient: its small entries are differences of large terms.
        atol = 1e-5 * max(1.0, theirs.abs().max().item())
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize(
    ("method", "retain_loss"),
    # Gradient ascent has no retain term, and ICU has both.
    [(m, kind) for m in METHODS for kind in ("nll", "kl") if kind == "nll" or m not in ("grad_ascent", "icu")],
)
def test_loss_and_gradients_are_those_of_the_plain_way(method, retain_loss, lora, tmp_path):
    trainer, reference, batches = make_trainer(method, tmp_path, lora=lora, retain_loss=retain_loss)
    assert len(batches) == 2
    for batch in batches:
        lengths = {half["input_ids"].shape[1] for half in batch.values()}
        assert len(batch) == 1 or len(lengths) > 1, "the halves should differ in length"
        assert_same(method, trainer, reference, batch)
    # Seven items in batches of four: the last row only fills up, and the others weigh more.
    torch.testing.assert_close(batches[1]["forget"]["weight"], torch.tensor([4 / 3, 4 / 3, 4 / 3, 0.0]))


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("method", METHODS)
def test_without_the_end_token(method, lora, tmp_path):
    trainer, reference, batches = make_trainer(method, tmp_path, lora=lora, forget_end_token=False)
    end = tiny_tokenizer().eos_token_id
    assert not (batches[0]["forget"]["labels"] == end).any()
    assert all((batches[0][name]["labels"] == end).any() for name in batches[0].keys() - {"forget"})
    assert_same(method, trainer, reference, batches[0])


@pytest.mark.parametrize("architecture", ["qwen2"])
def test_on_another_architecture(architecture, tmp_path):
    trainer, reference, batches = make_trainer("npo", tmp_path, lora=True, retain_loss="kl", architecture=architecture)
    assert_same("npo", trainer, reference, batches[0])


@pytest.mark.parametrize("method", ["npo", "idk_dpo", "simnpo"])
def test_rows_of_weight_zero_do_not_touch_the_gradient(method, tmp_path):
    trainer, _, batches = make_trainer(method, tmp_path, lora=True)
    batch = batches[1]
    trained = [weight for weight in trainer.model.parameters() if weight.requires_grad]
    whole = torch.autograd.grad(trainer.compute_loss(trainer.model, batch), trained)
    cut = {name: {key: value[:3] for key, value in half.items()} for name, half in batch.items()}
    for half in cut.values():
        half["weight"] = torch.ones(3)
    alone = torch.autograd.grad(trainer.compute_loss(trainer.model, cut), trained)
    torch.testing.assert_close(whole, alone, rtol=1e-5, atol=1e-5)


def test_accumulation_of_one_row_each_equals_one_batch(tmp_path):
    trainer, _, batches = make_trainer("npo", tmp_path, lora=True)
    trained = [weight for weight in trainer.model.parameters() if weight.requires_grad]
    whole = torch.autograd.grad(trainer.compute_loss(trainer.model, batches[1]), trained)
    rows = [
        {name: {key: value[row : row + 1] for key, value in half.items()} for name, half in batches[1].items()}
        for row in range(BATCH)
    ]
    losses = [trainer.compute_loss(trainer.model, row) / BATCH for row in rows]
    torch.testing.assert_close(torch.autograd.grad(sum(losses), trained), whole, rtol=1e-5, atol=1e-5)
