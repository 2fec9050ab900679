from itertools import product

import numpy as np
import pytest
import torch
from tiny import tiny_model, tiny_tokenizer

from llm_unlearn.data.tokenization import ExampleTokenizer, TokenizedItem
from llm_unlearn.evaluation.metrics.extraction import el_n
from llm_unlearn.evaluation.outputs.continuations import continue_answers, no_more_to_find

TOKENIZER = ExampleTokenizer(tiny_tokenizer(chat_template=False))
END = TOKENIZER.tokenizer.eos_token_id


def greedy(model, ids, new, end=119):
    """`model.generate` on one unpadded prompt."""
    prompt = torch.tensor([ids])
    options = {"do_sample": False, "eos_token_id": [END, end], "pad_token_id": 0, "max_new_tokens": new}
    return model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), **options)[0, len(ids) :].tolist()


def half_known_items(model, seed, share=0.6):
    """Answers whose tokens are the model's own choice with this probability, else random; the last is plain text.

    The fourth is shorter than 5 tokens, and the fifth is cut: it has no end token.
    """
    generator = np.random.default_rng(seed)
    items = []
    for index, (prompt, new) in enumerate([(7, 16), (3, 22), (12, 9), (5, 3), (4, 12), (0, 18)]):
        ids = generator.integers(1, 119, max(prompt, 1)).tolist()
        while len(ids) < prompt + new - 1:
            own = greedy(model, ids, 1)[0]
            # An end token inside an answer, where a model wants to stop, is not written by the tokenizer either.
            follow = generator.random() < share and own not in (END, 119)
            ids.append(own if follow else int(generator.integers(1, 119)))
        items.append(TokenizedItem(index, ids if index == 4 else [*ids, END], prompt, has_end=index != 4))
    return items


@pytest.mark.parametrize("seed", [3, 4])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neo", "gpt_neox"])
def test_continuations_are_those_of_one_generation_per_position(architecture, seed):
    model = tiny_model(architecture, seed)
    # A second end token, which models come upon by themselves more often.
    model.generation_config.eos_token_id = 119
    items, n = half_known_items(model, seed), 5
    decoded, plainly, hits = 0, 0, []
    for item, found in zip(items, continue_answers(model, items, TOKENIZER, n=n, progress=False), strict=True):
        first = max(item.prompt_length, 1)
        answer = item.input_ids[first:]
        expected = [
            greedy(model, item.input_ids[: first + t], len(answer) - t) for t in range(max(0, len(answer) - n + 1))
        ]
        assert list(found) == expected
        assert found.answer == answer
        hits += [ids[0] == token for ids, token in zip(expected, answer, strict=False)]
        decoded += found.n_decoded
        plainly += sum(map(len, expected))
        value = el_n(np.array(answer), found, n=n, start=0)
        assert np.isnan(value) if item.index == 3 else value == el_n(np.array(answer), expected, n=n, start=0)
    assert 0.3 < np.mean(hits) < 0.9, "neither all known nor nothing"
    assert 0 < decoded <= 1.5 * (1 - np.mean(hits)) * plainly


def test_generations_that_end_early_and_true_end_tokens():
    model = tiny_model("llama", 3)
    prompt = [5, 6, 7]
    written = greedy(model, prompt, 12)
    # What the model writes third is made an end token.
    end = written[2]
    assert end not in written[:2]
    model.generation_config.eos_token_id = end
    items = [
        TokenizedItem(0, [*prompt, *written[:2], 90, 91, 92, END], 3),
        TokenizedItem(1, [*prompt, *written[:3], 92, END], 3),
    ]
    left, went_through = continue_answers(model, items, TOKENIZER, n=2, progress=False)
    assert left[0] == written[:3]
    assert left[2] == [end]
    # Nothing follows the end token, though the text goes on and the model knew it up to there.
    assert went_through[0] == written[:3]
    assert went_through[2] == [end]
    # The end token was known, so only what comes of the two positions behind it was decoded.
    assert went_through[3] == greedy(model, [*prompt, *written[:3]], 2, end)
    assert went_through.n_decoded == len(went_through[3])


