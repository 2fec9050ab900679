"""Training a bottleneck: its first weights, the loss, the codes' use and revival, checkpoints."""

import math

import pytest
import torch
from codebooks import bottleneck_weights, make_codebook_trainer, tiny_codebook, trained_like
from peft import PeftModel
from runs import assert_equal, losses, trained_weights
from tiny import tiny_model, tiny_rows, tiny_tokenizer
from transformers import TrainerCallback

from llm_unlearn.adapters import attach_adapter, lora_config
from llm_unlearn.codebook.initialise import initialise, initialise_from
from llm_unlearn.codebook.model import CodebookModel
from llm_unlearn.codebook.trainer import CodeUnlearnConfig
from llm_unlearn.data.collator import collate
from llm_unlearn.data.tokenization import ExampleTokenizer

ALL_TERMS = {"l1_coef": 0.5, "recon_coef": 0.3, "code_coef": 0.2, "commit_coef": 0.7}


class Watch(TrainerCallback):
    """Gradients and codes of every step, after the trainer's own callbacks; `then` may meddle."""

    def __init__(self, trainer, then=lambda step: None):
        self.gradients, self.codes, self.then, self.trainer = [], [], then, trainer
        trainer.add_callback(self)

    def on_pre_optimizer_step(self, args, state, control, model, **_):
        self.gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})

    def on_step_end(self, args, state, control, **_):
        self.codes.append(self.trainer.codebook.bottleneck.codebook.weight.detach().clone())
        self.then(state.global_step)


def items(n_rows=20):
    return ExampleTokenizer(tiny_tokenizer()).all(tiny_rows(n_rows))


# First weights.


@torch.no_grad()
def test_first_weights_from_data_let_most_of_a_layer_through():
    codebook = tiny_codebook(num_codes=200)
    batch = {name: value for name, value in collate(items()).items() if name in ("input_ids", "attention_mask")}
    (x,) = codebook.site.captured(lambda: codebook.base_model(**batch))
    x = x[batch["attention_mask"].bool()]

    def lost():
        """By its definition, in fp64."""
        bottleneck = codebook.bottleneck
        y = bottleneck(x[None])[0].double()
        return float((y - x).pow(2).sum() / (x.double() - x.double().mean(0)).pow(2).sum())

    assert lost() > 0.5
    said = initialise(codebook, [batch])
    assert said == pytest.approx(lost(), rel=1e-4) and said < 0.3
    assert codebook.bottleneck.x_variance.item() == pytest.approx(
        x.double().var(0, correction=0).mean().item(), rel=1e-5
    )
    # The decoder is the best there is for these codes, but for a little shrinkage.
    z = codebook.bottleneck.encode(x)
    q = codebook.bottleneck.codebook.weight[codebook.bottleneck.search(z)].sum(1).double()
    design = torch.cat([q, torch.ones(len(q), 1, dtype=torch.float64)], 1)
    best = (design @ torch.linalg.lstsq(design, x.double()).solution - x).pow(2).mean()
    assert said * codebook.bottleneck.x_variance.item() < best.item() * 1.05


def test_first_weights_depend_on_nothing_but_data_and_seed():
    state = torch.random.get_rng_state()
    codebooks = [tiny_codebook().train() for _ in range(3)]
    shares = [
        initialise_from(codebook, items(), 10_000, seed) for codebook, seed in zip(codebooks, (0, 0, 1), strict=True)
    ]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert_equal(bottleneck_weights(codebooks[0]), bottleneck_weights(codebooks[1]))
    assert shares[0] == shares[1] != shares[2]
    assert codebooks[0].base_model.training

    # What stands on padding, and exempt tokens, have no part in it.
    batch = {name: value for name, value in collate(items()).items() if name in ("input_ids", "attention_mask")}
    other = dict(batch, input_ids=batch["input_ids"].where(batch["attention_mask"].bool(), 77))
    weights = []
    for one in (batch, other):
        codebook = tiny_codebook()
        initialise(codebook, [one])
        weights.append(bottleneck_weights(codebook))
    assert_equal(*weights)
    model = tiny_model()
    model.config.bos_token_id = int(batch["input_ids"][0, 0])
    exempting = tiny_codebook(model)
    initialise(exempting, [batch])
    (x,) = codebooks[0].site.captured(lambda: codebooks[0].base_model(**batch))
    x = x[:, 1:][batch["attention_mask"][:, 1:].bool()]
    assert exempting.bottleneck.x_variance.item() == pytest.approx(x.var(0, correction=0).mean().item(), rel=1e-4)
    with pytest.raises(ValueError, match="no tokens to initialise the codebook from"):
        initialise(exempting, [])


