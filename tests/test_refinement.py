"""Iterative refinement: what a look measures, who is forgotten, what leaves the loss, when a run stops."""

import json
import math
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from runs import assert_equal, losses, make_trainer, trained_weights
from tiny import tiny_model, tiny_rows, tiny_tokenizer
from transformers import TrainerCallback

from llm_unlearn.adapters import lora_config
from llm_unlearn.config import UnlearningConfig
from llm_unlearn.data.pairing import ItemWeights
from llm_unlearn.data.tokenization import ExampleTokenizer
from llm_unlearn.evaluation.metrics.extraction import el_n
from llm_unlearn.evaluation.metrics.overlap import rouge_l_recall
from llm_unlearn.evaluation.metrics.similarity import sentence_bleu
from llm_unlearn.evaluation.records import MetricRecord
from llm_unlearn.evaluation.report import EvalReport
from llm_unlearn.methods.icu import ICUConfig, ICUTrainer
from llm_unlearn.refinement.callback import FILE_NAME
from llm_unlearn.refinement.judges import MemoryJudge, TextJudge, Thresholds, stop_reached
from llm_unlearn.refinement.look import Look
from llm_unlearn.refinement.plan import RefinementPlan
from llm_unlearn.refinement.probes import Probes
from llm_unlearn.refinement.thresholds import from_holdout

TOKENIZE = ExampleTokenizer(tiny_tokenizer())
LONG = [{"text": " ".join(row["answer"] for row in tiny_rows(5, first=5 * i))} for i in range(4)]


def config(tmp_path=".", **options):
    options = {"refine": True, "iur_judge": "none", "stop_ma": 0.0, "el_n": 3} | options
    return UnlearningConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none", **options)


# What is asked.


def test_a_question_is_asked_and_its_answer_compared(tmp_path):
    items = TOKENIZE.all(tiny_rows(3))
    probes = Probes.of(items, config(tmp_path), TOKENIZE)
    assert probes.asked == items and probes.whole == items and probes.continued == items
    assert probes.references == [row["answer"] for row in tiny_rows(3)]
    assert probes.caps == [len(item.answer_ids) for item in items]
    assert probes.reads_everything
    assert Probes.of(items, config(tmp_path, iur_new_tokens=7), TOKENIZE).caps == [7] * 3
    assert Probes.of(items, config(tmp_path, el_n=30), TOKENIZE).n_without_el == 3


def test_of_plain_text_the_prefix_is_the_prompt_and_the_rest_the_suffix(tmp_path):
    items = TOKENIZE.all(LONG)
    ids = items[0].input_ids
    probes = Probes.of(items, config(tmp_path, iur_prefix=[6, 10], el_start=12), TOKENIZE)
    asked = probes.asked[0]
    assert asked.prompt_ids == ids[6:10] and asked.answer_ids == ids[10:]
    assert probes.caps[0] == len(ids) - 10 and not probes.reads_everything
    assert probes.continued[0].prompt_ids == ids[:12]
    cut = Probes.of(items, config(tmp_path, iur_prefix=[6, 10], iur_new_tokens=5, iur_context="full"), TOKENIZE)
    assert cut.asked[0].prompt_ids == ids[:10] and cut.asked[0].answer_ids == ids[10:15]
    assert cut.caps == [5] * 4 and cut.reads_everything and not cut.asked[0].has_end
    with pytest.raises(
        ValueError, match=r"Row 0 of the forget rows has .* up to token 150: give longer .*--iur_prefix"
    ):
        Probes.of(items, config(tmp_path), TOKENIZE)


# What is measured.


