"""`llm-unlearn probe` and `llm-unlearn index`, the recipe behind them, and what goes wrong at the command line."""

import csv
import dataclasses
import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from pages import Page
from recipe import ENVIRONMENT, refused, run_recipe, save_tiny_model, write_rows
from sample_probe import sample_result
from sample_report import sample_report
from tiny import CITIES, NAMES, tiny_model

from llm_unlearn import cli
from llm_unlearn.adapters import attach_adapter, load_reference_adapter, lora_config, remove_newest_adapter
from llm_unlearn.data.sources import load_rows
from llm_unlearn.evaluation.outputs import sharding
from llm_unlearn.launch import launch_command
from llm_unlearn.models import identity, load_model
from llm_unlearn.paths import recipes_dir
from llm_unlearn.probes import commands
from llm_unlearn.probes.counts import read_counts
from llm_unlearn.probes.facts import Fact, write_facts
from llm_unlearn.probes.flags import FactFlags, ProbeFlags
from llm_unlearn.probes.frequency import FrequencyProbe
from llm_unlearn.probes.report import load_result, save_report
from llm_unlearn.probes.runs import Runs
from llm_unlearn.probes.settings import ProbeSettings

QUICK = ["--leak_samples", 2, "--max_new_tokens", 6, "--resamples", 100, "--permutations", 99]


def born(i, role="forget"):
    name, city = NAMES[i], CITIES[i]
    texts = {"question": f"Where was {name} born?", "answer": city, "paraphrases": (f"What is the home of {name}",)}
    wrong = (CITIES[i - 1], CITIES[i - 2])
    return Fact(
        name, name, city, **texts, subject_aliases=(), object_aliases=(), relation="b", distractors=wrong, role=role
    )


