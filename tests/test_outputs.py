"""The passes over a model: every number and every text against the plain way, one item at a time."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import tiny_model, tiny_rows, tiny_tokenizer
from tiny_suite import full_rows
from transformers import AutoModelForCausalLM, MistralConfig
from transformers.cache_utils import DynamicLayer

from llm_unlearn.data.tokenization import ExampleTokenizer, TokenizedItem
from llm_unlearn.evaluation.outputs import decoding, scoring
from llm_unlearn.evaluation.outputs.decoding import GrowingLayer
from llm_unlearn.evaluation.outputs.generation import Answer, beam_search, generate, new_token_cap
from llm_unlearn.evaluation.outputs.scoring import Branches, score
from llm_unlearn.evaluation.outputs.sharding import deal, describe, form_batches
from llm_unlearn.evaluation.sets import EvalSet

ARCHITECTURES = ("llama", "qwen2", "gpt2", "gpt_neox", "gpt_neo")


BOTH_TEMPLATES = pytest.mark.parametrize("tokenizer", [True, False], ids=["chat", "plain"], indirect=True)


@pytest.fixture
def tokenizer(request):
    return ExampleTokenizer(tiny_tokenizer(chat_template=getattr(request, "param", True)))


@pytest.fixture
def items(tokenizer):
    return tokenizer.all(tiny_rows(13))


@pytest.fixture
def questions(tokenizer):
    """Ten questions with two to six answers each, and one with a single answer."""
    asked = EvalSet.of("forget", full_rows(11), tokenizer).questions()
    return [*asked[:10], Branches(asked[10].prompt, asked[10].answers[:1])]


@pytest.fixture
def trees_followed(monkeypatch):
    """What every pass found out about the model: whether branches are scored together."""
    found = []
    follows = scoring._follows_trees
    monkeypatch.setattr(scoring, "_follows_trees", lambda *args: found.append(follows(*args)) or found[-1])
    return found


def decided_model(architecture):
    """A model that meets no near tie in its greedy answers here: its two best logits are 5e-4 apart or more.

    With other seeds they can come as close as 1e-7, and rounding decides how the text goes on.
    """
    return tiny_model(architecture, seed=3)


def windowed_model(window):
    """A tiny Mistral that sees no further back than `window` tokens."""
    config = MistralConfig(
        vocab_size=120, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=window, initializer_range=0.2, bos_token_id=None, eos_token_id=0,
        pad_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return AutoModelForCausalLM.from_config(config).eval()


def plain_scores(model, prompt, answer):
    """Log-probabilities, hits, mean and deviation of one answer from full logits, in float64."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].double()
    log_p = logits.log_softmax(-1)
    mean = (log_p.exp() * log_p).sum(-1)
    std = (log_p.exp() * (log_p - mean[:, None]) ** 2).sum(-1).sqrt()
    targets = torch.tensor(answer)
    return log_p.gather(1, targets[:, None])[:, 0], logits.argmax(-1) == targets, mean, std


def assert_plain(model, questions, results, atol=1e-5):
    for question, scores in zip(questions, results, strict=True):
        for number, (answer, own) in enumerate(zip(question.answers, scores, strict=True)):
            logprobs, hits, mean, std = plain_scores(model, question.prompt, answer)
            np.testing.assert_allclose(own.logprobs, logprobs, atol=atol)
            np.testing.assert_array_equal(own.hits, hits)
            assert own.loss == pytest.approx(-float(logprobs.mean()), abs=atol)
            assert (own.logprobs.dtype, own.hits.dtype) == (np.float32, bool)
            if question.detailed and number == 0:
                np.testing.assert_allclose(own.mean, mean, atol=atol)
                np.testing.assert_allclose(own.std, std, atol=10 * atol)
            else:
                assert own.mean is own.std is None
            assert own.js is None


@BOTH_TEMPLATES
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_trees_score_as_one_sequence_per_answer_and_as_full_logits(architecture, tokenizer, questions, trees_followed):
    model = tiny_model(architecture)
    assert_plain(model, questions, score(model, questions, progress=False))
    # The window of GPT-Neo counts places in the sequence, not positions, and would cut branches from their question.
    assert trees_followed == [architecture != "gpt_neo"]
    assert_plain(model, questions, score(model, questions, share_prompts=False, progress=False))
    assert len(trees_followed) == 1


@pytest.mark.parametrize(("window", "follows"), [(8, False), (512, True)])
def test_windows_narrower_than_a_question_are_kept(window, follows, questions, trees_followed):
    model = windowed_model(window)
    assert max(len(question.prompt) + len(question.answers[0]) for question in questions) > 8
    assert_plain(model, questions, score(model, questions, progress=False))
    assert trees_followed == [follows]


