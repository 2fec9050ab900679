"""What imports what, what is documented, and what must not be there."""

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import llm_unlearn

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "llm_unlearn"
FILES = sorted(PACKAGE.rglob("*.py"))
PARSED = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def resolve(node):
    """The modules that an import statement names."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    assert node.level == 0, f"line {node.lineno}: imports are absolute"
    # "from llm_unlearn.data import tofu" imports a module, "from llm_unlearn.data.tofu import x" a name.
    whole = {f"{node.module}.{alias.name}" for alias in node.names}
    return (whole & MODULES.keys()) or {node.module}


def imports(path):
    """Names of the modules that a file imports, wherever it does; not what is imported for type checkers only."""
    guarded = (node for node in ast.walk(PARSED[path]) if isinstance(node, ast.If))
    for_types = {n for node in guarded if ast.unparse(node.test) == "TYPE_CHECKING" for n in ast.walk(node)}
    statements = (node for node in ast.walk(PARSED[path]) if isinstance(node, ast.Import | ast.ImportFrom))
    return {name for node in statements if node not in for_types for name in resolve(node)}


def own_imports(name):
    """What a module of the package imports from the package, without its prefix."""
    prefix = "llm_unlearn."
    return {other.removeprefix(prefix) for other in imports(MODULES[prefix + name]) if other.startswith(prefix)}


def below(*folders):
    """Modules in these folders or of these names, without the package's prefix."""
    names = (name.removeprefix("llm_unlearn.") for name in MODULES)
    return sorted(name for name in names if name.startswith(tuple(f"{f}." for f in folders)) or name in folders)


def test_functional_stands_below_everything_and_losses_know_tensors_only():
    assert own_imports("functional") == set()
    assert own_imports("losses") == set()
    assert own_imports("forward") == {"functional"}
    for pure in ("functional", "losses"):
        outside = {name.split(".")[0] for name in imports(MODULES[f"llm_unlearn.{pure}"])}
        assert outside <= {"torch", "jaxtyping"}, f"{pure} is a module of pure functions of tensors"


@pytest.mark.parametrize("name", [name for name in below("methods") if name != "methods"])
def test_a_method_stands_on_config_forward_losses_and_trainer_and_knows_no_other_method(name):
    assert own_imports(name) <= {"config", "data.tokenization", "forward", "losses", "trainer", "functional"}


@pytest.mark.parametrize("name", below("data"))
def test_data_stands_below_training_and_evaluation(name):
    allowed = {"functional", "files", "paths", "suggest"}
    assert {other for other in own_imports(name) if not other.startswith("data")} <= allowed


@pytest.mark.parametrize(
    "name", below("config", "trainer", "reference", "guard", "adapters", "models", "finetune", "exposures")
)
def test_the_training_core_knows_no_method_no_evaluation_and_nothing_above(name):
    above = below("methods", "evaluation", "codebook", "run", "cli", "card", "hub", "launch", "forecast", "testbed")
    # The one place that loads whatever a folder holds.
    loads = {"codebook.model", "codebook.bottleneck"} if name == "models" else set()
    assert own_imports(name) & set(above) <= loads


@pytest.mark.parametrize("name", below("evaluation"))
def test_evaluation_knows_neither_trainer_nor_methods(name):
    allowed = {"functional", "forward", "files", "paths", "suggest", "version"}
    others = {other for other in own_imports(name) if not other.startswith(("evaluation", "data"))}
    assert others <= allowed


@pytest.mark.parametrize("name", below("refinement"))
def test_refinement_stands_on_evaluation_and_knows_no_method(name):
    """Any objective can be refined; its arguments are part of every config, so that file stands on nothing."""
    others = {other for other in own_imports(name) if not other.startswith(("evaluation", "data", "refinement"))}
    assert others <= {"files", "reference"}
    assert name != "refinement.config" or not own_imports(name)


@pytest.mark.parametrize("name", below("frequency"))
def test_frequency_aware_training_stands_on_counts_and_passes_and_knows_no_method(name):
    """As with refinement, its arguments are part of every config, so that file stands on nothing."""
    others = {other for other in own_imports(name) if not other.startswith(("evaluation.outputs", "data", "frequency"))}
    assert others <= {"exposures", "paths", "probes.buckets"}
    assert name != "frequency.config" or not own_imports(name)


@pytest.mark.parametrize("name", below("controlled"))
def test_nothing_of_the_library_stands_on_the_controlled_experiment(name):
    for other in MODULES:
        assert other.startswith("llm_unlearn.controlled") or f"llm_unlearn.{name}" not in imports(MODULES[other])


SHOWN = {f"codebook.{name}" for name in ("actions", "card", "commands", "drop_tables", "page", "plot", "tables")}
"""What shows codebooks to somebody; the others are codebooks."""


