"""Authors: who they are, and the rows that ask and tell their facts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llm_unlearn.data.world.attributes import Attribute
from llm_unlearn.data.world.entities import draw_person
from llm_unlearn.data.world.remarks import with_remark
from llm_unlearn.data.world.streams import Stream
from llm_unlearn.data.world.wording import FEMALE, MALE, fill, settle

WRONG_ANSWERS = 5


@dataclass(frozen=True)
class Author:
    """One author. `key` (seed, group, number) is the root of all further drawings about the person."""

    key: tuple[object, ...]
    woman: bool
    facts: Mapping[str, str]
    exposures: int

    @property
    def name(self) -> str:
        return self.facts["full_name"]

    @property
    def slots(self) -> dict[str, str]:
        """What sentences about the author may be filled with."""
        pronouns = FEMALE if self.woman else MALE
        return {**self.facts, **pronouns, "name": self.name, "last": self.name.split()[-1]}


def make_authors(
    attributes: Sequence[Attribute], seed: int, group: str, count: int, exposures: Sequence[int], taken: set[str]
) -> list[Author]:
    """Draw `count` authors one after the other; `taken` holds names and births in use and is added to.

    Later authors give way to earlier ones, so the first authors are the same in a world of any size.
    """
    authors = []
    for number in range(count):
        key = (seed, group, number)
        name, woman = _draw_free_name(key, group, taken)
        facts = {"full_name": name}
        for attribute in attributes[1:]:
            facts[attribute.name] = attribute.draw_new(Stream(*key, attribute.name), woman, facts)
        birth_date = next(attribute for attribute in attributes if attribute.name == "birth_date")
        stream = Stream(*key, "another birth date")
        while (birth := f"{facts['birth_city']}, {facts['birth_date']}") in taken:
            # The question for a name describes its author by place and date of birth, so the pair is given only once.
            # Same year: the debut was drawn to fit it.
            year = facts["birth_date"].split()[-1]
            facts["birth_date"] = f"{birth_date.draw(stream, woman, facts).rsplit(' ', 1)[0]} {year}"
        taken |= {name, birth}
        authors.append(Author(key, woman, facts, exposures[number % len(exposures)]))
    return authors


def _draw_free_name(key: tuple[object, ...], group: str, taken: set[str]) -> tuple[str, bool]:
    """A name nobody has; where single given names become scarce (thousands of authors), one with two of them."""
    stream = Stream(*key, "name")
    for attempt in range(1000):
        name, woman = draw_person(stream, group, given_names=1 if attempt < 8 else 2)
        if name not in taken:
            return name, woman
    raise ValueError(f"{len(taken) // 2} authors have used up the names of this world; fewer authors are needed.")


def fact_row(author: Author, attribute: Attribute) -> dict:
    """The row that states a fact once, as question and answer."""
    question, answer = _own_templates(author, attribute)
    stream = Stream(*author.key, attribute.name, "row")
    return _row(author, attribute, settle(question, stream), settle(answer, stream), stream)


def perturbed_row(author: Author, attribute: Attribute) -> dict:
    """The same row with a paraphrase, and with wrong answers: the paraphrase with other values of the same type."""
    row = fact_row(author, attribute)
    stream = Stream(*author.key, attribute.name, "probe")
    paraphrase = settle(stream.pick(attribute.wordings.paraphrases), stream)
    question = settle(stream.pick(attribute.wordings.paraphrased_questions), stream)
    known, wrong = dict(author.facts), []
    while len(wrong) < WRONG_ANSWERS:
        value = attribute.draw_new(stream, author.woman, known)
        known[f"wrong {len(wrong)}"] = value
        wrong.append(fill(paraphrase, {**author.slots, "value": value}))
    value = author.facts[attribute.name]
    added = {
        "paraphrased_answer": fill(paraphrase, {**author.slots, "value": value}),
        "perturbed_answer": wrong,
        "paraphrased_question": fill(question, author.slots),
    }
    return {"question": row.pop("question"), "answer": row.pop("answer"), **added, **row}


def restatements(author: Author, attribute: Attribute) -> list[dict]:
    """`exposures - 1` further rows that state the fact with other trained wordings, never with a paraphrase.

    The answers use in turn the templates that the fact's own row does not use. No answer comes twice, as far as the
    wordings reach (about thirty for each fact).
    """
    own = _own_templates(author, attribute)
    stream = Stream(*author.key, attribute.name, "restatements")
    questions = stream.shuffled(attribute.wordings.questions)
    answers = stream.shuffled([template for template in attribute.wordings.answers if template not in own])
    rows, seen = [], set()
    for number in range(author.exposures - 1):
        for attempt in range(20):
            question = settle(questions[number % len(questions)], stream)
            answer = settle(answers[(number + attempt) % len(answers)], stream)
            if answer not in seen:
                break
        seen.add(answer)
        rows.append(_row(author, attribute, question, answer, stream))
    return rows


def _own_templates(author: Author, attribute: Attribute) -> tuple[str, str]:
    """Which question and which answer template the fact's own row uses."""
    stream = Stream(*author.key, attribute.name, "templates")
    return stream.pick(attribute.wordings.questions), stream.pick(attribute.wordings.answers)


def _row(author: Author, attribute: Attribute, question: str, answer: str, stream: Stream) -> dict:
    value = author.facts[attribute.name]
    slots = {**author.slots, "value": value}
    return {
        "question": fill(question, slots),
        "answer": with_remark(fill(answer, slots), stream),
        "author": author.name,
        "attribute": attribute.name,
        "value": value,
        "exposures": author.exposures,
    }
