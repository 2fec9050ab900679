"""The built wheel, installed elsewhere: it brings its own recipes and data, and nothing of the rest."""

import json
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from recipe import ENVIRONMENT, save_tiny_model

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.skipif(
    not (ROOT / "pyproject.toml").is_file(), reason="a wheel is built from a checkout, and this is none"
)


def run(command, **options):
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=240, **options)
    assert result.returncode == 0, result.stdout + result.stderr
    return result


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT], env=ENVIRONMENT)
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The wheel in a folder of its own, which stands before the checkout of an editable installation."""
    folder = tmp_path_factory.mktemp("site")
    run([sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", folder, wheel], env=ENVIRONMENT)
    return folder


@pytest.fixture
def elsewhere(installed, tmp_path):
    """How to run a command there: the options of `subprocess.run`."""
    return {"cwd": tmp_path, "env": {**ENVIRONMENT, "PYTHONPATH": str(installed)}}


def test_the_wheel_holds_package_recipes_and_data_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert len(tops) == 2
    assert "llm_unlearn" in tops
    assert {top.rpartition(".")[2] for top in tops} == {"llm_unlearn", "dist-info"}
    bundled = {"_recipes": ROOT / "recipes", "_data": ROOT / "data"}
    for inside, folder in bundled.items():
        expected = {
            f"llm_unlearn/{inside}/{path.relative_to(folder)}"
            for path in folder.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        assert expected == {name for name in names if name.startswith(f"llm_unlearn/{inside}/")}
    assert "llm_unlearn/_recipes/common.py" in names
    assert "llm_unlearn/_data/tofu/checksums.json" in names
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    assert sum(info.file_size for info in zipfile.ZipFile(wheel).infolist()) < 20e6


def test_its_command_works_from_anywhere(installed, elsewhere):
    command = [sys.executable, installed / "bin" / "llm-unlearn"]
    assert "Usage: llm-unlearn" in run([*command, "--help"], **elsewhere).stdout
    assert str(installed / "llm_unlearn" / "_recipes") in "".join(run([*command, "ls"], **elsewhere).stdout.split("\n"))


def test_its_recipe_takes_two_steps_on_its_data(installed, elsewhere, tmp_path):
    model = save_tiny_model(tmp_path / "model")
    flags = ["--model", model, "--output_dir", "out", "--max_steps", 2, "--eval", "none", "--use_cpu"]
    result = run([sys.executable, "-m", "llm_unlearn", "run", "npo", *flags], **elsewhere)
    assert f"{installed}/llm_unlearn/_recipes/npo.py" in result.stdout
    assert str(ROOT / "recipes") not in result.stdout
    record = json.loads((tmp_path / "out" / "adapter" / "unlearning_config.json").read_text())
    assert record["steps"] == 2
    assert record["data"]["dataset"] == "bundled"
    assert record["data"]["forget"]["rows"] > 0
    where = "from llm_unlearn import paths, __file__; print(__file__, paths.recipes_dir(), paths.data_dir(), sep='\\n')"
    places = run([sys.executable, "-c", where], **elsewhere).stdout.splitlines()
    inside = installed / "llm_unlearn"
    assert places == [str(inside / "__init__.py"), str(inside / "_recipes"), str(inside / "_data")]


def test_its_requirements_are_those_of_the_project(wheel):
    text = zipfile.ZipFile(wheel).read(next(n for n in zipfile.ZipFile(wheel).namelist() if n.endswith("METADATA")))
    assert b"License-Expression: Apache-2.0" in text
    assert b"Provides-Extra: recipes" in text
    assert metadata.version("llm-unlearn").encode() in text
