"""The guard ends a run that goes wrong, keeps the last adapter that was still good, and leaves good runs alone."""

import json
import math

import pytest
import torch
from runs import assert_equal, losses, make_trainer, trained_weights
from transformers import TrainerCallback

from llm_unlearn.progress import LOG_NAME, RunLog


class Snapshots(TrainerCallback):
    """The trained weights as each step finds them: `before[k]` is what step k + 1 computes its loss with."""

    def __init__(self):
        self.before = []

    def on_step_begin(self, args, state, control, model, **_):
        self.before.append(trained_weights(model))


@pytest.fixture
def warnings_logged(caplog):
    """What the guard told so far."""
    return lambda: [record.getMessage() for record in caplog.records if record.name == "llm_unlearn.guard"]


def poison(trainer, step, value=math.nan):
    """Let the forget loss be `value` from step `step` on."""
    inner = trainer.forget_loss

    def forget_loss(forget, **scores):
        loss = inner(forget, **scores)
        return loss * value if trainer.state.global_step + 1 >= step else loss

    trainer.forget_loss = forget_loss


@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_loss_that_is_not_finite_ends_the_run_with_the_last_good_adapter(
    value, accumulation, tmp_path, warnings_logged
):
    snapshots = Snapshots()
    trainer = make_trainer(
        "npo",
        tmp_path,
        n_forget=12,
        num_train_epochs=4,
        gradient_accumulation_steps=accumulation,
        callbacks=[snapshots, RunLog(tmp_path)],
    )
    poison(trainer, step=4, value=value)
    trainer.train()
    assert trainer.state.global_step == 4
    assert trainer.guard.reason == f"loss/forget is {value}"
    # Step 3 was the last with a good loss, so the weights it was computed with are the last known to be good.
    assert_equal(trained_weights(trainer.model), snapshots.before[2])
    assert not torch.equal(*(next(iter(snapshots.before[step].values())) for step in (2, 3)))
    assert warnings_logged() == [
        f"Run stopped at step 4: loss/forget is {value}; the adapter of the last good step was kept."
    ]
    # JSON knows no NaN, and the log file must be readable by anything.
    lines = (tmp_path / LOG_NAME).read_text().splitlines()
    parsed = [json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} in the log")) for line in lines]
    assert [line["step"] for line in parsed] == [1, 2, 3, 4, 4]
    assert parsed[3]["loss/forget"] is None


def test_a_run_that_is_bad_from_the_first_step_stays_where_it_started(tmp_path, warnings_logged):
    trainer = make_trainer("npo", tmp_path)
    start = trained_weights(trainer.model)
    poison(trainer, step=1)
    trainer.train()
    assert_equal(trained_weights(trainer.model), start)
    assert "step 1: loss/forget is nan" in warnings_logged()[0]


def test_gradients_that_are_not_finite_show_in_the_next_step(tmp_path):
    """The loss of the step is fine, its gradient is not: the weights are spoilt once, and brought back."""
    snapshots = Snapshots()
    trainer = make_trainer("npo", tmp_path, n_forget=10, callbacks=[snapshots])
    weight = next(weight for weight in trainer.model.parameters() if weight.requires_grad)
    weight.register_hook(lambda grad: grad * math.nan if trainer.state.global_step == 2 else grad)
    trainer.train()
    assert trainer.state.global_step == 4
    assert trainer.guard.reason.endswith(" is nan")
    assert_equal(trained_weights(trainer.model), snapshots.before[2])


def test_weights_that_are_not_finite_after_the_last_step(tmp_path, warnings_logged):
    snapshots = Snapshots()
    trainer = make_trainer("npo", tmp_path, callbacks=[snapshots])
    weight = next(weight for weight in trainer.model.parameters() if weight.requires_grad)
    weight.register_hook(lambda grad: grad * math.nan if trainer.state.global_step == 2 else grad)
    trainer.train()
    assert trainer.state.global_step == 3
    assert trainer.guard.reason == "the weights are not finite"
    assert_equal(trained_weights(trainer.model), snapshots.before[2])
    assert warnings_logged() == [
        "Run stopped at step 3: the weights are not finite; the adapter of the last good step was kept."
    ]


@pytest.mark.parametrize("given", [None, 6.0], ids=["default limit", "given limit"])
def test_a_retain_loss_past_its_limit_ends_the_run(given, tmp_path, warnings_logged):
    snapshots = Snapshots()
    options = {"learning_rate": 0.3, "num_train_epochs": 20, "retain_coef": 1e-6, "max_retain_loss": given}
    trainer = make_trainer("grad_diff", tmp_path, callbacks=[snapshots], **options)
    trainer.train()
    steps = losses(trainer)
    limit = given or steps[0]["loss/retain"] + math.log(120) / 2
    assert len(steps) < 60
    assert all(line["loss/retain"] <= limit for line in steps[:-1])
    assert steps[-1]["loss/retain"] > limit
    reason = f"the retain loss {steps[-1]['loss/retain']:.3f} passed max_retain_loss {limit:.3f}"
    assert trainer.guard.reason == reason
    assert_equal(trained_weights(trainer.model), snapshots.before[len(steps) - 2])
    assert warnings_logged() == [
        f"Run stopped at step {len(steps)}: {reason}; the adapter of the last good step was kept."
    ]