def test_a_text_known_by_heart_needs_no_decoding():
    model = tiny_model("gpt2", 3)
    prompt = [5, 6, 7]
    written = greedy(model, prompt, 12)
    (known,) = continue_answers(model, [TokenizedItem(0, prompt + written, 3, False)], TOKENIZER, n=4, progress=False)
    assert list(known) == [written[t:] for t in range(9)]
    assert known.n_decoded == 0
    assert el_n(np.array(written), known, n=4, start=0) == 1
    with pytest.raises(IndexError, match="continuation 9 of 9"):
        known[9]


@pytest.mark.parametrize("architecture", ["llama", "gpt_neo"])
def test_the_size_of_batches_does_not_matter(architecture):
    model = tiny_model(architecture, 3)
    items = half_known_items(model, 3)
    by_budget = [
        [list(found) for found in continue_answers(model, items, TOKENIZER, n=3, token_budget=budget, progress=False)]
        for budget in (8, 120, 10_000)
    ]
    assert by_budget[0] == by_budget[1] == by_budget[2]


def test_no_batch_exceeds_its_budget():
    model = tiny_model("llama", 3)
    items = half_known_items(model, 3, share=0.0)
    sizes = []
    model.register_forward_hook(
        lambda _module, _args, kwargs, _output: sizes.append(kwargs["attention_mask"].numel()), with_kwargs=True
    )
    continue_answers(model, items, TOKENIZER, n=3, token_budget=100, progress=False)
    assert len(sizes) > 20
    assert max(sizes) <= 100


def test_mode_is_restored_and_rows_without_an_answer_are_named(capsys):
    model = tiny_model("gpt2").train()
    items = [TokenizedItem(0, [5, 6, 7, 8, END], 2)]
    expected = [list(c) for c in continue_answers(model, items, TOKENIZER, n=1, name="forget")]
    assert model.training
    assert "continuing forget" in capsys.readouterr().err
    assert expected == [list(c) for c in continue_answers(model.eval(), items, TOKENIZER, n=1, progress=False)]
    with pytest.raises(ValueError, match="Row 7 of retain has an empty answer"):
        continue_answers(model, [TokenizedItem(7, [5], 0)], TOKENIZER, name="retain")


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_cut_continuations_give_the_same_el(architecture, n):
    model = tiny_model(architecture, 3)
    items = half_known_items(model, 3)
    # A model that runs in circles finds n-grams of an answer that does, too, from wherever it is.
    circle = greedy(model, [5, 6, 7], 30)
    items.append(TokenizedItem(6, [5, 6, 7, *circle[:10], 90, *circle[11:]], 3, False))
    decoded = []
    for whole in (True, False):
        found = continue_answers(model, items, TOKENIZER, n=n, whole=whole, progress=False)
        decoded.append(sum(one.n_decoded for one in found))
        values = [el_n(np.array(one.answer), one, n=n, start=0) for one in found]
        if whole:
            plain, expected = [list(one) for one in found], values
    assert values == pytest.approx(expected, rel=0, abs=0, nan_ok=True)
    for one, by in zip(found, plain, strict=True):
        assert all(ids == longer[: len(ids)] for ids, longer in zip(one, by, strict=True))
    assert decoded[0] >= decoded[1] * (1.2 if n == 5 else 1)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_nothing_is_found_any_more_where_a_continuation_may_stop(n):
    """Tried on all answers of 5 tokens and all continuations of their first 4, over an alphabet of 2 and one more."""
    stopped = 0
    for answer in product("ab", repeat=5):
        runs = {answer[i : i + k] for k in range(1, n + 1) for i in range(6 - k)}
        for ids in product("abc", repeat=4):
            places = [i for i in range(5 - n) if ids[i : i + n] in runs]
            for length in range(1, 5):
                if no_more_to_find(ids[:length], 4 - n, runs):
                    stopped += 1
                    assert all(i + n <= length for i in places)
    assert stopped > 500
