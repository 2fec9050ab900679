"""What a run may set about its iterative refinement."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class RefinementConfig:
    """Arguments of iterative refinement (`refinement.callback`), shared by all methods. Off unless `refine` is set.

    Defaults are those of ICU's released code (arXiv 2407.20271), unless said otherwise.

    Args:
        refine (`bool`, defaults to False; True in ICU): before training and after every epoch, judge every forget item,
            leave the forgotten ones out of the loss, and stop when the rule below says so.
        iur_judge (`str`, defaults to "text"): what tells that an item is forgotten. "text", as released: the generated
            text has BERTScore F1 below `iur_bert_f1` or BLEU below `iur_bleu`. "memory", ours: MA, ROUGE-L recall and
            EL_n of the item are all at most their thresholds (those of the retain model or of held-out items).
            "none": no item is ever left out, and only the stop rule counts.
        iur_every (`int`, defaults to 1): epochs between two looks.
        iur_prefix (`list[int]`, defaults to [100, 150]): of plain text, first and last+1 token of the prompt. What
            follows is the suffix. Question-answer data have questions and answers instead.
        iur_context (`str`, defaults to "prefix"): of plain text, whether the prompt is the "prefix" alone or "full",
            all that stands before the suffix, which is the stronger attack (ours).
        iur_new_tokens (`int`, *optional*): tokens to generate. Unset: as many as the suffix (50 in the released code)
            or the true answer has. Evaluations let a model go on for longer, which can only raise ROUGE-L recall.
        iur_beams (`int`, defaults to 2): beams of the generation; 1 is greedy, faster, and can reuse the scores.
        iur_bleu (`float`, defaults to 0.01), iur_bert_f1 (`float`, *optional*): thresholds of the judge "text". The
            second belongs to its encoder. Unset: 0.3 with the paper's, bert-base-uncased; with any other the 95th
            percentile over random pairs of the run's own texts, measured at the start (ours).
        iur_smoothing (`str`, defaults to "none"): smoothing of BLEU: "none" or "add_one".
        iur_encoder (`str`, defaults to "model"): whose vectors BERTScore compares: those of the "model" before
            unlearning (ours, needs nothing else), or the name or folder of an encoder, in the paper
            google-bert/bert-base-uncased.
        iur_rule (`str`, defaults to "or"): whether one of F1 and BLEU below its threshold is enough, or both ("and").
        iur_rouge_l (`float`, *optional*): threshold of the judge "memory". Unset: measured as `stop_ma` is.
        iur_reentry (`bool`, defaults to True): whether a forgotten item that is recalled again comes back.
        iur_drop_partner (`bool`, defaults to True): whether the retain item beside a forgotten item leaves the loss,
            too. Keeping it keeps the pressure to retain (ours).
        iur_patience (`int`, defaults to 1): looks in a row that must find an item forgotten before it is left out.
        iur_screen (`bool`, defaults to False): generate for a forgotten item only where teacher forcing finds it more
            likely than when it was judged (ours; nearly all of a look's time late in a run).
        stop_ma, stop_el (`float`, *optional*): the run stops when the forget set's mean MA and mean EL_n are at most
            these. Unset: the retain model's, from `--reference`; without one those of the holdout rows under the model
            before unlearning; without both there is no such rule, which only the judge "text" allows. The released
            code has GPT-Neo's .5994 and .0499, which say nothing about another model: preset `icu-paper`.
        stop_rule (`str`, defaults to "and"): whether both must be reached, or one ("or").
        el_n (`int`, defaults to 10): length of the n-grams of EL.
        el_start (`int`, defaults to 150): of plain text, the first prefix length of EL_n; 1 is Jang et al.'s
            (arXiv 2210.01504). In question-answer data it is the beginning of the answer.
        el_denominator (`str`, defaults to "label"): see `el_n` in `evaluation.metrics.extraction`.
    """

    refine: bool = field(
        default=False, metadata={"help": "Judge the forget items every epoch, drop the forgotten ones, stop in time."}
    )
    iur_judge: Literal["text", "memory", "none"] = field(
        default="text",
        metadata={"help": "What tells that an item is forgotten: BLEU and BERTScore, MA/ROUGE-L/EL, or nothing."},
    )
    iur_every: int = field(default=1, metadata={"help": "Epochs between two looks."})
    iur_prefix: list[int] = field(
        default_factory=lambda: [100, 150], metadata={"help": "Of plain text: first and last+1 token of the prompt."}
    )
    iur_context: Literal["prefix", "full"] = field(
        default="prefix", metadata={"help": "Of plain text: prompt with the prefix alone, or all before the suffix."}
    )
    iur_new_tokens: int | None = field(
        default=None, metadata={"help": "Tokens to generate. Unset: as many as the suffix or the answer has."}
    )
    iur_beams: int = field(default=2, metadata={"help": "Beams of the generation; 1 is greedy."})
    iur_bleu: float = field(default=0.01, metadata={"help": "BLEU below which a text is forgotten."})
    iur_bert_f1: float | None = field(
        default=None, metadata={"help": "BERTScore F1 below which a text is forgotten. Unset: 0.3 or calibrated."}
    )
    iur_smoothing: Literal["none", "add_one"] = field(default="none", metadata={"help": "Smoothing of BLEU."})
    iur_encoder: str = field(
        default="model", metadata={"help": "Whose vectors BERTScore compares: model, or an encoder's name or folder."}
    )
    iur_rule: Literal["or", "and"] = field(
        default="or", metadata={"help": "Whether one of F1 and BLEU below its threshold is enough."}
    )
    iur_rouge_l: float | None = field(
        default=None, metadata={"help": "ROUGE-L recall up to which an answer is forgotten. Unset: the retain model's."}
    )
    iur_reentry: bool = field(default=True, metadata={"help": "Whether a forgotten item recalled again comes back."})
    iur_drop_partner: bool = field(
        default=True, metadata={"help": "Whether the retain item beside a forgotten one leaves the loss, too."}
    )
    iur_patience: int = field(default=1, metadata={"help": "Looks in a row that must find an item forgotten."})
    iur_screen: bool = field(
        default=False, metadata={"help": "Generate for forgotten items only where they have become more likely."}
    )
    stop_ma: float | None = field(
        default=None, metadata={"help": "Mean MA at which to stop. Unset: the retain model's, or holdout rows'."}
    )
    stop_el: float | None = field(
        default=None, metadata={"help": "Mean EL_n at which to stop. Unset: the retain model's, or holdout rows'."}
    )
    stop_rule: Literal["and", "or"] = field(default="and", metadata={"help": "Whether both must be reached, or one."})
    el_n: int = field(default=10, metadata={"help": "Length of the n-grams of EL."})
    el_start: int = field(default=150, metadata={"help": "Of plain text: first prefix length of EL."})
    el_denominator: Literal["label", "generated"] = field(
        default="label", metadata={"help": "What EL divides by: n-grams of the label, or of the generated text."}
    )

    def check_refinement(self) -> None:
        """Reject what cannot be meant.

        Raises:
            ValueError: a value is out of its range.
        """
        start, stop = self.iur_prefix if len(self.iur_prefix) == 2 else (0, 0)
        if not 0 <= start < stop:
            raise ValueError(f"`iur_prefix` is {self.iur_prefix}; give two token positions in order, such as 100 150.")
        for name in ("iur_every", "iur_beams", "iur_patience", "el_n", "el_start"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; it is a count and must be at least 1.")
        if self.iur_new_tokens is not None and self.iur_new_tokens < 1:
            raise ValueError(f"`iur_new_tokens` is {self.iur_new_tokens}; at least 1 token must be generated.")
        for name in ("iur_bleu", "iur_bert_f1", "iur_rouge_l", "stop_ma", "stop_el"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"`{name}` is {value}; it is a threshold on a score from 0 to 1.")
