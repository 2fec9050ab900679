"""`eval/tofu.py` on a tiny model: a report that can serve as a reference, alone and on two processes."""

import subprocess
import sys
from pathlib import Path

import pytest
from tiny import tiny_model, tiny_tokenizer

from llm_unlearn.evaluation.report import EvalReport

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model("llama", seed=3).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def run_eval(model, out, *flags, num_processes=1):
    command = [sys.executable, "-m", "llm_unlearn", "eval", "--num_processes", str(num_processes)]
    common = ["--model", str(model), "--output_dir", str(out), "--forget_split", "forget10[0:6]", "--eval", "train"]
    return subprocess.run([*command, *common, *flags], cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_a_report_of_one_process_serves_as_reference_of_two(model, tmp_path):
    alone = run_eval(model, tmp_path / "alone", "--retain_split", "retain90[0:5]")
    assert alone.returncode == 0, alone.stderr
    both = run_eval(
        model, tmp_path / "both", "--retain_split", "retain90[0:5]", "--reference", str(tmp_path / "alone"),
        num_processes=2,
    )  # fmt: skip
    assert both.returncode == 0, both.stderr
    assert "torch.distributed.run" in both.stdout

    one, two = EvalReport.load(tmp_path / "alone"), EvalReport.load(tmp_path / "both")
    assert one.metrics["forget/probability"].n == 6
    assert one.metrics["retain/probability"].n == 5
    for name, record in one.metrics.items():
        assert two.metrics[name].value == pytest.approx(record.value, abs=1e-6) if record.value is not None else True
        assert two.reference[name].value == record.value
    assert one.metrics["forget/rouge_l_recall"].value is None
    assert "not measured" in one.metrics["forget/rouge_l_recall"].not_measured


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--evals", "full"], "--evals"),
        (["--reference", "nowhere"], "There is no report at"),
        (["--retain_split", "forget10[0:1]"], "--retain_split"),
    ],
)
def test_bad_input_ends_in_one_sentence(model, tmp_path, flags, sentence):
    done = run_eval(model, tmp_path / "out", *flags)
    assert done.returncode != 0
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
