"""IdkDPO: prefer "I don't know" to the answer.

Equation: ``L_forget = -(2 / beta) mean_i log sigmoid(beta (s(y'_i) - s(y_i)))`` with ``s = S - S_ref``, y' a
refusal.
Paper: the preference baseline of TOFU, arXiv 2401.06121.

| paper | here |
|---|---|
| beta | `beta` |
| I_idk, the pool of refusals | `data/refusals.txt` or `refusals` |

Badge: *variant*: the equation is open-unlearning's; which refusal an item meets is a function of (seed, epoch, item)
instead of a draw from global random state, and the refusals are sentences of our own.
"""

from dataclasses import dataclass, field

from torch import Tensor

from llm_unlearn.config import UnlearningConfig
from llm_unlearn.forward import AnswerScores
from llm_unlearn.losses import dpo_loss
from llm_unlearn.trainer import UnlearningTrainer


@dataclass
class IdkDPOConfig(UnlearningConfig):
    """Arguments of IdkDPO.

    Args:
        beta (`float`, defaults to 0.1): inverse temperature; the value of open-unlearning and of the best public run.
    """

    beta: float = field(default=0.1, metadata={"help": "Inverse temperature of DPO, > 0."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta > 0:
            raise ValueError(f"`beta` is {self.beta}; it must be positive.")


class IdkDPOTrainer(UnlearningTrainer):
    """See the module docstring."""

    args: IdkDPOConfig
    needs_reference_logps = True
    needs_alternates = True

    def forget_loss(
        self,
        forget: AnswerScores,
        *,
        reference_logps: Tensor,
        alternate: AnswerScores,
        reference_alternate_logps: Tensor,
    ) -> Tensor:
        """``-(2 / beta) log sigmoid(beta (s(y') - s(y)))``, per sequence."""
        return dpo_loss(alternate.sums, forget.sums, reference_alternate_logps, reference_logps, self.args.beta)
