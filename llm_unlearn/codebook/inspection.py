"""What the codes of a codebook stand for: how often texts use each, where, and which requests delete it.

Frequencies count tokens whose S codes hold the code, whatever is deleted. Everything here is a dataclass of plain
values, so that `dataclasses.asdict` makes JSON of it; it quotes the texts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from llm_unlearn.codebook.model import CodebookModel
from llm_unlearn.codebook.reading import CodeReading, count_codes, read_codes
from llm_unlearn.codebook.selection import CORRECTED, CodeCounts
from llm_unlearn.codebook.statistics import enrichment, false_discovery_rate, independence_test
from llm_unlearn.codebook.usage import LAST_REVIVAL
from llm_unlearn.data.tokenization import ExampleTokenizer, TokenizedItem

_BESIDE = 8
"""Tokens shown on either side of one."""

_COMMONEST = 6
"""Different tokens named per code."""


@dataclass(frozen=True)
class CodeUse:
    """A token that uses a code, and what stands beside it.

    Attributes:
        of: "target" or "control".
        row: of its text.
        before, token, after: up to 8 tokens on either side.
        cosine: of the code with what the encoder makes of the token, in [-1, 1].
    """

    of: str
    row: int
    before: str
    token: str
    after: str
    cosine: float


@dataclass(frozen=True)
class CodeProfile:
    """One code.

    Attributes:
        code: its number.
        target_tokens, control_tokens: how many tokens use it.
        target_share, control_share: as shares of all tokens, in [0, 1].
        enrichment: R, in bits, above 0 where target texts use it more; None where neither uses it.
        q: the false discovery rate at which it would be chosen, over texts; see `SelectionRule`.
        enriched: whether R and q pass the recommended rule.
        requests: ids of the active requests that delete it.
        purged: whether its vector is gone for good.
        dead: whether no token used it after the last revival of training, or training never used it.
        commonest: tokens of both sets that use it most, with how often.
        uses: those to which it is nearest, of the target and then of the control texts.
    """

    code: int
    target_tokens: int
    target_share: float
    control_tokens: int
    control_share: float
    enrichment: float | None
    q: float
    enriched: bool
    requests: tuple[str, ...]
    purged: bool
    dead: bool
    commonest: tuple[tuple[str, int], ...]
    uses: tuple[CodeUse, ...]


@dataclass(frozen=True)
class Inspection:
    """Codes of a codebook, as two sets of texts use them.

    Attributes:
        codes: the most enriched first, or in the order asked for.
        left_out: how many codes in use or deleted are not among them.
        num_codes: K.
        unused: how many codes neither set uses.
        texts, tokens: how many there are, by set.
        codebook: layer, site, S, the model, and the number of codes deleted.
    """

    codes: tuple[CodeProfile, ...]
    left_out: int
    num_codes: int
    unused: int
    texts: dict[str, int]
    tokens: dict[str, int]
    codebook: dict[str, Any]


def inspect_codes(
    codebook: CodebookModel,
    target: Sequence[Mapping[str, Any]],
    control: Sequence[Mapping[str, Any]],
    tokenize: ExampleTokenizer,
    *,
    codes: Sequence[int] = (),
    top: int = 500,
    uses: int = 4,
    progress: bool = True,
) -> Inspection:
    """Look at codes through texts. Memory is linear in the texts' tokens and the codes listed.

    Args:
        codebook: the model.
        target, control: rows on a subject, and rows to compare with.
        tokenize: as the model was trained with.
        codes: which to list; unset, the `top` of largest R of those in use or deleted.
        top: how many to list where `codes` is unset, at least 1.
        uses: tokens shown per code and set, at least 1.
        progress: whether the main process shows progress bars.

    Raises:
        ValueError: a code does not exist, a number is below 1, or a set has no tokens.
    """
    n_codes = codebook.config.num_codes
    for code in codes:
        if not 0 <= code < n_codes:
            raise ValueError(f"Code {code} was asked for, but the codes are numbered 0 to {n_codes - 1}.")
    if top < 1 or uses < 1:
        raise ValueError(f"`top` is {top} and `uses` {uses}: list at least one code, with at least one use.")
    items = {"target": tokenize.all(target), "control": tokenize.all(control)}
    read = {
        name: read_codes(codebook, some, tokenize, cosines=True, name=f"{name} texts", progress=progress)
        for name, some in items.items()
    }
    counts = {name: count_codes(readings, (codebook.config.top_s,), n_codes) for name, readings in read.items()}
    for name, count in counts.items():
        if not count.n_tokens:
            raise ValueError(f"The {name} texts have no tokens besides special ones: give rows with some text.")
    holders = _holders(codebook)
    r, q, enriched = _statistics(counts["target"], counts["control"])
    used = (counts["target"].tokens + counts["control"].tokens)[0] > 0
    purged, dead = codebook.bottleneck.purged.cpu().numpy(), _dead(codebook.bottleneck.last_used.cpu().numpy())
    known = used | purged
    known[list(holders)] = True
    listed = np.array(list(dict.fromkeys(codes)), dtype=int)
    if not len(listed):
        # Codes that neither set uses come last: their R compares nothing.
        listed = np.lexsort((q, -r, ~known, ~used))[: min(top, int(known.sum()))]
    slots = np.full(n_codes, -1)
    slots[listed] = np.arange(len(listed))
    text_of = _reader(tokenize)
    commonest = _commonest([reading for readings in read.values() for reading in readings], slots, text_of)
    shown = _uses(read, items, slots, uses, text_of)
    profiles = tuple(
        CodeProfile(
            code=int(code),
            **_frequencies(counts, code),
            enrichment=float(r[code]) if used[code] else None,
            q=float(q[code]),
            enriched=bool(enriched[code]),
            requests=tuple(holders.get(int(code), ())),
            purged=bool(purged[code]),
            dead=bool(dead[code]),
            commonest=commonest[slots[code]],
            uses=shown[slots[code]],
        )
        for code in listed
    )
    return Inspection(
        profiles,
        left_out=int(known.sum() - known[listed].sum()),
        num_codes=n_codes,
        unused=int((~used).sum()),
        texts={name: count.n_texts for name, count in counts.items()},
        tokens={name: count.n_tokens for name, count in counts.items()},
        codebook={
            "model": (codebook.config.base or {}).get("source"),
            "layer": codebook.config.layer,
            "site": codebook.config.site,
            "top_s": codebook.config.top_s,
            "deleted": len(holders),
        },
    )


def _holders(codebook: CodebookModel) -> dict[int, list[str]]:
    """By code, the requests in force that delete it."""
    holders: dict[int, list[str]] = {}
    for record in codebook.registry.in_force:
        for code in record.codes:
            holders.setdefault(code, []).append(record.id)
    return holders


def _dead(last_used: Int[np.ndarray, " K"]) -> np.ndarray:
    # Nothing is dead in a codebook that was never trained.
    return (last_used <= LAST_REVIVAL * last_used.max()) & (last_used.max() > 0)


def _statistics(target: CodeCounts, control: CodeCounts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """R over tokens, q over texts, and which codes pass, as the recommended rule without retain texts has them."""
    r = enrichment(target.tokens[0], target.n_tokens, control.tokens[0], control.n_tokens)
    _, p = independence_test(target.texts[0], target.n_texts, control.texts[0], control.n_texts, exact=CORRECTED.exact)
    q = false_discovery_rate(p, target.tokens[0] + control.tokens[0] > 0)
    more_often = target.texts[0] / target.n_texts > control.texts[0] / control.n_texts
    return r, q, (r > CORRECTED.min_enrichment) & (q < CORRECTED.alpha) & more_often


def _frequencies(counts: Mapping[str, CodeCounts], code: int) -> dict[str, float]:
    found = {name: int(count.tokens[0, code]) for name, count in counts.items()}
    shares = {f"{name}_share": found[name] / count.n_tokens for name, count in counts.items()}
    return {f"{name}_tokens": number for name, number in found.items()} | shares


def _commonest(
    readings: Sequence[CodeReading], slots: Int[np.ndarray, " K"], text_of: Callable[[Sequence[int]], str]
) -> list[tuple[tuple[str, int], ...]]:
    """For each listed code, which has a slot of 0 or more, the tokens that use it most."""
    pairs = []
    for reading in readings:
        places, ranks = np.nonzero(slots[reading.codes] >= 0)
        pairs.append(np.stack([slots[reading.codes[places, ranks]], reading.tokens[places]]))
    found, times = np.unique(np.concatenate(pairs, axis=1), axis=1, return_counts=True)
    words = {token: _word(text_of([token])) for token in np.unique(found[1]).tolist()}
    tallies = [Counter() for _ in range(slots.max() + 1)]
    for slot, token, count in zip(*found.tolist(), times.tolist(), strict=True):
        tallies[slot][words[token]] += count
    return [tuple(tally.most_common(_COMMONEST)) for tally in tallies]


def _uses(
    read: Mapping[str, Sequence[CodeReading]],
    items: Mapping[str, Sequence[TokenizedItem]],
    slots: Int[np.ndarray, " K"],
    n: int,
    text_of: Callable[[Sequence[int]], str],
) -> list[tuple[CodeUse, ...]]:
    """For each listed code the uses to which it is nearest, each wording once."""
    shown: list[list[CodeUse]] = [[] for _ in range(slots.max() + 1)]
    for name, readings in read.items():
        found = []
        for text, reading in enumerate(readings):
            places, ranks = np.nonzero(slots[reading.codes] >= 0)
            of_codes, cosines = slots[reading.codes[places, ranks]], reading.cosines[places, ranks]
            found.append((of_codes, cosines, np.full(len(places), text), places))
        slot, cosine, text, place = map(np.concatenate, zip(*found, strict=True))
        order = np.lexsort((place, text, -cosine, slot))
        bounds = np.searchsorted(slot[order], np.arange(len(shown) + 1))
        for uses, first, last in zip(shown, bounds[:-1], bounds[1:], strict=True):
            distinct: dict[tuple[str, str, str], CodeUse] = {}
            for use in order[first:last]:
                item, position = items[name][text[use]], readings[text[use]].positions[place[use]]
                wording = _around(item.input_ids, int(position), text_of)
                distinct.setdefault(wording, CodeUse(name, item.index, *wording, round(float(cosine[use]), 4)))
                if len(distinct) == n:
                    break
            uses += distinct.values()
    return [tuple(uses) for uses in shown]


def _reader(tokenize: ExampleTokenizer) -> Callable[[Sequence[int]], str]:
    """Ids as text, with a space for every special token."""
    special = [tokenize.tokenizer.convert_ids_to_tokens(token) for token in sorted(tokenize.special_ids)]
    either = re.compile("|".join(map(re.escape, special)) or "(?!)")
    return lambda ids: either.sub(" ", tokenize.tokenizer.decode(ids))


def _around(ids: Sequence[int], position: int, read: Callable[[Sequence[int]], str]) -> tuple[str, str, str]:
    """What stands before a token, the token, and what stands after it."""
    first, last = max(0, position - _BESIDE), position + 1 + _BESIDE
    left, with_token, whole = (read(ids[first:end]) for end in (position, position + 1, last))
    if whole.startswith(with_token) and with_token.startswith(left):
        before, token, after = left, with_token[len(left) :], whole[len(with_token) :]
    else:
        # A letter of several tokens is cut.
        spans = (ids[first:position], ids[position : position + 1], ids[position + 1 : last])
        before, token, after = map(read, spans)
    word = token.strip()
    lead, _, trail = token.partition(word) if word else ("", "", "")
    before, after = (re.sub(r"\s+", " ", part) for part in (before + lead, trail + after))
    return (
        (f"…{before}" if first else before.lstrip()),
        _word(token),
        (f"{after}…" if last < len(ids) else after.rstrip()),
    )


def _word(token: str) -> str:
    """A token as one sees it, white space in quotes."""
    return token.strip() or repr(token)
