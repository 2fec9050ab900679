"""A whole world: the authors, cut into the splits of TOFU, and everything around them."""

from collections.abc import Sequence
from dataclasses import dataclass

from llm_unlearn.data.world.attributes import author_attributes
from llm_unlearn.data.world.authors import Author, fact_row, make_authors, perturbed_row, restatements
from llm_unlearn.data.world.background import make_background
from llm_unlearn.data.world.biographies import biography

# Raise it whenever the same arguments give other files.
GENERATOR_VERSION = 1
FORGET_PERCENT = {"forget10": 10, "forget05": 5, "forget01": 1}
RETAIN_PERTURBED_AUTHORS = 10


@dataclass(frozen=True)
class World:
    """The arguments of a world and its rows, by the name of their TOFU config."""

    authors: int
    seed: int
    exposures: tuple[int, ...]
    configs: dict[str, list[dict]]


def make_world(authors: int = 40, seed: int = 0, exposures: Sequence[int] = (1,)) -> World:
    """Draw a world; the same arguments give the same rows, bit for bit.

    Args:
        authors (`int`, *optional*, defaults to 40):
            How many authors `full` holds. The last tenth (at least one) is the forget set, as many more authors are
            drawn for the hold-out set. The first authors and the background do not depend on this number.
        seed (`int`, *optional*, defaults to 0):
            Another seed gives another world.
        exposures (`Sequence[int]`, *optional*, defaults to `(1,)`):
            How many training rows state each fact of an author, given to the authors in turn: `(1, 4)` states the facts
            of every second author four times. Counted are the fact's own row in `full` and the rows about the same
            author and attribute in `restatements`, a config that exists only if some count exceeds 1. Not counted are
            biographies and the mention of a birth date and city in the question for a name.
    """
    exposures = tuple(exposures)
    _check(authors, seed, exposures)
    background = make_background(seed)
    attributes = author_attributes(background.classics)
    sizes = {name: max(1, round(authors * percent / 100)) for name, percent in FORGET_PERCENT.items()}

    taken: set[str] = set()
    everybody = make_authors(attributes, seed, "full", authors, exposures, taken)
    strangers = make_authors(attributes, seed, "holdout", sizes["forget10"], (0,), taken)

    def rows(of: Sequence[Author], make=fact_row) -> list[dict]:
        return [make(author, attribute) for author in of for attribute in attributes]

    full, holdout = rows(everybody), rows(strangers)
    configs = {"full": full}
    for name, size in sizes.items():
        percent, cut = FORGET_PERCENT[name], size * len(attributes)
        configs[name] = full[-cut:]
        configs[f"retain{100 - percent}"] = full[:-cut]
        configs[f"{name}_perturbed"] = rows(everybody[-size:], perturbed_row)
        configs[f"holdout{percent:02d}"] = holdout[-cut:]
    retained = everybody[: -sizes["forget10"]]
    configs["retain_perturbed"] = rows(retained[:RETAIN_PERTURBED_AUTHORS], perturbed_row)
    for name, facts in (
        ("real_authors_perturbed", background.real_authors),
        ("world_facts_perturbed", background.world_facts),
    ):
        columns = ("question", "answer", "perturbed_answer", "value")
        configs[name] = [{column: fact[column] for column in columns} for fact in facts]
    configs["background"] = background.training
    configs["biographies"] = [biography(author) for author in everybody]
    if max(exposures) > 1:
        configs["restatements"] = [
            row for author in everybody for attribute in attributes for row in restatements(author, attribute)
        ]
    return World(authors, seed, exposures, configs)


def _check(authors: int, seed: int, exposures: tuple[int, ...]) -> None:
    if not isinstance(authors, int) or authors < 1:
        raise ValueError(f"authors is {authors!r}; a world needs a whole number of authors, 1 or more.")
    if not isinstance(seed, int):
        raise ValueError(f"seed is {seed!r}; a whole number is needed.")
    if not exposures or any(not isinstance(count, int) or count < 1 for count in exposures):
        raise ValueError(f"exposures is {exposures!r}; one or more whole numbers are needed, each 1 or more.")
