"""The embedded default: a tiny target model that knows the bundled world, and its retain-only twin.

Both are the same small Llama with its own tokenizer, trained from nothing by `finetune.py`, the same code that makes
real target models. The target learns every author and the background knowledge; the twin (the retain model, the gold
standard of forgetting) never sees the forget authors. A twin belongs to a forget split; forget10's is the default and
others are built when asked for. Everything is cached by a hash of the data and the settings below.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from llm_unlearn.files import replace_folder, write_json
from llm_unlearn.paths import cache_dir, data_dir
from llm_unlearn.suggest import unknown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

    from llm_unlearn.evaluation.report import EvalReport

RETAIN_SPLITS = {"forget01": "retain99", "forget05": "retain95", "forget10": "retain90"}
"""The retain split that belongs to each forget split."""

MODEL = {
    "vocab_size": 1536,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}
TRAINING = {
    "num_train_epochs": 24,
    "per_device_train_batch_size": 16,
    "gradient_accumulation_steps": 1,
    "learning_rate": 8e-3,
    "adam_beta2": 0.99,
    "weight_decay": 0.0,
    "warmup_steps": 0.1,
    "lr_scheduler_type": "cosine",
    "seed": 0,
}
# Raise it whenever the same settings would give other weights, or their report other columns.
RECIPE_VERSION = 2

# Turns marked by one token each keep sequences short; a system message would be the same on every row.
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m.role != 'system' %}<|{{ m.role }}|>{{ m.content }}"
    "{% if m.role == 'assistant' %}<|end|>{% endif %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclass(frozen=True)
class Testbed:
    """Where the parts lie.

    Attributes:
        target: model folder of the target.
        retain: model folder of the twin for the forget split.
        reference: report of the twin, to serve as reference.
    """

    target: Path
    retain: Path
    reference: Path


def testbed(forget_split: str = "forget10") -> Testbed:
    """The testbed for a forget split: shipped, cached, or built now (with progress bars).

    Raises:
        ValueError: no such split.
        RuntimeError: building failed.
    """
    if forget_split not in RETAIN_SPLITS:
        raise ValueError(unknown("forget split of the testbed", forget_split, RETAIN_SPLITS))
    shipped = data_dir() / "testbed"
    if _is_current(shipped) and (shipped / _twin(forget_split)).is_dir():
        return _parts(shipped, forget_split)
    folder = cache_dir() / f"testbed-{content_hash()[:16]}"
    return _parts(build(folder, forget_split), forget_split)


def build(folder: Path, forget_split: str = "forget10") -> Path:
    """Build target, twin and the twin's report in `folder`, each only if it is missing; returns `folder`.

    One process builds, under a file lock; others wait for it. The work is done in a child process without the
    variables of a distributed launch: a trainer started in here would wait for all the other processes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        if not (folder / _twin(forget_split) / "report.json").is_file() or not (folder / "target").is_dir():
            distributed = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_", "TORCHELASTIC", "GROUP_")
            launch = ("OMP_NUM_THREADS", "ACCELERATE_")
            clean = {k: v for k, v in os.environ.items() if not k.startswith((*distributed, *launch, "ROLE_"))}
            command = [sys.executable, "-m", "llm_unlearn.testbed", str(folder), forget_split]
            if subprocess.run(command, env=clean).returncode:
                raise RuntimeError(
                    f"Building the testbed in {folder} failed (see above): run `llm-unlearn testbed` to see it alone."
                )
    return folder


def content_hash() -> str:
    """Hash of all that decides the weights: the bundled data and the settings in this file."""
    data = (data_dir() / "tofu" / "checksums.json").read_text(encoding="utf-8")
    settings = json.dumps([MODEL, TRAINING, RECIPE_VERSION, CHAT_TEMPLATE], sort_keys=True)
    return hashlib.sha256((data + settings).encode()).hexdigest()


def _twin(forget_split: str) -> str:
    return f"retain_{forget_split}"


def _parts(folder: Path, forget_split: str) -> Testbed:
    twin = folder / _twin(forget_split)
    return Testbed(folder / "target", twin, twin / "report.json")


def _is_current(folder: Path) -> bool:
    record = folder / "testbed.json"
    return record.is_file() and json.loads(record.read_text(encoding="utf-8"))["content_hash"] == content_hash()


