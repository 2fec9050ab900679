"""From sets to a report: which passes run, on which rows, and what is said of what could not be measured."""

import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from recipe import run_on_two_processes
from sharded_evaluation import BUDGET, SEED, passes, report
from tiny import tiny_model, tiny_rows, tiny_tokenizer
from tiny_suite import SIZES, full_rows, tiny_sets

from llm_unlearn.data.tokenization import ExampleTokenizer
from llm_unlearn.evaluation import passes as passes_module
from llm_unlearn.evaluation.evaluator import Evaluator
from llm_unlearn.evaluation.metrics import SUMMARIES
from llm_unlearn.evaluation.outputs.continuations import continue_answers
from llm_unlearn.evaluation.outputs.generation import generate, new_token_cap
from llm_unlearn.evaluation.outputs.gradients import UnknownGradient, gradient_norms
from llm_unlearn.evaluation.outputs.scoring import Branches, score
from llm_unlearn.evaluation.outputs.sharding import form_batches
from llm_unlearn.evaluation.passes import Judge
from llm_unlearn.evaluation.report import EvalReport
from llm_unlearn.evaluation.sets import EvalSet

ANSWERED = {
    "train": {},
    "quick": {"forget": 12, "retain": 40, "real_authors": 3, "world_facts": 20},
    "full": SIZES,
}


@pytest.fixture(scope="module")
def tokenizer():
    return ExampleTokenizer(tiny_tokenizer())


@pytest.fixture(scope="module")
def sets(tokenizer):
    return tiny_sets(tokenizer)


def judge_by(model):
    return Judge("judge", lambda: nullcontext(model))


@pytest.fixture(scope="module")
def full_report(tokenizer, sets):
    """A full report of one model, judged by another."""
    evaluator = Evaluator(tokenizer, sets, "full", max_new_tokens=12, progress=False)
    return evaluator.evaluate(tiny_model(seed=SEED), judge_by(tiny_model(seed=4)))


def evaluated(sets, tokenizer, tier="train", model=None, **options):
    return Evaluator(tokenizer, sets, tier, max_new_tokens=4, progress=False, **options).evaluate(model or tiny_model())


def of_set(result, name):
    return [item for item in result.items if item["set"] == name]


@pytest.mark.parametrize("tier", ["train", "quick", "full"])
def test_each_pass_runs_once_over_all_sets(tier, tokenizer, sets, monkeypatch):
    runs = []

    def counted(kind, function):
        def run(model, rows, *args, **options):
            runs.append((kind, len(rows)))
            return function(model, rows, *args, **options)

        return run

    for kind in ("score", "generate", "continue_answers", "gradient_norms"):
        monkeypatch.setattr(passes_module, kind, counted(kind, getattr(passes_module, kind)))
    judge = tiny_model(seed=4)
    evaluator = Evaluator(tokenizer, list(reversed(sets)), tier, max_new_tokens=3, progress=False)
    result = evaluator.evaluate(tiny_model(), judge_by(judge))

    asked = sum(ANSWERED[tier].values())
    own = [("continue_answers", 12), ("gradient_norms", 22), ("score", 12)] if tier == "full" else []
    assert runs == [("score", 90), *([("generate", asked)] if asked else []), *own]
    assert list(dict.fromkeys(item["set"] for item in result.items)) == list(SIZES)
    for name, size in SIZES.items():
        assert result.metrics[f"{name}/probability"].n == size
        assert result.metrics[f"{name}/rouge_l_recall"].n == ANSWERED[tier].get(name, 0)
        answered = [item["text"] is not None for item in of_set(result, name)]
        assert answered == [row < ANSWERED[tier].get(name, 0) for row in range(size)]
    assert result.provenance["tier"] == tier
    assert result.provenance["rows"] == SIZES


