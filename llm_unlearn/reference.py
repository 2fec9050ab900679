"""The reference: the model before unlearning, without a second model in memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from llm_unlearn.adapters import without_newest_adapter
from llm_unlearn.data.collator import collate
from llm_unlearn.data.pairing import Pair
from llm_unlearn.data.tokenization import TokenizedItem
from llm_unlearn.forward import AnswerLogits, AnswerScores, ReferenceLogits, answer_logits, concatenate

if TYPE_CHECKING:
    from llm_unlearn.trainer import UnlearningTrainer


@contextmanager
def reference_model(model: nn.Module, unwrapped: nn.Module, ref_model: nn.Module | None) -> Iterator[nn.Module]:
    """Yield the module to call as the reference, in eval mode (dropout would make it random).

    Args:
        model: the model in training, as wrapped.
        unwrapped: the same without wrappers.
        ref_model: a separate reference, which wins where given.

    Raises:
        ValueError: neither an adapter to switch off nor a `ref_model`.
    """
    if ref_model is not None:
        yield ref_model
        return
    if not isinstance(unwrapped, PeftModel):
        raise ValueError(
            "All weights are trained, so the model before unlearning is gone: pass `ref_model`, or train an adapter "
            "(`--use_peft`)."
        )
    was_training = unwrapped.training
    model.eval()
    try:
        with without_newest_adapter(unwrapped):
            yield model
    finally:
        model.train(was_training)


class Reference:
    """What a run asks of the model before unlearning.

    What is asked of its training rows never changes and is read into tables once, at the first step: with all weights
    in training and no `ref_model`, the model still is its own reference then. Distributions over the whole vocabulary
    would be too large to keep, so a KL without `reference_top_k` computes them anew in each step; so does evaluation,
    whose rows have other ids.

    Args:
        trainer: the trainer of the run, with its arguments, model and data.

    Attributes:
        logps: the table of log-probabilities; None until it is filled.
        top_k: the table of distributions; None until it is filled.

    Raises:
        ValueError: `reference_top_k` is larger than the vocabulary.
    """

    def __init__(self, trainer: "UnlearningTrainer"):
        k = trainer.args.reference_top_k
        if k is not None and k > trainer.vocab_size:
            raise ValueError(
                f"`reference_top_k` is {k} and the model knows {trainer.vocab_size} tokens: give at most as many, or "
                "leave it unset."
            )
        self._trainer = trainer
        self.logps: ReferenceLogps | None = None
        self.top_k: ReferenceTopK | None = None

    def scores(self, model: nn.Module, inputs: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
        """What a forget loss gets besides the current scores: by name sums before unlearning, ``(batch,)``."""
        if not self._trainer.needs_reference_logps:
            return {}
        names = {"forget": "reference_logps", "alternate": "reference_alternate_logps"}
        if not model.training:
            halves = inputs.keys() & names.keys()
            return {names[half]: AnswerScores.of(self._answers(model, inputs[half])).sums for half in halves}
        if self.logps is None:
            self.logps = ReferenceLogps.fill(self._trainer, model)
        forget = inputs["forget"]["index"]
        scores = {names["forget"]: self.logps.forget(forget)}
        if "alternate" in inputs:
            scores[names["alternate"]] = self.logps.alternate(forget, inputs["alternate"]["index"])
        return scores

    def logits(self, model: nn.Module, half: dict[str, Tensor]) -> ReferenceLogits:
        """What a KL compares with, at the positions that the retain term reads of the rows `half`."""
        trainer, k = self._trainer, self._trainer.args.reference_top_k
        if k is None or not model.training:
            logits = self._answers(model, half, trainer.retain_everywhere).logits
            return ReferenceLogits(logits) if k is None else ReferenceLogits.top(logits, k)
        if self.top_k is None:
            self.top_k = ReferenceTopK.fill(trainer, model)
        return self.top_k.of(half["index"])

    def _answers(self, model: nn.Module, half: dict[str, Tensor], everywhere: bool = False) -> AnswerLogits:
        trainer = self._trainer
        with torch.no_grad(), reference_model(model, trainer._unwrapped(model), trainer.ref_model) as reference:
            return answer_logits(reference, trainer._unwrapped(reference), half, everywhere)

    # The life of the tables.

    @property
    def _is_lost(self) -> bool:
        """Whether nothing can be computed again once training has begun."""
        return self._trainer.ref_model is None and not isinstance(self._trainer.model, PeftModel)

    def begin_run(self) -> None:
        """Drop what an earlier run of the trainer has read, where it can be read again: a longer one meets other rows.

        Raises:
            ValueError: it cannot, and the table of distributions is not the one that this run needs.
        """
        if not self._is_lost:
            self.logps = self.top_k = None
        elif self.top_k is not None:
            self.top_k.require_for(self._trainer)

    def load(self, checkpoint: Path) -> None:
        """Read the tables from a checkpoint folder, where they cannot be computed again.

        Raises:
            ValueError: the checkpoint lacks one.
        """
        if self._is_lost and self._trainer.needs_reference_logps:
            self.logps = ReferenceLogps.load(checkpoint, self._trainer.args.device)
        if self._is_lost and self._trainer.args.reference_top_k is not None:
            self.top_k = ReferenceTopK.load(checkpoint, self._trainer.args.device)

    def save(self, checkpoint: Path) -> None:
        """Write the tables into a checkpoint folder, where they cannot be computed again."""
        for table in (self.logps, self.top_k):
            if self._is_lost and table is not None:
                table.save(checkpoint)


class _Table:
    """Tensors by name, in a checkpoint one file."""

    file_name: ClassVar[str]

    def save(self, folder: Path) -> None:
        """Write the table into a checkpoint folder."""
        save_file({name: tensor.cpu().contiguous() for name, tensor in vars(self).items()}, folder / self.file_name)

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> "_Table":
        """Read the table of a checkpoint folder.

        Raises:
            ValueError: the checkpoint has none.
        """
        if not (folder / cls.file_name).is_file():
            raise ValueError(
                f"{folder} has no {cls.file_name}, without which a run that trains all weights cannot resume: start "
                "anew, or train an adapter (`--use_peft`)."
            )
        return cls(**{name: tensor.to(device) for name, tensor in load_file(folder / cls.file_name).items()})


@dataclass
class ReferenceLogps(_Table):
    """Sums of the answers' log-probabilities before unlearning, by sample id. They never change during a run.

    Attributes:
        forget_sums: ``(n_forget,)``.
        alternate_sums: ``(n_forget, n_alternates)``; NaN for pairs that the run never draws.
    """

    file_name = "reference_logps.safetensors"

    forget_sums: Tensor
    alternate_sums: Tensor

    def forget(self, index: Tensor) -> Tensor:
        """``S_ref(y)`` of the items `index`, ``(batch,)``."""
        return self.forget_sums[index]

    def alternate(self, index: Tensor, candidate: Tensor) -> Tensor:
        """``S_ref(y')`` of candidate `candidate` of the items `index`, ``(batch,)``."""
        return self.alternate_sums[index, candidate]

    @classmethod
    def fill(cls, trainer: "UnlearningTrainer", model: nn.Module) -> "ReferenceLogps":
        """Score everything the run will draw, once, sharded over the processes."""
        dataset, device = trainer.train_dataset, trainer.args.device
        pairs = {(pair.forget, pair.alternate) for pair in _drawn(trainer)}
        forget = sorted({index for index, _ in pairs})
        drawn = sorted(pair for pair in pairs if pair[1] is not None)

        items = [dataset.forget[i] for i in forget] + [dataset.alternate[i][j] for i, j in drawn]
        sums = torch.zeros(len(items), device=device)
        for positions, answers in _reference_pass(trainer, model, items):
            sums[torch.tensor(positions, device=device)] = AnswerScores.of(answers).sums
        sums = trainer.accelerator.reduce(sums, reduction="sum")

        table = cls(
            torch.full((len(dataset.forget),), torch.nan, device=device),
            torch.full((len(dataset.forget), dataset.n_alternates), torch.nan, device=device),
        )
        table.forget_sums[torch.tensor(forget, device=device)] = sums[: len(forget)]
        for (i, j), value in zip(drawn, sums[len(forget) :], strict=True):
            table.alternate_sums[i, j] = value
        return table


@dataclass
class ReferenceTopK(_Table):
    """The distributions before unlearning at the positions of the retain rows: k tokens each, and all others together.

    It takes ``8 k + 4`` bytes per position on every process's device, in fp32; a position is an answer token, or,
    where the retain term reads all positions, any of ``rows x longest row``.

    Attributes:
        logits: ``(n_positions, k + 1)``, row after row; ``(n_positions, vocab)`` at k = vocab.
        ids: ``(n_positions, k)``, int32.
        offsets: ``(n_retain + 1,)``; row i has the positions from ``offsets[i]`` to ``offsets[i + 1]``, none if the
            run never draws it.
    """

    file_name = "reference_top_k.safetensors"

    logits: Tensor
    ids: Tensor
    offsets: Tensor

    def of(self, index: Tensor) -> ReferenceLogits:
        """The distributions of the items `index`, one item after another."""
        at = self._positions(index)
        return ReferenceLogits(self.logits[at], self.ids[at].long())

    def _positions(self, index: Tensor) -> Tensor:
        bounds = zip(self.offsets[index].tolist(), self.offsets[index + 1].tolist(), strict=True)
        return torch.cat([torch.arange(start, end, device=self.logits.device) for start, end in bounds])

    @classmethod
    def fill(cls, trainer: "UnlearningTrainer", model: nn.Module) -> "ReferenceTopK":
        """Read every retain row that the run will draw, once, sharded over the processes."""
        k, device = trainer.args.reference_top_k, trainer.args.device
        counts = _drawn_positions(trainer).to(device)
        rows = counts.nonzero()[:, 0]
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        n_positions = int(offsets[-1])
        table = cls(
            torch.zeros(n_positions, min(k + 1, trainer.vocab_size), device=device),
            torch.zeros(n_positions, k, dtype=torch.int32, device=device),
            offsets,
        )
        items = [trainer.train_dataset.retain[i] for i in rows.tolist()]
        for numbers, answers in _reference_pass(trainer, model, items, trainer.retain_length):
            at, top = table._positions(rows[numbers]), ReferenceLogits.top(answers.logits, k)
            table.logits[at], table.ids[at] = top.logits, top.ids.int()
        reduce = trainer.accelerator.reduce
        return cls(reduce(table.logits, reduction="sum"), reduce(table.ids, reduction="sum"), offsets)

    def require_for(self, trainer: "UnlearningTrainer") -> None:
        """Refuse a run that other rows, positions or tokens were read for.

        Raises:
            ValueError: rows that the run draws are not in the table, or k or the positions differ.
        """
        needed = _drawn_positions(trainer).to(self.offsets.device)
        missing = (needed > 0) & (needed != self.offsets.diff())
        if self.ids.shape[1] != trainer.args.reference_top_k or bool(missing.any()):
            raise ValueError(
                f"The model before unlearning was read for k = {self.ids.shape[1]} over other positions or rows than "
                "this run draws, and is gone: go on with the flags that the run began with (`--reference_top_k`, "
                "`--num_train_epochs`, `--seed`), or start anew."
            )


def _drawn(trainer: "UnlearningTrainer") -> list[Pair]:
    """The pairs of the whole run."""
    steps_per_epoch = len(trainer.sampler) // trainer.global_batch_size
    epochs = range(ceil(trainer.state.max_steps / steps_per_epoch))
    return [pair for epoch in epochs for pair in trainer.sampler.plan(epoch)]


def _drawn_positions(trainer: "UnlearningTrainer") -> Tensor:
    """How many positions the retain term reads of each retain row, ``(n_retain,)``; 0 if the run never draws it."""
    retain, length = trainer.train_dataset.retain, trainer.retain_length
    counts = torch.zeros(len(retain), dtype=torch.long)
    for i in {pair.retain for pair in _drawn(trainer)}:
        # Nothing predicts the first token of a sequence.
        counts[i] = length or len(retain[i].input_ids) - max(retain[i].prompt_length, 1)
    return counts


def _reference_pass(
    trainer: "UnlearningTrainer", model: nn.Module, items: list[TokenizedItem], length: int = 0
) -> Iterator[tuple[list[int], AnswerLogits]]:
    """This process's share of `items` under the reference, batch by batch: their positions in the list, their logits.

    With a `length` all items are padded to it and logits taken everywhere. Batches are formed before they are dealt to
    processes, so that their number changes no value.
    """
    args = trainer.args
    # Longest first: what is allocated for the first batch is reused by all the others.
    by_length = sorted(range(len(items)), key=lambda i: len(items[i].input_ids), reverse=True)
    size = args.per_device_eval_batch_size
    batches = [by_length[at : at + size] for at in range(0, len(by_length), size)]
    rounds = ceil(len(batches) / args.world_size)
    unwrapped = trainer._unwrapped(model)
    started_from = _eval_mode(model) if not isinstance(unwrapped, PeftModel) and trainer.ref_model is None else None

    with started_from or reference_model(model, unwrapped, trainer.ref_model) as reference:
        bar = tqdm(range(rounds), desc="reference", disable=not trainer.is_world_process_zero() or rounds < 8)
        for round_ in bar:
            number = round_ * args.world_size + args.process_index
            # A process without a batch repeats the first: under FSDP every forward is a collective.
            positions = batches[number] if number < len(batches) else batches[0]
            batch = trainer._prepare_inputs(concatenate([collate([items[i] for i in positions])], length))
            with torch.no_grad():
                answers = answer_logits(reference, trainer._unwrapped(reference), batch, everywhere=bool(length))
            if number < len(batches):
                yield positions, answers


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[nn.Module]:
    was_training = model.training
    model.eval()
    try:
        yield model
    finally:
        model.train(was_training)
