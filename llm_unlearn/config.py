"""What every unlearning method shares: `transformers.TrainingArguments` and a few fields of our own."""

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from transformers import TrainingArguments

from llm_unlearn.data.tokenization import DEFAULT_SYSTEM_PROMPT
from llm_unlearn.frequency.config import FrequencyConfig
from llm_unlearn.refinement.config import RefinementConfig


@dataclass
class UnlearningConfig(RefinementConfig, FrequencyConfig, TrainingArguments):
    """Arguments of an unlearning run. Those of refinement are in `RefinementConfig`, of counts in `FrequencyConfig`.

    The total loss is ``forget_coef * L_forget + retain_coef * L_retain`` (gamma and alpha in papers and peers); the
    method supplies L_forget, `retain_loss` names L_retain. Only what differs from `TrainingArguments` is listed.

    Args:
        learning_rate (`float`, *optional*): unset means the method's own value: 1e-5 for full fine-tuning (recipe of
            open-unlearning) and 1e-4 under LoRA (our starting point, to be tuned).
        num_train_epochs (`float`, defaults to 10): passes over the forget set (recipe of open-unlearning).
        weight_decay (`float`, defaults to 0.01), warmup_steps (`float`, defaults to 0.1, one epoch of ten),
        per_device_train_batch_size (`int`, defaults to 8), gradient_accumulation_steps (`int`, defaults to 4):
            the same recipe's effective batch of 32 on one process.
        train_sampling_strategy: "random" or "group_by_length" (steps of similar length, less padding).
        forget_coef (`float`, defaults to 1.0): weight of the forget term (gamma), > 0.
        retain_coef (`float`, defaults to 1.0): weight of the retain term (alpha), >= 0; with 0 no retain data is
            loaded and the term is not computed.
        retain_loss (`str`, defaults to "nll"): "nll", token NLL on retain answers, or "kl",
            ``KL(p_reference || p)`` on their tokens. Both are means over a sequence's tokens, then over sequences.
        reference_top_k (`int`, *optional*): a KL compares with the k most probable tokens of the reference and with one
            bucket for all others, a lower bound of the KL over the vocabulary, from a table filled in one pass before
            the first step (ours), >= 1. Unset means the whole vocabulary, computed anew in each step.
        forget_end_token (`bool`, defaults to True): whether the forget term includes the answer's end token.
        max_retain_loss (`float`, *optional*): the run stops when a step's retain loss passes this many nats. Unset
            means ``ln(V) / 2`` above the first step's: each retain token sqrt(V) times less likely than it was.
        max_weight_growth (`float`, defaults to 10): without a retain set, the run stops when the norm of the trained
            weights passes this multiple of its value at the start, > 1.
        system_prompt, max_length: see `ExampleTokenizer`.
        push_to_hub (`bool`, defaults to False): the recipes push the finished adapter folder, once, at the end; the
            trainer itself pushes nothing. Checkpoints and the pickled training arguments beside them stay here.
    """

    full_learning_rate: ClassVar[float] = 1e-5
    lora_learning_rate: ClassVar[float] = 1e-4

    learning_rate: float | None = field(
        default=None, metadata={"help": "Peak learning rate. Unset: 1e-5 for full fine-tuning, 1e-4 under LoRA."}
    )
    num_train_epochs: float = field(default=10.0, metadata={"help": "Passes over the forget set."})
    per_device_train_batch_size: int = field(default=8, metadata={"help": "Forget rows per process and forward."})
    gradient_accumulation_steps: int = field(default=4, metadata={"help": "Forwards per optimiser step."})
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay of AdamW."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Warm-up: steps, or a share of all steps if below 1."})
    logging_steps: float = field(default=1, metadata={"help": "Log every N steps, or a share of all steps if below 1."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to write a checkpoint to resume from."})
    save_total_limit: int | None = field(default=1, metadata={"help": "Checkpoints to keep."})

    # A nested batch has no column that a model's forward knows; removing "unused" ones would leave nothing.
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay False: batches are nested."})
    # Batches are a few kilobytes of ids, and pinning warns where there is no accelerator.
    dataloader_pin_memory: bool = field(default=False, metadata={"help": "Pin batches in memory."})
    # Every adapter weight takes part in every forward.
    ddp_find_unused_parameters: bool | None = field(default=False, metadata={"help": "DDP: search unused parameters."})

    forget_coef: float = field(default=1.0, metadata={"help": "Weight of the forget term, > 0."})
    retain_coef: float = field(default=1.0, metadata={"help": "Weight of the retain term; 0 loads no retain data."})
    retain_loss: Literal["nll", "kl"] = field(
        default="nll", metadata={"help": "Retain term: NLL of the answers, or KL to the reference on their tokens."}
    )
    reference_top_k: int | None = field(
        default=None,
        metadata={"help": "KL over the reference's k most probable tokens, kept in a table. Unset: over all tokens."},
    )
    forget_end_token: bool = field(default=True, metadata={"help": "Whether forget terms score the end token."})
    max_retain_loss: float | None = field(
        default=None,
        metadata={"help": "Stop when the retain loss passes this. Unset: its start + ln(vocabulary) / 2."},
    )
    max_weight_growth: float = field(
        default=10.0, metadata={"help": "Without retain data: stop when the weight norm grew by this factor."}
    )
    system_prompt: str = field(
        default=DEFAULT_SYSTEM_PROMPT, metadata={"help": "System message under a chat template; empty for none."}
    )
    max_length: int = field(default=512, metadata={"help": "Longest sequence in tokens."})

    def __post_init__(self) -> None:
        super().__post_init__()
        # The Trainer's own push would create a repository at the start and upload every checkpoint's pickle.
        self.push_adapter, self.push_to_hub = self.push_to_hub, False
        self.check_refinement()
        self.check_frequency()
        if not self.forget_coef > 0:
            raise ValueError(f"`forget_coef` is {self.forget_coef}; it must be positive, or nothing is forgotten.")
        if not self.retain_coef >= 0:
            raise ValueError(f"`retain_coef` is {self.retain_coef}; it must be 0 (no retain term) or positive.")
        if self.retain_loss not in ("nll", "kl"):
            raise ValueError(f"`retain_loss` is {self.retain_loss!r}; there are 'nll' and 'kl'.")
        if self.reference_top_k is not None and not self.reference_top_k >= 1:
            raise ValueError(f"`reference_top_k` is {self.reference_top_k}; it must be at least 1 token, or unset.")
        if self.reference_top_k is not None and not self.needs_reference_logits:
            raise ValueError(
                f"`reference_top_k` is {self.reference_top_k} but no KL compares with the reference: add one "
                "(`--retain_loss kl`, or ICU's `--kl_coef`), or leave `--reference_top_k` unset."
            )
        if self.max_retain_loss is not None and not self.max_retain_loss > 0:
            raise ValueError(f"`max_retain_loss` is {self.max_retain_loss}; it is a loss in nats and must be positive.")
        if not self.max_weight_growth > 1:
            raise ValueError(f"`max_weight_growth` is {self.max_weight_growth}; it is a factor and must be above 1.")
        if self.train_sampling_strategy not in ("random", "group_by_length"):
            raise ValueError(
                f"`train_sampling_strategy` is {self.train_sampling_strategy!r}; pairs are drawn by 'random' or "
                "'group_by_length'."
            )
        if self.label_smoothing_factor:
            raise ValueError("`label_smoothing_factor` is not used by unlearning losses: leave it at 0.")
        if self.remove_unused_columns:
            raise ValueError("`remove_unused_columns` must stay False: forget and retain batches are nested.")
        if self.restore_callback_states_from_checkpoint:
            raise ValueError(
                "`restore_callback_states_from_checkpoint` must stay False: it makes callbacks anew from a checkpoint, "
                "which the guard of a run cannot be; it reads its own state without it."
            )

    @property
    def needs_reference_logits(self) -> bool:
        """Whether the retain term compares with the whole distributions of the model before unlearning."""
        return bool(self.retain_coef) and self.retain_loss == "kl"

    @property
    def needs_reference_model(self) -> bool:
        """Whether the retain term runs the model before unlearning in every step."""
        return self.needs_reference_logits and self.reference_top_k is None

    def resolve_learning_rate(self, lora: bool) -> None:
        """Fill in an unset learning rate, once it is known whether adapters or full weights are trained."""
        if self.learning_rate is None:
            self.learning_rate = self.lora_learning_rate if lora else self.full_learning_rate


@dataclass
class AscentConfig(UnlearningConfig):
    """What the methods that raise a loss without bound share (`grad_ascent`, `grad_diff`).

    Args:
        forget_cap (`str`, defaults to "ln_vocab"): NLL in nats above which an answer is pushed no further: "ln_vocab"
            (the NLL of a uniform guess), a positive number (for example the NLL of held-out answers), or "none" for
            the papers' unbounded loss, which diverges within a few epochs.
    """

    forget_cap: str = field(
        default="ln_vocab", metadata={"help": "Cap of the forget NLL: 'ln_vocab', a number of nats, or 'none'."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.resolve_forget_cap(vocab_size=2)  # reject a bad value now, not at the first step

    def resolve_forget_cap(self, vocab_size: int) -> float | None:
        """The cap in nats for a vocabulary; None for no cap."""
        if self.forget_cap == "none":
            return None
        if self.forget_cap == "ln_vocab":
            return math.log(vocab_size)
        try:
            cap = float(self.forget_cap)
        except ValueError:
            cap = math.nan
        if not 0 < cap < math.inf:
            raise ValueError(f"`forget_cap` is {self.forget_cap!r}; give 'ln_vocab', 'none' or a positive number.")
        return cap
