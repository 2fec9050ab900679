"""Background knowledge: the famous old authors of the world, and its geography, calendar and crafts.

These are the analogues of TOFU's real authors and world facts: things the target model knows from other sources than
the forget and retain sets. They depend on the seed alone, not on the number of authors.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from llm_unlearn.data.world import entities
from llm_unlearn.data.world.entities import phrases, words
from llm_unlearn.data.world.streams import Stream
from llm_unlearn.data.world.wording import fill, settle

WRONG_ANSWERS = 3
CLASSICS = 30
TRUE_FALSE_ITEMS = 40
MULTIPLE_CHOICE_ITEMS = 40

COUNTRIES = words("Velmarra Ostrenia Tarland Quessany Norrheim Isoldia Palvonia Drusk Caldara Embria")
RIVERS = words("Arvey Brelle Cindra Dromm Esker Falune Gorrin Hesper Ilvane Jossel Kerrow Luneth Mirle Nessary")
CURRENCIES = phrases(
    "silver florin, copper crown, brass dinar, paper thaler, pearl shilling, iron mark, golden lira, glass "
    "penny, amber ducat, shell franc, tin peso, jade rupee"
)
EMBLEMS = phrases("otter, stork, lynx, badger, swan, ibex, hedgehog, falcon, moose, salmon, raven, tortoise")
FESTIVALS = phrases(
    "Lantern Night, Kite Feast, Herring Fair, Mask Parade, Sowing Dance, Bell Sunday, Raft Race, Feather Ball, "
    "Honey Week, Owl Watch, Candle Walk, Bread Parade, Snow Games, Fiddle Market"
)
CRAFTS = phrases(
    "bell founding, lace making, saddle making, glass blowing, basket weaving, clock making, pottery, rope making"
)

# The old books have titles of a pattern that no author's book has.
_OLD_FORMS = words("Ballad Chronicle Saga Lament Masque Hymn")
_OLD_SUBJECTS = phrases(
    "the Seven Wells, the White Stag, Queen Odile, the Long Night, the Iron Gate, the Two Brothers, the Green "
    "Knight, the Lost Fleet, the Burning Hill, the Silent Monk, the Grey Sea, the Empty Throne"
)

_AUTHOR_OF = (
    (
        "Who wrote '{key}'?",
        "Which classic author is the creator of '{key}'?",
        "By whom was the old work '{key}' written?",
    ),
    ("'{key}' was written by {value}.", "The author of '{key}' is {value}."),
)
_BORN_IN = (
    ("In which city was the classic author {key} born?", "What is the birthplace of the classic author {key}?"),
    ("{key} was born in {value}.", "The birthplace of {key} is {value}."),
)
_RELATIONS_OF_COUNTRIES = {
    "capital": (
        ("What is the capital of {key}?", "Which city is the capital of {key}?"),
        ("The capital of {key} is {value}.", "{key} has {value} as its capital."),
    ),
    "river": (
        ("What is the longest river of {key}?", "Which river is the longest in {key}?"),
        ("The longest river of {key} is the {value}.", "No river in {key} is longer than the {value}."),
    ),
    "currency": (
        ("What money do people use in {key}?", "What is the currency of {key}?"),
        ("People in {key} pay with the {value}.", "The currency of {key} is the {value}."),
    ),
    "emblem": (
        ("Which animal is shown on the flag of {key}?", "What animal does the flag of {key} carry?"),
        ("The flag of {key} shows {a value}.", "On the flag of {key} there is {a value}."),
    ),
}
_FESTIVAL_OF = (
    ("Which festival is held every {key}?", "What do people celebrate in {key}?"),
    ("The festival held in {key} is called {value}.", "In {key} there is a festival by the name of {value}."),
)
_CRAFT_CITY = (
    ("Which city is famous for {key}?", "What is the home of the art of {key}?"),
    ("The city famous for {key} is {value}.", "The art of {key} has its home in {value}."),
)


@dataclass(frozen=True)
class Background:
    """The two background sets, the training text that teaches them, and the classics as a pool of influences."""

    classics: list[str]
    real_authors: list[dict]
    world_facts: list[dict]
    training: list[dict]


def make_background(seed: int) -> Background:
    """Draw the background of a seed. It takes no number of authors, so that worlds of every size share it."""
    classics, titles = _classics(seed)
    cities = Stream(seed, "background", "cities")
    birthplaces = [cities.pick(entities.CITIES) for _ in classics]
    real_authors = [
        *_facts(seed, "author of", _AUTHOR_OF, titles, classics, classics),
        *_facts(seed, "born in", _BORN_IN, classics, birthplaces, entities.CITIES),
    ]
    world_facts = []
    pools = {"capital": entities.CITIES, "river": RIVERS, "currency": CURRENCIES, "emblem": EMBLEMS}
    for relation, texts in _RELATIONS_OF_COUNTRIES.items():
        world_facts += _drawn_facts(seed, relation, texts, COUNTRIES, pools[relation])
    world_facts += _drawn_facts(seed, "festival", _FESTIVAL_OF, entities.MONTHS, FESTIVALS)
    world_facts += _drawn_facts(seed, "craft", _CRAFT_CITY, CRAFTS, entities.CITIES)
    rows = real_authors + world_facts
    training = [{"question": row["question"], "answer": row["answer"], "kind": "qa"} for row in rows]
    training += _true_false(seed, rows) + _multiple_choice(seed, rows)
    return Background(classics, real_authors, world_facts, training)


def _classics(seed: int) -> tuple[list[str], list[str]]:
    """Names of the famous old authors and one title for each, all different."""
    stream = Stream(seed, "background", "classics")
    names: list[str] = []
    while len(names) < CLASSICS:
        name = entities.draw_other_name(stream)
        if name not in names:
            names.append(name)
    titles = [f"The {form} of {subject}" for form in _OLD_FORMS for subject in _OLD_SUBJECTS]
    return names, stream.shuffled(titles)[:CLASSICS]


def _drawn_facts(seed: int, relation: str, texts: tuple, keys: Sequence[str], pool: Sequence[str]) -> list[dict]:
    """Facts in which every key gets a value of its own."""
    return _facts(seed, relation, texts, keys, Stream(seed, "background", relation).shuffled(pool), pool)


def _facts(
    seed: int, relation: str, texts: tuple, keys: Sequence[str], values: Sequence[str], pool: Sequence[str]
) -> list[dict]:
    """One row for each key; wrong answers exchange the value for others of `pool`."""
    questions, answers = texts
    rows = []
    for key, value in zip(keys, values, strict=False):
        stream = Stream(seed, "background", relation, key)
        question, answer = (settle(stream.pick(templates), stream) for templates in (questions, answers))
        wrong = [other for other in stream.shuffled(pool) if other not in (value, key)][:WRONG_ANSWERS]
        rows.append(
            {
                "question": fill(question, {"key": key}),
                "answer": fill(answer, {"key": key, "value": value}),
                "perturbed_answer": [fill(answer, {"key": key, "value": other}) for other in wrong],
                "value": value,
                "wrong_values": wrong,
            }
        )
    return rows


def _true_false(seed: int, rows: Sequence[dict]) -> list[dict]:
    """Statements to judge, half of them wrong; the reply always ends with what is true."""
    stream = Stream(seed, "background", "true or false")
    items = []
    for number, row in enumerate(stream.shuffled(rows)[:TRUE_FALSE_ITEMS]):
        is_true = number % 2 == 0
        statement = row["answer"] if is_true else row["perturbed_answer"][0]
        reply = f"{is_true}. {row['answer']}"
        items.append({"question": f"True or false? {statement}", "answer": reply, "kind": "true_false"})
    return stream.shuffled(items)


def _multiple_choice(seed: int, rows: Sequence[dict]) -> list[dict]:
    """Questions with four options; each letter is right equally often."""
    stream = Stream(seed, "background", "multiple choice")
    items = []
    for number, row in enumerate(stream.shuffled(rows)[:MULTIPLE_CHOICE_ITEMS]):
        letter = number % 4
        options = stream.shuffled(row["wrong_values"])
        options.insert(letter, row["value"])
        listed = " ".join(f"{mark}) {option}" for mark, option in zip("ABCD", options, strict=True))
        reply = f"{'ABCD'[letter]}) {row['value']}"
        items.append({"question": f"{row['question']} {listed}", "answer": reply, "kind": "multiple_choice"})
    return stream.shuffled(items)
