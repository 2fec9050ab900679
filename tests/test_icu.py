"""ICU's loss in closed form, the direction of every term, and the pairs it is computed on."""

import math

import pytest
import torch
from runs import assert_equal, frozen_weights, losses, make_trainer, probe_logits
from tiny import tiny_model, tiny_rows, tiny_tokenizer

from llm_unlearn.adapters import lora_config, without_newest_adapter
from llm_unlearn.data.collator import collate
from llm_unlearn.data.tokenization import ExampleTokenizer
from llm_unlearn.forward import AnswerLogits, AnswerScores, ReferenceLogits, answer_logits
from llm_unlearn.methods.icu import ICUConfig, ICUTrainer

LONG = [{"text": " ".join(row["answer"] for row in tiny_rows(5, first=5 * i))} for i in range(12)]
"""Plain texts of 40 tokens and more."""


@pytest.fixture
def icu(tmp_path):
    """A trainer of ICU without refinement; the first eight retain rows are the partners, in order."""

    def make(**options):
        options = {"kl_mask_pad": True, "kl_form": "kl", "forget_token_scope": "all"} | options
        return make_trainer("icu", tmp_path, **options)

    return make


def answers(logits, targets=(0,)):
    return AnswerLogits(torch.tensor(logits), torch.tensor(targets), torch.zeros(len(targets), dtype=torch.long), 1)


@pytest.mark.parametrize(("kl_form", "total"), [("kl", -0.24730), ("ce", 0.69315)])
def test_the_loss_of_a_uniform_model_in_closed_form(kl_form, total, icu):
    """V = 4: CE = ln 4 = 1.38629; reference (.7, .1, .1, .1): H = 0.94045, KL = ln 4 - H = 0.44585."""
    trainer = icu(kl_form=kl_form)
    uniform, reference = answers([[0.0] * 4]), torch.log(torch.tensor([[0.7, 0.1, 0.1, 0.1]]))
    forget = trainer.forget_loss(AnswerScores.of(uniform))
    parts = trainer.retain_losses(uniform, ReferenceLogits(reference))
    assert forget.item() == pytest.approx(-math.log(4), abs=1e-6)
    assert {name: coef for name, (coef, _) in parts.items()} == {"learn": 0.5, "kl": 1.0}
    assert parts["learn"][1].item() == pytest.approx(1.38629, abs=1e-5)
    assert parts["kl"][1].item() == pytest.approx(0.44585 if kl_form == "kl" else 1.38629, abs=1e-5)
    loss = trainer.args.forget_coef * forget + sum(coef * part for coef, part in parts.values())
    assert loss.item() == pytest.approx(total, abs=1e-5)


def test_kl_and_cross_entropy_have_the_same_gradient(icu):
    reference = torch.tensor([[1.0, -2.0, 0.5, 0.0], [0.0, 3.0, 0.1, -1.0]])
    gradients = []
    for form in ("kl", "ce"):
        logits = torch.tensor([[0.3, 0.2, -1.0, 2.0], [1.0, 0.0, 0.0, 0.5]], requires_grad=True)
        scored = AnswerLogits(logits, torch.tensor([1, 2]), torch.tensor([0, 0]), 1)
        icu(kl_form=form).retain_losses(scored, ReferenceLogits(reference))["kl"][1].sum().backward()
        gradients.append(logits.grad)
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-6)


def test_the_direction_of_the_kl(icu):
    """Expectation under p0: no mass where p0 has some is dear, mass where p0 has none is cheap."""
    has_two, has_one = torch.tensor([[0.0, 0.0, -20.0]]), torch.tensor([[0.0, -20.0, -20.0]])

    def kl(model, reference, direction):
        scored = AnswerLogits(model.requires_grad_(), torch.tensor([0]), torch.tensor([0]), 1)
        value = icu(kl_direction=direction).retain_losses(scored, ReferenceLogits(reference))["kl"][1]
        value.sum().backward()
        assert model.grad.abs().sum() > 0, "the gradient flows into the model, whichever way round"
        return value.item()

    # KL((1/2, 1/2, 0) || (1, e^-20, 0)) = -ln 2 + 20 / 2; KL((1, 0, 0) || (1/2, 1/2, 0)) = ln 2.
    assert kl(has_one.clone(), has_two, "fwd") == pytest.approx(10 - math.log(2), abs=1e-4)
    assert kl(has_two.clone(), has_one, "fwd") == pytest.approx(math.log(2), abs=1e-4)
    assert kl(has_one.clone(), has_two, "rev") == pytest.approx(math.log(2), abs=1e-4)


