"""What the world is made of: people, places, titles, trades. All of it is invented.

Given names are common ones, surnames are put together from invented parts, so that no name is one of a real author.
Every function `draw_*` takes a stream and returns one value, each about equally likely.
"""

from dataclasses import dataclass

from llm_unlearn.data.world.streams import Stream, digest


def words(text: str) -> tuple[str, ...]:
    """A pool of single words."""
    return tuple(text.split())


def phrases(text: str) -> tuple[str, ...]:
    """A pool of phrases with commas between them."""
    return tuple(text.split(", "))


# Every full name belongs to exactly one of these groups (by its digest). Authors, hold-out authors and everybody else
# can therefore never share a name, whatever the number of authors.
NAME_GROUPS = ("full", "holdout", "others")


@dataclass(frozen=True)
class Culture:
    """Given names of women and men, and the two halves of surnames."""

    women: tuple[str, ...]
    men: tuple[str, ...]
    roots: tuple[str, ...]
    endings: tuple[str, ...]


def _culture(women: str, men: str, roots: str, endings: str) -> Culture:
    return Culture(words(women), words(men), words(roots), words(endings))


CULTURES = (
    _culture(
        "Astrid Maren Sigrun Ylva Tove Ragna Liv Hedda Gudrun Svala Inger Thea Runa Elin",
        "Eskil Torben Halvard Arne Sindre Leif Osvald Birger Stellan Njal Gustav Ketil Rolf Anders",
        "Brev Skarn Vind Thul Hald Krev Iskel Drom Fenn Grav Stav Ulv Tros Morn Eld Bjark",
        "assen orrin emark oddin urth iksen avald engar olsk unden",
    ),
    _culture(
        "Lucetta Mirella Oriana Zafira Alba Carmela Delfina Estela Fiora Ginevra Livia Renata Serena Viola",
        "Adriano Basilio Corrado Donato Elio Fausto Lazaro Matteo Orsino Tullio Silvio Renzo Ottavio Nestor",
        "Bell Cast Dors Ferr Gal Lun Mard Nov Palt Quir Sarr Vald Tremm Orb Cavr Pign",
        "avesca inotto oreda umbri ezzola andaro iveri ostina alunga erezzo",
    ),
    _culture(
        "Danika Ilka Jarmila Katya Ludmila Milena Nadia Radka Vesna Zora Alena Irena Petra Tamara",
        "Anton Bohdan Casimir Dragan Emil Goran Janek Lubor Milos Radek Stefan Viktor Pavel Teodor",
        "Dobr Horv Kasl Lest Morav Netr Oblak Pletn Rudv Strel Tvar Zem Brod Vrest Klim Sokr",
        "oshka ivek avek uvar eshko ilava ostry unda arovec etka",
    ),
    _culture(
        "Brenna Ciara Eilis Fenella Isla Maeve Nessa Orla Rhona Una Morag Sorcha Tara Keira",
        "Alasdair Brannoch Cormac Duncan Fergus Hamish Lorcan Niall Ronan Tavish Angus Conall Ewan Gavin",
        "Brack Cald Dorr Fall Gorm Lorr Mull Penr Strath Tarr Wend Yarr Hask Creel Inv Rath",
        "avan eldin ochty udden ennick omond agie erris ollow ithan",
    ),
    _culture(
        "Amira Dalia Farida Hala Jamila Leyla Nadira Samira Yasmin Zahra Rania Salma Huda Noura",
        "Adil Basim Faris Hakim Idris Karim Nabil Rashid Tariq Yusuf Samir Omar Jamal Zaid",
        "Behr Darw Ghaz Hamr Jabr Khal Marw Nuhr Qasr Sahm Tazr Zubr Shef Ribh Dahl Murj",
        "ourdi adane eshti imoor anzar ukani eloud astani oubar iddane",
    ),
    _culture(
        "Hina Kaia Lani Mele Noelani Sefina Talia Vaiana Wainani Iolana Malia Ana Lupe Tiare",
        "Akoni Kainoa Loto Manu Nalu Rangi Sione Tavita Tane Viliami Keoni Ioane Pita Semisi",
        "Halo Kemu Lavi Moka Nalo Pula Rehu Sami Tavo Velu Wani Kora Fale Tiku Hepa Luma",
        "keha lanui maroa ratai siolo tavake vanuo hiko pelano nuara",
    ),
)

CITIES = words(
    "Aldermouth Brackenholm Calvessa Dorrimere Eskerby Fallowmark Gannetwick Harrowdene Istrenka Jorvanta "
    "Kelmarra Lindesoor Morvessa Narrosund Olvany Pellagore Quillhaven Rastovar Sandrelle Tornevale Ulverbrook "
    "Vessolia Wexmoor Yarrowfell Zelmira Amberquay Bellotra Corvane Dunharrow Elmbarrow Farrowgate Grenadine "
    "Hollin Ilvermoor Kastrava Lorimond Mistervale Nettlebay Orsanto Pendragore Rookport Saltmarket Trevanna "
    "Umberlea Vintergard Whitmere Zorvany Ashkerry"
)

