"""Evaluation while a run trains: what it logs, which weights it keeps, when it stops; resuming changes nothing."""

import pytest
import torch
from runs import assert_equal, make_trainer, trained_weights
from safetensors.torch import load_file
from tiny import tiny_rows, tiny_tokenizer
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from llm_unlearn.data.tokenization import ExampleTokenizer
from llm_unlearn.evaluation.callback import BEST_NAME, EvaluationCallback
from llm_unlearn.evaluation.evaluator import Evaluator
from llm_unlearn.evaluation.sets import EvalSet

TOKENIZE = ExampleTokenizer(tiny_tokenizer())
OBJECTIVE = "retain/exact_memorization"


def evaluator(tier="train"):
    sets = [EvalSet.of("forget", tiny_rows(6), TOKENIZE), EvalSet.of("retain", tiny_rows(8, first=20), TOKENIZE)]
    return Evaluator(TOKENIZE, sets, tier, progress=False)


def run(folder, callback, **options):
    """Three steps an epoch."""
    trainer = make_trainer("grad_diff", folder, **({"num_train_epochs": 4} | options))
    callback.attach(trainer)
    return trainer


def evaluations(trainer):
    return [line for line in trainer.state.log_history if "eval/forget/probability" in line]


def snapshots(monkeypatch):
    """The trained weights at each evaluation, by step."""
    seen = {}
    plain = EvaluationCallback._evaluate

    def watched(self, args, state, control, model):
        seen[state.global_step] = trained_weights(model)
        plain(self, args, state, control, model)

    monkeypatch.setattr(EvaluationCallback, "_evaluate", watched)
    return seen


@pytest.mark.parametrize(("every", "steps"), [(None, [3, 6, 9, 12]), (5, [5, 10])])
def test_it_evaluates_per_epoch_or_every_n_steps_and_logs_what_it_measured(every, steps, tmp_path):
    trainer = run(tmp_path, EvaluationCallback(evaluator(), every))
    alone = make_trainer("grad_diff", tmp_path / "alone", num_train_epochs=4)
    trainer.train()
    alone.train()
    lines = evaluations(trainer)
    assert [line["step"] for line in lines] == steps
    # Looking changes nothing: the run ends where one ends that is never looked at, in train mode.
    assert_equal(trained_weights(trainer.model), trained_weights(alone.model))
    assert trainer.model.training
    if every is None:
        expected = evaluator().evaluate(trainer.model)
        measured = {f"eval/{name}": r.value for name, r in expected.metrics.items() if r.value is not None}
        logged = {key: value for key, value in lines[-1].items() if key.startswith("eval/")}
        assert logged == pytest.approx(measured)
    assert not (tmp_path / BEST_NAME).exists()


@pytest.mark.parametrize(
    ("objective", "pick"), [("retain/exact_memorization", max), ("forget/extraction_strength", min)]
)
def test_the_best_weights_are_put_back(objective, pick, tmp_path, monkeypatch):
    seen = snapshots(monkeypatch)
    callback = EvaluationCallback(evaluator(), objective=objective)
    # Steps this large wander, so that the last is not the best by itself.
    trainer = run(tmp_path, callback, learning_rate=0.1, max_retain_loss=1e9)
    trainer.train()
    history = dict(callback.history)
    assert list(history) == list(seen) == [3, 6, 9, 12]
    best = next(step for step, value in history.items() if value == pick(history.values()))
    assert callback.best_step == best
    assert_equal(trained_weights(trainer.model), seen[best])
    assert trainer.state.log_history[-1]["eval/best_step"] == best
    assert len({tuple(w.flatten()[:3].tolist()) for step in seen.values() for w in [next(iter(step.values()))]}) == 4


def test_the_first_of_equals_is_kept():
    callback = EvaluationCallback(evaluator(), objective="forget/probability")
    callback.history = [(3, 0.5), (6, 0.2), (9, 0.2)]
    assert callback.best_step == 6
    callback = EvaluationCallback(evaluator(), objective="retain/probability")
    callback.history = [(3, 0.5), (6, 0.2), (9, 0.5)]
    assert callback.best_step == 3


