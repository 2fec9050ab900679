"""The trainer around a method: batches, reference values, the retain term, modes, errors, logging."""

import math

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from runs import (
    REFUSALS,
    assert_close,
    assert_equal,
    losses,
    make_trainer,
    probe_logits,
    trained_weights,
)
from tiny import tiny_model, tiny_rows, tiny_tokenizer
from transformers import TrainerCallback

from llm_unlearn.adapters import attach_adapter, lora_config, without_newest_adapter
from llm_unlearn.config import AscentConfig, UnlearningConfig
from llm_unlearn.data.collator import collate
from llm_unlearn.data.pairing import ForgetRetainDataset
from llm_unlearn.data.tokenization import ExampleTokenizer
from llm_unlearn.forward import AnswerScores, answer_logits
from llm_unlearn.losses import npo_loss
from llm_unlearn.methods import METHODS
from llm_unlearn.methods.grad_ascent import GradAscentConfig
from llm_unlearn.methods.icu import ICUConfig
from llm_unlearn.methods.npo import NPOConfig, NPOTrainer
from llm_unlearn.methods.simnpo import SimNPOConfig
from llm_unlearn.reference import reference_model
from llm_unlearn.trainer import UnlearningTrainer


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    # A trainer makes its output folder, which `config` leaves relative.
    monkeypatch.chdir(tmp_path)


def config(cls=NPOConfig, **options):
    defaults = {"output_dir": "unused", "report_to": "none", "use_cpu": True, "disable_tqdm": True}
    return cls(**(defaults | {"save_strategy": "no"} | options))


def count_forwards(model):
    """A list that grows by one for every forward of `model`."""
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


class At(TrainerCallback):
    """Calls `what()` after step `step`."""

    def __init__(self, step, what):
        self.step, self.what = step, what

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step:
            self.what()


# Batches.


@pytest.mark.parametrize(
    ("method", "retain_loss"), [("npo", "nll"), ("npo", "kl"), ("idk_dpo", "nll"), ("simnpo", "nll")]
)
def test_batch_size_and_accumulation_do_not_change_the_run(method, retain_loss, tmp_path):
    """Ten rows in steps of four: the last step of an epoch has two real rows."""
    runs = []
    for batch, accumulation in [(4, 1), (2, 2), (1, 4)]:
        trainer = make_trainer(
            method,
            tmp_path,
            n_forget=10,
            num_train_epochs=2,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            retain_loss=retain_loss,
            learning_rate=1e-3,
        )
        trainer.train()
        assert trainer.state.global_step == 6
        runs.append((trained_weights(trainer.model), losses(trainer)))
    (weights, lines), *others = runs
    for other_weights, other_lines in others:
        assert_close(other_weights, weights, atol=1e-5)
        for ours, theirs in zip(other_lines, lines, strict=True):
            for name in ("loss", "loss/forget", "loss/retain", "logps/forget", "grad_norm"):
                assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-4), name


def test_lines_logged_every_few_steps_are_means_over_those_steps(tmp_path):
    each, third = (make_trainer("npo", tmp_path, n_forget=12, logging_steps=steps) for steps in (1, 3))
    each.train()
    third.train()
    for name in ("loss", "loss/forget", "loss/retain", "logps/forget"):
        singly = [line[name] for line in losses(each)]
        in_threes = [line[name] for line in losses(third)]
        assert in_threes == pytest.approx([sum(singly[:3]) / 3, sum(singly[3:]) / 3], rel=1e-5)


def test_group_by_length_trains_on_every_row(tmp_path):
    trainer = make_trainer("npo", tmp_path, n_forget=10, train_sampling_strategy="group_by_length")
    seen = []
    inner = trainer.training_step

    def noting(model, inputs, *args, **kwargs):
        seen.append(inputs["forget"])
        return inner(model, inputs, *args, **kwargs)

    trainer.training_step = noting
    trainer.train()
    assert sorted(i for half in seen for i in half["index"].tolist()) == list(range(10))
    random = make_trainer("npo", tmp_path, n_forget=10)
    padding = [int((batch["forget"]["attention_mask"] == 0).sum()) for batch in random.get_train_dataloader()]
    assert sum(int((half["attention_mask"] == 0).sum()) for half in seen) < sum(padding)


