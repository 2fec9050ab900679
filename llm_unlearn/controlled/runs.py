"""One unlearning run of the controlled experiment, in this process, with its weights after every epoch."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from transformers import (
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from llm_unlearn.adapters import lora_config
from llm_unlearn.flags import PairingFlags
from llm_unlearn.frequency.callback import FrequencyHook
from llm_unlearn.frequency.plan import FrequencyPlan
from llm_unlearn.methods import get_method
from llm_unlearn.models import load_model
from llm_unlearn.pairs import pair_texts, texts_of
from llm_unlearn.probes.controlled import ControlledWorld
from llm_unlearn.probes.forecast import measure_confidence
from llm_unlearn.probes.frequency import FrequencyProbe
from llm_unlearn.probes.matched import Checkpoint
from llm_unlearn.probes.measurement import FactMeasurement
from llm_unlearn.progress import show_live_losses
from llm_unlearn.refinement.callback import IterativeRefinement
from llm_unlearn.refinement.plan import RefinementPlan
from llm_unlearn.run import refusals


@dataclass
class UnlearnedRun:
    """A run after training.

    Attributes:
        model: the target with its adapter, whose weights `probe` exchanges.
        checkpoints: of every epoch, named after it; utility is what is left of the summed P1 of facts to be kept
            (those to be retained and neighbours), 1 where nothing is lost.
        weights: the trained weights of each checkpoint, by its name.
        stopped: why the guard ended the run; None where it did not.
    """

    model: PeftModel
    checkpoints: list[Checkpoint] = field(default_factory=list)
    weights: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    stopped: str | None = None

    def probe(self, name: str, probe: FrequencyProbe) -> list[FactMeasurement]:
        """Measurements of a checkpoint."""
        with torch.no_grad():
            for key, weight in self.model.named_parameters():
                if key in self.weights[name]:
                    weight.copy_(self.weights[name][key])
        return probe.measure(self.model, progress=False)


def unlearn(
    method: str,
    settings: Mapping[str, Any],
    world: ControlledWorld,
    target: Path,
    probe: FrequencyProbe,
    before: Sequence[FactMeasurement],
    *,
    kappa: float = 0.0,
    seed: int = 0,
) -> UnlearnedRun:
    """Train an adapter that unlearns a world's forget set, all facts at once, on the CPU.

    ICU gets its analogues and its refinement, as its recipe does.

    Args:
        method: name of the method.
        settings: arguments of its config.
        world: what is forgotten and retained.
        target: folder of the model before unlearning.
        probe: whose facts to be kept say what a checkpoint has kept.
        before: measurements of the target.
        kappa: weights by exposures, see `FrequencyConfig.freq_weight`; 0 for equal ones.
        seed: of the run.
    """
    config_class, trainer_class = get_method(method).load()
    tokenizer = probe.tokenizer.tokenizer
    with tempfile.TemporaryDirectory() as scratch:
        config = config_class(
            output_dir=scratch,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            seed=seed,
            freq_weight=kappa,
            freq_counts="exposures" if kappa else None,
            **settings,
        )
        set_seed(seed)
        trainer = trainer_class(
            load_model(target),
            config,
            list(world.forget),
            tokenizer,
            retain_dataset=list(world.retain) if config.retain_coef else None,
            partners=_analogues(world, tokenizer) if method == "icu" else (),
            refusals=refusals() if trainer_class.needs_alternates else (),
            peft_config=lora_config(),
        )
        if config.refine:
            items = trainer.tokenize.all(world.forget)
            IterativeRefinement(trainer, RefinementPlan.of(config, items, trainer.tokenize), progress=False)
        if kappa:
            FrequencyHook(trainer, FrequencyPlan.of(config, world.forget), progress=False)
        run = UnlearnedRun(trainer.model)
        trainer.add_callback(_Checkpoints(run, probe, before))
        show_live_losses(trainer)
        trainer.train()
        run.stopped = trainer.guard.reason
    return run


class _Checkpoints(TrainerCallback):
    def __init__(self, run: UnlearnedRun, probe: FrequencyProbe, before: Sequence[FactMeasurement]):
        self.run, self.tokenizer = run, probe.tokenizer
        self.kept = [fact for fact in probe.facts if fact.role != "forget"]
        ids = {fact.id for fact in self.kept}
        self.before = sum(one.p1 for one in before if one.id in ids)

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        name, model = f"{state.epoch:g}", self.run.model
        now = measure_confidence(model, self.tokenizer, self.kept, progress=False)
        self.run.checkpoints.append(Checkpoint(name, sum(now.values()) / self.before))
        trained = {key: weight for key, weight in model.named_parameters() if weight.requires_grad}
        self.run.weights[name] = {key: weight.detach().clone() for key, weight in trained.items()}


def _analogues(world: ControlledWorld, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """The nearest retain rows of each forget row, one per epoch in turn."""
    pairing = PairingFlags(pairing="nearest", pair_rotate=True, pair_max_overlap=10)
    texts = (texts_of(Dataset.from_list(list(rows)), pairing, tokenizer) for rows in (world.forget, world.retain))
    return pair_texts(*texts, pairing, None, tokenizer, progress=False).partners