# The loss.


def unit(vector):
    """At root mean square 1."""
    return vector / (vector.pow(2).mean() + 1e-6).sqrt()


def by_loops(trainer, batch):
    """All parts of the loss of one batch, in fp64 and in loops over tokens."""
    codebook, bottleneck = trainer.codebook, trainer.codebook.bottleneck
    ids, mask = batch["input_ids"], batch["attention_mask"]
    with torch.no_grad():
        (x,) = codebook.site.captured(lambda: codebook.base_model(input_ids=ids))
        logps = codebook(input_ids=ids).logits.double().log_softmax(-1)
    weights = {name: tensor.double() for name, tensor in bottleneck.state_dict().items() if tensor.is_floating_point()}
    codes, variance = weights["codebook.weight"], weights["x_variance"]
    parts = {name: [] for name in ("lm", "l1", "recon", "code", "commit")}
    for row in range(len(ids)):
        of_row = {name: [] for name in parts}
        for t in range(int(mask[row].sum())):
            if batch["labels"][row, t] != -100:
                of_row["lm"].append(-logps[row, t - 1, ids[row, t]])
            token = x[row, t].double()
            if token.isnan().any():
                continue
            z = unit((weights["enc.weight"] @ unit(token) + weights["enc.bias"]).clamp_min(0))
            nearest = (codes @ z / codes.norm(dim=1)).argsort(descending=True)[: codebook.config.top_s]
            q = codes[nearest].sum(0)
            y = weights["dec.weight"] @ q + weights["dec.bias"]
            of_row["l1"].append(codes[nearest].abs().sum() / len(z))
            of_row["recon"].append((token - y).pow(2).sum() / (len(token) * variance))
            of_row["code"].append((z - q).pow(2).sum() / len(z))
            of_row["commit"].append((z - q).pow(2).sum() / len(z))
        for name, values in of_row.items():
            parts[name].append(sum(values) / len(values))
    return {name: float(sum(values) / len(values)) for name, values in parts.items()}


@pytest.mark.parametrize("exempt", [False, True], ids=["all_tokens", "begin_token_exempt"])
def test_the_loss_is_the_sum_of_its_parts(exempt, tmp_path):
    model = tiny_model()
    model.config.bos_token_id = items(1)[0].input_ids[0] if exempt else None
    trainer = make_codebook_trainer(
        tmp_path, codebook=trained_like(tiny_codebook(model)), per_device_train_batch_size=4, max_steps=1, **ALL_TERMS
    )
    batch = next(iter(trainer.get_train_dataloader()))
    assert not batch["attention_mask"].all(), "the rows have different lengths"
    expected = by_loops(trainer, batch)
    trainer.train()
    (line,) = losses(trainer)
    for name, value in expected.items():
        assert line[f"loss/{name}"] == pytest.approx(value, rel=1e-4), name
    total = expected["lm"] + sum(ALL_TERMS[f"{name}_coef"] * expected[name] for name in expected if name != "lm")
    assert line["loss"] == pytest.approx(total, rel=1e-4)