def test_idk_dpo_draws_refusals_as_a_function_of_seed_epoch_and_item(tmp_path):
    def drawn(**options):
        """The number of the refusal by epoch and item; the batch holds that refusal's ids."""
        trainer = make_trainer("idk_dpo", tmp_path, n_forget=7, **options)
        answers = [trainer.tokenize({"question": "Who?", "answer": text}, 0).answer_ids for text in REFUSALS]
        draws, loader = {}, trainer.get_train_dataloader()
        for epoch in range(3):
            loader.set_epoch(epoch)
            for batch in loader:
                texts = batch["alternate"]["labels"]
                for item, refusal, ids in zip(
                    batch["forget"]["index"].tolist(), batch["alternate"]["index"].tolist(), texts, strict=True
                ):
                    assert draws.setdefault((epoch, item), refusal) == refusal
                    assert ids[ids != -100].tolist() == answers[refusal]
        assert len(draws) == 21
        return draws

    first = drawn()
    assert drawn(per_device_train_batch_size=3) == first
    assert drawn(train_sampling_strategy="group_by_length") == first
    assert drawn(seed=43) != first
    epochs = [[first[epoch, item] for item in range(7)] for epoch in range(3)]
    assert epochs[0] != epochs[1]
    # Without replacement: each of the three refusals is met two or three times in an epoch of seven.
    assert all({epoch.count(refusal) for refusal in range(3)} == {2, 3} for epoch in epochs)


# The reference.


@pytest.mark.parametrize("method", ["npo", "idk_dpo"])
def test_reference_values_are_those_of_the_model_without_its_adapter(method, tmp_path):
    # GPT-2 has dropout, so that values read in train mode would be random.
    plain = tiny_model("gpt2")
    trainer = make_trainer(method, tmp_path, model=tiny_model("gpt2"), num_train_epochs=2, n_forget=7)
    trainer.train()
    tokenize, rows = ExampleTokenizer(tiny_tokenizer()), tiny_rows(7)
    with torch.no_grad():
        forget = AnswerScores.of(answer_logits(plain, plain, collate(tokenize.all(rows), pad_id=0))).sums
        torch.testing.assert_close(trainer.reference.logps.forget_sums, forget, rtol=1e-5, atol=1e-4)
        if method == "npo":
            assert trainer.reference.logps.alternate_sums.shape == (7, 0)
            return
        for number, text in enumerate(REFUSALS):
            refused = collate(tokenize.all({**row, "answer": text} for row in rows), pad_id=0)
            sums = AnswerScores.of(answer_logits(plain, plain, refused)).sums
            ours = trainer.reference.logps.alternate_sums[:, number]
            torch.testing.assert_close(ours[~ours.isnan()], sums[~ours.isnan()], rtol=1e-5, atol=1e-4)
    # Only what the two epochs draw was scored.
    pairs = {(p.forget, p.alternate) for epoch in range(2) for p in trainer.sampler.plan(epoch)}
    assert int((~trainer.reference.logps.alternate_sums.isnan()).sum()) == len(pairs) < 21


@pytest.mark.parametrize(
    ("method", "retain_loss", "forwards"),
    [
        ("grad_ascent", "nll", 9),  # one per step
        ("simnpo", "nll", 2 * 9),  # one per term and step
        ("npo", "nll", 2 * 9 + 1),  # and the six answers once
        ("idk_dpo", "nll", 2 * 9 + 3),  # and the answers with the refusals that three epochs draw, eight a batch
        ("simnpo", "kl", 2 * 9 + 9),  # KL needs the reference's whole distribution, each step anew
    ],
)
def test_one_forward_per_term_and_one_pass_for_the_reference(method, retain_loss, forwards, tmp_path):
    trainer = make_trainer(method, tmp_path, num_train_epochs=3, retain_loss=retain_loss)
    calls = count_forwards(trainer.model)
    trainer.train()
    assert trainer.state.global_step == 9
    assert len(calls) == forwards


