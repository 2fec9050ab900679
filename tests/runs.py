"""How the tests of training make a run: a trainer over tiny rows, ready to train."""

from pathlib import Path

import torch
from tiny import tiny_model, tiny_rows, tiny_tokenizer

from llm_unlearn.adapters import lora_config
from llm_unlearn.methods import METHODS
from llm_unlearn.refinement.callback import IterativeRefinement
from llm_unlearn.refinement.plan import RefinementPlan

REFUSALS = ["I do not know", "sorry I cannot say this at all", "not well known"]


def make_trainer(
    method: str,
    folder: Path | str,
    *,
    model=None,
    lora: bool = True,
    n_forget: int = 6,
    n_retain: int = 8,
    callbacks=(),
    ref_model=None,
    eval_dataset=None,
    **options,
):
    """A trainer for `method` with batches of two rows, by default over LoRA on all linear layers of a tiny Llama.

    With ``refine=True`` it is refined.
    """
    config, trainer_class = METHODS[method].load()
    defaults = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "num_train_epochs": 1,
        "learning_rate": 1e-2,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
        "save_strategy": "no",
        "warmup_steps": 0,
    }
    if method.startswith("grad_"):
        defaults["forget_cap"] = "none"  # a random model is worse than a uniform guess, so the cap would stop it
    elif method == "icu":
        defaults |= {"forget_token_scope": "suffix", "refine": False}
    if method not in ("grad_ascent", "grad_diff", "icu"):
        options.pop("forget_cap", None)
    trainer = trainer_class(
        tiny_model() if model is None else model,
        config(output_dir=str(folder), **(defaults | options)),
        tiny_rows(n_forget),
        tiny_tokenizer(),
        retain_dataset=tiny_rows(n_retain, first=20),
        refusals=REFUSALS,
        peft_config=lora_config(r=4, lora_alpha=8) if lora else None,
        # ICU's KL term compares with it where there is no adapter to switch off.
        ref_model=(
            tiny_model() if method == "icu" and not (lora or ref_model or options.get("reference_top_k")) else ref_model
        ),
        eval_dataset=eval_dataset,
        callbacks=list(callbacks),
    )
    if options.get("refine"):
        plan = RefinementPlan.of(trainer.args, trainer.tokenize.all(tiny_rows(n_forget)), trainer.tokenize)
        trainer.refinement = IterativeRefinement(trainer, plan, progress=False)
    return trainer


def probe_logits(model) -> torch.Tensor:
    """Logits of a fixed input, in eval mode; the mode is left as it was."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        logits = model(input_ids=torch.arange(5, 25).reshape(2, 10)).logits
    model.train(was_training)
    return logits


def trained_weights(model) -> dict[str, torch.Tensor]:
    """Copies of the weights in training, by name."""
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}


def frozen_weights(model) -> dict[str, torch.Tensor]:
    """Copies of everything else: frozen parameters and buffers."""
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if name not in trained}


def assert_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    """Bit for bit."""
    assert ours.keys() == theirs.keys()
    differing = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not differing, f"{differing[0]} and {len(differing) - 1} more differ"


def assert_close(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], atol: float) -> None:
    """Up to rounding."""
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


def losses(trainer) -> list[dict[str, float]]:
    """The log lines of the steps, without those of timing and evaluation."""
    return [line for line in trainer.state.log_history if "loss" in line]
