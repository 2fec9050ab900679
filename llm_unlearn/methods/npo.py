"""NPO: negative preference optimisation, an ascent that fades once the answer has become unlikely.

Equation: ``L_forget = -(2 / beta) mean_i log sigmoid(-beta (S(y_i) - S_ref(y_i)))``, S the *sum* of the answer tokens'
log-probabilities, S_ref the same before unlearning. At the start it equals ``(2 / beta) ln 2``.
Paper: Zhang et al., arXiv 2404.05868.

| paper | here |
|---|---|
| beta | `beta` |
| retain weight, alpha in open-unlearning | `retain_coef` |

Badge: *faithful* (open-unlearning's code on a golden vector), except that S_ref is computed once and kept: it never
changes, so a resident reference model or a forward per step would repeat the same numbers.
"""

from dataclasses import dataclass, field

from torch import Tensor

from llm_unlearn.config import UnlearningConfig
from llm_unlearn.forward import AnswerScores
from llm_unlearn.losses import npo_loss
from llm_unlearn.trainer import UnlearningTrainer


@dataclass
class NPOConfig(UnlearningConfig):
    """Arguments of NPO.

    Args:
        beta (`float`, defaults to 0.1): inverse temperature; towards 0 NPO becomes gradient ascent. The paper's value;
            the best of a public sweep on forget10 with a 1B model had 0.1 too, with `retain_coef` 5.
    """

    beta: float = field(default=0.1, metadata={"help": "Inverse temperature of NPO, > 0."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta > 0:
            raise ValueError(f"`beta` is {self.beta}; it must be positive.")


class NPOTrainer(UnlearningTrainer):
    """See the module docstring."""

    args: NPOConfig
    needs_reference_logps = True

    def forget_loss(self, forget: AnswerScores, *, reference_logps: Tensor, **_: object) -> Tensor:
        """``-(2 / beta) log sigmoid(-beta (S - S_ref))``, per sequence."""
        return npo_loss(forget.sums, reference_logps, self.args.beta)