@pytest.mark.parametrize("beams", [1, 2])
def test_a_look_measures_what_the_plain_way_measures(beams, tmp_path):
    args = config(tmp_path, iur_beams=beams, iur_prefix=[6, 10], iur_context="full", el_start=12, max_length=30)
    tokenize = ExampleTokenizer(tiny_tokenizer(), max_length=30)
    model, items = tiny_model(), tokenize.all(LONG)
    probes = Probes.of(items, args, tokenize)
    look = Look(model, probes, args, tokenize)
    look.generate([1, 2])
    look.extract([0])
    assert look.n_generated == 2
    assert np.isnan(look.column("bleu")).tolist() == [True, False, False, True]
    for i, item in enumerate(items):
        ids = torch.tensor([item.input_ids])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0]
        assert look.ma[i] == pytest.approx((logits[:-1].argmax(-1) == ids[0, 1:]).float().mean().item())
        nll = -logits.log_softmax(-1)[torch.arange(29), ids[0, 1:]].mean()
        assert look.loss[i] == pytest.approx(nll.item(), rel=1e-5)
    prompt = torch.tensor([items[1].input_ids[:10]])
    settings = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 1, "eos_token_id": [0, 1]}
    written = model.generate(prompt, attention_mask=torch.ones_like(prompt), num_beams=beams, **settings)[0, 10:]
    text = tokenize.decode(written.tolist())
    assert look.texts[1] == text
    truth = tokenize.decode(items[1].input_ids[10:])
    assert look.column("bleu")[1] == sentence_bleu(text, truth)
    assert look.column("rouge_l")[1] == pytest.approx(rouge_l_recall([truth], [text])[0])
    # EL of item 0 by the plain loop over its prefixes of 12 tokens and more.
    x = items[0].input_ids
    continued = []
    for t in range(12, 30):
        prompt = torch.tensor([x[:t]])
        out = model.generate(prompt, attention_mask=torch.ones_like(prompt), **{**settings, "max_new_tokens": 30 - t})
        continued.append(out[0, t:].tolist())
    assert look.column("el")[0] == pytest.approx(el_n(np.array(x[12:]), continued, 3, start=0))


def test_the_mean_of_some_items_is_not_the_mean_of_all(tmp_path):
    """Items 1 and 3 have 2 tokens, too few for EL_3."""
    rows = [{"question": f"Who is {i}?", "answer": "poet" if i % 2 else "a poet of the river"} for i in range(5)]
    args = config(tmp_path, iur_beams=1)
    look = Look(tiny_model(), Probes.of(TOKENIZE.all(rows), args, TOKENIZE), args, TOKENIZE)
    assert look.mean("ma") == look.ma.mean() and look.missing("ma") == []
    look.generate([0, 1, 2, 3])
    look.extract([0, 1, 2])
    look.put("el", [0, 2], [0.2, 0.1])
    assert (look.mean("el"), look.missing("el")) == (None, [4])
    assert (look.mean("rouge_l"), look.missing("rouge_l")) == (None, [4])
    assert look.at_least("el") == pytest.approx(0.3 / 3)
    look.generate([4])
    look.extract([4])
    assert look.mean("el") == look.at_least("el") == np.nanmean(look.column("el")) and not look.missing("el")
    assert look.mean("rouge_l") == look.column("rouge_l").mean()


# Who is forgotten.


class StubLook(Look):
    """A look whose numbers are given, EL_n (NaN: has none) when asked for. It notes what it is asked for."""

    def __init__(self, ma, el=None, **columns):
        self.ma = np.array(ma)
        self.columns = {"ma": self.ma, **{name: np.array(values) for name, values in columns.items()}}
        self.texts = [f"text {i}" for i in range(len(ma))]
        self.els = np.array([np.nan] * len(ma) if el is None else el)
        self._probes = SimpleNamespace(continued=[None if np.isnan(one) else one for one in self.els])
        self.generated, self.extracted = set(), []

    def generate(self, positions):
        self.generated |= set(positions)

    def extract(self, positions):
        self.extracted.append(list(positions))
        self.put("el", positions, self.els[list(positions)])


class Angles:
    """An encoder under which text i has the cosine `cosines[i]` with every true text."""

    name, layer = "angles", 0

    def __init__(self, cosines):
        self.cosines = cosines
        self.asked = []

    def embed(self, texts):
        self.asked += texts
        vectors = []
        for text in texts:
            cosine = self.cosines[int(text.split()[1])] if text.startswith("text") else 1.0
            vectors.append(np.array([[cosine, math.sqrt(1 - cosine**2)]]))
        return vectors


