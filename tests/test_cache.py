"""Reports are reused for the same evaluation of the same model, and for no other."""

import json
from contextlib import nullcontext

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer
from tiny_suite import full_rows

from llm_unlearn.adapters import attach_adapter, lora_config, without_newest_adapter
from llm_unlearn.data.tokenization import ExampleTokenizer
from llm_unlearn.evaluation import cache as cache_module
from llm_unlearn.evaluation.cache import evaluate_once
from llm_unlearn.evaluation.evaluator import Evaluator
from llm_unlearn.evaluation.passes import Judge
from llm_unlearn.evaluation.report import EvalReport
from llm_unlearn.evaluation.sets import EvalSet
from llm_unlearn.models import identity


@pytest.fixture
def tokenizer():
    return ExampleTokenizer(tiny_tokenizer())


@pytest.fixture
def evaluate(tokenizer, tmp_path):
    """Evaluates once and says whether the model was run, which it counts by its forwards."""

    def run(model, *, rows=None, clusters=None, tier="quick", judge=None, folder=tmp_path / "kept", **options):
        options = {"max_new_tokens": 3, "progress": False, **options}
        sets = [EvalSet.of("forget", rows or full_rows(3), tokenizer, clusters)]
        forwards = []
        hook = model.register_forward_hook(lambda *_: forwards.append(1))
        report = evaluate_once(Evaluator(tokenizer, sets, tier, **options), model, identity(model), judge, folder)
        hook.remove()
        assert bool(report.provenance.get("reused")) == (not forwards)
        return report, bool(forwards)

    return run


def adapted(seed=0, **options):
    model = attach_adapter(tiny_model(seed=3), lora_config(**{"r": 2, "lora_alpha": 4, **options}), seed=0)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    return model


def one_weight_changed(model, part):
    name, weight = next((name, weight) for name, weight in model.named_parameters() if part in name)
    with torch.no_grad():
        weight.view(-1)[5] += 1e-3
    return model


def test_an_evaluation_of_the_same_model_runs_once(evaluate, tmp_path):
    first, ran = evaluate(tiny_model())
    assert ran
    second, ran = evaluate(tiny_model())
    assert not ran
    assert second.metrics == first.metrics
    assert second.items == first.items
    assert second.provenance == {**first.provenance, "reused": True}
    assert len(list((tmp_path / "kept").iterdir())) == 1
    assert evaluate(tiny_model(), folder=None)[1]
    assert evaluate(tiny_model(), folder=tmp_path / "other")[1]


@pytest.mark.parametrize(
    "change",
    [
        lambda: one_weight_changed(adapted(), "gate_proj.base_layer"),
        lambda: one_weight_changed(adapted(), "lora_A"),
        lambda: one_weight_changed(adapted(), "lora_B"),
        lambda: adapted(lora_alpha=8),
        lambda: adapted().to(torch.bfloat16),
        lambda: adapted().get_base_model(),
        lambda: adapted().merge_and_unload(),
    ],
    ids=["weight", "adapter A", "adapter B", "scale", "precision", "unwrapped", "merged"],
)
def test_another_model_is_evaluated_anew(change, evaluate):
    assert evaluate(adapted())[1]
    assert not evaluate(adapted())[1]
    assert evaluate(change())[1]
    assert not evaluate(adapted())[1]


def test_a_model_without_its_adapter_is_another_model(evaluate):
    model = adapted()
    with_it, _ = evaluate(model)
    with without_newest_adapter(model):
        without, ran = evaluate(model)
    assert ran
    plain, _ = evaluate(tiny_model(seed=3), folder=None)
    assert without.metrics["forget/probability"].value == pytest.approx(plain.metrics["forget/probability"].value)
    assert without.metrics != with_it.metrics
    again, ran = evaluate(model)
    assert not ran
    assert again.metrics == with_it.metrics