def test_each_part_pulls_at_what_it_should(tmp_path):
    """Reconstruction and the task reach all, the codes' term the codes alone, commitment the encoder, L1 the codes."""
    reached = {}
    for name in ("lm", "l1", "recon", "code", "commit"):
        trainer = make_codebook_trainer(tmp_path, **dict.fromkeys(ALL_TERMS, 1.0))
        batch = next(iter(trainer.get_train_dataloader()))
        seen = []
        with trainer.codebook.bottleneck.observed(seen.append):
            trainer.model(input_ids=batch["input_ids"])
        coef, value = trainer._auxiliary(seen[0], batch["attention_mask"].bool()).get(name, (1.0, None))
        value = trainer.compute_loss(trainer.model.eval(), batch) if value is None else value
        value.backward()
        parameters = trainer.codebook.bottleneck.named_parameters()
        reached[name] = {key for key, p in parameters if p.grad is not None and p.grad.any()}
    whole = {"enc.weight", "enc.bias", "dec.weight", "dec.bias", "codebook.weight"}
    assert reached["lm"] == reached["recon"] == whole
    assert reached["code"] == reached["l1"] == {"codebook.weight"}
    assert reached["commit"] == {"enc.weight", "enc.bias"}


def test_reconstruction_does_not_pull_at_what_is_to_be_reconstructed(tmp_path):
    """Or the layers below would learn to say what is easily said."""
    trainer = make_codebook_trainer(tmp_path, train="full")
    batch = next(iter(trainer.get_train_dataloader()))
    mask, embedding, seen = batch["attention_mask"], trainer.model.get_input_embeddings().weight, []
    with trainer.codebook.bottleneck.observed(seen.append):
        trainer.model(input_ids=batch["input_ids"])
    _, value = trainer._auxiliary(seen[0], mask.bool())["recon"]
    errors = (seen[0].x.detach() - seen[0].y).pow(2).mean(-1) / trainer.codebook.bottleneck.x_variance
    expected = ((errors * mask).sum(1) / mask.sum(1)).mean()
    (ours,) = torch.autograd.grad(value, embedding, retain_graph=True)
    (theirs,) = torch.autograd.grad(expected, embedding)
    assert theirs.abs().max() > 1e-3
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_parts_without_a_weight_are_not_computed(tmp_path):
    trainer = make_codebook_trainer(tmp_path, max_steps=1, recon_coef=0, code_coef=0, commit_coef=0)
    trainer.train()
    (line,) = losses(trainer)
    assert {name for name in line if name.startswith("loss/")} == {"loss/lm"} and line["loss"] == line["loss/lm"]


def test_accumulated_gradients_are_those_of_the_big_batch(tmp_path):
    results = []
    for size, steps in ((4, 1), (1, 4)):
        trainer = make_codebook_trainer(
            tmp_path, train="full", per_device_train_batch_size=size, gradient_accumulation_steps=steps,
            max_steps=2, n_rows=8, max_grad_norm=0, **ALL_TERMS,
        )  # fmt: skip
        watch = Watch(trainer)
        trainer.train()
        results.append((watch.gradients, losses(trainer)))
    (big, big_lines), (small, small_lines) = results
    assert len(big) == len(small) == 2
    for name, gradient in big[0].items():
        torch.testing.assert_close(small[0][name], gradient, rtol=1e-4, atol=2e-6, msg=name)
    for ours, theirs in zip(small_lines, big_lines, strict=True):
        same = {name: value for name, value in theirs.items() if name.startswith(("loss", "codes/"))}
        # Means over rows and over batches of rows differ for the two that are means over tokens.
        for name in same.keys() - {"codes/zero", "codes/z_norm"}:
            assert ours[name] == pytest.approx(same[name], rel=1e-4), name


def test_codes_are_never_decayed(tmp_path):
    trainer = make_codebook_trainer(tmp_path, weight_decay=0.5, max_steps=3, revive=False, train="full")
    codes = trainer.codebook.bottleneck.codebook.weight
    with torch.no_grad():
        codes[:5] = -codes[:5]  # an encoding has no negative part: no token is near these
    before = codes.detach().clone()
    trainer.train()
    assert torch.equal(codes[:5], before[:5]) and not torch.equal(codes, before)
    decay = {id(p): group["weight_decay"] for group in trainer.optimizer.param_groups for p in group["params"]}
    bottleneck = trainer.codebook.bottleneck
    assert decay[id(codes)] == decay[id(bottleneck.enc.bias)] == decay[id(bottleneck.dec.bias)] == 0
    assert decay[id(bottleneck.enc.weight)] == decay[id(trainer.model.lm_head.weight)] == 0.5
    assert decay.keys() == {id(parameter) for parameter in trainer.model.parameters()}


