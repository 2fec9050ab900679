"""The controlled experiment: its world, its runs, its pieces, and what seeds say together."""

import json
import runpy
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from recipe import recipes_dir
from sample_probe import measured
from scipy import stats
from transformers import LlamaConfig, LlamaForCausalLM

import llm_unlearn.controlled.runs
import llm_unlearn.controlled.target
from llm_unlearn.controlled.pieces import STEPS, UTILITY, Piece, PieceStore, probe_runs, put_together
from llm_unlearn.controlled.runs import unlearn
from llm_unlearn.controlled.target import cached_target, measured_base, target_of
from llm_unlearn.data.tokenization import ExampleTokenizer
from llm_unlearn.evaluation.statistics import resampling_weights
from llm_unlearn.exposures import Exposures, key_of_row, rows_per_fact
from llm_unlearn.models import load_model, load_tokenizer
from llm_unlearn.probes.controlled import controlled_world
from llm_unlearn.probes.counts.exposures import read_exposures
from llm_unlearn.probes.facts import Fact
from llm_unlearn.probes.frequency import FrequencyProbe
from llm_unlearn.probes.matched import Checkpoint
from llm_unlearn.probes.settings import ProbeSettings
from llm_unlearn.probes.summary import SHUFFLES, paired_difference, summarise, summary_cells
from llm_unlearn.testbed import train_tokenizer

SETTINGS = ProbeSettings(leak_samples=0, resamples=200, permutations=199, max_new_tokens=6)

# The world.


def test_every_author_has_facts_of_every_level_and_every_attribute_all_levels():
    world = controlled_world(0)
    assert (len(world.forget), len(world.retain), len(world.facts)) == (100, 60, 200)
    told = rows_per_fact(world.taught)
    assert all(told[key_of_row(row)] == row["exposures"] for row in world.taught)
    # 200 facts, 40 of each level: 40 (1 + 2 + 4 + 8 + 16) rows, no two of them alike.
    assert len(world.taught) == 1240 == len({(row["question"], row["answer"]) for row in world.taught})
    by_author = Counter((row["author"], row["exposures"]) for row in world.forget)
    assert set(by_author.values()) == {4} and len(by_author) == 25
    by_attribute = Counter((row["attribute"], row["exposures"]) for row in world.forget)
    assert set(by_attribute.values()) == {1} and len(by_attribute) == 100
    roles = Counter(fact.role for fact in world.facts)
    assert roles == {"forget": 100, "retain": 60, "neighbour": 40}


def test_rows_to_forget_are_taught_and_neither_retained_nor_neighbours_are_among_them():
    world = controlled_world(1, forget_authors=1, retain_authors=1, neighbour_authors=1, exposures=(1, 3))
    taught = {(row["question"], row["answer"]) for row in world.taught}
    for rows in (world.forget, world.retain):
        assert len(rows) == 20 and {(row["question"], row["answer"]) for row in rows} <= taught
    authors = {role: {f.id.split("/")[0] for f in world.facts if f.role == role} for role in ("forget", "retain")}
    assert {row["author"] for row in world.forget} == authors["forget"]
    assert {row["author"] for row in world.retain} == authors["retain"]
    assert not authors["forget"] & authors["retain"]
    assert Counter(row["exposures"] for row in world.forget) == {1: 10, 3: 10}
    assert all(fact.distractors and fact.paraphrases for fact in world.facts)
    again = controlled_world(1, forget_authors=1, retain_authors=1, neighbour_authors=1, exposures=(1, 3))
    assert again == world and controlled_world(2, 1, 1, 1).facts != world.facts


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"exposures": (2, 2)}, "two different ones"),
        ({"forget_authors": 0}, "give at least one of the first two kinds"),
        ({"retain_authors": 9, "neighbour_authors": 2}, "at most 10 of the last two together"),
    ],
)
def test_worlds_that_cannot_be_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        controlled_world(**options)


# Seeds together.


def some_facts(seed):
    """Four authors with ten facts each to forget, and one to retain."""
    return [
        Fact(
            f"Author {a}/fact {i}", f"Author {a}", f"Value {a} {i}", f"What of {a} and {i}?", f"Value {a} {i}",
            (), (), "r", distractors=("none",), role="forget" if a < 4 else "retain",
        )
        for a in range(5)
        for i in range(10)
    ]  # fmt: skip


def numbers(seed):
    """Per fact to forget how often it was told, its probability before and after, and whether it is still said."""
    random = np.random.default_rng(seed)
    counts = np.tile([1, 1, 2, 2, 4, 4, 8, 8, 16, 16], 4)
    left = np.clip(0.2 + 0.15 * np.log2(counts) + random.normal(0, 0.2, 40), 0.01, 1)
    return counts, np.full(40, 0.8), 0.8 * left, left > 0.5


