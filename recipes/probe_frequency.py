# /// script
# dependencies = ["llm-unlearn[recipes,frequency]"]
# ///
r"""Probe facts before and after unlearning, and set what was forgotten against how often each fact was met.

One mixed forget set, the adapter of a run beside its base:

    accelerate launch recipes/probe_frequency.py --model BASE --adapter out/npo/adapter \
        --facts facts.jsonl --counts corpus:texts.jsonl.gz --output_dir out/probe

One run per bucket, as in arXiv:2504.05058, at the checkpoints of equal utility:

    accelerate launch recipes/probe_frequency.py --model BASE --adapter low=out/low high=out/high --match_utility

Models trained in full: `--base BASE --model UNLEARNED`, or `--base BASE --model low=ONE high=OTHER`. The base is
measured once and its measurements are kept. `OUT/probe.json`, `probe_facts.csv`, `probe.md` and `probe.html` are the
report; where OUT holds the report of a run, its page gets a section. The probe is in `llm_unlearn/probes/frequency.py`.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from common import at_a_terminal, parse_plainly

from llm_unlearn.data.tokenization import DEFAULT_SYSTEM_PROMPT
from llm_unlearn.probes.flags import ProbeFlags


@dataclass
class ProbeArguments(ProbeFlags):
    """What is compared, and where the report goes."""

    model: list[str] = field(
        default_factory=list,
        metadata={"help": "Base of --adapter; without it the unlearned model, or BUCKET=MODEL for one run per bucket."},
    )
    adapter: list[str] = field(
        default_factory=list,
        metadata={"help": "Adapter folder to put on --model, or BUCKET=FOLDER for one run per bucket."},
    )
    base: str | None = field(
        default=None,
        metadata={"help": "Model before unlearning, where --model is no adapter. Unset: without the newest adapter."},
    )
    stage: Literal["pretrained", "finetuned"] | None = field(
        default=None, metadata={"help": "What the base has learned the facts from, for the report."}
    )
    match_utility: bool = field(
        default=False,
        metadata={"help": "Of run folders, take the checkpoints that keep equally much of the facts to be retained."},
    )
    utility_level: float | None = field(
        default=None,
        metadata={"help": "Share of retained P1 to match at, up to 1. Unset: the highest that all runs came down to."},
    )
    utility_tolerance: float = field(
        default=0.02, metadata={"help": "How far from that level a matched checkpoint may be."}
    )
    output_dir: str = field(default="out/probe", metadata={"help": "Folder for the report."})
    overwrite: bool = field(default=False, metadata={"help": "Replace an earlier probe in --output_dir."})
    probe_cache: bool = field(
        default=True, metadata={"help": "Reuse measurements of a model that was probed before in the same way."}
    )
    dtype: Literal["bfloat16", "float32"] | None = field(
        default=None, metadata={"help": "Weights' dtype. Unset: float32 on CPU, bfloat16 on a GPU."}
    )
    system_prompt: str = field(
        default=DEFAULT_SYSTEM_PROMPT, metadata={"help": "System message under a chat template; empty for none."}
    )
    max_length: int = field(default=512, metadata={"help": "Longest sequence in tokens."})
    use_cpu: bool = field(default=False, metadata={"help": "Stay on the CPU where there is a GPU."})


def main() -> None:
    """Probe with the flags of the command line."""
    with at_a_terminal():
        probe(parse_plainly("probe_frequency", ProbeArguments))


def probe(args: ProbeArguments) -> None:
    """The steps: facts, counts, buckets, base, unlearned models, comparison, report."""
    from rich.console import Console

    from llm_unlearn.data.tokenization import ExampleTokenizer
    from llm_unlearn.evaluation.outputs.sharding import on_main_process, process_state
    from llm_unlearn.evaluation.report import commit, versions
    from llm_unlearn.models import load_tokenizer
    from llm_unlearn.paths import cache_dir
    from llm_unlearn.probes import tables
    from llm_unlearn.probes.frequency import FrequencyProbe
    from llm_unlearn.probes.matched import check_level
    from llm_unlearn.probes.report import FILES, save_report
    from llm_unlearn.probes.runs import Runs

    # Everything that can be wrong is found before a model is loaded.
    state = process_state()
    console = Console(quiet=not state.is_main_process, highlight=False)
    out = Path(args.output_dir)
    if (out / FILES[0]).exists() and not args.overwrite:
        raise ValueError(f"{out} already holds a probe: choose another `--output_dir`, or replace it: `--overwrite`.")
    settings = args.settings()
    check_level(args.match_utility, args.utility_level, args.utility_tolerance)
    runs = Runs.of(args.model, args.adapter, args.base, args.match_utility)
    facts = args.read_facts()
    # A corpus is counted once, not by every process.
    counts = on_main_process(lambda: args.read_counts_to_forget(facts))
    tokenize = ExampleTokenizer(load_tokenizer(runs.base), args.system_prompt, args.max_length)
    prober = FrequencyProbe(facts, counts, tokenize, settings)
    runs.check(prober)

    cache = cache_dir() / "probes" if args.probe_cache else None
    matched_at = {"level": args.utility_level, "tolerance": args.utility_tolerance}
    measured = runs.measure(prober, lambda source: _load(args, source, state.device), cache, **matched_at)
    told = {"facts": args.described(facts), "commit": commit(), "versions": versions()}
    result = prober.compare(
        measured.before, measured.after, stage=args.stage, provenance={**measured.provenance, **told}
    )
    if state.is_main_process:
        save_report(result, out)
        console.print(tables.rich_table(tables.association_cells(result), f"Forgetting and count: {result.label}"))
        console.print(tables.rich_table(tables.brief_bucket_cells(result), "Buckets"))
        title = "Facts that are gone"
        console.print(tables.rich_table(tables.disagreement_cells(result), title, tables.disagreement_text(result)))
        for note in [*result.warnings, *tables.gate_notes(result.gates)]:
            console.print(f"Note: {note}", soft_wrap=True, markup=False)
        console.print(f"Wrote {', '.join(str(out / name) for name in FILES)}", soft_wrap=True, markup=False)


def _load(args: ProbeArguments, source: str, device: Any) -> Any:
    import torch

    from llm_unlearn.models import load_model

    dtype = None if args.dtype is None else getattr(torch, args.dtype)
    return load_model(source, dtype).to("cpu" if args.use_cpu else device)


if __name__ == "__main__":
    main()
