r"""What a model can still do in general: tasks of lm-evaluation-harness on a base, adapter or merged model.

A run's adapter beside the model it was trained on, which is the same model with the adapter switched off:

    python eval/lm_harness.py --model out/npo-forget10/adapter --compare_base --tasks arc_easy,hellaswag --limit 200

A merged model is evaluated like any other: `--model out/merged`. Tasks of your own are YAML files in the form of
lm-evaluation-harness; with local data they need no hub:

    python eval/lm_harness.py --model out/merged --include_path my_tasks --tasks my_task

Several processes share the documents: `accelerate launch eval/lm_harness.py ...` on GPUs, and on a CPU
`ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 eval/lm_harness.py ...`.
"""

import logging
import math
import sys
import time
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from transformers import HfArgumentParser

from llm_unlearn.quiet import quiet_upstream
from llm_unlearn.suggest import unknown

SCHEMA = "llm-unlearn/lm-harness/1"

# Rows of a batch on a CPU, where no shortage of memory tells how many fit.
_CPU_BATCH_SIZE = 16


@dataclass
class HarnessArguments:
    """What to evaluate, on which tasks, and where the results go."""

    model: str = field(metadata={"help": "Hub id, model folder, or PEFT folder such as the `adapter` of a run."})
    tasks: str = field(metadata={"help": "Tasks, groups or tags of lm-evaluation-harness, separated by commas."})
    output_dir: str = field(
        default="out/lm_harness", metadata={"help": "Folder for lm_harness.json and lm_harness.md."}
    )
    include_path: str | None = field(
        default=None,
        metadata={"help": "Folder with YAML tasks of your own. Their `!function` entries are code and run."},
    )
    compare_base: bool = field(
        default=False, metadata={"help": "Evaluate a PEFT folder's base too: the same model, its adapter switched off."}
    )
    limit: float | None = field(
        default=None, metadata={"help": "Documents per task, from the first; below 1 a share of them. Unset: all."}
    )
    num_fewshot: int | None = field(default=None, metadata={"help": "Examples in a prompt. Unset: the task's own."})
    batch_size: str = field(
        default="auto", metadata={"help": "Rows of a batch. auto: the most that fit on a GPU, 16 on a CPU."}
    )
    apply_chat_template: bool = field(default=False, metadata={"help": "Put prompts into the tokenizer's template."})
    dtype: Literal["bfloat16", "float32"] | None = field(
        default=None, metadata={"help": "Weights' dtype. Unset: float32 on CPU, bfloat16 on a GPU."}
    )

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit <= 0:
            raise ValueError(f"`--limit` is {self.limit:g}; give the documents per task, or a share of them below 1.")
        if self.num_fewshot is not None and self.num_fewshot < 0:
            raise ValueError(f"`--num_fewshot` is {self.num_fewshot}; it must be at least 0.")
        if self.batch_size != "auto" and not (self.batch_size.isdecimal() and int(self.batch_size)):
            raise ValueError(f"`--batch_size` is {self.batch_size!r}; give a number of rows, or auto.")


def main() -> None:
    """Parse the flags and evaluate; a user's mistake ends in one sentence."""
    quiet_upstream()
    try:
        evaluate(*HfArgumentParser(HarnessArguments, allow_abbrev=False).parse_args_into_dataclasses())
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        if sys.flags.dev_mode:
            raise
        sys.exit(f"error: {error}")


