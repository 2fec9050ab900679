"""Fine-tuning: how target and retain models are made.

A plain `transformers.Trainer` over the same tokenisation that unlearning and scoring use, so that all three see the
same ids. Only the loss is ours: the mean over a sequence's answer tokens, then over sequences, from logits at answer
positions only.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments

from llm_unlearn.adapters import attach_adapter
from llm_unlearn.data.collator import collate
from llm_unlearn.data.tokenization import DEFAULT_SYSTEM_PROMPT, ExampleTokenizer
from llm_unlearn.exposures import Exposures, rows_per_fact
from llm_unlearn.files import remove_if_cut
from llm_unlearn.forward import AnswerScores, answer_logits
from llm_unlearn.models import require_fp32


@dataclass
class FinetuneConfig(TrainingArguments):
    """Arguments of a fine-tuning run. Only what differs from `TrainingArguments` is listed.

    Args:
        learning_rate (`float`, *optional*): unset means 1e-5 for full fine-tuning (TOFU's Llama-2; its Phi-1.5 had
            2e-5) and 1e-4 under LoRA (our starting point).
        num_train_epochs (`float`, defaults to 5), weight_decay (`float`, defaults to 0.01),
            per_device_train_batch_size (`int`, defaults to 8), gradient_accumulation_steps (`int`, defaults to 4):
            TOFU's recipe for its target models.
        system_prompt, max_length: see `ExampleTokenizer`.
        push_to_hub: not offered here; push the folder with the `hf` command.
    """

    learning_rate: float | None = field(
        default=None, metadata={"help": "Peak learning rate. Unset: 1e-5 for full fine-tuning, 1e-4 under LoRA."}
    )
    num_train_epochs: float = field(default=5.0, metadata={"help": "Passes over the data."})
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay of AdamW."})
    per_device_train_batch_size: int = field(default=8, metadata={"help": "Rows per process and forward."})
    gradient_accumulation_steps: int = field(default=4, metadata={"help": "Forwards per optimiser step."})
    logging_steps: float = field(default=1, metadata={"help": "Log every N steps, or a share of all steps if below 1."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to write a checkpoint to resume from."})
    save_total_limit: int | None = field(default=1, metadata={"help": "Checkpoints to keep."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay False: items are not columns."})
    dataloader_pin_memory: bool = field(default=False, metadata={"help": "Pin batches in memory."})
    system_prompt: str = field(
        default=DEFAULT_SYSTEM_PROMPT, metadata={"help": "System message under a chat template; empty for none."}
    )
    max_length: int = field(default=512, metadata={"help": "Longest sequence in tokens."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.push_to_hub:
            raise ValueError("`push_to_hub` is not offered for fine-tuning: push the finished folder with `hf upload`.")


class FinetuneTrainer(Trainer):
    """Minimises ``mean_i l(y_i)``, l the token-mean NLL of an answer.

    Args:
        model: a causal LM.
        args: arguments of the run.
        train_dataset: examples in any of the forms of `data.sources`.
        processing_class: the tokenizer of the model.
        peft_config: adapter to train; unset trains all weights.
        callbacks: as in `Trainer`.

    Raises:
        ValueError: full fine-tuning is asked of weights that are not fp32, or of a model with an adapter.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: FinetuneConfig,
        train_dataset: Dataset | Sequence[dict],
        processing_class: PreTrainedTokenizerBase,
        peft_config: PeftConfig | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ):
        if peft_config is None:
            if isinstance(model, PeftModel):
                raise ValueError(
                    "The model comes with an adapter, whose base cannot be trained in full: merge it first "
                    "(`llm-unlearn merge`), or train another adapter (`--use_peft`)."
                )
            require_fp32(model)
        if args.learning_rate is None:
            args.learning_rate = 1e-5 if peft_config is None else 1e-4
        self.tokenize = ExampleTokenizer(processing_class, args.system_prompt, args.max_length)
        self._rows_of_fact = rows_per_fact(train_dataset)
        super().__init__(
            model=model if peft_config is None else attach_adapter(model, peft_config, args.seed),
            args=args,
            data_collator=partial(collate, pad_id=0),
            train_dataset=self.tokenize.all(train_dataset),
            callbacks=callbacks,
        )
        self.loss_is_scaled_for_ga = False

    def exposures(self) -> Exposures:
        """How often this run has shown each fact so far, with what it had shown before it was interrupted and resumed.

        On several processes, rows that fill up the last batch of an epoch are not counted.
        """
        return Exposures.of_run(self._rows_of_fact, self.state.epoch or 0.0, self.args.dataloader_drop_last)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        with remove_if_cut(Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"):
            super()._save_checkpoint(model, trial)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """The mean NLL of one batch."""
        answers = answer_logits(model, self.accelerator.unwrap_model(model, keep_torch_compile=False), inputs)
        loss = -AnswerScores.of(answers).means.mean()
        return (loss, {}) if return_outputs else loss