@pytest.mark.parametrize("name", [name for name in below("codebook") if name not in SHOWN])
def test_a_codebook_stands_on_the_training_core_and_on_passes_of_evaluation_and_knows_no_method(name):
    below_it = ("codebook", "data", "evaluation.outputs")
    allowed = {"adapters", "files", "finetune", "forward", "functional", "models", "requests", "suggest"}
    # The one that pushes itself, as models of transformers do.
    allowed |= {"hub"} if name == "codebook.model" else set()
    assert {other for other in own_imports(name) if not other.startswith(below_it)} <= allowed
    assert not own_imports(name) & SHOWN


@pytest.mark.parametrize("name", sorted(SHOWN))
def test_what_shows_codebooks_knows_no_method_either(name):
    below_it = ("codebook", "data", "evaluation")
    allowed = {"files", "flags", "models", "paths", "requests", "run", "suggest"}
    assert {other for other in own_imports(name) if not other.startswith(below_it)} <= allowed


@pytest.mark.parametrize("name", ["selection", "statistics", "names", "search"])
def test_the_choice_of_codes_runs_no_model(name):
    outside = {other.split(".")[0] for other in imports(MODULES[f"llm_unlearn.codebook.{name}"])}
    assert not outside & {"transformers", "peft"}
    assert own_imports(f"codebook.{name}") <= {"codebook.statistics"}


def test_no_import_runs_in_circles():
    """At the top of files; an import inside a function is there to break a circle or to save time."""
    graph = {}
    for name, path in MODULES.items():
        statements = (node for node in PARSED[path].body if isinstance(node, ast.Import | ast.ImportFrom))
        graph[name] = {other for node in statements for other in resolve(node)} & MODULES.keys()
    done = set()

    def visit(name, trail):
        assert name not in trail, " -> ".join([*trail, name])
        if name not in done:
            for other in graph[name]:
                visit(other, [*trail, name])
            done.add(name)

    for name in graph:
        visit(name, [])


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(PACKAGE)) for path in FILES])
def test_what_no_file_of_the_package_does(path):
    roots = {name.split(".")[0] for name in imports(path)}
    assert not roots & {"trl"}, "trl is for recipes; the library does without"
    assert not roots & {"recipes", "eval"}, "recipes and evaluations stand on the library, not under it"
    assert not roots & {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}, "nothing is unpickled"
    calls = [node for node in ast.walk(PARSED[path]) if isinstance(node, ast.Call)]
    called = {ast.unparse(call.func) for call in calls}
    assert not called & {"torch.load", "torch.save", "eval", "exec"}, "files are safetensors and JSON"
    assert "print" not in called or path.name in {"cli.py", "__main__.py", "testbed.py"}, "only commands print"
    trusted = {(keyword.arg, ast.unparse(keyword.value)) for call in calls for keyword in call.keywords}
    assert ("trust_remote_code", "True") not in trusted
    # A user's mistake is an error with a sentence; an assert vanishes under -O.
    assert not any(isinstance(node, ast.Assert) for node in ast.walk(PARSED[path]))


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(PACKAGE)) for path in FILES])
def test_every_public_function_and_class_is_documented(path):
    tree = PARSED[path]
    missing = [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert not missing
    # Files of constants may go without; files with code say what they are for.
    has_code = any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in tree.body)
    assert not has_code or ast.get_docstring(tree), "the file itself"


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(PACKAGE)) for path in FILES])
def test_no_file_is_long(path):
    """Beyond 400 lines, look for the idea to split by."""
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= 400


@pytest.mark.parametrize("name", llm_unlearn.__all__)
def test_a_public_name_imports_and_is_documented(name):
    thing = getattr(llm_unlearn, name)
    if not isinstance(thing, str | dict):
        # dataclasses would put their signature where no docstring was written.
        assert inspect.getdoc(thing) and not inspect.getdoc(thing).startswith(f"{name}(")


def test_an_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Unlearner'"):
        _ = llm_unlearn.Unlearner
    assert set(llm_unlearn.__all__) <= set(dir(llm_unlearn))


def test_every_module_imports():
    for name in MODULES:
        if not name.endswith("__main__"):
            importlib.import_module(name)


def test_importing_the_package_and_listing_methods_loads_no_torch():
    code = (
        "import sys, llm_unlearn, llm_unlearn.methods as m; assert len(m.METHODS) > 4; "
        "print(sorted({'torch', 'transformers', 'peft', 'numpy'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_no_registry_is_named():
    """Packages and models come from wherever the user's clients are configured to look."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], capture_output=True, text=True, cwd=ROOT
    )
    code = {".py", ".toml", ".yaml", ".yml", ".txt", ".cfg", ".sh", ".ini"}
    paths = [ROOT / name for name in listed.stdout.splitlines()]
    paths = [path for path in paths if path.is_file() and (path.suffix in code or path.name in {"Makefile", "run"})]
    assert len(paths) > 50, "this test needs a git checkout"
    # Written apart, so that this file does not name them either.
    hosts = ["pypi" + ".org", "pythonhosted" + ".org", "huggingface" + ".co", "https://" + "hf.co"]
    found = [
        f"{path.relative_to(ROOT)}: {host}"
        for path in paths
        for host in hosts
        if host in path.read_text(encoding="utf-8")
    ]
    assert not found