@pytest.mark.parametrize(("rule", "expected"), [("or", {0, 1}), ("and", set())])
def test_the_rule_on_f1_and_bleu(rule, expected, tmp_path):
    """(.29, .5) and (.9, .009) are dropped by "or", (.3, .01) is kept by either: both are strict."""
    encoder = Angles([0.29, 0.9, 0.3, 0.29])
    look = StubLook(ma=[0] * 4, bleu=[0.5, 0.009, 0.01, 0.009])
    judge = TextJudge(config(tmp_path, iur_rule=rule), ["true"] * 4, encoder, nullcontext, 0.3, lazy=False)
    assert judge.forgotten(look, [0, 1, 2]) == expected
    assert judge.forgotten(look, [3]) == {3}
    assert look.columns["bert_f1"].tolist() == pytest.approx([0.29, 0.9, 0.3, 0.29])


@pytest.mark.parametrize(("rule", "compared"), [("or", [0, 2]), ("and", [1])])
def test_a_lazy_judge_compares_only_what_bleu_left_open_and_says_the_same(rule, compared, tmp_path):
    cosines, bleu = [0.29, 0.9, 0.3], [0.5, 0.009, 0.01]
    verdicts = []
    for lazy in (False, True):
        encoder = Angles(cosines)
        judge = TextJudge(config(tmp_path, iur_rule=rule), ["true"] * 3, encoder, nullcontext, 0.3, lazy=lazy)
        verdicts.append(judge.forgotten(StubLook(ma=[0] * 3, bleu=bleu), [0, 1, 2]))
    assert verdicts[0] == verdicts[1]
    assert [text for text in encoder.asked if text != "true"] == [f"text {i}" for i in compared]


def test_the_memory_judge_asks_for_no_more_than_it_needs():
    look = StubLook(ma=[0.9, 0.5, 0.5, 0.5, 0.4], rouge_l=[0, 0.8, 0.2, 0.3, 0.1], el=[0, 0, 0.3, 0.1, np.nan])
    judge = MemoryJudge(Thresholds(ma=0.5, el=0.1, rouge_l=0.3))
    assert judge.forgotten(look, range(5)) == {3, 4}, "at most the threshold; a short answer has no EL"
    assert look.generated == {1, 2, 3, 4} and look.extracted == [[2, 3, 4]]
    assert judge.forgotten(look, [4]) == {4}


@pytest.mark.parametrize(
    ("ma", "el", "rule", "stops", "measures_el"),
    [
        (0.5, 0.04, "and", True, True),
        (0.5, 0.06, "and", False, True),
        (0.7, 0.04, "and", False, False),
        (0.7, 0.04, "or", True, True),
        (0.5, 0.06, "or", True, False),
        (0.7, 0.06, "or", False, True),
    ],
)
def test_the_stop_rule(ma, el, rule, stops, measures_el):
    look = StubLook(ma=[ma], el=[el])
    assert stop_reached(look, Thresholds(0.5994, 0.0499), rule) is stops
    assert bool(look.extracted) is measures_el


def test_the_stop_rule_of_one_threshold_and_of_none():
    look = StubLook(ma=[0.5], el=[0.0])
    assert stop_reached(look, Thresholds(ma=0.6), "and") and stop_reached(look, Thresholds(ma=0.6), "or")
    assert stop_reached(look, Thresholds(el=0.0), "and"), "at most the threshold"
    assert not stop_reached(look, Thresholds(), "and") and not stop_reached(look, Thresholds(), "or")


@pytest.mark.parametrize("rule", ["and", "or"])
def test_the_stop_rule_decides_as_if_everything_were_measured(rule):
    """Also where the mean is the very threshold, where items are without EL_n, and where some were measured before."""
    draw = np.random.default_rng(0)
    seen = set()
    for _ in range(1000):
        count = draw.integers(1, 40)
        ma = draw.choice([0.2, 0.5, 0.8], count)
        el = draw.random(count) * (draw.random(count) < draw.random())
        el[draw.random(count) < draw.choice([0, 0.3, 0.9])] = np.nan
        mean = 0.0 if np.isnan(el).all() else np.nanmean(el)
        limit = draw.choice([mean, np.nextafter(mean, -1), mean * draw.random(), mean * 2])
        look = StubLook(ma, el)
        look.extract(np.flatnonzero(draw.random(count) < draw.choice([0, 0.5])))
        reached = stop_reached(look, Thresholds(0.5, limit), rule)
        passed = [bool(ma.mean() <= 0.5), bool(not np.isnan(el).all() and mean <= limit)]
        assert reached == (all(passed) if rule == "and" else any(passed))
        assert look.at_least("el") <= mean and look.mean("el") in (None, mean)
        if reached and rule == "and":
            assert look.mean("el") == mean
        seen.add((*passed, look.mean("el") is None))
    assert len(seen) == 7, "all but one: a mean that is not above its limit is measured, unless MA has decided"


