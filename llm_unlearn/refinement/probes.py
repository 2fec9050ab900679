"""The forget items as a look reads them: what is scored, what is asked, and what is continued.

Question-answer items are asked their question and judged by the answer. Plain text has no question, so a part of it is
the prompt (`iur_prefix`) and what follows the suffix, as ICU's released code cuts its 200 tokens into 100 + 50 + 50.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from llm_unlearn.data.tokenization import ExampleTokenizer, TokenizedItem
from llm_unlearn.refinement.config import RefinementConfig


@dataclass(frozen=True)
class Probes:
    """Items, each in the forms that a look needs.

    Attributes:
        whole: scored token by token: the answer, or of plain text every token but the first. MA is over these.
        asked: prompt and suffix: the prompt is continued, the suffix is what the continuation is compared with.
        caps: most new tokens of each.
        continued: prompt and the text of EL_n; None where it has fewer than n tokens and so no EL_n.
        references: the suffixes as text.
        reads_everything: whether prompts hold all that stands before the suffix, so that scores tell how they go on.
        name: what the rows are, for messages.
    """

    whole: list[TokenizedItem]
    asked: list[TokenizedItem]
    caps: list[int]
    continued: list[TokenizedItem | None]
    references: list[str]
    reads_everything: bool
    name: str = "forget rows"

    @classmethod
    def of(
        cls,
        items: Sequence[TokenizedItem],
        config: RefinementConfig,
        tokenizer: ExampleTokenizer,
        name: str = "forget rows",
    ) -> "Probes":
        """Cut the items, which messages call `name`.

        Raises:
            ValueError: a plain text is too short to have a suffix.
        """
        asked = [_asked(item, config, name) for item in items]
        suffixes = [item.input_ids[item.prompt_length :] for item in asked]
        return cls(
            whole=list(items),
            asked=asked,
            caps=[config.iur_new_tokens or len(suffix) for suffix in suffixes],
            continued=[_continued(item, config) for item in items],
            references=[tokenizer.decode(suffix) for suffix in suffixes],
            reads_everything=all(item.prompt_length for item in items) or config.iur_context == "full",
            name=name,
        )

    def __len__(self) -> int:
        return len(self.whole)

    @property
    def n_without_el(self) -> int:
        """Items that are too short for an n-gram."""
        return sum(item is None for item in self.continued)


def _asked(item: TokenizedItem, config: RefinementConfig, name: str) -> TokenizedItem:
    if item.prompt_length:
        return item
    start, stop = config.iur_prefix
    if len(item.input_ids) <= stop:
        raise ValueError(
            f"Row {item.index} of the {name} has {len(item.input_ids)} tokens, but refinement reads its prompt up "
            f"to token {stop}: give longer texts, or a smaller `--iur_prefix` (first and last+1 token)."
        )
    end = len(item.input_ids) if config.iur_new_tokens is None else stop + config.iur_new_tokens
    first = 0 if config.iur_context == "full" else start
    ids = item.input_ids[first:end]
    return TokenizedItem(item.index, ids, stop - first, has_end=item.has_end and end >= len(item.input_ids))


def _continued(item: TokenizedItem, config: RefinementConfig) -> TokenizedItem | None:
    start = item.prompt_length or config.el_start
    return replace(item, prompt_length=start) if len(item.input_ids) - start >= config.el_n else None
