"""ICU: iterative contrastive unlearning. Ascent on what is to be forgotten, learning on what is most like it.

Equation: ``L = forget_coef * L_fgt + learn_coef * L_lrn + kl_coef * L_kl`` over pairs of a forget sequence x^f and an
analogous one x^l: ``L_fgt = +mean_t log p(x^f_t)``, ``L_lrn = -mean_t log p(x^l_t)`` and, on x^l only,
``L_kl = mean_t KL(p0 || p)`` with p0 the model before unlearning.
Paper: Tang et al., arXiv 2407.20271; read in the authors' released code, not in the paper's body.

| paper | here |
|---|---|
| w_u; alpha (`lw`); beta (`kl`) | `forget_coef`, `learn_coef`, `kl_coef` |
| KUI, the forget term | `forget_loss`, `forget_token_scope` |
| CLE, the pairs x^f, x^l | partners found by `data.analogues`, given to the trainer as `partners` |
| IUR, flags, a, b and the stop rule | `refinement`; `iur_*`, `stop_*` |

Badge: *faithful* in losses, coefficients, flags and stop rule (preset `icu-paper`), except that a mean is taken over a
sequence's tokens first, then over the active sequences: the same where all have one length, as the released data do.
Smaller differences: the stop rule has "at most" for "below", an end token counts where a text has one, generated texts
are compared without special tokens. The released code stores p0 over the vocabulary for all x^l; here it is the same
model with the adapter switched off, or stored over k tokens and the rest (`reference_top_k`). Added: bounded forget
losses, the masked and the reversed KL.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

from torch import Tensor

from llm_unlearn.config import AscentConfig
from llm_unlearn.data.tokenization import TokenizedItem
from llm_unlearn.forward import AnswerLogits, AnswerScores, ReferenceLogits
from llm_unlearn.functional import row_mean, token_cross_entropy, token_kl
from llm_unlearn.losses import ascent_loss, npo_loss, simnpo_loss, unlikelihood_loss
from llm_unlearn.trainer import UnlearningTrainer

_BETA = {"npo": 0.1, "simnpo": 4.5}


@dataclass
class ICUConfig(AscentConfig):
    """Arguments of ICU; those of its refinement are in `RefinementConfig`. Defaults: the released code.

    Args:
        learn_coef (`float`, defaults to 0.5), kl_coef (`float`, defaults to 1.0): weights of the terms on the analogous
            sequence, >= 0; with both 0 no retain data is loaded.
        forget_loss (`str`, defaults to "ga"): "ga", unbounded ascent, as released; "ga_hinge", ascent up to
            `forget_cap`; "npo", "simnpo" or "unlikelihood", which are bounded by themselves.
        beta (`float`, *optional*): that of "npo" or "simnpo". Unset: 0.1 and 4.5, the values of those papers.
        forget_token_scope (`str`, *optional*): the forget term over "all" tokens of the sequence, prompt included, or
            over the "suffix" alone: the answer, or of plain text what follows `iur_prefix`. Unset: "all" of plain
            text, as released, and the answer elsewhere, where the released code says nothing (ours).
        kl_form (`str`, defaults to "ce"): "ce", the cross-entropy to the reference, or "kl". Same gradient; only the
            KL is 0 at the start.
        kl_direction (`str`, defaults to "fwd"): "fwd" is KL(p0 || p), "rev" KL(p || p0) (for `kl_form` "kl").
        kl_mask_pad (`bool`, defaults to False): whether the KL is over the scored tokens only. False, as released: the
            mean over all positions of a sequence as long as the longest to keep, those of prompt and padding and the
            one after the last token included.
        forget_cap (`str`, defaults to "ln_vocab"): that of "ga_hinge", see `AscentConfig`.
        refine (`bool`, defaults to True): see `RefinementConfig`.
    """

    learn_coef: float = field(default=0.5, metadata={"help": "Weight of the NLL on the analogous sequence."})
    kl_coef: float = field(default=1.0, metadata={"help": "Weight of the KL to the reference on it."})
    forget_loss: Literal["ga", "ga_hinge", "npo", "simnpo", "unlikelihood"] = field(
        default="ga", metadata={"help": "Forget term; ga is the released code's, the others are bounded."}
    )
    beta: float | None = field(default=None, metadata={"help": "Beta of npo (unset: 0.1) or simnpo (unset: 4.5)."})
    forget_token_scope: Literal["all", "suffix"] | None = field(
        default=None,
        metadata={"help": "Forget term over all tokens or the answer / suffix. Unset: all of plain text, else answer."},
    )
    kl_form: Literal["ce", "kl"] = field(default="ce", metadata={"help": "Cross-entropy to the reference, or KL."})
    kl_direction: Literal["fwd", "rev"] = field(
        default="fwd", metadata={"help": "KL(reference || model), or the other way round."}
    )
    kl_mask_pad: bool = field(default=False, metadata={"help": "KL over scored tokens only, not over all positions."})
    refine: bool = field(default=True, metadata={"help": "Iterative refinement; --no_refine trains on all pairs."})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("learn_coef", "kl_coef"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"`{name}` is {getattr(self, name)}; it must be 0 (no such term) or positive.")
        if (self.retain_coef, self.retain_loss) != (1.0, "nll"):
            raise ValueError(
                "`retain_coef` and `retain_loss` are not ICU's: weigh its terms by `learn_coef` and `kl_coef`."
            )
        if not (self.learn_coef or self.kl_coef):
            self.retain_coef = 0.0
        if self.forget_loss != "ga_hinge":
            if self.forget_cap not in ("ln_vocab", "none"):
                raise ValueError(
                    f"`forget_cap` is {self.forget_cap!r} with `forget_loss` {self.forget_loss!r}; it belongs to "
                    "'ga_hinge'."
                )
            self.forget_cap = "none"
        if self.beta is not None and (self.forget_loss not in _BETA or not self.beta > 0):
            raise ValueError(
                f"`beta` is {self.beta} with `forget_loss` {self.forget_loss!r}; it must be positive and belongs to "
                "'npo' and 'simnpo'."
            )
        if self.kl_direction == "rev" and self.kl_form == "ce":
            raise ValueError("The reverse direction has no cross-entropy form: add `--kl_form kl`.")

    @property
    def needs_reference_logits(self) -> bool:
        """Whether there is a KL term."""
        return self.kl_coef > 0


class ICUTrainer(UnlearningTrainer):
    """See the module docstring. Give `partners` for pairs of analogues; without, retain rows are drawn at random."""

    args: ICUConfig

    @property
    def needs_reference_logps(self) -> bool:
        """Whether the forget term compares with the model before unlearning."""
        return self.args.forget_loss == "npo"

    def forget_scope(self, items: list[TokenizedItem], args: ICUConfig) -> list[TokenizedItem]:
        """All tokens, or those of the answer or suffix.

        Raises:
            ValueError: a plain text ends before its suffix begins.
        """
        if args.forget_token_scope is None:
            return items
        if args.forget_token_scope == "all":
            return [replace(item, prompt_length=0) for item in items]
        scoped = [replace(item, prompt_length=item.prompt_length or args.iur_prefix[1]) for item in items]
        for item in scoped:
            if not item.answer_ids:
                raise ValueError(
                    f"Row {item.index} of the forget set has {len(item.input_ids)} tokens, none of them after token "
                    f"{item.prompt_length}, where its suffix begins: give a smaller `--iur_prefix`, or "
                    "`--forget_token_scope all`."
                )
        return scoped

    def forget_loss(self, forget: AnswerScores, *, reference_logps: Tensor | None = None, **_: object) -> Tensor:
        """The forget term, per sequence."""
        args = self.args
        beta = args.beta or _BETA.get(args.forget_loss)
        if args.forget_loss == "npo":
            return npo_loss(forget.sums, reference_logps, beta)
        if args.forget_loss == "simnpo":
            return simnpo_loss(forget.means, beta, delta=0.0)
        if args.forget_loss == "unlikelihood":
            return row_mean(unlikelihood_loss(forget.token_logps), forget.rows, forget.batch_size)
        return ascent_loss(
            forget.means, args.resolve_forget_cap(self.vocab_size) if args.forget_loss == "ga_hinge" else None
        )

    @property
    def retain_everywhere(self) -> bool:
        """The released KL is a mean over all positions."""
        return self.args.kl_coef > 0 and not self.args.kl_mask_pad

    def retain_losses(
        self, answers: AnswerLogits, reference: ReferenceLogits | None
    ) -> dict[str, tuple[float, Tensor]]:
        """Learn and KL terms on the analogous sequence, each where it has a weight."""
        args, losses = self.args, {}
        if args.learn_coef:
            scored = answers.answers_only() if self.retain_everywhere else answers
            losses["learn"] = (args.learn_coef, -AnswerScores.of(scored).means)
        if args.kl_coef:
            divergence = token_kl if args.kl_form == "kl" else token_cross_entropy
            pair = reference.beside(answers.logits)
            per_token = divergence(*pair) if args.kl_direction == "fwd" else token_kl(*reversed(pair))
            losses["kl"] = (args.kl_coef, row_mean(per_token, answers.rows, answers.batch_size))
        return losses
