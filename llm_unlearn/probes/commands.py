"""The command groups `llm-unlearn probe` and `llm-unlearn index`.

Commands import what they need when they run, so that help appears at once.
"""

from pathlib import Path
from typing import Annotated

import typer

from llm_unlearn.launch import start

app = typer.Typer(
    help="Was each fact forgotten, or does it only look so, and how does that go with its frequency?",
    no_args_is_help=True,
)
index_app = typer.Typer(help="Build an index of a corpus, in which facts are counted in seconds.", no_args_is_help=True)

_PASS_THROUGH = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

_Facts = Annotated[str | None, typer.Option(help="File of facts (JSON lines). Unset: the bundled capitals.")]
_Counts = Annotated[
    str | None,
    typer.Option(help="corpus:PATH, index:FOLDER, counts:FILE, exposures:FILE or proxy:FILE. Unset: the bundled ones."),
]
_Buckets = Annotated[str, typer.Option(help="quantiles, decades, or edges such as 10,100.")]
_TextField = Annotated[str, typer.Option("--text_field", help="Key or column with the text.")]
_Separator = Annotated[str | None, typer.Option(help="What parts documents of a plain text. Unset: blank lines.")]
_Processes = Annotated[int, typer.Option(help="Processes that work.")]
_NumProcesses = Annotated[int, typer.Option("--num_processes", help="Processes to start on this machine.")]


@app.command(context_settings=_PASS_THROUGH)
def frequency(context: typer.Context, num_processes: _NumProcesses = 1) -> None:
    """Probe facts before and after unlearning, beside their counts (`llm-unlearn probe frequency --help`)."""
    from llm_unlearn.paths import recipes_dir

    start(recipes_dir() / "probe_frequency.py", context.args, num_processes)


