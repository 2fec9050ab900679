"""A run that was killed and resumed ends where one ends that was never killed."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import assert_close, losses, make_trainer, trained_weights
from scripts.killed_runs import RUNS, make_run
from tiny import tiny_model
from transformers.trainer_utils import get_last_checkpoint

from llm_unlearn.progress import LOG_NAME
from llm_unlearn.reference import ReferenceLogps, ReferenceTopK
from llm_unlearn.refinement.callback import FILE_NAME as LOOKS_NAME

HERE = Path(__file__).parent
NOT_OF_THE_RUN = {"train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss", "total_flos"}


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The folders that the killed runs left."""
    folder = tmp_path_factory.mktemp("killed")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)])}
    command = [sys.executable, str(HERE / "scripts" / "killed_runs.py"), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return folder


def read_log(folder):
    """The lines of steps, and the last; not those of looks, which say how many seconds they took."""
    lines = [json.loads(line) for line in (folder / LOG_NAME).read_text().splitlines()]
    return [line for line in lines if "refine/active" not in line]


def read_looks(folder):
    """What refinement saw of each row at each look."""
    return [json.loads(line) for line in (folder / LOOKS_NAME).read_text().splitlines()]


@pytest.mark.parametrize("name", RUNS)
def test_a_killed_and_resumed_run_equals_one_never_killed(name, killed, tmp_path):
    *_, step, options = RUNS[name]
    folder = killed / name
    checkpoint = get_last_checkpoint(folder)
    saved_at = step - step % options["save_steps"]
    assert checkpoint.endswith(f"checkpoint-{saved_at}")
    assert [line["step"] for line in read_log(folder)] == list(range(1, step + 1)), "killed after its last log line"

    whole = make_run(name, tmp_path)
    start = trained_weights(whole.model)
    whole.train()
    resumed = make_run(name, folder)
    resumed.train(resume_from_checkpoint=checkpoint)
    assert resumed.state.global_step == whole.state.global_step > step
    assert_close(trained_weights(resumed.model), trained_weights(whole.model), atol=1e-6)
    assert any((trained_weights(whole.model)[key] - start[key]).abs().max() > 1e-3 for key in start)

    ours, theirs = read_log(folder), read_log(tmp_path)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    # The last line is the summary of the run.
    assert [line["step"] for line in ours[:-1]] == list(range(1, whole.state.global_step + 1))
    for our_line, their_line in zip(ours[:-1], theirs[:-1], strict=True):
        assert our_line == pytest.approx(their_line, rel=1e-5, abs=1e-5)
    if options.get("refine"):
        looks = read_looks(folder)
        assert [look["step"] for look in looks] == [step for step in (0, 4, 8, 12) for _ in range(8)]
        assert {look["active"] for look in looks} == {True, False}
        for our_look, their_look in zip(looks, read_looks(tmp_path), strict=True):
            assert our_look.pop("text") == their_look.pop("text")
            assert our_look == pytest.approx(their_look, rel=1e-5, abs=1e-5)
        assert resumed.refinement.active == whole.refinement.active


@pytest.mark.parametrize("name", ["full", "full_idk"])
def test_full_fine_tuning_reads_its_reference_values_from_the_checkpoint(name, killed, tmp_path):
    checkpoint = Path(get_last_checkpoint(killed / name))
    assert (checkpoint / ReferenceLogps.file_name).is_file()
    fresh = make_run(name, tmp_path / "fresh")
    fresh.state.max_steps = 12
    before = ReferenceLogps.fill(fresh, fresh.model)

    resumed = make_run(name, tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(checkpoint))
    after = resumed.reference.logps
    torch.testing.assert_close(after.forget_sums, before.forget_sums, rtol=0, atol=1e-5)
    torch.testing.assert_close(after.alternate_sums, before.alternate_sums, rtol=0, atol=1e-5, equal_nan=True)
    # The weights of the checkpoint give other values: nothing was computed from them.
    trained = type(fresh.model).from_pretrained(checkpoint, dtype=torch.float32)
    moved = ReferenceLogps.fill(fresh, trained)
    assert (moved.forget_sums - before.forget_sums).abs().min() > 0.1


def test_full_fine_tuning_reads_the_distributions_of_its_reference_from_the_checkpoint(killed, tmp_path):
    checkpoint = Path(get_last_checkpoint(killed / "full_top_k"))
    fresh = make_run("full_top_k", tmp_path / "fresh")
    fresh.state.max_steps = 12
    before, saved = ReferenceTopK.fill(fresh, fresh.model), ReferenceTopK.load(checkpoint, fresh.args.device)
    for name, tensor in vars(before).items():
        torch.testing.assert_close(getattr(saved, name), tensor, rtol=0, atol=1e-5)
    trained = type(fresh.model).from_pretrained(checkpoint, dtype=torch.float32)
    assert (ReferenceTopK.fill(fresh, trained).logits - before.logits).abs().max() > 0.1


@pytest.mark.parametrize(
    "options", [{"reference_top_k": 9}, {"kl_mask_pad": True}, {"num_train_epochs": 4, "n_forget": 2}], ids=str
)
def test_a_table_of_another_run_is_refused(options, tmp_path):
    shared = {"lora": False, "learning_rate": 1e-3, "reference_top_k": 8, "save_strategy": "epoch", "n_forget": 2}
    make_trainer("icu", tmp_path, **shared, num_train_epochs=2).train()
    resumed = make_trainer("icu", tmp_path, **({"num_train_epochs": 3} | shared | options))
    with pytest.raises(ValueError, match=r"read for k = 8 .* than this run draws, and is gone: go on with the flags"):
        resumed.train(resume_from_checkpoint=True)


def test_an_adapter_run_needs_no_reference_values_in_its_checkpoint(killed):
    assert not (Path(get_last_checkpoint(killed / "lora")) / ReferenceLogps.file_name).exists()


@pytest.mark.parametrize("table", [ReferenceLogps, ReferenceTopK])
def test_a_checkpoint_without_reference_values_is_refused(table, tmp_path):
    options = {"lora": False, "learning_rate": 1e-3, "save_strategy": "epoch", "num_train_epochs": 2}
    options |= {"retain_loss": "kl", "reference_top_k": 8}
    make_trainer("npo", tmp_path, **options).train()
    (Path(get_last_checkpoint(tmp_path)) / table.file_name).unlink()
    with pytest.raises(ValueError, match=rf"has no {table.file_name}.*start anew, or train an adapter"):
        make_trainer("npo", tmp_path, **(options | {"num_train_epochs": 3})).train(resume_from_checkpoint=True)


def test_a_run_with_ref_model_reads_it_again(tmp_path):
    options = {"lora": False, "learning_rate": 1e-3, "retain_loss": "kl", "save_strategy": "epoch"}
    make_trainer("npo", tmp_path, ref_model=tiny_model(), **options).train()
    assert not (Path(get_last_checkpoint(tmp_path)) / ReferenceLogps.file_name).exists()
    resumed = make_trainer("npo", tmp_path, ref_model=tiny_model(), **(options | {"num_train_epochs": 2}))
    resumed.train(resume_from_checkpoint=True)
    whole = make_trainer("npo", tmp_path / "whole", ref_model=tiny_model(), **(options | {"num_train_epochs": 2}))
    whole.train()
    assert [line["step"] for line in losses(resumed)] == list(range(1, 7))
    torch.testing.assert_close(resumed.reference.logps.forget_sums, whole.reference.logps.forget_sums)


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_nothing_in_a_checkpoint_is_unpickled(lora, tmp_path, monkeypatch):
    """`training_args.bin` is not read at all; optimiser, schedule and random state are read as weights only."""
    options = {"save_strategy": "epoch", "save_total_limit": None, "lora": lora, "learning_rate": 1e-3}
    make_trainer("npo", tmp_path, **options).train()
    checkpoint = Path(get_last_checkpoint(tmp_path))
    (checkpoint / "training_args.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    read = {}
    plain_load = torch.load

    def noting(file, *args, **kwargs):
        read[Path(file).name] = kwargs.get("weights_only")
        return plain_load(file, *args, **kwargs)

    monkeypatch.setattr(torch, "load", noting)
    make_trainer("npo", tmp_path, **(options | {"num_train_epochs": 2})).train(resume_from_checkpoint=str(checkpoint))
    assert read == {"optimizer.pt": True, "scheduler.pt": True, "rng_state.pth": True}
    assert not (tmp_path / "exploded").exists()

    for name in read:
        kept = (checkpoint / name).read_bytes()
        torch.save(Bomb(tmp_path / "exploded"), checkpoint / name)
        with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
            make_trainer("npo", tmp_path, **(options | {"num_train_epochs": 3})).train(
                resume_from_checkpoint=str(checkpoint)
            )
        assert not (tmp_path / "exploded").exists()
        (checkpoint / name).write_bytes(kept)
