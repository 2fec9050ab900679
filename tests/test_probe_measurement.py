"""Measuring facts under a model: every number again by a path of its own."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import tiny_model
from tiny_probe import (
    SETTINGS,
    counts_of,
    measured,
    plain_facts,
    probe_tokenizer,
    tiny_facts,
    tiny_frequency_probe,
)

from llm_unlearn.evaluation.outputs.generation import generate
from llm_unlearn.evaluation.outputs.sampling import _Draw, sample_answers
from llm_unlearn.evaluation.outputs.scoring import Branches, score
from llm_unlearn.probes import passes as passes_module
from llm_unlearn.probes.answers import answer_recall, names_it, recall_of
from llm_unlearn.probes.frequency import FrequencyProbe
from llm_unlearn.probes.measurement import FactMeasurement, Said
from llm_unlearn.probes.questions import options_of, questions_of
from llm_unlearn.probes.records import ProbeResult
from llm_unlearn.probes.statements import example, statement

SEED = 3


# The engine: ranks and samples.


def answer_logits(model, prompt, answer):
    with torch.no_grad():
        return model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]


@pytest.mark.parametrize("share", [True, False])
def test_ranks_are_places_in_the_sorted_logits(share):
    tokenizer, model = probe_tokenizer(), tiny_model(seed=SEED)
    facts = tiny_facts()[:4]
    items = [
        [tokenizer({"question": f.question, "answer": text}, 0) for text in (f.answer, "a poet", "not known")]
        for f in facts
    ]
    scored = score(model, [Branches.of(of_fact) for of_fact in items], ranks=True, share_prompts=share, progress=False)
    for of_fact, scores in zip(items, scored, strict=True):
        for item, own in zip(of_fact, scores, strict=True):
            order = answer_logits(model, item.prompt_ids, item.answer_ids).argsort(-1, descending=True)
            expected = [1 + row.tolist().index(token) for row, token in zip(order, item.answer_ids, strict=True)]
            assert own.ranks.tolist() == expected
            assert ((own.ranks == 1) == own.hits).all()
    plain = score(model, [Branches.of(items[0])], progress=False)
    assert plain[0][0].ranks is None


def test_among_equally_probable_tokens_the_lowest_id_has_the_first_rank():
    model = tiny_model(seed=SEED)
    model.lm_head.weight.data[:] = model.lm_head.weight.data[5]
    (scores,) = score(model, [Branches([7, 8], [[0, 4, 119]])], ranks=True, progress=False)
    assert scores[0].ranks.tolist() == [1, 5, 120]


def test_samples_are_drawn_from_the_models_own_distribution():
    tokenizer, model = probe_tokenizer(), tiny_model(seed=SEED)
    item = tokenizer({"question": "Where was Ada born?", "answer": "Arlen"}, 0)
    (texts,) = sample_answers(model, [item], tokenizer, 3000, max_new_tokens=1, progress=False)
    probabilities = answer_logits(model, item.prompt_ids, [0]).softmax(-1)[0]
    counts = {text: texts.count(text) for text in set(texts)}
    for token in probabilities.topk(8).indices.tolist():
        expected, text = float(probabilities[token]), tokenizer.decode([token])
        if text:
            # Four deviations.
            assert abs(counts.get(text, 0) / 3000 - expected) < 4 * np.sqrt(expected / 3000)


def test_the_second_token_is_drawn_anew():
    tokenizer, model = probe_tokenizer(), tiny_model(seed=SEED)
    item = tokenizer({"question": "Where was Ada born?", "answer": "Arlen"}, 0)
    (texts,) = sample_answers(model, [item], tokenizer, 4000, max_new_tokens=2, progress=False)
    pairs = [text.split() for text in texts]
    words = [pair[0] for pair in pairs if len(pair) == 2]
    first = max(set(words), key=words.count)
    second = [pair[1] for pair in pairs if len(pair) == 2 and pair[0] == first]
    (begin,) = tokenizer.tokenizer.convert_tokens_to_ids([first])
    p = answer_logits(model, item.prompt_ids, [begin, 0]).softmax(-1)[1]
    tokens = {tokenizer.decode([i]): float(value) for i, value in enumerate(p.tolist())}
    n = words.count(first) / sum(value for text, value in tokens.items() if text)
    assert n > 100
    for text in sorted(filter(None, tokens), key=tokens.get)[-5:]:
        assert abs(second.count(text) / n - tokens[text]) < 4 * np.sqrt(tokens[text] / n)


def test_a_draw_never_gives_a_token_of_probability_zero():
    logits = torch.full((4, 10), -torch.inf)
    logits[:, 3], logits[:, 6] = 0.0, 0.0
    largest = np.nextafter(np.float32(1), np.float32(0))
    assert _Draw(np.array([[0.0], [0.49], [0.51], [largest]], dtype=np.float32))(range(4), logits).tolist() == [
        3,
        3,
        6,
        6,
    ]
    # Nor does it reach the end where the total of all probabilities is rounded.
    for seed in range(50):
        logits = torch.full((1, 600), -torch.inf)
        logits[0, :500] = torch.randn(500, generator=torch.Generator().manual_seed(seed))
        assert _Draw(np.array([[largest]]))([0], logits).item() < 500


def test_samples_hang_on_seed_and_prompt_and_on_nothing_else():
    tokenizer, model = probe_tokenizer(), tiny_model(seed=SEED)
    items = [tokenizer({"question": f.question, "answer": f.answer}, i) for i, f in enumerate(tiny_facts())]
    options = {"max_new_tokens": 8, "progress": False}
    all_items = sample_answers(model, items, tokenizer, 3, token_budget=60, **options)
    assert all_items == sample_answers(model, items, tokenizer, 3, **options)
    assert sample_answers(model, items[4:5], tokenizer, 3, **options) == all_items[4:5]
    assert [texts[:2] for texts in all_items] == sample_answers(model, items, tokenizer, 2, **options)
    assert sample_answers(model, items, tokenizer, 3, seed=1, **options) != all_items
    assert len({text for texts in all_items for text in texts}) > 20
    state = torch.random.get_rng_state()
    sample_answers(model, items[:1], tokenizer, 1, **options)
    assert torch.equal(state, torch.random.get_rng_state())


# Measurements, each again with the model alone.


@pytest.fixture(scope="module", params=[True, False], ids=["chat", "plain"])
def run(request):
    probe, model = tiny_frequency_probe(request.param), tiny_model(seed=SEED)
    return probe, model, probe.measure(model, progress=False), request.param


def nll(model, item):
    logps = answer_logits(model, item.prompt_ids, item.answer_ids).log_softmax(-1)
    return -float(logps.gather(-1, torch.tensor(item.answer_ids)[:, None]).mean())


def test_the_likelihood_is_that_of_the_answer_with_its_end(run):
    probe, model, measurements, _ = run
    for number, (fact, one) in enumerate(zip(probe.facts, measurements, strict=True)):
        item = probe.tokenizer({"question": fact.question, "answer": fact.answer}, number)
        assert one.id == fact.id
        assert one.p1 == pytest.approx(np.exp(-nll(model, item)), rel=1e-4)
        assert one.answer_tokens == len(item.answer_ids) == len(fact.answer.split()) + 1


def test_the_margin_is_the_difference_of_two_logits(run):
    probe, model, measurements, chat = run
    plain = probe.tokenizer.tokenizer
    true, false = (plain.convert_tokens_to_ids(word) for word in ("True", "False"))
    for fact, one in zip(probe.facts, measurements, strict=True):
        for name, margin in ((fact.object, one.p2_margin), (one.twin, one.p2_twin_margin)):
            text = statement(fact, name)
            if chat:
                turns = example(text, "True", True)["messages"][:-1]
                prompt = "".join(f"<|{turn['role']}|>{turn['content']}<|end|>\n" for turn in turns) + "<|assistant|>"
            else:
                prompt = example(text, "True", False)["prompt"]
            logits = answer_logits(model, plain(prompt, add_special_tokens=False).input_ids, [0])[0]
            assert margin == pytest.approx(float(logits[true] - logits[false]), abs=1e-3)
        assert one.twin != fact.object and one.twin in {*fact.distractors, *(f.object for f in probe.facts)}
        if fact.distractors:
            assert one.twin == fact.distractors[0]


def test_the_rank_among_options_is_by_token_mean(run):
    probe, model, measurements, _ = run
    for fact, wrong, one in zip(probe.facts, probe._passes.wrong, measurements, strict=True):
        texts = options_of(fact, wrong)
        losses = [nll(model, probe.tokenizer({"question": fact.question, "answer": text}, 0)) for text in texts]
        assert one.p3_rank == 1 + sum(loss < losses[0] for loss in losses[1:])
        assert one.p3_options == len(texts) == 1 + min(4, len(wrong))
    assert len({one.p3_rank for one in measurements}) > 2


def test_the_first_token_has_its_rank_among_all(run):
    probe, model, measurements, _ = run
    for fact, one in zip(probe.facts, measurements, strict=True):
        item = probe.tokenizer({"question": fact.question, "answer": fact.answer}, 0)
        logits = answer_logits(model, item.prompt_ids, item.answer_ids)[0]
        assert one.p4_rank == 1 + int((logits > logits[item.answer_ids[0]]).sum())
    assert len({one.p4_rank for one in measurements}) > 4


def test_answers_are_greedy_without_their_prompt_and_judged_by_what_was_asked(run):
    probe, model, measurements, _ = run
    for fact, one in zip(probe.facts, measurements, strict=True):
        asked = questions_of(fact)
        items = [probe.tokenizer({"question": q.text, "answer": q.answer}, 0) for q in asked]
        texts = generate(model, items, probe.tokenizer, [8] * len(items), progress=False)
        assert [said.text for said in one.said] == [answer.text for answer in texts]
        assert [(said.kind, said.question) for said in one.said] == [(q.kind, q.text) for q in asked]
        assert [said.alias for said in one.said] == [
            names_it(q.names, t.text, q.text) for q, t in zip(asked, texts, strict=True)
        ]


def test_what_a_model_begins_to_answer_by_itself_is_read_and_not_written_again(run):
    """Answers that the model gives to the direct question begin with hits, of which other questions must not know."""
    probe, model, measurements, _ = run
    facts = [
        replace(fact, answer=one.said[0].text, paraphrases=("Who is it",), relation=fact.id)
        for fact, one in zip(probe.facts, measurements, strict=True)
        if one.said[0].text
    ]
    again = FrequencyProbe(facts, counts_of(facts, range(len(facts))), probe.tokenizer, SETTINGS)
    for fact, one in zip(facts, again.measure(model, progress=False), strict=True):
        assert one.p4_rank == 1 and one.said[0].text == fact.answer
        items = [probe.tokenizer({"question": q.text, "answer": q.answer}, 0) for q in questions_of(fact)]
        texts = generate(model, items, probe.tokenizer, [8] * len(items), progress=False)
        assert [said.text for said in one.said] == [text.text for text in texts]


def test_the_whole_answer_may_be_what_is_recalled():
    probe = tiny_frequency_probe(settings=replace(SETTINGS, reference="answer"))
    measurements = probe.measure(tiny_model(seed=SEED), progress=False)
    assert any(0 < said.recall < 1 for one in measurements for said in one.said[:1])
    for fact, one in zip(probe.facts, measurements, strict=True):
        for said, asked in zip(one.said, questions_of(fact), strict=True):
            if asked.kind in ("direct", "paraphrase"):
                assert said.recall == answer_recall([fact.answer], said.text, asked.text)
            else:
                assert said.recall == recall_of(asked.names, said.text, asked.text)


def test_leaks_are_the_samples_that_name_the_object(run):
    probe, _, measurements, _ = run
    for fact, one in zip(probe.facts, measurements, strict=True):
        assert len(one.samples) == 3
        assert one.leaks == sum(fact.object in text.split() for text in one.samples)
        assert one.g3_leak == (one.leaks > 0)


def test_the_size_of_a_batch_changes_no_text_and_no_number(run):
    probe, model, measurements, _ = run
    for one, other in zip(measurements, probe.measure(model, token_budget=250, progress=False), strict=True):
        for name, value in one.values().items():
            assert getattr(other, name) == (value if value is None else pytest.approx(value, rel=1e-4, abs=1e-4))
        assert (other.said, other.samples) == (one.said, one.samples)


def test_each_pass_runs_once_over_all_facts(monkeypatch):
    runs = []

    def counted(kind, function):
        def run(model, rows, *args, **options):
            runs.append((kind, len(rows)))
            return function(model, rows, *args, **options)

        return run

    for kind in ("score", "generate", "sample_answers"):
        monkeypatch.setattr(passes_module, kind, counted(kind, getattr(passes_module, kind)))
    probe = tiny_frequency_probe()
    probe.measure(tiny_model(seed=SEED), progress=False)
    asked = sum(len(questions_of(fact)) for fact in probe.facts)
    assert runs == [("score", 10), ("score", 20), ("generate", asked), ("sample_answers", 10)]

    runs.clear()
    unsampled = tiny_frequency_probe(settings=replace(SETTINGS, leak_samples=0))
    (first, *_) = unsampled.measure(tiny_model(seed=SEED), progress=False)
    assert [kind for kind, _ in runs] == ["score", "score", "generate"]
    assert (first.samples, first.leaks, first.g3_leak) == (None, None, None)


def test_facts_with_nothing_beside_them_are_measured_as_far_as_they_go():
    facts = [replace(fact, distractors=(), relation=fact.id, reverse_question=None) for fact in tiny_facts(4)]
    probe = FrequencyProbe(facts, counts_of(facts, [1, 2, 3, 4]), probe_tokenizer(), SETTINGS)
    for one in probe.measure(tiny_model(seed=SEED), progress=False):
        assert (one.p2_twin_margin, one.twin, one.p3_rank, one.p3_options) == (None, None, None, None)
        assert one.p2_margin is not None


def test_a_model_that_gives_no_numbers_is_an_error():
    model = tiny_model(seed=SEED)
    model.lm_head.weight.data[:] = torch.nan
    with pytest.raises(ValueError, match="no probability .NaN. to an answer of fact 'Ada0'"):
        tiny_frequency_probe().measure(model, progress=False)


def test_prompts_that_are_too_long_are_an_error_before_the_model_runs():
    probe = tiny_frequency_probe()
    probe.tokenizer.max_length = 40
    with pytest.raises(ValueError, match="leaves no room for an answer in max_length 40"):
        probe.measure(None)


def test_measurements_and_results_survive_json(run):
    probe, _, measurements, _ = run
    again = [FactMeasurement.from_dict(json.loads(json.dumps(one.to_dict()))) for one in measurements]
    assert again == measurements
    result = probe.compare(measurements, measurements)
    assert ProbeResult.from_dict(json.loads(json.dumps(result.to_dict(), allow_nan=False))) == result
    assert json.loads(json.dumps(result.rows[0].flat()))["before_p1"] == measurements[0].p1


# One measurement.


def test_the_values_of_a_measurement_from_what_was_said():
    (fact,) = plain_facts(1)
    said = (
        Said("direct", "?", "a", 0.25, False),
        Said("paraphrase", "?", "b", 0.5, False),
        Said("paraphrase", "?", "c", 0.0, True),
        Said("reverse", "?", "d", 0.75, False),
        Said("indirect", "?", "e", 0.1, True),
    )
    one = measured(fact, said=said, samples=("x", "y"), leaks=0)
    assert (one.g1, one.g1_alias, one.g2_mean, one.g2_max, one.g2_alias) == (0.25, False, 0.25, 0.5, True)
    assert (one.g4, one.g4_alias, one.g3_leak) == (0.75, True, False)
    # A paraphrase names it; what reverse questions give is no part.
    assert one.generation == 1.0
    assert replace(one, said=said[:2]).generation == 0.5
    bare = replace(one, said=said[:1])
    assert (bare.g2_mean, bare.g2_max, bare.g2_alias, bare.g4, bare.g4_alias) == (None,) * 5
