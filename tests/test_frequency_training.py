"""Weights of forget rows by count, and buckets that leave the loss at a common target."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from recipe import refused, run_on_two_processes, run_recipe, save_tiny_model, write_rows
from runs import assert_close, assert_equal, losses, make_trainer, trained_weights
from safetensors.torch import load_file
from scipy.optimize import brentq
from scripts.sharded_frequency import COUNTS, RUNS, hooked, looks, train
from tiny import tiny_rows

from llm_unlearn.config import UnlearningConfig
from llm_unlearn.data.pairing import ItemWeights
from llm_unlearn.exposures import Exposures, rows_per_fact
from llm_unlearn.frequency.callback import FrequencyHook
from llm_unlearn.frequency.counts import counts_of_rows
from llm_unlearn.frequency.plan import FrequencyPlan
from llm_unlearn.frequency.weights import frequency_weights, log_counts
from llm_unlearn.methods import METHODS

HERE = Path(__file__).parent


def config(**options):
    return UnlearningConfig(output_dir=".", use_cpu=True, report_to="none", **options)


# Weights.


@pytest.mark.parametrize(
    ("kappa", "expected"),
    [
        # x = 0, 0, 1, 1 has mean 1/2 and deviation 1/2: z = -1, -1, 1, 1. Within the bounds w is 1 + kappa z.
        (0.5, [0.5, 0.5, 1.5, 1.5]),
        (-0.5, [1.5, 1.5, 0.5, 0.5]),
        # 1 + 2 z = -1, -1, 3, 3: the rare ones lie at .25, so the others have (4 - .5) / 2.
        (2.0, [0.25, 0.25, 1.75, 1.75]),
    ],
)
def test_weights_by_hand(kappa, expected):
    assert frequency_weights(log_counts([0, 0, 9, 9]), kappa) == pytest.approx(expected, abs=1e-12)


def test_a_clip_from_above_keeps_the_mean():
    """One of 20 rows is met 9 times: z is -.2294 and 4.3589, and 1 + z is .7706 and 5.3589.

    The frequent row lies at 4, so each other one has (20 - 4) / 19.
    """
    weights = frequency_weights(log_counts([0] * 19 + [9]), 1.0)
    assert weights == pytest.approx([16 / 19] * 19 + [4.0], abs=1e-12)


@pytest.mark.parametrize("kappa", [0.1, 0.7, 1.0, 3.0, -1.5])
def test_weights_keep_their_bounds_their_mean_and_their_proportion(kappa):
    x = log_counts(np.random.default_rng(0).lognormal(3, 2, size=200))
    weights = frequency_weights(x, kappa)
    assert weights.min() >= 0.25 and weights.max() <= 4 and weights.mean() == pytest.approx(1, abs=1e-12)
    raw = 1 + kappa * (x - x.mean()) / x.std()
    # By another way: the root of mean(clip(c raw)) = 1.
    c = brentq(lambda c: np.clip(c * raw, 0.25, 4).mean() - 1, 1e-6, 1e3, xtol=1e-14)
    assert weights == pytest.approx(np.clip(c * raw, 0.25, 4), abs=1e-9)
    free = (weights > 0.25) & (weights < 4)
    assert free.sum() > 20 and np.ptp(weights[free] / raw[free]) < 1e-9
    assert np.all(np.diff(weights[np.argsort(x)]) * np.sign(kappa) >= 0)


def test_counts_from_which_no_weight_follows():
    with pytest.raises(ValueError, match=r"All 3 forget rows have the same count \(7\)"):
        frequency_weights(log_counts([7, 7, 7]), 1.0)
    with pytest.raises(ValueError, match=r"`freq_weight` 4 puts 90% of the forget rows at the lowest weight 0.25"):
        frequency_weights(log_counts([0] * 9 + [9]), 4.0)
    for bad in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="The count of forget row 1 is"):
            log_counts([1, bad])


# Counts.


def test_counts_come_from_a_column_a_record_or_a_table(tmp_path):
    rows = [{**row, "count": str(count)} for row, count in zip(tiny_rows(3), (5, 0, 2.5), strict=True)]
    assert counts_of_rows("count", rows) == [5, 0, 2.5]
    Exposures.of_run(rows_per_fact([*rows[:2], rows[0]]), 2).write(tmp_path)
    assert counts_of_rows(str(tmp_path), rows) == counts_of_rows(str(tmp_path / "exposures.json"), rows) == [4, 2, 0]
    table = write_rows(tmp_path / "counts.jsonl", [{"question": row["question"], "count": 7} for row in rows[::-1]])
    assert counts_of_rows(str(table), rows) == [7, 7, 7]


def test_rows_that_no_record_has_are_told(tmp_path, caplog):
    rows = tiny_rows(3)
    Exposures.of_run(rows_per_fact(rows[:2]), 1).write(tmp_path)
    assert counts_of_rows(str(tmp_path), rows[:2]) == [1, 1] and not caplog.records
    assert counts_of_rows(str(tmp_path), rows) == [1, 1, 0]
    (record,) = caplog.records
    assert "1 of the 3 forget rows are not in the record" in record.getMessage()
    assert "the first is row 2." in record.getMessage()


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ([{"question": "Who?"}], "has no column `count`, only `question`"),
        ([{"question": "Who?", "count": 1}], "has no count of 3 of the 3 forget rows, the first is 'What does Ada"),
        ([{"question": "Who?", "count": 1}, {"question": "Who?", "count": 2}], "has two counts of 'Who"),
        ([{"question": "Who?", "count": "many"}], "in row 0 of .* is 'many': give a number"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(table, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        counts_of_rows(str(write_rows(tmp_path / "counts.jsonl", table)), tiny_rows(3))


def test_other_sources_of_counts_are_refused(tmp_path):
    rows = tiny_rows(3)
    with pytest.raises(ValueError, match="neither a column of the forget rows .*`value`.* nor a file"):
        counts_of_rows("frequency", rows)
    with pytest.raises(ValueError, match="Column `value` of forget row 0 is 'poet'"):
        counts_of_rows("value", rows)
    with pytest.raises(FileNotFoundError, match="exposures"):
        counts_of_rows(str(tmp_path), rows)
    Exposures.of_run({"other": 1}, 2).write(tmp_path)
    with pytest.raises(ValueError, match="None of the 3 forget rows is in the record"):
        counts_of_rows(str(tmp_path), rows)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"freq_weight": float("nan"), "freq_counts": "n"}, "`freq_weight` is nan"),
        ({"freq_stop": 1.0, "freq_counts": "n"}, "`freq_stop` is 1.0; it is the share"),
        ({"freq_weight": 1.0}, "need to know how often"),
        ({"freq_stop": 0.5}, "need to know how often"),
        ({"freq_counts": "n"}, "nothing uses counts: add `--freq_weight KAPPA`"),
        ({"freq_stop": 0.5, "freq_counts": "n", "freq_edges": [10.0, 5.0]}, "`freq_edges` is"),
        ({"freq_stop": 0.5, "freq_counts": "n", "freq_edges": [0.0]}, "`freq_edges` is"),
        ({"freq_weight": 0.5, "freq_counts": "n", "freq_edges": [3.0]}, "no bucket is stopped"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        config(**options)


def test_buckets_are_those_of_the_probe():
    rows = [{**row, "count": count} for row, count in zip(tiny_rows(10), COUNTS, strict=True)]
    plan = FrequencyPlan.of(config(freq_stop=0.5, freq_counts="count"), rows)
    assert plan.buckets == {"low": (0, 1, 2, 3), "medium": (4, 5, 6, 7), "high": (8, 9)}
    assert plan.ranges == {"low": (1, 2), "medium": (4, 8), "high": (16, 16)} and plan.weights is None
    plan = FrequencyPlan.of(config(freq_stop=0.5, freq_counts="count", freq_edges=[2.0]), rows)
    assert plan.buckets == {"below 2": (0, 1), "2 and more": (2, 3, 4, 5, 6, 7, 8, 9)}
    assert FrequencyPlan.of(config(freq_weight=1.0, freq_counts="count"), rows).buckets == {}
    with pytest.raises(ValueError, match="same count"):
        FrequencyPlan.of(config(freq_stop=0.5, freq_counts="count"), [{**row, "count": 3} for row in rows])


# Weighted steps.


def per_row(method, tmp_path, n):
    """Loss and log-probability of each forget row under the model before unlearning: steps of one, at rate 0."""
    trainer = make_trainer(method, tmp_path, n_forget=n, per_device_train_batch_size=1, learning_rate=0.0)
    trainer.train()
    order = [pair.forget for pair in trainer.sampler.plan(0)]
    lines = dict(zip(order, losses(trainer), strict=True))
    return tuple(np.array([lines[i][name] for i in range(n)]) for name in ("loss/forget", "logps/forget"))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("batch", [(4, 1), (2, 2)])
def test_a_step_is_the_plain_mean_of_weighted_losses(method, batch, tmp_path):
    """Ten rows in steps of four; weights are not divided by their sum over a step, which would undo them."""
    n, size = 10, 4
    loss, logps = per_row(method, tmp_path / "one", n)
    trainer = hooked(
        method, tmp_path / "all", freq_weight=1.0, learning_rate=0.0, num_train_epochs=1,
        per_device_train_batch_size=batch[0], gradient_accumulation_steps=batch[1],
    )  # fmt: skip
    # One clip: 1 + z is .0, .27, .77, 1.37, 2.0 and more; all by hand.
    x = np.log10(1 + np.array(COUNTS))
    raw = 1 + (x - x.mean()) / x.std()
    w = np.where(raw < 0.3, 0.25, raw * (10 - 0.25 * (raw < 0.3).sum()) / raw[raw >= 0.3].sum())
    assert w.mean() == pytest.approx(1) and w.min() == 0.25 and w.max() > 2
    assert trainer.item_weights.tolist() == pytest.approx(w.tolist(), abs=1e-6)
    trainer.train()
    order = [pair.forget for pair in trainer.sampler.plan(0)]
    for step, line in enumerate(losses(trainer)):
        real = order[:n][step * size : (step + 1) * size]
        assert line["loss/forget"] == pytest.approx((w[real] * loss[real]).mean(), rel=1e-4, abs=1e-5)
        assert line["logps/forget"] == pytest.approx(logps[real].mean(), rel=1e-4), "what is shown is not weighted"


def test_the_gradient_is_that_of_weighted_losses(tmp_path):
    """Two facts alone: the weighted gradient is half the sum of w_i times the gradient of each."""

    def gradient(counts, rows, weighted):
        options = {"per_device_train_batch_size": len(rows), "learning_rate": 1e-3, "lora": False}
        trainer = make_trainer("grad_ascent", tmp_path, n_forget=2, **options)
        if weighted:
            plan = FrequencyPlan(2, tuple(counts))
            FrequencyHook(trainer, plan, progress=False)
        batch = trainer.data_collator([trainer.train_dataset[pair] for pair in trainer.sampler.plan(0)
                                       if pair.forget in rows])  # fmt: skip
        batch["forget"]["weight"] = torch.ones(len(rows))
        trainer.model.train()
        trainer.compute_loss(trainer.model, batch).backward()
        return {name: p.grad for name, p in trainer.model.named_parameters()}

    ours = gradient([0.25, 1.75], [0, 1], True)
    first, second = gradient(None, [0], False), gradient(None, [1], False)
    for name in ours:
        torch.testing.assert_close(ours[name], (0.25 * first[name] + 1.75 * second[name]) / 2, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_weights_and_stops(method, tmp_path):
    options = {"per_device_train_batch_size": 5, "num_train_epochs": 3, "learning_rate": 3e-3}
    if method == "simnpo":
        options["beta"] = 0.1  # at its own value a random model's answers are far beyond what it pushes
    plain = make_trainer(method, tmp_path / "plain", n_forget=10, **options)
    plain.train()
    weighted = hooked(method, tmp_path / "weighted", freq_weight=1.0, freq_stop=0.999, **options)
    weighted.train()
    assert weighted.guard.reason is None and len(looks(weighted)) == 3
    assert set(weighted.hook.forgotten) == {"low", "medium", "high"}
    ours, theirs = trained_weights(weighted.model), trained_weights(plain.model)
    assert any((ours[name] - theirs[name]).abs().max() > 1e-4 for name in ours)


def test_a_hook_without_effect_changes_no_bit(tmp_path):
    """A target that is never reached: the looks and the table of flags leave the weights as they are."""
    plain = make_trainer("npo", tmp_path / "plain", n_forget=10, num_train_epochs=2)
    plain.train()
    watched = hooked("npo", tmp_path / "watched", freq_stop=0.999, num_train_epochs=2)
    watched.train()
    assert_equal(trained_weights(watched.model), trained_weights(plain.model))
    assert [line["loss"] for line in losses(watched)] == [line["loss"] for line in losses(plain)]
    assert watched.hook.outcome == "after 2 epochs these buckets had not lost enough: low, medium, high"


def test_a_loss_that_is_only_looked_at_is_not_weighted(tmp_path):
    trainer = hooked("npo", tmp_path, freq_weight=1.0)
    trainer.eval_dataset = trainer.train_dataset
    weighted = trainer.evaluate()["eval_loss"]
    trainer.item_weights = None
    assert trainer.evaluate()["eval_loss"] == weighted


# Buckets that stop.


def answer_probabilities(model, trainer):
    """By the plain way: exp of the mean log-probability of each forget answer."""
    model.eval()
    values = []
    for item in trainer.train_dataset.forget:
        ids = torch.tensor([item.input_ids])
        with torch.no_grad():
            logps = model(input_ids=ids).logits[0].log_softmax(-1)
        own = range(item.prompt_length, len(item.input_ids))
        values.append(float(torch.stack([logps[t - 1, ids[0, t]] for t in own]).mean().exp()))
    return np.array(values)


def test_a_bucket_leaves_the_loss_at_the_target_and_comes_back(tmp_path):
    method, options = RUNS["stopped"]
    trainer = hooked(method, tmp_path, per_device_train_batch_size=4, **options)
    before = answer_probabilities(trainer.model, trainer)
    seen = []
    log = trainer.log

    def note(logs, *rest):
        if "frequency/active" in logs:
            now = answer_probabilities(trainer.model, trainer)
            own = trainer.hook.plan.buckets
            lost = {name: 1 - now[list(rows)].mean() / before[list(rows)].mean() for name, rows in own.items()}
            assert {name: logs[f"frequency/{name}"] for name in own} == pytest.approx(lost, abs=1e-4)
            seen.append(lost)
        log(logs, *rest)

    trainer.log = note
    trainer.train()
    assert len(seen) == 4 and trainer.hook.forgotten == pytest.approx(seen[-1], abs=1e-4)
    active = [{name for name, share in lost.items() if share < 0.12} for lost in seen]
    assert [line["frequency/active"] for line in looks(trainer)] == [
        sum(len(trainer.hook.plan.buckets[name]) for name in names) for names in active
    ]
    assert "low" not in active[0] and "medium" in active[0] and "low" in active[-1], "it comes back"
    assert trainer.hook.outcome == "after 4 epochs these buckets had not lost enough: low, high"


def test_stopped_rows_have_no_weight_and_their_partners_stay(tmp_path):
    trainer = hooked("npo", tmp_path, freq_stop=0.5)
    hook, sampler = trainer.hook, trainer.sampler
    hook.active["low"] = False
    hook._flag()
    assert sampler.frequency == ItemWeights([0.0] * 4 + [1.0] * 6, [1.0] * 10)
    counted = {pair.forget for pair in sampler.plan(3) if pair.forget_weight}
    assert counted == {4, 5, 6, 7, 8, 9}
    # Refinement's flags multiply.
    sampler.weights = ItemWeights([1.0, 1.0, 1.0, 1.0, 0.0] + [1.0] * 5, [1.0] * 4 + [0.0] + [1.0] * 5)
    plan = sampler.plan(3)
    assert {pair.forget for pair in plan if pair.forget_weight} == {5, 6, 7, 8, 9}
    assert {pair.forget for pair in plan if pair.retain_weight} == {0, 1, 2, 3, 5, 6, 7, 8, 9}


def test_a_run_ends_when_refinement_and_buckets_leave_nothing(tmp_path):
    trainer = hooked("npo", tmp_path, freq_stop=0.5, learning_rate=0.0, num_train_epochs=3)
    low = trainer.hook.plan.buckets["low"]
    trainer.sampler.weights = ItemWeights([float(i in low) for i in range(10)], [1.0] * 10)
    trainer.hook._measure = lambda: dict.fromkeys(("medium", "high"), 1.0) | {"low": trainer.hook._looked_at_step + 1.2}
    trainer.train()
    # Before: low is 0.2. At the first look it has not changed; at the second it is larger.
    assert trainer.hook.outcome is not None
    trainer = hooked("npo", tmp_path, freq_stop=0.5, learning_rate=0.0, num_train_epochs=3)
    trainer.sampler.weights = ItemWeights([float(i in low) for i in range(10)], [1.0] * 10)
    values = iter([{"low": 1.0, "medium": 1.0, "high": 1.0}, {"low": 0.4, "medium": 1.0, "high": 1.0}])
    trainer.hook._measure = lambda: next(values)
    trainer.train()
    assert trainer.hook.outcome == "no forget row was in the loss any more after 1 epochs"
    assert trainer.state.global_step == 5


# Resume, processes.


@pytest.mark.parametrize("strategy", ["epoch", "steps"])
@pytest.mark.parametrize("name", ["stopped", "refined"])
def test_a_resumed_run_equals_one_never_interrupted(name, strategy, tmp_path):
    """With "steps" the checkpoint is older than the look at the end of its epoch."""
    method, options = RUNS[name]
    options = options | {"per_device_train_batch_size": 4, "save_strategy": strategy, "save_steps": 3}
    options |= {"save_total_limit": None}
    whole = hooked(method, tmp_path, **options)
    whole.train()
    assert len(looks(whole)) > 1 and {line["frequency/active"] for line in looks(whole)} - {10.0, 0.0}
    checkpoint = tmp_path / "checkpoint-3"
    assert checkpoint.is_dir()
    resumed = hooked(method, tmp_path / "again", **options)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert_close(trained_weights(resumed.model), trained_weights(whole.model), atol=1e-6)
    for ours, theirs in zip(looks(resumed), looks(whole), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
    assert resumed.hook.outcome == whole.hook.outcome and resumed.hook.active == whole.hook.active


def test_a_run_that_had_ended_stays_ended(tmp_path):
    options = {"freq_stop": 0.1, "learning_rate": 3e-2, "per_device_train_batch_size": 5, "save_strategy": "epoch"}
    whole = hooked("grad_diff", tmp_path, **options)
    whole.train()
    assert whole.hook.outcome.startswith("every bucket") and whole.state.global_step < 8
    again = hooked("grad_diff", tmp_path, **options)
    again.train(resume_from_checkpoint=True)
    assert again.hook.outcome == whole.hook.outcome
    assert_equal(trained_weights(again.model), trained_weights(whole.model))


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """All runs on two processes, in one launch: starting up takes longer than training."""
    out = tmp_path_factory.mktemp("two_processes")
    run_on_two_processes(HERE / "scripts" / "sharded_frequency.py", out)
    return out


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_train_what_one_trains(name, two_processes, tmp_path):
    ranks = [json.loads((two_processes / f"{name}.{rank}.json").read_text()) for rank in range(2)]
    weights = [load_file(two_processes / f"{name}.{rank}.safetensors") for rank in range(2)]
    assert [rank["processes"] for rank in ranks] == [2, 2]
    assert_equal(*weights)
    one_weights, one = train(name, tmp_path, processes=1)
    if name != "weighted":
        assert one["looks"] and min(line["frequency/active"] for line in one["looks"]) < 10, "some bucket stops"
    for rank in ranks:
        assert rank["outcome"] == one["outcome"]
        for kind in ("lines", "looks"):
            for ours, theirs in zip(rank[kind], one[kind], strict=True):
                assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)
    assert_close(weights[0], one_weights, atol=1e-4)


# The recipes.


def test_the_recipe_takes_the_flags_and_records_them(tmp_path):
    rows = [{**row, "exposures": count} for row, count in zip(tiny_rows(6), (1, 1, 2, 4, 8, 16), strict=True)]
    write_rows(tmp_path / "data" / "forget.jsonl", rows)
    write_rows(tmp_path / "data" / "retain.jsonl", tiny_rows(8, first=20))
    model = save_tiny_model(tmp_path / "model")
    shared = ["--model", model, "--dataset", tmp_path / "data", "--forget_split", "forget", "--retain_split", "retain"]
    shared += ["--eval", "none", "--num_train_epochs", 2, "--lora_r", 2]
    counted = ["--freq_weight", 1, "--freq_stop", 0.9, "--freq_counts", "exposures", "--freq_edges", 2, 8]
    run_recipe("npo", *shared, *counted, "--output_dir", tmp_path / "out")
    record = json.loads((tmp_path / "out" / "adapter" / "unlearning_config.json").read_text())
    assert record["frequency"]["experimental"] and record["frequency"]["kappa"] == 1
    assert record["frequency"]["counts"] == "exposures"
    assert record["frequency"]["buckets"]["2 to 8"] == {"rows": 2, "counts": [2, 4]}
    assert set(record["frequency"]["forgotten"]) == {"below 2", "2 to 8", "8 and more"}
    assert not [name for name in record["arguments"] if name.startswith("freq")]
    run_recipe("npo", *shared, "--output_dir", tmp_path / "plain")
    plain = json.loads((tmp_path / "plain" / "adapter" / "unlearning_config.json").read_text())
    assert "frequency" not in plain and plain["arguments"] == record["arguments"]
    # What is wrong is said before a model is loaded.
    message = refused("npo", *shared, "--freq_weight", 1, "--freq_counts", "nowhere", "--output_dir", tmp_path / "bad")
    assert "neither a column of the forget rows" in message and not (tmp_path / "bad").exists()
