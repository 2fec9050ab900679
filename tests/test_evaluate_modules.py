"""The modules under `eval/metrics`: they load offline, return what their cards say, and can be combined."""

import contextlib
import io
import re

import evaluate
import numpy as np
import pytest

from llm_unlearn.paths import eval_dir

MODULES = ["exact_memorization", "extraction_strength", "forget_quality", "model_utility", "truth_ratio"]

# Item 1 misses its second token of four, item 2 its last of two.
TOKENS = {"predictions": [[5, 6, 7, 8], [1, 2]], "references": [[5, 0, 7, 8], [1, 3]]}
LOSSES = {"true_loss": np.log([2.0, 4.0]), "wrong_losses": [np.log([2.0, 8.0]), np.log([4.0])]}
PARTS = {
    f"{name}/{part}": 0.5
    for name in ("retain", "real_authors", "world_facts")
    for part in ("probability" if name == "retain" else "normalised_probability", "rouge_l_recall", "truth_ratio")
}


@pytest.fixture(autouse=True)
def own_caches(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path)


def path(name):
    return str(eval_dir() / "metrics" / name)


def test_these_are_all_modules_and_each_has_a_card():
    folders = sorted(folder.name for folder in (eval_dir() / "metrics").iterdir())
    assert folders == MODULES
    for name in folders:
        card = (eval_dir() / "metrics" / name / "README.md").read_text(encoding="utf-8")
        headings = re.findall(r"^## (.+)$", card, flags=re.MULTILINE)
        assert headings == ["Inputs", "Outputs", "Example", "Limits", "Citation"]


@pytest.mark.parametrize("name", MODULES)
def test_the_example_of_a_card_runs_and_prints_what_the_card_shows(name):
    card = (eval_dir() / "metrics" / name / "README.md").read_text(encoding="utf-8")
    (code,), (shown,) = (re.findall(rf"```{kind}\n(.*?)```", card, flags=re.DOTALL) for kind in ("python", "text"))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, f"{name}/README.md", "exec"), {})
    assert printed.getvalue() == shown


@pytest.mark.parametrize("name", MODULES)
def test_a_module_loads_under_its_name_and_describes_itself(name):
    module = evaluate.load(path(name))
    assert module.name == name
    assert module.description and "arXiv:" in module.citation and "Returns:" in module.inputs_description


def test_forget_quality_is_the_exact_p_of_the_published_test():
    """Llama-3.2-1B against its retain model: p depends on n = m = 400 and D = 140/400 alone."""
    retain = np.arange(400.0)
    found = evaluate.load(path("forget_quality")).compute(predictions=retain + 140, references=retain)
    assert found["forget_quality"] == pytest.approx(3.9054713571083378e-22, rel=1e-9)
    assert found["log10_p"] == pytest.approx(np.log10(3.9054713571083378e-22), abs=1e-9)
    assert found["statistic"] == 140 / 400
    assert (found["n"], found["m"], found["method"]) == (400, 400, "exact")


def test_forget_quality_takes_as_many_ratios_of_one_model_as_of_the_other():
    with pytest.raises(ValueError, match=r"Mismatch in the number of predictions \(3\) and references \(2\)"):
        evaluate.load(path("forget_quality")).compute(predictions=[1.0, 2.0, 3.0], references=[1.0, 2.0])


@pytest.mark.parametrize(
    ("variant", "ratios", "true_better"),
    [
        # Item 1: P(true) 1/2, wrong 1/2 and 1/8; geometric mean 1/4, arithmetic 5/16. Item 2: both 1/4.
        (None, [0.5, 1.0], (0.5 + 0) / 2),
        ("fixed", [0.5, 1.0], (0.5 + 0) / 2),
        ("open_unlearning", [0.25 / (0.5 + 1e-10), 0.25 / (0.25 + 1e-10)], (0.5 + 0) / 2),
        ("tofu_paper", [0.625, 1.0], (0.375 + 0) / 2),
        ("tofu_code", [0.5, 1.0], (0.375 + 0) / 2),
    ],
)
def test_truth_ratio_by_variant(variant, ratios, true_better):
    found = evaluate.load(path("truth_ratio"), variant).compute(**LOSSES)
    # 1e-10 shows in the ratio only.
    assert found["truth_ratio"] == pytest.approx(ratios, rel=1e-12)
    assert found["closer_to_1_better"] == pytest.approx(np.mean(ratios), rel=1e-9)
    assert found["true_better"] == pytest.approx(true_better, rel=1e-8)
    assert found["prob_mean"] == pytest.approx(np.mean([1 / (1 + ratio) for ratio in ratios]), rel=1e-9)