def test_the_value_of_a_metric_is_the_mean_over_its_items(full_report):
    shown = {"forget": lambda r: min(r, 1 / r)}
    for name, record in full_report.metrics.items():
        if "/" not in name or record.value is None:
            continue
        set_name, metric = name.split("/")
        values = [item[metric] for item in of_set(full_report, set_name) if metric in item]
        if metric == "truth_ratio":
            values = [shown.get(set_name, lambda r: max(0, 1 - r))(value) for value in values]
        assert len(values) == record.n
        assert record.value == pytest.approx(np.mean(values))
        assert record.ci95[0] <= record.value <= record.ci95[1]
    assert {"forget/el_10", "forget/zrf", "holdout/zrf", "retain/truth_ratio"} <= full_report.metrics.keys()
    item = full_report.items[0]
    assert item["probability"] == pytest.approx(np.exp(-item["loss"]))
    assert item["loss"] == pytest.approx(-np.mean(item["token_logprobs"]), abs=1e-5)
    assert len(item["token_logprobs"]) == item["n_tokens"]
    assert {item["set"] for item in full_report.items if "token_logprobs" in item} == {"forget", "holdout"}


def test_the_items_of_the_full_tier_are_those_of_the_passes_alone(full_report, tokenizer, sets):
    """Every column that no other test computes again, from one answer or one row at a time."""
    model, forget = tiny_model(seed=SEED), of_set(full_report, "forget")

    def loss(item):
        return score(model, [Branches.of([item])], progress=False)[0][0].loss

    for position in (0, 5, 11):
        item, truth = forget[position], sets[0].items[position]
        paraphrase = loss(sets[0].paraphrases[position][0])
        wrong = [loss(answer) for answer in sets[0].wrong[position]]
        assert len(wrong) == 2 + position % 3
        assert item["paraphrase_probability"] == pytest.approx(np.exp(-paraphrase), rel=1e-4)
        assert item["wrong_answer_probability"] == pytest.approx(np.exp(-np.array(wrong)).mean(), rel=1e-4)
        assert item["truth_ratio"] == pytest.approx(np.exp(paraphrase - np.mean(wrong)), rel=1e-4)
        assert item["gradnorm"] == pytest.approx(
            gradient_norms(model, [Branches.of([truth])], progress=False)[0], rel=1e-4
        )
        (answer,) = generate(model, [truth], tokenizer, [12], progress=False)
        assert (item["text"], item["ended"]) == (answer.text, answer.ended)
        judged = Branches.of([tokenizer({"text": answer.text}, 0)])
        ((text,),) = score(tiny_model(seed=4), [judged], progress=False)
        assert item["text_nll"] == pytest.approx(text.loss, abs=1e-5)
    # Only answers of ten tokens or more have a 10-gram.
    long = [len(item.answer_ids) >= 10 for item in sets[0].items]
    assert ["el_10" in item for item in forget] == long
    assert 0 < sum(long) < 12
    record = full_report.metrics["forget/el_10"]
    assert (record.n, record.details) == (sum(long), {"left_out": 12 - sum(long)})
    (continued,) = continue_answers(model, [sets[0].items[long.index(True)]], tokenizer, progress=False)
    assert len(continued) > 0


def test_the_unigram_teacher_counts_all_answers_plus_one(tokenizer, sets):
    counts = np.ones(120)
    for eval_set in sets:
        for item in eval_set.items:
            np.add.at(counts, item.answer_ids, 1)
    np.testing.assert_allclose(passes_module._unigram(tiny_model(), sets), counts / counts.sum(), rtol=1e-6)


def test_rows_without_alternatives_are_left_out_and_counted(tokenizer):
    rows = full_rows(6)
    rows[1] = {**rows[1], "paraphrased_answer": " "}
    rows[2] = {**rows[2], "perturbed_answer": []}
    rows[3] = {**rows[3], "perturbed_answer": ["", *rows[3]["perturbed_answer"]]}
    rows[4] = {**rows[4], "paraphrased_answer": None, "perturbed_answer": None}
    result = evaluated([EvalSet.of("forget", rows, tokenizer)], tokenizer)
    whole = evaluated([EvalSet.of("forget", full_rows(6), tokenizer)], tokenizer)
    for metric, kept in (
        ("paraphrase_probability", [0, 2, 3, 5]),
        ("wrong_answer_probability", [0, 1, 3, 5]),
        ("truth_ratio", [0, 3, 5]),
    ):
        record = result.metrics[f"forget/{metric}"]
        assert (record.n, record.details) == (len(kept), {"left_out": 6 - len(kept)})
        assert [row for row, item in enumerate(result.items) if metric in item] == kept
        for row in kept:
            assert result.items[row][metric] == pytest.approx(whole.items[row][metric], rel=1e-5)
    assert result.metrics["forget/probability"].details is None

    bare = evaluated([EvalSet.of("forget", tiny_rows(3), tokenizer)], tokenizer).metrics["forget/truth_ratio"]
    assert bare.not_measured.endswith("have no `paraphrased_answer`; use a `*_perturbed` split")