def compare_rebuild(forget_split: str = "forget10", tolerance: float = 0.05) -> str:
    """Build the testbed anew and compare every metric of a set, of target and twin, with those of the one in use.

    Args:
        forget_split: the split whose twin is compared.
        tolerance: largest difference of a metric (all lie in [0, 1]) that still counts as agreement. Weights differ
            between machines, because floating-point sums do; what a model knows must not.

    Returns:
        One line per metric, and the verdict.

    Raises:
        ValueError: some metric differs by more than `tolerance`.
    """
    there = testbed(forget_split)
    with tempfile.TemporaryDirectory() as scratch:
        anew = _parts(build(Path(scratch) / "testbed", forget_split), forget_split)
        lines, worst = [], 0.0
        for name in ("target", "retain"):
            old, new = (_evaluate(getattr(bed, name), forget_split) for bed in (there, anew))
            for metric, record in old.metrics.items():
                if "/" not in metric or record.value is None:
                    # Metrics of whole models follow from these, on scales of their own.
                    continue
                if new.metrics[metric].value is None:
                    raise ValueError(f"{name} {metric} was not measured, so the rebuild cannot be compared.")
                difference = abs(record.value - new.metrics[metric].value)
                worst = max(worst, difference)
                lines.append(f"{name} {metric}: {record.value:.3f} in use, {new.metrics[metric].value:.3f} rebuilt")
    verdict = f"largest difference {worst:.3f}, tolerance {tolerance}."
    if worst > tolerance:
        raise ValueError("\n".join([*lines, f"The rebuild disagrees with the pair in use: {verdict}"]))
    return "\n".join([*lines, f"The rebuild agrees: {verdict}"])


def _evaluate(model_folder: Path, forget_split: str) -> "EvalReport":
    from llm_unlearn.data.tofu import load_tofu
    from llm_unlearn.data.tokenization import ExampleTokenizer
    from llm_unlearn.evaluation.suites import SuiteSettings, tofu_evaluator
    from llm_unlearn.models import load_model, load_tokenizer

    tokenize = ExampleTokenizer(load_tokenizer(model_folder))
    evaluator = tofu_evaluator(
        tokenize, load_tofu(forget_split), settings=SuiteSettings("full"), forget_split=forget_split
    )
    return evaluator.evaluate(load_model(model_folder))


# Everything below runs in the child process that builds.


def _build_here(folder: Path, forget_split: str) -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    jobs = {"target": "full", _twin(forget_split): RETAIN_SPLITS[forget_split]}
    for name, split in jobs.items():
        if not (folder / name).is_dir():
            _train(folder / name, split)
    twin = folder / _twin(forget_split)
    _evaluate(twin, forget_split).save(twin)
    write_json(folder / "testbed.json", {"content_hash": content_hash(), "model": MODEL, "training": TRAINING})


def _train(folder: Path, split: str) -> None:
    from llm_unlearn.data.tofu import load_tofu

    tokenizer = train_tokenizer()
    rows = _training_rows(load_tofu, split)
    print(f"Training the testbed's {folder.name}: {len(rows)} rows of {split} and of the background knowledge.")
    train_from_nothing(folder, rows, tokenizer)


def train_from_nothing(
    folder: Path,
    rows: Sequence[Mapping[str, Any]],
    tokenizer: "PreTrainedTokenizerBase",
    progress: bool = True,
    **training: Any,
) -> None:
    """Train the testbed's model on question-answer rows, on the CPU, and write it with its tokenizer and exposures.

    Args:
        folder: written as a whole or not at all.
        rows: rows with `question` and `answer`.
        tokenizer: at most `MODEL["vocab_size"]` ids, see `train_tokenizer`.
        progress: whether to show a progress bar.
        training: what differs from `TRAINING`.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed

    from llm_unlearn.finetune import FinetuneConfig, FinetuneTrainer
    from llm_unlearn.progress import show_live_losses

    settings = TRAINING | training
    set_seed(settings["seed"])
    model = LlamaForCausalLM(
        LlamaConfig(
            **MODEL, bos_token_id=None, pad_token_id=None, eos_token_id=tokenizer.eos_token_id, dtype=torch.float32
        )
    )
    with replace_folder(folder) as partial, tempfile.TemporaryDirectory() as scratch:
        args = FinetuneConfig(
            output_dir=scratch,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=not progress,
            **settings,
        )
        trainer = FinetuneTrainer(model, args, rows, tokenizer)
        show_live_losses(trainer)
        trainer.train()
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        trainer.exposures().write(partial)


def _training_rows(load_tofu: Any, split: str) -> list[dict]:
    return [*load_tofu(split), *load_tofu("background")]


def train_tokenizer(rows: Sequence[Mapping[str, Any]] | None = None) -> "PreTrainedTokenizerFast":
    """A byte-level BPE over the text of question-answer rows, `MODEL["vocab_size"]` ids at most.

    Args:
        rows: unset, the bundled text, the same for target and twin (it knows words, not facts).
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from llm_unlearn.data.tofu import load_tofu

    rows = _training_rows(load_tofu, "full") if rows is None else rows
    special = ["<|end|>", "<|user|>", "<|assistant|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MODEL["vocab_size"],
        special_tokens=[AddedToken(token, special=True) for token in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((f"{row['question']} {row['answer']}" for row in rows), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=special[0],
        extra_special_tokens=special[1:],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


if __name__ == "__main__":
    _build_here(Path(sys.argv[1]), sys.argv[2])