def made_probe(tmp_path, seed):
    facts, (counts, *_) = some_facts(seed), numbers(seed)
    folder = tmp_path / f"exposures-{seed}"
    folder.mkdir(exist_ok=True)
    rows = [{"author": f.subject, "attribute": "r", "value": f.object} for f in facts[:40]]
    Exposures.of_run({key_of_row(row): int(n) for row, n in zip(rows, counts, strict=True)}, 1).write(folder)
    return FrequencyProbe(facts, read_exposures(folder, facts), None, replace(SETTINGS, seed=seed))


def measurements(seed, strength=1.0):
    """Before and after, of a run that takes `strength` times as much; two facts are not known."""
    facts, (_, p, after, said) = some_facts(seed), numbers(seed)
    before = [measured(f, 0.8, "nobody" if i in (0, 11) else f.object, samples=0) for i, f in enumerate(facts)]
    taken = 1 - strength * (1 - after / p)
    later = [measured(f, float(0.8 * t), f.object if s else "nobody", margin=-1.0, samples=0)
             for f, t, s in zip(facts, taken, said, strict=False)]  # fmt: skip
    return before, [*later, *(measured(f, 0.6, f.object, samples=0) for f in facts[40:])]


def result_of(tmp_path, seed, strength=1.0):
    return made_probe(tmp_path, seed).compare(*measurements(seed, strength))