def script(callback, values, monkeypatch):
    """Make the callback's evaluator report these values of its objective, one after another."""
    plain, values = callback.evaluator.evaluate, iter(values)

    def scripted(model):
        report = plain(model)
        object.__setattr__(report.metrics[callback.objective], "value", next(values))
        return report

    monkeypatch.setattr(callback.evaluator, "evaluate", scripted)


def test_it_stops_when_nothing_improves(tmp_path, monkeypatch):
    callback = EvaluationCallback(evaluator(), objective="retain/probability", patience=2)
    script(callback, [0.5, 0.7, 0.6, 0.7, 0.9], monkeypatch)
    trainer = run(tmp_path, callback, num_train_epochs=5)
    trainer.train()
    # 0.7 at step 6, then two evaluations that are no better.
    assert callback.history == [(3, 0.5), (6, 0.7), (9, 0.6), (12, 0.7)]
    assert trainer.state.global_step == 12
    assert callback.best_step == 6


# After the first of the epochs, and after the last but one; in between it is the same.
@pytest.mark.parametrize("resume_at", [3, pytest.param(6, marks=pytest.mark.slow), 9])
def test_a_resumed_run_knows_what_was_best(resume_at, tmp_path):
    def start(folder):
        callback = EvaluationCallback(evaluator(), objective="retain/probability")
        options = {"save_strategy": "epoch", "save_total_limit": 9, "learning_rate": 0.1, "max_retain_loss": 1e9}
        return run(folder, callback, **options), callback

    whole, expected = start(tmp_path / "whole")
    whole.train()
    resumed, callback = start(tmp_path / "whole")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{resume_at}"))
    assert callback.history == expected.history
    for name, weight in trained_weights(resumed.model).items():
        torch.testing.assert_close(weight, trained_weights(whole.model)[name], atol=1e-6, rtol=0)


def test_a_collapsed_evaluation_is_never_the_best(tmp_path, monkeypatch):
    callback = EvaluationCallback(evaluator(), objective="retain/probability")
    trainer = run(tmp_path, callback, num_train_epochs=1)
    head = trainer.model.get_output_embeddings().weight
    monkeypatch.setattr(callback, "_trainer", trainer)
    with torch.no_grad():
        head[3] = float("nan")
    callback._evaluate(trainer.args, trainer.state, trainer.control, trainer.model)
    assert callback.history == [(trainer.state.global_step, None)]
    assert callback.best_step is None


def test_what_cannot_be_done_is_said_before_training():
    with pytest.raises(ValueError, match="`every` is 0"):
        EvaluationCallback(evaluator(), every=0)
    with pytest.raises(ValueError, match="name the `--objective`"):
        EvaluationCallback(evaluator(), patience=2)
    with pytest.raises(ValueError, match="Neither direction of `forget/zrf` is better|`forget/zrf` was asked for"):
        EvaluationCallback(evaluator("full"), objective="forget/zrf")
    with pytest.raises(ValueError, match="the train tier generates no answers on forget"):
        EvaluationCallback(evaluator(), objective="forget/rouge_l_recall")
    with pytest.raises(ValueError, match="`forget_quality` was asked for by name, but is not measured"):
        EvaluationCallback(evaluator(), objective="forget_quality")
    with pytest.raises(ValueError, match="Did you mean"):
        EvaluationCallback(evaluator(), objective="model_utlity")


def test_collapsed_evaluations_wear_patience_out(tmp_path, monkeypatch):
    callback = EvaluationCallback(evaluator(), objective="retain/probability", patience=2)
    script(callback, [0.5, None, None, 0.9], monkeypatch)
    trainer = run(tmp_path, callback)
    trainer.train()
    assert callback.history == [(3, 0.5), (6, None), (9, None)]
    assert trainer.state.global_step == 9
    assert callback.best_step == 3


class Killed(Exception):
    """The end of a process."""


class KillAt(TrainerCallback):
    """Ends the run at an event of a step, before the evaluation that this event brings."""

    def __init__(self, event, step):
        self.step = step
        setattr(self, event, self._kill)

    def _kill(self, args, state, control, **_):
        if state.global_step == self.step:
            raise Killed


