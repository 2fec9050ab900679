"""`eval/tofu.py` as a user runs it: on the testbed, on an adapter, beside other reports, and with mistakes."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer

from llm_unlearn.adapters import attach_adapter, load_reference_adapter, lora_config, merge_adapter
from llm_unlearn.data.tokenization import ExampleTokenizer
from llm_unlearn.evaluation.outputs.scoring import Branches, score
from llm_unlearn.evaluation.records import NO_BEFORE, NO_REFERENCE
from llm_unlearn.evaluation.report import EvalReport
from llm_unlearn.models import fingerprint, load_model

ROOT = Path(__file__).resolve().parents[1]
SMALL = [
    "--forget_split",
    "forget10[0:6]",
    "--retain_split",
    "retain90[0:5]",
    "--max_rows",
    "4",
    "--max_new_tokens",
    "6",
]
# What needs the model before unlearning as judge: a merged model has nobody but itself.
JUDGED = {"fluency", "utility_offline", "overall_offline"}


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("eval_tofu", ROOT / "eval" / "tofu.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A base model, an adapter for it, both merged, and a retain model."""
    folder = tmp_path_factory.mktemp("models")
    for name, seed in (("base", 3), ("retain", 4)):
        tiny_model("llama", seed=seed).save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    model = attach_adapter(load_model(folder / "base"), lora_config(r=2, lora_alpha=4), seed=0)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.05)
    model.save_pretrained(folder / "adapter")
    both = load_reference_adapter(load_model(folder / "base"), folder / "adapter")
    merge_adapter(both, folder / "merged", tiny_tokenizer())
    return folder


@pytest.fixture
def run(script, models, tmp_path, monkeypatch):
    """Runs the script in this process; the report, or the sentence it ended in."""
    monkeypatch.setenv("LLM_UNLEARN_CACHE", str(tmp_path / "cache"))

    def go(*flags, out="out"):
        monkeypatch.setattr(sys, "argv", ["tofu.py", *map(str, flags), "--output_dir", str(tmp_path / out)])
        try:
            script.main()
        except SystemExit as ended:
            return str(ended.code)
        return EvalReport.load(tmp_path / out)

    return go


@pytest.fixture
def forwards(monkeypatch, script):
    """Names of the models that were run, in order."""
    ran = []
    load = script._load

    def counted(args, source, device):
        model = load(args, source, device)
        model.register_forward_hook(lambda *_: ran.append(source))
        return model

    monkeypatch.setattr(script, "_load", counted)
    return ran


def test_an_adapter_is_compared_with_its_base_and_a_retain_model(run, models, tmp_path):
    retain = run("--model", models / "retain", *SMALL, "--eval", "full", out="retain")
    report = run(
        "--model", models / "base", "--adapter", models / "adapter", "--before", "base", "--reference",
        tmp_path / "retain", "--eval", "full", *SMALL,
    )  # fmt: skip
    base = run("--model", models / "base", *SMALL, "--eval", "full", out="base")
    merged = run(
        "--model", models / "merged", "--before", tmp_path / "base", "--reference", tmp_path / "retain", *SMALL,
        "--eval", "full", out="merged",
    )  # fmt: skip

    # The adapter does something, and "before" is the model without it, not the model again.
    assert report.metrics["forget/probability"].value != report.before["forget/probability"].value
    for name, record in report.before.items():
        if name in base.metrics and "/" in name:
            assert record.value == pytest.approx(base.metrics[name].value, abs=1e-6), name
    for name, record in report.reference.items():
        if name in retain.metrics and "/" in name:
            assert record.value == retain.metrics[name].value
    assert report.provenance["judge"] == base.provenance["judge"] == fingerprint(load_model(models / "base"))
    assert report.provenance["before"]["judge"] == report.provenance["judge"]
    tokenize, plain = ExampleTokenizer(tiny_tokenizer()), load_model(models / "base")
    for item in report.items[:6]:
        ((judged,),) = score(plain, [Branches.of([tokenize({"text": item["text"]}, 0)])], progress=False)
        assert item["text_nll"] == pytest.approx(judged.loss, abs=1e-5)
    assert report.provenance["adapter"] == str(models / "adapter")
    assert report.provenance["fingerprint"] != merged.provenance["fingerprint"]
    assert report.metrics["forget/probability"].n == 6
    assert report.metrics["real_authors/probability"].n == 4
    assert report.metrics["holdout/probability"].n == 6

    assert report.metrics.keys() == merged.metrics.keys()
    for name, record in report.metrics.items():
        other = merged.metrics[name]
        if name in JUDGED:
            # The tiny base writes nothing useful, of which no share can be kept.
            assert (record.value is None) == (name != "fluency")
            assert "adapter" not in (record.not_measured or "")
            assert "evaluate its adapter" in other.not_measured
        else:
            assert record.not_measured == other.not_measured
            assert record.value == (other.value and pytest.approx(other.value, rel=1e-4, abs=1e-5)), name
    for one, other in zip(report.items, merged.items, strict=True):
        assert one["text"] == other["text"]
        assert one.get("gradnorm") == (other.get("gradnorm") and pytest.approx(other["gradnorm"], rel=1e-3))


