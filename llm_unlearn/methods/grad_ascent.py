"""Gradient ascent: raise the loss of the forget answers, and nothing else.

Equation: ``L = -mean_i min(l(y_i), c)``, l the token-mean NLL of an answer.
Paper: the baseline "gradient ascent" of TOFU, arXiv 2401.06121.

| paper | here |
|---|---|
| - | `forget_cap` (c) |

Badge: *variant*. The authors average over the tokens of a batch, we over the tokens of a sequence and then over
sequences, so that batch composition does not change the loss; and the loss is capped by default (`forget_cap none`
is the papers' unbounded form). No retain data is loaded or tokenised.
"""

from dataclasses import dataclass, field

from torch import Tensor

from llm_unlearn.config import AscentConfig
from llm_unlearn.forward import AnswerScores
from llm_unlearn.losses import ascent_loss
from llm_unlearn.trainer import UnlearningTrainer


@dataclass
class GradAscentConfig(AscentConfig):
    """Arguments of gradient ascent: those of `AscentConfig`, with `retain_coef` fixed at 0."""

    retain_coef: float = field(default=0.0, metadata={"help": "Fixed at 0; `grad_diff` has a retain term."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.retain_coef:
            raise ValueError(
                f"`retain_coef` is {self.retain_coef}, but gradient ascent has no retain term: use `grad_diff`."
            )


class GradAscentTrainer(UnlearningTrainer):
    """See the module docstring."""

    args: GradAscentConfig

    def forget_loss(self, forget: AnswerScores, **_: object) -> Tensor:
        """``-min(l(y), c)``, per sequence."""
        return ascent_loss(forget.means, self.args.resolve_forget_cap(self.vocab_size))