def test_value_recall_reads_only_rows_with_a_value(tokenizer):
    rows = tiny_rows(4)
    rows[1] = {**rows[1], "value": None}
    rows[3] = {**rows[3], "value": 1983}
    rows[2] = {"question": rows[2]["question"], "answer": rows[2]["answer"]}
    result = evaluated([EvalSet.of("forget", rows, tokenizer)], tokenizer, "quick")
    assert result.metrics["forget/value_recall"].n == 2
    assert ["value_recall" in item for item in result.items] == [True, False, False, True]

    bare = [{"question": row["question"], "answer": row["answer"]} for row in rows]
    assert "forget/value_recall" not in evaluated([EvalSet.of("forget", bare, tokenizer)], tokenizer, "quick").metrics


def test_what_a_tier_does_not_run_says_how_to_get_it(tokenizer, sets):
    train, quick = evaluated(sets, tokenizer), evaluated(sets, tokenizer, "quick")
    for result, name, mend in (
        (quick, "holdout/rouge_l_recall", "the quick tier generates no answers on holdout; use `--eval full`"),
        (train, "holdout/rouge_l_recall", "the train tier generates no answers on holdout; use `--eval full`"),
        (train, "forget/value_recall", "the train tier generates no answers on forget; use `--eval quick`"),
        (train, "model_utility", "the train tier generates no answers on retain; use `--eval quick`"),
        (quick, "forget/el_10", "only the full tier runs it; use `--eval full`"),
        (quick, "mia_gradnorm", "only the full tier runs it; use `--eval full`"),
    ):
        record = result.metrics[name]
        assert record.value is record.ci95 is None
        assert record.not_measured == f"not measured: {mend}"
    assert train.provenance["generation"] == "none"
    assert quick.provenance["generation"].endswith("and 1.5 x the tokens of the true answer + 16")
    full = evaluated(sets[:3], tokenizer, "full")
    assert full.metrics["mia_gradnorm"].not_measured.endswith("; name one with `--holdout_split`")
    assert full.provenance["not_measured"]["forget/text_nll"].endswith("evaluate its adapter")


def test_plain_text_is_scored_and_asked_nothing(tokenizer):
    texts = [{"text": f"{row['question']} {row['answer']}"} for row in tiny_rows(5)]
    result = evaluated([EvalSet.of("forget", texts, tokenizer)], tokenizer, "full")
    assert result.metrics["forget/probability"].n == 5
    assert "plain text" in result.metrics["forget/rouge_l_recall"].not_measured
    assert all(item["text"] is None for item in result.items)


def test_the_caps_of_tiers_and_conventions(tokenizer, sets):
    item = sets[0].items[0]
    quick, full = (Evaluator(tokenizer, sets, tier) for tier in ("quick", "full"))
    assert quick.cap(item) == new_token_cap(len(item.answer_ids), 200) < 200
    assert full.cap(item) == 200
    total = Evaluator(tokenizer, sets, "full", compat="tofu_code")
    assert total.cap(item) == 200 - item.prompt_length
    assert "200 with the prompt" in total.settings["generation"]


def test_a_collapsed_model_yields_null_with_a_reason(tokenizer, sets):
    model = tiny_model()
    model.get_output_embeddings().weight.data[3] = float("nan")
    result = evaluated(sets, tokenizer, "full", model)
    measured = {name for name, record in result.metrics.items() if record.value is not None}
    assert measured == set()
    for metric in ("probability", "exact_memorization", "rouge_l_recall", "empty", "zrf", "value_recall"):
        reason = result.metrics[f"forget/{metric}"].not_measured
        assert reason.startswith("not measured: 12 of 12 values are not finite")
        assert "smaller `--learning_rate`" in reason
    for name in ("mem", "mia_loss", "mia_gradnorm", "zrf_gap", "teacher_forced_utility"):
        assert "values are not finite" in result.metrics[name].not_measured
    stored = json.loads(result.to_json(), parse_constant=pytest.fail)
    assert stored["items"][0]["loss"] is None
    assert set(stored["items"][0]["token_logprobs"]) == {None}
    assert EvalReport.from_json(result.to_json()) == result