def test_npo_at_the_start_is_its_closed_form(tmp_path):
    trainer = make_trainer("npo", tmp_path, model=tiny_model("gpt_neox"), beta=0.3, learning_rate=0.0)
    trainer.train()
    assert [line["loss/forget"] for line in losses(trainer)] == pytest.approx([2 / 0.3 * math.log(2)] * 3, rel=1e-4)


def test_kl_is_zero_at_the_start_and_needs_no_second_model(tmp_path):
    trainer = make_trainer("simnpo", tmp_path, retain_loss="kl", num_train_epochs=2)
    assert trainer.ref_model is None
    trainer.train()
    kl = [line["loss/retain"] for line in losses(trainer)]
    assert kl[0] == pytest.approx(0, abs=1e-6)
    assert all(value > 1e-4 for value in kl[1:])


def test_full_fine_tuning_with_kl_reads_the_given_reference(tmp_path):
    reference = tiny_model().train()  # in whatever mode it comes
    trainer = make_trainer("npo", tmp_path, lora=False, retain_loss="kl", ref_model=reference, learning_rate=1e-3)
    before = probe_logits(reference)
    trainer.train()
    assert losses(trainer)[0]["loss/retain"] == pytest.approx(0, abs=1e-6)
    assert losses(trainer)[2]["loss/retain"] > 1e-5
    assert torch.equal(probe_logits(reference), before)
    assert not reference.training
    assert not any(weight.requires_grad for weight in reference.parameters())


@pytest.mark.parametrize("stacked", [False, True], ids=["plain", "stacked"])
def test_the_reference_is_in_eval_mode_and_the_training_mode_comes_back_also_after_an_exception(stacked):
    model = attach_adapter(tiny_model("gpt2"), lora_config(r=2, lora_dropout=0.5), seed=0)
    if stacked:
        model = get_peft_model(tiny_model("gpt2"), lora_config(r=2), "reference_0")
        model = attach_adapter(model, lora_config(r=2, lora_dropout=0.5), seed=0)
    trained = set(trained_weights(model))
    for training in (True, False):
        model.train(training)
        with reference_model(model, model, None) as reference:
            assert reference is model
            assert not any(module.training for module in model.modules())
        assert all(module.training == training for module in model.modules())
        with pytest.raises(KeyboardInterrupt), reference_model(model, model, None):
            raise KeyboardInterrupt
        assert all(module.training == training for module in model.modules())
        assert set(trained_weights(model)) == trained
        active = model.base_model.active_adapters
        assert active == (["reference_0", "default"] if stacked else ["default"])
        assert not any(module.disable_adapters for module in model.modules() if isinstance(module, LoraLayer))


def test_dropout_is_on_in_training_and_off_in_the_reference(tmp_path):
    trainer = make_trainer("simnpo", tmp_path, model=tiny_model("gpt2"), retain_loss="kl", learning_rate=0.0)
    trainer.train()
    # The adapter never moved, so this is what dropout does to the trained side alone.
    assert all(line["loss/retain"] > 1e-3 for line in losses(trainer))
    trainer.model.train()
    batch = next(iter(trainer.get_train_dataloader()))
    first, second = (trainer.reference.logits(trainer.model, batch["retain"]).logits for _ in range(2))
    assert torch.equal(first, second)


def test_without_a_reference_the_error_says_how_to_get_one(tmp_path):
    pairs = ForgetRetainDataset(ExampleTokenizer(tiny_tokenizer()).all(tiny_rows(4)))
    trainer = make_trainer("npo", tmp_path, lora=False, retain_coef=0.0, eval_dataset=pairs)
    with pytest.raises(ValueError, match=r"All weights are trained.*pass `ref_model`, or train an adapter"):
        trainer.evaluate()


# The retain term.


def test_with_retain_coef_0_no_retain_data_is_read(tmp_path):
    class Untouchable:
        def __iter__(self):
            raise AssertionError("retain data was read")

        __len__ = __getitem__ = __bool__ = __iter__

    trainer = NPOTrainer(
        tiny_model(),
        config(retain_coef=0.0, per_device_train_batch_size=2),
        tiny_rows(3),
        tiny_tokenizer(),
        retain_dataset=Untouchable(),
        peft_config=lora_config(r=2),
    )
    assert trainer.train_dataset.retain == []
    assert {name for batch in trainer.get_train_dataloader() for name in batch} == {"forget"}


