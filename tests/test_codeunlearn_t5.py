"""CodeUnlearn on an encoder-decoder model: its items, loss, codes and translations, and the recipe on a toy corpus."""

import json
import runpy

import numpy as np
import pytest
import torch
from codebooks import bottleneck_weights, tiny_codebook, tiny_t5
from recipe import kept_by_overwrite, refused, run_recipe, save_tiny_model, write_rows
from runs import assert_equal
from tiny import tiny_model, tiny_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from llm_unlearn.codebook.drop import SCHEMA
from llm_unlearn.codebook.initialise import initialise_from
from llm_unlearn.codebook.reading import read_codes
from llm_unlearn.codebook.selection import PAPER
from llm_unlearn.codebook.seq2seq import (
    CAUSAL,
    ENCODER_DECODER,
    PairTokenizer,
    collate_pairs,
    kind_of,
    load_pair_codebook,
    load_pair_model,
    pair_logits,
    translate,
)
from llm_unlearn.codebook.trainer import CodeUnlearnConfig, CodeUnlearnTrainer
from llm_unlearn.codebook.trial import random_codes, try_strengths, without_codes
from llm_unlearn.codebook.unlearner import CodeUnlearner
from llm_unlearn.data.collator import collate
from llm_unlearn.evaluation.outputs.generation import new_token_cap
from llm_unlearn.forward import AnswerScores
from llm_unlearn.paths import recipes_dir

WORDS = {
    "adjective": ["black", "white", "poor", "old", "young", "small", "tall", "brave"],
    "noun": ["captain", "king", "doctor", "sailor", "farmer", "judge", "poet", "baker"],
    "verb": ["love", "see", "call", "hear", "follow", "help", "carry", "find"],
    "place": ["town", "forest", "harbour", "castle", "garden", "market", "river", "valley"],
}
TOPICS = ["captain", "black", "love", "poor", "white", "king", "town"]


def toy_pairs(count, seed=0):
    """Sentences of eight words and their word-by-word translation, in which noun and adjective change places."""
    draws = np.random.default_rng(seed).integers(8, size=(count, len(WORDS)))
    rows = []
    for drawn in draws:
        adjective, noun, verb, place = (words[i] for words, i in zip(WORDS.values(), drawn, strict=True))
        # Written backwards, a word is one of another language.
        target = f"el {noun[::-1]} {adjective[::-1]} va {verb[::-1]} en {place[::-1]}"
        rows.append({"source": f"the {adjective} {noun} will {verb} me in the {place}", "target": target})
    return rows


