"""A model with a bottleneck generates and is scored as its plain forward passes say, whatever lies in a cache."""

import pytest
import torch
from codebooks import SITES, delete, logits_of, tiny_codebook, trained_like, used_codes, with_deletions
from tiny import tiny_model
from transformers import DynamicCache

from llm_unlearn.evaluation.outputs.decoding import branch_off, decode, pad_left, read_prompts
from llm_unlearn.evaluation.outputs.scoring import Branches, score

# "all" deletes some codes in each way at once; only gates read what a text has used before.
MODES = ["none", "refill", "ablate", "gated", "all"]
PROMPTS = [[7, 30, 12, 55, 81, 9, 10], [41, 17, 60]]


# A begin token at the first position.


def with_begin_token(family="llama", token=5, **options):
    model = tiny_model(family)
    model.config.bos_token_id = token
    return tiny_codebook(model, **options)


@pytest.mark.parametrize("site", ["block", "post_attn"])
@torch.no_grad()
def test_a_begin_token_passes_where_a_text_begins_and_nowhere_else(site):
    codebook = with_begin_token(site=site)
    ids = torch.tensor([[5, 8, 9, 5], [8, 5, 9, 5]])
    seen = []
    with codebook.bottleneck.observed(seen.append):
        logits_of(codebook, ids)
        # Behind padding, of whatever id.
        logits_of(codebook, torch.tensor([[5, 5, 8, 9]]), attention_mask=torch.tensor([[0, 1, 1, 1]]))
        logits_of(codebook, torch.tensor([[5, 8, 9, 5]]), attention_mask=torch.tensor([[1, 1, 1, 0]]))
        logits_of(codebook, torch.tensor([[5, 9, 8]]), attention_mask=torch.tensor([[0, 1, 1]]))
    expected = [[[1, 0, 0, 0], [0, 0, 0, 0]], [[0, 1, 0, 0]], [[1, 0, 0, 0]], [[0, 0, 0]]]
    assert [observed.exempt.int().tolist() for observed in seen] == expected
    # Unless the config says that none passes, or the model has no such token.
    for other in (with_begin_token(site=site, exempt_bos=False), tiny_codebook(site=site)):
        with other.bottleneck.observed(seen.append):
            logits_of(other, ids)
        assert seen[-1].exempt is None


@pytest.mark.parametrize(("site", "mode"), [("block", "none"), ("block", "all"), ("post_attn", "all")])
@torch.no_grad()
def test_a_begin_token_behind_padding_and_before_a_cache(site, mode):
    """One text alone, whole; behind padding; and token by token, where the first is exempt and no later one is."""
    codebook = with_deletions(with_begin_token(site=site), mode)
    ids = torch.tensor([[5, 30, 5, 55, 81, 9, 10]])
    alone = logits_of(codebook, ids)[0]
    padded, mask = torch.cat([torch.full((1, 3), 5), ids], 1), torch.tensor([[0, 0, 0] + [1] * 7])
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    behind = logits_of(codebook, padded, attention_mask=mask, position_ids=positions)[0, 3:]
    torch.testing.assert_close(behind, alone, rtol=0, atol=1e-4)
    for n_columns, inputs in ((7, ids), (10, padded)):
        cache, steps = DynamicCache(), []
        for i in range(n_columns):
            more = (
                {"attention_mask": mask[:, : i + 1], "position_ids": positions[:, i : i + 1]} if n_columns == 10 else {}
            )
            steps.append(logits_of(codebook, inputs[:, i : i + 1], past_key_values=cache, use_cache=True, **more)[0, 0])
        torch.testing.assert_close(torch.stack(steps[-7:]), alone, rtol=0, atol=1e-4)


# Generation.


def generate(model, ids=None, mask=None, **options):
    """New tokens and the logits they were chosen by."""
    ids = torch.tensor([PROMPTS[0]]) if ids is None else ids
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids) if mask is None else mask, max_new_tokens=10, do_sample=False,
        eos_token_id=None, pad_token_id=0, output_logits=True, return_dict_in_generate=True, **options,
    )  # fmt: skip
    return out.sequences[:, ids.shape[1] :], torch.stack(out.logits, 1)