def test_one_broken_row_spoils_what_is_said_of_its_set(tokenizer, sets):
    model = tiny_model()
    rows = full_rows(10)
    rows[4]["answer"] += " river"
    both = [EvalSet.of("forget", rows, tokenizer), sets[4]]
    (river,) = tokenizer.tokenizer("river", add_special_tokens=False).input_ids
    model.get_input_embeddings().weight.data[river] = float("nan")
    result = evaluated(both, tokenizer, "train", model)
    assert [item["loss"] is None for item in result.items] == [row == 4 for row in range(20)]
    assert "1 of 10 values are not finite" in result.metrics["forget/probability"].not_measured
    assert result.metrics["holdout/probability"].value is not None
    # Not an attack on what is left of the forget set.
    assert "1 of 10 values are not finite" in result.metrics["mia_loss"].not_measured


@pytest.mark.parametrize("name", [*SUMMARIES, "forget/probability", "forget/rouge_l_recall", "forget/el_10"])
def test_what_is_asked_for_by_name_must_be_measured(name, tokenizer, sets):
    full = Evaluator(tokenizer, sets, "full")
    full.require([name], has_before=True, has_reference=True)
    needs = {need[0] for need in SUMMARIES[name].needs} if name in SUMMARIES else {"own"}
    for whose, given, mend in (
        ("before", {"has_before": False, "has_reference": True}, "was not evaluated"),
        ("reference", {"has_before": True, "has_reference": False}, "make one with `llm-unlearn eval"),
    ):
        if whose in needs:
            with pytest.raises(ValueError, match=f"`{name}` was asked for by name, but is not measured: .*{mend}"):
                full.require([name], **given)
    columns = {need[1:] for need in SUMMARIES[name].needs} if name in SUMMARIES else {tuple(name.split("/"))}
    both = {"has_before": True, "has_reference": True}
    if "holdout" in {set_name for set_name, _ in columns}:
        with pytest.raises(ValueError, match="no holdout set; name one with `--holdout_split`"):
            Evaluator(tokenizer, sets[:4], "full").require([name], **both)
    if {column for _, column in columns} & {"rouge_l_recall", "el_10", "text", "gradnorm", "zrf"}:
        with pytest.raises(ValueError, match="use `--eval (quick|full)`"):
            Evaluator(tokenizer, sets, "train").require([name], **both)
    if {column for _, column in columns} & {"truth_ratio", "paraphrase_probability"}:
        plain = [EvalSet.of(one.name, tiny_rows(2), tokenizer) for one in sets]
        with pytest.raises(ValueError, match="use a `\\*_perturbed` split"):
            Evaluator(tokenizer, plain, "full").require([name], **both)


def test_unknown_names_are_explained(tokenizer, sets):
    evaluator = Evaluator(tokenizer, sets)
    with pytest.raises(ValueError, match="Did you mean 'forget_quality'"):
        evaluator.require(["forget_qualty"], has_before=True, has_reference=True)
    with pytest.raises(ValueError, match="Did you mean 'quick'"):
        Evaluator(tokenizer, sets, "quik")
    with pytest.raises(ValueError, match="Did you mean 'tofu_paper'"):
        Evaluator(tokenizer, sets, compat="tofu-papre")
    with pytest.raises(ValueError, match="Did you mean 'forget'"):
        EvalSet.of("forgets", tiny_rows(2), tokenizer)
    with pytest.raises(ValueError, match="The set `holdout` is empty"):
        EvalSet.of("holdout", [], tokenizer)
    with pytest.raises(ValueError, match="has 12 rows but 3 tokenised items"):
        EvalSet("forget", sets[0].rows, sets[0].items[:3], sets[0].paraphrases, sets[0].wrong)
    with pytest.raises(ValueError, match="distinct names"):
        Evaluator(tokenizer, [sets[0], sets[0]])
    with pytest.raises(ValueError, match="given none"):
        Evaluator(tokenizer, [])


