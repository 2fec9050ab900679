"""SimNPO: `npo` with the length-normalised log-probability and without a reference.

Equation: ``L_forget = -(2 / beta) mean_i log sigmoid(beta (l(y_i) - delta))``, l the token-mean NLL of an answer.
Paper: Fan et al., arXiv 2410.07163.

| paper | here |
|---|---|
| beta | `beta` |
| gamma (their margin, outside beta) | ``beta * delta`` |
| weight of the forget term in the authors' code | `forget_coef` |

Badge: *faithful* to the authors' code. It over-forgets easily: aim at the retain model's values, not at a minimum.
"""

from dataclasses import dataclass, field

from torch import Tensor

from llm_unlearn.config import UnlearningConfig
from llm_unlearn.forward import AnswerScores
from llm_unlearn.losses import simnpo_loss
from llm_unlearn.trainer import UnlearningTrainer


@dataclass
class SimNPOConfig(UnlearningConfig):
    """Arguments of SimNPO.

    Args:
        beta (`float`, defaults to 4.5): the authors' value for forget10 (2.5 for forget05).
        delta (`float`, defaults to 0.0): NLL in nats towards which an answer is pushed, >= 0. The authors' value.
        forget_coef (`float`, defaults to 0.125): the authors' value for forget10 (0.1375 for forget05).
    """

    forget_coef: float = field(default=0.125, metadata={"help": "Weight of the forget term, > 0."})
    beta: float = field(default=4.5, metadata={"help": "Inverse temperature of SimNPO, > 0."})
    delta: float = field(default=0.0, metadata={"help": "Margin: NLL towards which an answer is pushed, >= 0."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta > 0:
            raise ValueError(f"`beta` is {self.beta}; it must be positive.")
        if not self.delta >= 0:
            raise ValueError(f"`delta` is {self.delta}; it is a loss in nats and must not be negative.")


class SimNPOTrainer(UnlearningTrainer):
    """See the module docstring."""

    args: SimNPOConfig

    def forget_loss(self, forget: AnswerScores, **_: object) -> Tensor:
        """``-(2 / beta) log sigmoid(beta (l - delta))``, per sequence."""
        return simnpo_loss(forget.means, self.args.beta, self.args.delta)
