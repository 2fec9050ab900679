import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from sharded_evaluation import evaluate
from tiny import tiny_model, tiny_rows, tiny_tokenizer

from llm_unlearn.data.tokenization import ExampleTokenizer, TokenizedItem
from llm_unlearn.evaluation import outputs
from llm_unlearn.evaluation.outputs import deal, describe, form_batches, generate, new_token_cap, score

ARCHITECTURES = ("llama", "qwen2", "gpt2", "gpt_neo")


@pytest.fixture(params=(True, False), ids=("chat", "plain"))
def tokenizer(request):
    return ExampleTokenizer(tiny_tokenizer(chat_template=request.param))


@pytest.fixture
def items(tokenizer):
    return tokenizer.all(tiny_rows(13))


def decided_model(architecture):
    """A model that meets no near tie in its greedy answers here: its two best logits are 5e-4 apart or more.

    With other seeds they can come as close as 1e-7, and rounding decides how the text goes on.
    """
    return tiny_model(architecture, seed=3)


def plainly(model, item, tokenizer, **options):
    """One unpadded prompt through `model.generate`, as text."""
    prompt = torch.tensor([item.prompt_ids])
    end_ids = [tokenizer.tokenizer.eos_token_id, 0]
    ids = model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        eos_token_id=end_ids,
        pad_token_id=0,
        **options,
    )
    return tokenizer.decode(ids[0, prompt.shape[1] :].tolist())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_equal_those_of_full_logits_one_item_at_a_time(architecture, tokenizer, items):
    model = tiny_model(architecture)
    for item, scores in zip(items, score(model, items, progress=False), strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([item.input_ids])).logits[0, item.prompt_length - 1 : -1]
        log_probs = logits.log_softmax(-1)
        targets = torch.tensor(item.answer_ids)
        mean = (log_probs.exp() * log_probs).sum(-1)
        std = (log_probs.exp() * (log_probs - mean[:, None]) ** 2).sum(-1).sqrt()
        np.testing.assert_allclose(scores.logprobs, log_probs.gather(1, targets[:, None])[:, 0], atol=1e-5)
        np.testing.assert_array_equal(scores.hits, logits.argmax(-1) == targets)
        np.testing.assert_allclose(scores.mean, mean, atol=1e-5)
        np.testing.assert_allclose(scores.std, std, atol=1e-4)
        assert scores.logprobs.dtype == np.float32
        assert scores.hits.dtype == bool


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_size_of_batches_does_not_matter(architecture, tokenizer, items):
    model = decided_model(architecture)
    alone = score(model, items, token_budget=1, progress=False)
    together = score(model, items, token_budget=10_000, progress=False)
    for one, many in zip(alone, together, strict=True):
        np.testing.assert_allclose(one.logprobs, many.logprobs, atol=1e-5)
        np.testing.assert_array_equal(one.hits, many.hits)
    texts = [
        generate(model, items, tokenizer, max_new_tokens=25, token_budget=budget, progress=False)
        for budget in (1, 150, 10_000)
    ]
    assert texts[0] == texts[1] == texts[2]


def test_chunks_of_the_vocabulary_do_not_matter(items, monkeypatch):
    model = tiny_model()
    whole = score(model, items, progress=False)
    monkeypatch.setattr(outputs, "_CHUNK_ENTRIES", 7 * 120)
    for one, other in zip(whole, score(model, items, progress=False), strict=True):
        for field in ("logprobs", "hits", "mean", "std"):
            np.testing.assert_allclose(getattr(one, field), getattr(other, field), atol=1e-6)


def test_half_precision_is_recorded_in_fp32(items):
    model = tiny_model()
    full = score(model, items, progress=False)
    half = score(model.to(torch.bfloat16), items, progress=False)
    assert half[0].logprobs.dtype == half[0].std.dtype == np.float32
    # Eight bits of logits of size 10 are worth about 0.05.
    np.testing.assert_allclose(half[0].logprobs, full[0].logprobs, atol=0.3)
    assert describe(model) == {"device": "cpu", "precision": "bfloat16"}