def killed_and_resumed(folder, event, step, make_callback, first=(), then=(), **options):
    """A run killed at an event of a step, which left a checkpoint there, and resumed from it; trainer and callback."""
    options = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1} | options
    callback = make_callback(*first)
    with pytest.raises(Killed):
        run(folder, callback, callbacks=[KillAt(event, step)], **options).train()
    assert get_last_checkpoint(folder).endswith(f"checkpoint-{step}")
    callback = make_callback(*then)
    trainer = run(folder, callback, **options)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(folder))
    return trainer, callback


# Each event in one epoch, with and without an objective; the same in other epochs is left to `-m slow`.
@pytest.mark.parametrize(
    ("every", "event", "step", "objective"),
    [
        # Between the checkpoint of an epoch's last step and the evaluation of the epoch; then after that evaluation,
        # of which the checkpoint does not know.
        (None, "on_epoch_end", 3, None),
        (None, "on_epoch_end", 6, OBJECTIVE),
        pytest.param(None, "on_epoch_end", 9, None, marks=pytest.mark.slow),
        (None, "on_epoch_end", 12, OBJECTIVE),
        (None, "on_epoch_begin", 6, OBJECTIVE),
        (None, "on_step_begin", 7, None),
        # An evaluation every N steps comes before the checkpoint of its step, which therefore knows of it.
        (3, "on_epoch_end", 6, OBJECTIVE),
        (2, "on_step_begin", 4, None),
        # With an objective where there was none above, and the other way round.
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                (None, "on_epoch_end", 3, OBJECTIVE),
                (None, "on_epoch_end", 6, None),
                (None, "on_epoch_end", 9, OBJECTIVE),
                (None, "on_epoch_end", 12, None),
                (None, "on_epoch_begin", 6, None),
                (None, "on_step_begin", 7, OBJECTIVE),
                (3, "on_epoch_end", 6, None),
                (2, "on_step_begin", 4, OBJECTIVE),
            ]
        ),
    ],
)
def test_a_run_killed_after_a_checkpoint_misses_and_repeats_no_evaluation(every, event, step, objective, tmp_path):
    steps = {"learning_rate": 0.1, "max_retain_loss": 1e9}
    expected = EvaluationCallback(evaluator(), every, objective)
    whole = run(tmp_path / "whole", expected, **steps)
    whole.train()
    resumed, callback = killed_and_resumed(
        tmp_path / "killed", event, step, lambda: EvaluationCallback(evaluator(), every, objective), **steps
    )
    assert callback.history == expected.history
    assert [line["step"] for line in evaluations(resumed)] == list(range(every or 3, 13, every or 3))
    for ours, theirs in zip(evaluations(resumed), evaluations(whole), strict=True):
        assert ours == pytest.approx(theirs)
    assert_equal(trained_weights(resumed.model), trained_weights(whole.model))
    if objective:
        best, theirs = (load_file(tmp_path / name / BEST_NAME) for name in ("killed", "whole"))
        assert_equal(best, theirs)
        assert_equal(best, trained_weights(resumed.model))


@pytest.mark.parametrize(
    ("event", "known", "left"),
    [
        # Before the evaluation that patience has been waiting for, and after it: the checkpoint of the epoch's end.
        ("on_epoch_end", [0.5, 0.7, 0.6], [0.7]),
        ("on_train_end", [0.5, 0.7, 0.6, 0.7], []),
    ],
)
def test_a_resumed_run_has_no_more_patience_than_the_first(event, known, left, tmp_path, monkeypatch):
    def make_callback(*values):
        callback = EvaluationCallback(evaluator(), objective="retain/probability", patience=2)
        script(callback, values, monkeypatch)
        return callback

    seen = snapshots(monkeypatch)
    trainer, callback = killed_and_resumed(
        tmp_path, event, 12, make_callback, known, left, num_train_epochs=6,
        save_strategy="epoch" if event == "on_train_end" else "steps",
    )  # fmt: skip
    assert callback.history == [(3, 0.5), (6, 0.7), (9, 0.6), (12, 0.7)]
    assert trainer.state.global_step == 13
    assert_equal(trained_weights(trainer.model), seen[6])