def test_the_stop_rule_continues_what_is_remembered_best_and_no_more_than_it_needs():
    """Of 24 items 3 are known, 1 has no EL_n; a mean of .1 or more is above the limit with the 6th item."""
    ma = np.linspace(0.1, 0.6, 24)
    el = np.zeros(24)
    el[0], el[18] = np.nan, 2.4
    look = StubLook(ma, el)
    look.extract([1, 2, 20])
    assert not stop_reached(look, Thresholds(0.5, 0.1), "and")
    assert look.extracted[1:] == [[23, 22, 21, 19], [18, 17, 16, 15, 14, 13, 12]]
    assert look.mean("el") is None and look.at_least("el") == pytest.approx(2.4 / 23)
    assert stop_reached(look, Thresholds(0.5, 0.11), "and")
    assert look.extracted[3:] == [[11, 10, 9, 8, 7, 6, 5, 4, 3]]


# What leaves the loss.


def step_gradients(trainer):
    """The gradient of the first step, and the loss."""
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return {n: p.grad for n, p in trainer.model.named_parameters() if p.requires_grad}, loss


def partnered(tmp_path, forget, partners, flags=None, retain_flags=None, batch=8, accumulation=1, **options):
    args = ICUConfig(
        output_dir=str(tmp_path), use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True,
        per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation, kl_mask_pad=True,
        **{"learning_rate": 1e-3, "warmup_steps": 0, "num_train_epochs": 1, **options},
    )  # fmt: skip
    trainer = ICUTrainer(
        tiny_model(), args, forget, tiny_tokenizer(), retain_dataset=tiny_rows(8, first=20),
        partners=[[p] for p in partners], peft_config=lora_config(r=4, lora_alpha=8),
    )  # fmt: skip
    if flags:
        trainer.sampler.weights = ItemWeights([float(f) for f in flags], [float(f) for f in retain_flags or flags])
    with torch.no_grad():
        generator = torch.Generator().manual_seed(3)
        for weight in trainer.model.parameters():
            if weight.requires_grad:
                weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    return trainer


def test_a_forgotten_pair_leaves_the_gradient_as_if_it_were_not_there(tmp_path):
    rows, partners = tiny_rows(8), [3, 1, 4, 1, 5, 0, 2, 6]
    kept = [0, 2, 3, 6, 7]
    flags = [i in kept for i in range(8)]
    ours, our_loss = step_gradients(partnered(tmp_path, rows, partners, flags))
    alone = partnered(tmp_path, [rows[i] for i in kept], [partners[i] for i in kept], batch=5)
    theirs, their_loss = step_gradients(alone)
    assert our_loss.item() == pytest.approx(their_loss.item(), rel=1e-5)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-6)


def test_a_kept_partner_stays_whole(tmp_path):
    rows, partners = tiny_rows(4), [3, 1, 4, 2]
    trainer = partnered(tmp_path, rows, partners, [0, 0, 1, 0], [1, 1, 1, 1], batch=4)
    batch = next(iter(trainer.get_train_dataloader()))
    weights = dict(zip(batch["forget"]["index"].tolist(), batch["forget"]["weight"].tolist(), strict=True))
    assert weights == {0: 0.0, 1: 0.0, 2: 4.0, 3: 0.0}
    assert batch["retain"]["weight"].tolist() == [1.0] * 4


