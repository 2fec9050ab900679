"""A result of a probe without a model: measurements are written down, and compared as those of models are."""

from dataclasses import replace

import numpy as np

from llm_unlearn.probes.counts.record import FactCount, FactCounts
from llm_unlearn.probes.facts import Fact
from llm_unlearn.probes.frequency import FrequencyProbe
from llm_unlearn.probes.measurement import FactMeasurement, Said
from llm_unlearn.probes.settings import ProbeSettings

SETTINGS = ProbeSettings(resamples=200, permutations=199, leak_samples=4)


def facts(n=60):
    """`n` facts to be forgotten, six neighbours and six to be retained."""
    roles = ["forget"] * n + ["neighbour"] * 6 + ["retain"] * 6
    return tuple(
        Fact(
            id=f"fact-{i}",
            subject=f"Land {i}",
            object=f"Town {i}",
            question=f"What is the capital of Land {i}?",
            answer=f"Town {i}",
            subject_aliases=(),
            object_aliases=(f"Burg {i}",),
            relation="capital",
            paraphrases=(f"Which town rules Land {i}?",),
            distractors=tuple(f"Town {i + k}" for k in range(100, 104)),
            role=role,
        )
        for i, role in enumerate(roles)
    )


def counts(some):
    """The k-th fact to be forgotten was met 3k + k²/4 times, the first not at all."""
    numbers = {fact.id: 3 * k + k * k // 4 for k, fact in enumerate(one for one in some if one.role == "forget")}
    return FactCounts(
        "corpus",
        "co-occurrences within 100 tokens",
        {name: FactCount(name, count, approx=count > 900) for name, count in numbers.items()},
        {"files": [{"name": "texts.jsonl", "sha256": "ab" * 32}], "tokens": 1234567, "window": 100},
    )


def measured(fact, p1, text, margin=2.0, twin_margin=-2.0, rank=1, samples=4):
    """What a model says of a fact: it gives the answer the probability `p1` and says `text` to every question."""
    named = fact.object in text
    said = [Said("direct", fact.question, text, float(named), named)]
    said += [Said("paraphrase", question, text, float(named), named) for question in fact.paraphrases]
    return FactMeasurement(
        id=fact.id,
        p1=p1,
        answer_tokens=3 + len(fact.answer) % 2,
        p2_margin=margin,
        p2_twin_margin=twin_margin,
        twin=fact.distractors[0],
        p3_rank=rank,
        p3_options=5,
        p4_rank=1 if named else 7,
        said=tuple(said),
        samples=(text,) * samples if samples else None,
        leaks=samples * named if samples else None,
    )


def before_and_after(some, number_of, seed=0, **changes):
    """Measurements of a base that knows nine facts in ten, and of a model that keeps more of what is frequent."""
    random = np.random.default_rng(seed)
    before, after = [], []
    for i, fact in enumerate(some):
        p1 = float(random.uniform(0.3, 0.9))
        before.append(measured(fact, p1, fact.object if i % 10 else "nobody knows"))
        if fact.role == "forget":
            left = min(1.2, 10 ** float(random.normal(-1.5 + 0.5 * np.log10(1 + number_of[fact.id].n_so), 0.5)))
            text = fact.object if random.uniform() < left else "I do not know."
            margin = 1.0 if left > 0.15 else -1.0
            after.append(measured(fact, p1 * left, text, margin=margin, twin_margin=-1.0, rank=2))
        else:
            after.append(measured(fact, 0.9 * p1, before[-1].said[0].text))
    return before, [replace(one, **changes) for one in after]


def sample_result(n=60, bucket_wise=False, settings=SETTINGS, number_of=None, **changes):
    """A result in either protocol; `changes` are made to every measurement of the unlearned model."""
    some = facts(n)
    number_of = number_of or counts(some)
    probe = FrequencyProbe(some, number_of, None, settings)
    before, after = before_and_after(some, number_of, **changes)
    after = {"low": after, "high": after} if bucket_wise else after
    return probe.compare(before, after, stage="finetuned", provenance={"model": "org/base", "adapter": "adapter"})
