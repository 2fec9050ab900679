"""From mentions in documents to the counts of facts: how often subject and object are near each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Int

from llm_unlearn.probes.counts.matcher import Matcher, expand
from llm_unlearn.probes.counts.normalise import DOCUMENT_END, edges, normalise, normalise_name
from llm_unlearn.probes.facts import Fact

Window = int | Literal["document"]

COUNTED = ("subjects", "objects", "subjects_near", "objects_near", "documents_s", "documents_o", "documents_both")
"""What is counted for every fact, in the order of the rows of `Tally.facts`."""


@dataclass(frozen=True, eq=False)
class Tally:
    """Counts of a part of a corpus; those of two parts add with ``+``.

    Attributes:
        facts (`np.ndarray` of integers, ``(7, facts)``): the rows of `COUNTED`.
        documents, tokens: what was scanned; a document has one token or more.
    """

    facts: Int[np.ndarray, "counted facts"]
    documents: int = 0
    tokens: int = 0

    def __add__(self, other: Tally) -> Tally:
        """The counts of both parts together."""
        return Tally(self.facts + other.facts, self.documents + other.documents, self.tokens + other.tokens)


class Counter:
    """Counts the facts in texts.

    Args:
        facts: the facts; names that several share are looked for once.
        window (`int` or `"document"`, *optional*, defaults to 100, the default of infini-gram's AND queries):
            How many tokens may lie between the first token of a mention of the subject and that of a mention of the
            object in the same document, or that the document is enough.
        case_sensitive (`bool`, *optional*, defaults to `False`):
            Whether "Turkey" and "turkey" differ.

    Raises:
        ValueError: there is no fact, or a name has neither a letter nor a digit.
    """

    def __init__(self, facts: Sequence[Fact], window: Window = 100, case_sensitive: bool = False) -> None:
        if not facts:
            raise ValueError("There are no facts to count: give one or more.")
        self._given = (tuple(facts), window, case_sensitive)
        self._window, self._case_sensitive = window, case_sensitive
        # An entity is a set of names; facts that share it share its mentions.
        entities: dict[frozenset[bytes], int] = {}
        pairs = []
        for fact in facts:
            subject, object_ = (
                frozenset(normalise_name(name, case_sensitive) for name in names)
                for names in (fact.subject_names, fact.object_names)
            )
            if subject & object_:
                name = min(subject & object_).decode()
                raise ValueError(
                    f"Fact {fact.id!r} has {name!r} as a name of subject and object, which a text does not tell apart: "
                    "remove the name from one of them, or leave the fact out."
                )
            pairs.append([entities.setdefault(group, len(entities)) for group in (subject, object_)])
        self._subject, self._object = np.array(pairs, dtype=np.int64).T
        self._n_entities = len(entities)
        names = sorted({name for group in entities for name in group})
        owners: dict[bytes, list[int]] = {name: [] for name in names}
        for group, entity in entities.items():
            for name in group:
                owners[name].append(entity)
        self._owners_first, self._owners = _groups([owners[name] for name in names])
        facts_of = [[] for _ in range(self._n_entities)]
        for fact, subject in enumerate(self._subject):
            facts_of[subject].append(fact)
        self._facts_first, self._facts = _groups(facts_of)
        self._matcher = Matcher(names)
        self.n_names = len(names)

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process builds its own, which is faster than to send an automaton.
        return Counter, self._given

    def empty(self) -> Tally:
        """Nothing counted yet."""
        return Tally(np.zeros((len(COUNTED), len(self._subject)), dtype=np.int64))

    def count(self, texts: bytes) -> Tally:
        """Count the facts in documents.

        Args:
            texts: documents in UTF-8 with `DOCUMENT_END` between them.

        Raises:
            UnicodeDecodeError: the bytes are not UTF-8.
        """
        text = normalise(texts, self._case_sensitive)
        borders, token_at = edges(text.data)
        tokens = np.flatnonzero(token_at)
        breaks = np.flatnonzero(np.frombuffer(text.data, dtype=np.uint8) == DOCUMENT_END[0])
        mentions = self._matcher.find(text, borders, tokens)
        # A document is what has a token; between two separators there may be nothing.
        documents = np.searchsorted(tokens, np.append(breaks, len(text.data)))
        found = self._facts_in(
            mentions.names, np.searchsorted(tokens, mentions.starts), np.searchsorted(breaks, mentions.starts)
        )
        return Tally(found, int((np.diff(documents, prepend=0) > 0).sum()), len(tokens))

    def _facts_in(
        self,
        names: Int[np.ndarray, " mentions"],
        tokens: Int[np.ndarray, " mentions"],
        documents: Int[np.ndarray, " mentions"],
    ) -> Int[np.ndarray, "counted facts"]:
        """Counts from mentions in the order of the text, each with its token and its document."""
        place, owner = expand(self._owners_first, names)
        entities, tokens = self._owners[owner], tokens[place]
        # A group: the mentions of one entity in one document. Stable, so that they stay in the order of the text.
        key = documents[place] * self._n_entities + entities
        order = np.argsort(key, kind="stable")
        entities, tokens = entities[order], tokens[order]
        groups, first, size = np.unique(key[order], return_index=True, return_counts=True)
        owner = groups % self._n_entities
        mentioned = np.bincount(entities, minlength=self._n_entities)
        present = np.bincount(owner, minlength=self._n_entities)
        # Groups of a subject and of its fact's object in the same document.
        place, member = expand(self._facts_first, owner)
        fact = self._facts[member]
        wanted = groups[place] - owner[place] + self._object[fact]
        at = np.minimum(np.searchsorted(groups, wanted), len(groups) - 1)
        both = np.flatnonzero(groups[at] == wanted)
        fact, subject, object_ = fact[both], place[both], at[both]
        firsts = np.append(first, len(tokens))
        n = len(self._subject)

        def near(one: Int[np.ndarray, " pairs"], other: Int[np.ndarray, " pairs"]) -> Int[np.ndarray, " facts"]:
            if self._window == "document":
                return np.bincount(fact, weights=size[one], minlength=n).astype(np.int64)
            pair, mention = expand(firsts, one)
            close = _distance(tokens, firsts, mention, other[pair]) <= self._window
            return np.bincount(fact[pair[close]], minlength=n)

        return np.stack(
            [
                mentioned[self._subject],
                mentioned[self._object],
                near(subject, object_),
                near(object_, subject),
                present[self._subject],
                present[self._object],
                np.bincount(fact, minlength=n),
            ]
        )


def _distance(
    tokens: Int[np.ndarray, " mentions"],
    firsts: Int[np.ndarray, " groups+1"],
    mention: Int[np.ndarray, " asked"],
    group: Int[np.ndarray, " asked"],
) -> Int[np.ndarray, " asked"]:
    """Tokens from each mention to the nearest of the mentions in a group, whose tokens ascend."""
    span = int(tokens.max(initial=0)) + 1
    group_of = np.repeat(np.arange(len(firsts) - 1), np.diff(firsts))
    # One ascending sequence over all groups; a position in it is a position within the group.
    at = np.searchsorted(group_of * span + tokens, group * span + tokens[mention])
    after = np.where(at < firsts[group + 1], tokens[np.minimum(at, len(tokens) - 1)] - tokens[mention], span)
    before = np.where(at > firsts[group], tokens[mention] - tokens[at - 1], span)
    return np.minimum(after, before)


def _groups(members: Sequence[Sequence[int]]) -> tuple[Int[np.ndarray, " groups+1"], Int[np.ndarray, " members"]]:
    """Lists as one array and the places at which they begin, for `expand`."""
    flat = np.array([member for group in members for member in group], dtype=np.int64)
    return np.cumsum([0, *(len(group) for group in members)]), flat
