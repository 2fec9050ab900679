"""The sets that an evaluation of a forget split reads, and the conventions they follow."""

import dataclasses
import json

import numpy as np
import pytest
from tiny import tiny_model, tiny_rows, tiny_tokenizer
from tiny_suite import full_rows, tiny_sets

from llm_unlearn.data.sources import load_rows
from llm_unlearn.data.tokenization import ExampleTokenizer
from llm_unlearn.evaluation.conventions import CONVENTIONS, get_convention
from llm_unlearn.evaluation.evaluator import Evaluator
from llm_unlearn.evaluation.metrics.likelihood import normalised_probability
from llm_unlearn.evaluation.metrics.membership import min_k
from llm_unlearn.evaluation.metrics.truth_ratio import truth_ratio
from llm_unlearn.evaluation.outputs.scoring import Branches, score
from llm_unlearn.evaluation.report import EvalReport
from llm_unlearn.evaluation.sets import EvalSet
from llm_unlearn.evaluation.suites import SuiteSettings, tofu_evaluator

ALTERNATIVES = ("paraphrased_answer", "perturbed_answer")


def plain(rows):
    return [{"question": row["question"], "answer": row["answer"]} for row in rows]


def numbered(count, kind):
    """Rows of the same shape, as many as wanted."""
    return [{"question": f"Where was {kind} {i} born?", "answer": f"in house {i}"} for i in range(count)]


@pytest.fixture(scope="module")
def tokenize():
    return ExampleTokenizer(tiny_tokenizer())


@pytest.fixture
def source(tmp_path):
    """A folder with the splits of TOFU, few rows each."""
    rows = full_rows(60)
    splits = {
        "forget01": plain(rows[:6]),
        "forget01_perturbed": rows[:6],
        "retain99": plain(rows[10:30]),
        "retain_perturbed": rows[10:25],
        "real_authors_perturbed": rows[30:40],
        "world_facts_perturbed": rows[40:50],
        "holdout01": plain(rows[50:54]),
        "strangers": plain(rows[54:57]),
    }
    for name, some in splits.items():
        write(tmp_path / f"{name}.jsonl", some)
    return tmp_path