# Errors, from config and trainer.


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (NPOConfig, {"forget_coef": 0.0}, r"`forget_coef` is 0.0; it must be positive"),
        (NPOConfig, {"forget_coef": math.nan}, r"`forget_coef` is nan; it must be positive"),
        (NPOConfig, {"retain_coef": -1.0}, r"`retain_coef` is -1.0; it must be 0 .* or positive"),
        (NPOConfig, {"retain_coef": math.nan}, r"`retain_coef` is nan"),
        (NPOConfig, {"retain_loss": "mse"}, r"`retain_loss` is 'mse'.*'nll'.*'kl'"),
        (
            NPOConfig,
            {"retain_loss": "kl", "reference_top_k": 0},
            r"`reference_top_k` is 0; it must be at least 1 token",
        ),
        (NPOConfig, {"reference_top_k": 8}, r"`reference_top_k` is 8 but no KL.*`--retain_loss kl`.*unset"),
        (ICUConfig, {"reference_top_k": 8, "kl_coef": 0.0}, r"`reference_top_k` is 8 but no KL.*`--kl_coef`"),
        (NPOConfig, {"max_weight_growth": 1.0}, r"`max_weight_growth` is 1.0; it is a factor and must be above 1"),
        (NPOConfig, {"max_retain_loss": 0.0}, r"`max_retain_loss` is 0.0.*positive"),
        (NPOConfig, {"train_sampling_strategy": "sequential"}, r"'sequential'; pairs are drawn by 'random' or"),
        (NPOConfig, {"remove_unused_columns": True}, r"`remove_unused_columns` must stay False"),
        (NPOConfig, {"restore_callback_states_from_checkpoint": True}, r"must stay False: it makes callbacks anew"),
        (NPOConfig, {"beta": 0.0}, r"`beta` is 0.0; it must be positive"),
        (SimNPOConfig, {"beta": -1.0}, r"`beta` is -1.0; it must be positive"),
        (SimNPOConfig, {"delta": -0.1}, r"`delta` is -0.1; it is a loss in nats"),
        (AscentConfig, {"forget_cap": "log"}, r"`forget_cap` is 'log'; give 'ln_vocab', 'none' or a positive number"),
        (AscentConfig, {"forget_cap": "-3"}, r"`forget_cap` is '-3'"),
        (AscentConfig, {"forget_cap": "inf"}, r"`forget_cap` is 'inf'"),
        (GradAscentConfig, {"retain_coef": 1.0}, r"gradient ascent has no retain term: use `grad_diff`"),
    ],
)
def test_a_bad_field_is_refused_before_anything_is_loaded(cls, options, message):
    with pytest.raises(ValueError, match=message):
        config(cls, **options)


@pytest.mark.parametrize("method", [method for method in METHODS if method != "grad_ascent"])
def test_a_retain_term_without_retain_set_is_refused(method, tmp_path):
    with pytest.raises(ValueError, match=r"`retain_coef` is 1.0 but no retain set.*`retain_dataset`.*to 0"):
        make_trainer(method, tmp_path, n_retain=0)


def make_npo(model, **options):
    return NPOTrainer(
        model,
        config(num_train_epochs=2, warmup_steps=0),
        tiny_rows(2),
        tiny_tokenizer(),
        **({"retain_dataset": tiny_rows(2, first=9)} | options),
    )