def test_seeds_are_put_together(tmp_path):
    results = [result_of(tmp_path, seed) for seed in range(3)]
    summary = summarise(results)
    assert summary.known == (38, 38, 38)
    known = np.array([i for i in range(40) if i not in (0, 11)])
    rhos, slopes, gaps, means, says = [], [], [], [], []
    for seed in range(3):
        counts, before, after, said = (values[known] for values in numbers(seed))
        x, f = np.log10(1 + counts), 1 - after / before
        rhos.append(stats.spearmanr(x, f).statistic)
        slopes.append(np.polyfit(x, f, 1)[0])
        # Quantiles .33 and .67 of 1, 2, 4, 8 and 16, equally many each: 1 and 2 are low, 16 is high.
        gaps.append(f[counts == 16].mean() - f[counts <= 2].mean())
        means.append(f.mean())
        says.append(1 - said.astype(float))
    p1 = summary.outcomes["p1"]
    z = np.arctanh(rhos)
    half = stats.t.ppf(0.975, 2) * z.std(ddof=1) / np.sqrt(3)
    assert p1.rho.value == pytest.approx(np.tanh(z.mean())) and p1.rho.value < -0.3
    assert p1.rho.ci95 == pytest.approx(np.tanh([z.mean() - half, z.mean() + half]))
    assert p1.slope.value == pytest.approx(np.mean(slopes))
    assert p1.gap.value == pytest.approx(np.mean(gaps))
    assert p1.forgetting.value == pytest.approx(np.mean(means))
    assert summary.outcomes["generation"].forgetting.value == pytest.approx(np.mean(says))
    assert summary.retained.value == pytest.approx(0.75) and summary.neighbours is None
    low, high = p1.rho_over_authors.ci95
    assert low < p1.rho.value == p1.rho_over_authors.value < high < 0
    drawn = []
    for resample in range(1, 1001):
        of_seeds = []
        for seed in range(3):
            counts, before, after, _ = numbers(seed)
            weights = resampling_weights(4, resamples=1000, seed=seed)[resample]
            rows = [i for a in range(4) for _ in range(int(weights[a])) for i in known[known // 10 == a]]
            of_seeds.append(np.arctanh(stats.spearmanr(counts[rows], (1 - after / before)[rows]).statistic))
        drawn.append(np.tanh(np.mean(of_seeds)))
    # Four authors in each of three seeds: t of 12 - 3 degrees of freedom is 2.2622, and sqrt(4 / 3) of it 2.6121.
    tail = stats.norm.sf(2.26216 * np.sqrt(4 / 3))
    assert tail == pytest.approx(0.0045, abs=1e-5)
    assert (low, high) == pytest.approx(np.quantile(drawn, [tail, 1 - tail]), abs=1e-5)
    shuffled = p1.shuffled
    assert abs(shuffled.mean) < 0.1 and shuffled.n == SHUFFLES and shuffled.covering >= 0.75 * SHUFFLES
    # Gone by probability: below a tenth. The rest follows from what is said.
    hidden = np.mean([np.mean((a < 0.1 * b)[known] & s[known]) for _, b, a, s in map(numbers, range(3))])
    gone = np.mean([np.mean((a >= 0.1 * b)[known] & ~s[known]) for _, b, a, s in map(numbers, range(3))])
    assert summary.hidden.value == pytest.approx(hidden) and summary.apparent.value == pytest.approx(gone)
    assert summary.disagreement.value == pytest.approx(hidden + gone)
    header, line = summary_cells({"npo, plain": summary})
    assert len(header) == len(line) and line[:2] == ["npo, plain", "38, 38, 38"] and "–" in line
    assert f"of {SHUFFLES}" in line[header.index("answer likelihood: ρ with shuffled counts")]


def test_twice_as_much_forgetting_is_twice_the_gap(tmp_path):
    whole = [result_of(tmp_path, seed) for seed in range(3)]
    half = [result_of(tmp_path, seed, 0.5) for seed in range(3)]
    difference = paired_difference(half, whole, "p1")
    gaps = [result.associations["p1"].gap.value for result in whole]
    assert difference.value == pytest.approx(-0.5 * np.mean(gaps)) and difference.value > 0
    assert difference.ci95[1] - difference.value == pytest.approx(
        stats.t.ppf(0.975, 2) * np.std(np.array(gaps) / 2, ddof=1) / np.sqrt(3)
    )
    with pytest.raises(ValueError, match="2 results stand beside 3"):
        paired_difference(half[:2], whole, "p1")


def test_what_cannot_be_put_together_is_refused_or_not_measured(tmp_path):
    with pytest.raises(ValueError, match="one for each seed"):
        summarise([])
    probe = made_probe(tmp_path, 0)
    before, after = measurements(0)
    unknown = [replace(one, said=tuple(replace(said, recall=0.0, alias=False) for said in one.said)) for one in before]
    with pytest.raises(ValueError, match="In seed 1 the base knew no fact"):
        summarise([probe.compare(before, after), probe.compare(unknown, after)])
    untouched = summarise([probe.compare(before, before)])
    assert untouched.outcomes["p1"].rho.value is None and untouched.outcomes["p1"].shuffled.mean is None
    assert untouched.outcomes["p1"].shuffled.text == "not measured"


# Pieces.


class MadeRun:
    """A run whose checkpoint 1 has taken half of what checkpoint 2 takes."""

    stopped = None

    def __init__(self, seed, utilities, strength=1.0):
        self.seed, self.strength, self.asked = seed, strength, []
        self.checkpoints = [Checkpoint(str(i), utility) for i, utility in enumerate(utilities, 1)]

    def probe(self, name, probe):
        self.asked.append(name)
        return measurements(self.seed, self.strength * int(name) / len(self.checkpoints))[1]


def piece_of(tmp_path, seed=0, plain=(0.95, 0.8), weighted=(0.97, 0.93)):
    runs = {"plain": MadeRun(seed, plain), "weighted": MadeRun(seed, weighted, 0.5)}
    before = measurements(seed)[0]
    return runs, probe_runs(runs, made_probe(tmp_path, seed), before, tolerance=0.05, told={"method": "npo"})


def test_runs_are_compared_at_equal_steps_and_at_equal_utility(tmp_path):
    """The highest lowest utility is .93; the plain run is nearest to it after its first epoch."""
    runs, piece = piece_of(tmp_path)
    assert set(piece.results) == {(run, at) for run in ("plain", "weighted") for at in (STEPS, UTILITY)}
    epochs = {key: result.provenance["experiment"]["epoch"] for key, result in piece.results.items()}
    assert epochs == {("plain", STEPS): "2", ("plain", UTILITY): "1",
                      ("weighted", STEPS): "2", ("weighted", UTILITY): "2"}  # fmt: skip
    assert sorted(runs["plain"].asked) == ["1", "2"] and runs["weighted"].asked == ["2"], "each is probed once"
    assert piece.record["match"]["level"] == 0.93 and piece.record["utilities"]["plain"] == [0.95, 0.8]
    gap = {key: result.associations["p1"].gap.value for key, result in piece.results.items()}
    assert gap["plain", UTILITY] == pytest.approx(gap["plain", STEPS] / 2)
    assert piece.results["plain", STEPS].provenance["experiment"]["method"] == "npo"


def test_runs_that_do_not_match_say_so(tmp_path):
    _, piece = piece_of(tmp_path, plain=(0.99, 0.2), weighted=(0.6, 0.6))
    assert set(piece.results) == {("plain", STEPS), ("weighted", STEPS)}
    assert "within 0.05 of the utility 0.600" in piece.record["match"]["missing"]
    alone = probe_runs({"plain": MadeRun(0, (1.0, 0.9))}, made_probe(tmp_path, 0), measurements(0)[0])
    assert set(alone.results) == {("plain", STEPS)} and alone.record["match"] is None


def test_a_piece_is_kept_and_found_again(tmp_path):
    _, piece = piece_of(tmp_path)
    store = PieceStore.of(tmp_path / "out", 0, "npo", {"epochs": 6})
    assert not store.is_finished()
    store.write(piece)
    assert store.is_finished() and PieceStore.of(tmp_path / "out", 0, "npo", {"epochs": 6}).read().results == dict(
        piece.results
    )
    other = PieceStore.of(tmp_path / "out", 0, "npo", {"epochs": 7})
    with pytest.raises(ValueError, match="was made with other arguments: .*--overwrite"):
        other.is_finished()
    assert not other.is_finished(overwrite=True)
    assert not list((tmp_path / "out" / "seed-0").glob(".*")), "nothing half-written"


def test_tables_over_seeds(tmp_path):
    pieces = {(seed, "npo"): piece_of(tmp_path, seed)[1] for seed in range(2)}
    tables, record = put_together(pieces)
    assert list(tables) == ["At equal steps", "What weighted runs change, at equal steps", "At equal utility",
                            "What weighted runs change, at equal utility"]  # fmt: skip
    assert tables["At equal steps"][0] == ["run", "npo, plain", "npo, weighted"]
    difference = record["differences"][STEPS]["npo"]["p1"]
    gaps = [pieces[seed, "npo"].results["plain", STEPS].associations["p1"].gap.value for seed in range(2)]
    assert difference["value"] == pytest.approx(-0.5 * np.mean(gaps)) and difference["n"] == 2
    json.dumps(record, allow_nan=False)
    # Without a match on one seed there is no average at equal utility.
    results = {key: result for key, result in pieces[1, "npo"].results.items() if key[1] == STEPS}
    tables, record = put_together({**pieces, (1, "npo"): Piece(results)})
    assert list(tables) == ["At equal steps", "What weighted runs change, at equal steps"]


# Targets and runs.


def save_random_target(folder, rows, tokenizer, progress=False, **training):
    """What `train_from_nothing` would write, untrained."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=1536, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            bos_token_id=None, pad_token_id=None, eos_token_id=tokenizer.eos_token_id, initializer_range=0.2,
        )
    )  # fmt: skip
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Exposures.of_run(rows_per_fact(rows), training["num_train_epochs"]).write(folder)


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A world of two authors, and a target that was not trained."""
    world = controlled_world(0, forget_authors=1, retain_authors=1, neighbour_authors=0)
    trained = []

    def train(folder, rows, tokenizer, **options):
        trained.append(folder)
        save_random_target(folder, rows, tokenizer, **options)

    monkeypatch.setenv("LLM_UNLEARN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(llm_unlearn.controlled.target, "train_from_nothing", train)
    target = target_of(world, seed=0, epochs=3, progress=False)
    assert target_of(world, seed=0, epochs=3) == target == cached_target(world, 0, 3) and trained == [target]
    probe = FrequencyProbe(
        world.facts, read_exposures(target, world.facts), ExampleTokenizer(load_tokenizer(target)), SETTINGS
    )
    return world, target, probe


def test_a_target_is_trained_once_for_each_world_seed_and_length(small):
    world, target, probe = small
    other = controlled_world(1, forget_authors=1, retain_authors=1, neighbour_authors=0)
    assert len({cached_target(*args) for args in ((world, 0, 3), (world, 1, 3), (world, 0, 4), (other, 0, 3))}) == 4
    assert {count.n_so for count in probe.counts.counts.values()} == {3, 6, 12, 24, 48}
    assert len(train_tokenizer(world.taught)) <= 1536


def test_a_base_is_measured_once_and_must_know_something(small, tmp_path, monkeypatch):
    _, target, probe = small
    with pytest.raises(ValueError, match="knows none of the 20 facts .*`--target_epochs`"):
        measured_base(target, probe, tmp_path)
    monkeypatch.setattr(llm_unlearn.controlled.target, "knows", lambda *_: True)
    first = measured_base(target, probe, tmp_path)
    monkeypatch.setattr(FrequencyProbe, "measure", None)
    assert measured_base(target, probe, tmp_path) == first


@pytest.mark.parametrize("method", ["grad_ascent", "icu"])
def test_a_run_keeps_its_weights_of_every_epoch(method, small):
    world, target, probe = small
    before = probe.measure(load_model(target), progress=False)
    settings = {"num_train_epochs": 2, "per_device_train_batch_size": 10, "gradient_accumulation_steps": 1}
    settings |= {"learning_rate": 1e-2, "warmup_steps": 0}
    if method == "icu":
        settings |= {"iur_beams": 1, "iur_bert_f1": 0.0, "iur_bleu": 0.0}
    else:
        settings |= {"forget_cap": "none"}
    runs = {kappa: unlearn(method, settings, world, target, probe, before, kappa=kappa) for kappa in (0.0, 1.0)}
    plain, weighted = runs.values()
    assert [one.name for one in plain.checkpoints] == ["1", "2"] and plain.stopped is None
    assert any((plain.weights["2"][name] - plain.weights["1"][name]).abs().max() > 1e-4 for name in plain.weights["1"])
    assert any(
        (plain.weights["2"][name] - weighted.weights["2"][name]).abs().max() > 1e-4 for name in plain.weights["1"]
    )
    again = unlearn(method, settings, world, target, probe, before)
    assert all(torch.equal(again.weights["2"][name], weight) for name, weight in plain.weights["2"].items())
    # Utility is what the probe finds on the same weights.
    kept = {fact.id for fact in world.facts if fact.role != "forget"}
    total = sum(one.p1 for one in before if one.id in kept)
    for checkpoint in (plain.checkpoints[1], plain.checkpoints[0]):
        later = plain.probe(checkpoint.name, probe)
        assert sum(one.p1 for one in later if one.id in kept) / total == pytest.approx(checkpoint.utility, rel=1e-4)


# The recipe.


def run_plainly(*flags):
    """Run the recipe in this process; it trains on the CPU without being told."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["probe_world.py", *map(str, flags)])
        runpy.run_path(str(recipes_dir() / "probe_world.py"), run_name="__main__")


def plainly_refused(*flags):
    """The one sentence in which it refuses to run."""
    with pytest.raises(SystemExit) as stopped:
        run_plainly(*flags)
    assert stopped.value.code.startswith("error: ") and "\n" not in stopped.value.code
    return stopped.value.code


def test_the_recipe_makes_what_is_missing_and_goes_on_from_there(small, tmp_path, monkeypatch):
    made = []

    def unlearned(method, settings, world, target, probe, before, *, kappa, seed):
        made.append((seed, method, kappa, settings["num_train_epochs"]))
        run = MadeRun(seed, (0.99, 0.9))
        run.probe = lambda name, probe: [
            replace(one, p1=one.p1 * (1 - 0.1 * int(name) - 0.001 * i)) for i, one in enumerate(before)
        ]
        return run

    def base(target, probe, folder):
        facts = [replace(fact, distractors=fact.distractors or ("none",)) for fact in probe.facts]
        return [measured(fact, 0.8, fact.object, samples=0) for fact in facts]

    monkeypatch.setattr(llm_unlearn.controlled.runs, "unlearn", unlearned)
    monkeypatch.setattr(llm_unlearn.controlled.target, "measured_base", base)
    flags = ["--forget_authors", 1, "--retain_authors", 1, "--neighbour_authors", 0, "--target_epochs", 3]
    flags += ["--output_dir", tmp_path / "out", "--seeds", 2]
    run_plainly(*flags, "--methods", "npo", "--epochs", 4)
    assert made == [(0, "npo", 0.0, 4), (0, "npo", 1.0, 4), (1, "npo", 0.0, 4), (1, "npo", 1.0, 4)]
    run_plainly(*flags, "--methods", "npo", "simnpo", "--epochs", 4)
    assert [run[1] for run in made[4:]] == ["simnpo"] * 4, "the others were there"
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(results["summaries"][STEPS]) == ["npo, plain", "npo, weighted", "simnpo, plain", "simnpo, weighted"]
    assert results["settings"]["npo"]["num_train_epochs"] == 4
    assert "## At equal utility" in (tmp_path / "out" / "results.md").read_text()
    assert (tmp_path / "out" / "seed-1" / "simnpo" / "weighted-utility" / "probe.html").is_file()
    message = plainly_refused(*flags, "--methods", "npo", "--epochs", 5)
    assert "was made with other arguments" in message


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--methods", "npi"], "Did you mean 'npo'?"),
        (["--seeds", 0], "`--seeds` is 0"),
        (["--forget_authors", 0], "give at least one"),
        (["--colour", 1], "There is no flag '--colour'"),
    ],
)
def test_what_the_recipe_cannot_do_is_said_at_once(flags, said, tmp_path):
    assert said in plainly_refused(*flags, "--output_dir", tmp_path)
