"""The parts of one unlearning run that are neither training nor measuring: its folder, its data, its record."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from llm_unlearn.adapters import (
    RECORD_NAME,
    RECORD_SCHEMA,
    TRAINED_ADAPTER,
    require_finite,
    save_adapter,
    without_newest_adapter,
)
from llm_unlearn.card import model_card
from llm_unlearn.config import UnlearningConfig
from llm_unlearn.data.sources import list_splits, load_rows
from llm_unlearn.data.tofu import check_disjoint, source_or_bundled
from llm_unlearn.data.tokenization import ExampleTokenizer
from llm_unlearn.evaluation.cache import evaluate_once
from llm_unlearn.evaluation.evaluator import Evaluator, Judge
from llm_unlearn.evaluation.outputs.sharding import process_state
from llm_unlearn.evaluation.report import EvalReport, versions
from llm_unlearn.evaluation.suites import SuiteSettings, tofu_evaluator
from llm_unlearn.files import replace_folder, write_json
from llm_unlearn.flags import EvaluationFlags
from llm_unlearn.models import ADAPTER_CONFIG, identity, load_model
from llm_unlearn.paths import data_dir
from llm_unlearn.refinement.config import RefinementConfig
from llm_unlearn.refinement.plan import RefinementPlan
from llm_unlearn.requests import KnowledgeRequest

if TYPE_CHECKING:
    from llm_unlearn.testbed import Testbed
    from llm_unlearn.trainer import UnlearningTrainer

_RUN_FILES = ("adapter", "model", "codebook", "best", "report.json", "report.md", "report.html", "log.jsonl",
              "refinement.jsonl", "request.json", "curve.svg", "drop.json", "drop.md",
              "translations.jsonl")  # fmt: skip


@dataclass(frozen=True)
class RunData:
    """The rows of a run.

    Attributes:
        source: where the data set lies; None for the bundled one.
        forget_split, retain_split: their names, with the rows taken.
        forget, retain: the rows; `retain` is None for a run without a retain term.
        columns: which column of the data set plays which role, see `load_rows`.
    """

    source: str | None
    forget_split: str
    retain_split: str | None
    forget: Dataset
    retain: Dataset | None
    columns: Mapping[str, str] = field(default_factory=dict)


def check_output(out: Path, resume: str | None, overwrite: bool, model: str | None = None) -> str | None:
    """Check the output folder, and find the checkpoint to resume from.

    Args:
        out: the run's folder.
        resume: None for a new run, "true" for the last checkpoint in `out`, or a checkpoint folder.
        overwrite: whether an earlier run in `out` may be removed, which is left to `remove_earlier`.
        model: what the run starts from, which must not be removed with it; None for the embedded default.

    Raises:
        ValueError: `out` is a file, or holds another run or the model to be replaced, or there is nothing to resume.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file: choose another `--output_dir`.")
    if model and overwrite and Path(model).resolve().is_relative_to(out.resolve()):
        raise ValueError(f"`--overwrite` would remove {model}, the model itself: choose another `--output_dir`.")
    if resume is not None:
        found = _checkpoints(out) if resume.lower() in ("true", "last") else [Path(resume)]
        # A run killed while it wrote a checkpoint leaves one without its last file; the one before is whole.
        whole = [checkpoint for checkpoint in found if (checkpoint / TRAINER_STATE_NAME).is_file()]
        if not whole:
            raise ValueError(f"{out} has no checkpoint to resume from: start without `--resume_from_checkpoint`.")
        return str(whole[-1])
    earlier = _earlier(out)
    if earlier and not overwrite:
        raise ValueError(
            f"{out} already holds a run ({earlier[0].name}): choose another `--output_dir`, continue it with "
            "`--resume_from_checkpoint true`, or replace it with `--overwrite`."
        )
    return None


def remove_earlier(out: Path) -> None:
    """Remove what an earlier run left in `out`, and nothing else."""
    for path in _earlier(out):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _earlier(out: Path) -> list[Path]:
    return [*(out / name for name in _RUN_FILES if (out / name).exists()), *_checkpoints(out)]