def test_a_second_evaluation_runs_nothing(run, models, forwards, tmp_path):
    flags = ["--model", models / "base", "--adapter", models / "adapter", "--before", "base", *SMALL, "--eval", "train"]
    first = run(*flags)
    ran = len(forwards)
    assert ran > 0
    again = run(*flags, out="again")
    assert len(forwards) == ran
    assert again.items == first.items
    assert again.metrics == first.metrics
    assert again.provenance["reused"] is True
    run(*flags, "--eval_cache", "false", out="anew")
    assert len(forwards) == 2 * ran


def test_without_flags_the_testbed_is_evaluated(run, tmp_path, capsys):
    report = run("--eval", "train", "--max_rows", "3")
    assert isinstance(report, EvalReport), report
    assert report.provenance["dataset"] == "bundled"
    assert report.provenance["forget_split"] == "forget10"
    assert report.metrics["forget/probability"].n == 80
    # The target knows what the twin never saw.
    assert report.metrics["forget/probability"].value > 2 * report.reference["forget/probability"].value
    assert report.metrics["forget_quality"].value < 0.05
    assert report.metrics["fluency"].not_measured == NO_BEFORE
    shown = capsys.readouterr().out
    assert "forget_quality" in shown
    assert f"Wrote {tmp_path}/out/report.json" in shown.replace("\n", "")


def test_one_model_alone(run, models):
    report = run("--model", models / "base", *SMALL, "--eval", "train", "--compat", "open-unlearning")
    assert report.provenance["compat"] == "open_unlearning"
    assert report.before == {}
    assert report.metrics["forget_quality"].not_measured == NO_REFERENCE
    assert "not measured" in report.metrics["forget/rouge_l_recall"].not_measured


def mistakes(models, tmp_path):
    base = ["--model", models / "base"]
    return {
        "no file": ([*base, "--reference", "nowhere"], "There is no report at nowhere"),
        "no model": (["--model", tmp_path / "nothing"], "is no model folder"),
        "no adapter": ([*base, "--adapter", tmp_path], "holds no model"),
        "overlap": ([*base, "--retain_split", "forget10[72:73]"], "--retain_split"),
        "outsiders": ([*base, "--holdout_split", "forget01"], "--holdout_split"),
        "tier": ([*base, "--eval", "none"], "measures nothing"),
        "rows": ([*base, "--max_rows", "1", "2"], "--max_rows"),
        "convention": ([*base, "--compat", "toffee"], "--compat"),
        "metric": ([*base, "--metrics", "forget_qualty"], "Did you mean 'forget_quality'"),
        "flag": ([*base, "--evals", "full"], "--evals"),
        "needs reference": ([*base, "--metrics", "forget_quality"], "no reference report; make one with"),
        "needs before": ([*base, "--metrics", "model_utility", "aus"], "`aus` was asked for by name"),
        "needs tier": ([*base, "--eval", "train", "--metrics", "model_utility"], "use `--eval quick`"),
    }


@pytest.mark.parametrize("name", mistakes(Path(), Path()))
def test_mistakes_are_found_before_a_model_is_loaded(name, run, script, models, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "_load", lambda *_: pytest.fail("a model was loaded"))
    flags, sentence = mistakes(models, tmp_path)[name]
    ended = run("--forget_split", "forget10[72:80]", *flags)
    assert ended.startswith("error: ")
    assert sentence in ended
    assert not (tmp_path / "out").exists()


def test_a_base_needs_an_adapter_and_a_report_stays(run, models, tmp_path):
    assert "there is none: give `--adapter`" in run("--model", models / "base", "--before", "base", *SMALL)
    first = run("--model", models / "base", *SMALL, "--eval", "train")
    flags = ["--model", models / "retain", *SMALL, "--eval", "train"]
    assert "already holds a report" in run(*flags)
    assert EvalReport.load(tmp_path / "out") == first
    assert run(*flags, "--overwrite").items != first.items


def test_reports_that_do_not_fit_are_refused_before_a_model_is_loaded(run, script, models, tmp_path, monkeypatch):
    small = ["--model", models / "base", *SMALL, "--eval", "train"]
    run(*small, out="ours")
    run(*small, "--compat", "open_unlearning", out="peer")
    run(*small, "--max_length", "200", "--system_prompt", "", out="prompt")
    monkeypatch.setattr(script, "_load", lambda *_: pytest.fail("a model was loaded"))
    for flag in ("--reference", "--before"):
        assert "another convention" in run(*small, flag, tmp_path / "peer")
        other_rows = [small[0], small[1], "--forget_split", "forget10[6:12]", "--eval", "train"]
        assert "made on other data" in run(*other_rows, flag, tmp_path / "ours")


def test_two_processes_write_one_report(models, tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_UNLEARN_CACHE", str(tmp_path / "cache"))
    command = [sys.executable, "-m", "llm_unlearn", "eval", "--num_processes", "2", "--model", str(models / "base")]
    command += [*SMALL, "--eval", "train", "--output_dir", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Wrote ") == 1
    assert "torch.distributed.run" in done.stdout
    assert EvalReport.load(tmp_path / "out").metrics["forget/probability"].n == 6