def evaluate(args: HarnessArguments) -> None:
    """Tasks, model, answers with and without the adapter, table and files."""
    try:
        import lm_eval
    except ModuleNotFoundError as error:
        raise ImportError(
            f"General ability needs {error.name}: install it with `pip install 'llm-unlearn[lm-eval]'`."
        ) from error
    import torch
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env
    from rich.console import Console

    from llm_unlearn.adapters import without_newest_adapter
    from llm_unlearn.evaluation.report import versions
    from llm_unlearn.files import write_json, write_text
    from llm_unlearn.models import adapter_layers, check_source, fingerprint, load_model, load_tokenizer

    check_source(args.model)
    layers = adapter_layers(args.model)
    if args.compare_base and not layers:
        raise ValueError(
            f"`--compare_base` switches an adapter off, and {args.model} is no PEFT folder: drop it, or give the "
            "`adapter` folder of a run."
        )
    tasks = [name.strip() for name in args.tasks.split(",") if name.strip()]
    manager = find_tasks(tasks, args.include_path)

    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    tokenizer = load_tokenizer(args.model)
    if args.apply_chat_template and not tokenizer.chat_template:
        raise ValueError(f"The tokenizer of {args.model} has no chat template: drop `--apply_chat_template`.")
    model = load_model(args.model, None if args.dtype is None else getattr(torch, args.dtype)).to(state.device)
    harness = wrap(model, tokenizer, args.batch_size, state)

    def answer() -> list[dict[str, Any]] | None:
        results = lm_eval.simple_evaluate(
            harness,
            tasks=tasks,
            task_manager=manager,
            num_fewshot=args.num_fewshot,
            limit=args.limit,
            apply_chat_template=args.apply_chat_template,
            log_samples=False,
        )
        return rows_of(results) if state.is_main_process else None

    started = time.perf_counter()
    rows, base_rows = answer(), None
    if args.compare_base:
        with without_newest_adapter(model):
            base_rows = answer()
    if not state.is_main_process:
        return
    rows = beside(rows, base_rows)
    record = {
        "schema": SCHEMA,
        "results": rows,
        "provenance": {
            **asdict(args),
            "kind": "adapter" if layers else "model",
            "base": layers[:-1],
            "fingerprint": fingerprint(model),
            "device": str(state.device),
            "precision": str(model.dtype).removeprefix("torch."),
            "num_processes": state.num_processes,
            "wall_seconds": round(time.perf_counter() - started, 3),
            "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "versions": {**versions(), "lm-eval": metadata.version("lm-eval")},
        },
    }
    cells = table(rows, record["provenance"]["kind"], args.compare_base)
    out = Path(args.output_dir)
    write_json(out / "lm_harness.json", record)
    write_text(out / "lm_harness.md", as_markdown(cells, args))
    console = Console()
    console.print(as_rich(cells))
    console.print(f"Wrote {out}/lm_harness.json", soft_wrap=True)


# Tasks and model, as lm-evaluation-harness wants them.


def find_tasks(names: list[str], include_path: str | None) -> Any:
    """The `TaskManager` that knows all tasks in `names`, whose data are then at hand.

    Raises:
        ValueError: there is no such task, or a task that cannot be prepared.
    """
    from lm_eval.tasks import TaskManager

    if not names:
        raise ValueError("`--tasks` names no task: give some, as in `--tasks arc_easy,hellaswag`.")
    if include_path is not None and not Path(include_path).is_dir():
        raise ValueError(f"`--include_path` is {include_path}, which is no folder: give one with YAML files of tasks.")
    manager = TaskManager(include_path=include_path, include_defaults=False)
    if not set(names) <= set(manager.all_tasks):
        # Reading its own 14,000 tasks takes lm-eval more than ten seconds.
        manager = TaskManager(include_path=include_path)
    for name in names:
        if name not in manager.all_tasks:
            note = " A YAML file in `--include_path` that cannot be read does not count." if include_path else ""
            raise ValueError(unknown("task (`--tasks`)", name, manager.all_tasks) + note)
    for name in names:
        try:
            manager.load([name])
        except Exception as error:  # a task is somebody's YAML, Jinja and code, and its data may be anywhere
            reason = " ".join(f"{error} {error.__cause__ or ''}".split())[:300]
            raise ValueError(
                f"The task {name!r} could not be prepared ({type(error).__name__}: {reason}): check its file and, "
                "where its data are on a hub, the connection."
            ) from error
    return manager


