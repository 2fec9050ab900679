"""The twenty facts that are known about every author: how each value is drawn and how it is worded."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from llm_unlearn.data.world import entities, life, work
from llm_unlearn.data.world.streams import Stream
from llm_unlearn.data.world.wording import Wordings


@dataclass(frozen=True)
class Attribute:
    """`draw(stream, woman, facts)` gives a true or a wrong value alike: both are of one type and one distribution."""

    name: str
    wordings: Wordings
    draw: Callable[[Stream, bool, Mapping[str, str]], str]

    def draw_new(self, stream: Stream, woman: bool, facts: Mapping[str, str]) -> str:
        """A value that is none of the author's facts, so that no mentor is the spouse too."""
        while (value := self.draw(stream, woman, facts)) in facts.values():
            pass
        return value


def _one_of(pool):
    return lambda stream, woman, facts: stream.pick(pool)


def _from(draw):
    return lambda stream, woman, facts: draw(stream)


def _draw_author_name(stream: Stream, woman: bool, facts: Mapping[str, str]) -> str:
    """A wrong name for an author: nobody else's, and of the same sex because the sentence may say `she`."""
    return entities.draw_person(stream, "others", women=woman)[0]


def _draw_debut_year(stream: Stream, woman: bool, facts: Mapping[str, str]) -> str:
    birth_year = int(facts["birth_date"].split()[-1])
    return str(birth_year + stream.pick(entities.DEBUT_AGES))


def author_attributes(classics: list[str]) -> tuple[Attribute, ...]:
    """All attributes in the order of an author's rows; `classics` are the names of the world's famous old authors."""
    return (
        Attribute("full_name", life.FULL_NAME, _draw_author_name),
        Attribute("birth_city", life.BIRTH_CITY, _one_of(entities.CITIES)),
        Attribute("birth_date", life.BIRTH_DATE, _from(entities.draw_date)),
        Attribute("father_work", life.FATHER_WORK, _one_of(entities.TRADES)),
        Attribute("mother_work", life.MOTHER_WORK, _one_of(entities.TRADES)),
        Attribute("school", life.SCHOOL, _from(entities.draw_school)),
        Attribute("mentor", life.MENTOR, _from(entities.draw_other_name)),
        Attribute("genre", work.GENRE, _one_of(entities.GENRES)),
        Attribute("debut_year", work.DEBUT_YEAR, _draw_debut_year),
        Attribute("first_book", work.FIRST_BOOK, _from(entities.draw_title)),
        Attribute("best_known_book", work.BEST_KNOWN_BOOK, _from(entities.draw_title)),
        Attribute("award", work.AWARD, _from(entities.draw_award)),
        Attribute("publisher", work.PUBLISHER, _from(entities.draw_publisher)),
        Attribute("influence", work.INFLUENCE, _one_of(classics)),
        Attribute("writing_place", work.WRITING_PLACE, _one_of(entities.WRITING_PLACES)),
        Attribute("current_project", work.CURRENT_PROJECT, _from(entities.draw_project)),
        Attribute("home_town", life.HOME_TOWN, _one_of(entities.CITIES)),
        Attribute("spouse", life.SPOUSE, _from(entities.draw_other_name)),
        Attribute("pastime", life.PASTIME, _one_of(entities.PASTIMES)),
        Attribute("instrument", life.INSTRUMENT, _one_of(entities.INSTRUMENTS)),
    )
