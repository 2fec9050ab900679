"""When a gate opens: its triggers, its threshold, and what may not change either."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from codebooks import tiny_bottleneck, tiny_codebook, trained_like
from tiny import tiny_rows, tiny_tokenizer

from llm_unlearn.codebook.bottleneck import Gate
from llm_unlearn.codebook.gate import GatePlan, plan_gate
from llm_unlearn.codebook.reading import CodeReading, read_codes
from llm_unlearn.codebook.selection import PAPER
from llm_unlearn.codebook.tables import gate_line
from llm_unlearn.codebook.unlearner import CodeUnlearner
from llm_unlearn.data.tokenization import ExampleTokenizer

# Code 0 is the name to forget, 1 another name, 2 to 9 are words that all texts use.
WORDS = list(range(2, 10))


def text(*codes, special=(), width=1):
    """A text whose token t found codes[t], and behind it on the list whatever."""
    lists = np.array([[code, *range(20, 19 + width)] for code in codes], dtype=np.int32)
    marks = np.array(special, dtype=np.int32).reshape(-1, 1)
    return CodeReading(lists[:, 0], lists, np.arange(len(codes)), special=marks)


def readings(width=1):
    forget = [text(0, 0, *WORDS, width=width)] * 19 + [text(*WORDS, width=width)]
    control = [text(1, 1, *WORDS, width=width)] * 40
    # Of the texts to keep, one in twenty-five uses the name.
    retain = [text(1, *WORDS * 2, width=width)] * 48 + [text(0, *WORDS * 2, width=width)] * 2
    return {"forget": forget, "control": control, "retain": retain}


def test_the_name_opens_the_gate_where_most_texts_to_keep_do_not_say_it():
    # 19 of 20 texts against none of 40, and 2 of 850 tokens: sure, and not in common use. Of 50 numbers the 95th
    # percentile lies between the 47th and the 48th, which are both 0.
    assert plan_gate(readings(), 1, 30) == GatePlan((0,), 1.0, 0.95, 0.04)
    assert plan_gate(readings(width=4), 1, 30) == GatePlan((0,), 1.0, 0.95, 0.04), "longer lists do not matter"


def test_a_threshold_is_one_more_than_95_in_100_texts_to_keep_use():
    some = readings()
    some["retain"] = [text(0, *WORDS * 20)] * 10 + [text(*WORDS * 20)] * 90
    assert plan_gate(some, 1, 30) == GatePlan((0,), 2.0, 0.95, 0.0)
    # 90 texts with none and ten with one: the 90.1th of 100, at .91 * 99 = 90.09 in numpy's count from 0, is 1.
    some["retain"] = some["retain"][:4] + [text(*WORDS * 20)] * 96
    assert plan_gate(some, 1, 30) == GatePlan((0,), 1.0, 0.95, 0.04)


def test_special_tokens_open_gates_too():
    some = readings()
    some["retain"] = [text(1, *WORDS * 2, special=[0, 0, 5])] * 50
    some["forget"] = [text(0, 0, *WORDS, special=[0])] * 20
    assert plan_gate(some, 1, 30) == GatePlan((0,), 3.0, 1.0, 0.0)


def test_without_texts_to_keep_one_use_opens_it():
    some = readings() | {"retain": []}
    assert plan_gate(some, 1, 30) == GatePlan((0,), 1.0, 0.95, None)


def test_a_gate_that_would_not_open_or_has_no_sure_code_is_not_used():
    some = readings()
    assert plan_gate(some, 1, 30).objection is None
    some["retain"] = [text(0, 0, 0, *WORDS * 50)] * 10
    assert plan_gate(some, 1, 30).objection.startswith("only 0% of the texts to forget would open the gate")
    some["control"] = some["forget"]
    gate = plan_gate(some, 1, 30)
    assert gate.triggers == () and gate.objection.startswith("no code in use is sure enough to open a gate")


def test_a_plan_with_a_useless_gate_can_be_ablated_and_not_gated():
    codebook = trained_like(tiny_codebook(num_codes=120), n_rows=60)
    unlearner = CodeUnlearner(codebook, ExampleTokenizer(tiny_tokenizer()), progress=False)
    rows = [{"question": row["question"], "answer": row["answer"]} for row in tiny_rows(60)]
    plan = unlearner.plan(rows[0::10], [row for i, row in enumerate(rows) if i % 10], id="ada", rule=PAPER)
    assert plan.gate.objection
    for refused in (lambda: unlearner.apply(plan, 0, "gated"), lambda: unlearner.sweep(plan, ("gated",))):
        with pytest.raises(ValueError, match="Request 'ada' cannot be gated: .*choose the mode 'ablate' or 'refill'"):
            refused()
    assert len(codebook.registry) == 0
    assert unlearner.apply(plan, 0, "ablate", max_silent=1.0) == "ada"
    grounds = codebook.registry["ada"].grounds["gate"]
    assert grounds["threshold"] == plan.gate.threshold and grounds["triggers"] == len(plan.gate.triggers)
    assert gate_line(plan) == f"Mode gated is not to be had: {plan.gate.objection}"
    line = gate_line(replace(plan, gate=GatePlan((3, 5), 2.0, 0.95, 0.025)))
    assert line == "Mode gated: 2 triggers, used at least 2× in 95% of the texts to forget and 2.5% of those to keep."


def test_special_tokens_are_read_apart():
    codebook = trained_like(tiny_codebook(num_codes=120), n_rows=60)
    tokenizer = ExampleTokenizer(tiny_tokenizer())
    items = tokenizer.all(tiny_rows(3))
    for item, reading in zip(items, read_codes(codebook, items, tokenizer, 6, progress=False), strict=True):
        n_special = sum(token in tokenizer.special_ids for token in item.input_ids)
        assert len(reading.tokens) == len(item.input_ids) - n_special
        # The first of all passes by, as a begin token does.
        exempt = codebook.config.exempt_bos and item.input_ids[0] == tiny_tokenizer().bos_token_id
        assert reading.special.shape == (n_special - exempt, codebook.config.top_s)


@torch.no_grad()
def test_what_another_request_refills_and_what_passes_by():
    bottleneck = tiny_bottleneck(3, 1, d_model=2, norm="none", unit_z=False)
    bottleneck.enc.weight.copy_(torch.eye(2))
    bottleneck.codebook.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]]))
    bottleneck.dec.weight.copy_(torch.eye(2))
    x = torch.tensor([[[4.0, 1.0], [1.0, 4.0], [4.0, 1.0], [1.0, 4.0]]])
    bottleneck.set_deleted(gates=[Gate([0], [1], 2)])
    assert bottleneck(x).tolist() == [[[1, 0], [0, 2], [1, 0], [0, 0]]]
    # Code 0 has gone, and c_2 stands in for it; the text still is on the subject.
    bottleneck.set_deleted(refilled=[0], gates=[Gate([0], [1], 2)])
    assert bottleneck(x).tolist() == [[[3, 3], [0, 2], [3, 3], [0, 0]]]
    # A stand-in says nothing of the subject.
    bottleneck.set_deleted(refilled=[0], gates=[Gate([2], [1], 1)])
    assert bottleneck(x).tolist() == [[[3, 3], [0, 2], [3, 3], [0, 2]]]
    # What passes by is not counted.
    bottleneck.set_deleted(gates=[Gate([0], [1], 2)])
    exempt = torch.tensor([[True, False, False, False]])
    assert bottleneck(x, exempt).tolist() == [[[4, 1], [0, 2], [1, 0], [0, 2]]]
