"""Flags of a probe, the same for the recipe and for the commands: which facts, which counts, and how they are asked.

The settings have the names, the defaults and the meaning of `ProbeSettings`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llm_unlearn.probes.settings import ProbeSettings

if TYPE_CHECKING:
    from llm_unlearn.probes.counts.record import FactCounts
    from llm_unlearn.probes.facts import Fact

_DEFAULTS = ProbeSettings()


@dataclass
class CountFlags:
    """How a source is counted; each flag is of the sources it names."""

    window: str = field(
        default="100", metadata={"help": "Tokens between subject and object (corpus, index), or document (corpus)."}
    )
    case_sensitive: bool = field(default=False, metadata={"help": "Tell Turkey from turkey (corpus, index)."})
    text_field: str = field(default="text", metadata={"help": "Key or column with the text (corpus)."})
    separator: str | None = field(
        default=None, metadata={"help": "What parts documents of a plain text (corpus). Unset: blank lines."}
    )
    sample: float = field(default=1.0, metadata={"help": "Share of the documents to read (corpus)."})
    sample_seed: int = field(default=0, metadata={"help": "Which documents those are (corpus)."})
    count_processes: int = field(default=1, metadata={"help": "Processes that count (corpus)."})
    count_state: str | None = field(
        default=None, metadata={"help": "File that keeps an interrupted pass, which goes on from it (corpus)."}
    )
    tokenizer: str | None = field(default=None, metadata={"help": "Folder with the tokenizer of the index (index)."})

    def count_options(self) -> dict[str, Any]:
        """These flags as `load_counts` takes them.

        Raises:
            ValueError: a value is impossible.
        """
        from llm_unlearn.probes.counts.documents import TextFormat

        if self.window != "document" and not self.window.isdigit():
            raise ValueError(f"`--window` is {self.window!r}: give a number of tokens such as 100, or document.")
        return {
            "window": self.window if self.window == "document" else int(self.window),
            "case_sensitive": self.case_sensitive,
            "form": TextFormat(self.text_field, self.separator, self.sample, self.sample_seed),
            "processes": self.count_processes,
            "state": self.count_state,
            "tokenizer": self.tokenizer,
        }


@dataclass
class FactFlags(CountFlags):
    """Which facts, and how often each was met."""

    facts: str | None = field(
        default=None, metadata={"help": "File of facts (JSON lines). Unset: the bundled capitals of the world."}
    )
    counts: str | None = field(
        default=None,
        metadata={
            "help": "Where counts come from: corpus:PATH, index:FOLDER, counts:FILE, exposures:FILE or proxy:FILE. "
            "Unset, with the bundled facts: the bundled counts."
        },
    )
    buckets: list[str] = field(
        default_factory=lambda: ["quantiles"],
        metadata={"help": "Buckets by count: quantiles (.33 and .67), decades, or edges such as 10,100."},
    )
    equal_size: bool = field(
        default=_DEFAULTS.equal_size, metadata={"help": "Cut buckets to the size of the smallest, at random."}
    )
    seed: int = field(
        default=_DEFAULTS.seed, metadata={"help": "Of wrong objects, samples, subsampling, resamples and permutations."}
    )

    def read_facts(self) -> tuple[Fact, ...]:
        """The facts.

        Raises:
            FileNotFoundError, ValueError: see `facts.read_facts`.
        """
        from llm_unlearn.probes.facts import read_facts

        return read_facts(self.facts_file)

    def described(self, facts: Sequence[Fact]) -> dict[str, Any]:
        """The facts, for the provenance of a report."""
        digest = hashlib.sha256(self.facts_file.read_bytes()).hexdigest()
        return {"name": self.facts_file.name, "sha256": digest, "facts": len(facts)}

    @property
    def facts_file(self) -> Path:
        """Where the facts are."""
        from llm_unlearn.paths import data_dir

        return data_dir() / "facts" / "capitals.jsonl" if self.facts is None else Path(self.facts)

    def read_counts(self, facts: Sequence[Fact], progress: bool = True) -> FactCounts:
        """The counts of these facts.

        Args:
            facts: the facts.
            progress: whether a terminal shows a bar.

        Raises:
            FileNotFoundError, ValueError: no source was named, or see `load_counts`.
        """
        from llm_unlearn.paths import data_dir
        from llm_unlearn.probes.counts import load_counts

        if self.counts is None and self.facts is not None:
            raise ValueError(
                "There are facts and no counts: say how often each was met with `--counts`, such as "
                "`--counts corpus:PATH` or `--counts counts:FILE`."
            )
        bundled = data_dir() / "facts" / "counts_wikipedia_leads.jsonl"
        return load_counts(self.counts or f"counts:{bundled}", facts, progress=progress, **self.count_options())

    def read_counts_to_forget(self, facts: Sequence[Fact], progress: bool = True) -> FactCounts:
        """The counts of the facts to be forgotten.

        In a text the longest name wins, over the names of all facts, so that there all facts are counted; other sources
        know each fact alone, and need none of the others.

        Args:
            facts: all facts.
            progress: whether a terminal shows a bar.

        Raises:
            FileNotFoundError, ValueError: see `read_counts`; or no fact is to be forgotten.
        """
        to_forget = [fact for fact in facts if fact.role == "forget"]
        if not to_forget:
            raise ValueError("There is no fact to be forgotten: give facts whose `role` is 'forget' (`--facts`).")
        is_text = (self.counts or "").startswith("corpus:")
        return self.read_counts(facts if is_text else to_forget, progress).select(fact.id for fact in to_forget)

    @property
    def bucket_rule(self) -> str | tuple[float, ...]:
        """`buckets` as `make_buckets` takes it.

        Raises:
            ValueError: it is neither a rule nor numbers.
        """
        words = [word for given in self.buckets for word in re.split(r"[,\s]+", given) if word]
        if words in (["quantiles"], ["decades"]):
            return words[0]
        try:
            return tuple(float(edge) for edge in words)
        except ValueError:
            given = " ".join(self.buckets)
            raise ValueError(
                f"`--buckets` is {given!r}: give quantiles, decades, or ascending counts above 0 such as 10,100."
            ) from None


@dataclass
class ProbeFlags(FactFlags):
    """How facts are asked, and what counts as known and as gone."""

    max_new_tokens: int = field(
        default=_DEFAULTS.max_new_tokens, metadata={"help": "Longest generated answer in tokens."}
    )
    leak_samples: int = field(
        default=_DEFAULTS.leak_samples, metadata={"help": "Answers sampled per fact for leak@k; 0 for none."}
    )
    wrong_objects: int = field(
        default=_DEFAULTS.wrong_objects, metadata={"help": "Most wrong options of the multiple choice."}
    )
    reference: Literal["object", "answer"] = field(
        default=_DEFAULTS.reference,
        metadata={"help": "What recall asks of an answer: a name of the object, or the whole true answer."},
    )
    known_recall: float = field(
        default=_DEFAULTS.known_recall,
        metadata={"help": "Recall at a paraphrase from which on the base counts as knowing a fact."},
    )
    gone_recall: float = field(
        default=_DEFAULTS.gone_recall, metadata={"help": "Generation score below which answers say a fact is gone."}
    )
    gone_p1: float = field(
        default=_DEFAULTS.gone_p1, metadata={"help": "Share of the base's P1 below which probability says so."}
    )
    gate: float = field(
        default=_DEFAULTS.gate, metadata={"help": "Accuracy that the base needs for P2 and P3 to count."}
    )
    resamples: int = field(default=_DEFAULTS.resamples, metadata={"help": "Bootstrap resamples behind each interval."})
    permutations: int = field(default=_DEFAULTS.permutations, metadata={"help": "Permutations behind each p-value."})

    def settings(self) -> ProbeSettings:
        """The settings that these flags describe.

        Raises:
            ValueError: a value is out of its range.
        """
        own = {one.name: getattr(self, one.name) for one in fields(ProbeSettings) if one.name != "buckets"}
        return ProbeSettings(buckets=self.bucket_rule, **own)
