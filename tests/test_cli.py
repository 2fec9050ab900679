import json
import subprocess
import sys
import time

import pytest
from recipe import ENVIRONMENT, run_recipe, save_tiny_model, tiny_data

from llm_unlearn import cli
from llm_unlearn.launch import launch_command
from llm_unlearn.methods import METHODS
from llm_unlearn.models import load_model
from llm_unlearn.paths import recipes_dir
from llm_unlearn.version import __version__

_HEAVY = {"torch", "transformers", "peft", "trl", "datasets", "accelerate", "bitsandbytes", "huggingface_hub", "pandas"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def command(monkeypatch, *arguments):
    """Run `llm-unlearn ARGUMENTS` in this process; returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["llm-unlearn", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return stopped.value.code


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["ls"], ["--version"], ["run", "--help"], ["data", "--help"], ["codes", "--help"]],
)
def test_help_and_lists_import_nothing_heavy_and_appear_at_once(arguments):
    script = (
        "import sys; sys.argv = ['llm-unlearn', *sys.argv[1:]]\n"
        "from llm_unlearn.cli import main\n"
        "try: main()\n"
        "finally: print('IMPORTED', *sorted({name.partition('.')[0] for name in sys.modules}))\n"
    )
    times = []
    for _ in range(3):  # the best of three: others may be busy on this machine
        started = time.perf_counter()
        result = subprocess.run(
            [sys.executable, "-c", script, *arguments], env=ENVIRONMENT, capture_output=True, text=True, timeout=60
        )
        times.append(time.perf_counter() - started)
        if times[-1] < 1:
            break
    assert result.returncode == 0, result.stderr
    imported = set(result.stdout.splitlines()[-1].split())
    assert "llm_unlearn" in imported
    assert not imported & _HEAVY
    assert min(times) < 1


def test_version(monkeypatch, capsys):
    assert command(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"{__version__}\n"


def test_ls_names_every_method_and_preset(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    assert command(monkeypatch, "ls") == 0
    output = capsys.readouterr().out
    for method in METHODS.values():
        assert method.paper in output
    rows = [line.split()[0] for line in output.splitlines() if line[:1].isalpha()]
    assert set(METHODS) <= set(rows)
    for preset in (recipes_dir() / "configs").glob("*.yaml"):
        assert preset.stem in output


def test_run_starts_the_recipe_and_says_so(model, tmp_path):
    data = tiny_data(tmp_path / "data")
    flags = ["--model", model, "--dataset", data, "--forget_split", "forget", "--retain_split", "retain"]
    flags += ["--output_dir", tmp_path / "out", "--max_steps", "2", "--eval", "train", "--use_cpu"]
    result = subprocess.run(
        [sys.executable, "-m", "llm_unlearn", "run", "npo", *map(str, flags)],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    first = result.stdout.splitlines()[0]
    assert first.startswith("Starting: ")
    assert f"{recipes_dir()}/npo.py --model {model}" in first
    assert "Forecast" in result.stdout
    assert "forget/probability" in result.stdout
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()
    for noise in ("gemm_4bit", "is_gradient_checkpointing", "FutureWarning", "Traceback", "{'loss'"):
        assert noise not in result.stdout + result.stderr


def test_run_passes_flags_and_the_exit_code_on(monkeypatch, capsys):
    started = []

    def start(arguments, env):
        started.append(arguments)
        return subprocess.CompletedProcess(arguments, 7)

    monkeypatch.setattr(subprocess, "run", start)
    assert command(monkeypatch, "run", "npo", "--help", "--beta=0.2", "--lora_r", 8, "-h") == 7
    assert started[0][1:] == [str(recipes_dir() / "npo.py"), "--help", "--beta=0.2", "--lora_r", "8", "-h"]
    command(monkeypatch, "run", "npo", "--beta", 1, "--num_processes", 2)
    assert started[1][1:5] == ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    assert started[1][5:] == ["2", str(recipes_dir() / "npo.py"), "--beta", "1"]
    assert "ACCELERATE_USE_CPU=true" in capsys.readouterr().out


def test_several_processes_start_as_the_machine_allows(monkeypatch):
    script = recipes_dir() / "npo.py"
    assert launch_command(script, ["--beta", "1"], 1) == ([sys.executable, str(script), "--beta", "1"], {})
    with pytest.raises(ValueError, match="`--num_processes` is 0"):
        launch_command(script, [], 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    launched, environment = launch_command(script, [], 4)
    assert launched[1:5] == ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes"]
    assert environment == {}
    with pytest.raises(ValueError, match="there are 4 GPUs: give at most 4"):
        launch_command(script, [], 5)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "nppo"], "no method 'nppo'. Did you mean 'npo'?"),
        (["run", "npo", "--num_processes", 0], "`--num_processes` is 0"),
        (["push", "/nowhere", "me/mine"], "no adapter of llm-unlearn"),
        (["merge", "/nowhere", "/nowhere/merged"], "/nowhere is no model folder"),
        (["testbed", "--forget_split", "forget11"], "Did you mean"),
        (["data", "get", "tofuu"], "Did you mean 'tofu'?"),
        (["data", "get", "tofu", "{tmp}", "--source", "/nowhere"], "no file or folder /nowhere"),
        (["data", "make", "{tmp}/world", "--exposures", "x"], "`--exposures` is 'x'"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_a_mistake_ends_in_one_sentence(arguments, said, monkeypatch, tmp_path):
    message = command(monkeypatch, *(str(argument).replace("{tmp}", str(tmp_path)) for argument in arguments))
    assert isinstance(message, str), "exit code 1, with the message on stderr"
    assert message.startswith("error: ")
    assert said in message
    assert "\n" not in message
    assert list(tmp_path.iterdir()) == []


def test_env_is_fit_to_be_pasted(monkeypatch, capsys):
    assert command(monkeypatch, "env") == 0
    output = capsys.readouterr().out
    assert f"llm-unlearn: {__version__}" in output
    for name in ("torch: ", "transformers: ", "python: ", "cpus: ", "gpus: "):
        assert f"\n{name}" in output


def test_data_make_writes_a_world(monkeypatch, capsys, tmp_path):
    assert command(monkeypatch, "data", "make", tmp_path / "world", "--authors", 20, "--seed", 3) == 0
    assert "400 rows in `full`" in capsys.readouterr().out
    row = json.loads((tmp_path / "world" / "forget10.jsonl").read_text().splitlines()[0])
    assert {"question", "answer", "value"} <= row.keys()


def test_merge_writes_a_plain_model_and_replaces_nothing(monkeypatch, model, tmp_path):
    data = tiny_data(tmp_path / "data")
    run_recipe(
        "npo", "--model", model, "--dataset", data, "--forget_split", "forget", "--retain_split", "retain",
        "--output_dir", tmp_path / "out", "--max_steps", 2, "--eval", "none",
    )  # fmt: skip
    adapter = tmp_path / "out" / "adapter"
    assert command(monkeypatch, "merge", adapter, tmp_path / "merged") == 0
    assert type(load_model(tmp_path / "merged")).__name__ == "LlamaForCausalLM"
    assert "would be replaced" in command(monkeypatch, "merge", adapter, tmp_path / "data")
    assert (data / "full.jsonl").is_file()
    assert "no adapter to merge" in command(monkeypatch, "merge", model, tmp_path / "again")
    assert not (tmp_path / "again").exists()