def by_recomputation(model, prompt, n_tokens=10):
    """Greedy decoding that reads the whole text again for each token, in plain forward passes."""
    ids = list(prompt)
    for _ in range(n_tokens):
        ids.append(int(logits_of(model, torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize(
    ("family", "site", "mode"),
    [("llama", "block", mode) for mode in MODES]
    + [(*place, "all") for place in SITES[1:]]
    + [("qwen2", "block", "gated")],
)
@torch.no_grad()
def test_generation_with_a_cache_alone_and_in_a_padded_batch(family, site, mode):
    codebook = with_deletions(tiny_codebook(family, site=site), mode, torch.tensor([PROMPTS[0]]), threshold=14)
    expected = [by_recomputation(codebook, prompt) for prompt in PROMPTS]
    if mode == "gated":
        closed = tiny_codebook(family, site=site)
        always = with_deletions(tiny_codebook(family, site=site), "ablate", torch.tensor([PROMPTS[0]]))
        # The gate is closed at first and open at the end, or nothing would be tested here.
        text = torch.tensor([PROMPTS[0] + expected[0]])
        assert torch.equal(logits_of(codebook, text)[0, 0], logits_of(closed, text)[0, 0])
        assert not torch.allclose(logits_of(codebook, text)[0, -1], logits_of(closed, text)[0, -1], atol=1e-3)
        assert not torch.allclose(logits_of(codebook, text)[0, 0], logits_of(always, text)[0, 0], atol=1e-3)
    for prompt, tokens in zip(PROMPTS, expected, strict=True):
        cached, with_cache = generate(codebook, torch.tensor([prompt]))
        plain, without = generate(codebook, torch.tensor([prompt]), use_cache=False)
        assert cached.tolist() == plain.tolist() == [tokens]
        torch.testing.assert_close(with_cache, without, rtol=0, atol=1e-3)
    padded, mask = pad_left(PROMPTS, pad_id=33)
    together, _ = generate(codebook, padded, mask)
    assert together.tolist() == expected


@pytest.mark.parametrize("mode", ["refill", "all"])
@torch.no_grad()
def test_beams_and_guesses_share_a_cache(mode):
    codebook = with_deletions(tiny_codebook("llama"), mode, torch.tensor([PROMPTS[0]]), threshold=14)
    padded, mask = pad_left(PROMPTS, pad_id=33)
    beams = {
        use_cache: codebook.generate(
            padded, attention_mask=mask, num_beams=4, num_return_sequences=2, max_new_tokens=12, do_sample=False,
            use_cache=use_cache, eos_token_id=None, pad_token_id=0, output_scores=True, return_dict_in_generate=True,
        )
        for use_cache in (True, False)
    }  # fmt: skip
    assert torch.equal(beams[True].sequences, beams[False].sequences)
    torch.testing.assert_close(beams[True].sequences_scores, beams[False].sequences_scores, rtol=0, atol=1e-4)
    # Guessed tokens that turn out wrong are taken out of the cache again, and their uses of codes with them.
    prompt = torch.tensor([PROMPTS[0] * 3])
    expected, _ = generate(codebook, prompt)
    guessed, _ = generate(codebook, prompt, prompt_lookup_num_tokens=3)
    assert guessed.tolist() == expected.tolist()


@pytest.mark.parametrize("mode", ["refill", "ablate", "gated"])
@torch.no_grad()
def test_a_static_cache_gives_the_same_text(mode):
    codebook = with_deletions(tiny_codebook("llama"), mode, torch.tensor([PROMPTS[0]]), threshold=14)
    codebook.base_model.generation_config.disable_compile = True
    prompt = torch.tensor([PROMPTS[0]])
    expected, _ = generate(codebook, prompt)
    if mode == "gated":
        # Its layers are of one kind, and one that grows would make the model leave out masks that it needs.
        with pytest.raises(ValueError, match=r"A static cache has no place for what the mode 'gated' counts"):
            generate(codebook, prompt, cache_implementation="static")
        return
    static, _ = generate(codebook, prompt, cache_implementation="static")
    assert static.tolist() == expected.tolist()


@torch.no_grad()
def test_a_static_cache_knows_begin_tokens_behind_padding():
    codebook = with_begin_token()
    codebook.base_model.generation_config.disable_compile = True
    prompts = [[5, 30, 12, 55, 81], [5, 17, 60]]
    padded, mask = pad_left(prompts, pad_id=33)
    static, _ = generate(codebook, padded, mask, cache_implementation="static")
    assert static.tolist() == [by_recomputation(codebook, prompt) for prompt in prompts]


@pytest.mark.parametrize("mode", ["refill", "all"])
@torch.no_grad()
def test_the_decoding_of_evaluations_gives_the_same_text(mode):
    """Rows leave the batch when they are done, and the cache grows in place."""
    codebook = with_deletions(tiny_codebook("llama"), mode, torch.tensor([PROMPTS[0]]), threshold=14)
    prompts = [*PROMPTS, [99, 98, 97, 96, 95]]
    cache, mask, tokens = read_prompts(codebook.base_model, prompts, pad_id=33)
    caps = [10, 3, 7]
    written = decode(codebook.base_model, cache, mask, tokens, caps, [])
    assert written == [by_recomputation(codebook, prompt, cap) for prompt, cap in zip(prompts, caps, strict=True)]


@pytest.mark.parametrize("mode", ["refill", "all"])
@torch.no_grad()
def test_texts_that_go_on_from_within_a_prompt_read_before_it_alone(mode):
    """Of a shorter beginning the columns to its left hold anything."""
    codebook = with_deletions(tiny_codebook("llama"), mode, torch.tensor([PROMPTS[0]]), threshold=10)
    cache, mask, _ = read_prompts(codebook.base_model, PROMPTS, pad_id=33)
    rows, lengths, following = [0, 0, 1, 0], [4, 7, 2, 1], [8, 9, 10, 11]
    branched, seen = branch_off(cache, mask, torch.tensor(rows), torch.tensor(lengths))
    written = decode(codebook.base_model, branched, seen, torch.tensor(following), [8] * 4, [])
    for row, length, token, mine in zip(rows, lengths, following, written, strict=True):
        assert mine == [token, *by_recomputation(codebook, [*PROMPTS[row][:length], token], 7)]


@pytest.mark.parametrize("mode", ["refill", "all"])
@torch.no_grad()
def test_answers_of_one_question_are_scored_as_if_alone(mode):
    """Read as a tree, one answer's uses of codes would open the gate for its siblings."""
    codebook = with_deletions(trained_like(tiny_codebook("llama")), mode, torch.tensor([PROMPTS[0]]))
    if mode == "all":
        # Three codes for each token: open from the tenth on, which is the third of an answer.
        delete(codebook, "gated", range(40), "more", threshold=30)
    answers = [[30, 12, 55], [30, 81, 9, 10], [12, 55]]
    # The second question, of more tokens and open before its answers, shows no difference.
    questions = [Branches(PROMPTS[0], answers, detailed=False), Branches([99] * 20, [[99, 98], [97]], detailed=False)]
    for question, scores in zip(questions, score(codebook.base_model, questions, progress=False), strict=True):
        for answer, scored in zip(question.answers, scores, strict=True):
            logps = logits_of(codebook, torch.tensor([question.prompt + answer]))[0].log_softmax(-1)
            expected = [logps[len(question.prompt) - 1 + i, token].item() for i, token in enumerate(answer)]
            assert scored.logprobs.tolist() == pytest.approx(expected, abs=1e-4)


@torch.no_grad()
def test_gates_count_what_the_text_has_used():
    """By a loop over tokens, against one pass."""
    codebook = trained_like(tiny_codebook("llama"))
    text = torch.tensor([PROMPTS[0] + PROMPTS[1]])
    codes = used_codes(codebook, text)[0]
    target = sorted({code for token in codes[1:4] for code in token})
    delete(codebook, "gated", target, threshold=6)
    seen = []
    with codebook.bottleneck.observed(seen.append):
        logits_of(codebook, text)
    (observed,) = seen
    weight, used, opened = codebook.bottleneck.codebook.weight, 0, []
    for mine, q in zip(codes, observed.q[0], strict=True):
        used += len(set(mine) & set(target))
        opened.append(used >= 6)
        said = [code for code in mine if not (used >= 6 and code in target)]
        torch.testing.assert_close(q, weight[said].sum(0), rtol=1e-5, atol=1e-5)
    assert {True, False} == set(opened)