@pytest.mark.parametrize(
    ("variant", "memorization", "strength"),
    [
        # Hits 1 0 1 1 and 1 0.
        (None, (3 / 4 + 1 / 2) / 2, (2 / 4 + 0 / 2) / 2),
        # Without the last token, hits 1 0 1 and 1.
        ("open_unlearning", (2 / 3 + 1) / 2, (1 / 3 + 1) / 2),
    ],
)
def test_memorisation_by_variant(variant, memorization, strength):
    em, es = (evaluate.load(path(name), variant) for name in MODULES[:2])
    assert em.compute(**TOKENS) == {"exact_memorization": pytest.approx(memorization)}
    assert es.compute(**TOKENS) == {"extraction_strength": pytest.approx(strength)}


def test_the_floor_of_open_unlearning():
    missed = {"predictions": [[1, 2, 9, 4]], "references": [[1, 2, 3, 4]]}
    found = [evaluate.load(path("extraction_strength"), v).compute(**missed) for v in ("fixed", "open_unlearning")]
    assert [value for result in found for value in result.values()] == pytest.approx([1 / 4, 1 / 3])


def test_model_utility_is_a_harmonic_mean_that_one_zero_makes_zero():
    module = evaluate.load(path("model_utility"))
    # 9 / (8 / 0.5 + 1 / 0.25)
    values = [0.25, *[0.5] * 8]
    assert module.compute(part=list(PARTS), value=values) == {"model_utility": pytest.approx(9 / 20)}
    assert module.compute(part=list(PARTS), value=[0.0, *[0.5] * 8]) == {"model_utility": 0.0}


def compute(name, variant=None, **inputs):
    return evaluate.load(path(name), variant).compute(**inputs)


@pytest.mark.parametrize(
    ("name", "variant", "inputs", "sentence"),
    [
        ("truth_ratio", "arithmetic", LOSSES, "There is no variant of the truth ratio 'arithmetic'"),
        ("exact_memorization", "tofu_code", TOKENS, "There is no variant of exact memorisation 'tofu_code'"),
        ("extraction_strength", "openunlearning", TOKENS, "Did you mean 'open_unlearning'?"),
        ("exact_memorization", None, {"predictions": [[1, 2]], "references": [[1]]}, "Item 0 has 2 predictions for 1"),
        ("extraction_strength", None, {"predictions": [[1], [1]], "references": [[1], [1, 2]]}, "Item 1 has 1 pred"),
        ("model_utility", None, {"part": list(PARTS)[:8], "value": [0.5] * 8}, "missing: ['world_facts/truth_ratio']"),
        ("model_utility", None, {"part": [*PARTS, "retain/probability"], "value": [0.5] * 10}, "takes each part once"),
    ],
)
def test_bad_input_is_an_error(name, variant, inputs, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        compute(name, variant, **inputs)


def test_modules_on_tokens_are_combined_in_one_call():
    both = evaluate.combine([path("exact_memorization"), path("extraction_strength")])
    assert both.compute(**TOKENS) == {"exact_memorization": 0.625, "extraction_strength": 0.25}


def test_variants_of_a_module_are_combined_by_names():
    variants = {name: evaluate.load(path("truth_ratio"), name) for name in ("tofu_paper", "tofu_code")}
    found = evaluate.combine(variants).compute(**LOSSES)
    assert found["tofu_paper_truth_ratio"] == pytest.approx([0.625, 1.0])
    assert found["tofu_code_truth_ratio"] == pytest.approx([0.5, 1.0])


@pytest.mark.parametrize(
    ("names", "inputs"),
    [
        (["exact_memorization", "extraction_strength", "truth_ratio", "model_utility"], TOKENS),
        (["forget_quality", "truth_ratio", "model_utility"], {"predictions": [0.5, 1.0], "references": [0.5, 2.0]}),
    ],
)
def test_modules_with_different_inputs_are_combined_by_adding_first(names, inputs):
    parts = {"part": list(PARTS), "value": list(PARTS.values())}
    together = evaluate.combine([path(name) for name in names])
    together.add_batch(**inputs, **LOSSES, **parts)
    own = {"truth_ratio": LOSSES, "model_utility": parts}
    alone = [compute(name, **own.get(name, inputs)) for name in names]
    assert together.compute() == {key: value for result in alone for key, value in result.items()}


def test_what_cannot_be_combined_says_so():
    """Truth ratios are no token ids: the cards say that these two need a call each."""
    mixed = evaluate.combine([path("exact_memorization"), path("forget_quality")])
    with pytest.raises(ValueError, match="don't match the expected format"):
        mixed.add_batch(predictions=[0.5, 1.0], references=[0.5, 2.0])