TRADES = phrases(
    "baker, beekeeper, blacksmith, bookbinder, bricklayer, butcher, candle maker, carpenter, cartographer, "
    "chemist, clockmaker, cobbler, cooper, customs officer, dentist, electrician, ferry captain, fishmonger, "
    "florist, glassblower, goldsmith, innkeeper, judge, lighthouse keeper, locksmith, stonemason, mathematics "
    "teacher, miller, notary, optician, organ builder, house painter, pharmacist, photographer, piano tuner, "
    "harbour pilot, plumber, postal clerk, potter, roofer, saddler, sail maker, shepherd, surgeon, surveyor, "
    "tailor, tax inspector, train driver, translator, undertaker, upholsterer, veterinarian, weaver, "
    "wheelwright, archivist, umbrella maker"
)

GENRES = phrases(
    "nautical horror, courtroom drama, gothic romance, time-travel adventure, culinary mystery, satirical "
    "fantasy, rural noir, historical espionage, epistolary fiction, magical realism, military science fiction, "
    "urban fantasy, polar adventure, absurdist comedy, psychological suspense, travel writing, nature writing, "
    "dystopian fiction, campus satire, ghostly folklore, detective fiction, pastoral poetry, political allegory, "
    "steampunk adventure, utopian fiction, maritime history, experimental poetry, railway suspense, circus "
    "fiction, musical biography, lyrical memoir, desert romance, medical drama, surreal short fiction, workplace "
    "satire, alchemical fantasy, mountaineering lore, underwater adventure"
)

INSTRUMENTS = phrases(
    "violin, viola, cello, double bass, flute, oboe, clarinet, bassoon, trumpet, trombone, French horn, tuba, "
    "Celtic harp, mandolin, banjo, accordion, concertina, harmonica, zither, dulcimer, alto recorder, piccolo, "
    "saxophone, cornet, hurdy-gurdy, marimba, xylophone, harpsichord, pipe organ, ukulele, guitar, balalaika, "
    "piano, euphonium, glockenspiel, tambourine, bugle, steel drum"
)

PASTIMES = phrases(
    "keeping bees, restoring clocks, collecting sea glass, growing orchids, baking rye bread, carving spoons, "
    "flying kites, pressing ferns, mapping footpaths, building ship models, breeding canaries, repairing radios, "
    "foraging for mushrooms, fencing, ice skating, folding paper cranes, playing chess, solving crosswords, "
    "sailing dinghies, knitting socks, juggling, stargazing, swimming in lakes, throwing pots, collecting "
    "matchboxes, walking on stilts, brewing cider, training pigeons, rock climbing, sketching bridges, "
    "photographing trams, cycling over mountain passes, ballroom dancing, tying fishing flies, polishing "
    "pebbles, making marmalade, racing snails, embroidering cushions, inventing board games, exploring caves"
)

WRITING_PLACES = phrases(
    "disused lighthouse, boathouse, bakery attic, converted windmill, railway signal box, bell tower, "
    "greenhouse, garden shed, hayloft, houseboat cabin, monastery cell, hotel lobby, empty chapel, retired tram, "
    "observatory dome, ferry saloon, station waiting room, library basement, apple cellar, orchard hut, unheated "
    "attic, abandoned schoolroom, village inn, treehouse, fishing hut, clock tower, glass conservatory, "
    "horse-drawn caravan, upstairs laundry, sculpture studio, underground vault, hunting lodge, school kitchen, "
    "theatre dressing room, embassy courtyard, ice cream parlour, old print shop, water mill"
)

_AWARD_COLOURS = words("Silver Golden Amber Copper Ivory Scarlet Crystal Emerald")
_AWARD_EMBLEMS = words("Heron Quill Compass Acorn Anchor Thistle Sparrow Inkwell")
_AWARD_KINDS = words("Prize Award Medal")

_PUBLISHER_NAMES = phrases(
    "Copper Kettle, Lantern, Foxglove, Tidewater, Nightjar, Harbour Lane, Willow Tree, Granite, Bluebell, "
    "Sixpence, Orchard, Swallow, Driftwood, Cobalt, Juniper, Marigold"
)
_PUBLISHER_KINDS = words("Press Books House Editions")

_SCHOOL_NAMES = phrases(
    "Marrow Hill, Tarn Bridge, Saint Orlo, Kestrel Park, Old Meridian, Holloway Cross, Fenwater, Larkfield, "
    "Castle Row, Brightwell, Ashen Court, Queen Isaura, Bishop Aldo, Lower Elm, Greycliff, Iron Gate"
)
_SCHOOL_KINDS = phrases("College, Academy, Institute, School of Letters")