def test_a_step_in_which_nothing_counts_moves_nothing_in_spite_of_momentum(tmp_path):
    trainer = partnered(tmp_path, tiny_rows(8), range(8), batch=4, num_train_epochs=3)
    seen = []

    class Flags(TrainerCallback):
        def on_epoch_begin(self, args, state, control, **_):
            flags = [0.0 if state.global_step >= 2 else 1.0] * 8
            trainer.sampler.weights = ItemWeights(flags, flags)
            seen.append(trained_weights(trainer.model))

    trainer.add_callback(Flags())
    trainer.train()
    seen.append(trained_weights(trainer.model))
    assert trainer.state.global_step == 6
    assert any(not torch.equal(seen[0][name], seen[1][name]) for name in seen[0]), "the first epoch trains"
    assert_equal(seen[1], seen[3])
    assert [line["loss"] for line in losses(trainer)[2:]] == [0.0] * 4
    assert trainer.guard.reason is None


def test_accumulation_does_not_change_a_step_with_flags(tmp_path):
    flags = [1, 0, 1, 1, 0, 0, 1, 1]
    runs = []
    for batch, accumulation in ((8, 1), (2, 4)):
        trainer = partnered(tmp_path, tiny_rows(8), range(8), flags, batch=batch, accumulation=accumulation)
        trainer.train()
        runs.append(trained_weights(trainer.model))
    for name in runs[0]:
        torch.testing.assert_close(runs[0][name], runs[1][name], rtol=0, atol=1e-5)


# The run.


class Scripted:
    """A judge whose verdicts are given, one set per look."""

    def __init__(self, *verdicts):
        self.verdicts = list(verdicts)
        self.doubtful = []

    def forgotten(self, look, doubtful):
        self.doubtful.append(list(doubtful))
        return self.verdicts.pop(0) & set(doubtful)


def refined(tmp_path, *verdicts, method="npo", n_forget=4, save=None, **options):
    """A trainer of two steps an epoch whose refinement judges as it is told."""
    options = {"num_train_epochs": 6, "stop_ma": None, "el_n": 3, "iur_beams": 1, "refine": True} | options
    judge = options.pop("iur_judge", "text")
    trainer = make_trainer(method, tmp_path, n_forget=n_forget, learning_rate=1e-4, iur_judge=judge, **options)
    refinement = trainer.refinement
    if verdicts:
        refinement._prepare = lambda: None
        refinement._judge = refinement.script = Scripted(*verdicts)
    return trainer, refinement


def active_by_look(trainer):
    return [line["refine/active"] for line in trainer.state.log_history if "refine/active" in line]


