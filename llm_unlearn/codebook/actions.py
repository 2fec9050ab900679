"""What the commands of `llm-unlearn codes` do: their flags, and the way from a codebook folder back to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, get_args

from transformers import HfArgumentParser

from llm_unlearn.codebook.flags import PlanningFlags, StrengthFlags
from llm_unlearn.data.tokenization import DEFAULT_SYSTEM_PROMPT
from llm_unlearn.flags import DataFlags

if TYPE_CHECKING:
    from llm_unlearn.codebook.model import CodebookModel
    from llm_unlearn.codebook.registry import DeletionRecord, DeletionRegistry
    from llm_unlearn.codebook.unlearner import CodeUnlearner, DeletionPlan
    from llm_unlearn.data.tokenization import ExampleTokenizer

Flags = TypeVar("Flags")

_IN_TERMINAL, _ON_PAGE = 20, 500
"""Codes listed."""


@dataclass
class TextFlags(DataFlags):
    """Which texts are read, and how."""

    system_prompt: str = field(
        default=DEFAULT_SYSTEM_PROMPT, metadata={"help": "System message under a chat template; empty for none."}
    )
    max_length: int = field(default=512, metadata={"help": "Longest sequence in tokens."})


@dataclass
class ShowFlags(TextFlags):
    """What is shown of which codes."""

    target: str = field(default="forget10", metadata={"help": "Split on a subject; rows as in forget10[0:20]."})
    control: str = field(default="retain90", metadata={"help": "Split to compare with."})
    codes: str | None = field(
        default=None, metadata={"help": "Numbers of codes, such as 3,17. Unset: all that are in use or deleted."}
    )
    top: int | None = field(
        default=None,
        metadata={"help": "List this many, of largest enrichment. Unset: 20 in the terminal, 500 in files."},
    )
    html: str | None = field(default=None, metadata={"help": "File for a page to search in; it quotes the texts."})
    json: str | None = field(default=None, metadata={"help": "JSON file for the same; it quotes the texts, too."})


@dataclass
class RequestFlags(PlanningFlags, TextFlags):
    """What is to be forgotten, what is to be kept, and how codes are chosen."""

    forget_split: str = field(default="forget10", metadata={"help": "Split to forget; rows as in forget10[0:20]."})
    retain_split: str = field(default="retain90", metadata={"help": "Split to keep; rows as in retain90[0:160]."})
    request: str | None = field(
        default=None, metadata={"help": "KnowledgeRequest file; its exemplars are what is to be forgotten."}
    )


@dataclass
class PlanFlags(RequestFlags):
    """What is shown of a plan."""

    top: int = field(default=_IN_TERMINAL, metadata={"help": "Codes to list, of largest enrichment."})
    sweep: bool = field(
        default=False, metadata={"help": "Measure what each strength would do in each mode, beside random codes."}
    )
    plot: str | None = field(default=None, metadata={"help": "SVG file for the curve of a sweep, which it asks for."})


@dataclass
class ApplyFlags(StrengthFlags, RequestFlags):
    """What is deleted, how, and how strongly."""


def parse(verb: str, flags: type[Flags], arguments: list[str]) -> tuple[Path, Flags]:
    """The codebook folder and the flags of a command.

    Raises:
        ValueError: an argument is missing, unknown, or of another kind.
    """

    def refuse(message: str) -> None:
        raise ValueError(f"{message}: `llm-unlearn codes {verb} --help` lists all flags.")

    parser = HfArgumentParser(flags, prog=f"llm-unlearn codes {verb}", allow_abbrev=False)
    parser.add_argument("folder", type=Path, help="The `codebook` folder of a run.")
    parser.error = refuse
    parsed, others = parser.parse_args_into_dataclasses(arguments)
    return others.folder, parsed


def show(folder: Path, args: ShowFlags) -> None:
    """`llm-unlearn codes show`, after its flags are read."""
    from rich.console import Console

    from llm_unlearn.codebook.config import CodebookConfig
    from llm_unlearn.codebook.inspection import inspect_codes
    from llm_unlearn.codebook.page import codes_page
    from llm_unlearn.codebook.tables import codes_table
    from llm_unlearn.data.sources import load_rows
    from llm_unlearn.data.tofu import source_or_bundled
    from llm_unlearn.files import write_json, write_text

    # Everything that can be wrong is found before a model is loaded.
    codes = _numbers(args.codes)
    _require_some(args.top)
    _require_files(html=args.html, json=args.json)
    CodebookConfig.load(folder)
    place = source_or_bundled(args.dataset)
    target, control = (load_rows(split, place, args.columns) for split in (args.target, args.control))
    codebook, tokenize = _load(folder, args)
    inspection = inspect_codes(codebook, target, control, tokenize, codes=codes, top=args.top or _ON_PAGE)
    console = Console(highlight=False)
    console.print(codes_table(inspection, len(codes) or args.top or _IN_TERMINAL))
    if args.html:
        write_text(args.html, codes_page(inspection, args.target, args.control))
        console.print(f"Wrote {args.html}", soft_wrap=True)
    if args.json:
        write_json(args.json, {"target": args.target, "control": args.control, **asdict(inspection)})
        console.print(f"Wrote {args.json}", soft_wrap=True)


def plan(folder: Path, args: PlanFlags) -> None:
    """`llm-unlearn codes plan`, after its flags are read."""
    from rich.console import Console

    from llm_unlearn.codebook.plot import trade_off
    from llm_unlearn.codebook.registry import Mode
    from llm_unlearn.codebook.tables import curve_table, gate_line, plan_line, plan_table
    from llm_unlearn.evaluation.html import svg_file
    from llm_unlearn.files import write_text

    _require_some(args.top)
    _require_files(plot=args.plot)
    if args.plot and Path(args.plot).suffix != ".svg":
        raise ValueError(f"`--plot` is {args.plot!r}, but plots are drawn as SVG: name a file that ends in .svg.")
    unlearner, made = _plan(folder, args)
    console = Console(highlight=False)
    console.print(plan_table(made, args.top))
    console.print(plan_line(made), soft_wrap=True)
    console.print(gate_line(made), soft_wrap=True)
    if args.sweep or args.plot:
        modes = [mode for mode in get_args(Mode) if mode != "gated" or not made.gate.objection]
        made = unlearner.sweep(made, modes)
        console.print(curve_table(made))
    if args.plot:
        write_text(args.plot, svg_file(trade_off(made.curve)))
        console.print(f"Wrote {args.plot}", soft_wrap=True)
    console.print("Nothing was changed; `llm-unlearn codes apply` takes the same flags.", soft_wrap=True)


def apply(folder: Path, args: ApplyFlags) -> None:
    """`llm-unlearn codes apply`, after its flags are read."""
    from rich.console import Console

    from llm_unlearn.codebook.tables import curve_table

    strength = args.level()
    unlearner, made = _plan(folder, args)
    console = Console(highlight=False)
    if strength == "auto":
        made = unlearner.sweep(made, (args.mode,), random_control=False)
        console.print(curve_table(made))
    request_id = args.apply(unlearner, made)
    unlearner.codebook.save_requests(folder)
    record = unlearner.codebook.registry[request_id]
    console.print(
        f"Request {request_id!r} deletes {len(record.codes)} codes (mode {args.mode}, level "
        f"{record.grounds['strength']}); `llm-unlearn codes revoke {folder} {request_id}` gives them back.",
        soft_wrap=True,
    )


def revoke(folder: Path, request_id: str) -> None:
    """`llm-unlearn codes revoke`: as `CodeUnlearner.revoke`, on the folder's requests alone."""
    from rich.console import Console

    from llm_unlearn.codebook.model import read_requests

    registry, weights = read_requests(folder)
    _record(registry, request_id)
    registry.set_status(request_id, "revoked")
    registry.save(folder, weights)
    Console(highlight=False).print(f"Request {request_id!r} is revoked.", soft_wrap=True)