def test_where_nothing_is_shared_no_tree_is_tried(items):
    model = tiny_model()
    seen = []
    model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(set(kwargs)), with_kwargs=True)
    alone = [Branches.of([item]) for item in items]
    assert_plain(model, alone, score(model, alone, progress=False))
    assert seen[0] == {"input_ids", "use_cache"}


@pytest.mark.parametrize("budget", [1, 70, 10_000])
def test_the_size_of_batches_does_not_matter(budget, tokenizer, questions, items):
    model = decided_model("llama")
    assert_plain(model, questions, score(model, questions, token_budget=budget, progress=False))
    texts = generate(model, items, tokenizer, [25] * 13, token_budget=budget, progress=False)
    assert texts == generate(model, items, tokenizer, [25] * 13, progress=False)


def test_details_are_of_the_first_answer_where_asked_for(questions):
    plain = [Branches(question.prompt, question.answers, detailed=False) for question in questions]
    assert_plain(tiny_model(), plain, score(tiny_model(), plain, progress=False))


def test_divergence_from_the_unigram_teacher(questions):
    model = tiny_model()
    unigram = torch.rand(120, generator=torch.Generator().manual_seed(0))
    unigram[7] = 0
    unigram /= unigram.sum()
    results = score(model, questions, unigram=unigram, progress=False)
    for question, scores in zip(questions, results, strict=True):
        with torch.no_grad():
            ids = torch.tensor([question.prompt + question.answers[0]])
            p = model(ids).logits[0, len(question.prompt) - 1 : -1].double().softmax(-1)
        q = unigram.double()
        middle = (p + q) / 2
        part = torch.where(q > 0, q * (q / middle).log2(), 0).sum(-1)
        js = ((p * (p / middle).log2()).sum(-1) + part) / 2
        np.testing.assert_allclose(scores[0].js, js, atol=1e-5)
        assert 0 < scores[0].js.min() <= scores[0].js.max() < 1
        assert all(other.js is None for other in scores[1:])


def test_chunks_of_the_vocabulary_do_not_matter(questions, monkeypatch):
    model, unigram = tiny_model(), torch.full((120,), 1 / 120)
    whole = score(model, questions, unigram=unigram, progress=False)
    monkeypatch.setattr(scoring, "_CHUNK_ENTRIES", 7 * 120)
    for one, other in zip(whole, score(model, questions, unigram=unigram, progress=False), strict=True):
        for field in ("logprobs", "hits", "mean", "std", "js"):
            np.testing.assert_allclose(getattr(one[0], field), getattr(other[0], field), atol=1e-6)


def test_half_precision_is_recorded_in_fp32(questions, trees_followed):
    model = tiny_model()
    full = score(model, questions, progress=False)
    half = score(model.to(torch.bfloat16), questions, progress=False)
    assert half[0][0].logprobs.dtype == half[0][0].std.dtype == np.float32
    # Eight bits of logits of size 10 are worth about 0.05.
    for answer in range(3):
        np.testing.assert_allclose(half[0][answer].logprobs, full[0][answer].logprobs, atol=0.3)
    assert describe(model) == {"device": "cpu", "precision": "bfloat16"}
    assert trees_followed == [True, True]


def test_logits_that_are_no_numbers_stay_so(questions):
    model = tiny_model()
    model.get_output_embeddings().weight.data[3] = float("nan")
    for scores in score(model, questions, unigram=torch.full((120,), 1 / 120), progress=False):
        assert all(np.isnan(own.loss) and not own.hits.any() for own in scores)
        assert np.isnan(scores[0].mean).all()
        assert np.isnan(scores[0].js).all()


def test_the_first_token_of_plain_text_is_predicted_by_nothing():
    question = Branches.of([TokenizedItem(0, [5, 6, 7, 0], prompt_length=0)])
    assert (question.prompt, question.answers) == ([5], [[6, 7, 0]])
    ((scores,),) = score(tiny_model(), [question], progress=False)
    assert len(scores.logprobs) == 3
    with pytest.raises(ValueError, match="Question 1 of the texts has an empty answer"):
        score(tiny_model(), [question, Branches([5], [[6], []])], name="texts")


def plainly(model, item, tokenizer, cap, beams=1):
    """One unpadded prompt through `model.generate`."""
    prompt = torch.tensor([item.prompt_ids])
    ends = [tokenizer.tokenizer.eos_token_id, 0]
    ids = model.generate(
        input_ids=prompt, attention_mask=torch.ones_like(prompt), do_sample=False, eos_token_id=ends, pad_token_id=0,
        max_new_tokens=cap, num_beams=beams,
    )  # fmt: skip
    new = ids[0, prompt.shape[1] :].tolist()
    return Answer(tokenizer.decode(new), new[-1] in ends, new)


