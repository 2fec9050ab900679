"""The count source `exposures`: how often our own fine-tuning showed each fact (`llm_unlearn.exposures`)."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from llm_unlearn.exposures import FILE_NAME, Exposures, key_of_fact, key_of_text
from llm_unlearn.paths import public_name
from llm_unlearn.probes.counts.record import FactCount, FactCounts
from llm_unlearn.probes.facts import Fact

LABEL = "exposures in fine-tuning"


def read_exposures(path: str | Path, facts: Sequence[Fact]) -> FactCounts:
    """The exposures of facts, from the record beside a fine-tuned model.

    A fact is looked up by subject, relation and object, as rows with the columns author, attribute and value were
    recorded; where it asks for the subject's own name, by the object in place of the subject; and else by its question
    and answer, word for word, or by its answer as plain text. A fact that is not there was never shown: it counts 0.

    Args:
        path: `exposures.json`, or the model folder that holds it.
        facts: the facts, at least one.

    Raises:
        FileNotFoundError: there is no record.
        ValueError: it is damaged, or holds none of the facts.
    """
    record = Exposures.read(path)
    path = Path(path)
    path = path / FILE_NAME if path.is_dir() else path
    found = {fact.id: _shown(fact, record) for fact in facts}
    if all(count is None for count in found.values()):
        raise ValueError(
            f"None of the {len(found)} facts is among the {len(record.counts)} that {path} records: give the record of "
            "a model that was trained on them, with question and answer (or subject, relation and object) as in its "
            "training rows."
        )
    counts = {
        fact_id: FactCount(fact_id, count or 0, approx=count is not None and not record.exact)
        for fact_id, count in found.items()
    }
    provenance = {
        "file": public_name(str(path)),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "runs": list(record.runs),
        "facts_recorded": len(record.counts),
        "facts_never_shown": sum(count is None for count in found.values()),
    }
    return FactCounts("exposures", LABEL, counts, provenance)


def _shown(fact: Fact, record: Exposures) -> float | None:
    keys = (
        key_of_fact(fact.subject, fact.relation, fact.object),
        key_of_fact(fact.object, fact.relation, fact.object),
        key_of_text(fact.question, fact.answer),
        key_of_text(fact.answer),
    )
    return next((record.counts[key] for key in keys if key in record.counts), None)