def toy_tokenizer():
    """Word-level, with T5's special tokens."""
    words = [word for some in WORDS.values() for word in some]
    known = ["<pad>", "</s>", "<unk>", "the", "will", "me", "in", "el", "va", "en", "to", ":"]
    known += [*words, *(word[::-1] for word in words)]
    words_to_ids = Tokenizer(models.WordLevel({word: i for i, word in enumerate(known)}, unk_token="<unk>"))
    words_to_ids.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words_to_ids, eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def toy_model(seed=0, spread=1.0):
    """A random T5 of 83,000 weights, which learns the toy corpus in some hundred steps; with much spread it babbles."""
    config = T5Config(
        vocab_size=len(toy_tokenizer()), d_model=48, d_kv=16, d_ff=96, num_layers=2, num_decoder_layers=1, num_heads=3,
        dropout_rate=0.0, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1, initializer_factor=spread,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return T5ForConditionalGeneration(config).eval()


def rows(count, seed=0):
    return [{"prompt": row["source"], "completion": row["target"]} for row in toy_pairs(count, seed)]


def toy_items(count=6, **options):
    """Items of different lengths."""
    some = [{**row, "prompt": " ".join(row["prompt"].split()[i % 3 :])} for i, row in enumerate(rows(count))]
    some = [{**row, "completion": " ".join(row["completion"].split()[: 7 - i % 4])} for i, row in enumerate(some)]
    return PairTokenizer(toy_tokenizer(), **options).all(some)


def toy_codebook(**options):
    return tiny_codebook(toy_model(), **{"site": "post_attn", "num_codes": 60, **options})


# Items and batches.


def test_a_pair_is_a_source_and_a_target_with_one_end_each():
    tokenizer = toy_tokenizer()
    (item,) = PairTokenizer(tokenizer).all([{"prompt": "the old king", "completion": "el gnik dlo"}])
    assert tokenizer.convert_ids_to_tokens(item.prompt_ids) == ["the", "old", "king", "</s>"]
    assert tokenizer.convert_ids_to_tokens(item.answer_ids) == ["el", "gnik", "dlo", "</s>"]
    assert item.has_end and item.index == 0
    short = PairTokenizer(tokenizer, max_length=3)({"prompt": "the old king", "completion": "el gnik dlo"}, 5)
    assert tokenizer.convert_ids_to_tokens(short.prompt_ids) == ["the", "old", "</s>"], "the source keeps its end"
    assert tokenizer.convert_ids_to_tokens(short.answer_ids) == ["el", "gnik", "dlo"]
    assert not short.has_end and short.index == 5
    asked = PairTokenizer(tokenizer)({"question": "the", "answer": "el </s>"}, 0)
    assert asked.answer_ids == tokenizer.convert_tokens_to_ids(["el", "</s>"])


@pytest.mark.parametrize("row", [{"text": "el gnik"}, {"prompt": " ", "completion": "el"}])
def test_a_row_without_source_is_refused(row):
    with pytest.raises(ValueError, match="Row 7 has no source, which the encoder reads"):
        PairTokenizer(toy_tokenizer())(row, 7)


def test_a_batch_pads_sources_and_targets_each_for_itself():
    items = toy_items(3)
    batch = collate_pairs(items, [1.0, 2.0, 0.5])
    assert [len(item.prompt_ids) for item in items] == [10, 9, 8] and batch["input_ids"].shape == (3, 10)
    assert [len(item.answer_ids) for item in items] == [8, 7, 6] and batch["labels"].shape == (3, 8)
    for i, item in enumerate(items):
        source, target = len(item.prompt_ids), len(item.answer_ids)
        assert batch["input_ids"][i].tolist() == [*item.prompt_ids, *[0] * (10 - source)]
        assert batch["attention_mask"][i].tolist() == [1] * source + [0] * (10 - source)
        assert batch["labels"][i].tolist() == [*item.answer_ids, *[-100] * (8 - target)]
    assert batch["weight"].tolist() == [1, 2, 0.5] and batch["index"].tolist() == [0, 1, 2]


def test_the_kind_of_a_model_decides_how_it_takes_examples():
    assert kind_of(tiny_t5()) is ENCODER_DECODER and kind_of(tiny_model()) is CAUSAL
    assert CAUSAL.collate is collate


@torch.no_grad()
def test_the_logits_of_a_batch_are_those_of_each_pair_alone():
    model, items = toy_model(), toy_items()
    answers = pair_logits(model, model, collate_pairs(items))
    assert answers.batch_size == len(items) and len(answers.targets) == sum(len(item.answer_ids) for item in items)
    for i, item in enumerate(items):
        mine = answers.rows == i
        source, target = (torch.tensor([ids]) for ids in (item.prompt_ids, item.answer_ids))
        alone = model(input_ids=source, labels=target)
        assert answers.targets[mine].tolist() == item.answer_ids
        torch.testing.assert_close(answers.logits[mine], alone.logits[0], rtol=1e-4, atol=1e-5)
        mean = AnswerScores.of(answers).means[i]
        torch.testing.assert_close(-mean, alone.loss, rtol=1e-4, atol=1e-5)


# Training.


def make_trainer(folder, codebook, n_rows=12, **options):
    defaults = {
        "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "num_train_epochs": 1, "use_cpu": True,
        "learning_rate": 1e-3, "disable_tqdm": True, "report_to": "none", "save_strategy": "no", "warmup_steps": 0,
    }  # fmt: skip
    args = CodeUnlearnConfig(output_dir=str(folder), **(defaults | options))
    return CodeUnlearnTrainer(codebook, args, rows(n_rows), toy_tokenizer(), eval_dataset=rows(4, seed=1))


def test_the_loss_is_that_of_targets_and_of_what_the_sources_say(tmp_path):
    """In loops over single pairs: targets without padding, activations of sources alone."""
    coefs = {"l1_coef": 0.5, "recon_coef": 0.3, "code_coef": 0.2, "commit_coef": 0.7}
    codebook = toy_codebook(unit_z=False)
    trainer = make_trainer(tmp_path, codebook, train="full", **coefs)
    items = toy_items()
    codebook.base_model.train()
    with torch.no_grad():
        loss = trainer.compute_loss(codebook.base_model, collate_pairs(items))
    bottleneck = codebook.bottleneck
    codes, variance = bottleneck.codebook.weight.detach().double(), bottleneck.x_variance.double()
    total = 0.0
    for item in items:
        seen = []
        with torch.no_grad(), bottleneck.observed(seen.append):
            ids = torch.tensor([item.prompt_ids])
            logps = codebook(input_ids=ids, labels=torch.tensor([item.answer_ids])).logits.double().log_softmax(-1)
        lm = -np.mean([float(logps[0, t, target]) for t, target in enumerate(item.answer_ids)])
        x, y, z, q = (getattr(seen[0], name)[0].double() for name in "xyzq")
        apart = (z - q).square().mean(-1)
        means = [
            codes[seen[0].codes[0]].abs().mean(-1).sum(-1), (x - y).square().mean(-1) / variance, apart, apart
        ]  # fmt: skip
        assert len(x) == len(item.prompt_ids), "the end token of a source counts, padding does not"
        total += lm + sum(coef * float(mean.mean()) for coef, mean in zip(coefs.values(), means, strict=True))
    assert float(loss) == pytest.approx(total / len(items), rel=1e-4)


def test_training_moves_what_it_should_and_tells_what_the_bottleneck_costs(tmp_path):
    for train in ("bottleneck", "full"):
        codebook = toy_codebook()
        start = {name: weight.clone() for name, weight in codebook.base_model.state_dict().items()}
        trainer = make_trainer(tmp_path, codebook, train=train, num_train_epochs=2)
        assert initialise_from(codebook, trainer.train_dataset, 500) < 0.6
        trainer.train()
        moved = {n.split(".")[0] for n, w in codebook.base_model.state_dict().items() if not torch.equal(w, start[n])}
        assert moved == (
            {"codebook"} if train == "bottleneck" else {"codebook", "shared", "encoder", "decoder", "lm_head"}
        )
        metrics = trainer.evaluate()
        assert metrics["eval_gap"] == pytest.approx(metrics["eval_loss"] - metrics["without_loss"])
        logged = [line for line in trainer.state.log_history if "loss/lm" in line]
        assert len(logged) == 6 and all(line["codes/used"] > 3 for line in logged)


def test_first_weights_come_from_what_the_encoder_reads():
    codebook, items = toy_codebook(), toy_items()
    initialise_from(codebook, items, 10_000)
    seen = []
    for item in items:
        ids = torch.tensor([item.prompt_ids])
        seen += codebook.site.captured(lambda ids=ids: codebook.base_model(input_ids=ids))
    x = torch.cat([some[0] for some in seen])
    assert codebook.bottleneck.x_variance.item() == pytest.approx(x.var(0, correction=0).mean().item(), rel=1e-4)


# Codes.


def test_codes_are_read_from_sources_alone():
    codebook, tokenize = toy_codebook(), PairTokenizer(toy_tokenizer())
    items = toy_items()
    readings = read_codes(codebook, items, tokenize, progress=False)
    for item, reading in zip(items, readings, strict=True):
        seen = []
        with torch.no_grad(), codebook.bottleneck.observed(seen.append):
            codebook.generate(torch.tensor([item.prompt_ids]), max_new_tokens=2, do_sample=False)
        assert reading.tokens.tolist() == item.prompt_ids[:-1], "without the end token"
        assert reading.codes.tolist() == seen[0].codes[0, :-1].tolist()


def test_codes_are_deleted_for_a_while_and_random_ones_are_in_use():
    codebook, tokenize = toy_codebook(), PairTokenizer(toy_tokenizer())
    before = bottleneck_weights(codebook)
    readings = read_codes(codebook, toy_items(), tokenize, 6, progress=False)
    used = {int(code) for reading in readings for code in reading.codes[:, :3].ravel()}
    drawn = random_codes(readings, 5, 3, seed=2)
    assert len(drawn) == 5 and list(drawn) == sorted(drawn) and set(drawn) <= used
    assert random_codes(readings, 5, 3, seed=2) == drawn != random_codes(readings, 5, 3, seed=3)
    assert set(random_codes(readings, 1000, 3)) == used
    for mode, buffer in (("refill", "refilled"), ("ablate", "ablated")):
        with without_codes(codebook, drawn, mode):
            assert getattr(codebook.bottleneck, buffer).nonzero()[:, 0].tolist() == list(drawn)
        assert_equal(before, bottleneck_weights(codebook))
    with pytest.raises(ValueError, match="would leave 2"), without_codes(codebook, range(58), "refill"):
        pass
    assert not codebook.bottleneck.refilled.any() and not len(codebook.registry)


def test_a_plan_is_tried_in_all_strengths_beside_requests_in_force():
    codebook, tokenize = toy_codebook(), PairTokenizer(toy_tokenizer())
    unlearner = CodeUnlearner(codebook, tokenize, progress=False)
    some = rows(60)
    target = [row for row in some if "captain" in row["prompt"]]
    swapped = [
        {**row, "prompt": row["prompt"].replace("captain", noun)} for row in target for noun in WORDS["noun"][1:]
    ]
    kept = [row for row in some if "captain" not in row["prompt"]]
    plan = unlearner.plan(target, kept, id="captain", control=swapped, rule=PAPER, levels=(3, 6, 12))
    unlearner.apply(unlearner.plan(target, kept, id="other", control=swapped, rule=PAPER, levels=(3,)), 0, "ablate")
    deleted_before = set(codebook.registry["other"].codes)
    seen = []

    def measure(length, chosen):
        seen.append((length, chosen, set(codebook.bottleneck.refilled.nonzero()[:, 0].tolist())))
        assert set(codebook.bottleneck.ablated.nonzero()[:, 0].tolist()) == deleted_before
        return {"target": {"BLEU": 0.25}, "control": {"BLEU": 0.75}}

    zero, one = ({"target": {"BLEU": value}, "control": {"BLEU": value}} for value in (0.0, 1.0))
    done = try_strengths(codebook, plan, "refill", measure, zero, one, seed=1)
    assert [(length, chosen) for length, chosen, _ in seen] == [
        (3, "selected"), (6, "selected"), (12, "selected"), (12, "random")
    ]  # fmt: skip
    assert [codes for *_, codes in seen[:3]] == [set(plan.codes(level)) for level in range(3)]
    assert seen[0][2] <= seen[1][2] <= seen[2][2] and seen[3][2] != seen[2][2]
    assert [one.n_codes for one in done] == [len(codes) for *_, codes in seen]
    assert done[2].share == len(plan.codes(2)) / 60 and done[2].topic == "captain"
    assert (done[0].cell("BLEU", "target").drop, done[0].cell("BLEU", "control").drop) == (-75, -25)
    with pytest.raises(ValueError, match="which the decoder of this model reads past the bottleneck"):
        unlearner.sweep(plan)
    assert list(codebook.registry)[0].id == "other" and len(codebook.registry) == 1
    assert not codebook.bottleneck.refilled.any()


# Translations.


@pytest.mark.parametrize("seed", [0, 1])
def test_a_translation_is_greedy_and_ends_with_its_end_token_or_at_its_own_cap(seed):
    """The first model babbles on to the cap, the second ends most of its answers."""
    model, items = toy_model(seed, spread=1.5), toy_items()
    tokenizer = toy_tokenizer()
    tokenize = PairTokenizer(tokenizer)
    # What a model brings along has no say.
    model.generation_config = GenerationConfig(num_beams=3, do_sample=True, max_length=2, no_repeat_ngram_size=1)
    together = translate(model, items, tokenize, progress=False)
    assert model.generation_config.num_beams == 3
    caps = [new_token_cap(len(item.answer_ids), 200) for item in items]
    assert len(set(caps)) > 2
    for item, text, cap in zip(items, together, caps, strict=True):
        ids = [0]
        for _ in range(cap):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([item.prompt_ids]), decoder_input_ids=torch.tensor([ids])).logits
            ids.append(int(logits[0, -1].argmax()))
            if ids[-1] == 1:
                break
        assert text == tokenizer.decode(ids[1:], skip_special_tokens=True).strip()
    assert len(set(together)) > 1 and any(len(text.split()) == cap for text, cap in zip(together, caps, strict=True))
    short = translate(model, items, tokenize, 2, progress=False)
    assert all(len(text.split()) <= 2 for text in short)