def test_the_kl_is_zero_and_has_no_gradient_at_the_start(icu):
    trainer = icu(learn_coef=0.0)
    batch = next(iter(trainer.get_train_dataloader()))
    parts = {}
    trainer.model.train()
    loss = trainer._retain_term(trainer.model, batch, parts)
    loss.backward()
    assert parts["loss/kl"].item() == pytest.approx(0.0, abs=1e-6)
    gradients = [p.grad for p in trainer.model.parameters() if p.requires_grad]
    assert max(float(g.abs().max()) for g in gradients if g is not None) < 1e-6


def term_step(trainer, name, lr=0.05):
    """CE of the half of a batch called `name` before and after an SGD step on its term alone."""
    trainer.state.max_steps = 3  # reference values are read for the rows of the run
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    term = {"forget": trainer._forget_term, "retain": trainer._retain_term}[name]

    def ce():
        with torch.no_grad():
            return -AnswerScores.of(answer_logits(trainer.model, trainer.model, batch[name])).means.mean().item()

    before = ce()
    term(trainer.model, batch, {}).backward()
    with torch.no_grad():
        for weight in trainer.model.parameters():
            if weight.grad is not None:
                weight -= lr * weight.grad
    return before, ce()


def test_each_term_moves_its_own_way(icu):
    before, after = term_step(icu(), "forget")
    assert after > before + 1e-4
    before, after = term_step(icu(kl_coef=0.0), "retain")
    assert after < before - 1e-4
    before, after = term_step(icu(learn_coef=0.0), "retain")
    assert after == pytest.approx(before, abs=1e-6)


@pytest.mark.parametrize("forget_loss", ["ga", "ga_hinge", "npo", "simnpo", "unlikelihood"])
def test_every_forget_loss_raises_the_ce_of_the_forget_rows(forget_loss, icu):
    options = {"ga_hinge": {"forget_cap": "30"}, "simnpo": {"beta": 0.5}}.get(forget_loss, {})
    # The rows are unlikely under this random model, where these two hardly push any more.
    lr = 1.0 if forget_loss in ("unlikelihood", "simnpo") else 0.005
    before, after = term_step(icu(forget_loss=forget_loss, **options), "forget", lr)
    assert after > before + 1e-4


def test_the_parts_of_the_loss_add_up(icu):
    trainer = icu()
    trainer.train()
    lines = losses(trainer)
    assert len(lines) == 3
    for line in lines:
        retain = 0.5 * line["loss/learn"] + line["loss/kl"]
        assert line["loss"] == pytest.approx(line["loss/forget"] + retain, abs=1e-3)
        assert line["loss/retain"] == pytest.approx(retain / 1.5, abs=1e-4)


def test_partners_stand_beside_their_forget_rows_epoch_after_epoch(tmp_path):
    partners = [[3, 0], [2, 1], [7, 7], [3, 4]]
    model = tiny_model()
    options = {"output_dir": str(tmp_path), "refine": False, "use_cpu": True, "report_to": "none"}
    trainer = ICUTrainer(
        model,
        ICUConfig(**options, per_device_train_batch_size=2, gradient_accumulation_steps=1, save_strategy="no"),
        tiny_rows(4),
        tiny_tokenizer(),
        retain_dataset=tiny_rows(8, first=20),
        partners=partners,
        peft_config=lora_config(r=4, lora_alpha=8),
    )
    for epoch in range(4):
        met = {pair.forget: pair.retain for pair in trainer.sampler.plan(epoch)}
        assert met == {i: own[epoch % 2] for i, own in enumerate(partners)}


def test_the_scope_of_the_forget_term(icu, tmp_path):
    def scored(rows, **options):
        trainer = icu(**options)
        items = ExampleTokenizer(tiny_tokenizer()).all(rows)
        return items, trainer.forget_scope(items, trainer.args)

    items, everything = scored(tiny_rows(3))
    assert [item.prompt_length for item in everything] == [0, 0, 0]
    items, suffix = scored(tiny_rows(3), forget_token_scope="suffix")
    assert suffix == items
    items, suffix = scored(LONG[:2], forget_token_scope="suffix", iur_prefix=[4, 9])
    assert [item.prompt_length for item in items] == [0, 0]
    assert [item.prompt_length for item in suffix] == [9, 9]


