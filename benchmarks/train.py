"""Time and memory of an unlearning step: the toolkit against the plain way of published scripts (`plain.py`).

    python benchmarks/train.py                                              # the testbed
    python benchmarks/train.py --model PATH --dataset FOLDER --json OUT     # a real model, a folder of TOFU's names

NPO with NLL on the retain set, forget01 with retain99, four forget and four retain rows a step, fp32, AdamW, clip 1.0,
on the CPU. Every variant runs in a process of its own, and the variants take turns, so that a machine that slows down
slows all of them. All see the same batches, except `ours-lora-grouped`, whose steps are made of rows of similar length.
A step is everything from one optimiser step to the next: batch, forwards, backward, clipping, update, and for the
toolkit all that its trainer does besides. Tokens are real ones (no padding), each counted once however often it is
forwarded. Memory is the peak of resident memory from the loaded model on.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from measure import machine, peak_bytes, reset_peak

FORGET_SPLIT, RETAIN_SPLIT = "forget01", "retain99"
BATCH_SIZE, EPOCHS, SEED = 4, 10, 0


@dataclass(frozen=True)
class Variant:
    """One way to train: the toolkit's or the plain one, LoRA or all weights, steps of similar length or not."""

    ours: bool
    lora: bool
    grouped: bool = False


VARIANTS = {
    "plain-full": Variant(ours=False, lora=False),
    "ours-full": Variant(ours=True, lora=False),
    "plain-lora": Variant(ours=False, lora=True),
    "ours-lora": Variant(ours=True, lora=True),
    "ours-lora-grouped": Variant(ours=True, lora=True, grouped=True),
}
COMPARISONS = [
    ("plain-full", "ours-full"),
    ("plain-lora", "ours-lora"),
    ("plain-lora", "ours-lora-grouped"),
    ("plain-full", "ours-lora"),
]


# The child: one variant, once.


def measure(variant: Variant, args: argparse.Namespace) -> dict:
    """Train for a few steps and return what was measured."""
    import torch
    from transformers.utils import logging

    from llm_unlearn.data.tofu import load_tofu
    from llm_unlearn.methods.npo import NPOConfig
    from llm_unlearn.models import load_model, load_tokenizer

    logging.set_verbosity_error()
    model, tokenizer = load_model(args.model, torch.float32), load_tokenizer(args.model)
    forget, retain = (load_tofu(split, args.dataset) for split in (FORGET_SPLIT, RETAIN_SPLIT))
    with tempfile.TemporaryDirectory() as folder:
        config = NPOConfig(
            output_dir=folder,
            max_steps=args.warmup + args.steps,
            per_device_train_batch_size=BATCH_SIZE,
            gradient_accumulation_steps=1,
            train_sampling_strategy="group_by_length" if variant.grouped else "random",
            seed=SEED,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        )
        loaded = reset_peak()
        run = run_ours if variant.ours else run_plain
        result = run(variant.lora, config, model, tokenizer, forget, retain)
    stamps = result.pop("stamps")
    seconds = [after - before for before, after in zip(stamps, stamps[1:], strict=False)][args.warmup :]
    tokens = step_tokens(result.pop("sampler"), len(stamps) - 1)
    return {
        **result,
        "seconds_per_step": statistics.median(seconds),
        "tokens_per_second": sum(tokens[args.warmup :]) / sum(seconds),
        "tokens": tokens,
        "seconds": seconds,
        "peak_gb": peak_bytes() / 1e9,
        "loaded_gb": loaded / 1e9,
        "threads": torch.get_num_threads(),
    }