@pytest.mark.parametrize("train", ["bottleneck", "lora", "full"])
def test_exactly_what_is_to_be_trained_changes(train, tmp_path):
    trainer = make_codebook_trainer(tmp_path, train=train, max_steps=2, l1_coef=0.1)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    changed = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    own = {name for name in before if "codebook." in name}
    assert len(own) == 5
    expected = {"bottleneck": own, "lora": own | {name for name in before if "lora_" in name}, "full": set(before)}
    assert changed == expected[train]
    assert trainer.codebook.trained == train


@pytest.mark.parametrize("n_logged", [1, 3])
def test_logs_tell_the_use_of_codes(n_logged, tmp_path):
    trainer = make_codebook_trainer(tmp_path, max_steps=3, logging_steps=n_logged, revive_every=5)
    seen = []
    saw = trainer.usage.saw
    trainer.usage.saw = lambda observed, counted: (seen.append((observed, counted)), saw(observed, counted))
    trainer.train()
    lines = losses(trainer)
    assert len(lines) == 3 // n_logged
    for i, line in enumerate(lines):
        uses, lengths = {}, []
        for observed, counted in seen[i * n_logged : (i + 1) * n_logged]:
            lengths.append(observed.z[counted].norm(dim=-1).mean().item())
            for code in observed.codes[counted].flatten().tolist():
                uses[code] = uses.get(code, 0) + 1
        shares = [count / sum(uses.values()) for count in uses.values()]
        assert line["codes/used"] == len(uses)
        assert line["codes/perplexity"] == pytest.approx(math.exp(-sum(s * math.log(s) for s in shares)), rel=1e-5)
        assert line["codes/z_norm"] == pytest.approx(sum(lengths) / len(lengths), rel=1e-5)
        assert line["codes/zero"] == 0
        ever = {
            c for observed, counted in seen[: (i + 1) * n_logged] for c in observed.codes[counted].flatten().tolist()
        }
        assert line["codes/dead"] == 40 - len(ever)


def test_evaluation_compares_with_the_model_without_bottleneck(tmp_path):
    trainer = make_codebook_trainer(tmp_path, eval_rows=4, per_device_eval_batch_size=4)
    metrics = trainer.evaluate()
    half = collate(trainer.eval_dataset)

    @torch.no_grad()
    def loss():
        logps = trainer.model(input_ids=half["input_ids"]).logits.double().log_softmax(-1)
        rows = []
        for row, labels in enumerate(half["labels"].tolist()):
            own = [-logps[row, t - 1, label].item() for t, label in enumerate(labels) if label != -100]
            rows.append(sum(own) / len(own))
        return sum(rows) / len(rows)

    with_it = loss()
    with trainer.codebook.disabled():
        without = loss()
    assert metrics["eval_loss"] == pytest.approx(with_it, rel=1e-5)
    assert metrics["eval_gap"] == pytest.approx(with_it - without, rel=1e-3)
    assert metrics["eval_perplexity"] == pytest.approx(math.exp(with_it), rel=1e-4)
    assert torch.equal(trainer.codebook.bottleneck.last_used, torch.zeros(40, dtype=torch.long))


# Use and revival.


def unreachable(codebook, codes):
    """An encoding has no negative part, so that no token is near a code that has nothing else."""
    with torch.no_grad():
        codebook.bottleneck.codebook.weight[codes] = -1.0


DEAD = list(range(6))