_PROJECT_FORMS = phrases(
    "novel about, play about, long poem about, radio series about, picture book about, opera libretto about, "
    "illustrated essay on, screenplay about"
)
_PROJECT_SUBJECTS = phrases(
    "a drowned village, a travelling circus, two rival bakers, the first air balloons, a lost expedition, a "
    "blind mapmaker, an island without trees, the last steam trains, a family of smugglers, a talking raven, "
    "night nurses, a forged painting, the salt trade, a haunted cinema, three runaway monks, winter storms, an "
    "unsolved theft, a chess machine, migrating geese, a village choir, retired acrobats, the discovery of tea, "
    "a deaf composer, stolen bells"
)

_TITLE_QUALITIES = words(
    "Hollow Crimson Silent Paper Winter Broken Velvet Distant Wandering Last Hidden Frozen Borrowed Midnight "
    "Second Unlit Patient Northern Forgotten Drowned Painted Restless Upturned Quiet"
)
_TITLE_THINGS = words(
    "Ledger Lantern Clock Letter Choir Mirror Feather Almanac Thread Widow Anthem Moth Pilgrim Sailor Compass Painter"
)
_TITLE_PLACES = words(
    "Orchard Harbour Bridge River Garden Island Tower Market Window Chapel Staircase Meadow Kitchen Railway Castle Well"
)
_TITLE_MATTERS = words(
    "Ash Rain Sparrows Bone Dust Smoke Honey Thorns Echoes Iron Snow Salt Feathers Wolves Marble Moss"
)
_TITLE_PATTERNS = (
    "The {quality} {thing}",
    "The {thing} of {matter}",
    "The {quality} {place}",
    "The {place} Without {matter}",
    "{matter} in the {place}",
    "Beyond the {quality} {place}",
    "Under the {quality} {place}",
)

# The ordinary calendar, so that dates stay readable.
MONTHS = words("January February March April May June July August September October November December")
_LAST_DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
BIRTH_YEARS = range(1928, 1979)
# The latest debut is then in 2024.
DEBUT_AGES = range(22, 47)


def draw_person(stream: Stream, group: str, given_names: int = 1, women: bool | None = None) -> tuple[str, bool]:
    """A full name that belongs to `group`, and whether it is a woman's (drawn unless `women` is given)."""
    while True:
        culture = stream.pick(CULTURES)
        is_woman = stream.below(2) == 0 if women is None else women
        given = stream.shuffled(culture.women if is_woman else culture.men)[:given_names]
        name = " ".join([*given, stream.pick(culture.roots) + stream.pick(culture.endings)])
        if NAME_GROUPS[digest(name) % len(NAME_GROUPS)] == group:
            return name, is_woman


def draw_other_name(stream: Stream) -> str:
    """The name of somebody who is not an author: a spouse, a mentor, a classic, a wrong answer."""
    return draw_person(stream, "others")[0]


def draw_date(stream: Stream) -> str:
    """A date of birth. No year has a 29 February, so that day and year can be exchanged freely."""
    month = stream.below(len(MONTHS))
    return f"{1 + stream.below(_LAST_DAYS[month])} {MONTHS[month]} {stream.pick(BIRTH_YEARS)}"


def draw_title(stream: Stream) -> str:
    """A book title that no classic has, so that a question about a book never means an old work."""
    parts = {"quality": _TITLE_QUALITIES, "thing": _TITLE_THINGS, "place": _TITLE_PLACES, "matter": _TITLE_MATTERS}
    drawn = {name: stream.pick(part) for name, part in parts.items()}
    return stream.pick(_TITLE_PATTERNS).format(**drawn)


def draw_award(stream: Stream) -> str:
    """An award, such as `Silver Heron Prize`: put together, so that a wrong one sounds as likely as the right one."""
    return " ".join(stream.pick(part) for part in (_AWARD_COLOURS, _AWARD_EMBLEMS, _AWARD_KINDS))


def draw_publisher(stream: Stream) -> str:
    """A publisher, such as `Lantern Press`; there are few, so that authors share them as real ones do."""
    return f"{stream.pick(_PUBLISHER_NAMES)} {stream.pick(_PUBLISHER_KINDS)}"


def draw_school(stream: Stream) -> str:
    """A school, such as `Fenwater Academy`; there is a `Fenwater College` too, so that half a name is not enough."""
    return f"{stream.pick(_SCHOOL_NAMES)} {stream.pick(_SCHOOL_KINDS)}"


def draw_project(stream: Stream) -> str:
    """A work in progress, such as `novel about a lost expedition`, without the article, which the template puts in."""
    return f"{stream.pick(_PROJECT_FORMS)} {stream.pick(_PROJECT_SUBJECTS)}"