@app.command()
def count(
    output: Annotated[Path, typer.Option("--output", "-o", help="File for the counts; read it as counts:FILE.")],
    facts: _Facts = None,
    counts: _Counts = None,
    window: Annotated[str, typer.Option(help="Tokens between subject and object, or document.")] = "100",
    case_sensitive: Annotated[bool, typer.Option("--case_sensitive", help="Tell Turkey from turkey.")] = False,
    text_field: _TextField = "text",
    separator: _Separator = None,
    sample: Annotated[float, typer.Option(help="Share of the documents to read.")] = 1.0,
    sample_seed: Annotated[int, typer.Option("--sample_seed", help="Which documents those are.")] = 0,
    processes: _Processes = 1,
    state: Annotated[
        Path | None, typer.Option(help="File that keeps an interrupted pass; the same command goes on from it.")
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Folder with the tokenizer of an index.")] = None,
) -> None:
    """Count once how often each fact was met, and keep that for any number of probes."""
    from rich.console import Console

    from llm_unlearn.probes.counts import write_counts
    from llm_unlearn.probes.flags import FactFlags
    from llm_unlearn.probes.tables import count_cells, count_text, rich_table

    if output.is_dir():
        raise ValueError(f"{output} is a folder: name a file for the counts (`--output`).")
    how = {"text_field": text_field, "separator": separator, "sample": sample, "sample_seed": sample_seed}
    where = {"count_processes": processes, "count_state": state and str(state), "tokenizer": tokenizer}
    flags = FactFlags(facts=facts, counts=counts, window=window, case_sensitive=case_sensitive, **how, **where)
    found = flags.read_counts(flags.read_facts())
    write_counts(output, found)
    console = Console(highlight=False)
    console.print(rich_table(count_cells(found), f"Count: {found.label}", count_text(found)))
    console.print(f"Wrote {output}", soft_wrap=True, markup=False)


# Edges may be parted by spaces, as the flag of the recipe takes them; what is no edge is refused with the rule.
@app.command(context_settings={"allow_extra_args": True})
def split(
    context: typer.Context,
    output: Annotated[Path, typer.Argument(help="Folder for the data set; an older one is replaced.")],
    facts: _Facts = None,
    counts: _Counts = None,
    buckets: _Buckets = "quantiles",
    equal_size: Annotated[bool, typer.Option("--equal_size", help="Cut buckets to the size of the smallest.")] = False,
    seed: Annotated[int, typer.Option(help="Of that cut.")] = 0,
) -> None:
    """Write facts as rows to unlearn, a split per bucket: --dataset FOLDER --forget_split low --retain_split medium."""
    from llm_unlearn.probes.buckets import make_buckets
    from llm_unlearn.probes.flags import FactFlags
    from llm_unlearn.probes.rows import write_splits
    from llm_unlearn.probes.settings import ProbeSettings

    if output.is_dir() and any(path.suffix != ".jsonl" for path in output.iterdir()):
        raise ValueError(f"{output} holds other things than a data set, which would be removed: name another folder.")
    flags = FactFlags(facts=facts, counts=counts, buckets=[buckets, *context.args])
    rule = ProbeSettings(buckets=flags.bucket_rule).buckets
    known = flags.read_facts()
    found = flags.read_counts_to_forget(known)
    numbers = {fact_id: count.n_so for fact_id, count in found.counts.items()}
    made = make_buckets(numbers, rule, equal_size=equal_size, seed=seed)
    for name, rows in write_splits(output, known, found, made).items():
        typer.echo(f"{name}: {rows} rows")
    typer.echo(f"Wrote {output}")


@app.command()
def forecast(
    model: Annotated[str, typer.Option(help="The model before unlearning: hub id, model folder or PEFT folder.")],
    facts: _Facts = None,
    counts: _Counts = None,
    earlier: Annotated[
        Path | None, typer.Option(help="Folder of an earlier probe to fit on. Unset: an uncalibrated order.")
    ] = None,
    outcome: Annotated[str, typer.Option(help="Forgetting to fit on: generation or p1.")] = "generation",
    top: Annotated[int, typer.Option(help="Facts to list, the hardest first.")] = 20,
    json: Annotated[Path | None, typer.Option(help="JSON file for the whole forecast.")] = None,
    system_prompt: Annotated[
        str | None, typer.Option("--system_prompt", help="System message under a chat template. Unset: the usual one.")
    ] = None,
) -> None:
    """Order facts by how hard they will be to forget, before training, from counts and the base's confidence."""
    from rich.console import Console

    from llm_unlearn.data.tokenization import DEFAULT_SYSTEM_PROMPT, ExampleTokenizer
    from llm_unlearn.evaluation.outputs.sharding import process_state
    from llm_unlearn.files import write_json
    from llm_unlearn.models import check_source, load_model, load_tokenizer
    from llm_unlearn.probes.flags import FactFlags
    from llm_unlearn.probes.forecast import forecast_difficulty, measure_confidence
    from llm_unlearn.probes.report import load_result
    from llm_unlearn.probes.tables import rich_table

    # Everything that can be wrong is found before a model is loaded.
    if json is not None and json.is_dir():
        raise ValueError(f"{json} is a folder: name a file for `--json`.")
    check_source(model)
    flags = FactFlags(facts=facts, counts=counts)
    known = flags.read_facts()
    asked = [fact for fact in known if fact.role == "forget"]
    found = flags.read_counts_to_forget(known)
    before = None if earlier is None else load_result(earlier)
    forecast_difficulty(asked, found, dict.fromkeys((fact.id for fact in asked), 0.5), before, outcome)

    prompt = DEFAULT_SYSTEM_PROMPT if system_prompt is None else system_prompt
    tokenize = ExampleTokenizer(load_tokenizer(model), prompt)
    confidence = measure_confidence(load_model(model).to(process_state().device), tokenize, asked)
    made = forecast_difficulty(asked, found, confidence, before, outcome)
    console = Console(highlight=False)
    console.print(rich_table(made.cells(top), f"Expected difficulty, count: {made.label}", made.note))
    if json is not None:
        write_json(json, made.to_dict())
        console.print(f"Wrote {json}", soft_wrap=True, markup=False)


@app.command()
def average(
    results: Annotated[list[Path], typer.Argument(help="Folders of probes of the same facts, a seed each.")],
) -> None:
    """Average probes that differ by their seed: Fisher's z for correlations, with intervals over seeds and facts."""
    from rich.console import Console

    from llm_unlearn.probes.report import load_result
    from llm_unlearn.probes.seeds import average_over_seeds
    from llm_unlearn.probes.tables import average_cells, rich_table

    places = [path.resolve() for path in results]
    twice = [path for path, place in zip(results, places, strict=True) if places.count(place) > 1]
    if twice:
        raise ValueError(f"{twice[0]} is named more than once: name the folder of each seed once.")
    averages = average_over_seeds([load_result(path) for path in results])
    Console(highlight=False).print(rich_table(average_cells(averages), f"Averages over {len(results)} seeds"))


@app.command()
def sizes(
    results: Annotated[list[str], typer.Argument(help="PARAMETERS=FOLDER of probes, three sizes or more.")],
) -> None:
    """Change of the disagreement of probability and generation per tenfold parameters."""
    from rich.console import Console

    from llm_unlearn.probes.disagreement import rate_over_sizes
    from llm_unlearn.probes.report import load_result
    from llm_unlearn.probes.tables import rich_table, size_cells

    by_size = {}
    for result in results:
        size, _, folder = result.partition("=")
        try:
            parameters = float(size)
        except ValueError:
            parameters = 0.0
        if not parameters or not folder:
            raise ValueError(f"{result!r} is no PARAMETERS=FOLDER: write 135e6=out/probe-135m.")
        by_size[parameters] = load_result(folder)
    cells = size_cells(rate_over_sizes(by_size), by_size)
    Console(highlight=False).print(rich_table(cells, "Disagreement of probability and generation"))


@index_app.command()
def build(
    corpus: Annotated[Path, typer.Argument(help="Text, JSON lines, parquet, a data set on disk, or a folder of such.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the index; an older one is replaced.")],
    tokenizer: Annotated[Path, typer.Option(help="Folder with a tokenizer.json of at most 65,535 tokens.")],
    text_field: _TextField = "text",
    separator: _Separator = None,
    processes: _Processes = 1,
    memory: Annotated[int, typer.Option(help="GiB of memory for sorting.")] = 4,
    gap: Annotated[
        int, typer.Option(help="Separators between documents: the longest window, in tokens, that can be counted.")
    ] = 100,
) -> None:
    """Build an infini-gram index, for --counts index:FOLDER; Linux only, about 7 bytes of disk per token."""
    from llm_unlearn.probes.counts.documents import TextFormat
    from llm_unlearn.probes.counts.index_build import build_index

    record = build_index(corpus, output, tokenizer, TextFormat(text_field, separator), processes, memory, gap)
    typer.echo(f"Wrote {output}: {record['tokens']:,} tokens in {record['documents']:,} documents")
