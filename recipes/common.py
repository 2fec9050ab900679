"""What the recipes share: their flags, the reading of presets, and the steps of an unlearning run.

An unlearning recipe is `main("npo")`. Its steps stand in `unlearn`, top to bottom; everything it calls is the library's
public API. `finetune.py` has steps of its own.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import yaml

from llm_unlearn.flags import DataFlags, EvaluationFlags, PairingFlags, TrainingEvaluationFlags
from llm_unlearn.methods import get_method
from llm_unlearn.paths import recipes_dir
from llm_unlearn.quiet import quiet_upstream
from llm_unlearn.suggest import unknown

try:
    from trl import ModelConfig, TrlParser
except ModuleNotFoundError as error:
    sys.exit(f"error: The recipes need {error.name}: install it with `pip install 'llm-unlearn[recipes]'`.")


@dataclass
class DataArguments(DataFlags):
    """Where the examples lie, for every recipe."""

    overwrite: bool = field(default=False, metadata={"help": "Replace an earlier run in --output_dir."})


@dataclass
class UnlearnArguments(TrainingEvaluationFlags, PairingFlags, EvaluationFlags, DataArguments):
    """What to forget, what to keep, which rows stand side by side, and what to measure."""

    def __post_init__(self) -> None:
        TrainingEvaluationFlags.__post_init__(self)
        PairingFlags.__post_init__(self)


@dataclass
class ModelArguments(ModelConfig):
    """trl's model flags with our defaults: an adapter on all linear layers, fp32 on CPU and bf16 on GPU."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={"aliases": ["--model"], "help": "Hub id, model folder or PEFT folder; unset: the embedded default."},
    )
    dtype: str | None = field(
        default=None,
        metadata={
            "help": "Weights' dtype. Unset: bfloat16 under an adapter on a GPU, else float32.",
            "choices": ["bfloat16", "float32"],
        },
    )
    use_peft: bool = field(default=True, metadata={"help": "Train a LoRA adapter; --no_use_peft trains all weights."})
    lora_r: int = field(default=16, metadata={"help": "Rank of the adapter."})
    lora_alpha: int = field(default=32, metadata={"help": "Scale of the adapter: alpha / r."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout before the adapter."})
    lora_target_modules: list[str] | None = field(
        default_factory=lambda: ["all-linear"], metadata={"help": "Layers that get an adapter."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.use_peft and (self.load_in_4bit or self.load_in_8bit):
            raise ValueError("A quantised base cannot be trained in full: drop `--load_in_4bit` / `--load_in_8bit`.")

    def load(self, source: str, device: Any) -> Any:
        """The model in `source`, as these flags want it."""
        from trl import get_quantization_config

        from llm_unlearn.models import load_model
        from llm_unlearn.run import resolve_dtype

        dtype = resolve_dtype(self.dtype, self.use_peft)
        return load_model(
            source,
            dtype,
            revision=self.model_revision,
            attn_implementation=self.attn_implementation,
            quantization_config=get_quantization_config(replace(self, dtype=dtype)),
            device_map={"": device} if self.load_in_4bit or self.load_in_8bit else None,
        )


# Flags and presets.


class RecipeParser(TrlParser):
    """trl's parser, which says what is wrong without printing two hundred flags first."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (`--help` lists all flags).")


def parse(name: str, argv: list[str], *dataclasses: type, testbed: bool = False, **defaults: Any) -> tuple:
    """Flags to dataclasses, over those of a preset file (`--config FILE`), over `defaults`.

    A preset is a flat YAML file of flags, or the name of a bundled one. Where `testbed` is True and no model is named,
    the preset `<name>-testbed` comes before it.

    Raises:
        ValueError: an unknown flag or key, or a value that does not fit.
        FileNotFoundError: no such preset.
    """
    parser = RecipeParser(dataclasses, prog=f"{name}.py", allow_abbrev=False)
    parser.set_defaults(output_dir=f"out/{name}", report_to="none", **defaults)
    argv, preset = _checked(parser, argv)
    names_model = any(token.partition("=")[0] in ("--model", "--model_name_or_path") for token in [*preset, *argv])
    if testbed and not names_model and not {"-h", "--help"} & set(argv):
        path = recipes_dir() / "configs" / f"{name}-testbed.yaml"
        preset = _read_preset(str(path), _names(parser)) + preset
        if is_main_process():
            print(f"No --model: the embedded default, with {path.name}: {' '.join(preset)}")
    return parser.parse_args_into_dataclasses([*preset, *argv])


def parse_plainly(name: str, dataclass_: type) -> Any:
    """Flags of a recipe that trains nothing, over those of a preset file (`--config FILE`).

    Raises:
        ValueError, FileNotFoundError: as `parse`.
    """
    parser = RecipeParser((dataclass_,), prog=f"{name}.py", allow_abbrev=False)
    argv, preset = _checked(parser, sys.argv[1:])
    return parser.parse_args_into_dataclasses([*preset, *argv])[0]


def _checked(parser: RecipeParser, argv: list[str]) -> tuple[list[str], list[str]]:
    """The flags given and those of the preset they name, none of them unknown."""
    known = _names(parser)
    argv, config = _without_config(argv)
    for flag in (token.partition("=")[0] for token in argv if token.startswith("--")):
        if flag.removeprefix("--") not in known:
            raise ValueError(unknown("flag", flag, (f"--{name}" for name in known)) + " `--help` lists all flags.")
    return argv, _read_preset(config, known) if config else []


def _names(parser: RecipeParser) -> set[str]:
    return {option.lstrip("-") for action in parser._actions for option in action.option_strings}


def _without_config(argv: list[str]) -> tuple[list[str], str | None]:
    """The flags other than `--config FILE` or `--config=FILE`, and FILE."""
    rest, config, tokens = [], None, iter(argv)
    for token in tokens:
        if token == "--config" or token.startswith("--config="):
            config = token.partition("=")[2] or next(tokens, None)
            if not config or config.startswith("--"):
                raise ValueError("`--config` needs a YAML file of flags, or the name of a bundled preset.")
        else:
            rest.append(token)
    return rest, config


def _read_preset(config: str, known: set[str]) -> list[str]:
    """A preset as flags, so that its values are checked exactly as those of the command line are."""
    bundled = recipes_dir() / "configs"
    path = Path(config) if Path(config).is_file() else bundled / f"{config}.yaml"
    if not path.is_file():
        presets = (preset.stem for preset in bundled.glob("*.yaml"))
        raise FileNotFoundError(f"There is no file {config}. {unknown('bundled preset', Path(config).stem, presets)}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML ({' '.join(str(error).split())}): mend that place.") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold `flag: value` lines, without the dashes of the command line.")
    flags = []
    for key, value in values.items():
        if key not in known:
            raise ValueError(f"{path}: {unknown('flag', str(key), known)}")
        if value is None:
            raise ValueError(f"{path}: `{key}` has no value: give one, or remove the line to keep the default.")
        if isinstance(value, list):
            flags += [f"--{key}", *map(str, value)]
        else:
            flags.append(f"--{key}={json.dumps(value) if isinstance(value, dict) else value}")
    return flags


def is_main_process() -> bool:
    """Whether this is the process that prints; known before anything distributed is set up."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def at_a_terminal() -> Iterator[None]:
    """A user's mistake ends in one sentence and exit code 1; PYTHONDEVMODE=1 shows where it was found."""
    quiet_upstream()
    try:
        yield
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        if sys.flags.dev_mode:
            raise
        sys.exit(f"error: {error}")


# An unlearning run.


def main(method_name: str, **defaults: Any) -> None:
    """Run a method with the flags of the command line, over `defaults`."""
    with at_a_terminal():
        config_class, _ = get_method(method_name).load()
        classes = (UnlearnArguments, config_class, ModelArguments)
        unlearn(method_name, *parse(method_name, sys.argv[1:], *classes, testbed=True, **defaults))


def unlearn(method_name: str, data_args: UnlearnArguments, args: Any, model_args: ModelArguments) -> None:
    """The run: data, model, evaluation before, training, adapter, evaluation after, report."""
    from rich.console import Console
    from transformers import set_seed
    from trl import get_peft_config

    import llm_unlearn.run as run
    from llm_unlearn.data.tokenization import ExampleTokenizer
    from llm_unlearn.evaluation.cache import evaluate_once
    from llm_unlearn.evaluation.callback import EvaluationCallback
    from llm_unlearn.evaluation.report import EvalReport
    from llm_unlearn.forecast import Forecast
    from llm_unlearn.frequency.callback import FrequencyHook
    from llm_unlearn.frequency.plan import FrequencyPlan
    from llm_unlearn.hub import check_push, push_adapter
    from llm_unlearn.models import absolute, check_source, fingerprint, identity, load_tokenizer
    from llm_unlearn.partners import find_partners, need_model
    from llm_unlearn.paths import cache_dir
    from llm_unlearn.progress import RunLog, show_live_losses
    from llm_unlearn.refinement.callback import IterativeRefinement
    from llm_unlearn.requests import KnowledgeRequest

    main_process = args.process_index == 0
    console = Console(quiet=not main_process)
    out = Path(args.output_dir)

    # Everything that can be wrong is found before a model is loaded.
    given = model_args.model_name_or_path
    checkpoint = run.check_output(out, args.resume_from_checkpoint, data_args.overwrite, given)
    if args.push_adapter:
        if not model_args.use_peft:
            raise ValueError("`--push_to_hub` pushes adapters: drop it, and push `OUT/model` with `hf upload`.")
        check_push(args.hub_model_id, args.hub_token)
    if given:
        check_source(given)
    if data_args.reference:
        EvalReport.load(data_args.reference)
    if data_args.eval == "none" and data_args.metrics:
        raise ValueError("`--metrics` must be measured, but `--eval none` measures nothing: drop one of the two.")
    request = KnowledgeRequest.load(data_args.request) if data_args.request else None
    nearest = args.retain_coef and data_args.pairing == "nearest"
    data = run.load_data(
        data_args.dataset,
        data_args.forget_split,
        # A pool of its own needs no retain split beside it.
        data_args.retain_split if args.retain_coef and not (nearest and data_args.pair_pool) else None,
        data_args.columns,
        request,
    )
    frequencies = FrequencyPlan.of(args, data.forget) if args.uses_frequency else None
    bed = None if given else run.default_testbed(data_args.forget_split)
    source = given or str(bed.target)
    tier = data_args.eval or ("quick" if given else "full")
    tokenizer = load_tokenizer(source)
    tokenize = ExampleTokenizer(tokenizer, args.system_prompt, args.max_length)
    partners = None
    if nearest and not need_model(data_args):
        partners = find_partners(
            data_args, data_args, data.forget, data_args.retain_split, tokenize, progress=main_process
        )
    evaluator = callback = reference = None
    cache = cache_dir() / "evaluations" if data_args.eval_cache else None
    if tier != "none":
        evaluator = run.make_evaluator(tokenizer, data, args, data_args.suite(tier), data_args.eval_retain_rows)
        reference = run.reference_report(data_args, data, evaluator, bed, cache)
        evaluator.require(data_args.metrics, has_before=True, has_reference=reference is not None)
    if data_args.eval_every != "none":
        watcher = run.make_evaluator(tokenizer, data, args, data_args.suite("train"), data_args.eval_retain_rows)
        reference = reference or run.reference_report(data_args, data, watcher, bed, cache)
        callback = EvaluationCallback(
            watcher, data_args.steps_between_evaluations, data_args.objective, data_args.patience, reference=reference
        )
    plan = run.plan_refinement(args, data_args, data, tokenizer, bed, cache) if args.refine else None

    model = model_args.load(source, args.device)
    quantization = getattr(model.config, "quantization_config", None)
    base = {
        "source": absolute(source),
        "fingerprint": fingerprint(model),
        "revision": model_args.model_revision,
        "dtype": str(model_args.dtype).removeprefix("torch."),
        "quantization": quantization
        and {k: v for k, v in quantization.to_dict().items() if k.startswith(("load", "bnb"))},
    }
    model_identity = identity(model, base["fingerprint"])
    set_seed(args.seed)
    if nearest and partners is None:
        # The Trainer would move it, only later; a quantised model is there already, and cannot be moved.
        if not quantization:
            model.to(args.device)
        partners = find_partners(
            data_args, data_args, data.forget, data_args.retain_split, tokenize, model, args.seed, main_process
        )
    if partners:
        console.print(f"Pairs: {partners.summary}")
    _, trainer_class = get_method(method_name).load()
    needs_second_model = not model_args.use_peft and args.needs_reference_model
    trainer = trainer_class(
        model,
        args,
        data.forget,
        tokenizer,
        retain_dataset=partners.rows if partners else data.retain,
        partners=partners.of if partners else (),
        refusals=run.refusals() if trainer_class.needs_alternates else (),
        peft_config=get_peft_config(model_args),
        ref_model=model_args.load(source, args.device) if needs_second_model else None,
        callbacks=[RunLog(out)],
    )
    refinement = IterativeRefinement(trainer, plan, progress=False) if plan else None
    frequency = FrequencyHook(trainer, frequencies, progress=False) if frequencies else None
    show_live_losses(trainer)
    console.print(Forecast.of(trainer).table())

    # A fresh adapter adds exact zeros, so this is the model before unlearning, also where a run resumes.
    before = None
    if evaluator:
        judge = run.judge_of(trainer.model, base["fingerprint"])
        before = evaluate_once(evaluator, trainer.model, model_identity, judge, cache)
    if callback:
        callback.attach(trainer)
    if main_process and checkpoint is None:
        run.remove_earlier(out)
    trainer.train(resume_from_checkpoint=checkpoint)
    judge = run.judge_of(trainer.model, base["fingerprint"], all_trained=not model_args.use_peft)
    after = evaluator.evaluate(trainer.model, judge) if evaluator else None

    record = run.run_record(method_name, trainer, base, data, request)
    record |= {"pairing": partners and partners.record, "refinement": refinement and refinement.record()}
    # Its own part of the record says all of it, and no path.
    record["arguments"] = {name: value for name, value in record["arguments"].items() if not name.startswith("freq_")}
    if frequency:
        record["frequency"] = frequency.record()
    told = {"run": record, "max_rows": data_args.max_rows or None}
    report = EvalReport.compare(after, before, reference, told) if after else None
    if main_process:
        run.save_run(trainer, out, record, report, request)
        if report:
            console.print(report.table())
            if report.has_answers:
                console.print(report.answers_table())
        console.print(f"Wrote {out / ('adapter' if model_args.use_peft else 'model')}")
        if refinement and not trainer.guard.reason:
            console.print(f"Refinement: {refinement.outcome}.")
        if frequency and frequency.outcome and not trainer.guard.reason:
            console.print(f"Frequency buckets: {frequency.outcome}.")
        if trainer.guard.reason:
            console.print(f"The guard stopped this run: {trainer.guard.reason}.")
        if report:
            report.require(data_args.metrics)
        if args.push_adapter:
            console.print(push_adapter(out / "adapter", args.hub_model_id, args.hub_private_repo, args.hub_token))
    trainer.accelerator.wait_for_everyone()
