"""Answers as trees: what is merged, who sees whom, and that what the scores know need not be generated again."""

import numpy as np
import pytest
import torch
from tiny import tiny_model, tiny_rows, tiny_tokenizer

from llm_unlearn.data.tokenization import ExampleTokenizer, TokenizedItem
from llm_unlearn.evaluation.outputs.generation import generate
from llm_unlearn.evaluation.outputs.scoring import score
from llm_unlearn.evaluation.outputs.trees import Batch, Branches, Tree, common_prefix

#       7 8 | 1 2 3      the prompt 7 8, and three answers: the second parts from the first behind 1,
#           | 1 4 3      the third at once; of each the last token (3, 3, 6) is only predicted.
#           | 5 6
ANSWERS = [[1, 2, 3], [1, 4, 3], [5, 6]]


def test_answers_share_what_they_begin_with():
    tree = Tree.of([7, 8], ANSWERS)
    assert tree.tokens == [7, 8, 1, 2, 4, 5]
    assert tree.parents == [-1, 0, 1, 2, 2, 1]
    assert tree.depths == [0, 1, 2, 3, 3, 2]
    # Behind 8 come 1 and 5, behind 1 come 2 and 4.
    assert tree.paths == [[1, 2, 3], [1, 2, 4], [1, 5]]
    seen = [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 4], [0, 1, 5]]
    assert [np.flatnonzero(row).tolist() for row in tree.sees()] == seen
    # Equal tokens behind different ones are different places, and an answer may be the beginning of another.
    assert Tree.of([7], [[1, 2, 9], [3, 2, 9]]).tokens == [7, 1, 2, 3, 2]
    assert Tree.of([7], [[1, 2, 9], [1, 2]]).paths == [[0, 1, 2], [0, 1]]


def test_a_batch_pads_trees_and_leaves_out_what_was_read():
    units = [Branches([7, 8], ANSWERS), Branches([7, 9], [[1, 0]], detailed=False)]
    batch = Batch.of(units, skip=1)
    assert batch.input_ids.tolist() == [[8, 1, 2, 4, 5], [9, 1, 0, 0, 0]]
    assert batch.position_ids.tolist() == [[1, 2, 3, 3, 2], [1, 2, 0, 0, 0]]
    assert batch.predicts.int().tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
    assert batch.detailed.int().tolist() == [[1, 1, 1, 0, 0], [0, 0, 0, 0, 0]]
    # Marked positions: 8 1 2 4 5 of the first, 9 1 of the second.
    assert batch.sources == [0, 1, 2, 0, 1, 3, 0, 4, 5, 6]
    assert batch.targets == [1, 2, 3, 1, 4, 3, 5, 6, 1, 0]
    assert batch.lengths == [3, 3, 2, 2]
    assert batch.sees[0, 3].int().tolist() == [1, 1, 1, 0, 1, 0]
    assert batch.sees[1, 4].int().tolist() == [0, 0, 0, 0, 0, 1], "padding sees itself"


def test_the_common_prefix_leaves_a_token_of_every_prompt():
    def of(*prompts):
        return common_prefix([Branches(list(prompt), [[1]]) for prompt in prompts])

    assert of((4, 5, 6), (4, 5, 7)) == [4, 5]
    assert of((4, 5, 6), (4, 5)) == [4]
    assert of((4,), (4,)) == []
    assert of((4, 5), (6, 5)) == []
    assert common_prefix([]) == []


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2", "gpt_neox"])
def test_merged_answers_behind_a_common_prefix_score_as_they_do_apart(architecture):
    model = tiny_model(architecture)
    system = list(range(30, 50))
    questions = [
        Branches([*system, 60 + i, 61], [[1, 2, 3, 4, 0], [1, 2, 5, 4, 0], [1, 2, 5, 6, 0], [9 + i, 0]])
        for i in range(5)
    ]
    forwards = []
    handle = model.register_forward_hook(lambda *_: forwards.append(1))
    merged = score(model, questions, progress=False)
    handle.remove()
    assert len(forwards) == 4, "the prefix, two for the trial, one batch"
    for question, scores in zip(questions, merged, strict=True):
        for answer, one in zip(question.answers, scores, strict=True):
            ids = torch.tensor([question.prompt + answer])
            with torch.no_grad():
                log_p = model(ids).logits[0, len(question.prompt) - 1 : -1].log_softmax(-1)
            expected = log_p.gather(1, torch.tensor(answer)[:, None])[:, 0]
            np.testing.assert_allclose(one.logprobs, expected, atol=2e-5)


@pytest.mark.parametrize("cap", [1, 4, 30])
def test_what_is_known_of_a_text_is_read_and_changes_nothing(cap):
    model, tokenizer = tiny_model(seed=3), ExampleTokenizer(tiny_tokenizer())
    items = tokenizer.all(tiny_rows(6))
    plain = generate(model, items, tokenizer, [cap] * 6, progress=False)
    # Rows whose true answer is what the model writes: wholly, up to some token, and not at all.
    end = tokenizer.tokenizer.eos_token_id
    changed = []
    for item, answer, wrong_at in zip(items, plain, [99, 0, 2, 99, 1, 3], strict=True):
        ids = tokenizer.tokenizer(answer.text, add_special_tokens=False).input_ids
        ids = [*ids, end] if answer.ended else ids
        ids = ids[:wrong_at] + [5] * (len(ids) > wrong_at)
        changed.append(TokenizedItem(item.index, item.prompt_ids + ids, item.prompt_length, has_end=ids[-1] == end))
    items = changed
    scores = score(model, [Branches.of([item]) for item in items], progress=False)
    known = [int(np.argmin(np.append(s.hits, False))) for (s,) in scores]
    assert max(known) > 1 or cap == 1
    read = generate(model, items, tokenizer, [cap] * 6, known=known, progress=False)
    assert read == plain