def run_ours(lora, config, model, tokenizer, forget, retain) -> dict:
    """The toolkit: a real run of its trainer, with a callback that reads the clock."""
    from transformers import TrainerCallback

    from llm_unlearn.adapters import lora_config
    from llm_unlearn.methods.npo import NPOTrainer
    from llm_unlearn.reference import ReferenceLogps

    stamps = []

    class Clock(TrainerCallback):
        def on_train_begin(self, args, state, control, **_):
            stamps.append(time.perf_counter())

        def on_step_end(self, args, state, control, **_):
            stamps.append(time.perf_counter())

    peft_config = lora_config() if lora else None
    trainer = NPOTrainer(
        model, config, forget, tokenizer, retain_dataset=retain, peft_config=peft_config, callbacks=[Clock()]
    )
    # The trainer would fill its reference table within the first step; here it is timed apart, for a whole run.
    steps = EPOCHS * -(-len(forget) // BATCH_SIZE)
    trainer.state.max_steps = steps
    start = time.perf_counter()
    trainer.reference.logps = ReferenceLogps.fill(trainer, trainer.model)
    fill = time.perf_counter() - start
    items = int(trainer.reference.logps.forget_sums.isfinite().sum())
    trainer.train()
    cache = {"seconds": fill, "items": items, "seconds_per_step_of_a_run": fill / steps}
    return {"stamps": stamps, "sampler": trainer.sampler, "reference_cache": cache}


def run_plain(lora, config, model, tokenizer, forget, retain) -> dict:
    """A training loop around `plain.loss`, with the optimiser that the Trainer would make."""
    import torch
    from plain import frozen_copy, loss
    from transformers import Trainer

    from llm_unlearn.adapters import attach_adapter, lora_config
    from llm_unlearn.data.collator import DataCollatorForUnlearning
    from llm_unlearn.data.pairing import ForgetRetainDataset, PairSampler
    from llm_unlearn.data.tokenization import ExampleTokenizer

    tokenize = ExampleTokenizer(tokenizer, config.system_prompt, config.max_length)
    dataset = ForgetRetainDataset(tokenize.all(forget), tokenize.all(retain))
    sampler = PairSampler(dataset, BATCH_SIZE, SEED)
    reference = frozen_copy(model)
    policy = attach_adapter(model, lora_config(), SEED) if lora else model
    policy.train()
    trained = [weight for weight in policy.parameters() if weight.requires_grad]
    config.resolve_learning_rate(lora)
    optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(config)
    optimizer = optimizer_class(trained, **options, weight_decay=config.weight_decay)

    collate = DataCollatorForUnlearning()
    stamps = [time.perf_counter()]
    for step in planned_steps(sampler, config.max_steps):
        batch = collate([dataset[pair] for pair in step])
        loss("npo", policy, reference, batch, retain={"nll": 1.0}, beta=config.beta).backward()
        torch.nn.utils.clip_grad_norm_(trained, config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        stamps.append(time.perf_counter())
    return {"stamps": stamps, "sampler": sampler}


def planned_steps(sampler, count: int) -> list[list]:
    """The pairs of the first `count` optimiser steps."""
    pairs, epoch = [], 0
    while len(pairs) < count * BATCH_SIZE:
        pairs += sampler.plan(epoch)
        epoch += 1
    return [pairs[at : at + BATCH_SIZE] for at in range(0, count * BATCH_SIZE, BATCH_SIZE)]


def step_tokens(sampler, count: int) -> list[int]:
    """Tokens of the forget and retain rows of each step."""
    data = sampler.dataset
    return [
        sum(len(data.forget[pair.forget].input_ids) + len(data.retain[pair.retain].input_ids) for pair in step)
        for step in planned_steps(sampler, count)
    ]


# The parent. It stays small (no torch): on Linux a child inherits the peak of the process that started it.


def run_children(args: argparse.Namespace) -> dict[str, list[dict]]:
    """All variants in turn, `repeats` times; the results by variant."""
    runs: dict[str, list[dict]] = {name: [] for name in args.variants}
    schedule = [(repeat, name) for repeat in range(args.repeats) for name in args.variants]
    for number, (repeat, name) in enumerate(schedule, 1):
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "result.json"
            command = [sys.executable, __file__, "--model", args.model, "--child", name, "--json", str(out)]
            command += ["--steps", str(args.steps), "--warmup", str(args.warmup)]
            command += ["--dataset", args.dataset] if args.dataset else []
            done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            if done.returncode:
                raise SystemExit(f"{done.stderr}\n{name} failed; nothing was written.")
            result = json.loads(out.read_text(encoding="utf-8"))
        runs[name].append(result)
        print(
            f"[{number}/{len(schedule)}] {name}, repeat {repeat + 1}: {result['seconds_per_step']:.2f} s/step, "
            f"{result['tokens_per_second']:.0f} tokens/s, {result['peak_gb']:.2f} GB "
            f"({time.perf_counter() - start:.0f} s in all)",
            flush=True,
        )
    ungrouped = [run for name, repeats in runs.items() if not VARIANTS[name].grouped for run in repeats]
    if len({json.dumps(run["tokens"]) for run in ungrouped}) > 1:
        raise SystemExit("The variants did not see the same batches, so their times cannot be compared.")
    return runs


def summarise(runs: dict[str, list[dict]]) -> dict:
    """Medians and ranges over the repeats, and the ratios of what is to be compared."""
    variants = {}
    for name, repeats in runs.items():
        keys = ("seconds_per_step", "tokens_per_second", "peak_gb", "loaded_gb")
        numbers = {key: sorted(run[key] for run in repeats) for key in keys}
        variants[name] = {
            key: {"median": statistics.median(values), "range": [values[0], values[-1]]}
            for key, values in numbers.items()
        }
        if "reference_cache" in repeats[0]:
            caches = [run["reference_cache"] for run in repeats]
            variants[name]["reference_cache"] = {key: statistics.median(c[key] for c in caches) for key in caches[0]}
    return {
        "variants": variants,
        "ratios": [
            {
                "of": plain,
                "to": ours,
                # Times of a step compare only on the same batches; tokens per second always do.
                "time": variants[ours]["tokens_per_second"]["median"] / variants[plain]["tokens_per_second"]["median"],
                "memory": variants[plain]["peak_gb"]["median"] / variants[ours]["peak_gb"]["median"],
            }
            for plain, ours in COMPARISONS
            if plain in variants and ours in variants
        ],
    }


def show(summary: dict) -> None:
    """Print the tables."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="One optimiser step: median over the repeats, range below")
    for column in ("variant", "s / step", "tokens / s", "peak GB"):
        table.add_column(column, justify="left" if column == "variant" else "right")
    for name, numbers in summary["variants"].items():
        cells = [
            f"{numbers[key]['median']:{form}}\n{numbers[key]['range'][0]:{form}} to {numbers[key]['range'][1]:{form}}"
            for key, form in (("seconds_per_step", ".2f"), ("tokens_per_second", ".0f"), ("peak_gb", ".2f"))
        ]
        table.add_row(name, *cells)
    ratios = Table(title="Plain / ours, higher is better")
    for column in ("comparison", "time", "memory"):
        ratios.add_column(column, justify="left" if column == "comparison" else "right")
    for ratio in summary["ratios"]:
        ratios.add_row(f"{ratio['of']} / {ratio['to']}", f"{ratio['time']:.2f}x", f"{ratio['memory']:.2f}x")
    console = Console()
    console.print(table)
    console.print(ratios)
    for name, numbers in summary["variants"].items():
        if "reference_cache" in numbers:
            cache = numbers["reference_cache"]
            console.print(
                f"{name}: the reference cache took {cache['seconds']:.1f} s for {cache['items']:.0f} items, which is "
                f"{cache['seconds_per_step_of_a_run']:.3f} s per step of {EPOCHS} epochs and not in the table."
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="model folder or hub id; unset, the target model of the testbed")
    parser.add_argument("--dataset", help="folder or hub id with TOFU's names; unset, the bundled data")
    parser.add_argument("--steps", type=int, default=9, help="measured steps (with the warm-up one epoch by default)")
    parser.add_argument("--warmup", type=int, default=1, help="steps before those")
    parser.add_argument("--repeats", type=int, default=3, help="processes per variant")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--json", type=Path, help="where to write all numbers")
    parser.add_argument("--child", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        args.json.write_text(json.dumps(measure(VARIANTS[args.child], args)), encoding="utf-8")
        return
    if args.model is None:
        from llm_unlearn.testbed import testbed

        args.model = str(testbed().target)
    runs = run_children(args)
    summary = summarise(runs)
    show(summary)
    if args.json:
        threads = next(iter(runs.values()))[0]["threads"]
        settings = {key: value for key, value in vars(args).items() if key not in ("json", "child")}
        record = {"settings": settings, "machine": machine(threads), **summary, "runs": runs}
        args.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        print(f"Wrote {args.json}.")


if __name__ == "__main__":
    main()
