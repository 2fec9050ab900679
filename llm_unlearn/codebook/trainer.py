"""Trains a bottleneck together with (or beside) the model it sits in.

Equation: ``L = L_LM + l1_coef L_1 + recon_coef L_r + code_coef L_c + commit_coef L_b`` with, for a token,
``L_1 = sum_{k in Omega} ||c_k||_1 / m``, ``L_r = ||stop(x) - y||^2 / (d var(x))``, ``L_c = ||stop(z) - q||^2 / m`` and
``L_b = ||z - stop(q)||^2 / m``. Each is a mean over a sequence's tokens, padding and exempt ones left out, then over
sequences, as L_LM is: 1 or 2 processes and any accumulation give the same step.

Papers: CodeUnlearn (arXiv 2410.10866) has ``L_LM`` and ``L_1`` with all weights in training, as its reviews report it
    (preset
`codeunlearn-paper`); whether it has more terms is not known. The others are those of vector quantisation (VQ-VAE, arXiv
1711.00937; Codebook Features, arXiv 2310.17230). The L1 term only shrinks codes, since the search does not see their
length: no sparsity is claimed for it.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset
from peft import PeftConfig, PeftModel, load_peft_weights, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback

from llm_unlearn.adapters import TRAINED_ADAPTER, attach_adapter, pin_4bit_weights
from llm_unlearn.codebook.bottleneck import Observation
from llm_unlearn.codebook.initialise import initialise_from
from llm_unlearn.codebook.model import ADAPTER_FOLDER, BASE_FOLDER, WEIGHTS_NAME, CodebookModel
from llm_unlearn.codebook.seq2seq import kind_of
from llm_unlearn.codebook.site import parameters_below
from llm_unlearn.codebook.usage import CodeUsage
from llm_unlearn.files import remove_if_cut
from llm_unlearn.finetune import FinetuneConfig
from llm_unlearn.forward import AnswerScores
from llm_unlearn.models import require_fp32

CODEBOOK_FOLDER = "codebook"
"""In a checkpoint, and in the folder of a run."""


@dataclass
class CodeUnlearnConfig(FinetuneConfig):
    """Arguments of a bottleneck's training. Defaults are ours: the paper's are not known to us.

    Args:
        train (`str`, defaults to `"bottleneck"`): "bottleneck" alone, under a model that does not change; "lora", with
            an adapter on the model; "full", with all its weights, as in the paper.
        l1_coef (`float`, defaults to 0.0), recon_coef (`float`, defaults to 0.1), code_coef (`float`, defaults to 0.1),
            commit_coef (`float`, defaults to 0.025): weights of the terms beside the language modelling loss, >= 0.
        revive_every (`int`, defaults to 0): steps after which a code that no token used becomes what the encoder makes
            of a random token. 0: five passes over the data, or an eighth of a shorter run. Ends at 70 % of training.
        revive (`bool`, defaults to True): whether to do that at all.
        init_tokens (`int`, defaults to 50000): activations the first weights are made from.
        init_whiten (`bool`, defaults to False): whether these are made in the units in which one and the same token
            varies, so that codes tell tokens apart rather than what stands around them; see `initialise`.
        hold_bottleneck (`bool`, defaults to False): whether the bottleneck and all of the model below it stay as they
            are at first. Which codes a token has is then settled, and only what reads them is trained, by the language
            modelling loss alone: the layers above (`train="full"`) or adapters in them (`"lora"`).
        learning_rate (`float`, *optional*): unset means 1e-3 for the bottleneck alone, 5e-4 with an adapter, 1e-4 with
            all weights.
        warmup_steps (`float`, defaults to 0.05), max_grad_norm (`float`, defaults to 1.0): the former a share of all
        steps.
    """

    train: Literal["bottleneck", "lora", "full"] = field(
        default="bottleneck",
        metadata={"help": "What is trained: the bottleneck alone, with an adapter, with all weights."},
    )
    l1_coef: float = field(default=0.0, metadata={"help": "Weight of the L1 norm of the codes in use."})
    recon_coef: float = field(default=0.1, metadata={"help": "Weight of the reconstruction error."})
    code_coef: float = field(default=0.1, metadata={"help": "Weight that pulls codes towards the encoder's output."})
    commit_coef: float = field(
        default=0.025, metadata={"help": "Weight that pulls the encoder's output towards codes."}
    )
    revive: bool = field(
        default=True, metadata={"help": "Put codes that no token uses to use; --no_revive leaves them."}
    )
    revive_every: int = field(
        default=0, metadata={"help": "Steps without use after which; 0: five passes, or an eighth of the run."}
    )
    init_tokens: int = field(default=50_000, metadata={"help": "Activations the first weights are made from."})
    init_whiten: bool = field(
        default=False, metadata={"help": "Make first codes that tell tokens apart rather than their surroundings."}
    )
    hold_bottleneck: bool = field(
        default=False, metadata={"help": "Train what reads the codes only: not the bottleneck, and nothing below it."}
    )
    learning_rate: float | None = field(
        default=None, metadata={"help": "Peak rate. Unset: 1e-3 bottleneck, 5e-4 with an adapter, 1e-4 all weights."}
    )
    weight_decay: float = field(default=0.0, metadata={"help": "Weight decay of AdamW; never on codes."})
    warmup_steps: float = field(
        default=0.05, metadata={"help": "Steps of warm-up, or a share of all steps if below 1."}
    )
    ddp_broadcast_buffers: bool | None = field(
        default=False, metadata={"help": "Must stay False: each process notes which codes its own tokens use."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("l1_coef", "recon_coef", "code_coef", "commit_coef", "revive_every", "init_tokens"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"`{name}` is {getattr(self, name)}; it must not be negative.")
        if self.hold_bottleneck and self.train == "bottleneck":
            raise ValueError(
                "`hold_bottleneck` leaves nothing to train: let what reads the codes fit itself to them "
                "(`--train lora` or `--train full`), or drop it."
            )
        if self.init_tokens < 1:
            raise ValueError("`init_tokens` is 0, but the first weights are made from activations: give at least 1.")
        if self.learning_rate is None:
            self.learning_rate = {"bottleneck": 1e-3, "lora": 5e-4, "full": 1e-4}[self.train]


class CodeUnlearnTrainer(Trainer):
    """See the module docstring. Trains a `CodebookModel` on examples in any of the forms of `data.sources`.

    Args:
        codebook: the model with its bottleneck.
        args: arguments of the run.
        train_dataset: the model's own fine-tuning data and general text.
        processing_class: the tokenizer of the model.
        eval_dataset: examples on which `evaluate` compares the loss with that of the model without bottleneck.
        peft_config: the adapter of `train="lora"`.
        callbacks: as in `Trainer`.

    Raises:
        ValueError: `train` and the model or the adapter do not fit.

    Logs beside `loss`: `loss/lm`, `loss/recon`, `loss/code`, `loss/commit`, `loss/l1` where they have a weight;
    `codes/used` since the last log, `codes/dead` (unused for as long as revival waits), `codes/perplexity` (the
    exponential of the entropy of their use), `codes/zero` (the share of tokens whose encoding is zero) and
    `codes/z_norm`.
    """

    args: CodeUnlearnConfig

    def __init__(
        self,
        codebook: CodebookModel,
        args: CodeUnlearnConfig,
        train_dataset: Dataset | Sequence[dict],
        processing_class: PreTrainedTokenizerBase,
        eval_dataset: Dataset | Sequence[dict] | None = None,
        peft_config: PeftConfig | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ):
        if (peft_config is not None) != (args.train == "lora"):
            raise ValueError(
                f"`train` is {args.train!r}, and {'an' if peft_config else 'no'} adapter was given: an adapter belongs "
                "to `train='lora'`, which needs one (`peft_config`)."
            )
        model = codebook.base_model
        if args.train == "lora" and codebook.trained != "bottleneck":
            already = {"lora": "an adapter", "full": "all weights of the model"}[codebook.trained]
            raise ValueError(
                f"The codebook was trained with {already}, beside which another adapter would not be saved: train on "
                f"with `--train {'full` or `--train ' if codebook.trained == 'full' else ''}bottleneck`."
            )
        if args.train == "full":
            if isinstance(model, PeftModel):
                raise ValueError(
                    "The model comes with an adapter, whose base cannot be trained in full: merge it first "
                    "(`llm-unlearn merge`), or use `--train lora` or `--train bottleneck`."
                )
            if getattr(model, "is_quantized", False):
                raise ValueError(
                    "The model is quantised, and its weights cannot be trained: use `--train lora` or "
                    "`--train bottleneck`."
                )
            require_fp32(model)
        if args.train == "lora":
            model = codebook.base_model = attach_adapter(model, peft_config, args.seed)
        else:
            pin_4bit_weights(model)
            model.requires_grad_(args.train == "full")
        codebook.bottleneck.requires_grad_(True)
        if args.hold_bottleneck:
            for parameter in (*parameters_below(model, codebook.config), *codebook.bottleneck.parameters()):
                parameter.requires_grad_(False)
        if args.train != "bottleneck":
            # What was trained with it before stays a part of it.
            codebook.trained = args.train
        self.codebook = codebook
        self._kind = kind_of(model)
        self.tokenize = self._kind.tokenizer(processing_class, args.system_prompt, args.max_length)
        with _bottleneck_counts_as_adapter(model):
            super().__init__(
                model=model,
                args=args,
                data_collator=partial(self._kind.collate, pad_id=0),
                train_dataset=self.tokenize.all(train_dataset),
                eval_dataset=None if eval_dataset is None else self.tokenize.all(eval_dataset),
                callbacks=callbacks,
            )
        self.loss_is_scaled_for_ga = False
        self.usage = CodeUsage(self)
        self.add_callback(self.usage)
        self._parts: list[dict[str, Tensor]] = []

    def make_first_weights(self) -> float:
        """Set the bottleneck from the texts to train on, as `args` say; returns the share of variance that is lost."""
        args = self.args
        return initialise_from(self.codebook, self.train_dataset, args.init_tokens, args.seed, args.init_whiten)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """The loss of one batch; without gradient, of the language modelling term alone."""
        seen: list[Observation] = []
        with self.codebook.bottleneck.observed(seen.append):
            unwrapped = self.accelerator.unwrap_model(model, keep_torch_compile=False)
            answers = self._kind.logits(model, unwrapped, inputs)
        lm = -AnswerScores.of(answers).means.mean()
        if not model.training:
            return (lm, {}) if return_outputs else lm
        (observed,) = seen
        counted = inputs["attention_mask"].bool()
        if observed.exempt is not None:
            counted = counted & ~observed.exempt
        parts = {"lm": (1.0, lm), **self._auxiliary(observed, counted)}
        loss = sum(coef * value for coef, value in parts.values())
        self._parts.append({name: value.detach() for name, (_, value) in parts.items()})
        self.usage.saw(observed, counted)
        return (loss, {}) if return_outputs else loss

    def _auxiliary(self, observed: Observation, counted: Tensor) -> dict[str, tuple[float, Tensor]]:
        args, codes = self.args, self.codebook.bottleneck.codebook.weight
        if args.hold_bottleneck:
            return {}
        variance = self.codebook.bottleneck.x_variance
        terms = {
            "l1": (args.l1_coef, lambda: _code_l1(observed.codes, codes)),
            "recon": (args.recon_coef, lambda: (observed.x.detach() - observed.y).square().mean(-1) / variance),
            "code": (args.code_coef, lambda: (observed.z.detach() - observed.q).square().mean(-1)),
            "commit": (args.commit_coef, lambda: (observed.z - observed.q.detach()).square().mean(-1)),
        }
        return {name: (coef, sequence_mean(term(), counted)) for name, (coef, term) in terms.items() if coef}

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """The stock optimiser; codes are an embedding, which the stock rule would decay."""
        decay = super().get_decay_parameter_names(self.model)
        codes = self.codebook.bottleneck.codebook.weight
        names = {name for name, parameter in self.model.named_parameters() if parameter is codes}
        self.get_decay_parameter_names = lambda model: [name for name in decay if name not in names]
        return super().create_optimizer(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The loss on the evaluation examples, with the bottleneck and without, and the gap between them, in nats."""
        with self.codebook.disabled():
            without = super().evaluate(*args, **{**kwargs, "metric_key_prefix": "without"})["without_loss"]
        metrics = super().evaluate(*args, **kwargs) | {"without_loss": without}
        gap = {"eval_gap": metrics["eval_loss"] - without, "eval_perplexity": math.exp(min(metrics["eval_loss"], 50))}
        self.log(gap)
        return metrics | gap

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the parts of the loss and the use of codes since the last log."""
        if self._parts and "loss" in logs:
            for name in self._parts[0]:
                values = torch.stack([parts[name] for parts in self._parts]).mean()
                logs[f"loss/{name}"] = self.accelerator.reduce(values, reduction="mean").item()
            self._parts.clear()
            logs |= self.usage.summary()
        super().log(logs, start_time)

    # Checkpoints.

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        with remove_if_cut(Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"):
            super()._save_checkpoint(model, trial)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        # In a folder of its own: other processes write their part of a checkpoint meanwhile, and a whole folder is
        # replaced here.
        if self.args.should_save:
            self.codebook.save_pretrained(Path(output_dir or self.args.output_dir) / CODEBOOK_FOLDER)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint) / CODEBOOK_FOLDER
        bottleneck = self.codebook.bottleneck
        state = load_file(folder / WEIGHTS_NAME)
        bottleneck.load_state_dict({**bottleneck.state_dict(), **state})
        if self.args.train == "lora":
            set_peft_model_state_dict(self.model, load_peft_weights(folder / ADAPTER_FOLDER, "cpu"), TRAINED_ADAPTER)
        if self.args.train == "full":
            weights = {}
            for file in sorted((folder / BASE_FOLDER).glob("*.safetensors")):
                weights |= load_file(file)
            self.model.load_state_dict(weights, strict=False)


def sequence_mean(values: Tensor, counted: Tensor) -> Tensor:
    """The mean over the counted tokens of each sequence, ``(batch, tokens)``, then over sequences."""
    return ((values * counted).sum(-1) / counted.sum(-1).clamp_min(1)).mean()


@contextmanager
def _bottleneck_counts_as_adapter(model: nn.Module) -> Iterator[None]:
    """The stock Trainer trains a quantised model only if it has adapters, by which it means those of peft."""
    quantised = getattr(model, "is_quantized", False) and not isinstance(model, PeftModel)
    if not quantised:
        yield
        return
    was = model._hf_peft_config_loaded
    model._hf_peft_config_loaded = True
    try:
        yield
    finally:
        model._hf_peft_config_loaded = was


def _code_l1(chosen: Tensor, codes: Tensor) -> Tensor:
    return codes.abs().mean(-1)[chosen].sum(-1)