@BOTH_TEMPLATES
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "windowed"])
def test_padded_batches_answer_as_model_generate_does_one_prompt_at_a_time(architecture, tokenizer, items, monkeypatch):
    model = windowed_model(8) if architecture == "windowed" else decided_model(architecture)
    # A cache of three columns more at a time grows often.
    monkeypatch.setattr(decoding, "_CACHE_BLOCK", 3)
    caps = [1, 2, 40, 25, 40, 7, 40, 40, 3, 40, 40, 31, 40]
    answers = generate(model, items, tokenizer, caps, progress=False)
    expected = [plainly(model, item, tokenizer, cap) for item, cap in zip(items, caps, strict=True)]
    assert answers == expected


def test_a_cache_of_several_blocks_and_rows_that_leave(tokenizer, items):
    model = decided_model("llama")
    model.get_output_embeddings().weight.data[:2] = 0  # neither end token: an answer ends at its cap
    sizes = []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: sizes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    caps = [150] * 3 + [20] * 9 + [60]
    answers = generate(model, items, tokenizer, caps, progress=False)
    assert sizes[0][0] == 13
    # One token more is known after reading, so a cap of c takes c - 1 further steps.
    assert sizes[1:20] == [(13, 1)] * 19
    assert sizes[20:60] == [(4, 1)] * 40
    assert sizes[60:] == [(3, 1)] * 90
    for item, cap, answer in zip(items, caps, answers, strict=True):
        assert len(answer.text.split()) <= cap
        assert not answer.ended
        assert answer == plainly(model, item, tokenizer, cap)


def test_a_layer_that_grows_in_place_holds_what_any_other_does():
    ours, theirs = GrowingLayer(), DynamicLayer()
    random = torch.Generator().manual_seed(0)
    for columns, kept in [(5, None), (1, None), (70, [2, 0]), (1, None), (130, [1]), (1, None)]:
        batch = theirs.keys.shape[0] if theirs.is_initialized else 3
        keys, values = (torch.rand(batch, 2, columns, 4, generator=random) for _ in range(2))
        for one, other in zip(ours.update(keys, values), theirs.update(keys, values), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)
        if kept:
            for layer in (ours, theirs):
                layer.batch_select_indices(torch.tensor(kept))
        assert ours.get_seq_length() == theirs.get_seq_length()


CAPS = [1, 2, 12, 7, 12, 7, 12, 12, 2, 7, 12, 12, 12]


@BOTH_TEMPLATES
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_beams_are_those_of_model_generate_one_prompt_at_a_time(architecture, tokenizer, items):
    model = decided_model(architecture)
    answers = beam_search(model, items, tokenizer, CAPS, 2, progress=False)
    assert answers == [plainly(model, item, tokenizer, cap, beams=2) for item, cap in zip(items, CAPS, strict=True)]
    assert answers != generate(model, items, tokenizer, CAPS, progress=False)


@BOTH_TEMPLATES
def test_one_beam_is_greedy(tokenizer, items):
    model = decided_model("llama")
    expected = generate(model, items, tokenizer, CAPS, progress=False)
    assert beam_search(model, items, tokenizer, CAPS, 1, progress=False) == expected


@pytest.mark.parametrize("budget", [1, 120, 10_000])
def test_beams_do_not_depend_on_what_is_in_their_batch(budget, tokenizer, items):
    model = decided_model("llama")
    answers = beam_search(model, items, tokenizer, CAPS, 3, token_budget=budget, progress=False)
    assert answers == [plainly(model, item, tokenizer, cap, beams=3) for item, cap in zip(items, CAPS, strict=True)]
    # Other items, of other caps, among them.
    some = beam_search(model, items[::3], tokenizer, CAPS[::3], 3, progress=False)
    assert some == answers[::3]


def log_p_after(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)


def plain_beams(model, prompt, ends, cap, beams):
    """Beam search as in a textbook: the best of all extensions go on, and ended ones wait for comparison by mean."""
    going, done = [(0.0, [])], []
    for _ in range(cap):
        grown = [
            (total + log_p, [*ids, token])
            for total, ids in going
            for token, log_p in enumerate(log_p_after(model, prompt + ids).tolist())
        ]
        grown.sort(reverse=True)
        done += [(total / len(ids), ids) for total, ids in grown[:beams] if ids[-1] in ends or len(ids) == cap]
        going = [(total, ids) for total, ids in grown if ids[-1] not in ends][:beams]
        # Given up once the best that goes on is, as it stands, no better than as many that have ended.
        worst = sorted(done, reverse=True)[:beams][-1][0] if len(done) >= beams else -float("inf")
        if going[0][0] / len(going[0][1]) <= worst:
            break
    return max(done)[1]


