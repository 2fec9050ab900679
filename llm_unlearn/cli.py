"""The command line: `llm-unlearn`. Commands import what they need when they run, so that help appears at once."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from llm_unlearn.codebook.commands import app as codes_app
from llm_unlearn.launch import start
from llm_unlearn.probes.commands import app as probe_app
from llm_unlearn.probes.commands import index_app
from llm_unlearn.quiet import quiet_upstream

app = typer.Typer(
    help="Make a language model forget on request, and measure what was forgotten and what was kept.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Make or fetch data sets.", no_args_is_help=True)
app.add_typer(data_app, name="data")
report_app = typer.Typer(help="Show and compare the reports of evaluations.", no_args_is_help=True)
app.add_typer(report_app, name="report")
app.add_typer(codes_app, name="codes")
app.add_typer(probe_app, name="probe")
app.add_typer(index_app, name="index")


def main() -> None:
    """Entry point: a user's mistake ends in one sentence and exit code 1; PYTHONDEVMODE=1 shows where it was found."""
    quiet_upstream()
    try:
        app()
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        if sys.flags.dev_mode:
            raise
        sys.exit(f"error: {error}")


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from llm_unlearn.version import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.command()
def ls() -> None:
    """List methods, recipes and presets."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from llm_unlearn.methods import METHODS
    from llm_unlearn.paths import recipes_dir

    table = Table("method", "what it does", "needs", "arXiv", box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in (0, 3):
        table.columns[column].no_wrap = True
    for name, method in METHODS.items():
        table.add_row(name, method.title, method.needs, method.paper)
    console = Console(soft_wrap=True, highlight=False)
    console.print(table, soft_wrap=False)
    recipes = recipes_dir()
    presets = sorted(path.stem for path in (recipes / "configs").glob("*.yaml"))
    console.print(f"\nStart one: llm-unlearn run METHOD, or accelerate launch {recipes}/METHOD.py; finetune,")
    console.print("codeunlearn and codeunlearn_forget (a codebook bottleneck, arXiv 2410.10866) too; probe_frequency")
    console.print("and probe_world measure what frequency has to do with it (arXiv 2504.05058).")
    console.print(f"Presets for --config: {', '.join(presets)}.")


# Flags of a script pass through, its `--help` too.
_PASS_THROUGH = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
_NumProcesses = Annotated[int, typer.Option("--num_processes", help="Processes to start on this machine.")]


@app.command(context_settings=_PASS_THROUGH)
def run(
    context: typer.Context,
    method: Annotated[str, typer.Argument(help="A method or another recipe of `llm-unlearn ls`.")],
    num_processes: _NumProcesses = 1,
) -> None:
    """Run a recipe; all further flags are the recipe's (`llm-unlearn run npo --help`)."""
    from llm_unlearn.methods import METHODS
    from llm_unlearn.paths import recipes_dir
    from llm_unlearn.suggest import unknown

    if method in ("-h", "--help"):
        typer.echo(context.get_help())
        raise typer.Exit
    others = ("finetune", "codeunlearn", "codeunlearn_forget", "probe_frequency", "probe_world")
    if method not in (*METHODS, *others):
        raise ValueError(unknown("method", method, (*METHODS, *others)))
    start(recipes_dir() / f"{method}.py", context.args, num_processes)


@app.command("eval", context_settings=_PASS_THROUGH)
def evaluate(context: typer.Context, num_processes: _NumProcesses = 1) -> None:
    """Evaluate a model or adapter on the sets of TOFU; flags of eval/tofu.py (`llm-unlearn eval --help`)."""
    from llm_unlearn.paths import eval_dir

    start(eval_dir() / "tofu.py", context.args, num_processes)


@app.command(context_settings=_PASS_THROUGH)
def pairs(context: typer.Context) -> None:
    """Show which rows are most like the rows to forget (`llm-unlearn pairs --help`); nothing is trained."""
    from llm_unlearn.pairs import main

    main(context.args)


@app.command()
def env() -> None:
    """Print versions and devices, to paste into an issue."""
    from llm_unlearn.environment import describe_environment

    for name, value in describe_environment().items():
        typer.echo(f"{name}: {value}")


