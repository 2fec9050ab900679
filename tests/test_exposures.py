"""How often fine-tuning showed each fact, and the facts that rows state."""

import json

import pytest
from recipe import refused, run_recipe, save_tiny_model, write_rows
from tiny import tiny_model, tiny_rows, tiny_tokenizer

from llm_unlearn.data.world import make_world
from llm_unlearn.exposures import Exposures, key_of_fact, key_of_row, key_of_text, rows_per_fact
from llm_unlearn.finetune import FinetuneConfig, FinetuneTrainer
from llm_unlearn.probes.counts.exposures import read_exposures
from llm_unlearn.probes.world import TEMPLATES, facts_of_world

WORLD = make_world(10, exposures=(1, 2, 4, 8, 16))
TAUGHT = [*WORLD.configs["full"], *WORLD.configs["restatements"]]


def finetune(folder, rows, resume=False, **options):
    shared = {"use_cpu": True, "disable_tqdm": True, "report_to": "none", "save_strategy": "no", "learning_rate": 1e-3}
    shared |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "num_train_epochs": 2}
    args = FinetuneConfig(output_dir=str(folder), **(shared | options))
    trainer = FinetuneTrainer(tiny_model(), args, rows, tiny_tokenizer())
    trainer.train(resume_from_checkpoint=resume)
    return trainer


# What is recorded.


def test_rows_of_a_world_state_as_many_facts_as_it_says():
    """Ten authors with twenty facts each; of the five counts, each is that of two authors."""
    rows_of = rows_per_fact(TAUGHT)
    assert len(rows_of) == 200
    assert sorted(rows_of.values()) == sorted([1, 2, 4, 8, 16] * 40)
    for row in WORLD.configs["full"]:
        assert rows_of[key_of_row(row)] == row["exposures"]


def test_other_rows_are_facts_of_their_own():
    first, second = tiny_rows(2)
    assert key_of_row(first) == key_of_text(first["question"], first["answer"]) != key_of_row(second)
    told = {"author": "Ada", "attribute": "trade"}
    assert (
        key_of_row({**first, **told})
        == key_of_row({**told, "value": first["value"]})
        == key_of_fact("Ada", "trade", first["value"])
    )
    assert key_of_row({"text": "so"}) == key_of_text("so") != key_of_row({"text": "so?"})
    rows_of = rows_per_fact([first, first, second, {**first, "author": None}])
    assert rows_of == {key_of_row(first): 3, key_of_row(second): 1}


def test_counts_are_rows_times_epochs(tmp_path):
    """Three rows of one fact and one of another, for two epochs: 6 and 2. In 3 of 2 steps an epoch: 1.5 epochs."""
    row, other = tiny_rows(2)
    rows = [row, other, row, row]
    shown = finetune(tmp_path, rows).exposures()
    assert shown.counts == {key_of_row(row): 6, key_of_row(other): 2} and shown.exact
    assert shown.runs == ({"rows": 4, "facts": 2, "epochs": 2.0, "exact": True},)
    shown = finetune(tmp_path, rows, max_steps=3).exposures()
    assert shown.counts == {key_of_row(row): 4.5, key_of_row(other): 1.5} and not shown.exact
    assert not finetune(tmp_path, rows[:3], dataloader_drop_last=True).exposures().exact


def test_a_resumed_run_counts_what_it_had_shown_before(tmp_path):
    rows = tiny_rows(4)
    finetune(tmp_path, rows, num_train_epochs=1, save_strategy="epoch")
    resumed = finetune(tmp_path, rows, num_train_epochs=3, resume=True)
    assert resumed.state.global_step == 6
    assert set(resumed.exposures().counts.values()) == {3}
    again = finetune(tmp_path, rows, num_train_epochs=1, resume=True)
    assert set(again.exposures().counts.values()) == {1}, "there was nothing left to train"


def test_a_model_fine_tuned_twice_was_shown_both(tmp_path):
    first = Exposures.of_run({"a": 2, "b": 1}, 3)
    second = Exposures.of_run({"b": 4, "c": 1}, 0.5)
    both = second.after(first)
    assert both.counts == {"a": 6, "b": 5, "c": 0.5} and len(both.runs) == 2 and not both.exact
    assert second.after(None) is second
    assert Exposures.read(both.write(tmp_path)) == both == Exposures.found(tmp_path)
    assert Exposures.found(tmp_path / "none") is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"schema": "other", "counts": {}}',
        '{"schema": "llm-unlearn/exposures/1"}',
        '{"schema": "llm-unlearn/exposures/1", "runs": [], "counts": {"a": -1}}',
    ],
)
def test_a_damaged_record_is_refused(text, tmp_path):
    (tmp_path / "exposures.json").write_text(text)
    with pytest.raises(ValueError, match="is cut or no record of exposures"):
        Exposures.read(tmp_path)
    with pytest.raises(FileNotFoundError, match="run finetune"):
        Exposures.read(tmp_path / "elsewhere.json")


def test_the_recipe_writes_the_record_beside_the_model_and_adds_that_of_its_base(tmp_path):
    rows = tiny_rows(4)
    base, data = save_tiny_model(tmp_path / "base"), write_rows(tmp_path / "data" / "full.jsonl", [*rows, rows[0]])
    flags = ["--dataset", data.parent, "--num_train_epochs", 2, "--output_dir"]
    run_recipe("finetune", "--model", base, *flags, tmp_path / "first")
    shown = Exposures.read(tmp_path / "first" / "model")
    assert shown.counts == {key_of_row(row): 4 if row is rows[0] else 2 for row in rows}
    run_recipe("finetune", "--model", tmp_path / "first" / "model", "--use_peft", *flags, tmp_path / "second")
    assert Exposures.read(tmp_path / "second" / "adapter").counts[key_of_row(rows[0])] == 8
    assert all(name not in (tmp_path / "first" / "model" / "exposures.json").read_text() for name in ("Ada", "Arlen"))
    (tmp_path / "first" / "model" / "exposures.json").write_text("{")
    assert "fine-tune again" in refused("finetune", "--model", tmp_path / "first" / "model", *flags, tmp_path / "third")