@pytest.mark.parametrize("beams", [2, 4])
def test_beams_are_those_of_a_textbook(beams, tokenizer, items):
    model = decided_model("llama")
    # Ends that come up early for some: what two greedy answers hold in the third place.
    greedy = generate(model, items[:2], tokenizer, [6] * 2, progress=False)
    ends = [0, *(answer.ids[2] for answer in greedy)]
    model.generation_config.eos_token_id = ends
    answers = beam_search(model, items[:6], tokenizer, [5] * 6, beams, progress=False)
    ends = {*ends, tokenizer.tokenizer.eos_token_id}
    expected = [plain_beams(model, item.prompt_ids, ends, 5, beams) for item in items[:6]]
    assert [answer.ids for answer in answers] == expected
    assert {answer.ended for answer in answers} == {True, False}
    assert [answer.text for answer in answers] == [
        tokenizer.decode(ids[:-1] if ids[-1] in ends else ids) for ids in expected
    ]


def test_beams_for_all_tokens_find_the_best_of_all_texts(tokenizer, items):
    model = tiny_model()
    model.get_output_embeddings().weight.data[:2] = 0
    model.get_output_embeddings().weight.data *= 0.3  # flatter, so that the first step misleads
    prompts = [item.prompt_ids for item in items[:4]]
    best = []
    for prompt in prompts:
        first = log_p_after(model, prompt)
        second = torch.stack([log_p_after(model, [*prompt, token]) for token in range(120)])
        means = (first[:, None] + second) / 2
        means[[0, 1]] = first[[0, 1], None]  # the ends
        best.append(divmod(int(means.argmax()), 120))
    answers = beam_search(model, items[:4], tokenizer, [2] * 4, 120, progress=False)
    assert [tuple(answer.ids) for answer in answers] == best
    assert best != [tuple(answer.ids) for answer in generate(model, items[:4], tokenizer, [2] * 4, progress=False)]


@BOTH_TEMPLATES
def test_an_answer_ends_at_any_end_id(tokenizer, items):
    model = tiny_model()
    (answer,) = generate(model, items[:1], tokenizer, [20], progress=False)
    words = answer.text.split()
    stop = tokenizer.tokenizer.convert_tokens_to_ids(words[3])
    expected = [Answer(" ".join(words[: words.index(words[3])]), True, answer.ids[: answer.ids.index(stop) + 1])]

    model.generation_config.eos_token_id = [0, stop]
    assert generate(model, items[:1], tokenizer, [20], progress=False) == expected
    model.generation_config.eos_token_id = stop
    assert generate(model, items[:1], tokenizer, [20], progress=False) == expected
    model.generation_config.eos_token_id = None
    assert generate(model, items[:1], tokenizer, [20], progress=False) == [answer]
    ends_otherwise = TokenizedItem(0, [*items[0].input_ids[:-1], stop], items[0].prompt_length)
    assert generate(model, [ends_otherwise], tokenizer, [20], progress=False) == expected
    cut = TokenizedItem(0, ends_otherwise.input_ids, items[0].prompt_length, has_end=False)
    assert generate(model, [cut], tokenizer, [20], progress=False) == [answer]


def test_the_generation_config_of_a_model_does_not_change_the_measurement(tokenizer, items):
    model = tiny_model()
    expected = generate(model, items, tokenizer, [20] * 13, progress=False)
    config = model.generation_config
    config.do_sample, config.temperature, config.top_p, config.top_k = True, 2.0, 0.9, 3
    config.repetition_penalty, config.no_repeat_ngram_size, config.max_length = 5.0, 1, 300
    assert generate(model, items, tokenizer, [20] * 13, progress=False) == expected


def test_the_generation_config_of_a_model_does_not_change_beams_either(tokenizer, items):
    model = tiny_model()
    expected = beam_search(model, items, tokenizer, [6] * 13, 2, progress=False)
    config = model.generation_config
    config.do_sample, config.temperature, config.length_penalty, config.early_stopping = True, 2.0, -3.0, True
    config.repetition_penalty, config.no_repeat_ngram_size, config.max_length = 5.0, 1, 300
    # None is what an own config cannot set these to: transformers would fill it in from here.
    config.bad_words_ids, config.suppress_tokens = [[token] for token in range(20, 60)], list(range(60, 90))
    assert beam_search(model, items, tokenizer, [6] * 13, 2, progress=False) == expected
    assert model.generation_config is config