def test_the_mean_over_all_positions_counts_prompt_padding_and_what_follows_the_last_token(icu):
    """As released; against the sum over the whole logits, by hand."""
    trainer = icu(kl_mask_pad=False, learn_coef=0.5)
    batch = next(iter(trainer.get_train_dataloader()))
    half = batch["retain"]
    reference = tiny_model()(input_ids=half["input_ids"]).logits.detach()
    with torch.no_grad():
        for weight in trainer.model.parameters():
            if weight.requires_grad:
                weight += 0.05
    parts = {}
    trainer._retain_term(trainer.model.train(), batch, parts)
    current = trainer.model(input_ids=half["input_ids"]).logits
    per_position = (reference.softmax(-1) * (reference.log_softmax(-1) - current.log_softmax(-1))).sum(-1)
    assert half["attention_mask"].min() == 0, "one of the rows is padded"
    assert parts["loss/kl"].item() == pytest.approx(per_position.mean().item(), rel=1e-4)
    nll = -AnswerScores.of(answer_logits(trainer.model, trainer.model, half)).means.mean()
    assert parts["loss/learn"].item() == pytest.approx(nll.item(), rel=1e-5)


def test_the_reference_is_the_model_with_the_adapter_off(icu):
    model = tiny_model()
    before = probe_logits(model)
    trainer = icu(model=model, num_train_epochs=2)
    frozen = frozen_weights(trainer.model)
    trainer.train()
    assert trainer.state.global_step == 6
    with without_newest_adapter(trainer.model):
        torch.testing.assert_close(probe_logits(trainer.model), before, rtol=0, atol=1e-5)
    assert_equal(frozen_weights(trainer.model), frozen)


def test_a_begin_token_conditions_the_first_token_and_is_never_predicted(tmp_path):
    """Equal to the CE of x_t given x_<t with the begin token in front, counted by hand."""
    tokenizer = tiny_tokenizer(chat_template=False)
    tokenizer.bos_token = "<|user|>"
    tokenizer._tokenizer.post_processor = bos_processor(tokenizer)
    tokenize = ExampleTokenizer(tokenizer)
    item = tokenize({"text": "Ada was born in Arlen"}, 0)
    bos = tokenizer.bos_token_id
    assert item.input_ids[0] == bos and item.input_ids.count(bos) == 1
    model = tiny_model()
    nll = -AnswerScores.of(answer_logits(model, model, collate([item]))).means
    log_probs = model(input_ids=torch.tensor([item.input_ids])).logits[0].log_softmax(-1)
    by_hand = -torch.stack([log_probs[t - 1, item.input_ids[t]] for t in range(1, len(item.input_ids))]).mean()
    assert nll.item() == pytest.approx(by_hand.item(), abs=1e-5)
    assert len(item.input_ids) == 7  # the begin token, five words and the end token


def bos_processor(tokenizer):
    from tokenizers.processors import TemplateProcessing

    return TemplateProcessing(single="<|user|> $A", special_tokens=[("<|user|>", tokenizer.bos_token_id)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learn_coef": -1}, "`learn_coef` is -1"),
        ({"retain_coef": 2.0}, "weigh its terms by `learn_coef`"),
        ({"retain_loss": "kl"}, "weigh its terms by `learn_coef`"),
        ({"beta": 0.1}, "belongs to 'npo' and 'simnpo'"),
        ({"beta": -0.1, "forget_loss": "npo"}, "must be positive"),
        ({"kl_direction": "rev"}, "--kl_form kl"),
        ({"iur_prefix": [5]}, "two token positions"),
        ({"iur_prefix": [50, 20]}, "two token positions"),
        ({"iur_every": 0}, "at least 1"),
        ({"stop_ma": 59.9}, "from 0 to 1"),
        ({"iur_new_tokens": 0}, "at least 1 token"),
    ],
)
def test_what_cannot_be_meant_is_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        ICUConfig(output_dir=str(tmp_path), use_cpu=True, **options)


def test_without_terms_on_analogues_no_retain_data_is_needed(tmp_path):
    args = ICUConfig(output_dir=str(tmp_path), use_cpu=True, learn_coef=0.0, kl_coef=0.0)
    assert args.retain_coef == 0 and not args.needs_reference_logits
    assert ICUConfig(output_dir=str(tmp_path), use_cpu=True).needs_reference_logits