def wrap(model: Any, tokenizer: Any, batch_size: str, state: Any) -> Any:
    """The model as lm-evaluation-harness knows it, each process with its share of the documents."""
    from accelerate import Accelerator
    from lm_eval.models.huggingface import HFLM

    # Two lines on every start, to those who would launch several processes with a model that was loaded before.
    logging.getLogger("lm_eval.models.huggingface").addFilter(
        lambda record: not record.getMessage().startswith(("`pretrained` model kwarg", "Passed an already-initialized"))
    )
    if batch_size == "auto" and state.device.type == "cpu":
        batch_size = str(_CPU_BATCH_SIZE)
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    if state.num_processes > 1:
        # lm-eval takes a model that was loaded before for the only one, unless told otherwise.
        harness.accelerator = Accelerator()
        harness._rank, harness._world_size = state.process_index, state.num_processes
    return harness


# Results.


def rows_of(results: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per task, metric and filter; a value or error that is not a finite number is None."""
    rows = []
    for task, metrics in results["results"].items():
        for key, value in metrics.items():
            metric, comma, filtered = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            rows.append(
                {
                    "task": task,
                    "metric": metric if filtered == "none" else f"{metric} ({filtered})",
                    "value": _finite(value),
                    "stderr": _finite(metrics.get(f"{metric}_stderr,{filtered}")),
                    "n": metrics.get("sample_len"),
                    "higher_is_better": (results["higher_is_better"].get(task) or {}).get(metric),
                    "num_fewshot": results["n-shot"].get(task),
                    "version": results["versions"].get(task),
                }
            )
    return rows


def beside(rows: list[dict[str, Any]], base_rows: list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    """The rows with `base` (value and stderr) and `difference`, value minus base; None where there is no base."""
    merged = []
    for row, base in zip(rows, base_rows or [None] * len(rows), strict=True):
        known = base is not None and None not in (row["value"], base["value"])
        merged.append(
            {
                **row,
                "base": base and {"value": base["value"], "stderr": base["stderr"]},
                "difference": row["value"] - base["value"] if known else None,
            }
        )
    return merged


def table(rows: list[dict[str, Any]], kind: str, compared: bool) -> list[list[str]]:
    """Header and rows as text: task, metric, value ± standard error, n; base and difference where compared."""
    header = ["task", "metric", *(["base"] if compared else []), kind, *(["difference"] if compared else []), "n"]
    cells = []
    for row in rows:
        name = f"{row['metric']} {({True: '↑', False: '↓'}).get(row['higher_is_better'], '')}".rstrip()
        difference = "–" if row["difference"] is None else f"{row['difference']:+.4f}"
        base = [_number(row["base"])] if compared else []
        cells.append(
            [row["task"], name, *base, _number(row), *([difference] if compared else []), str(row["n"] or "–")]
        )
    return [header, *cells]


def as_rich(cells: list[list[str]]) -> Any:
    """The table for the terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    header, *rows = cells
    shown = Table(title="General ability", box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in header:
        shown.add_column(column, justify="left" if column in ("task", "metric") else "right", overflow="fold")
    for row in rows:
        shown.add_row(*row)
    return shown


def as_markdown(cells: list[list[str]], args: HarnessArguments) -> str:
    """The table as a page, with what it says about."""
    header, *rows = cells
    marks = ["---" if column in ("task", "metric") else "---:" for column in header]
    lines = ["| " + " | ".join(row) + " |" for row in (header, marks, *rows)]
    shots = "as the tasks say" if args.num_fewshot is None else str(args.num_fewshot)
    template = "with" if args.apply_chat_template else "without"
    limit = "all documents" if args.limit is None else f"`--limit {args.limit:g}`"
    note = (
        f"{Path(args.model).name} on tasks of lm-evaluation-harness: {limit}, {template} chat template, examples in a "
        f"prompt: {shots}. Value ± standard error; ↑ higher is better, ↓ lower is better."
    )
    return "\n".join(["# General ability", "", note, "", *lines, ""])


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _number(cell: dict[str, Any]) -> str:
    if cell["value"] is None:
        return "–"
    return f"{cell['value']:.4f}" if cell["stderr"] is None else f"{cell['value']:.4f} ± {cell['stderr']:.4f}"


if __name__ == "__main__":
    main()
