"""Flags that recipes and evaluations share, as dataclasses for `HfArgumentParser`."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from llm_unlearn.evaluation.suites import SuiteSettings


@dataclass
class DataFlags:
    """Where the examples lie."""

    dataset: str | None = field(
        default=None,
        metadata={"help": "Hub id (locuslab/TOFU), folder or file of rows, or unset for the bundled data."},
    )
    question_column: str | None = field(default=None, metadata={"help": "Column with the questions."})
    answer_column: str | None = field(default=None, metadata={"help": "Column with the answers."})
    prompt_column: str | None = field(default=None, metadata={"help": "Column with prompts."})
    completion_column: str | None = field(default=None, metadata={"help": "Column with completions."})
    messages_column: str | None = field(default=None, metadata={"help": "Column with chat messages."})
    text_column: str | None = field(default=None, metadata={"help": "Column with plain text."})

    @property
    def columns(self) -> dict[str, str]:
        """The column mapping, of what was named."""
        names = ("question", "answer", "prompt", "completion", "messages", "text")
        return {name: column for name in names if (column := getattr(self, f"{name}_column"))}


@dataclass
class EvaluationFlags:
    """What is measured, on which rows, against what."""

    forget_split: str = field(default="forget10", metadata={"help": "Split to forget; rows as in forget10[0:20]."})
    retain_split: str = field(default="retain90", metadata={"help": "Split to keep; rows as in retain90[0:160]."})
    holdout_split: str | None = field(
        default=None,
        metadata={"help": "Rows no model was trained on, for membership attacks. Unset: holdout10 for forget10."},
    )
    request: str | None = field(
        default=None, metadata={"help": "KnowledgeRequest file; its exemplars are the forget set."}
    )
    eval: Literal["none", "train", "quick", "full"] | None = field(
        default=None, metadata={"help": "Evaluation tier. Unset: full on the embedded default, quick with --model."}
    )
    compat: str = field(
        default="fixed",
        metadata={"help": "Whose definitions: fixed (ours), open_unlearning, tofu_code or tofu_paper."},
    )
    metrics: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Metrics that must be measured: an error before the model loads where that is known, else after."
        },
    )
    max_rows: list[int] = field(
        default_factory=list,
        metadata={"help": "Rows of retain, real authors and world facts to use: one number, or three."},
    )
    max_new_tokens: int = field(default=200, metadata={"help": "Longest generated answer in tokens."})
    eval_retain_rows: int = field(
        default=400, metadata={"help": "Rows of the retain split to evaluate where the data has no retain_perturbed."}
    )
    reference: str | None = field(
        default=None, metadata={"help": "Report of the retain model. Unset: the testbed's on the embedded default."}
    )
    eval_cache: bool = field(
        default=True, metadata={"help": "Reuse the report of a model that was evaluated before in the same way."}
    )

    def suite(self, tier: str) -> "SuiteSettings":
        """The settings of the suite at a tier."""
        # A recipe's `--help` reads these flags, and needs no model.
        from llm_unlearn.evaluation.suites import SuiteSettings

        return SuiteSettings(tier, self.compat, self.max_rows, self.holdout_split, self.max_new_tokens)


@dataclass
class TrainingEvaluationFlags:
    """What is measured while a run trains."""

    eval_every: str = field(
        default="none",
        metadata={"help": "While training, evaluate in the train tier: none, epoch, or a number of steps."},
    )
    objective: str | None = field(
        default=None,
        metadata={"help": "Metric to keep the best evaluation of, such as tuning_score; needs --eval_every."},
    )
    patience: int | None = field(
        default=None, metadata={"help": "Evaluations without a better objective after which training ends."}
    )

    def __post_init__(self) -> None:
        if self.eval_every not in ("none", "epoch") and not self.eval_every.isdigit():
            raise ValueError(f"`--eval_every` is {self.eval_every!r}; give none, epoch or a number of steps.")
        if self.eval_every == "0" or (self.patience is not None and self.patience < 1):
            raise ValueError("`--eval_every` and `--patience` count steps and evaluations: give at least 1.")
        if self.eval_every == "none" and (self.objective or self.patience):
            raise ValueError("`--objective` and `--patience` look at evaluations: add `--eval_every epoch`.")

    @property
    def steps_between_evaluations(self) -> int | None:
        """`eval_every` as a number; None for every epoch."""
        return None if self.eval_every == "epoch" else int(self.eval_every)


@dataclass
class PairingFlags:
    """Which row to keep stands beside a row to forget, and how the nearest one is found."""

    pairing: Literal["random", "nearest"] = field(
        default="random",
        metadata={"help": "Retain row beside a forget row: drawn anew each epoch, or the nearest of the pool (ICU)."},
    )
    pair_pool: str | None = field(
        default=None,
        metadata={
            "help": "Where neighbours are searched: hub id, folder or file of rows, or `self` for texts sampled from "
            "the model itself. Unset: the retain split."
        },
    )
    pair_pool_split: str | None = field(
        default=None,
        metadata={"help": "Split of the pool; rows as in train[0:5000]. Unset: the only one, or the retain split."},
    )
    pair_encoder: str = field(
        default="tfidf",
        metadata={
            "help": "What makes texts alike: tfidf or bm25 (words), model (hidden states of the model), or the name or "
            "path of a sentence-transformers model."
        },
    )
    pair_k: int = field(default=10, metadata={"help": "Nearest texts of the pool that are looked at (10: ICU's code)."})
    pair_rank: int = field(
        default=0, metadata={"help": "Neighbours that are passed over, nearest first (0: ICU's code)."}
    )
    pair_rotate: bool = field(
        default=False,
        metadata={"help": "Epoch e meets neighbour e modulo --pair_k, instead of always the same (ICU's code)."},
    )
    pair_max_overlap: int | None = field(
        default=None,
        metadata={
            "help": "Leave out neighbours that share so many tokens on end with their forget row, or 10 (so many, if "
            "that is more) with any. Unset: none, as ICU's code."
        },
    )
    pair_index: str | None = field(
        default=None,
        metadata={"help": "Folder of the encoded pool: read if it is there, else written. Not for tfidf and bm25."},
    )
    pair_search: Literal["exact", "faiss"] = field(
        default="exact",
        metadata={
            "help": "Search in bounded memory, or by faiss, which holds the encoded pool. Not for tfidf and bm25."
        },
    )
    pair_text_slice: list[int] = field(
        default_factory=list,
        metadata={
            "help": "Which tokens of plain texts are compared: start and stop (100 200: ICU's code). Unset: all."
        },
    )

    def __post_init__(self) -> None:
        # Only what names rows or files: the others may stand in a preset beside which `--pairing random` is given.
        named = [flag for flag in ("pair_pool", "pair_pool_split", "pair_index") if getattr(self, flag)]
        if self.pairing == "random" and named:
            raise ValueError(
                f"`--{named[0]}` is for neighbours, and `--pairing random` looks for none: add `--pairing nearest`, or "
                "drop the flag."
            )
        if self.pair_pool == "self" and self.pair_pool_split:
            raise ValueError(
                f"`--pair_pool_split` is {self.pair_pool_split!r}, and the texts of `--pair_pool self` have no splits: "
                "drop it, or name a pool of rows."
            )
        if not 0 <= self.pair_rank < self.pair_k:
            raise ValueError(
                f"`--pair_rank` is {self.pair_rank} and `--pair_k` {self.pair_k}: give at least one neighbour to look "
                "at, and a rank from 0 to one less than their number."
            )
        if self.pair_max_overlap is not None and self.pair_max_overlap < 1:
            raise ValueError(
                f"`--pair_max_overlap` is {self.pair_max_overlap}, and any text shares that: give at least 1 token, or "
                "leave it out to take near-duplicates too."
            )
        cut = self.pair_text_slice
        if cut and not (len(cut) == 2 and 0 <= cut[0] < cut[1]):
            raise ValueError(
                f"`--pair_text_slice` is {cut}: give two numbers of tokens, start and stop, such as 100 200."
            )
        if self.pair_encoder in ("tfidf", "bm25") and (self.pair_index or self.pair_search == "faiss"):
            raise ValueError(
                f"`--pair_index` and `--pair_search faiss` are for dense encodings, and those of {self.pair_encoder} "
                "are sparse: drop them, or give another `--pair_encoder`."
            )

    @property
    def text_slice(self) -> tuple[int, int] | None:
        """`pair_text_slice` as a pair of bounds; None for the whole text."""
        return (self.pair_text_slice[0], self.pair_text_slice[1]) if self.pair_text_slice else None
