"""`eval/thresholds.py`: the numbers that a run would measure itself, as flags."""

import runpy
import sys

import pytest
from recipe import save_tiny_model, write_rows
from tiny import tiny_model, tiny_rows, tiny_tokenizer

from llm_unlearn.data.tokenization import ExampleTokenizer
from llm_unlearn.paths import eval_dir
from llm_unlearn.refinement.config import RefinementConfig
from llm_unlearn.refinement.look import Look
from llm_unlearn.refinement.probes import Probes


@pytest.fixture
def run(tmp_path, monkeypatch):
    model = save_tiny_model(tmp_path / "model")
    rows = write_rows(tmp_path / "rows.jsonl", [{"text": row["answer"]} for row in tiny_rows(6)])

    def call(*flags):
        argv = ["thresholds.py", "--model", model, "--dataset", rows, "--text_column", "text"]
        argv += [*([] if "--split" in flags else ["--split", "train"]), *flags]
        monkeypatch.setattr(sys, "argv", [str(word) for word in argv])
        runpy.run_path(str(eval_dir() / "thresholds.py"), run_name="__main__")

    return call


def test_it_prints_what_a_look_measures_as_flags(run, capsys):
    run("--iur_prefix", 1, 3, "--el_start", 2, "--el_n", 3)
    config = RefinementConfig(iur_prefix=[1, 3], el_start=2, el_n=3, iur_context="full", iur_beams=1)
    tokenizer = ExampleTokenizer(tiny_tokenizer())
    probes = Probes.of(tokenizer.all({"text": row["answer"]} for row in tiny_rows(6)), config, tokenizer)
    look = Look(tiny_model(), probes, config, tokenizer)
    look.generate(range(6))
    look.extract(range(6))
    ma, el, rouge = (f"{look.mean(name):.4f}" for name in ("ma", "el", "rouge_l"))
    assert capsys.readouterr().out.splitlines()[0] == f"--stop_ma {ma} --stop_el {el} --iur_rouge_l {rouge}"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "Row 0 of the rows of train has .*--iur_prefix"),
        (["--iur_prefix", 1, 3], "None of the 6 rows of train .*--el_start"),
        (["--iur_prefix", 3, 1], "`iur_prefix` is"),
        (["--split", "nowhere"], "nowhere"),
    ],
)
def test_a_mistake_is_one_sentence(flags, message, run, monkeypatch):
    monkeypatch.setattr("llm_unlearn.models.load_model", lambda *_: pytest.fail("no model was to be loaded"))
    with pytest.raises(SystemExit, match=message):
        run(*flags)