# Files.


def test_a_codebook_of_t5_is_saved_and_loaded(tmp_path):
    toy_model().save_pretrained(tmp_path / "model")
    codebook = tiny_codebook(load_pair_model(tmp_path / "model", torch.bfloat16), site="post_attn", num_codes=60)
    codebook.config.base = {"source": str(tmp_path / "model")}
    codebook.save_pretrained(tmp_path / "codebook")
    loaded = load_pair_codebook(tmp_path / "codebook")
    assert_equal(bottleneck_weights(codebook), bottleneck_weights(loaded))
    assert loaded.base_model.dtype == torch.bfloat16, "as it was saved"
    codebook.config.base = None
    codebook.base_model.config._name_or_path = None
    codebook.save_pretrained(tmp_path / "nameless")
    with pytest.raises(ValueError, match="does not say which model it is for"):
        load_pair_codebook(tmp_path / "nameless")


def test_a_causal_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is no encoder-decoder model"):
        load_pair_model(save_tiny_model(tmp_path / "causal"))
    tiny_tokenizer()
    with pytest.raises(ValueError, match="is no model folder"):
        load_pair_model(tmp_path / "nothing")


# The recipe.


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """Flags of a short run on the toy corpus, without those of its training."""
    folder = tmp_path_factory.mktemp("toy")
    toy_model().save_pretrained(folder / "model")
    toy_tokenizer().save_pretrained(folder / "model")
    pairs = [*toy_pairs(1500), {"source": "", "target": "el"}]
    return [
        "--model", folder / "model", "--dataset", write_rows(folder / "pairs.jsonl", pairs), "--prefix", "to : ",
        "--target_language", "english", "--holdout", 0.2, "--min_rows", 5, "--layer", 0, "--num_codes", 200,
        "--top_s", 4, "--init_tokens", 3000, "--train", "full", "--learning_rate", 3e-3, "--logging_steps", 10,
        "--per_device_train_batch_size", 32, "--gradient_accumulation_steps", 1,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def short(toy):
    return [*toy, "--split", "train[-800:]", "--topics", "captain", "love", "--topic_rows", 12, "--control_rows", 20,
            "--levels", 4, 12, "--control_variants", 4, "--num_train_epochs", 3, "--save_total_limit", 3]  # fmt: skip


@pytest.fixture(scope="module")
def finished(short, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    run_recipe("codeunlearn_t5", *short, "--output_dir", out)
    return out


def test_overwrite_replaces_all_of_a_run(finished, tmp_path):
    assert kept_by_overwrite(finished, tmp_path / "copy") == []


def test_a_run_leaves_a_codebook_and_all_scores(finished):
    record = json.loads((finished / "drop.json").read_text())
    told, deletions = record["provenance"], record["deletions"]
    assert record["schema"] == SCHEMA and told["pairs"]["empty"] == 1 and told["refused"] == {}
    assert told["pairs"]["train"] + told["pairs"]["held_out"] == 799
    assert (told["model"], told["dataset"], told["layer"]) == ("model", "pairs.jsonl", 0), "a path is personal"
    assert [(one["topic"], one["list_length"], one["chosen"]) for one in deletions] == [
        (topic, *which)
        for topic in ("captain", "love")
        for which in ((4, "selected"), (12, "selected"), (12, "random"))
    ]
    for one in deletions:
        assert one["share"] == one["n_codes"] / 200
        for cell in one["cells"]:
            if cell["metric"] == "BERT-P":
                assert cell["drop"] is None and "no encoder was given" in cell["reason"]
            else:
                assert 0 <= cell["zero_shot"] < cell["codebook"] <= 1, "training learns"
                ni = (cell["deleted"] - cell["zero_shot"]) / (cell["codebook"] - cell["zero_shot"])
                assert cell["ni"] == pytest.approx(ni) and cell["drop"] == pytest.approx(100 * ni - 100)
    for weak, strong, random in (deletions[:3], deletions[3:]):
        assert weak["n_codes"] <= strong["n_codes"] == random["n_codes"], "a union grows"
    card = (finished / "codebook" / "README.md").read_text()
    assert 'codebook = load_pair_codebook("FOLDER")' in card and "Loss on held-out pairs" in card
    page = (finished / "drop.md").read_text()
    assert "| captain | BLEU | target |" in page and "| love | 12 | random |" in page
    lines = [json.loads(line) for line in (finished / "translations.jsonl").read_text().splitlines()]
    assert len(lines) == 24 and lines[0].keys() == {"topic", "prompt", "completion", "zero_shot", "codebook", "deleted"}
    assert all(line["topic"] in line["prompt"] for line in lines)
    codebook = load_pair_codebook(finished / "codebook")
    assert codebook.config.site == "post_attn" and not len(codebook.registry), "as trained, nothing is deleted"
    # What the run wrote is what the model in its folder says.
    tokenize = PairTokenizer(toy_tokenizer())
    asked = tokenize.all([{"prompt": f"to : {line['prompt']}", "completion": line["completion"]} for line in lines])
    assert translate(codebook.base_model, asked, tokenize, progress=False) == [line["codebook"] for line in lines]


def test_under_an_adapter_the_bottleneck_is_saved_with_it(short, tmp_path):
    out = tmp_path / "out"
    run_recipe(
        "codeunlearn_t5", *short, "--train", "lora", "--lora_r", 4, "--max_steps", 2, "--topics", "captain",
        "--levels", 4, "--bert_encoder", short[1], "--output_dir", out,
    )  # fmt: skip
    assert (out / "codebook" / "lora" / "adapter_model.safetensors").is_file()
    loaded = load_pair_codebook(out / "codebook")
    assert loaded.trained == "lora" and not any("lora" in name for name, _ in loaded.bottleneck.named_modules())
    lines = [json.loads(line) for line in (out / "translations.jsonl").read_text().splitlines()]
    asked = [{"prompt": f"to : {line['prompt']}", "completion": line["completion"]} for line in lines]
    tokenize = PairTokenizer(toy_tokenizer())
    again = translate(loaded.base_model, tokenize.all(asked), tokenize, progress=False)
    assert again == [line["codebook"] for line in lines]
    cells = [cell for one in json.loads((out / "drop.json").read_text())["deletions"] for cell in one["cells"]]
    scores = [cell["codebook"] for cell in cells if cell["metric"] == "BERT-P"]
    assert scores and all(-1 <= score <= 1 for score in scores), "measured with the encoder named"


def test_a_word_to_which_no_code_is_specific_is_told_and_not_deleted(short, tmp_path, capsys):
    # On lists of all codes every token has every code.
    run_recipe("codeunlearn_t5", *short, "--levels", 200, "--max_steps", 1, "--output_dir", tmp_path / "out")
    record = json.loads((tmp_path / "out" / "drop.json").read_text())
    assert record["deletions"] == [] and list(record["provenance"]["refused"]) == ["captain", "love"]
    told = " ".join(capsys.readouterr().out.split())
    assert "'captain' was not deleted: No code is specific to the 12 texts to forget." in told
    assert (tmp_path / "out" / "translations.jsonl").read_text() == ""


def test_it_resumes(finished, short, tmp_path):
    *_, before_last, _ = sorted(finished.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    out = tmp_path / "resumed"
    run_recipe("codeunlearn_t5", *short, "--output_dir", out, "--resume_from_checkpoint", before_last)
    one, other = (json.loads((folder / "drop.json").read_text())["deletions"] for folder in (finished, out))
    assert one == other


def test_bad_input_ends_in_a_sentence_before_a_model_is_loaded(toy, short, finished, tmp_path, monkeypatch):
    monkeypatch.setattr("llm_unlearn.codebook.seq2seq.load_pair_model", lambda *_, **__: pytest.fail("too late"))
    out = ["--output_dir", tmp_path / "out"]
    assert "no embedded default for translation" in refused("codeunlearn_t5", *out)
    assert "no embedded default for translation" in refused("codeunlearn_t5", "--model", "x", *out)
    for flags, message in (
        (["--levels", 8, 4], "`--levels` is [8, 4]: give list lengths from 1 to 200"),
        (["--levels", 201], "from 1 to 200"),
        (["--topics", "queen"], "0 with 'queen'"),
        (["--holdout", 1], "`holdout` is 1.0"),
        (["--target_language", "klingon"], "no stemmer of the language 'klingon'"),
        (["--source_column", "from"], "Give `--source_column`"),
        (["--top_s", 300], "`top_s` is 300"),
        (["--bert_encoder", tmp_path], "leave `--bert_encoder` out"),
        (["--load_in_4bit"], "does not quantise"),
        (["--dataset", tmp_path / "none.jsonl"], "none.jsonl"),
    ):
        assert message in refused("codeunlearn_t5", *short, *out, *flags)
    assert "already holds a run" in refused("codeunlearn_t5", *short, "--output_dir", finished)


def test_a_layer_that_is_not_there_is_named(short, tmp_path):
    message = refused("codeunlearn_t5", *short, "--layer", 9, "--output_dir", tmp_path / "out")
    assert "The model has 2 layers, 0 to 1" in message


def test_its_help_names_the_flags(capsys):
    with pytest.raises(SystemExit) as stopped:
        run_recipe("codeunlearn_t5", "--help")
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: codeunlearn_t5.py")
    for flag in ("--model", "--dataset", "--source_column", "--topics", "--levels", "--mode", "--l1_coef", "--lora_r"):
        assert f" {flag} " in text, flag


def test_the_preset_of_the_paper_parses_and_the_command_line_goes_over_it(tmp_path):
    from common import parse

    recipe = runpy.run_path(str(recipes_dir() / "codeunlearn_t5.py"))
    classes = (recipe["TranslationArguments"], CodeUnlearnConfig, recipe["T5Arguments"])
    argv = ["--config", "codeunlearn_t5-paper", "--output_dir", str(tmp_path), "--use_cpu", "--mode", "ablate"]
    data_args, args, model_args = parse("codeunlearn_t5", argv, *classes)
    assert (data_args.dataset, data_args.split) == ("Helsinki-NLP/opus_books", "en-fr")
    assert (data_args.num_codes, data_args.top_s, data_args.layer, data_args.site) == (25_000, 8, 2, "post_attn")
    assert data_args.list_lengths()[0] == 8 and data_args.list_lengths()[-1] == 104
    assert data_args.topics == recipe["TOPICS"] and data_args.prefix == "translate English to French: "
    assert (args.train, args.recon_coef, args.revive, data_args.mode) == ("full", 0, False, "ablate")
    assert model_args.model_name_or_path == "google-t5/t5-small" and model_args.lora_task_type == "SEQ_2_SEQ_LM"
    plain = parse("codeunlearn_t5", ["--output_dir", str(tmp_path), "--use_cpu", "--top_s", "3"], *classes)[0]
    assert plain.list_lengths() == [3, 6, 12]


PAPER_LOSS = ["--unit_z", False, "--l1_coef", 1e-4, "--recon_coef", 0, "--code_coef", 0, "--commit_coef", 0, "--revive",
              False]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [PAPER_LOSS, ["--select_from", "train", "--seed", 2], ["--mode", "ablate"]],
    ids=["paper", "other sentences", "ablate"],
)
def test_deleting_a_word_hurts_sentences_with_it_more_than_others(toy, flags, tmp_path, capsys):
    """Check B6 of the specification, on the toy corpus; seen are seven runs, of four seeds and settings."""
    run_recipe(
        "codeunlearn_t5", *toy, "--topics", *TOPICS, "--topic_rows", 40, "--control_rows", 60, "--num_codes", 400,
        "--levels", 4, 8, 16, 32, "--num_train_epochs", 10, "--save_strategy", "no", *flags,
        "--output_dir", tmp_path / "out",
    )  # fmt: skip
    deletions = json.loads((tmp_path / "out" / "drop.json").read_text())["deletions"]
    drops = {}
    for one in deletions:
        for cell in one["cells"]:
            if cell["metric"] == "BLEU":
                assert cell["zero_shot"] < 0.05 and cell["codebook"] > 0.95, "training learns"
                drops.setdefault((one["list_length"], one["chosen"], cell["texts"]), []).append(cell["drop"])
    means = {which: np.mean(values) for which, values in drops.items()}
    target, control = (drops[32, "selected", texts] for texts in ("target", "control"))
    # Seen: 6 or 7; -32 to -59; with refill -4 to -12, with ablate -38; random codes 0 to -5, with ablate -16 to -24.
    deeper = sum(on_it < on_others for on_it, on_others in zip(target, control, strict=True))
    assert deeper >= 4, drops
    assert means[32, "selected", "target"] < -25
    assert means[32, "selected", "control"] > (-45 if "ablate" in flags else -20)
    assert means[32, "random", "target"] > means[32, "selected", "target"] / 2
    told = capsys.readouterr().out
    assert f"BLEU: the drop on the target is deeper than on the control for {deeper} of 7 topics." in told
    assert "No longer S' deletes fewer codes than a shorter one for 7 of 7 topics." in told