@pytest.mark.parametrize("method", ["grad_ascent", "npo"])
def test_without_a_retain_term_the_growth_of_the_weights_is_watched(method, tmp_path, warnings_logged):
    snapshots = Snapshots()
    options = {"learning_rate": 0.5, "num_train_epochs": 20, "retain_coef": 0.0, "max_weight_growth": 3.0}
    trainer = make_trainer(method, tmp_path, callbacks=[snapshots], **options)
    trainer.train()

    def norm(weights):
        return math.sqrt(sum(float(weight.square().sum()) for weight in weights.values()))

    norms = [norm(weights) for weights in snapshots.before]
    assert len(norms) < 60
    assert all(value <= 3 * norms[0] for value in norms[:-1])
    assert norms[-1] > 3 * norms[0]
    assert trainer.guard.reason == (f"the weight norm grew {norms[-1] / norms[0]:.1f}-fold, past max_weight_growth 3")
    assert_equal(trained_weights(trainer.model), snapshots.before[-2])
    assert len(warnings_logged()) == 1


def test_with_a_retain_term_growth_is_not_watched(tmp_path):
    trainer = make_trainer("npo", tmp_path, max_weight_growth=1.0001)
    trainer.train()
    assert trainer.guard.reason is None


def test_full_fine_tuning_names_the_last_checkpoint(tmp_path, warnings_logged):
    trainer = make_trainer("npo", tmp_path, lora=False, learning_rate=1e-3, num_train_epochs=2)
    snapshots = Snapshots()
    trainer.add_callback(snapshots)
    poison(trainer, step=4)
    trainer.train()
    assert warnings_logged() == [
        "Run stopped at step 4: loss/forget is nan; nothing was restored; go back to the last checkpoint."
    ]
    # The bad step itself was not taken.
    assert_equal(trained_weights(trainer.model), snapshots.before[3])


@pytest.mark.parametrize("strategy", ["epoch", "steps"])
@pytest.mark.parametrize("spoilt", ["loss", "weights"])
def test_no_checkpoint_of_a_run_gone_wrong_replaces_the_last_good_one(spoilt, strategy, tmp_path):
    """One checkpoint is kept, and a run that was stopped can go on from it."""
    options = {"lora": False, "learning_rate": 1e-3, "num_train_epochs": 2, "save_strategy": strategy, "save_steps": 1}
    trainer = make_trainer("npo", tmp_path, **options)
    if spoilt == "loss":
        poison(trainer, step=4)
    else:
        weight = next(trainer.model.parameters())
        # Spoilt by the last step of an epoch, so that no later loss of that epoch would show it.
        step = 5 if strategy == "epoch" else 3
        weight.register_hook(lambda grad: grad * math.nan if trainer.state.global_step == step else grad)
    trainer.train()
    assert trainer.guard.reason is not None
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]
    resumed = make_trainer("npo", tmp_path, **options)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.guard.reason is None
    assert resumed.state.global_step == 6


def test_a_good_run_is_untouched(tmp_path, warnings_logged):
    guarded, free = (make_trainer("npo", tmp_path, num_train_epochs=2) for _ in range(2))
    guarded.train()
    free.guard._judge = lambda losses: None
    free.guard._remember = lambda: None
    free.train()
    assert guarded.guard.reason is None
    assert warnings_logged() == []
    assert_equal(trained_weights(guarded.model), trained_weights(free.model))
    assert losses(guarded) == losses(free)


def test_a_resumed_run_measures_from_the_start_of_the_first(tmp_path):
    options = {"num_train_epochs": 3, "save_strategy": "epoch", "learning_rate": 0.05}
    first = make_trainer("npo", tmp_path, **options)
    first.train()
    second = make_trainer("npo", tmp_path, **(options | {"num_train_epochs": 4}))
    second.train(resume_from_checkpoint=True)
    assert second.guard.start_norm == first.guard.start_norm
    assert second.guard.start_retain == first.guard.start_retain == losses(first)[0]["loss/retain"]
    assert first.guard._norm() > 1.2 * first.guard.start_norm, "else this would prove nothing"

    # A limit that the second half alone would keep: nothing grows threefold there, but from the start it has.
    grown = first.guard._norm() / first.guard.start_norm
    options |= {"retain_coef": 0.0, "max_weight_growth": (1 + grown) / 2}
    third = make_trainer("npo", tmp_path, **(options | {"num_train_epochs": 5}))
    third.train(resume_from_checkpoint=True)
    assert "past max_weight_growth" in third.guard.reason
    assert third.guard.start_norm == first.guard.start_norm


def test_a_second_run_of_the_same_trainer_starts_with_a_clean_guard(tmp_path):
    trainer = make_trainer("npo", tmp_path)
    inner = trainer.forget_loss
    poison(trainer, step=2)
    trainer.train()
    assert trainer.guard.reason is not None
    trainer.forget_loss = inner
    trainer.train()
    assert trainer.guard.reason is None
    assert trainer.state.global_step == 3
