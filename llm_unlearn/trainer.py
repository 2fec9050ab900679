"""The abstract trainer: everything the methods share.

A method supplies `forget_loss`, a function of log-probabilities. The base assembles pairs and batches, wraps the model
in an adapter, runs one forward and backward per term of the loss, supplies reference values, adds the retain term, and
reports every part of the loss. All else (optimiser, precision, checkpoints, distribution) is `transformers.Trainer`.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
from datasets import Dataset
from peft import PeftConfig, PeftModel, load_peft_weights, set_peft_model_state_dict
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback

from llm_unlearn.adapters import TRAINED_ADAPTER, attach_adapter
from llm_unlearn.config import UnlearningConfig
from llm_unlearn.data.collator import DataCollatorForUnlearning, counted_rows
from llm_unlearn.data.pairing import ForgetRetainDataset, PairSampler
from llm_unlearn.data.sources import with_answer
from llm_unlearn.data.tokenization import ExampleTokenizer, TokenizedItem
from llm_unlearn.files import remove_if_cut
from llm_unlearn.forward import AnswerLogits, AnswerScores, ReferenceLogits, answer_logits, concatenate, split_rows
from llm_unlearn.functional import row_mean, token_kl
from llm_unlearn.guard import DivergenceGuard
from llm_unlearn.memory import return_freed_memory
from llm_unlearn.models import require_fp32
from llm_unlearn.reference import Reference


class UnlearningTrainer(Trainer):
    """Base of all methods.

    Args:
        model: a causal LM, plain, quantised by bitsandbytes, or a `PeftModel` of `load_model` (then the reference is
            the model with the adapters it came with, never the bare base). A `PeftModel` whose one trainable adapter
            is named "default" is trained as it is, without `peft_config`; its reference is the model without it.
        args: the method's config.
        forget_dataset: examples to forget, in any of the forms of `data.sources`.
        processing_class: the tokenizer of the model.
        retain_dataset: examples to keep; needed while `retain_coef` is positive, ignored at 0.
        partners: for each forget row the positions in `retain_dataset` of the rows it meets, one per epoch in turn
            (`data.analogues` finds them). Unset, retain rows are drawn at random.
        refusals: replacement answers, for methods that prefer one; needed by those only.
        peft_config: adapter to train, for example `LoraConfig`. Without it all weights are trained, which needs
            fp32 weights.
        ref_model: the model before unlearning, for full fine-tuning with a KL term without `reference_top_k`. Under an
            adapter the reference is the same model with the adapter off, and log-probabilities are read once before
            training, so nothing else needs a second model.
        eval_dataset: pairs on which `evaluate()` computes the loss.
        callbacks: as in `Trainer`.

    Raises:
        ValueError: a needed part is missing, full fine-tuning is asked of weights that are not fp32, or
            `reference_top_k` is larger than the vocabulary.

    Logs `loss/forget`, `loss/retain` and `logps/forget` (mean log-probability per answer token) beside `loss`, as
    means over all processes and accumulation steps. Every loss is a mean over a sequence's tokens (or their sum, where
    the method says so), then over sequences: 1, 2 or 8 processes and any accumulation give the same step.
    """

    needs_reference_logps: ClassVar[bool] = False
    needs_alternates: ClassVar[bool] = False

    args: UnlearningConfig

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        args: UnlearningConfig,
        forget_dataset: Dataset | Sequence[dict],
        processing_class: PreTrainedTokenizerBase,
        retain_dataset: Dataset | Sequence[dict] | None = None,
        partners: Sequence[Sequence[int]] = (),
        refusals: Sequence[str] = (),
        peft_config: PeftConfig | None = None,
        ref_model: PreTrainedModel | None = None,
        eval_dataset: ForgetRetainDataset | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ):
        method = type(self).__name__.removesuffix("Trainer")
        if args.retain_coef and not retain_dataset:
            raise ValueError(
                f"`retain_coef` is {args.retain_coef} but no retain set was given; {method} with a retain term needs "
                "one: pass `retain_dataset` (`--retain_split`) or set `retain_coef` to 0."
            )
        if self.needs_alternates and not refusals:
            raise ValueError(f"{method} needs replacement answers and got none: pass `refusals`.")
        if args.n_gpu > 1:
            raise ValueError(
                f"{args.n_gpu} GPUs are visible to one process, which would need the obsolete DataParallel: start with "
                "`accelerate launch`, or hide GPUs with CUDA_VISIBLE_DEVICES."
            )
        lora = peft_config is not None or isinstance(model, PeftModel)
        if lora:
            model = attach_adapter(model, peft_config, args.seed) if peft_config is not None else model
            if TRAINED_ADAPTER not in model.peft_config or not any(p.requires_grad for p in model.parameters()):
                raise ValueError(
                    "The model comes with a frozen adapter: load it with `llm_unlearn.load_model` and pass "
                    "`peft_config` for the adapter to be trained on top of it."
                )
        else:
            require_fp32(model)
            if args.needs_reference_model and ref_model is None:
                raise ValueError(
                    "The retain term is a KL and all weights are trained, so the model before unlearning must be "
                    "given: pass `ref_model`, keep its most probable tokens (`--reference_top_k 64`), or train an "
                    "adapter (`--use_peft`)."
                )
        args.resolve_learning_rate(lora)

        tokenize = ExampleTokenizer(processing_class, args.system_prompt, args.max_length)
        train_dataset = ForgetRetainDataset(
            self.forget_scope(tokenize.all(forget_dataset), args),
            tokenize.all(retain_dataset) if args.retain_coef else (),
            [tokenize.all(with_answer(example, text) for text in refusals) for example in forget_dataset]
            if self.needs_alternates
            else (),
            args.forget_end_token,
            partners if args.retain_coef else (),
        )
        super().__init__(
            model=model,
            args=args,
            data_collator=DataCollatorForUnlearning(),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            callbacks=callbacks,
        )
        # Per-batch means are returned; the Trainer divides by the number of accumulation steps.
        self.loss_is_scaled_for_ga = False
        self.ref_model = None if ref_model is None else ref_model.to(self.args.device).eval().requires_grad_(False)
        self.tokenize = tokenize
        self.vocab_size = self.model.get_output_embeddings().weight.shape[0]
        self.reference = Reference(self)
        group_by_length = self.args.train_sampling_strategy == "group_by_length"
        self.sampler = PairSampler(train_dataset, self.global_batch_size, self.args.seed, group_by_length)
        self.guard = DivergenceGuard(self)
        self.add_callback(self.guard)
        # Factor on the forget loss of each row, by its position in the forget set; None where all weigh alike.
        self.item_weights: Tensor | None = None
        self._step_parts: list[dict[str, Tensor]] = []
        self._logged_parts: list[dict[str, float]] = []

    # The one thing a method defines.

    def forget_loss(self, forget: AnswerScores, **scores: Any) -> Tensor:
        """The method's loss per forget sequence, ``(batch,)``.

        Args:
            forget: log-probabilities of the forget answers.
            scores: with `needs_reference_logps`, `reference_logps`, the ``(batch,)`` sums before unlearning; with
                `needs_alternates`, `alternate`, like `forget`, and `reference_alternate_logps`.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no `forget_loss`.")

    # What a method may define otherwise.

    def retain_losses(
        self, answers: AnswerLogits, reference: ReferenceLogits | None
    ) -> dict[str, tuple[float, Tensor]]:
        """The parts of the retain term: by name the coefficient and the loss per retain sequence, ``(batch,)``.

        Args:
            answers: logits of the retain answers.
            reference: what the model before unlearning says there, where `needs_reference_logits` is set.
        """
        return {"retain": (self.args.retain_coef, retain_loss(answers, reference))}

    @property
    def retain_everywhere(self) -> bool:
        """Whether the retain term reads logits at all positions; by default at answer positions only."""
        return False

    @property
    def retain_length(self) -> int:
        """Tokens to which all retain rows are padded where the retain term reads all positions; 0 elsewhere.

        Padded to the longest of their batch, the mean over all positions would depend on who shares a batch.
        """
        return max(len(item.input_ids) for item in self.train_dataset.retain) if self.retain_everywhere else 0

    def forget_scope(self, items: list[TokenizedItem], args: UnlearningConfig) -> list[TokenizedItem]:
        """The forget items with the line before the tokens to be forgotten; by default the answer."""
        return items

    # Loss.

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, dict[str, Tensor]],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """``forget_coef * L_forget + retain_coef * L_retain`` of one nested batch."""
        parts: dict[str, Tensor] = {}
        loss = sum(term(model, inputs, parts) for term in self._terms(inputs))
        if model.training:
            self._step_parts.append(parts)
        return (loss, parts) if return_outputs else loss

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, dict[str, Tensor]],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """The loss of one batch and its gradient, one backward per term.

        No term's gradient needs another's activations, so holding one term's at a time saves a third of the memory and
        costs no time (measured on CPU); each half is also padded to its own longest row only.
        """
        if self.is_deepspeed_enabled:
            # DeepSpeed takes the optimiser step inside backward: one backward per batch.
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        self.optimizer.train()
        inputs = self._prepare_inputs(inputs)
        parts: dict[str, Tensor] = {}
        losses = []
        *others, last = self._terms(inputs)
        for term in (*others, last):
            # Gradients are averaged over the processes once, in the last backward.
            with nullcontext() if term is last else self.accelerator.no_sync(model):
                loss = term(model, inputs, parts) / self.current_gradient_accumulation_steps
                self.accelerator.backward(loss)
            losses.append(loss.detach())
            if term is not last and self.args.device.type == "cpu":
                return_freed_memory()
        self._step_parts.append(parts)
        return sum(losses)

    def _terms(self, inputs: dict[str, dict[str, Tensor]]) -> list[Callable[..., Tensor]]:
        return [self._forget_term, self._retain_term] if "retain" in inputs else [self._forget_term]

    def _forget_term(self, model: nn.Module, inputs: dict[str, dict[str, Tensor]], parts: dict[str, Tensor]) -> Tensor:
        inputs = {name: counted_rows(half) for name, half in inputs.items() if name != "retain"}
        scores = self.reference.scores(model, inputs)
        halves = {name: inputs[name] for name in ("forget", "alternate") if name in inputs}
        joined = answer_logits(model, self._unwrapped(model), concatenate(list(halves.values())))
        sizes = [len(half["index"]) for half in halves.values()]
        current = {name: AnswerScores.of(part) for name, part in zip(halves, split_rows(joined, sizes), strict=True)}

        weight = inputs["forget"]["weight"]
        losses = self.forget_loss(**current, **scores)
        if self.item_weights is not None and model.training:
            losses = losses * self.item_weights.to(losses)[inputs["forget"]["index"]]
        loss = _weighted_mean(losses, weight)
        parts["weight/forget"] = weight.mean()
        parts["loss/forget"] = loss.detach()
        parts["logps/forget"] = _weighted_mean(current["forget"].means.detach(), weight)
        return self.args.forget_coef * loss

    def _retain_term(self, model: nn.Module, inputs: dict[str, dict[str, Tensor]], parts: dict[str, Tensor]) -> Tensor:
        half = counted_rows(inputs["retain"])
        half = half | concatenate([half], self.retain_length)
        # Reference first: no adapter is switched between a forward that builds a graph and its backward.
        reference = self.reference.logits(model, half) if self.args.needs_reference_logits else None
        answers = answer_logits(model, self._unwrapped(model), half, self.retain_everywhere)
        losses = {
            name: (coef, _weighted_mean(loss, half["weight"]))
            for name, (coef, loss) in self.retain_losses(answers, reference).items()
        }
        total = sum(coef * loss for coef, loss in losses.values())
        parts["weight/retain"] = half["weight"].mean()
        parts |= {f"loss/{name}": loss.detach() for name, (_, loss) in losses.items()}
        # In nats, whatever the parts weigh: the guard watches it.
        parts["loss/retain"] = total.detach() / sum(coef for coef, _ in losses.values())
        return total

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, dict[str, Tensor]],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, None, None]:
        """The loss of one nested batch, without gradient: its mean over the global batch, on every process.

        Rows that fill up the last batch lie on the last processes, so that one process's own mean says nothing.
        """
        with torch.no_grad():
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
        return self.accelerator.reduce(loss.detach(), reduction="mean"), None, None

    def _unwrapped(self, model: nn.Module) -> nn.Module:
        return self.accelerator.unwrap_model(model, keep_torch_compile=False)

    # Data.

    @property
    def global_batch_size(self) -> int:
        """Forget rows per optimiser step, over all processes and accumulation steps."""
        return self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size

    def _get_train_sampler(self, train_dataset: ForgetRetainDataset | None = None) -> PairSampler:
        return self.sampler

    def _get_eval_sampler(self, eval_dataset: ForgetRetainDataset) -> PairSampler:
        return PairSampler(eval_dataset, self.args.eval_batch_size * self.args.world_size, self.args.seed)

    def begin_epoch(self, step: int) -> None:
        """Tell the sampler which epoch the next step belongs to.

        The stock way does not reach it where several processes resume within an epoch (accelerate 1.15).
        """
        self.sampler.set_epoch(step * self.global_batch_size // len(self.sampler))

    # Reporting.

    def begin_run(self) -> None:
        """Drop what an earlier, perhaps interrupted, run of this trainer left behind."""
        self._step_parts.clear()
        self._logged_parts.clear()
        self.reference.begin_run()

    def finish_step(self) -> dict[str, float]:
        """Parts of the loss of the step just computed: means over accumulation steps and processes.

        Every process calls it once per optimiser step and gets the same numbers. Where no row counted, the gradients
        are taken away: an optimiser with momentum would move on zero ones.
        """
        names = list(self._step_parts[0])
        means = torch.stack([torch.stack([parts[name] for parts in self._step_parts]).mean() for name in names])
        means = self.accelerator.reduce(means.float(), reduction="mean")
        self._step_parts.clear()
        losses = dict(zip(names, means.tolist(), strict=True))
        counted = [losses.pop(name) for name in names if name.startswith("weight/")]
        if not any(counted):
            self.model.zero_grad()
        self._logged_parts.append(losses)
        return losses

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the parts of the loss, averaged over the steps since the last log."""
        if self._logged_parts and "loss" in logs:
            for name in self._logged_parts[0]:
                logs[name] = sum(parts[name] for parts in self._logged_parts) / len(self._logged_parts)
            self._logged_parts.clear()
        super().log(logs, start_time)

    # Checkpoints.

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if isinstance(self.model, PeftModel) and not self.is_fsdp_enabled:
            # The stock method activates a single adapter, which would switch off those that a model came with.
            set_peft_model_state_dict(self.model, load_peft_weights(resume_from_checkpoint, "cpu"), TRAINED_ADAPTER)
            return
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.reference.load(Path(resume_from_checkpoint))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        with remove_if_cut(Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"):
            super()._save_checkpoint(model, trial)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            self.reference.save(Path(output_dir or self.args.output_dir))


def retain_loss(answers: AnswerLogits, reference: ReferenceLogits | None) -> Tensor:
    """NLL of the retain answers, or KL from the reference where it is given; per sequence, in nats."""
    if reference is None:
        return -AnswerScores.of(answers).means
    return row_mean(token_kl(*reference.beside(answers.logits)), answers.rows, answers.batch_size)


def _weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    # Weights average 1 over the *global* batch (see data.pairing), so the plain mean over its parts is exact.
    return (values * weight).mean()
