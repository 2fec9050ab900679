"""Counts of facts in a local infini-gram index of a corpus (arXiv 2401.17377): seconds, once the index is built."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from llm_unlearn.paths import public_name
from llm_unlearn.probes.counts.encoder import MAX_VOCABULARY, Encoder, holds
from llm_unlearn.probes.counts.index_build import RECORD_NAME, damage, plain_path, require_package
from llm_unlearn.probes.counts.record import FactCount, FactCounts
from llm_unlearn.probes.facts import Fact

NO_CAP = 2**62
"""Matches of a clause that are looked at; the public API stops at 50,000 and estimates."""


def count_index(
    folder: str | Path,
    facts: Sequence[Fact],
    tokenizer: str | Path,
    max_diff_tokens: int = 100,
    case_sensitive: bool = False,
) -> FactCounts:
    """Count every fact in an index, by AND queries with an OR over the names on either side.

    `n_so` is the engine's count: mentions of the rarer side with one of the other within `max_diff_tokens`, from first
    token to first token. It differs from that of `count_corpus` as tokens differ from words:

    - a name is found as given, in lower case and in capitals, behind a space, a line end, an opening bracket or a
      quotation mark, and nowhere else;
    - it may be the beginning of a longer word ("Niger" in "Nigeria") or of a longer name;
    - a name of the object within one of the subject, or the other way round, counts: `approx` marks such facts;
    - where a mention has a partner in its document and another, as near, in the next document, the engine drops it.
      `build_index` keeps documents apart by its `gap`, the longest window that is counted. An index from elsewhere does
      not say how far apart its documents are: its counts are `approx`, and may be too low.

    Args:
        folder: what `build_index` wrote. One from elsewhere needs an `index.json` with its `tokenizer_sha256`.
        facts: the facts.
        tokenizer: the tokenizer that the index was built with.
        max_diff_tokens (`int`, *optional*, defaults to 100, that of the API): the window, 1 or more.
        case_sensitive (`bool`, *optional*, defaults to `False`): whether to look for names as given only.

    Raises:
        ImportError: infini_gram is not installed.
        FileNotFoundError: there is no such index or tokenizer.
        ValueError: the index is damaged or was built with another tokenizer, or the window is impossible or
            longer than the gap between documents.
    """
    require_package()
    if max_diff_tokens < 1:
        raise ValueError(f"`max_diff_tokens` is {max_diff_tokens}: give 1 or more.")
    folder = Path(folder).expanduser()
    encoder = Encoder(tokenizer)
    record = _check_index(folder, encoder)
    gap = record.get("gap")
    if gap is not None and max_diff_tokens > gap:
        raise ValueError(
            f"The window is {max_diff_tokens} tokens, and the documents of {folder} lie {gap} apart: beyond that "
            f"mentions are lost. Give a window of at most {gap} (`--window {gap}`), or build the index anew with "
            f"`llm-unlearn index build --gap {max_diff_tokens}`."
        )
    counts, nested = [], []
    with plain_path(folder) as plain:
        from infini_gram.engine import InfiniGramEngine

        engine = InfiniGramEngine([str(plain)], eos_token_id=0, vocab_size=MAX_VOCABULARY, version=4, token_dtype="u16")

        def count(*clauses: list[list[int]]) -> dict[str, Any]:
            return engine.count_cnf(list(clauses), max_clause_freq=NO_CAP, max_diff_tokens=max_diff_tokens)

        for fact in facts:
            subject, object_ = (
                encoder.clause(names, case_sensitive) for names in (fact.subject_names, fact.object_names)
            )
            both = count(subject, object_)
            inside = any(holds(one, other) or holds(other, one) for one in subject for other in object_)
            nested += [fact.id] * inside
            n_s, n_o = count(subject)["count"], count(object_)["count"]
            approx = bool(both["approx"] or inside or (gap is None and max_diff_tokens > 1))
            counts.append(FactCount(fact.id, both["count"], n_s, n_o, approx=approx))
    provenance = {
        "index": public_name(str(folder)),
        "built": record,
        "tokens_scanned": record.get("tokens"),
        "documents_scanned": record.get("documents"),
        "max_diff_tokens": max_diff_tokens,
        "case_sensitive": case_sensitive,
        "name_within_the_other": nested,
        "versions": {"infini_gram": version("infini_gram")},
    }
    label = f"co-occurrences within {max_diff_tokens} tokens (index)"
    return FactCounts("index", label, {count.id: count for count in counts}, provenance)


def _check_index(folder: Path, encoder: Encoder) -> dict[str, Any]:
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no index {folder}: build one with `llm-unlearn index build`.")
    if wrong := damage(folder):
        raise ValueError(f"{folder} is no whole index ({wrong}): build it anew with `llm-unlearn index build`.")
    path = folder / RECORD_NAME
    known = f'{{"tokenizer_sha256": "{encoder.sha256}"}}'
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        built_with = record["tokenizer_sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} does not say with which tokenizer the index was built: build it with `llm-unlearn index build`, "
            f"or, if it is from elsewhere and its tokenizer is {encoder.name}, write {known} into that file."
        ) from error
    if built_with != encoder.sha256:
        raise ValueError(
            f"The index {folder} was built with the tokenizer {record.get('tokenizer', 'of another model')!r} "
            f"({built_with[:12]}), not with {encoder.name!r} ({encoder.sha256[:12]}): give that one as `--tokenizer`, "
            "or build the index anew."
        )
    return record