def _checkpoints(out: Path) -> list[Path]:
    numbered = [path for path in out.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    return sorted(numbered, key=lambda path: int(path.name.rpartition("-")[2]))


def load_data(
    source: str | None,
    forget_split: str,
    retain_split: str | None,
    columns: Mapping[str, str],
    request: KnowledgeRequest | None = None,
) -> RunData:
    """Load forget and retain rows and check that they are disjoint.

    With a request, its exemplars are the forget set, and its retention examples the retain set where it has some.

    Raises:
        ValueError, FileNotFoundError: see `load_rows` and `check_disjoint`.
    """
    place = source_or_bundled(source)
    retain = None
    if request is not None:
        if not request.exemplars:
            raise ValueError(f"The request {request.id!r} has no exemplars: add question-answer pairs to be forgotten.")
        forget, forget_split = Dataset.from_list([dict(row) for row in request.exemplars]), f"request {request.id}"
        if retain_split and request.retention:
            retain, retain_split = Dataset.from_list([dict(row) for row in request.retention]), "its retention examples"
    else:
        forget = load_rows(forget_split, place, columns)
    if retain_split and retain is None:
        retain = load_rows(retain_split, place, columns)
    check_disjoint(forget, retain)
    return RunData(source, forget_split, retain_split, forget, retain, columns)


def default_testbed(forget_split: str) -> "Testbed":
    """The testbed to which a forget split, or some of its rows, belongs."""
    from llm_unlearn.testbed import testbed

    return testbed(forget_split.partition("[")[0])


def reference_report(
    args: EvaluationFlags, data: RunData, evaluator: Evaluator, bed: "Testbed | None", cache: Path | None
) -> EvalReport | None:
    """The report of the retain model: the one that was named, or the testbed's.

    The twin's shipped report serves where it fits; for another convention, tier or prompt, or for other rows, the twin
    is evaluated now, after metrics asked for by name were checked. It is a twin for whole splits of the bundled data.

    Args:
        args: names the report, if at all.
        data: the rows.
        evaluator: what the report must fit.
        bed: the testbed, where the model is its target.
        cache: where reports are kept, see `evaluate_once`.

    Raises:
        ValueError, FileNotFoundError: the named report does not fit, or there is none.
    """
    if args.reference:
        report = EvalReport.load(args.reference)
        evaluator.require_fit(report)
        return report
    if bed is None or "[" in args.forget_split or data.source or args.request:
        return None
    evaluator.require(args.metrics, has_before=True, has_reference=True)
    report = EvalReport.load(bed.reference)
    if all(report.provenance.get(key) == evaluator.settings[key] for key in ("compat", "generation", "ids")):
        return report
    twin = load_model(bed.retain).to(process_state().device)
    return evaluate_once(evaluator, twin, identity(twin), None, cache)


def make_evaluator(
    tokenizer: PreTrainedTokenizerBase, data: RunData, args: Any, settings: SuiteSettings, retain_rows: int
) -> Evaluator:
    """The evaluation that belongs to a run's data, with the run's tokenisation (`args.system_prompt`, `.max_length`).

    The retain set is TOFU's `retain_perturbed` where the data has it and its rows are among those trained on, else the
    first `retain_rows` rows of the run's own retain set.
    """
    tokenize = ExampleTokenizer(tokenizer, args.system_prompt, args.max_length)
    splits = list_splits(source_or_bundled(data.source))
    # Not for some rows of a split, nor for the retention examples of a request.
    whole_split = data.retain is None or data.retain_split in splits
    standard = whole_split and "retain_perturbed" in splits
    retain = None if standard or data.retain is None else data.retain.select(range(min(retain_rows, len(data.retain))))
    named = None if data.forget_split.startswith("request ") else data.forget_split
    return tofu_evaluator(
        tokenize, data.forget, data.source, settings, forget_split=named, retain=retain, columns=data.columns
    )


def plan_refinement(
    args: UnlearningConfig,
    flags: EvaluationFlags,
    data: RunData,
    tokenizer: PreTrainedTokenizerBase,
    bed: "Testbed | None",
    cache: Path | None,
) -> RefinementPlan:
    """What the refinement of a run looks at, and against which thresholds: the retain model's, or of held-out rows.

    Raises:
        ValueError, FileNotFoundError: see `RefinementPlan.of` and `reference_report`.
    """
    # EL_n is in reports of the full tier alone.
    suite = make_evaluator(tokenizer, data, args, flags.suite("full"), flags.eval_retain_rows)
    tokenize = ExampleTokenizer(tokenizer, args.system_prompt, args.max_length)
    holdout = next((tokenize.all(eval_set.rows) for eval_set in suite.sets if eval_set.name == "holdout"), ())
    reference = reference_report(flags, data, suite, bed, cache)
    return RefinementPlan.of(args, tokenize.all(data.forget), tokenize, reference, holdout)


def judge_of(model: PreTrainedModel | PeftModel, name: str, all_trained: bool = False) -> Judge | None:
    """The model before unlearning, as far as it is still there, to judge the fluency of texts.

    Args:
        model: the model: with an adapter, the newest of which is switched off to judge, or without.
        name: fingerprint of the model before unlearning.
        all_trained: whether all weights have been trained, which leaves no judge.
    """
    if not isinstance(model, PeftModel):
        return None if all_trained else Judge(name, lambda: nullcontext(model))

    @contextmanager
    def before_unlearning() -> Iterator[nn.Module]:
        with without_newest_adapter(model):
            yield model

    return Judge(name, before_unlearning)


def resolve_dtype(name: str | None, lora: bool) -> torch.dtype:
    """The dtype called `name`; unset means bfloat16 under an adapter on a GPU, and float32 everywhere else."""
    if name is None:
        return torch.bfloat16 if lora and torch.cuda.is_available() else torch.float32
    return getattr(torch, name)


def refusals() -> list[str]:
    """The bundled refusals, one per line of `data/refusals.txt`."""
    return (data_dir() / "refusals.txt").read_text(encoding="utf-8").splitlines()


def run_record(
    method: str,
    trainer: "UnlearningTrainer",
    base: dict[str, str],
    data: RunData,
    request: KnowledgeRequest | None,
) -> dict[str, Any]:
    """What `unlearning_config.json` holds: the whole composition of the run, without anything personal.

    Args:
        method: name of the method.
        trainer: the trainer, after training.
        base: `source` and `fingerprint` of the model the run started from.
        data: the run's rows.
        request: the request, of which only the redacted form is recorded.
    """
    args = trainer.args
    own = {f.name for f in fields(args)} - {f.name for f in fields(TrainingArguments)}
    if not args.refine:
        own -= {f.name for f in fields(RefinementConfig)} - {"refine"}
    shared = ("learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size", "weight_decay",
              "gradient_accumulation_steps", "warmup_steps", "lr_scheduler_type", "max_grad_norm",
              "adam_beta1", "adam_beta2", "train_sampling_strategy")  # fmt: skip
    return {
        "method": method,
        "arguments": {name: _plain(getattr(args, name)) for name in (*shared, *sorted(own - set(shared)))},
        "global_batch_size": trainer.global_batch_size,
        "processes": args.world_size,
        "steps": trainer.state.global_step,
        "seed": args.seed,
        "stopped": trainer.guard.reason,
        "base": base,
        "data": {
            "dataset": data.source or "bundled",
            "forget": _data_record(data.forget_split, data.forget),
            "retain": data.retain and _data_record(data.retain_split, data.retain),
        },
        "request": request and request.redacted(),
        "versions": versions(),
    }


def save_run(
    trainer: "UnlearningTrainer",
    out: Path,
    record: dict[str, Any],
    report: EvalReport | None,
    request: KnowledgeRequest | None,
) -> None:
    """Write `adapter/` (or `model/` where all weights were trained) and the report. For the main process."""
    if isinstance(trainer.model, PeftModel):
        save_adapter(trainer.model, out / "adapter", record, model_card(record, report))
    else:
        folder = save_finetuned(trainer.model, trainer.tokenize.tokenizer, out, record["base"]["source"])
        write_json(folder / RECORD_NAME, {"schema": RECORD_SCHEMA, **record})
    if report is not None:
        report.save(out)
    if request is not None:
        request.save(out / "request.json")


def save_finetuned(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, out: Path, source: str
) -> Path:
    """Write `model/`, or `adapter/` where only an adapter was trained; returns the folder. For the main process.

    Args:
        model: the trained model.
        tokenizer: saved beside a whole model; an adapter has that of its base.
        out: the run's folder.
        source: what the run started from, which an adapter stands on.

    Raises:
        ValueError: trained weights are not finite.
    """
    require_finite(model)
    if isinstance(model, PeftModel):
        with replace_folder(out / "adapter") as partial:
            model.save_pretrained(partial, selected_adapters=[TRAINED_ADAPTER])
            # peft names the plain model underneath, and forgets the adapters that this one came with.
            config = json.loads((partial / ADAPTER_CONFIG).read_text(encoding="utf-8"))
            write_json(partial / ADAPTER_CONFIG, {**config, "base_model_name_or_path": source})
        return out / "adapter"
    with replace_folder(out / "model") as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
    return out / "model"


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


def _data_record(split: str, rows: Dataset) -> dict[str, Any]:
    text = "".join(json.dumps(row, sort_keys=True, ensure_ascii=False) + "\n" for row in rows)
    return {"split": split, "rows": len(rows), "sha256": hashlib.sha256(text.encode()).hexdigest()}