def test_missing_parts_are_named(tmp_path):
    with pytest.raises(ValueError, match="IdkDPO needs replacement answers and got none: pass `refusals`"):
        METHODS["idk_dpo"].load()[1](
            tiny_model(),
            config(METHODS["idk_dpo"].load()[0]),
            tiny_rows(2),
            tiny_tokenizer(),
            retain_dataset=tiny_rows(2, first=9),
            peft_config=lora_config(),
        )
    with pytest.raises(ValueError, match="forget set is empty.*--forget_split"):
        make_trainer("npo", tmp_path, n_forget=0)
    with pytest.raises(
        ValueError, match=r"retain term is a KL and all weights.*`ref_model`.*--reference_top_k.*--use_peft"
    ):
        make_trainer("npo", tmp_path, lora=False, retain_loss="kl")
    with pytest.raises(ValueError, match=r"`reference_top_k` is 121 and the model knows 120 tokens.*unset"):
        make_trainer("npo", tmp_path, retain_loss="kl", reference_top_k=121)
    with pytest.raises(NotImplementedError, match="UnlearningTrainer defines no `forget_loss`"):
        UnlearningTrainer(
            tiny_model(), config(retain_coef=0.0), tiny_rows(2), tiny_tokenizer(), peft_config=lora_config()
        ).train()


def test_a_model_whose_adapter_cannot_be_trained_is_refused(tmp_path):
    attach_adapter(tiny_model(), lora_config(r=2), seed=0).save_pretrained(tmp_path)
    frozen = PeftModel.from_pretrained(tiny_model(), tmp_path)
    with pytest.raises(ValueError, match=r"adapter 'default'.*`llm_unlearn.load_model`"):
        make_npo(frozen, peft_config=lora_config())
    with pytest.raises(
        ValueError, match=r"comes with a frozen adapter: load it with `llm_unlearn.load_model` and pass"
    ):
        make_npo(PeftModel.from_pretrained(tiny_model(), tmp_path, adapter_name="reference_0"))
    with pytest.raises(ValueError, match=r"comes with a frozen adapter"):
        make_npo(frozen)


def test_several_gpus_in_one_process_are_refused(monkeypatch):
    monkeypatch.setattr(UnlearningConfig, "n_gpu", property(lambda _: 2))
    with pytest.raises(ValueError, match="2 GPUs are visible to one process.*accelerate launch.*CUDA_VISIBLE_DEVICES"):
        make_npo(tiny_model())


# Defaults.


def test_learning_rate_defaults(tmp_path):
    for lora, value in [(True, 1e-4), (False, 1e-5)]:
        trainer = make_trainer("npo", tmp_path, lora=lora, learning_rate=None, max_steps=1)
        trainer.train()
        assert losses(trainer)[0]["learning_rate"] == value
    assert make_trainer("npo", tmp_path, learning_rate=3e-4).args.learning_rate == 3e-4


def test_warm_up_counts_optimiser_steps(tmp_path):
    """Two steps of warm-up are two steps of the optimiser, whatever the accumulation."""
    for accumulation, warmup in [(1, 2), (2, 2), (2, 0.5)]:
        trainer = make_trainer(
            "simnpo",
            tmp_path,
            n_forget=8,
            max_steps=4,
            gradient_accumulation_steps=accumulation,
            warmup_steps=warmup,
            learning_rate=1e-3,
        )
        trainer.train()
        rates = [line["learning_rate"] for line in losses(trainer)]
        assert rates == pytest.approx([0, 5e-4, 1e-3, 5e-4]), (accumulation, warmup)


def test_ascent_stops_at_its_cap(tmp_path):
    trainer = make_trainer("grad_ascent", tmp_path, forget_cap="2.0")
    trainer.train()
    # Every answer of a random model is beyond two nats: the loss is the cap and nothing moves.
    assert [line["loss/forget"] for line in losses(trainer)] == [-2.0] * 3
    assert [line["grad_norm"] for line in losses(trainer)] == [0.0] * 3
    assert AscentConfig.resolve_forget_cap(trainer.args, 120) == 2.0
    assert config(AscentConfig).resolve_forget_cap(120) == math.log(120)
    assert config(AscentConfig, forget_cap="none").resolve_forget_cap(120) is None


def test_checkpointed_activations_give_the_same_step(tmp_path):
    results = []
    for checkpointing in (False, True):
        trainer = make_trainer(
            "npo", tmp_path, retain_loss="kl", activation_checkpointing=checkpointing, learning_rate=1e-3
        )
        trainer.train()
        assert trainer.model.get_base_model().is_activation_checkpointing == checkpointing
        results.append((trained_weights(trainer.model), [line["loss"] for line in losses(trainer)]))
    assert_close(results[1][0], results[0][0], atol=1e-6)
    assert results[1][1] == pytest.approx(results[0][1], rel=1e-6)