@pytest.mark.parametrize("combine", ["sum", "mean"])
def test_codes_out_of_use_are_revived_until_seven_tenths_of_training(combine, tmp_path):
    codebook = trained_like(tiny_codebook(combine=combine))
    unreachable(codebook, DEAD)
    trainer = make_codebook_trainer(tmp_path, codebook=codebook, max_steps=10, revive_every=2, recon_coef=0)
    encodings, used = {}, {}
    saw = trainer.usage.saw

    def spy(observed, counted):
        saw(observed, counted)
        encodings[trainer.state.global_step + 1] = observed.z.detach()[counted]
        used[trainer.state.global_step + 1] = set(observed.codes[counted].flatten().tolist())

    trainer.usage.saw = spy

    def kill(step):
        if step in (3, 6):
            unreachable(codebook, DEAD)
            codebook.bottleneck.last_used[DEAD] = 0

    watch = Watch(trainer, kill)
    trainer.train()
    # Unused for two steps, at steps 2, 4 and 6; 8 is beyond 70 % of 10.
    for step in (2, 4):
        revived = watch.codes[step - 1][DEAD] * (3 if combine == "sum" else 1)
        distances = (revived[:, None] - encodings[step]).norm(dim=-1)
        assert distances.amin(1).max() < 1e-5, "each has become what the encoder makes of a token of that step"
        assert len({int(i) for i in distances.argmin(1)}) > 1
    # Later they only roll on a little, as they were moving.
    for step in (1, 7, 8, 10):
        assert (watch.codes[step - 1][DEAD] + 1).abs().max() < 0.01
    # What is in use is not touched.
    kept = sorted(used[1] | used[2])
    assert len(kept) > 20 and (watch.codes[1] - watch.codes[0])[kept].abs().max() < 0.01
    assert losses(trainer)[0]["codes/dead"] >= len(DEAD)


def test_revival_resets_the_moments_of_adam(tmp_path):
    trainer = make_codebook_trainer(tmp_path, max_steps=4, revive_every=2)
    codes = trainer.codebook.bottleneck.codebook.weight
    moments = {}

    class Meddle(TrainerCallback):
        def on_optimizer_step(self, args, state, control, **_):
            if state.global_step == 1:
                state_of = trainer.optimizer.state[codes]
                moments["before"] = state_of["exp_avg"].abs().amin(-1), state_of["exp_avg_sq"].amin(-1)
                trainer.codebook.bottleneck.last_used[:7] = 0

    trainer.add_callback(Meddle())

    def then(step):
        if step == 2:
            moments["after"] = [trainer.optimizer.state[codes][name].clone() for name in ("exp_avg", "exp_avg_sq")]

    Watch(trainer, then)
    trainer.train()
    for before, after in zip(moments["before"], moments["after"], strict=True):
        assert (before[:7] > 0).any()
        assert not after[:7].any() and after[7:].any()


def test_no_revival_leaves_codes_as_they_are(tmp_path):
    codebook = trained_like(tiny_codebook())
    unreachable(codebook, DEAD)
    trainer = make_codebook_trainer(tmp_path, codebook=codebook, max_steps=6, revive_every=2, revive=False)
    trainer.train()
    assert (codebook.bottleneck.codebook.weight[DEAD] == -1).all()
    assert losses(trainer)[-1]["codes/dead"] >= len(DEAD)
    # Training goes on from here: the steps of the earlier run do not count.
    again = make_codebook_trainer(tmp_path, codebook=codebook, max_steps=6, revive_every=2)
    again.train()
    assert not (codebook.bottleneck.codebook.weight[DEAD] == -1).any()


@pytest.mark.parametrize(("n_steps", "revived_at"), [(80, 10), (16, 2)])
def test_unset_a_code_is_out_of_use_after_five_passes_or_an_eighth_of_the_run(n_steps, revived_at, tmp_path):
    """Two steps to a pass, however the length of the run is given."""
    codebook = trained_like(tiny_codebook())
    unreachable(codebook, DEAD)
    trainer = make_codebook_trainer(tmp_path, codebook=codebook, n_rows=4, max_steps=n_steps, num_train_epochs=5)
    watch = Watch(trainer)
    trainer.train()
    untouched = [bool((codes[DEAD] == -1).all()) for codes in watch.codes]
    assert untouched == [True] * (revived_at - 1) + [False] * (n_steps - revived_at + 1)