def test_the_first_token_of_plain_text_is_predicted_by_nothing():
    (scores,) = score(tiny_model(), [TokenizedItem(0, [5, 6, 7, 0], prompt_length=0)], progress=False)
    assert len(scores.logprobs) == 3


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_padded_batches_generate_what_single_prompts_do(architecture, tokenizer, items):
    model = decided_model(architecture)
    texts = generate(model, items, tokenizer, max_new_tokens=40, progress=False)
    for item, text in zip(items, texts, strict=True):
        cap = min(40, -(-3 * len(item.answer_ids) // 2) + 16)
        assert text == plainly(model, item, tokenizer, max_new_tokens=cap)
    uncapped = generate(model, items[:3], tokenizer, max_new_tokens=40, cap_by_reference=False, progress=False)
    assert uncapped == [plainly(model, item, tokenizer, max_new_tokens=40) for item in items[:3]]


def test_an_answer_ends_at_any_end_id(tokenizer, items):
    model = tiny_model()
    (text,) = generate(model, items[:1], tokenizer, max_new_tokens=20, progress=False)
    words = text.split()
    stop = tokenizer.tokenizer.convert_tokens_to_ids(words[3])
    expected = " ".join(words[: words.index(words[3])])

    model.generation_config.eos_token_id = [0, stop]
    assert generate(model, items[:1], tokenizer, max_new_tokens=20, progress=False) == [expected]
    model.generation_config.eos_token_id = stop
    assert generate(model, items[:1], tokenizer, max_new_tokens=20, progress=False) == [expected]
    model.generation_config.eos_token_id = None
    assert generate(model, items[:1], tokenizer, max_new_tokens=20, progress=False) == [text]
    ends_otherwise = TokenizedItem(0, [*items[0].input_ids[:-1], stop], items[0].prompt_length)
    assert generate(model, [ends_otherwise], tokenizer, max_new_tokens=20, progress=False) == [expected]


def test_the_generation_config_of_a_model_does_not_change_the_measurement(tokenizer, items):
    model = tiny_model()
    expected = generate(model, items, tokenizer, max_new_tokens=20, progress=False)
    config = model.generation_config
    config.do_sample, config.temperature, config.top_p, config.top_k = True, 2.0, 0.9, 3
    config.repetition_penalty, config.no_repeat_ngram_size, config.max_length = 5.0, 1, 300
    assert generate(model, items, tokenizer, max_new_tokens=20, progress=False) == expected


# peft 0.21.2 still asks transformers 5 by the older name.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_fresh_adapter_changes_nothing(tokenizer, items):
    model = tiny_model()
    expected = score(model, items, progress=False), generate(model, items, tokenizer, progress=False)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    for one, other in zip(expected[0], score(adapted, items, progress=False), strict=True):
        np.testing.assert_array_equal(one.logprobs, other.logprobs)
    assert generate(adapted, items, tokenizer, progress=False) == expected[1]


def test_every_module_returns_to_its_mode_and_dropout_stays_off(tokenizer, items):
    model = tiny_model("gpt2")
    expected = score(model, items, progress=False)
    model.train()
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()

    in_between = score(model, items, progress=False)
    generate(model, items, tokenizer, max_new_tokens=5, progress=False)

    np.testing.assert_array_equal(in_between[0].logprobs, expected[0].logprobs)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.get_output_embeddings()._forward_pre_hooks


def test_modes_return_after_an_exception(tokenizer, items, monkeypatch):
    model = tiny_model("gpt2").train()
    monkeypatch.setattr(model, "forward", lambda **_: (_ for _ in ()).throw(RuntimeError("out of memory")))
    for run in (lambda: score(model, items, progress=False), lambda: generate(model, items, tokenizer, progress=False)):
        with pytest.raises(RuntimeError, match="out of memory"):
            run()
        assert all(module.training for module in model.modules())
        assert torch.is_grad_enabled()


def test_bars_are_named_and_can_be_switched_off(tokenizer, items, capsys):
    model = tiny_model()
    score(model, items, name="forget")
    generate(model, items, tokenizer, max_new_tokens=2, name="forget")
    shown = capsys.readouterr().err
    assert "scoring forget" in shown
    assert "answering forget" in shown
    score(model, items, progress=False)
    generate(model, items, tokenizer, max_new_tokens=2, progress=False)
    assert capsys.readouterr() == ("", "")


def test_items_that_cannot_be_run_are_named(tokenizer):
    with pytest.raises(ValueError, match="Row 7 of retain has no answer token"):
        score(tiny_model(), [TokenizedItem(7, [0], prompt_length=0)], name="retain")
    with pytest.raises(ValueError, match="Row 7 of retain is plain text"):
        generate(tiny_model(), [TokenizedItem(7, [5, 6, 0], prompt_length=0)], tokenizer, name="retain")


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
    assert new_token_cap(10, 200) == 31
    assert new_token_cap(3, 200) == 21
    assert new_token_cap(150, 200) == 200


def test_two_processes_agree_with_one(tmp_path):
    here = Path(__file__).parent
    environment = {
        **os.environ,
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)]),
    }
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launcher, str(here / "sharded_evaluation.py"), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    one = evaluate()

    assert [rank.pop("num_processes") for rank in ranks] == [2, 2]
    lengths = [(len(item.input_ids), 0) for item in ExampleTokenizer(tiny_tokenizer()).all(tiny_rows(30))]
    batches = form_batches(lengths, token_budget=100)
    # Each batch ran once, on one of the two.
    forwards = [rank.pop("forwards") for rank in ranks]
    assert sum(forwards) == len(batches)
    assert min(forwards) >= 2
    assert ranks[0] == ranks[1]
    assert ranks[0]["ddp"] == ranks[0]["logprobs"]
    for mine, theirs in zip(one["logprobs"], ranks[0]["logprobs"], strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-6)
    assert one["metrics"] == pytest.approx(ranks[0]["metrics"], abs=1e-6)
    assert one["texts"] == ranks[0]["texts"]
    assert one["report_texts"] == ranks[0]["report_texts"]
