"""Two processes train what one trains."""

import json
from pathlib import Path

import pytest
import torch
from codebooks import tiny_codebook, trained_like
from recipe import run_on_two_processes
from runs import assert_close, assert_equal
from safetensors.torch import load_file
from scripts import sharded_codebooks
from scripts.sharded_training import RUNS, train

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """All runs on two processes, in one launch: starting up takes longer than training. As a user starts them."""
    out = tmp_path_factory.mktemp("two_processes")
    run_on_two_processes(HERE / "scripts" / "sharded_training.py", out, torchrun=True)
    return out


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_train_what_one_trains(name, two_processes, tmp_path):
    ranks = [json.loads((two_processes / f"{name}.{rank}.json").read_text()) for rank in range(2)]
    weights = [load_file(two_processes / f"{name}.{rank}.safetensors") for rank in range(2)]
    assert [rank["processes"] for rank in ranks] == [2, 2]
    assert_equal(*weights)

    one_weights, one_lines, one_eval_loss, one_looks = train(name, tmp_path, processes=1)
    # The stop rule ends one of the runs after its first epoch.
    assert len(one_lines) == (3 if name == "stopped" else 6)
    assert bool(one_looks) == (name in ("refined", "stopped"))
    if name == "stopped":
        assert one_looks[-1][-1].startswith("the stop rule was reached after 1 epochs")
    if name == "refined":
        assert {row[2] for row in one_looks[10:20]} == {True, False}, "the second epoch trains on some of the rows"
    for rank in ranks:
        assert rank["looks"] == one_looks
        for ours, theirs in zip(rank["lines"], one_lines, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)
        assert (rank["eval_loss"] is None) == (one_eval_loss is None)
        assert one_eval_loss is None or rank["eval_loss"] == pytest.approx(one_eval_loss, rel=1e-4)
    assert_close(weights[0], one_weights, atol=1e-4)


# Codebooks.


@pytest.mark.parametrize("name", sharded_codebooks.RUNS)
def test_two_processes_train_the_bottleneck_that_one_trains(name, two_processes, tmp_path):
    weights = [load_file(two_processes / f"codebook_{name}.{rank}.safetensors") for rank in range(2)]
    gradients = [load_file(two_processes / f"codebook_{name}.gradients.{rank}.safetensors") for rank in range(2)]
    ranks = [json.loads((two_processes / f"codebook_{name}.{rank}.json").read_text()) for rank in range(2)]
    assert [rank["processes"] for rank in ranks] == [2, 2]
    assert_equal(*gradients)
    own = [weight.pop("last_used") for weight in weights]
    assert_equal(*weights)

    one_gradients, one_weights, one_lines = sharded_codebooks.train(name, tmp_path, processes=1)
    assert_close(gradients[0], one_gradients, atol=1e-6)
    assert torch.equal(torch.stack(own).amax(0), one_weights.pop("last_used"))
    assert_close(weights[0], one_weights, atol=1e-6)
    # Revived on either side, from the same tokens.
    codes = next(weight for key, weight in weights[0].items() if key.endswith("codebook.codebook.weight"))
    assert (codes[sharded_codebooks.DEAD] > -0.5).all()
    for rank in ranks:
        for ours, theirs in zip(rank["lines"], one_lines, strict=True):
            same = {key for key in theirs if key.startswith("loss") or key in ("codes/used", "codes/dead")}
            assert len(same) == 8
            assert {key: ours[key] for key in same} == pytest.approx({key: theirs[key] for key in same}, rel=1e-4)


def test_two_processes_count_the_codes_that_one_counts(two_processes):
    counts = [json.loads((two_processes / f"counts.{rank}.json").read_text()) for rank in range(2)]
    assert counts[0] == counts[1] == sharded_codebooks.count(trained_like(tiny_codebook()))


@pytest.mark.parametrize("own_unit", [True, False], ids=["own_unit", "with_the_model"])
def test_fully_sharded_gradients_are_those_of_one_process(own_unit, two_processes):
    sharded = [load_file(two_processes / f"fsdp_{own_unit}.{rank}.safetensors") for rank in range(2)]
    assert_equal(*sharded)
    assert_close(sharded[0], sharded_codebooks.fully_sharded(None, slice(0, 4)), atol=1e-6)