def test_a_collapsed_codebook_stops_training(tmp_path):
    codebook = trained_like(tiny_codebook())
    # Fewer than 4 S = 12 are left.
    unreachable(codebook, range(8, 40))
    options = {"codebook": codebook, "revive": False, "max_steps": 4, "learning_rate": 1e-6}
    make_codebook_trainer(tmp_path, **options, revive_every=5).train()
    with pytest.raises(RuntimeError, match=r"has collapsed: 8 of 40 codes are in use.*lower `--learning_rate`"):
        make_codebook_trainer(tmp_path, **options, revive_every=2).train()


def test_encodings_that_explode_stop_training(tmp_path):
    trainer = make_codebook_trainer(
        tmp_path, codebook=trained_like(tiny_codebook(norm="none", unit_z=False)), max_steps=4
    )

    def then(step):
        if step == 2:
            with torch.no_grad():
                trainer.codebook.bottleneck.enc.weight.mul_(100)

    Watch(trainer, then)
    with pytest.raises(RuntimeError, match=r"has collapsed: .* codes are in use, and encodings have length"):
        trainer.train()
    assert trainer.state.global_step == 3


# Checkpoints.


@pytest.mark.parametrize("train", ["bottleneck", "lora", "full"])
def test_a_resumed_run_equals_one_never_interrupted(train, tmp_path):
    options = {
        "train": train, "max_steps": 6, "save_strategy": "steps", "save_steps": 2, "save_total_limit": None,
        "revive_every": 3, "l1_coef": 0.1,
    }  # fmt: skip

    def start(name, seed):
        codebook = trained_like(tiny_codebook(seed=seed))
        if seed == 0:
            unreachable(codebook, DEAD)
        return make_codebook_trainer(tmp_path / name, codebook=codebook, **options)

    whole = start("whole", 0)
    whole.train()
    assert not (whole.codebook.bottleneck.codebook.weight[DEAD] == -1).any(), "revived after the checkpoint, too"
    # From other weights, which the checkpoint's must replace.
    resumed = start("resumed", 1)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert_equal(bottleneck_weights(resumed.codebook), bottleneck_weights(whole.codebook))
    assert_equal(trained_weights(resumed.model), trained_weights(whole.model))
    for ours, theirs in zip(losses(resumed), losses(whole), strict=True):
        assert ours == theirs