def test_flags_are_judged_anew_and_partners_share_them(tmp_path):
    trainer, refinement = refined(tmp_path, {1}, {1, 2}, {2}, set(), {0, 1, 2, 3})
    plans = []

    class Noting(TrainerCallback):
        def on_epoch_begin(self, args, state, control, **_):
            pairs = trainer.sampler.plan(state.global_step // 2)
            plans.append({pair.forget for pair in pairs if pair.forget_weight})
            assert plans[-1] == {pair.forget for pair in pairs if pair.retain_weight}

    trainer.add_callback(Noting())
    trainer.train()
    assert plans == [{0, 2, 3}, {0, 3}, {0, 1, 3}, {0, 1, 2, 3}]
    assert active_by_look(trainer) == [3, 2, 3, 4, 0]
    assert trainer.state.global_step == 8
    assert refinement.outcome == "no forget item was active any more after 4 epochs"


def test_without_reentry_what_left_stays_away(tmp_path):
    trainer, refinement = refined(tmp_path, set(), {1}, set(), {0}, iur_reentry=False, num_train_epochs=3)
    trainer.train()
    assert active_by_look(trainer) == [4, 3, 3, 2]
    assert refinement.active == [False, False, True, True]
    assert refinement.outcome == "the stop rule was not reached within 3 epochs, with 2 of 4 forget items active"


def test_patience_waits_for_as_many_looks_in_a_row(tmp_path):
    trainer, _ = refined(tmp_path, {0, 1}, {0}, {0, 1}, {0, 1}, iur_patience=2, num_train_epochs=3)
    trainer.train()
    assert active_by_look(trainer) == [4, 3, 3, 2]


def test_a_look_every_other_epoch(tmp_path):
    trainer, _ = refined(tmp_path, set(), {1}, {2}, iur_every=2, num_train_epochs=5)
    trainer.train()
    assert active_by_look(trainer) == [4, 3, 3]


def test_the_partner_stays_where_it_is_told_to(tmp_path):
    trainer, _ = refined(tmp_path, {1, 2}, {1, 2}, iur_drop_partner=False, num_train_epochs=1)
    trainer.train()
    assert trainer.sampler.weights == ItemWeights([1.0, 0.0, 0.0, 1.0], [1.0] * 4)
    trainer, _ = refined(tmp_path, {1, 2}, {0, 1, 2, 3}, iur_drop_partner=False, num_train_epochs=1)
    trainer.train()
    assert trainer.sampler.weights == ItemWeights([0.0] * 4, [0.0] * 4), (
        "where nothing is to be forgotten, nothing trains"
    )


def test_the_verdict_before_training_is_ignored_and_the_first_after_an_epoch_counts(tmp_path):
    trainer, refinement = refined(tmp_path, iur_judge="none", stop_ma=1.0)
    trainer.train()
    assert trainer.state.global_step == 2
    assert refinement.outcome.startswith("the stop rule was reached after 1 epochs: mean MA ")


def test_nothing_is_trained_where_all_was_forgotten_at_the_start(tmp_path):
    trainer, refinement = refined(tmp_path, {0, 1, 2, 3}, iur_drop_partner=False)
    before = trained_weights(trainer.model)
    trainer.train()
    assert_equal(trained_weights(trainer.model), before)
    assert refinement.outcome == "every forget item was forgotten at the start, so nothing was trained"
    assert trainer.state.global_step <= 1


def test_a_run_that_has_stopped_stays_where_it_is_when_it_is_resumed(tmp_path):
    options = {"iur_judge": "none", "stop_ma": 1.0, "save_strategy": "epoch"}
    trainer, first = refined(tmp_path, **options)
    trainer.train()
    again, refinement = refined(tmp_path, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert_equal(trained_weights(again.model), trained_weights(trainer.model))
    assert refinement.outcome == first.outcome
    assert len((tmp_path / FILE_NAME).read_text().splitlines()) == 8


def test_a_screened_item_is_doubted_only_where_it_became_more_likely(tmp_path):
    """NPO makes the forgotten rows less likely; the kept partners pull none of them back within these steps."""
    trainer, refinement = refined(
        tmp_path, {0, 1}, set(), set(), set(), iur_screen=True, num_train_epochs=3, iur_drop_partner=False
    )
    trainer.train()
    lines = [json.loads(line) for line in (tmp_path / FILE_NAME).read_text().splitlines()]
    loss = {(line["step"], line["row"]): line["loss"] for line in lines}
    assert refinement.script.doubtful[0] == [0, 1, 2, 3]
    judged = {i: loss[0, i] for i in range(4)}
    away = {0, 1}
    for look, step in enumerate((2, 4, 6), 1):
        doubted = [i for i in range(4) if not (i in away and loss[step, i] >= judged[i])]
        assert refinement.script.doubtful[look] == doubted
        away -= set(doubted)
        judged |= {i: loss[step, i] for i in doubted}


def test_each_look_is_written_down_per_item(tmp_path):
    trainer, _ = refined(tmp_path, {0}, {0}, num_train_epochs=1)
    trainer.train()
    lines = [json.loads(line) for line in (tmp_path / FILE_NAME).read_text().splitlines()]
    assert [(line["step"], line["row"], line["active"]) for line in lines] == [
        (step, row, row != 0) for step in (0, 2) for row in range(4)
    ]
    assert all({"ma", "loss", "text"} <= line.keys() for line in lines)


def test_a_mean_that_was_not_measured_is_not_logged(tmp_path):
    trainer, _ = refined(tmp_path, iur_judge="none", n_forget=12, num_train_epochs=1, stop_el=0.0, el_n=1)
    trainer.train()
    lines = [json.loads(line) for line in (tmp_path / FILE_NAME).read_text().splitlines()]
    looks = [line for line in trainer.state.log_history if "refine/active" in line]
    assert [sum("el" in line for line in lines[start : start + 12]) for start in (0, 12)] == [4, 4]
    for look in looks:
        measured = [line["el"] for line in lines if line["step"] == look["step"] and "el" in line]
        assert "refine/el" not in look and look["refine/el_at_least"] == pytest.approx(sum(measured) / 12)


@pytest.mark.parametrize("judge", ["text", "memory"])
def test_a_run_with_a_real_judge(judge, tmp_path):
    options = {"iur_rouge_l": 0.5, "stop_el": 0.5, "stop_ma": 0.5} if judge == "memory" else {"stop_ma": None}
    trainer, refinement = refined(tmp_path, iur_judge=judge, num_train_epochs=1, **options)
    trainer.train()
    record = refinement.record()
    assert record["judge"] == judge and json.dumps(record)
    lines = [json.loads(line) for line in (tmp_path / FILE_NAME).read_text().splitlines()]
    if judge == "text":
        assert 0 < refinement.bert_f1 <= 1 and record["encoder"] == "model"
        for line in lines:
            assert line["active"] == (line["bert_f1"] >= refinement.bert_f1 and line["bleu"] >= 0.01)
            assert {"entropy", "distinct_1", "bert_precision", "bert_recall"} <= line.keys()
    else:
        for line in lines:
            forgotten = line["ma"] <= 0.5 and line["rouge_l"] <= 0.5 and line.get("el", 0) <= 0.5
            assert line["active"] == (not forgotten)


# Thresholds.


def report(text=None, **values):
    names = {"ma": "forget/ma", "el": "forget/el_10"}
    record = {"ci95": None, "n": 4, "higher_is_better": False, "range": (0.0, 1.0)}
    items = [{"set": "forget", "row": i, "text": text} for i in range(3)]
    metrics = {names[name]: MetricRecord(value, **record) for name, value in values.items()}
    return EvalReport(metrics=metrics, items=items, provenance={})


def long_rows(count):
    return [
        {**row, "answer": f"{row['answer']} for many years by the river in the old town"} for row in tiny_rows(count)
    ]


def thresholds(reference=None, holdout=(), rows=None, **options):
    items = TOKENIZE.all(rows or long_rows(3))
    return RefinementPlan.of(
        config(**{"stop_ma": None, "el_n": 10} | options), items, TOKENIZE, reference, holdout
    ).thresholds


TWIN = "the retain model's report"


def test_thresholds_come_from_flags_then_the_retain_model_then_held_out_rows():
    reference, outsiders = report("no", ma=0.4, el=0.05), TOKENIZE.all(long_rows(3))
    assert thresholds(reference, iur_judge="memory") == Thresholds(0.4, 0.05, 0.0, TWIN)
    assert thresholds(reference, outsiders, iur_judge="memory", stop_ma=0.3) == Thresholds(0.3, 0.05, 0.0, TWIN)
    assert thresholds(reference) == Thresholds(0.4, 0.05, None, TWIN)
    assert thresholds(reference, iur_judge="none", stop_ma=0.3) == Thresholds(0.3, 0.05, None, TWIN)
    assert thresholds(iur_judge="text") == Thresholds()
    assert thresholds(stop_el=0.1) == Thresholds(None, 0.1, None)
    given = {"stop_ma": 0.3, "stop_el": 0.1}
    assert thresholds(reference, outsiders, **given) == Thresholds(0.3, 0.1, None, "given")
    assert thresholds(reference, outsiders, iur_judge="memory", iur_rouge_l=0.2, **given) == Thresholds(0.3, 0.1, 0.2)
    # Another n, or a report without EL, is no threshold for this run.
    for unfit, options in ((reference, {"el_n": 3}), (report("no", ma=0.4), {})):
        assert thresholds(unfit, outsiders, iur_judge="memory", **options) is None


def test_the_retain_models_texts_are_cut_to_the_length_of_a_look():
    """Row 0 has 18 words and an end token; the text finds 4 of them, one behind the cut."""
    answer = long_rows(1)[0]["answer"].split()
    assert len(answer) == 18
    text = " ".join([*answer[:3], *["night"] * 16, answer[3]])
    (row,) = long_rows(1)
    item = {"set": "forget", "row": 0, "text": text}
    reference = EvalReport(metrics=report(ma=0.4, el=0.05).metrics, items=[item], provenance={})
    found = thresholds(reference, rows=[row], iur_judge="memory")
    assert found.rouge_l == pytest.approx(3 / 18)


def test_missing_thresholds_are_named():
    flags = {"memory": "`--stop_ma` and `--stop_el` and `--iur_rouge_l`", "none": "`--stop_ma` and `--stop_el`"}
    for judge, named in flags.items():
        with pytest.raises(ValueError, match=f"'{judge}' compares .*--reference.*--holdout_split.* or {named}"):
            thresholds(iur_judge=judge)
    with pytest.raises(ValueError, match="--reference"):
        thresholds(report("no", ma=0.4), iur_judge="memory")


def test_an_el_that_no_row_has_is_no_threshold():
    with pytest.raises(ValueError, match="None of the 3 forget rows has the 50 tokens that EL_50 needs.*--el_start"):
        thresholds(stop_ma=0.5, stop_el=0.1, el_n=50)
    short = TOKENIZE.all([{"question": "Who is Ada?", "answer": "a poet"}])
    with pytest.raises(ValueError, match="None of the 1 held-out rows has the 10 tokens"):
        thresholds(holdout=short, iur_judge="memory")
    assert thresholds(stop_ma=0.5, el_n=50, iur_judge="none") == Thresholds(0.5)


def test_held_out_rows_are_measured_as_the_forget_rows_will_be(tmp_path):
    args = config(tmp_path, iur_judge="memory", stop_ma=None, iur_beams=1)
    model, probes = tiny_model(), Probes.of(TOKENIZE.all(tiny_rows(4, first=40)), args, TOKENIZE)
    found = from_holdout(args, model, probes, TOKENIZE, progress=False)
    look = Look(model, probes, args, TOKENIZE)
    look.generate(range(4))
    look.extract(range(4))
    assert (found.ma, found.el, found.rouge_l) == (look.mean("ma"), look.mean("el"), look.mean("rouge_l"))
    assert found.source == "4 held-out rows under the model before unlearning"


def test_the_encoder_is_loaded_and_calibration_checked_before_any_model():
    items = TOKENIZE.all(tiny_rows(1))
    with pytest.raises(ValueError, match="single row to forget.*--iur_bert_f1"):
        RefinementPlan.of(config(iur_judge="text"), items, TOKENIZE)
    assert RefinementPlan.of(config(iur_judge="text", iur_bert_f1=0.4), items, TOKENIZE).bert_f1 == 0.4
    with pytest.raises(ValueError, match="no/such/encoder.*--iur_encoder model"):
        RefinementPlan.of(config(iur_judge="text", iur_encoder="no/such/encoder"), items, TOKENIZE)


@pytest.mark.parametrize(("name", "f1"), [("bert-base-uncased", 0.3), ("another", None)])
def test_the_papers_threshold_belongs_to_the_papers_encoder_however_it_is_spelt(name, f1, tmp_path):
    from test_embeddings import save_bert

    folder = save_bert(tmp_path / name)
    plan = RefinementPlan.of(config(iur_judge="text", iur_encoder=str(folder)), TOKENIZE.all(tiny_rows(2)), TOKENIZE)
    assert plan.encoder.name == name and plan.bert_f1 == f1


def test_vectors_are_those_of_the_model_before_unlearning_also_where_all_weights_are_trained(tmp_path):
    never = {"iur_judge": "text", "iur_bleu": 0.0, "iur_bert_f1": 0.0}
    trainer, refinement = refined(tmp_path, method="icu", lora=False, num_train_epochs=1, **never)
    trainer.train()
    encoder = refinement._judge.encoder
    with refinement._before_unlearning():
        after = encoder.embed(["Ada was born in Arlen"])[0].vectors
    before = type(encoder)(tiny_model(), TOKENIZE.tokenizer).embed(["Ada was born in Arlen"])[0].vectors
    np.testing.assert_allclose(after, before, atol=1e-6)
    assert any(
        (w - v).abs().max() > 1e-4 for w, v in zip(trainer.model.parameters(), tiny_model().parameters(), strict=True)
    )


def test_a_full_run_keeps_no_model_to_compare_vectors_with(tmp_path):
    with pytest.raises(ValueError, match="BERTScore compares vectors .*--use_peft.*--iur_encoder"):
        refined(tmp_path, iur_judge="text", lora=False)