def test_a_fresh_adapter_changes_nothing(tokenizer, items, questions):
    model = tiny_model()
    expected = score(model, questions, progress=False), generate(model, items, tokenizer, [9] * 13, progress=False)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    for one, other in zip(expected[0], score(adapted, questions, progress=False), strict=True):
        for own, same in zip(one, other, strict=True):
            np.testing.assert_array_equal(own.logprobs, same.logprobs)
    assert generate(adapted, items, tokenizer, [9] * 13, progress=False) == expected[1]


def test_beams_of_an_adapted_model(tokenizer, items):
    model = tiny_model()
    expected = beam_search(model, items, tokenizer, [6] * 13, 2, progress=False)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    assert beam_search(adapted, items, tokenizer, [6] * 13, 2, progress=False) == expected
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.ones_(parameter)
    changed = beam_search(adapted, items, tokenizer, [6] * 13, 2, progress=False)
    assert changed != expected
    assert changed[0] == plainly(adapted.get_base_model(), items[0], tokenizer, 6, beams=2)
    with adapted.disable_adapter():
        assert beam_search(adapted, items, tokenizer, [6] * 13, 2, progress=False) == expected


def test_every_module_returns_to_its_mode_and_dropout_stays_off(tokenizer, items, questions):
    model = tiny_model("gpt2")
    expected = score(model, questions, progress=False)
    model.train()
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()

    in_between = score(model, questions, progress=False)
    generate(model, items, tokenizer, [5] * 13, progress=False)
    beam_search(model, items, tokenizer, [5] * 13, 2, progress=False)

    np.testing.assert_array_equal(in_between[0][1].logprobs, expected[0][1].logprobs)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.get_output_embeddings()._forward_pre_hooks


def test_modes_return_after_an_exception(tokenizer, items, questions):
    model = tiny_model("gpt2").train()
    model.register_forward_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
    for run in (
        lambda: score(model, questions, progress=False),
        lambda: generate(model, items, tokenizer, [5] * 13, progress=False),
        lambda: beam_search(model, items, tokenizer, [5] * 13, 2, progress=False),
    ):
        with pytest.raises(RuntimeError, match="out of memory"):
            run()
        assert all(module.training for module in model.modules())
        assert torch.is_grad_enabled()


def test_bars_are_named_and_can_be_switched_off(tokenizer, items, questions, capsys):
    model = tiny_model()
    score(model, questions, name="texts")
    generate(model, items, tokenizer, [2] * 13, name="questions")
    shown = capsys.readouterr().err
    assert "scoring texts" in shown
    assert "answering questions" in shown
    score(model, questions, progress=False)
    generate(model, items, tokenizer, [2] * 13, progress=False)
    beam_search(model, items, tokenizer, [2] * 13, 2, progress=False)
    assert capsys.readouterr() == ("", "")


def test_plain_text_cannot_be_answered(tokenizer):
    with pytest.raises(ValueError, match="Row 7 of retain is plain text"):
        generate(tiny_model(), [TokenizedItem(7, [5, 6, 0], prompt_length=0)], tokenizer, [5], name="retain")
    with pytest.raises(ValueError, match="Row 7 of retain is plain text"):
        beam_search(tiny_model(), [TokenizedItem(7, [5, 6, 0], prompt_length=0)], tokenizer, [5], 2, name="retain")


def test_batches_hold_similar_lengths_within_the_budget():
    # 9: 1 x 9. 5, 4: 2 x 5 = 10. 3, 3, 1: 3 x 3 = 9, a fourth row would make 12.
    assert form_batches([(4, 0), (9, 0), (3, 0), (1, 0), (5, 0), (3, 0)], token_budget=11) == [[1], [4, 0], [2, 5, 3]]
    # Two rows of (3 + 2) tokens fit in 10; with 4 new tokens the pair needs 2 x (3 + 4) = 14.
    assert form_batches([(3, 2), (3, 2)], token_budget=10) == [[0, 1]]
    assert form_batches([(3, 2), (2, 4)], token_budget=10) == [[0], [1]]
    assert form_batches([], token_budget=10) == []


def test_batches_are_dealt_by_cost():
    # 9 to the first, 7 and 4 to the second, 3 to the first (9 < 11).
    assert deal([4, 9, 3, 7], 2) == [[1, 2], [3, 0]]
    assert deal([5], 3) == [[0], [], []]


def test_the_cap_leaves_room_to_be_wordy():
    assert [new_token_cap(reference, 200) for reference in (10, 3, 150)] == [31, 21, 200]