def purge(folder: Path, request_id: str, yes: bool) -> None:
    """`llm-unlearn codes purge`: as `CodeUnlearner.purge`; the folder is replaced as a whole.

    Raises:
        ValueError: not confirmed, no such request, or it cannot be purged.
    """
    from rich.console import Console

    from llm_unlearn.codebook.model import CodebookModel, read_requests, require_purgeable

    registry, _ = read_requests(folder)
    record = _record(registry, request_id)
    require_purgeable(registry, request_id)
    is_gate = record.mode == "gated"
    vectors = f"the vectors of {len(record.erasable)} {'triggers' if is_gate else 'codes'}"
    if not yes:
        stays = f", and its gate would stay in force and ablate {len(record.codes)} codes" if is_gate else ""
        raise ValueError(
            f"Purging {request_id!r} would remove {vectors} from {folder} for good{stays}: add `--yes` to do it."
        )
    codebook = CodebookModel.load(folder)
    codebook.purge(request_id)
    card = folder / "README.md"
    codebook.save_pretrained(folder, card.read_text(encoding="utf-8") if card.is_file() else None)
    stays = f" Its gate stays in force and ablates {len(record.codes)} codes." if is_gate else ""
    Console(highlight=False).print(
        f"Request {request_id!r} is purged: {vectors} are gone from {folder}.{stays}", soft_wrap=True
    )


