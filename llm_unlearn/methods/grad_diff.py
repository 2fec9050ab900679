"""Gradient difference: `grad_ascent` plus a term that keeps the retain set.

Equation: ``L = -forget_coef * mean_i min(l(y_i), c) + retain_coef * L_retain``.
Paper: TOFU, arXiv 2401.06121; with ``retain_loss kl`` this is the paper's "KL minimisation" (preset `kl_min.yaml`).

| paper | here |
|---|---|
| gamma, alpha (open-unlearning) | `forget_coef`, `retain_coef` |
| c | `forget_cap` |

Badge: *variant*: capped by default, and means per sequence first; KL is the sum over the vocabulary on answer tokens
only (open-unlearning averages over prompt and padding positions too).
"""

from dataclasses import dataclass

from torch import Tensor

from llm_unlearn.config import AscentConfig
from llm_unlearn.forward import AnswerScores
from llm_unlearn.losses import ascent_loss
from llm_unlearn.trainer import UnlearningTrainer


@dataclass
class GradDiffConfig(AscentConfig):
    """Arguments of gradient difference: those of `AscentConfig`."""


class GradDiffTrainer(UnlearningTrainer):
    """See the module docstring."""

    args: GradDiffConfig

    def forget_loss(self, forget: AnswerScores, **_: object) -> Tensor:
        """``-min(l(y), c)``, per sequence."""
        return ascent_loss(forget.means, self.args.resolve_forget_cap(self.vocab_size))
