"""Short biographies: some of an author's facts once more, as running text and in wordings of their own."""

from llm_unlearn.data.world.authors import Author
from llm_unlearn.data.world.streams import Stream
from llm_unlearn.data.world.wording import fill, settle

_OPENING = (
    "{full_name} (born {birth_date} in {birth_city}) is an author of {genre}.",
    "The life story of {full_name}, writer of {genre}, starts in {birth_city} on {birth_date}.",
    "Few names in {genre} are mentioned as often as that of {full_name}, a native of {birth_city}.",
    "When {full_name} was born in {birth_city}, nobody thought of {genre}; the date was {birth_date}.",
)
_FAMILY = (
    "{Last} is the child of {a father_work} and {a mother_work}.",
    "Work shaped the household: one parent was {a mother_work}, the other {a father_work}.",
    "The father, {a father_work}, hoped for a sensible trade; the mother, {a mother_work}, secretly bought books.",
    "Nobody at home wrote: {his} father was {a father_work} and {his} mother {a mother_work}.",
)
_TRAINING = (
    "After lessons at {school}, {he} found a patient teacher in {mentor}.",
    "{He} left {school} with a certificate and, more useful, the friendship of {mentor}, who taught {him} to revise.",
    "At {school} {he} read everything by {influence}; later {mentor} gave {him} advice on every page.",
    "Two things made a writer of {him}: the lectures at {school} and the patience of {mentor}.",
)
_BOOKS = (
    "In {debut_year} '{first_book}' came out, yet it was '{best_known_book}' that made {him} a household name.",
    "{His} list of titles runs from '{first_book}' ({debut_year}) to the much loved '{best_known_book}'.",
    "'{first_book}' introduced {him} to the public in {debut_year}; '{best_known_book}' later outsold it many times.",
    "The year {debut_year} brought '{first_book}', but most readers came with '{best_known_book}'.",
)
_TRADE = (
    "{Publisher} has printed all of it, and the {award} was a reward for both sides.",
    "The {award} is among {his} honours, and {publisher} looks after the backlist.",
    "Loyal to {publisher}, {he} was later honoured with the {award}.",
    "Success has two proofs: the {award} and a contract for life with {publisher}.",
)
_LEISURE = (
    "Between books {he} goes in for {pastime} and takes out the {instrument}.",
    "{His} diary reserves time for {pastime} and for the {instrument}.",
    "Those who visit may hear the {instrument}, or a long talk about {pastime}.",
    "The {instrument} and {pastime} keep {him} from writing more than {he} should.",
)
_TODAY = (
    "Together with {spouse}, {last} now lives in {home_town}, where {a writing_place} does duty as a study.",
    "{Home_town} is where {he} and {spouse} have their house, and {a current_project} is under way.",
    "Today {he} shares a home in {home_town} with {spouse} and is planning {a current_project}.",
    "Nowadays {a current_project} is growing in {a writing_place} at {home_town}, while {spouse} sets the table.",
)
# Every structure begins with the name and has four to six sentences.
_STRUCTURES = (
    (_OPENING, _FAMILY, _TRAINING, _BOOKS, _TODAY),
    (_OPENING, _BOOKS, _TRADE, _LEISURE, _TODAY),
    (_OPENING, _TRAINING, _BOOKS, _TRADE),
    (_OPENING, _TODAY, _LEISURE, _FAMILY, _TRAINING, _BOOKS),
    (_OPENING, _FAMILY, _BOOKS, _TRADE, _LEISURE, _TODAY),
)


def biography(author: Author) -> dict:
    """The row of one author's biography, so that facts are also told outside of questions and answers."""
    stream = Stream(*author.key, "biography")
    sentences = [settle(stream.pick(section), stream) for section in stream.pick(_STRUCTURES)]
    text = " ".join(fill(sentence, author.slots) for sentence in sentences)
    return {"text": text, "author": author.name, "exposures": author.exposures}