def _plan(folder: Path, args: RequestFlags) -> tuple[CodeUnlearner, DeletionPlan]:
    from llm_unlearn.codebook.config import CodebookConfig
    from llm_unlearn.codebook.unlearner import CodeUnlearner
    from llm_unlearn.requests import KnowledgeRequest
    from llm_unlearn.run import load_data

    # Everything that can be wrong is found before a model is loaded.
    CodebookConfig.load(folder)
    request = KnowledgeRequest.load(args.request) if args.request else None
    data = load_data(args.dataset, args.forget_split, args.retain_split, args.columns, request)
    control = args.control_rows(args.dataset, args.columns)
    codebook, tokenize = _load(folder, args)
    unlearner = CodeUnlearner(codebook, tokenize)
    return unlearner, args.plan(unlearner, request or list(data.forget), data.retain, control, args.forget_split)


def _load(folder: Path, args: TextFlags) -> tuple[CodebookModel, ExampleTokenizer]:
    """The model on the device of this process; a quantised one was put there as it was loaded, and cannot be moved."""
    from llm_unlearn.codebook.model import CodebookModel
    from llm_unlearn.data.tokenization import ExampleTokenizer
    from llm_unlearn.evaluation.outputs.sharding import process_state
    from llm_unlearn.models import load_tokenizer

    tokenize = ExampleTokenizer(load_tokenizer(folder), args.system_prompt, args.max_length)
    codebook = CodebookModel.load(folder)
    if not (codebook.config.base or {}).get("quantization"):
        codebook.to(process_state().device)
    return codebook, tokenize


def _numbers(codes: str | None) -> Sequence[int]:
    try:
        return [int(code) for code in codes.split(",")] if codes else []
    except ValueError:
        raise ValueError(f"`--codes` is {codes!r}; give whole numbers such as 3,17.") from None


def _require_some(top: int | None) -> None:
    if top is not None and top < 1:
        raise ValueError(f"`--top` is {top}; list at least 1 code.")


def _require_files(**outputs: str | None) -> None:
    for flag, path in outputs.items():
        if path and Path(path).is_dir():
            raise ValueError(f"{path} is a folder: name a file for `--{flag}`.")


def _record(registry: DeletionRegistry, request_id: str) -> DeletionRecord:
    try:
        return registry[request_id]
    except KeyError as error:
        raise ValueError(error.args[0]) from None
