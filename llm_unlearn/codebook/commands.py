"""The command group `llm-unlearn codes`. Commands import what they need when they run, so that help appears at once."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Look at the codes of a codebook, and delete some on request.", no_args_is_help=True)

_PASS_THROUGH = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

_Folder = Annotated[Path, typer.Argument(help="The `codebook` folder of a run.")]
_Id = Annotated[str, typer.Argument(help="Id of the request, as `llm-unlearn codes requests` shows it.")]


@app.command(context_settings=_PASS_THROUGH)
def show(context: typer.Context) -> None:
    """Show which tokens use which codes (`llm-unlearn codes show --help`), with a page to search in."""
    from llm_unlearn.codebook.actions import ShowFlags, parse, show

    show(*parse("show", ShowFlags, context.args))


@app.command()
def requests(folder: _Folder) -> None:
    """List the requests of a codebook: which are in force, and what opens the gates of gated ones."""
    from rich.console import Console

    from llm_unlearn.codebook.model import read_requests
    from llm_unlearn.codebook.tables import requests_table

    registry, _ = read_requests(folder)
    if not len(registry):
        typer.echo(f"{folder} has no requests; `llm-unlearn codes plan {folder}` shows what one would delete.")
        return
    Console(highlight=False).print(requests_table(registry))


@app.command(context_settings=_PASS_THROUGH)
def plan(context: typer.Context) -> None:
    """Show which codes a request would delete, and what that would do (`--help`); nothing is changed."""
    from llm_unlearn.codebook.actions import PlanFlags, parse, plan

    plan(*parse("plan", PlanFlags, context.args))


@app.command(context_settings=_PASS_THROUGH)
def apply(context: typer.Context) -> None:
    """Delete the codes of a request (`llm-unlearn codes apply --help`); `revoke` gives them back."""
    from llm_unlearn.codebook.actions import ApplyFlags, apply, parse

    apply(*parse("apply", ApplyFlags, context.args))


@app.command()
def revoke(folder: _Folder, request_id: _Id) -> None:
    """Give a request's codes back, except those that another active request holds."""
    from llm_unlearn.codebook.actions import revoke

    revoke(folder, request_id)


@app.command()
def purge(
    folder: _Folder,
    request_id: _Id,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; there is no way back.")] = False,
) -> None:
    """Remove the vectors of a request's codes (of a gate, its triggers') for good; the facts stay in the weights."""
    from llm_unlearn.codebook.actions import purge

    purge(folder, request_id, yes)