def test_what_can_be_switched_on_a_model_counts(evaluate):
    model = adapted()
    assert evaluate(model)[1]
    for module in model.modules():
        if hasattr(module, "set_scale"):
            module.set_scale("default", 0.5)
    assert evaluate(model)[1]
    model.generation_config.eos_token_id = [0, 9]
    assert evaluate(model)[1]
    assert not evaluate(model)[1]


@pytest.mark.parametrize(
    "options",
    [
        {"tier": "train"},
        {"tier": "full"},
        {"compat": "tofu_paper"},
        {"max_new_tokens": 4},
        {"rows": full_rows(4)},
        {"rows": [*full_rows(2), {**full_rows(3)[2], "answer": "Cato is a nurse in the old city"}]},
        {"rows": [*full_rows(2), {**full_rows(3)[2], "paraphrased_answer": None}]},
        {"rows": [*full_rows(2), {**full_rows(3)[2], "perturbed_answer": ["Cato is a nurse"]}]},
        {"rows": [*full_rows(2), {**full_rows(3)[2], "value": "nurse"}]},
        # Words the tokenizer does not know: the same ids.
        {"rows": [{**full_rows(1)[0], "question": "What does Ada do?"}, *full_rows(3)[1:]]},
        {"clusters": ["Ada", "Bela", "Ada"]},
        {"judge": Judge("a", lambda: nullcontext(tiny_model()))},
    ],
    ids=lambda options: " ".join(options) if "judge" in options else str(options),
)
def test_another_evaluation_is_run_anew(options, evaluate):
    first = full_rows(3)
    first[0]["question"] = "What ought Ada do?"
    assert evaluate(tiny_model(), rows=first)[1]
    assert evaluate(tiny_model(), **{"rows": first, **options})[1]
    assert not evaluate(tiny_model(), rows=first)[1]


def test_questions_of_unknown_words_are_told_apart(evaluate):
    """The tokenizer gives both the same ids, but a report shows the question."""
    rows = [{**full_rows(1)[0], "question": question} for question in ("Where is xyzzy?", "Where is plugh?")]
    assert evaluate(tiny_model(), rows=rows[:1])[1]
    report, ran = evaluate(tiny_model(), rows=rows[1:])
    assert ran
    assert report.items[0]["question"] == "Where is plugh?"


def test_other_code_runs_anew(evaluate, monkeypatch):
    assert evaluate(tiny_model())[1]
    monkeypatch.setattr(cache_module, "code_digest", lambda: "changed")
    assert evaluate(tiny_model())[1]


def test_a_change_of_any_source_file_is_seen(tmp_path, monkeypatch):
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / "a.py").write_text("x = 1\n")
    monkeypatch.setattr(cache_module, "_CODE", tmp_path)
    before = cache_module.code_digest.__wrapped__()
    (tmp_path / "metrics" / "a.py").write_text("x = 2\n")
    assert cache_module.code_digest.__wrapped__() != before


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: json.dumps({**json.loads(text), "schema": "llm-unlearn/report/0"}),
        lambda text: json.dumps({**json.loads(text), "metrics": []}),
        lambda text: json.dumps({key: value for key, value in json.loads(text).items() if key != "items"}),
    ],
    ids=["cut", "empty", "schema", "type", "key"],
)
def test_a_damaged_file_is_made_anew(damage, evaluate, tmp_path):
    evaluate(tiny_model())
    (file,) = (tmp_path / "kept").iterdir()
    whole = file.read_text()
    file.write_text(damage(whole))
    assert evaluate(tiny_model())[1]
    assert EvalReport.from_json(file.read_text()).metrics == EvalReport.from_json(whole).metrics
    assert not evaluate(tiny_model())[1]


def test_a_report_that_cannot_be_kept_is_not_lost(evaluate, tmp_path, monkeypatch):
    warned = []
    monkeypatch.setattr(cache_module.logger, "warning", lambda text, *args: warned.append(text % args))
    (tmp_path / "file").write_text("")
    report, _ = evaluate(tiny_model(), folder=tmp_path / "file")
    assert report.metrics["forget/probability"].value is not None
    assert "is not kept" in warned[0]