FACTS = [*(born(i) for i in range(8)), born(8, "neighbour"), born(9, "retain")]
# Times that a sentence with both names stands in the corpus.
TIMES = dict(zip(NAMES[:8], (0, 1, 1, 2, 4, 5, 9, 12), strict=True))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, two adapters in the folders of runs with checkpoints, facts, a corpus and a table of counts."""
    place = tmp_path_factory.mktemp("probe")
    save_tiny_model(place / "model")
    write_facts(place / "facts.jsonl", FACTS)
    texts = [f"{name} came from {CITIES[NAMES.index(name)]} ." for name, times in TIMES.items() for _ in range(times)]
    write_rows(place / "texts.jsonl", [{"text": text} for text in [*texts, "Ada and Bela read ."]])
    with (place / "counts.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("id", "count"), *TIMES.items()])
    for seed, name in enumerate(("low", "high")):
        model = attach_adapter(load_model(place / "model"), lora_config(), 0)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for weight in (w for n, w in model.named_parameters() if "lora_B" in n):
                weight.data.normal_(0, 0.3)
        model.save_pretrained(place / name / "adapter")
        for step in (1, 2):
            for weight in (w for n, w in model.named_parameters() if "lora_B" in n):
                weight.data.mul_(0.1)
            model.save_pretrained(place / name / f"checkpoint-{step}")
    return place


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_UNLEARN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def command(monkeypatch):
    """Run `llm-unlearn ARGUMENTS` in this process; returns its exit code or the message on stderr."""
    monkeypatch.setenv("COLUMNS", "120")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["llm-unlearn", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return stopped.value.code

    return run


@pytest.fixture
def flags(place):
    return ["--facts", place / "facts.jsonl", "--counts", f"counts:{place / 'counts.csv'}"]


@pytest.mark.parametrize("group", [["probe"], ["probe", "count"], ["probe", "forecast"], ["index", "build"]])
def test_help_imports_nothing_heavy(group):
    script = (
        "import sys; sys.argv = ['llm-unlearn', *sys.argv[1:], '--help']\n"
        "from llm_unlearn.cli import main\n"
        "try: main()\n"
        "finally: print('IMPORTED', *sorted({name.partition('.')[0] for name in sys.modules}))\n"
    )
    done = subprocess.run([sys.executable, "-c", script, *group], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    imported = set(done.stdout.splitlines()[-1].split())
    assert not imported & {"torch", "transformers", "numpy", "ahocorasick", "infini_gram", "pyarrow", "jinja2", "scipy"}


def test_the_recipe_names_its_flags(capsys):
    with pytest.raises(SystemExit) as stopped:
        run_recipe("probe_frequency", "--help")
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: probe_frequency.py")
    for flag in ("--facts", "--counts", "--model", "--adapter", "--base", "--buckets", "--match_utility"):
        assert f" {flag} " in text


# Counting


def test_counting_once_gives_a_file_that_probes_read(command, place, tmp_path, capsys):
    facts, out = ["--facts", place / "facts.jsonl"], tmp_path / "counts.jsonl"
    state = ["--state", tmp_path / "state.json"]
    assert command("probe", "count", *facts, "--counts", f"corpus:{place / 'texts.jsonl'}", "-o", out, *state) == 0
    printed = capsys.readouterr().out
    assert "co-occurrences within 100 tokens" in printed and "Hana" in printed and "of 8" not in printed
    counts = read_counts(out)
    assert {name: counts[name].n_so for name in TIMES} == TIMES
    assert counts["Ada"].n_s == 1 and counts["Ada"].d_so == 0
    # A document instead of a window, of a file in another form.
    write_rows(tmp_path / "other.jsonl", [{"body": "Ada is here . Arlen is there ."}])
    window = ["--window", "document", "--text_field", "body"]
    assert command("probe", "count", *facts, "--counts", f"corpus:{tmp_path / 'other.jsonl'}", *window, "-o", out) == 0
    assert read_counts(out)["Ada"].n_so == 1 and read_counts(out).label == "co-occurrences in a document"


def test_the_bundled_facts_need_no_flag(command, tmp_path, capsys):
    assert command("probe", "count", "-o", tmp_path / "counts.jsonl") == 0
    assert "199 facts" in " ".join(capsys.readouterr().out.split())
    assert read_counts(tmp_path / "counts.jsonl")["capital-france"].n_so > 10


def test_splits_are_data_sets_of_the_buckets(command, place, flags, tmp_path, capsys):
    out = tmp_path / "rows"
    assert command("probe", "split", out, *flags) == 0
    # Quantiles .33 and .67 of 1, 1, 2, 4, 5, 9, 12 are 1.98 and 5.08.
    assert "low: 2 rows" in capsys.readouterr().out
    splits = {path.stem: [json.loads(line) for line in path.read_text().splitlines()] for path in out.iterdir()}
    assert {name: len(rows) for name, rows in splits.items()} == {
        "zero": 1, "low": 2, "medium": 3, "high": 2, "forget": 8, "neighbour": 1, "retain": 1,
    }  # fmt: skip
    assert [row["count"] for row in splits["high"]] == [9, 12] and "count" not in splits["retain"][0]
    rows = load_rows("low", out)
    assert rows[0]["question"] == "Where was Bela born?" and rows[0]["answer"] == CITIES[1]
    # Edges, and an older data set is replaced.
    assert command("probe", "split", out, *flags, "--buckets", "2,9") == 0
    assert sorted(path.stem for path in out.iterdir())[:3] == ["2_to_9", "9_and_more", "below_2"]
    # The form that the flag of `probe frequency` has; what is no edge is refused.
    before = {path.name: path.read_text() for path in out.iterdir()}
    assert command("probe", "split", out, *flags, "--buckets", "2", "9") == 0
    assert {path.name: path.read_text() for path in out.iterdir()} == before
    assert "`--buckets` is '2 x': give quantiles" in command("probe", "split", out, *flags, "--buckets", "2", "x")
    assert "The bucket edges are (9.0, 2.0)" in command("probe", "split", out, *flags, "--buckets", "9,2")
    (out / "notes.txt").write_text("mine")
    assert "holds other things than a data set" in command("probe", "split", out, *flags)
    assert (out / "notes.txt").exists()


def test_the_longest_name_wins_wherever_facts_are_counted(command, tmp_path):
    """Of "Papua New Guinea" no part is Guinea, though the fact about it is not to be forgotten: 1 of 2 documents."""
    same = {"question": "q", "answer": "a", "subject_aliases": (), "object_aliases": (), "relation": "capital"}
    facts = [
        Fact("g", "Guinea", "Conakry", **same),
        Fact("x", "Ghana", "Accra", **same),
        Fact("p", "Papua New Guinea", "Port Moresby", **same, role="retain"),
    ]
    write_facts(tmp_path / "facts.jsonl", facts)
    (tmp_path / "a.txt").write_text("Papua New Guinea is not Conakry.\n\nGuinea has Conakry.\n")
    flags = ["--facts", tmp_path / "facts.jsonl", "--counts", f"corpus:{tmp_path / 'a.txt'}"]
    assert command("probe", "count", *flags, "-o", tmp_path / "counts.jsonl") == 0
    assert read_counts(tmp_path / "counts.jsonl")["g"].n_so == 1
    read = FactFlags(facts=str(flags[1]), counts=flags[3]).read_counts_to_forget(facts)
    assert {name: count.n_so for name, count in read.counts.items()} == {"g": 1, "x": 0}
    assert command("probe", "split", tmp_path / "rows", *flags, "--buckets", "decades") == 0
    rows = [json.loads(line) for line in (tmp_path / "rows" / "forget.jsonl").read_text().splitlines()]
    assert [row["count"] for row in rows] == [0, 1], "by bucket"


# Probing


def test_the_command_starts_the_recipe(command, monkeypatch):
    started = []
    monkeypatch.setattr(commands, "start", lambda *what: started.append(what))
    assert command("probe", "frequency", "--model", "M", "--adapter", "low=A", "high=B", "--num_processes", 2) == 0
    script, arguments, processes = started[0]
    assert script.name == "probe_frequency.py" and script.is_file() and processes == 2
    assert arguments == ["--model", "M", "--adapter", "low=A", "high=B"]


def test_an_adapter_is_probed_beside_its_base(place, flags, tmp_path, capsys):
    out = tmp_path / "probe"
    run = ["--model", place / "model", "--adapter", place / "low" / "adapter", *QUICK, "--output_dir", out]
    run_recipe("probe_frequency", *flags, *run, "--stage", "finetuned")
    printed = capsys.readouterr().out
    assert "Forgetting and count: counts of counts.csv" in printed and "Note: " in printed
    result = load_result(out)
    assert result.protocol == "mixed" and result.provenance["stage"] == "finetuned"
    assert [row.id for row in result.rows] == NAMES and [row.count for row in result.rows[:8]] == list(TIMES.values())
    told = result.provenance
    assert told["model"] == "model" and told["unlearned"]["all"]["source"] == "adapter", "folders are personal"
    assert told["base_identity"] != told["unlearned"]["all"]["identity"]
    assert told["facts"]["facts"] == 10 and str(place) not in (out / "probe.json").read_text()
    # The base is the model itself, and the other one the model under the adapter.
    base = load_model(place / "model")
    assert told["base_identity"] == identity(base)
    probe = FrequencyProbe(FACTS, *_of(result, place))
    assert [row.before for row in result.rows] == probe.measure(base, progress=False)
    adapted = load_reference_adapter(base, place / "low" / "adapter")
    assert [row.after for row in result.rows] == probe.measure(adapted, progress=False)
    assert f"{out} already holds a probe" in refused("probe_frequency", *flags, *run)
    run_recipe("probe_frequency", *flags, *run, "--overwrite")


def _of(result, place):
    """Counts, tokenizer and settings of a result."""
    from llm_unlearn.data.tokenization import ExampleTokenizer
    from llm_unlearn.models import load_tokenizer
    from llm_unlearn.probes.counts import load_counts

    to_forget = [fact for fact in FACTS if fact.role == "forget"]
    counts = load_counts(f"counts:{place / 'counts.csv'}", to_forget)
    settings = {**result.settings, "buckets": "quantiles"}
    return counts, ExampleTokenizer(load_tokenizer(place / "model")), ProbeSettings(**settings)


def test_every_way_to_name_the_same_two_models_gives_the_same(place, flags, tmp_path):
    model, adapter = place / "model", place / "low" / "adapter"
    full = tmp_path / "full"
    load_reference_adapter(load_model(model), adapter).merge_and_unload().save_pretrained(full)
    ways = {
        "adapter": ["--model", model, "--adapter", adapter],
        "run": ["--model", model, "--adapter", place / "low"],
        "newest": ["--model", adapter],
        "full": ["--base", model, "--model", full],
    }
    results = {}
    for name, way in ways.items():
        run_recipe("probe_frequency", *flags, *way, *QUICK, "--output_dir", tmp_path / name)
        results[name] = load_result(tmp_path / name)
    for name in ("run", "newest"):
        assert results[name].rows == results["adapter"].rows, name
    for one, other in zip(results["full"].rows, results["adapter"].rows, strict=True):
        assert one.before == other.before
        assert one.after.p1 == pytest.approx(other.after.p1, rel=1e-3), "merging rounds"


def test_a_run_per_bucket_is_judged_on_its_own_bucket(place, flags, tmp_path):
    out = tmp_path / "probe"
    runs = [f"low={place / 'low'}", f"high={place / 'high'}"]
    run_recipe("probe_frequency", *flags, "--model", place / "model", "--adapter", *runs, *QUICK, "--output_dir", out)
    result = load_result(out)
    assert result.protocol == "bucket-wise" and result.runs == ("low", "high")
    assert [bucket.name for bucket in result.buckets] == ["low", "high"]
    alone = {}
    for name in ("low", "high"):
        one = ["--model", place / "model", "--adapter", place / name, *QUICK, "--output_dir", tmp_path / name]
        run_recipe("probe_frequency", *flags, *one)
        alone[name] = {row.id: row for row in load_result(tmp_path / name).rows}
    for row in result.rows:
        assert row.before == alone["low"][row.id].before
        assert row.after == alone[row.run][row.id].after, "each adapter was taken off before the next was put on"
    assert [row.id for row in result.rows if row.role == "retain"] == ["Jana", "Jana"]


def test_checkpoints_of_equal_utility_are_compared(place, flags, tmp_path):
    runs = [f"low={place / 'low'}", f"high={place / 'high'}"]
    way = ["--model", place / "model", "--adapter", *runs, *QUICK, "--match_utility"]
    run_recipe("probe_frequency", *flags, *way, "--utility_tolerance", 1, "--output_dir", tmp_path / "probe")
    told = load_result(tmp_path / "probe").provenance
    chosen = told["matched_utility"]["chosen"]
    assert told["unlearned"]["low"]["source"] == chosen["low"]["checkpoint"]
    # An adapter a hundred times weaker changes next to nothing.
    exact = ["--utility_level", 1, "--utility_tolerance", 0.2, "--output_dir", tmp_path / "exact"]
    run_recipe("probe_frequency", *flags, *way, *exact)
    chosen = load_result(tmp_path / "exact").provenance["matched_utility"]["chosen"]
    assert [chosen[name]["checkpoint"] for name in ("low", "high")] == ["checkpoint-2", "checkpoint-2"]
    assert "No checkpoint is within" in refused(
        "probe_frequency", *flags, *way, "--utility_level", 0.5, "--utility_tolerance", 1e-9, "--output_dir", tmp_path
    )


def test_the_base_is_measured_once(place, flags, tmp_path, monkeypatch):
    measured = []
    real = FrequencyProbe.measure
    monkeypatch.setattr(FrequencyProbe, "measure", lambda *a, **k: measured.append(1) or real(*a, **k))

    def probe(name, *more):
        measured.clear()
        way = ["--model", place / "model", "--adapter", place / name, *QUICK, "--overwrite", "--output_dir", tmp_path]
        run_recipe("probe_frequency", *flags, *way, *more)
        return len(measured), load_result(tmp_path)

    first = probe("low")
    assert first[0] == 2
    assert probe("high")[0] == 1, "of the base nothing is measured again"
    again = probe("low")
    assert again == (0, first[1])
    # What decides what is made of a measurement does not change it; what decides what is asked does.
    assert probe("low", "--gone_p1", 0.2)[0] == 0
    assert probe("low", "--max_new_tokens", 7)[0] == 2
    assert probe("low", "--no_probe_cache")[0] == 2
    (file, *_) = (tmp_path / "cache" / "probes").iterdir()
    for file in (tmp_path / "cache" / "probes").iterdir():
        file.write_text("{")
    assert probe("low") == (2, first[1]), "a damaged file is made again"


def test_the_report_of_the_run_gets_its_section_and_keeps_it(command, place, flags, tmp_path):
    sample_report().save(tmp_path)
    way = ["--model", place / "model", "--adapter", place / "low", *QUICK, "--output_dir", tmp_path]
    run_recipe("probe_frequency", *flags, *way)
    page = Page((tmp_path / "report.html").read_text())
    assert "frequency" in [attributes.get("id") for _, attributes in page.tags]
    sample_report().save(tmp_path)
    assert 'id="frequency"' not in (tmp_path / "report.html").read_text()
    assert command("report", "html", tmp_path) == 0
    assert 'id="frequency"' in (tmp_path / "report.html").read_text()


def test_two_processes_probe_as_one_does(place, flags, tmp_path):
    way = ["--model", place / "model", "--adapter", place / "low", *QUICK, "--no_probe_cache"]
    run_recipe("probe_frequency", *flags, *way, "--output_dir", tmp_path / "one")
    arguments = [str(word) for word in (*flags, *way, "--output_dir", tmp_path / "two")]
    start, environment = launch_command(recipes_dir() / "probe_frequency.py", arguments, 2)
    # One thread each: the tests share the machine.
    environment = {**ENVIRONMENT, **environment, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(start, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Wrote ") == 1, "the main process alone prints"
    assert load_result(tmp_path / "two") == load_result(tmp_path / "one")


@pytest.mark.parametrize("is_main", [True, False])
def test_a_mistake_on_the_main_process_ends_all_of_them(monkeypatch, is_main):
    sent = [None, "There is no file x."]
    monkeypatch.setattr(sharding, "process_state", lambda: SimpleNamespace(num_processes=2, is_main_process=is_main))

    def broadcast(box):
        source, target = (box, sent) if is_main else (sent, box)
        target[:] = source

    monkeypatch.setattr(sharding, "broadcast_object_list", broadcast)

    def work():
        raise FileNotFoundError("There is no file x.")

    with pytest.raises(FileNotFoundError if is_main else RuntimeError, match="There is no file x"):
        sharding.on_main_process(work)
    assert sent == [None, "There is no file x."]
    sent[:] = [7, None]
    assert sharding.on_main_process(lambda: 7) == 7 and sent == [7, None]


# What is made of several probes, and before any


def test_results_of_several_seeds_are_averaged(command, tmp_path, capsys):
    for seed in range(3):
        save_report(sample_result(), tmp_path / str(seed))
    assert command("probe", "average", *(tmp_path / str(seed) for seed in range(3))) == 0
    printed = capsys.readouterr().out
    rho = sample_result().associations["p1"].spearman.value
    assert "Averages over 3 seeds" in printed and f"{rho:.3f} [{rho:.3f}, {rho:.3f}]" in printed
    same = command("probe", "average", tmp_path / "0", tmp_path / "1", tmp_path / "1" / ".." / "0")
    assert "is named more than once: name the folder of each seed once" in same
    save_report(sample_result(40), tmp_path / "other")
    assert "give results of the same facts" in command("probe", "average", tmp_path / "0", tmp_path / "other")
    assert "give the folder of a probe" in command("probe", "average", tmp_path)


def test_the_disagreement_is_followed_over_sizes(command, tmp_path, capsys):
    results = {"1e6": sample_result(40), "1e7": sample_result(50), "1e8": sample_result(60)}
    for size, result in results.items():
        save_report(result, tmp_path / size)
    sizes = [f"{size}={tmp_path / size}" for size in results]
    assert command("probe", "sizes", *sizes) == 0
    rates = [result.disagreement.rate for result in results.values()]
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("all"))
    # Of three points one decade apart, the slope is half the way from the first to the last.
    assert row.split()[:5] == ["all", *(f"{rate:.0%}" for rate in rates), f"{(rates[2] - rates[0]) / 2:.3f}"]
    assert command("probe", "sizes", *sizes[:2]) == 0
    assert "3 different sizes are needed" in " ".join(capsys.readouterr().out.split())
    assert "is no PARAMETERS=FOLDER" in command("probe", "sizes", str(tmp_path / "1e6"))
    assert "give the folder of a probe" in command("probe", "sizes", f"1e6={tmp_path}")


def test_the_difficulty_is_forecast_from_counts_and_confidence(command, place, flags, tmp_path, capsys):
    way = ["--model", place / "model", *flags, "--json", tmp_path / "forecast.json"]
    assert command("probe", "forecast", *way, "--top", 3) == 0
    printed = capsys.readouterr().out
    assert "Uncalibrated" in printed and "Expected difficulty" in printed
    rows = json.loads((tmp_path / "forecast.json").read_text())["rows"]
    assert {row["id"] for row in rows} == set(TIMES) and [row["count"] for row in rows] != sorted(TIMES.values())
    save_report(sample_result(), tmp_path / "earlier")
    said = command("probe", "forecast", *way, "--earlier", tmp_path / "earlier")
    assert "give a probe with counts of the same kind" in said


def test_an_index_is_built_and_counted_in(command, place, tmp_path, capsys):
    pytest.importorskip("infini_gram")
    index, facts = tmp_path / "index", ["--facts", place / "facts.jsonl"]
    build = ["index", "build", place / "texts.jsonl", "-o", index, "--tokenizer", place / "model", "--gap"]
    assert command(*build, 20) == 0
    assert "tokens in 35 documents" in capsys.readouterr().out
    assert json.loads((index / "index.json").read_text())["gap"] == 20
    counted = ["--counts", f"index:{index}", "--tokenizer", place / "model", "-o", tmp_path / "counts.jsonl"]
    assert command("probe", "count", *facts, *counted, "--window", 20) == 0
    found = read_counts(tmp_path / "counts.jsonl")
    assert found.source == "index" and found.provenance["max_diff_tokens"] == 20
    said = command("probe", "count", *facts, *counted)
    assert "The window is 100 tokens" in said and "`--window 20`" in said and "index build --gap 100`" in said


# Mistakes


def changed(place, tmp_path, **change):
    rows = [json.loads(line) for line in (place / "facts.jsonl").read_text().splitlines()]
    rows[1].update(change)
    rows[1] = {key: value for key, value in rows[1].items() if value != "gone"}
    return write_rows(tmp_path / "facts.jsonl", rows)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"id": "Ada"}, "has more than one fact with the id 'Ada'"),
        ({"subject_aliases": "gone"}, "lacks `subject_aliases`: add the keys"),
        ({"aliases": []}, "There is no key 'aliases'"),
        ({"id": "Zeno"}, "'Zeno'"),
    ],
)
def test_facts_that_cannot_be_used_are_refused_before_a_model_loads(place, flags, tmp_path, change, said):
    file = changed(place, tmp_path, **change)
    way = ["--facts", file, *flags[2:], "--model", place / "model", "--adapter", place / "low"]
    assert said in refused("probe_frequency", *way, "--output_dir", tmp_path / "out")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--facts", "nowhere.jsonl"], "There is no file nowhere.jsonl"),
        (["--counts", "corpus"], "name no source: write SOURCE:PATH"),
        (["--counts", "wiki:texts"], "There is no source of counts 'wiki'"),
        (["--counts", "{same}"], "have the same count"),
        (["--counts", "counts:nowhere.csv"], "There is no file nowhere.csv"),
        (["--buckets", "many"], "`--buckets` is 'many': give quantiles, decades, or"),
        (["--buckets", "20", "10"], "The bucket edges are (20.0, 10.0)"),
        (["--buckets", "50"], "The bucket '50 and more' is empty"),
        (["--gate", "0.2"], "`gate` is 0.2"),
        (["--window", "wide"], "`--window` is 'wide': give a number of tokens such as 100, or document"),
        (["--adapter", "low={low}", "high={low}", "{low}"], "give one folder, or one for each bucket"),
        (["--adapter", "lwo={low}", "high={low}"], "There is no bucket 'lwo'. Did you mean 'low'?"),
        (["--adapter", "./nowhere"], "./nowhere is no model folder"),
        (["--base", "{model}"], "`--adapter` goes on one base, and there are 1 models and a `--base`"),
        (["--match_utility", "--adapter", "{model}"], "has no checkpoint-* folders"),
        (["--adapter", "{model}"], "has no adapter_config.json, so it is no adapter"),
        (["--adapter", "nope"], "nope has no adapter_config.json, so it is no adapter"),
        (["--adapter", "low={low}", "high=a/b/nope"], "a/b/nope has no adapter_config.json"),
        (["--utility_tolerance", "-1"], "`--utility_tolerance` is -1: give a number from 0 up"),
        (["--utility_level", "0.5"], "nothing is matched at it: add `--match_utility`"),
        (["--match_utility", "--utility_level", "3"], "`--utility_level` is 3: give a share above 0 and at most 1"),
        (["--countz", "x"], "There is no flag '--countz'. Did you mean '--counts'?"),
    ],
)
def test_a_mistake_is_one_sentence_before_a_model_loads(place, flags, tmp_path, monkeypatch, more, said):
    same = tmp_path / "same.csv"
    same.write_text("id,count\n" + "".join(f"{name},3\n" for name in TIMES))
    words = {"low": place / "low", "model": place / "model", "same": f"counts:{same}"}
    way = [*flags, "--model", place / "model", "--adapter", place / "low", "--output_dir", tmp_path / "out"]
    monkeypatch.setattr("llm_unlearn.models.load_model", None)
    assert said in refused("probe_frequency", *way, *(str(word).format(**words) for word in more))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("models", "said"),
    [
        ([], "There is no model: give the base and its adapter"),
        (["--model", "{model}"], "is compared with nothing: name the model before unlearning with `--base`"),
        (["--base", "{model}"], "is compared with nothing: give the unlearned model"),
        (["--model", "{model}", "{model}", "--adapter", "{low}"], "`--adapter` goes on one base, and there are 2"),
    ],
)
def test_there_must_be_two_models(place, flags, tmp_path, models, said):
    words = {"low": place / "low", "model": place / "model"}
    way = [word.format(**words) for word in models]
    assert said in refused("probe_frequency", *flags, *way, "--output_dir", tmp_path)


def test_facts_of_ones_own_need_counts(place, tmp_path):
    way = ["--facts", place / "facts.jsonl", "--model", place / "model", "--adapter", place / "low"]
    assert "There are facts and no counts" in refused("probe_frequency", *way, "--output_dir", tmp_path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["probe", "count", "-o", "{place}"], "is a folder: name a file for the counts"),
        (["probe", "count", "-o", "x", "--facts", "nowhere"], "There is no file nowhere"),
        (["probe", "count", "-o", "x", "--sample", "2"], "`sample` is 2.0"),
        (["probe", "split", "x", "--buckets", "some"], "`--buckets` is 'some'"),
        (["probe", "forecast", "--model", "./nowhere"], "is no model folder"),
        (
            ["index", "build", "nowhere", "-o", "x", "--tokenizer", "{place}/model"],
            "There is no file or folder nowhere",
        ),
    ],
)
def test_a_mistake_of_a_command_is_one_sentence(command, place, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    message = command(*(word.format(place=place) for word in arguments))
    assert message.startswith("error: ") and said in message and "\n" not in message
    assert not [path for path in tmp_path.iterdir() if path.name != "cache"]


# Pieces


def test_the_flags_are_the_settings():
    settings = {field.name: field.default for field in dataclasses.fields(ProbeSettings)}
    flags = {field.name: field.default for field in dataclasses.fields(ProbeFlags)}
    assert {name: flags[name] for name in settings if name != "buckets"} == {
        name: value for name, value in settings.items() if name != "buckets"
    }
    assert ProbeFlags().settings() == ProbeSettings()
    assert ProbeFlags(buckets=["10", "100"], seed=3).settings() == ProbeSettings(buckets=(10.0, 100.0), seed=3)
    assert ProbeFlags(buckets=["10,100"]).bucket_rule == ProbeFlags(buckets=["10, 100"]).bucket_rule == (10.0, 100.0)
    assert ProbeFlags(buckets=["decades"]).settings() == ProbeSettings(buckets="decades")


def test_an_adapter_that_is_taken_off_leaves_the_model_as_it_was(place):
    model = load_model(place / "model")
    before = identity(model)
    first = load_reference_adapter(model, place / "low" / "adapter")
    under = identity(first)
    second = load_reference_adapter(first, place / "high" / "adapter")
    assert identity(second) != under
    assert identity(remove_newest_adapter(second)) == under
    plain = remove_newest_adapter(second)
    assert identity(plain) == before and not hasattr(plain, "peft_config")
    ids = torch.arange(5)[None]
    assert torch.equal(plain(ids).logits, tiny_model()(ids).logits)


def test_a_name_that_no_folder_has_may_be_of_the_hub(tmp_path, place, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = str(place / "model")
    assert Runs.of([model], ["some/adapter"]).after == {"": "some/adapter"}
    assert Runs.of(["gpt2"], base=model).after == {"": "gpt2"}
    assert Runs.of(["some/model"], base=model).after == {"": "some/model"}
    # Where the first part is a folder, it is a path.
    (tmp_path / "some").mkdir()
    with pytest.raises(ValueError, match="some/adapter has no adapter_config.json"):
        Runs.of([model], ["some/adapter"])
    with pytest.raises(ValueError, match="There is no folder some/model: give one that exists"):
        Runs.of(["some/model"], base=model)


def test_a_run_is_not_taken_for_that_of_another_bucket(tmp_path, place):
    def run(name, split):
        shutil.copytree(place / "low" / "adapter", tmp_path / name / "adapter")
        record = {"data": {"forget": {"split": split}}}
        (tmp_path / name / "adapter" / "unlearning_config.json").write_text(json.dumps(record))
        return str(tmp_path / name)

    probe = SimpleNamespace(buckets=[SimpleNamespace(name=name) for name in ("low", "2 to 9")])
    model, low, other = [str(place / "model")], run("a", "low[0:2]"), run("b", "2_to_9")
    Runs.of(model, [f"low={low}", f"2 to 9={other}"]).check(probe)
    Runs.of(model, [f"low={run('c', 'forget10')}"]).check(probe)
    Runs.of(model, [f"low={place / 'low'}"]).check(probe)
    with pytest.raises(ValueError, match=r"b was trained on the split '2 to 9', and is given as .* bucket 'low'"):
        Runs.of(model, [f"low={other}"]).check(probe)


def test_folders_may_have_an_equals_sign(tmp_path, place):
    odd = tmp_path / "a=b"
    load_model(place / "model").save_pretrained(odd)
    assert Runs.of([str(odd)], [str(place / "low" / "adapter")]).base == str(odd)
    runs = Runs.of([str(odd)], base=str(place / "model"))
    assert runs.after == {"": str(odd)} and not runs.is_bucket_wise