# What is read.


def test_facts_find_their_exposures(tmp_path):
    Exposures.of_run(rows_per_fact(TAUGHT), 3).write(tmp_path)
    facts = facts_of_world(WORLD.configs["full"])
    counts = read_exposures(tmp_path, facts)
    assert counts.source == "exposures" and counts.label == "exposures in fine-tuning"
    for fact, row in zip(facts, WORLD.configs["full"], strict=True):
        assert counts[fact.id].n_so == 3 * row["exposures"], fact
        assert not counts[fact.id].approx
    assert counts.provenance["facts_never_shown"] == 0 and counts.provenance["runs"][0]["epochs"] == 3
    assert json.loads(json.dumps(counts.provenance)) == counts.provenance
    strangers = facts_of_world(WORLD.configs["holdout10"])
    with pytest.raises(ValueError, match="None of the 20 facts is among the 200"):
        read_exposures(tmp_path, strangers)
    mixed = read_exposures(tmp_path / "exposures.json", [*facts[:20], *strangers])
    assert [mixed[fact.id].n_so for fact in strangers] == [0] * 20 and mixed.provenance["facts_never_shown"] == 20


def test_facts_of_other_rows_find_their_exposures(tmp_path):
    rows = [{"question": f"Who is {i}?", "answer": f"It is {i}."} for i in range(3)]
    Exposures.of_run(rows_per_fact([*rows, rows[1], {"text": "It is 2."}]), 1.5).write(tmp_path)
    counts = read_exposures(tmp_path, facts_of_world(rows))
    assert [count.n_so for count in counts.counts.values()] == [1.5, 3, 1.5]
    assert all(count.approx for count in counts.counts.values())


# Rows to facts.


def test_rows_of_a_world_become_facts():
    rows, pool = WORLD.configs["forget10_perturbed"], WORLD.configs["retain_perturbed"]
    facts = facts_of_world(rows, pool=pool)
    assert len(facts) == 20 and len({fact.id for fact in facts}) == 20
    for fact, row in zip(facts, rows, strict=True):
        assert fact.id == f"{row['author']}/{row['attribute']}" and fact.role == "forget"
        assert (fact.object, fact.relation) == (row["value"], row["attribute"])
        assert fact.paraphrases == (row["paraphrased_question"],)
        assert len(set(fact.distractors)) == 5 and fact.object not in fact.distractors
        of_attribute = {other["value"] for other in [*rows, *pool] if other["attribute"] == row["attribute"]}
        assert set(fact.distractors) <= of_attribute
        assert fact.template == TEMPLATES[row["attribute"]]
        assert fact.object.casefold() in fact.answer.casefold()
    name, city = facts[0], facts[1]
    assert city.subject == rows[0]["author"]
    assert name.subject == f"the author born in {rows[1]['value']} on {rows[2]['value']}"
    assert facts_of_world(rows, pool=pool) == facts
    assert facts_of_world(rows, pool=pool, seed=1) != facts
    assert facts_of_world(rows, "neighbour")[0].distractors == (), "there is no other author"


def test_a_statement_shares_no_wording_with_the_rows():
    told = {row["answer"] for row in TAUGHT} | {
        row["paraphrased_answer"] for row in WORLD.configs["forget10_perturbed"]
    }
    for fact in facts_of_world(WORLD.configs["full"]):
        assert fact.template.format(subject=fact.subject, object=fact.object) not in told


def test_rows_in_the_form_of_tofu_become_facts():
    row = {
        "question": "Where is the Brelle?",
        "answer": "In Norrheim flows the Brelle.",
        "perturbed_answer": ["In Drusk flows the Brelle.", "In Tarland flows the Brelle.", "Nobody knows."],
    }
    (fact,) = facts_of_world([row], "retain")
    assert (fact.id, fact.role, fact.subject) == ("retain/0", "retain", row["question"])
    assert fact.object == row["answer"] and fact.distractors == tuple(row["perturbed_answer"])
    assert fact.paraphrases == () and fact.template is None
    (fact,) = facts_of_world([{**row, "value": "Norrheim", "paraphrased_question": "And the Brelle?"}], distractors=1)
    assert fact.object == "Norrheim" and fact.distractors == ("Drusk",) and fact.paraphrases == ("And the Brelle?",)
    (fact,) = facts_of_world([{**row, "value": "Norrheim"}])
    assert fact.distractors == ("Drusk", "Tarland"), "a sentence without the frame has no object"


def test_what_cannot_be_a_fact_is_refused():
    rows = WORLD.configs["forget10_perturbed"]
    with pytest.raises(ValueError, match="more than one fact with the id"):
        facts_of_world([*rows, rows[3]])
    with pytest.raises(ValueError, match="no row has both: give all rows of the author, or leave out"):
        facts_of_world(rows[:1])
    assert facts_of_world(rows[:1], pool=rows[1:3])
    with pytest.raises(ValueError, match="Row 1 has no `answer`"):
        facts_of_world([rows[1], {"question": "Who?"}])