# Evaluation.


@pytest.mark.parametrize("during_training", [False, True], ids=["alone", "during training"])
def test_evaluate_is_the_mean_over_the_pairs(during_training, tmp_path):
    tokenize = ExampleTokenizer(tiny_tokenizer())
    forget, retain = tiny_rows(5, first=50), tiny_rows(4, first=60)
    pairs = ForgetRetainDataset(tokenize.all(forget), tokenize.all(retain))
    during = {"eval_strategy": "steps", "eval_steps": 2, "max_steps": 2} if during_training else {}
    trainer = make_trainer(
        "npo", tmp_path, eval_dataset=pairs, per_device_eval_batch_size=2, retain_coef=2.0, beta=0.4, **during
    )
    if during_training:
        trainer.train()
        value = next(line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line)
        assert [line["step"] for line in losses(trainer)] == [1, 2]
    else:
        value = trainer.evaluate()["eval_loss"]

    model = trainer.model.eval()
    plan = trainer._get_eval_sampler(pairs).plan(0)
    total = 0.0
    for pair in [pair for pair in plan if pair.forget_weight]:
        scores = []
        for items, number in ((pairs.forget, pair.forget), (pairs.retain, pair.retain)):
            with torch.no_grad():
                half = collate([items[number]], pad_id=0)
                scores.append(AnswerScores.of(answer_logits(model, model, half)))
                if items is pairs.forget:
                    with without_newest_adapter(model):
                        before = AnswerScores.of(answer_logits(model, model, half)).sums
        total += float(npo_loss(scores[0].sums, before, 0.4)) - 2.0 * float(scores[1].means)
    assert value == pytest.approx(total / 5, rel=1e-5)


def test_evaluation_leaves_the_run_as_it_is(tmp_path):
    tokenize = ExampleTokenizer(tiny_tokenizer())
    pairs = ForgetRetainDataset(tokenize.all(tiny_rows(3, first=50)), tokenize.all(tiny_rows(3, first=60)))
    with_eval = make_trainer("npo", tmp_path, eval_dataset=pairs, eval_strategy="steps", eval_steps=1)
    without = make_trainer("npo", tmp_path)
    with_eval.train()
    without.train()
    assert_equal(trained_weights(with_eval.model), trained_weights(without.model))
    assert [line["loss/forget"] for line in losses(with_eval)] == [line["loss/forget"] for line in losses(without)]


# Runs that follow one another in a session.


def test_a_run_after_an_interrupted_one_logs_its_own_steps_only(tmp_path):
    def interrupt():
        raise KeyboardInterrupt

    trainer = make_trainer("npo", tmp_path, logging_steps=2, learning_rate=0.0, callbacks=[stop := At(1, interrupt)])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    stop.step = -1
    trainer.train()
    fresh = make_trainer("npo", tmp_path, logging_steps=2, learning_rate=0.0)
    fresh.train()
    assert [line["logps/forget"] for line in losses(trainer)] == [line["logps/forget"] for line in losses(fresh)]


def test_a_longer_second_run_reads_the_reference_of_what_it_draws(tmp_path):
    trainer = make_trainer("idk_dpo", tmp_path, num_train_epochs=1)
    trainer.train()
    trainer.args.num_train_epochs = 4
    trainer.train()
    assert trainer.guard.reason is None
    assert len(losses(trainer)) == 12


def test_an_adapter_that_the_user_put_on_is_trained_and_is_not_part_of_the_reference():
    model = get_peft_model(tiny_model(), lora_config(r=2))
    before = probe_logits(model)
    trainer = make_npo(model)
    assert trainer.model is model
    trainer.train()
    with reference_model(model, model, None) as reference:
        assert torch.equal(probe_logits(reference), before)
    assert not torch.equal(probe_logits(model), before)


def test_lora_config_of_the_user_is_respected(tmp_path):
    trainer = make_npo(tiny_model(), peft_config=LoraConfig(r=3, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    names = set(trained_weights(trainer.model))
    assert len(names) == 4
    assert all("q_proj" in name for name in names)