def test_a_checkpoint_that_is_cut_off_is_removed_and_the_one_before_is_resumed(tmp_path, monkeypatch):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "save_total_limit": None}
    whole = make_codebook_trainer(tmp_path / "whole", **options)
    whole.train()
    torch_save = torch.save

    def full_disk(value, file, *args, **kwargs):
        # The codebook is already there when the disk fills up.
        if "checkpoint-4" in str(file):
            assert (tmp_path / "cut" / "checkpoint-4" / "codebook" / "codebook.safetensors").is_file()
            raise RuntimeError("PytorchStreamWriter failed writing file")
        torch_save(value, file, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(OSError, match=r"checkpoint-4 could not be written .* free"):
        patch.setattr(torch, "save", full_disk)
        make_codebook_trainer(tmp_path / "cut", **options).train()
    assert [path.name for path in (tmp_path / "cut").glob("checkpoint-*")] == ["checkpoint-2"]
    resumed = make_codebook_trainer(tmp_path / "cut", **options)
    resumed.train(resume_from_checkpoint=True)
    assert_equal(bottleneck_weights(resumed.codebook), bottleneck_weights(whole.codebook))


@pytest.mark.parametrize("train", ["bottleneck", "lora", "full"])
def test_a_checkpoint_is_a_codebook_and_what_the_trainer_needs(train, tmp_path):
    trainer = make_codebook_trainer(tmp_path / "out", train=train, max_steps=2, save_strategy="steps", save_steps=2)
    trainer.train()
    (checkpoint,) = (tmp_path / "out").glob("checkpoint-*")
    files = {str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*") if path.is_file()}
    # As of every run: the state of optimiser, schedule and random numbers, which only resuming reads.
    stock = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}
    assert stock <= files
    assert all(name.endswith((".json", ".safetensors", "README.md")) for name in files - stock)
    assert {"codebook/codebook_config.json", "codebook/codebook.safetensors", "codebook/requests.json"} <= files
    # It can be loaded as it is, and saving the model leaves checkpoints alone.
    model = None if train == "full" else tiny_model()
    loaded = (
        CodebookModel.load(checkpoint / "codebook")
        if model is None
        else CodebookModel.from_pretrained(model, checkpoint / "codebook")
    )
    assert_equal(bottleneck_weights(loaded), bottleneck_weights(trainer.codebook))
    trainer.save_model()
    assert checkpoint.is_dir() and (tmp_path / "out" / "codebook" / "codebook.safetensors").is_file()


# Mistakes.


@pytest.mark.parametrize("name", ["l1_coef", "recon_coef", "code_coef", "commit_coef", "revive_every"])
def test_negative_weights_are_refused(name, tmp_path):
    with pytest.raises(ValueError, match=f"`{name}` is -1; it must not be negative"):
        CodeUnlearnConfig(output_dir=str(tmp_path), **{name: -1})


def test_arguments_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match="`init_tokens` is 0"):
        CodeUnlearnConfig(output_dir=str(tmp_path), init_tokens=0)
    rates = [
        CodeUnlearnConfig(output_dir=str(tmp_path), train=train).learning_rate
        for train in ("bottleneck", "lora", "full")
    ]
    assert rates == [1e-3, 5e-4, 1e-4]
    with pytest.raises(ValueError, match=r"bfloat16, in which most full fine-tuning updates round to nothing"):
        make_codebook_trainer(tmp_path, codebook=tiny_codebook(tiny_model().bfloat16()), train="full")
    adapted = attach_adapter(tiny_model(), lora_config(r=2), seed=0)
    assert isinstance(adapted, PeftModel)
    with pytest.raises(
        ValueError, match=r"comes with an adapter, whose base cannot be trained in full: merge it first"
    ):
        make_codebook_trainer(tmp_path, codebook=tiny_codebook(adapted), train="full")


@pytest.mark.parametrize("train", ["bottleneck", "lora"])
def test_a_bf16_model_keeps_its_type_and_codes_theirs(train, tmp_path):
    codebook = trained_like(tiny_codebook(tiny_model().bfloat16()))
    trainer = make_codebook_trainer(tmp_path, codebook=codebook, train=train, max_steps=2)
    trainer.train()
    types = {name: p.dtype for name, p in trainer.model.named_parameters()}
    assert {dtype for name, dtype in types.items() if "codebook." in name} == {torch.float32}
    assert {dtype for name, dtype in types.items() if "codebook." not in name and "lora" not in name} == {
        torch.bfloat16
    }
    assert all(math.isfinite(line["loss"]) for line in losses(trainer))


def test_training_goes_on_without_losing_what_was_trained_before(tmp_path):
    """An adapter trained with the bottleneck belongs to it, also while only the bottleneck is trained on."""
    make_codebook_trainer(
        tmp_path, codebook=(codebook := trained_like(tiny_codebook())), train="lora", max_steps=2
    ).train()
    codebook.save_pretrained(tmp_path / "first")
    loaded = CodebookModel.from_pretrained(tiny_model(), tmp_path / "first")
    trainer = make_codebook_trainer(tmp_path, codebook=loaded, max_steps=2)
    trainer.train()
    loaded.save_pretrained(tmp_path / "second")
    again = CodebookModel.from_pretrained(tiny_model(), tmp_path / "second")
    ids = torch.arange(5, 25).reshape(2, 10)
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, loaded.base_model.eval()(input_ids=ids).logits)
    with pytest.raises(ValueError, match=r"was trained with an adapter.*`--train bottleneck`"):
        make_codebook_trainer(tmp_path, codebook=again, train="lora")