@app.command()
def testbed(
    forget_split: Annotated[
        str, typer.Option("--forget_split", help="Forget split whose twin is wanted.")
    ] = "forget10",
    rebuild: Annotated[bool, typer.Option(help="Build target and twin anew and compare with what is there.")] = False,
) -> None:
    """Show where the embedded default lies; build it if needed."""
    from llm_unlearn import testbed as bed

    there = bed.testbed(forget_split)
    for name in ("target", "retain", "reference"):
        typer.echo(f"{name}: {getattr(there, name)}")
    if rebuild:
        typer.echo(bed.compare_rebuild(forget_split))


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="The `adapter` or `codebook` folder of a run.")],
    repo_id: Annotated[str, typer.Argument(help="Where to: USER/NAME on the hub.")],
    private: Annotated[bool, typer.Option(help="Create the repository as private.")] = False,
) -> None:
    """Push an adapter or codebook folder with its model card to the Hugging Face Hub."""
    from llm_unlearn.hub import push_folder

    typer.echo(push_folder(folder, repo_id, private=private))


@app.command()
def merge(
    adapter: Annotated[Path, typer.Argument(help="The `adapter` folder of a run.")],
    output: Annotated[Path, typer.Argument(help="New folder for the merged model.")],
    dtype: Annotated[str, typer.Option(help="Precision to merge and write in: float32 or bfloat16.")] = "float32",
) -> None:
    """Fold an adapter into its base and write a plain model. This cannot be revoked; the adapter folder stays."""
    if output.exists():
        raise ValueError(f"{output} exists and would be replaced: name a new folder.")
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"`--dtype` is {dtype!r}; give float32 or bfloat16.")
    import torch

    from llm_unlearn.adapters import merge_adapter
    from llm_unlearn.models import load_model, load_tokenizer

    merge_adapter(load_model(adapter, getattr(torch, dtype)), output, load_tokenizer(adapter))
    typer.echo(f"Wrote {output}")


@data_app.command("make")
def data_make(
    output: Annotated[Path, typer.Argument(help="Folder for the new world.")] = Path("world"),
    authors: Annotated[int, typer.Option(help="Number of authors.")] = 40,
    seed: Annotated[int, typer.Option(help="Another seed gives another world.")] = 0,
    exposures: Annotated[str, typer.Option(help="How often facts are stated, per author in turn: 1,2,4.")] = "1",
) -> None:
    """Write a generated world in TOFU's format."""
    from llm_unlearn.data.world import make_world, write_world

    try:
        counts = tuple(int(count) for count in exposures.split(","))
    except ValueError:
        raise ValueError(f"`--exposures` is {exposures!r}; give whole numbers such as 1,2,4.") from None
    world = make_world(authors=authors, seed=seed, exposures=counts)
    write_world(world, output)
    typer.echo(f"Wrote {len(world.configs)} configs with {len(world.configs['full'])} rows in `full` to {output}")


@data_app.command("get")
def data_get(
    name: Annotated[str, typer.Argument(help="Data set to fetch: tofu.")],
    output: Annotated[Path, typer.Argument(help="Folder for the files.")] = Path("tofu"),
    source: Annotated[str, typer.Option(help="Hub id or a folder that already has the files.")] = "locuslab/TOFU",
) -> None:
    """Fetch the real TOFU into a folder and verify rows, order and checksums."""
    from llm_unlearn.data.tofu import get_tofu
    from llm_unlearn.suggest import unknown

    if name != "tofu":
        raise ValueError(unknown("data set", name, ["tofu"]))
    findings = get_tofu(output, source)
    for finding in findings:
        typer.echo(finding)
    typer.echo(f"Wrote and verified {output}")


@report_app.command("compare")
def report_compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of two or more runs, or their report.json.")],
    output_dir: Annotated[
        Path | None, typer.Option("--output_dir", help="Where to write comparison.md and comparison.html.")
    ] = None,
) -> None:
    """Put runs side by side: every metric with its target, the best marked."""
    from rich.console import Console

    from llm_unlearn.evaluation.comparison import compare, load_runs

    comparison = compare(load_runs(runs))
    Console(highlight=False).print(comparison.table())
    if output_dir is not None:
        from llm_unlearn.evaluation.html import comparison_page
        from llm_unlearn.files import write_text

        write_text(output_dir / "comparison.md", comparison.to_markdown())
        write_text(output_dir / "comparison.html", comparison_page(comparison))
        typer.echo(f"Wrote {output_dir}/comparison.md and {output_dir}/comparison.html")


@report_app.command("html")
def report_html(run: Annotated[Path, typer.Argument(help="Folder of a run, or its report.json.")]) -> None:
    """Write report.html beside the report.json of a run. It shows questions and answers: keep it with the run."""
    from llm_unlearn.evaluation.html import page
    from llm_unlearn.evaluation.report import EvalReport
    from llm_unlearn.files import write_text
    from llm_unlearn.probes.page import sections_of

    folder = run if run.is_dir() else run.parent
    target = folder / "report.html"
    write_text(target, page(EvalReport.load(run), sections_of(folder)))
    typer.echo(f"Wrote {target}")
