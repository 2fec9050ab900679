"""Facts as rows that recipes train on: one split per bucket, and one for each other role."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from llm_unlearn.files import replace_folder
from llm_unlearn.probes.buckets import Bucket
from llm_unlearn.probes.counts.record import FactCounts
from llm_unlearn.probes.facts import Fact


def write_splits(
    folder: str | Path, facts: Sequence[Fact], counts: FactCounts, buckets: Sequence[Bucket]
) -> dict[str, int]:
    """Write a data set of questions and answers, with a split per bucket: `low.jsonl`, `high.jsonl`, ...

    Facts to be forgotten are in the split of their bucket and, all together, in `forget`; those of the other roles in
    `neighbour` and `retain`. Rows have the columns `id`, `question`, `answer` and, where it is known, `count`, which
    the flags of frequency-aware training take (`--freq_counts count`).

    Args:
        folder: the data set; it appears whole or not at all, and replaces an older one.
        facts: all facts.
        counts: of the facts to be forgotten, at least.
        buckets: of the facts to be forgotten.

    Returns:
        The number of rows by split.

    Raises:
        OSError: the place cannot be written.
    """
    by_id = {fact.id: fact for fact in facts}
    splits = {bucket.name.replace(" ", "_"): [by_id[name] for name in bucket.ids] for bucket in buckets}
    splits["forget"] = [by_id[name] for bucket in buckets for name in bucket.ids]
    splits |= {role: [fact for fact in facts if fact.role == role] for role in ("neighbour", "retain")}
    with replace_folder(folder) as partial:
        for split, chosen in splits.items():
            if chosen:
                lines = "".join(json.dumps(_row(fact, counts), ensure_ascii=False) + "\n" for fact in chosen)
                (partial / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    return {split: len(chosen) for split, chosen in splits.items() if chosen}


def _row(fact: Fact, counts: FactCounts) -> dict[str, str | float]:
    row: dict[str, str | float] = {"id": fact.id, "question": fact.question, "answer": fact.answer}
    if fact.id in counts.counts:
        row["count"] = counts.counts[fact.id].n_so
    return row