def test_two_processes_report_what_one_does(tmp_path):
    run_on_two_processes(Path(__file__).parent / "sharded_evaluation.py", tmp_path)
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]

    assert [rank["num_processes"] for rank in ranks] == [2, 2]
    assert [rank["reused"] for rank in ranks] == [[False, True]] * 2
    assert [rank["same"] for rank in ranks] == [True, True]
    assert ranks[0]["passes"] == ranks[1]["passes"]
    one = passes(tiny_model(seed=SEED))
    assert one["answers"] == ranks[0]["passes"]["answers"]
    for mine, theirs in zip(one["logprobs"], ranks[0]["passes"]["logprobs"], strict=True):
        for own, other in zip(mine, theirs, strict=True):
            np.testing.assert_allclose(own, other, atol=1e-6)
    # Each batch ran once, on one of the two, behind three of each: what prompts share, and a trial of trees.
    batches = form_batches([(unit.n_tokens, 0) for unit in tiny_sets()[0].questions()], BUDGET)
    assert sum(rank["forwards"] for rank in ranks) == len(batches) + 6
    assert min(rank["forwards"] for rank in ranks) >= 4

    alone = EvalReport.from_json(report(tiny_model(seed=SEED)))
    two = [EvalReport.from_json(rank["report"]) for rank in ranks]
    assert two[0].items == two[1].items
    assert two[0].metrics == two[1].metrics
    assert_same_reports(alone, two[0])


def assert_same_reports(one, other, atol=1e-6):
    """Texts identical, numbers within `atol`, or a millionth of large ones."""
    for mine, theirs in zip(one.items, other.items, strict=True):
        assert mine.keys() == theirs.keys()
        for key, value in mine.items():
            is_number = isinstance(value, float | list)
            assert value == (pytest.approx(theirs[key], abs=atol, rel=1e-6) if is_number else theirs[key]), key
    assert one.metrics.keys() == other.metrics.keys()
    for name, record in one.metrics.items():
        value, same = record.value, other.metrics[name]
        assert value == (None if same.value is None else pytest.approx(same.value, abs=atol, rel=1e-6)), name
        assert (record.n, record.not_measured) == (same.n, same.not_measured)


def test_a_wrapped_model_can_be_evaluated(tokenizer, sets):
    plain = tiny_model()
    wrapped = torch.nn.DataParallel(plain)
    assert evaluated(sets[:1], tokenizer, "full", wrapped).items == evaluated(sets[:1], tokenizer, "full", plain).items


def test_a_layer_without_known_gradient_costs_only_the_gradient_norms(tokenizer, sets, monkeypatch):
    def unknown(*_, **__):
        raise UnknownGradient("a layer of type Strange is not known.")

    monkeypatch.setattr(passes_module, "gradient_norms", unknown)
    report = evaluated(sets, tokenizer, "full")
    assert report.metrics["mia_gradnorm"].not_measured == "not measured: a layer of type Strange is not known."
    assert report.metrics["mia_loss"].value is not None


def test_what_no_report_holds_cannot_be_asked_for(tokenizer, sets):
    given = {"has_before": True, "has_reference": True}
    evaluator = Evaluator(tokenizer, sets, "full", progress=False)
    with pytest.raises(ValueError, match="forget/min_k"):
        evaluator.require(["forget/min_k"], **given)
    with pytest.raises(ValueError, match="`--max_new_tokens` is 0"):
        Evaluator(tokenizer, sets, max_new_tokens=0)


def test_what_is_cut_or_left_out_is_counted(sets):
    short = ExampleTokenizer(tiny_tokenizer(), max_length=20)
    rows = full_rows(3)
    rows[1] = {**rows[1], "perturbed_answer": [rows[1]["perturbed_answer"][0], " ", ""]}
    one = EvalSet.of("forget", rows, short)
    cut = sum(not item.has_end for some in (one.items, *one.paraphrases, *one.wrong) for item in some)
    assert cut > 0
    expected = {"answers cut at `--max_length`": cut, "empty wrong answers left out": 2}
    assert one.curtailed == expected
    report = evaluated([one], short)
    assert report.provenance["curtailed"] == {"forget": expected}
    assert "forget: 2 empty wrong answers left out" in report.to_markdown()
    assert evaluated(sets, ExampleTokenizer(tiny_tokenizer())).provenance["curtailed"] == {}