def write(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def suite(tokenize, source, split="forget01", retain=None, **settings):
    evaluator = tofu_evaluator(
        tokenize, load_rows(split, source), source, SuiteSettings(progress=False, **settings), forget_split=split,
        retain=retain,
    )  # fmt: skip
    return {eval_set.name: eval_set for eval_set in evaluator.sets}


def counts(sets):
    return {name: len(eval_set.rows) for name, eval_set in sets.items()}


def test_the_sets_of_a_split_with_their_alternatives(tokenize, source):
    sets = suite(tokenize, source)
    assert counts(sets) == {"forget": 6, "retain": 15, "real_authors": 10, "world_facts": 10, "holdout": 4}
    for name, eval_set in sets.items():
        for row, (paraphrase, wrong) in enumerate(zip(eval_set.paraphrases, eval_set.wrong, strict=True)):
            known = {} if name == "holdout" else eval_set.rows[row]
            assert len(paraphrase) == (known != {})
            assert len(wrong) == len(known.get("perturbed_answer", ()))
            for item, text in zip([*paraphrase, *wrong], [known.get(ALTERNATIVES[0]), *known.get(ALTERNATIVES[1], [])],
                                  strict=False):  # fmt: skip
                assert tokenize.decode(item.answer_ids) == text
                assert item.prompt_ids == eval_set.items[row].prompt_ids


def test_alternatives_are_joined_by_question_and_answer(tokenize, source):
    rows = full_rows(60)
    slice_ = suite(tokenize, source, "forget01[2:5]")["forget"]
    assert [row["question"] for row in slice_.rows] == [row["question"] for row in rows[2:5]]
    assert [row["perturbed_answer"] for row in slice_.rows] == [row["perturbed_answer"] for row in rows[2:5]]
    assert [item.index for item in slice_.items] == [0, 1, 2]

    # Another order, one row with another answer, and one that the perturbed split does not have.
    write(source / "forget01_perturbed.jsonl", [rows[3], {**rows[0], "answer": "another"}, *rows[1:3]])
    joined = suite(tokenize, source)["forget"]
    assert [bool(paraphrase) for paraphrase in joined.paraphrases] == [False, True, True, True, False, False]
    assert [len(wrong) for wrong in joined.wrong] == [0, 3, 4, 2, 0, 0]

    # The rows a model was trained on, as the retain set: those of them that have alternatives keep them.
    trained = suite(tokenize, source, retain=plain(rows[22:30]))["retain"]
    assert [bool(paraphrase) for paraphrase in trained.paraphrases] == [True] * 3 + [False] * 5
    (source / "forget01_perturbed.jsonl").unlink()
    assert not any(suite(tokenize, source)["forget"].wrong)


def test_the_rows_of_utility_sets_can_be_cut(tokenize, source):
    assert counts(suite(tokenize, source, max_rows=[3])) == {
        "forget": 6, "retain": 3, "real_authors": 3, "world_facts": 3, "holdout": 4,
    }  # fmt: skip
    cut = suite(tokenize, source, max_rows=[3, 20, 1])
    assert counts(cut) == {"forget": 6, "retain": 3, "real_authors": 10, "world_facts": 1, "holdout": 4}
    assert cut["retain"].rows == suite(tokenize, source)["retain"].rows[:3]
    for wrong in ([3, 3], [0], [1, 2, 3, 4], [1, -1, 1]):
        with pytest.raises(ValueError, match="`--max_rows` is .*; give one number of rows, or three"):
            SuiteSettings(max_rows=wrong)


def test_outsiders_come_from_the_holdout_split(tokenize, source):
    rows = full_rows(60)
    assert plain(suite(tokenize, source, "forget01[0:2]")["holdout"].rows) == plain(rows[50:52])
    assert plain(suite(tokenize, source, holdout_split="strangers")["holdout"].rows) == plain(rows[54:57])
    write(source / "mixed.jsonl", plain([rows[55], rows[2]]))
    with pytest.raises(ValueError, match="1 rows of the holdout split mixed are in the forget set.*--holdout_split"):
        suite(tokenize, source, holdout_split="mixed")
    (source / "holdout01.jsonl").unlink()
    assert "holdout" not in suite(tokenize, source)
    write(source / "people.jsonl", plain(rows[:3]))
    assert "holdout" not in suite(tokenize, source, "people")
    with pytest.raises(ValueError, match="nowhere"):
        suite(tokenize, source, holdout_split="nowhere")


def test_twenty_rows_of_the_benchmark_are_an_author(tokenize, source):
    write(source / "forget10.jsonl", numbered(400, "a"))
    write(source / "holdout10.jsonl", numbered(400, "b"))
    write(source / "retain_perturbed.jsonl", [{**row, "perturbed_answer": ["no"]} for row in numbered(400, "c")])
    write(source / "real_authors_perturbed.jsonl", [{**r, "perturbed_answer": ["no"]} for r in numbered(100, "d")])
    sets = suite(tokenize, source, "forget10", max_rows=[50])
    assert sets["forget"].clusters == sets["holdout"].clusters == [row // 20 for row in range(400)]
    assert sets["retain"].clusters == [row // 20 for row in range(50)]
    assert sets["real_authors"].clusters is None
    # Fewer rows than the benchmark has are none of its rows.
    assert suite(tokenize, source)["forget"].clusters is None
    assert suite(tokenize, source, "forget10[0:40]")["forget"].clusters is None
    write(source / "forget01.jsonl", [{**row, "author": "Ada"} for row in plain(full_rows(6))])
    assert suite(tokenize, source)["forget"].clusters == ["Ada"] * 6


def test_the_bundled_data_know_their_authors(tokenize):
    evaluator = tofu_evaluator(tokenize, load_rows("forget10", "data/tofu"), forget_split="forget10")
    sets = {eval_set.name: eval_set for eval_set in evaluator.sets}
    assert counts(sets) == {"forget": 80, "retain": 200, "real_authors": 60, "world_facts": 60, "holdout": 80}
    assert all(sets["forget"].paraphrases) and all(sets["forget"].wrong)
    assert evaluator.tier == "quick"
    assert evaluator.settings["compat"] == "fixed"


# Conventions.


def test_conventions_are_known_by_name():
    assert list(CONVENTIONS) == ["fixed", "open_unlearning", "tofu_code", "tofu_paper"]
    assert get_convention("open-unlearning") is get_convention("open_unlearning")
    with pytest.raises(ValueError, match=r"convention \(`--compat`\).*Did you mean 'tofu_code'"):
        get_convention("tofucode")


def test_tofu_code_takes_the_first_300_rows_and_a_total_length(tokenize, source):
    write(source / "forget10.jsonl", numbered(400, "a"))
    write(source / "holdout10.jsonl", numbered(400, "b"))
    sets = suite(tokenize, source, "forget10", compat="tofu-code", max_rows=[12, 7, 500])
    assert counts(sets) == {"forget": 300, "retain": 12, "real_authors": 7, "world_facts": 10, "holdout": 300}
    assert sets["forget"].rows[299]["answer"] == "in house 299"
    item = sets["forget"].items[0]
    full = Evaluator(tokenize, list(sets.values()), "full", compat="tofu_code", max_new_tokens=200)
    assert full.cap(item) == 200 - item.prompt_length
    short = Evaluator(tokenize, list(sets.values()), "full", compat="tofu_code", max_new_tokens=20)
    assert short.cap(item) == 20


def test_open_unlearning_scores_what_the_template_writes_behind_the_answer(source):
    tokenizer = tiny_tokenizer()
    # A tokenizer with a token for the newline that the template writes after the end of a turn.
    tokenizer.chat_template = tokenizer.chat_template.replace("<|end|>\n", "<|end|> hill ")
    tokenize = ExampleTokenizer(tokenizer)
    ours, theirs = (suite(tokenize, source, compat=name)["forget"] for name in ("fixed", "open-unlearning"))
    end, hill = tokenizer.convert_tokens_to_ids(["<|end|>", "hill"])
    for mine, other in zip(ours.items, theirs.items, strict=True):
        assert mine.input_ids[-1] == end
        assert other.input_ids == [*mine.input_ids, hill, end]
    for mine, other in zip(ours.wrong[0], theirs.wrong[0], strict=True):
        assert other.input_ids == [*mine.input_ids, hill, end]


def losses(model, items):
    return np.array([scores[0].loss for scores in score(model, [Branches.of([i]) for i in items], progress=False)])


@pytest.mark.parametrize("name", CONVENTIONS)
def test_every_convention_computes_its_own_definitions(name, tokenize):
    model, convention = tiny_model(), get_convention(name)
    sets = tiny_sets(tokenize, {"forget": 5, "real_authors": 4, "holdout": 3})
    report = Evaluator(tokenize, sets, "train", compat=name, progress=False).evaluate(model)

    def values(set_name, metric):
        return [item[metric] for item in report.items if item["set"] == set_name]

    forget, authors, _ = sets
    wrong = {one.name: [losses(model, some) for some in one.wrong] for one in sets[:2]}
    paraphrased = losses(model, [some[0] for some in forget.paraphrases])
    true = losses(model, authors.items)
    epsilon = 1e-10 if name == "open_unlearning" else 0.0
    quality = "arithmetic" if name == "tofu_paper" else "geometric"
    utility = "arithmetic" if name.startswith("tofu") else "geometric"
    assert values("forget", "truth_ratio") == pytest.approx(
        truth_ratio(paraphrased, wrong["forget"], quality, epsilon), rel=1e-4
    )
    assert values("real_authors", "truth_ratio") == pytest.approx(
        truth_ratio(true, wrong["real_authors"], utility, epsilon), rel=1e-4
    )
    assert values("real_authors", "normalised_probability") == pytest.approx(
        normalised_probability(true, wrong["real_authors"], epsilon), rel=1e-4
    )
    peer = name == "open_unlearning"
    details = [scores[0] for scores in score(model, forget.questions(), progress=False)]
    hits = [one.hits[: -1 if peer else None] for one in details]
    assert values("forget", "exact_memorization") == pytest.approx([one.mean() for one in hits])
    assert values("forget", "ma") == pytest.approx([one.hits.mean() for one in details])
    ends = [len(one) - max(np.flatnonzero(~one), default=-1) - 1 for one in hits]
    expected = [max(end, peer) / len(one) for end, one in zip(ends, hits, strict=True)]
    assert values("forget", "extraction_strength") == pytest.approx(expected)
    scored = [one.logprobs[: -1 if peer else None] for one in details]
    assert values("forget", "min_k") == pytest.approx(min_k(scored), rel=1e-4)

    variants = {metric: record.variant for metric, record in report.metrics.items()}
    fields = {
        "forget/truth_ratio": name,
        "real_authors/normalised_probability": name if peer else "fixed",
        "forget/exact_memorization": name if peer else "fixed",
        "forget/extraction_strength": name if peer else "fixed",
        "forget/rouge_l_recall": name if name == "tofu_code" else "fixed",
        "forget/probability": name if peer else "fixed",
        "mem": convention.name,
    }
    assert {metric: variants[metric] for metric in fields} == fields
    assert report.provenance["compat"] == name


def test_reports_of_different_conventions_or_tokenizers_are_not_compared(tokenize):
    sets = tiny_sets(tokenize, {"forget": 4})

    def evaluator(some=sets, tokenizer=tokenize, **options):
        return Evaluator(tokenizer, some, "train", progress=False, **options)

    ours = evaluator().evaluate(tiny_model())
    theirs = evaluator(compat="open_unlearning").evaluate(tiny_model())
    for refused in (lambda: EvalReport.compare(ours, reference=theirs), lambda: evaluator().require_fit(theirs)):
        with pytest.raises(ValueError, match=r"another convention \(open_unlearning there, fixed here\).*`--compat`"):
            refused()
    with pytest.raises(ValueError, match="The before report was made with another convention"):
        EvalReport.compare(ours, theirs)

    other = ExampleTokenizer(tiny_tokenizer(chat_template=False))
    strange = evaluator(tiny_sets(other, {"forget": 4}), other).evaluate(tiny_model())
    for refused in (lambda: EvalReport.compare(ours, reference=strange), lambda: evaluator().require_fit(strange)):
        with pytest.raises(ValueError, match="another tokenizer, prompt or length"):
            refused()
    evaluator().require_fit(ours)
    # More or fewer rows of other sets are no other data.
    larger = evaluator(tiny_sets(tokenize, {"forget": 4, "retain": 3})).evaluate(tiny_model())
    assert EvalReport.compare(ours, reference=larger).metrics["forget/probability"].target is not None
    shifted = [EvalSet.of("forget", tiny_rows(4, first=1), tokenize)]
    with pytest.raises(ValueError, match="row 0 of forget"):
        evaluator(shifted).require_fit(ours)
    fewer = dataclasses.replace(ours, items=ours.items[:3])
    with pytest.raises(ValueError, match="row 3 of forget is missing there"):
        evaluator().require_fit(fewer)
