"""The controlled experiment: a world whose facts are told 1 to 16 times, so that frequency is known exactly.

The bundled generator gives all facts of an author the same number of restatements. Here the levels go round among the
facts instead: fact number j of author number i is told ``levels[(i + j) mod n]`` times. So every author has facts of
every level, and every attribute is told at every level by one author or another: neither a name that is met more often
nor an attribute that is harder to learn can pass for an effect of frequency.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from llm_unlearn.data.world import make_world
from llm_unlearn.probes.facts import Fact
from llm_unlearn.probes.world import facts_of_world

EXPOSURES = (1, 2, 4, 8, 16)
"""How many training rows state a fact."""

_MOST_OTHERS = 10
# Of the authors to be kept, a world has paraphrased questions of the first ten.


@dataclass(frozen=True)
class ControlledWorld:
    """What a target learns, and what of it is to be forgotten. Rows have their level in the column `exposures`.

    Attributes:
        taught: the rows that the target is trained on: every fact, and its restatements.
        forget: of each fact to be forgotten one row, its own; the restatements are not among them.
        retain: of each fact to be retained one row.
        facts: of the authors to be forgotten, those to be retained, and the neighbours, who are taught and then neither
            forgotten nor rehearsed.
    """

    taught: tuple[dict, ...]
    forget: tuple[dict, ...]
    retain: tuple[dict, ...]
    facts: tuple[Fact, ...]


def controlled_world(
    seed: int = 0,
    forget_authors: int = 5,
    retain_authors: int = 3,
    neighbour_authors: int = 2,
    exposures: Sequence[int] = EXPOSURES,
) -> ControlledWorld:
    """Draw a world for the experiment; the same arguments give the same rows and facts.

    Args:
        seed: another seed gives other authors, facts and wordings.
        forget_authors: authors to be forgotten, at least 1, each with twenty facts.
        retain_authors, neighbour_authors: authors to be kept, together at most 10, of the first kind at least 1.
        exposures: the levels, each at least 1, not all the same.

    Raises:
        ValueError: there are too few or too many authors, or there is only one level.
    """
    levels = tuple(exposures)
    others = retain_authors + neighbour_authors
    if len(set(levels)) < 2:
        raise ValueError(f"The levels of exposure are {levels}: give two different ones or more.")
    if forget_authors < 1 or retain_authors < 1 or neighbour_authors < 0 or others > _MOST_OTHERS:
        raise ValueError(
            f"There are {forget_authors} authors to be forgotten, {retain_authors} to be retained and "
            f"{neighbour_authors} neighbours: give at least one of the first two kinds, and at most {_MOST_OTHERS} of "
            "the last two together."
        )
    # The last tenth of a world is its forget set; who stands between the two sets is told to nobody.
    world = make_world(max(10 * forget_authors, others + forget_authors), seed, (max(levels),))
    configs = world.configs
    per_author = len(configs["forget10"]) // forget_authors
    kept = configs["full"][: others * per_author]
    level = {_fact(row): levels[_place(i, per_author) % len(levels)] for i, row in enumerate([*configs["forget10"]])}
    level |= {_fact(row): levels[_place(i, per_author) % len(levels)] for i, row in enumerate(kept)}
    told: Counter[tuple[str, str]] = Counter()
    taught = []
    for row in (*kept, *configs["forget10"], *configs["restatements"]):
        if told[_fact(row)] < level.get(_fact(row), 0):
            told[_fact(row)] += 1
            taught.append({**row, "exposures": level[_fact(row)]})

    probed, of_others = configs["forget10_perturbed"], configs["retain_perturbed"][: others * per_author]
    to_retain = of_others[: retain_authors * per_author]
    facts = (
        *facts_of_world(probed, "forget", pool=of_others, seed=seed),
        *facts_of_world(to_retain, "retain", pool=[*probed, *of_others], seed=seed),
        *facts_of_world(of_others[len(to_retain) :], "neighbour", pool=[*probed, *of_others], seed=seed),
    )
    own = taught[: len(kept) + len(configs["forget10"])]
    return ControlledWorld(tuple(taught), tuple(own[len(kept) :]), tuple(own[: len(to_retain)]), facts)


def _fact(row: dict) -> tuple[str, str]:
    return row["author"], row["attribute"]


def _place(row: int, per_author: int) -> int:
    """Number of the author plus number of the fact."""
    return row // per_author + row % per_author
