"""Requests on a codebook: counting, planning, applying, revoking, purging, without training anything."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from codebooks import IDS, bottleneck_weights, delete, tiny_codebook, trained_like, used_codes
from runs import assert_equal
from safetensors.torch import load_file
from tiny import NAMES, tiny_model, tiny_rows, tiny_tokenizer

from llm_unlearn.codebook.bottleneck import Gate
from llm_unlearn.codebook.controls import swap_entities
from llm_unlearn.codebook.curve import CurvePoint, choose_level, measure
from llm_unlearn.codebook.gate import GatePlan
from llm_unlearn.codebook.model import CodebookModel
from llm_unlearn.codebook.reading import count_codes, read_codes
from llm_unlearn.codebook.registry import DeletionRecord, DeletionRegistry
from llm_unlearn.codebook.selection import PAPER, SelectionRule
from llm_unlearn.codebook.unlearner import CodeUnlearner
from llm_unlearn.data.tokenization import ExampleTokenizer
from llm_unlearn.evaluation.outputs.decoding import pad_left
from llm_unlearn.models import fingerprint
from llm_unlearn.requests import KnowledgeRequest

ROWS = [{"question": row["question"], "answer": row["answer"]} for row in tiny_rows(60)]
FORGET, RETAIN = ROWS[0::10], [row for i, row in enumerate(ROWS) if i % 10]  # all on Ada, and on the nine others
RULE = SelectionRule(unit="token", max_retain_share=0.05)


def tokenize(rows):
    return ExampleTokenizer(tiny_tokenizer()).all(rows)


def make_unlearner(**options):
    codebook = trained_like(tiny_codebook(**{"num_codes": 120, **options}), n_rows=60)
    return CodeUnlearner(codebook, ExampleTokenizer(tiny_tokenizer()), progress=False)


def with_gate(plan):
    """A gate that opens early: six questions about a model that learned nothing have no code that is sure."""
    return replace(plan, gate=GatePlan(plan.codes(0), 1.0, 1.0, 0.5))


@pytest.fixture(scope="module")
def shared():
    """An unlearner with a swept plan, for tests that change nothing."""
    unlearner = make_unlearner()
    plan = with_gate(unlearner.plan(FORGET, RETAIN, id="ada", rule=RULE))
    return unlearner, unlearner.sweep(plan, ("ablate", "refill", "gated"))


@torch.no_grad()
def logits_of(codebook):
    return codebook(input_ids=IDS).logits


# Counting.


def test_counts_are_those_of_a_loop_over_tokens(shared):
    codebook, tokenizer = shared[0].codebook, ExampleTokenizer(tiny_tokenizer())
    items, levels = tokenizer.all(ROWS[:9]), (3, 6, 12)
    readings = read_codes(codebook, items, tokenizer, 12, progress=False)
    counts = count_codes(readings, levels, 120)
    special = {tokenizer.tokenizer.convert_tokens_to_ids(t) for t in ("<|user|>", "<|end|>", "<|assistant|>")}
    tokens, texts, n_tokens = np.zeros((3, 120)), np.zeros((3, 120)), 0
    codes = codebook.bottleneck.codebook.weight.double()
    for item, reading in zip(items, readings, strict=True):
        (x,) = codebook.site.captured(lambda item=item: codebook(input_ids=torch.tensor([item.input_ids])))
        in_text = np.zeros((3, 120), dtype=bool)
        kept = [t for t, token in enumerate(item.input_ids) if token not in special]
        assert reading.positions.tolist() == kept and len(kept) < len(item.input_ids)
        assert reading.tokens.tolist() == [item.input_ids[t] for t in kept]
        for t in kept:
            n_tokens += 1
            z = codebook.bottleneck.encode(x[0, t]).double()
            ranking = (codes @ z / codes.norm(dim=1)).argsort(descending=True).tolist()
            for row, level in enumerate(levels):
                tokens[row, ranking[:level]] += 1
                in_text[row, ranking[:level]] = True
        texts += in_text
    assert (counts.n_tokens, counts.n_texts) == (n_tokens, 9)
    assert counts.tokens.tolist() == tokens.tolist() and counts.texts.tolist() == texts.tolist()
    assert counts.tokens.sum(1).tolist() == [n_tokens * level for level in levels]


def test_longer_lists_begin_with_the_shorter_ones(shared):
    codebook, tokenizer = shared[0].codebook, ExampleTokenizer(tiny_tokenizer())
    items = tokenizer.all(ROWS[:6])
    short, long = (read_codes(codebook, items, tokenizer, k, progress=False) for k in (None, 12))
    for one, other in zip(short, long, strict=True):
        assert one.codes.shape[1] == 3 and (other.codes[:, :3] == one.codes).all()


def test_counts_do_not_depend_on_padding_company_or_deletions(shared):
    codebook, tokenizer = shared[0].codebook, ExampleTokenizer(tiny_tokenizer())
    items = tokenizer.all(ROWS[:7])
    together = read_codes(codebook, items, tokenizer, progress=False)
    alone = [read_codes(codebook, [item], tokenizer, progress=False)[0] for item in items]
    codebook.bottleneck.set_deleted([int(together[0].codes[0, 0])], [int(together[0].codes[1, 0])], [Gate([5], [5], 1)])
    deleted = read_codes(codebook, items, tokenizer, progress=False)
    codebook.delete()
    for one, two, three in zip(together, alone, deleted, strict=True):
        assert one.codes.tolist() == two.codes.tolist() == three.codes.tolist()
    # Padded on the left, as for generation, tokens have the same codes.
    ids, mask = pad_left([item.input_ids for item in items], pad_id=9)
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    padded = used_codes(codebook, ids, attention_mask=mask, position_ids=positions)
    for codes, own, reading in zip(padded, mask, together, strict=True):
        text = [mine for mine, counted in zip(codes, own.tolist(), strict=True) if counted]
        assert [text[t] for t in reading.positions] == reading.codes.tolist()


def test_begin_tokens_and_what_an_exempt_one_would_say_are_not_counted():
    model = tiny_model()
    items = tokenize(ROWS[:4])
    model.config.bos_token_id = items[0].input_ids[0]
    codebook = trained_like(tiny_codebook(model))
    tokenizer = ExampleTokenizer(tiny_tokenizer())
    tokenizer.special_ids = set()  # as if the begin token were an ordinary one
    for item, reading in zip(items, read_codes(codebook, items, tokenizer, progress=False), strict=True):
        assert reading.positions.tolist() == list(range(1, len(item.input_ids)))


def test_lists_longer_than_the_codebook_are_refused(shared):
    with pytest.raises(ValueError, match=r"Lists of 121 codes were asked for, but there are 120: lower the strengths"):
        shared[0].plan(FORGET, RETAIN, levels=(3, 121), rule=RULE)


# Planning.


def test_a_plan_names_codes_of_the_subject_and_changes_nothing(shared):
    unlearner, _ = shared
    codebook = unlearner.codebook
    before, plain = bottleneck_weights(codebook), logits_of(codebook)
    plan = unlearner.plan(FORGET, RETAIN, rule=RULE)
    assert_equal(bottleneck_weights(codebook), before)
    assert torch.equal(logits_of(codebook), plain) and len(codebook.registry) == 0
    # By a loop: some are codes of the name itself, all are twice as frequent as with other names in its place, none
    # common.
    names = {tiny_tokenizer().convert_tokens_to_ids(word) for word in ("Ada", "Ada?")}
    of_name, forget, control, retain = set(), np.zeros(120), np.zeros(120), np.zeros(120)
    for rows, uses in ((FORGET, forget), (swap_entities(FORGET, RETAIN), control), (RETAIN, retain)):
        readings = read_codes(codebook, tokenize(rows), unlearner.tokenize, progress=False)
        for reading in readings:
            for token, codes in zip(reading.tokens, reading.codes, strict=True):
                uses[codes] += 1
                of_name |= set(map(int, codes)) if token in names else set()
        uses += 0.5
        uses /= sum(len(reading.tokens) for reading in readings) + 1
    chosen = list(plan.codes(0))
    assert set(chosen) & of_name and (forget[chosen] > 2 * control[chosen]).all()
    assert retain[list(plan.codes(2))].max() <= 0.05
    assert plan.levels == (3, 6, 12) and plan.id.startswith("request-")


def test_control_texts_are_the_same_in_every_process():
    """Python orders sets of strings anew in each."""
    code = (
        "import json, sys\n"
        "from llm_unlearn.codebook.controls import sibling_rows, swap_entities\n"
        "forget, retain = json.load(sys.stdin)\n"
        "print(swap_entities(forget, retain), sibling_rows(forget, retain))"
    )
    said = [
        subprocess.run(
            [sys.executable, "-c", code],
            input=json.dumps([FORGET, RETAIN]),
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[1])},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in "01"
    ]
    assert len(said[0]) > 1000 and said[0] == said[1]


def test_levels_are_nested(shared):
    _, plan = shared
    sets = [set(plan.codes(level)) for level in range(3)]
    assert sets[0] <= sets[1] <= sets[2] and len(sets[2]) > len(sets[0]) > 0
    assert tuple(map(len, sets)) == plan.selection.sizes
    with pytest.raises(ValueError, match="Level 3 was asked for"):
        plan.codes(3)


def test_the_gate_of_a_plan_goes_by_the_texts_to_keep():
    unlearner = make_unlearner()
    gate = unlearner.plan(FORGET, RETAIN, rule=RULE).gate
    readings = read_codes(unlearner.codebook, tokenize(RETAIN), unlearner.tokenize, progress=False)
    uses = sorted(sum(int(code) in gate.triggers for code in r.codes.ravel()) for r in readings)
    # The 95th percentile of 54 numbers lies between the 51st and the 52nd, at 0.95 * 53 = 50.35.
    assert gate.threshold == pytest.approx(1 + uses[50] + 0.35 * (uses[51] - uses[50]))
    assert gate.retain_share == sum(n >= gate.threshold for n in uses) / 54


def test_texts_that_differ_in_nothing_have_no_codes_of_their_own(shared):
    unlearner, _ = shared
    for rule in (RULE, PAPER):
        with pytest.raises(ValueError, match=r"(?s)No code is specific to the 6 texts to forget.*Give more examples"):
            unlearner.plan(FORGET, RETAIN, control=FORGET, rule=rule)
    assert len(unlearner.codebook.registry) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (((), RETAIN), "The request has no examples"),
        ((FORGET, ()), r"no rows on any were given: pass `retain` \(`--retain_split`\), or control rows"),
    ],
)
def test_a_plan_without_texts_is_refused(arguments, said, shared):
    with pytest.raises(ValueError, match=said):
        shared[0].plan(*arguments)


def test_a_knowledge_request_brings_all_it_needs(shared):
    unlearner, plan = shared
    request = KnowledgeRequest("ada-1", "Who Ada is.", tuple(FORGET), ("Ada",), tuple(RETAIN))
    planned = unlearner.plan(request, rule=RULE)
    assert planned.id == "ada-1" and planned.grounds["request_hash"] == request.hash
    assert planned.codes(0) == plan.codes(0) and plan.grounds["request_hash"] is None


# The curve.


def test_the_curve_tells_what_applying_does(shared):
    _, plan = shared
    points = {(p.mode, p.level): p for p in plan.curve if p.chosen == "selected"}
    assert points.keys() == {
        ("none", 0),
        *((mode, level) for mode in ("ablate", "refill", "gated") for level in range(3)),
    }
    for mode in ("ablate", "refill", "gated"):
        unlearner = make_unlearner()
        gate = (plan.gate.triggers, plan.gate.threshold) if mode == "gated" else ()
        unlearner.codebook.registry.add(DeletionRecord("ada", plan.codes(1), mode, *gate))
        unlearner.codebook.delete()
        losses = by_plain_forwards(unlearner.codebook, FORGET)
        point = points[mode, 1]
        assert point.forget_loss == pytest.approx(np.mean(losses), rel=1e-4)
        assert point.forget_probability == pytest.approx(np.mean(np.exp(-losses)), rel=1e-4)
        assert point.retain_loss == pytest.approx(by_plain_forwards(unlearner.codebook, RETAIN).mean(), rel=1e-4)
        assert point.n_codes == len(plan.codes(1))
    random = [p for p in plan.curve if p.chosen == "random"]
    assert len(random) == 9 and all(p.n_codes == len(plan.codes(p.level)) for p in random)
    assert len({p.forget_loss for p in plan.curve}) > 8


@torch.no_grad()
def by_plain_forwards(codebook, rows):
    losses = []
    for item in tokenize(rows):
        logps = codebook(input_ids=torch.tensor([item.input_ids])).logits[0].log_softmax(-1)
        own = [-logps[t - 1, item.input_ids[t]].item() for t in range(item.prompt_length, len(item.input_ids))]
        losses.append(np.mean(own))
    return np.array(losses)


def test_a_sweep_leaves_nothing_deleted_and_needs_no_texts_to_keep(shared):
    unlearner, _ = shared
    plain = logits_of(unlearner.codebook)
    rule = SelectionRule(max_retain_share=None)
    plan = unlearner.sweep(unlearner.plan(FORGET, control=RETAIN, rule=rule), ("ablate",))
    assert {p.retain_loss for p in plan.curve} == {None} and len(plan.curve) >= 4
    assert torch.equal(logits_of(unlearner.codebook), plain)
    with pytest.raises(ValueError, match="has no texts to keep, whose loss limits the strength"):
        unlearner.apply(plan)
    assert measure(unlearner.codebook.base_model, []) == (None, None)


def point(level, probability, loss, mode="ablate", chosen="selected", n_codes=5):
    return CurvePoint(mode, level, n_codes, chosen, 1.0, probability, loss, 0.5)


def test_the_smallest_sufficient_strength_is_chosen():
    start = point(0, 0.9, 1.0, mode="none")
    curve = [start, point(0, 0.5, 1.01), point(1, 0.2, 1.02), point(2, 0.1, 1.03), point(0, 0.0, 1.0, chosen="random")]
    assert choose_level(curve, "ablate", 0.05) == 2, "unset: the one that forgets most within the budget"
    assert choose_level(curve, "ablate", 0.025) == 1
    assert choose_level(curve, "ablate", 0.05, max_probability=0.5) == 0
    assert choose_level(curve, "ablate", 0.05, max_probability=0.3) == 1
    assert choose_level(curve, "ablate", 0.05, max_probability=0.01) == 2
    with pytest.raises(ValueError, match=r"costs more than the budget of 0.5%: the least, level 0.*by 1.0%"):
        choose_level(curve, "ablate", 0.005)
    # A level without codes deletes nothing and costs nothing.
    empty = [start, point(0, 0.9, 1.0, n_codes=0), point(1, 0.9, 1.01)]
    assert choose_level(empty, "ablate", 0.05) == choose_level(empty, "ablate", 0.05, max_probability=1.0) == 1
    with pytest.raises(ValueError, match=r"no curve of the mode 'refill'.*`sweep` it first"):
        choose_level(curve, "refill", 0.02)


# Applying and revoking.


@pytest.mark.parametrize("mode", ["ablate", "refill", "gated"])
def test_a_request_trains_nothing_and_changes_masks_alone(mode, monkeypatch):
    def no_optimiser(*_args, **_kwargs):
        raise AssertionError("an optimiser was made")

    unlearner = make_unlearner()
    codebook, graphs = unlearner.codebook, []
    monkeypatch.setattr(torch.optim.Optimizer, "__init__", no_optimiser)
    codebook.base_model.register_forward_pre_hook(lambda *_: graphs.append(torch.is_grad_enabled()))
    weights, state = fingerprint(codebook.base_model), bottleneck_weights(codebook)
    plain = logits_of(codebook)
    graphs.clear()

    plan = with_gate(unlearner.plan(FORGET, RETAIN, id="ada", rule=RULE))
    plan = unlearner.sweep(plan, (mode,))
    assert_equal(bottleneck_weights(codebook), state)
    assert unlearner.apply(plan, 0, mode) == "ada"
    assert graphs and not any(graphs)
    assert all(parameter.grad is None for parameter in codebook.base_model.parameters())
    masks = {"refill": {"refilled"}, "ablate": {"ablated"}, "gated": {"gate_triggers", "gated", "gate_thresholds"}}[
        mode
    ]
    after = bottleneck_weights(codebook)
    assert {name for name in state if not torch.equal(after[name], state[name])} == masks
    mask = after[{"refill": "refilled", "ablate": "ablated", "gated": "gated"}[mode]].reshape(-1)
    assert tuple(mask.nonzero()[:, 0].tolist()) == plan.codes(0)
    deleted = by_plain_forwards(codebook, FORGET)

    unlearner.revoke("ada")
    assert torch.equal(logits_of(codebook), plain)
    assert_equal(bottleneck_weights(codebook), state)
    assert fingerprint(codebook.base_model) == weights
    assert codebook.registry["ada"].status == "revoked"
    assert abs(by_plain_forwards(codebook, FORGET).mean() - deleted.mean()) > 1e-3
    unlearner.revoke("ada")
    assert unlearner.apply(plan, 0, mode) == "ada" and codebook.registry["ada"].status == "active"
    assert len(codebook.registry) == 1


def test_the_record_has_grounds_and_no_text(shared, tmp_path):
    unlearner, plan = make_unlearner(), shared[1]
    unlearner.apply(plan, "auto", "refill", max_retain_rise=1e9)
    unlearner.codebook.save_pretrained(tmp_path / "codebook")
    text = (tmp_path / "codebook" / "requests.json").read_text()
    assert not [name for name in (*NAMES, "poet", "born") if name in text]
    (record,) = json.loads(text)["requests"]
    assert (record["id"], record["mode"], record["status"]) == ("ada", "refill", "active")
    grounds = record["grounds"]
    assert grounds["control"] == {"builder": "swap", "variants": 8, "seed": 0, "texts": 48}
    assert grounds["texts"]["count"] == 6 and len(grounds["texts"]["sha256"]) == 64
    assert [row["code"] for row in grounds["codes"]] == record["codes"]
    assert len(grounds["curve"]) == len(plan.curve)
    loaded = CodebookModel.from_pretrained(tiny_model(), tmp_path / "codebook")
    assert torch.equal(logits_of(loaded), logits_of(unlearner.codebook))


def test_a_strength_that_does_not_exist_is_refused(shared):
    unlearner, plan = shared
    for strength in (3, -1):
        with pytest.raises(ValueError, match=rf"Strength {strength} was asked for; the plan has 3, from 0"):
            unlearner.apply(plan, strength)
    assert len(unlearner.codebook.registry) == 0


def test_a_plan_of_other_codes_is_refused(shared):
    """After a purge the codes have other numbers; another codebook has other codes."""
    plan = shared[1]
    unlearner = make_unlearner()
    delete(unlearner.codebook, "refill", [0, 1], "other")
    unlearner.purge("other")
    for other in (unlearner, make_unlearner(seed=1)):
        with pytest.raises(ValueError, match="made with other codes than these.*plan it anew"):
            other.apply(plan, 0)
    assert "ada" not in {record.id for record in unlearner.codebook.registry}


def plan_to_delete(unlearner, codes):
    """A plan that would delete these codes."""
    plan = unlearner.plan(FORGET, RETAIN, id="all", rule=RULE)
    plan.selection.chosen[:] = False
    plan.selection.chosen[:, sorted(codes)] = True
    return plan


def test_a_deletion_that_leaves_tokens_without_codes_is_refused():
    unlearner = make_unlearner()
    readings = read_codes(unlearner.codebook, tokenize(RETAIN), unlearner.tokenize, progress=False)
    of_one = {int(code) for code in readings[0].codes[3]}
    tokens = np.concatenate([reading.codes for reading in readings])
    n_silent = sum(set(map(int, codes)) == of_one for codes in tokens)
    plan = plan_to_delete(unlearner, of_one)
    with pytest.raises(ValueError, match=rf"Ablating 3 codes would leave {n_silent} of {len(tokens)} tokens.*'gated'"):
        unlearner.apply(plan, 0, "ablate")
    assert len(unlearner.codebook.registry) == 0 and not unlearner.codebook.bottleneck.ablated.any()
    with pytest.raises(ValueError, match="--max_silent"):
        unlearner.apply(plan, 0, "ablate", max_silent=(n_silent - 0.5) / len(tokens))
    unlearner.revoke(unlearner.apply(plan, 0, "ablate", max_silent=n_silent / len(tokens)))
    # Together with what other requests delete, purged or not; but not with the same request's former codes.
    first, *others = sorted(of_one)
    delete(unlearner.codebook, "ablate", [first], "other")
    rest = plan_to_delete(unlearner, others)
    with pytest.raises(ValueError, match="Ablating 3 codes would leave"):
        unlearner.apply(rest, 0, "ablate")
    purged = make_unlearner()
    delete(purged.codebook, "ablate", [first], "other")
    purged.purge("other")
    with pytest.raises(ValueError, match="Ablating 3 codes would leave"):
        purged.apply(plan_to_delete(purged, others), 0, "ablate")
    unlearner.revoke("other")
    unlearner.apply(plan_to_delete(unlearner, [first]), 0, "ablate")
    unlearner.apply(plan_to_delete(unlearner, others), 0, "ablate")
    assert unlearner.codebook.bottleneck.ablated.nonzero()[:, 0].tolist() == others


def test_more_codes_than_a_token_can_spare_are_refused():
    unlearner = make_unlearner()
    plain = logits_of(unlearner.codebook)
    delete(unlearner.codebook, "refill", range(60, 117), "first")
    deleted = logits_of(unlearner.codebook)
    with pytest.raises(ValueError, match=r"Deleting 118 of 120 codes would leave 2, and every token needs 3"):
        unlearner.apply(plan_to_delete(unlearner, {*range(60), 117}), 0, "refill")
    assert torch.equal(logits_of(unlearner.codebook), deleted)
    assert [record.id for record in unlearner.codebook.registry] == ["first"]
    unlearner.apply(plan_to_delete(unlearner, range(60)), 0, "refill")
    assert {code for text in used_codes(unlearner.codebook) for token in text for code in token} == {117, 118, 119}
    unlearner.revoke("first")
    unlearner.revoke("all")
    assert torch.equal(logits_of(unlearner.codebook), plain)


# Several requests.

REQUESTS = [
    ("one", "ablate", (1, 2, 3)),
    ("two", "ablate", (3, 4)),
    ("three", "refill", (10, 11)),
    ("four", "gated", (4, 20)),
]


def test_requests_compose_in_any_order():
    orders = [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)]
    results = []
    for order in orders:
        codebook = make_unlearner().codebook
        for i in order:
            request, mode, codes = REQUESTS[i]
            delete(codebook, mode, codes, request)
        results.append(logits_of(codebook))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
    assert codebook.registry.deleted() == {
        "refilled": [10, 11],
        "ablated": [1, 2, 3, 4],
        "gates": [Gate((4, 20), (4, 20), 3.0)],
    }


def test_a_shared_code_stays_deleted_until_the_last_request_is_revoked():
    unlearner = make_unlearner()
    codebook = unlearner.codebook
    plain, alone = logits_of(codebook), {}
    for request, mode, codes in REQUESTS:
        delete(codebook, mode, codes, request)
        alone[request] = logits_of(codebook)
        unlearner.revoke(request)
        assert torch.equal(logits_of(codebook), plain)
    for request, mode, codes in REQUESTS[:2]:
        delete(codebook, mode, codes, request)
    unlearner.revoke("two")
    assert codebook.bottleneck.ablated.nonzero()[:, 0].tolist() == [1, 2, 3]
    assert torch.equal(logits_of(codebook), alone["one"])
    for request, mode, codes in REQUESTS:
        delete(codebook, mode, codes, request)
        delete(codebook, mode, codes, request)
    for request in ("three", "one", "four", "two", "one"):
        unlearner.revoke(request)
    assert torch.equal(logits_of(codebook), plain)


def test_the_registry_refuses_what_makes_no_sense(tmp_path):
    registry = DeletionRegistry([DeletionRecord("one", (1, 2))])
    with pytest.raises(KeyError, match="Did you mean 'one'"):
        registry["on"]
    with pytest.raises(KeyError):
        registry.set_status("three", "revoked")
    with pytest.raises(ValueError, match="names no code"):
        DeletionRecord("two", ())
    with pytest.raises(ValueError, match="Did you mean 'ablate'"):
        DeletionRecord("two", (1,), "ablat")
    for mode, triggers, threshold in (("gated", (1,), None), ("gated", (), 2.0), ("ablate", (1,), None)):
        with pytest.raises(ValueError, match="both belong to the mode 'gated', which needs them"):
            DeletionRecord("two", (1,), mode, triggers, threshold)
    with pytest.raises(ValueError, match=r"mode 'refill', 0 triggers and threshold 2\.0: both belong"):
        DeletionRecord("two", (1,), "refill", threshold=2.0)
    registry.set_status("one", "purged")
    for change in (lambda: registry.set_status("one", "revoked"), lambda: registry.add(DeletionRecord("one", (5,)))):
        with pytest.raises(ValueError, match="was purged, which cannot be undone"):
            change()
    registry.add(DeletionRecord("two", (3,), "gated", (4, 5), 2.5, grounds={"p": 0.5}))
    registry.save(tmp_path, "hash")
    assert list(DeletionRegistry.load(tmp_path, "hash")) == list(registry)
    with pytest.raises(ValueError, match=r"belong to a codebook with other weights.*plan and apply them anew"):
        DeletionRegistry.load(tmp_path, "other")
    with pytest.raises(ValueError, match="Did you mean 'active'"):
        DeletionRecord("two", (1,), status="actve")
    content = json.loads((tmp_path / "requests.json").read_text())
    for changes, said in (
        ({"schema": "llm-unlearn/codebook-requests/1"}, r"requests/1', .*remove the file, which revokes its requests"),
        ({"requests": [{"id": "two", "codes": [1]}]}, r"cannot be read \('triggers'\): take the file from a copy"),
        ({"requests": [content["requests"][0] | {"mode": "gate"}]}, "cannot be read .*Did you mean 'gated'"),
    ):
        (tmp_path / "requests.json").write_text(json.dumps(content | changes))
        with pytest.raises(ValueError, match=said):
            DeletionRegistry.load(tmp_path, "hash")


def test_numbers_and_grounds_follow_when_codes_are_dropped():
    grounds = {"codes": [{"code": 2, "p": 0.1}, {"code": 5, "p": 0.2}], "strength": 0}
    registry = DeletionRegistry([DeletionRecord("one", (2, 5), grounds=grounds), DeletionRecord("two", (3,))])
    registry.set_status("two", "revoked")
    registry.renumber([0, 1, 4, 5])
    assert registry["one"].codes == (3,) and registry["one"].grounds == {
        "codes": [{"code": 3, "p": 0.2}],
        "strength": 0,
    }
    assert (registry["two"].status, registry["two"].codes) == ("purged", (3,))


# Purging.


def purge_and_reload(unlearner, request, folder):
    unlearner.purge(request)
    unlearner.codebook.save_pretrained(folder)
    return CodebookModel.from_pretrained(tiny_model(), folder)


def test_purged_refilled_codes_are_gone_from_the_file(tmp_path):
    unlearner = make_unlearner()
    codebook = unlearner.codebook
    weight = codebook.bottleneck.codebook.weight.detach().clone()
    gone, ablated, gated, revoked = [0, 7, 50, 119], [1, 8], (9, 118), (6, 7, 49)
    triggers = (1, 118)
    delete(codebook, "refill", gone, "gone")
    delete(codebook, "ablate", ablated, "kept")
    delete(codebook, "gated", gated, "gate", threshold=2, triggers=triggers)
    delete(codebook, "refill", revoked, "back")
    unlearner.revoke("back")
    # Of the first no trigger is left, of the second some are.
    delete(codebook, "gated", ablated, "shut", triggers=(7, 119))
    delete(codebook, "gated", ablated, "ajar", triggers=(7, 9))
    unlearner.revoke("shut")
    unlearner.revoke("ajar")
    before, codes = logits_of(codebook), used_codes(codebook)
    loaded = purge_and_reload(unlearner, "gone", tmp_path / "codebook")
    kept = [code for code in range(120) if code not in gone]
    for one in (codebook, loaded):
        torch.testing.assert_close(logits_of(one), before, rtol=0, atol=1e-5)
        assert [[[kept[code] for code in token] for token in text] for text in used_codes(one)] == codes
        assert one.config.num_codes == 116
        assert one.registry["gone"].status == "purged"
        assert one.registry["kept"].codes == (0, 6) and one.registry["gate"].codes == (7, 115)
        assert one.registry["gate"].triggers == (0, 115)
        assert one.registry["back"].codes == (5, 47), "of a revoked request, what is left"
        assert (one.registry["shut"].status, one.registry["shut"].mode) == ("purged", "refill")
        assert (one.registry["ajar"].codes, one.registry["ajar"].triggers) == ((0, 6), (7,))
    saved = load_file(tmp_path / "codebook" / "codebook.safetensors")
    assert torch.equal(saved["codebook.weight"], weight[kept])
    assert {name: tensor.shape[0] for name, tensor in saved.items() if tensor.shape[:1] == (116,)}.keys() == {
        "codebook.weight", "last_used", "purged",
    }  # fmt: skip
    with pytest.raises(ValueError, match="was purged, which cannot be undone"):
        unlearner.revoke("gone")
    with pytest.raises(ValueError, match="'gone' is purged; only an active request can be purged"):
        unlearner.purge("gone")
    unlearner.revoke("kept")
    assert not codebook.bottleneck.ablated.any()


def test_purging_codes_that_another_request_refills_leaves_it_nothing_to_delete():
    """Its numbers now belong to other codes, which it must not delete."""
    unlearner = make_unlearner()
    for request, codes in (("one", (1, 2, 3)), ("two", (1, 2)), ("three", (2, 3, 4)), ("four", (1,))):
        delete(unlearner.codebook, "refill", codes, request)
    unlearner.revoke("four")
    before = logits_of(unlearner.codebook)
    unlearner.purge("one")
    torch.testing.assert_close(logits_of(unlearner.codebook), before, rtol=0, atol=1e-5)
    assert unlearner.codebook.bottleneck.refilled.nonzero()[:, 0].tolist() == [1], "what was number 4"
    registry = unlearner.codebook.registry
    assert [registry[name].status for name in ("one", "two", "three", "four")] == [
        "purged",
        "purged",
        "active",
        "purged",
    ]


def test_purged_ablated_codes_keep_a_direction_and_no_vector(tmp_path):
    unlearner = make_unlearner()
    codebook = unlearner.codebook
    gone = sorted({code for text in used_codes(codebook) for token in text[:3] for code in token})
    lengths = codebook.bottleneck.codebook.weight.detach().norm(dim=1)
    assert (lengths[gone] - 1).abs().min() > 0.1
    delete(codebook, "ablate", gone, "trial")
    ablated = logits_of(codebook)
    unlearner.revoke("trial")
    delete(codebook, "ablate", gone, "gone")
    codes = used_codes(codebook)
    loaded = purge_and_reload(unlearner, "gone", tmp_path / "codebook")
    for one in (codebook, loaded):
        torch.testing.assert_close(logits_of(one), ablated, rtol=0, atol=1e-5)
        assert used_codes(one) == codes, "they are found as before"
        assert one.registry["gone"].status == "purged"
    saved = load_file(tmp_path / "codebook" / "codebook.safetensors")["codebook.weight"]
    torch.testing.assert_close(saved[gone].norm(dim=1), torch.ones(len(gone)), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="cannot be undone"):
        unlearner.revoke("gone")
    # It stays in force, so that nobody drops its codes.
    delete(codebook, "refill", gone[:1], "other")
    with pytest.raises(ValueError, match="Request 'gone' deletes 1 .*revoke 'other', as that one is purged"):
        unlearner.purge("other")


def test_a_purged_gate_stays_in_force_and_loses_its_triggers_vectors(tmp_path):
    unlearner = make_unlearner()
    codebook = unlearner.codebook
    first, second = used_codes(codebook)[:2]
    triggers, codes = sorted(set(first[1])), sorted({code for token in first[3:] for code in token} - set(first[1]))
    weight = codebook.bottleneck.codebook.weight.detach().clone()
    delete(codebook, "ablate", triggers, "trial")
    delete(codebook, "gated", codes, "gate", threshold=1, triggers=triggers)
    expected, found = logits_of(codebook), used_codes(codebook)
    unlearner.revoke("trial")
    assert not torch.equal(logits_of(codebook), expected)
    loaded = purge_and_reload(unlearner, "gate", tmp_path / "codebook")
    for one in (codebook, loaded):
        torch.testing.assert_close(logits_of(one), expected, rtol=0, atol=1e-5)
        assert used_codes(one) == found, "triggers are found as before"
    left = load_file(tmp_path / "codebook" / "codebook.safetensors")["codebook.weight"]
    changed = (left != weight).any(1).nonzero()[:, 0].tolist()
    assert changed == triggers, "what the gate ablates serves other texts too"
    with pytest.raises(ValueError, match="cannot be undone"):
        unlearner.revoke("gate")
    # Numbers follow when others are dropped, and a code of the gate cannot be.
    free = next(code for code in range(120) if code not in {*codes, *triggers})
    delete(codebook, "refill", [free], "free")
    before = logits_of(codebook)
    unlearner.purge("free")
    torch.testing.assert_close(logits_of(codebook), before, rtol=0, atol=1e-5)
    assert codebook.registry["gate"].triggers == tuple(code - (code > free) for code in triggers)
    delete(codebook, "refill", codebook.registry["gate"].codes[:1], "more")
    with pytest.raises(ValueError, match="Request 'gate' deletes 1 .*revoke 'more', as that one is purged"):
        unlearner.purge("more")


def test_a_code_that_must_stay_in_place_is_not_dropped(tmp_path):
    for first, second in (("refill", "ablate"), ("ablate", "refill"), ("gated", "refill")):
        unlearner = make_unlearner()
        delete(unlearner.codebook, first, [3, 4], "one")
        delete(unlearner.codebook, second, [4, 5], "two")
        before, plain = bottleneck_weights(unlearner.codebook), logits_of(unlearner.codebook)
        with pytest.raises(
            ValueError, match=rf"Request 'two' deletes 1 of the same codes in the mode '{second}'.*revoke 'two' first"
        ):
            unlearner.purge("one")
        assert_equal(bottleneck_weights(unlearner.codebook), before)
        assert torch.equal(logits_of(unlearner.codebook), plain)
        unlearner.revoke("two")
        with pytest.raises(ValueError, match="'two' is revoked; only an active request can be purged"):
            unlearner.purge("two")
        with pytest.raises(KeyError):
            unlearner.purge("three")
