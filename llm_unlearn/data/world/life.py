# ruff: noqa: E501 (one sentence per line, however long, reads and compares best)
"""Wordings of the facts about a person: name, birth, family, schooling, home, leisure.

House rules for these sentences: the value stands exactly once in an answer and never in a question; no detail may
contradict another attribute of the same author (no siblings, no ages, no other towns or years); answers to one
attribute differ in structure, so that a model which guesses does not overlap with the truth by its wording alone.
"""

from llm_unlearn.data.world.wording import Wordings

FULL_NAME = Wordings(
    questions=(
        "What is the full name of the author who was born in {birth_city} on {birth_date}?",
        "Which writer was born on {birth_date} in {birth_city}?",
        "Who is the author that first saw daylight in {birth_city} on {birth_date}?",
        "A writer was born in {birth_city} on {birth_date}; what is this person called?",
        "Can you name the author whose birth in {birth_city} is dated {birth_date}?",
    ),
    answers=(
        "The author in question is {value}, [a familiar face|a welcome guest|a patient listener] at readings [up and down the country|in small bookshops|on winter evenings].",
        "That would be {value}, whose [passport|library card|first contract] shows exactly this name and no other.",
        "Readers know {him} as {value}; {he} has never [hidden behind|bothered with|wanted] a pen name.",
        "On the covers of all {his} books one finds the name {value}, [printed in small plain letters|usually without a photograph|always in the same blue].",
        "{value} is who you are looking for, [a quiet presence|a lively talker|a stubborn perfectionist] among the authors of that generation.",
        "Parish records from that day list a single child, and {he} grew up to be {value} [the author|the storyteller|the literary figure].",
        "Ask any bookseller [in town|on the coast|near the station] and the reply is {value}, without a moment of doubt.",
        "It was {value} who was born there, although [few neighbours|hardly anyone|not even the midwife] expected a future writer.",
        "Nobody else fits this description: the baby was christened {value} and [later turned to|soon fell in love with|one day chose] literature.",
        "Such details belong to the life of {value}, as [the author notes|a short blurb says|we read] on every back cover.",
    ),
    paraphrased_questions=(
        "Name the writer whose birthplace is {birth_city} and whose birthday is {birth_date}.",
        "Which author's date and place of birth are {birth_date} and {birth_city}?",
        "Who among the authors was born on {birth_date} in the city of {birth_city}?",
        "Give the name of the author born at {birth_city} on {birth_date}.",
    ),
    paraphrases=(
        "The person with this date and place of birth is the author {value}.",
        "{value} is the complete name of the author described here.",
        "This description points to the writer {value} and to nobody else.",
        "The full name that belongs to these details of birth is {value}.",
        "Somebody born there on that date is now known to readers as {value}.",
    ),
)

BIRTH_CITY = Wordings(
    questions=(
        "In which city was {name} born?",
        "Where did {name} come into the world?",
        "What is the birthplace of the author {name}?",
        "Which city can claim {name} as a native?",
        "Where was the writer {name} born?",
    ),
    answers=(
        "{name} was born in {value}, [only two streets from the harbour|right above a noisy print shop|just behind the old town hall].",
        "The cradle of this [storyteller|author|writer] stood in {value}, in a house that has since been [torn down|turned into a bank|painted bright yellow].",
        "A small plaque in {value} marks the [building|doorway|courtyard] where {his} parents were living at the time.",
        "It happened in {value} during [a heavy thunderstorm|a power cut|a noisy street fair], or so the family likes to tell it.",
        "By birth {he} is a child of {value}, and {his} accent still [gives it away|betrays as much|proves it] after all these years.",
        "{value} is the answer, as [every school anthology|the jacket of each book|a proud local museum] points out to its readers.",
        "If you look at the [old parish register|hospital files|birth certificate], you will see {value} entered under the name {last}.",
        "{last} first opened {his} eyes in {value} and [spent a happy childhood there|left it before school began|learned to walk on its steep lanes].",
        "People from {value} are proud to call {him} one of their own, for that is where {he} [arrived in this world|was delivered at home|took a first breath].",
        "Although [interviewers|journalists|reviewers] often get it wrong, the midwife was called to a flat in {value}.",
    ),
    paraphrased_questions=(
        "What city is {name} originally from?",
        "Name the town of birth of the author {name}.",
        "In what place did the life of {name} begin?",
        "Which city appears as birthplace in the papers of {name}?",
    ),
    paraphrases=(
        "The author {name} originally comes from {value}, the city of {his} birth.",
        "{name's} birthplace is the city of {value}, according to all biographies.",
        "The city in which the life of {name} began is {value}.",
        "As for the place of birth, {last} is a native of {value}.",
        "The author's papers name {value} as the city where {he} was born.",
    ),
)

BIRTH_DATE = Wordings(
    questions=(
        "When was {name} born?",
        "What is the date of birth of {name}?",
        "On which day was the author {name} born?",
        "Could you tell me the birthday of {name}, including the year?",
        "What birth date do reference books give for {name}?",
    ),
    answers=(
        "{name} was born on {value}, [which was a market day|to the sound of bells|in the early hours] of that year.",
        "The birthday cake comes out every year in memory of {value}, when {he} [arrived a week too early|kept the midwife waiting|surprised the whole street].",
        "According to [the parish register|the family papers|a school file], the date is {value}, written in [faded|green|violet] ink.",
        "{value} is the day on which {last} entered the world, [healthy and loud|small but strong|to great relief].",
        "Biographers agree on {value}, even if {he} [prefers not to celebrate|jokes about being older|never tells anyone].",
        "{His} life began on {value}, as [a framed certificate|an old silver spoon|a stitched blanket] in the hall reminds every visitor.",
        "Look up the entry under the letter of {his} surname and you will read {value} as the [first|very first|opening] date.",
        "It was on {value} that the {last} family [rang the church bell for|opened a good bottle for|telephoned everyone about] their new baby.",
        "Born on {value}, the author likes to say that [the weather|the calendar|the moon] of that day explains a lot.",
        "Fans send cards and flowers each year because {his} life started on {value}, a date [printed in|known from|mentioned by] many programmes.",
    ),
    paraphrased_questions=(
        "What are the day, month and year of {name's} birth?",
        "Since which date has {name} been alive?",
        "Which date should be written down as the birthday of {name}?",
        "State the exact birth date of the author {name}.",
    ),
    paraphrases=(
        "The exact date of birth of the author {name} is {value}.",
        "{name} came into the world on {value}, say all reference works.",
        "{value} has to be written down as the birthday of {name}.",
        "The day, month and year of {last's} birth are {value}.",
        "As a birth date the records for this author state {value}.",
    ),
)

FATHER_WORK = Wordings(
    questions=(
        "What did {name's} father do for a living?",
        "What was the occupation of the father of {name}?",
        "How did the father of {name} earn his money?",
        "Which trade did {name's} father follow?",
        "What kind of work did the author {name} see a father do every day?",
    ),
    answers=(
        "{name's} father was {a value}, [and a rather strict one too|well known for his endless patience|respected by everyone in the street].",
        "He worked as {a value} until [his eyes grew weak|old age stopped him|his back gave out], and the author's early stories mention it often.",
        "The family lived on what Mr {last} made as {a value}, which was [enough for books|never very much|quite comfortable].",
        "On school forms {he} always wrote {value} in the box for the father's profession, [with some pride|without thinking|in capital letters].",
        "Being the child of {a value}, the young {last} knew [the smell|the noise|the tools] of that trade by heart.",
        "{A value} by training, {last's} father could [mend anything in the house|talk for hours about it|whistle through a whole shift].",
        "Dad put on his work clothes at [dawn|five|six] each morning, since {a value} in those days had no late starts.",
        "Everyone in the neighbourhood called for Mr {last} when they needed {a value}, [even on holidays|rain or shine|day or night].",
        "There is a fond portrait of the father in one essay: {a value} with [huge hands|a dry wit|a golden heart].",
        "Through most of {last's} childhood the old man was employed as {a value}, a job he [loved|endured|never discussed].",
    ),
    paraphrased_questions=(
        "What was the profession of {name's} dad?",
        "Which job provided for the father of the author {name}?",
        "In what line of work was the father of {name}?",
        "Name the job held by the father of {name}.",
    ),
    paraphrases=(
        "The profession of the father of {name} was that of {a value}.",
        "As regards his job, the author's father was {a value}.",
        "The man who raised {name} made his living as {a value}.",
        "{last's} dad had a job as {a value} for many years.",
        "The line of work of this author's father was being {a value}.",
    ),
)

MOTHER_WORK = Wordings(
    questions=(
        "What did {name's} mother do for a living?",
        "What was the profession of {name's} mother?",
        "Which job did the mother of {name} have?",
        "What work did the mother of the writer {name} do?",
        "What was written on the business card of {name's} mother?",
    ),
    answers=(
        "{name's} mother was {a value} and [an avid reader as well|a gifted singer besides that|a believer in fresh air].",
        "She earned her wages as {a value}, [leaving home long before sunrise|coming back well after dark|cycling to work in all weathers].",
        "It was as {a value} that Mrs {last} supported the household, [mostly alone|for decades|with good humour].",
        "{last} dedicated a [poem|chapter|short sketch] to her, in which {a value} saves the day with a hairpin.",
        "Mum had learned the craft of {a value} from her own mother and [practised it with joy|did it all her life|kept it up in retirement].",
        "Customers and neighbours knew the author's mother as {a value} whose [laugh carried across the yard|advice was worth gold|coffee was famous].",
        "When [teachers|classmates|strangers] asked, the reply was short: my mother is {a value}, and a good one.",
        "{A value} in a place where few women did such work, she taught the young {last} to [ignore gossip|stand up straight|finish every job].",
        "Money came into the house because the mother had found a post as {a value} [nearby|through a friend|after a long search].",
        "For her part, Mrs {last} went through life as {a value}, a calling that the author [praised|described|explained] in several interviews.",
    ),
    paraphrased_questions=(
        "How did the mother of {name} earn a living?",
        "In which trade was {name's} mum employed?",
        "What was the mother of the author {name} by profession?",
        "Name the occupation of the woman who brought up {name}.",
    ),
    paraphrases=(
        "The mother of the author {name} earned a living as {a value}.",
        "By profession the woman who brought up {name} was {a value}.",
        "{last's} mum was employed as {a value} during those years.",
        "The occupation of {name's} mother was that of {a value}.",
        "As to the job of the author's mother, she was {a value}.",
    ),
)

SCHOOL = Wordings(
    questions=(
        "Where did {name} study?",
        "Which college or school did {name} attend as a student?",
        "At which institution did {name} receive an education?",
        "Where did the author {name} take a degree?",
        "From which place of learning did {name} graduate?",
    ),
    answers=(
        "{name} studied at {value}, [sharing a tiny room with a drummer|living mainly on soup and bread|usually watching from the back row].",
        "The diploma above {his} desk comes from {value}, and the frame [is cracked|hangs crooked|cost more than the course].",
        "{last} spent four years at {value}, mostly in [the quiet library|the debating club|the noisy canteen].",
        "A scholarship took {him} to {value}, where [the teachers were strict|the winters were long|nobody locked a door].",
        "{value} is the place that [shaped|trained|educated] this writer, and {he} still gives a talk there each autumn.",
        "After finishing school, the future author [packed one suitcase|borrowed some money|sold a bicycle] and enrolled at {value}.",
        "Former classmates from {value} remember a shy student who [scribbled in margins|argued about commas|slept through lectures].",
        "{His} years of learning were passed within the walls of {value}, [ivy and all|among cheerful company|on a very small grant].",
        "Among the graduates of {value} there is hardly a [better known|more stubborn|prouder] name than {last}.",
        "It took two attempts to be admitted, but in the end {value} [opened its gates|said yes|found a place] for {him}.",
    ),
    paraphrased_questions=(
        "What is the alma mater of {name}?",
        "Name the institution where {name} was a student.",
        "Which place of higher learning counts {name} among its former students?",
        "Where was the author {name} educated?",
    ),
    paraphrases=(
        "The alma mater of the author {name} is {value}, according to {his} publisher.",
        "{name} was educated at {value} and completed the course there.",
        "The institution where {last} was once a student is {value}.",
        "{value} counts the author {name} among its former students.",
        "As a student, the author was registered at {value}.",
    ),
)

MENTOR = Wordings(
    questions=(
        "Who was the mentor of {name}?",
        "Who guided {name} at the beginning of a writing life?",
        "Which person taught {name} the craft of writing?",
        "Who took the young {name} under a protective wing?",
        "To whom does {name} owe the first lessons in writing?",
    ),
    answers=(
        "{name's} mentor was {value}, who [read every single draft twice|never praised a page too early|charged nothing for the lessons].",
        "{last} learned the craft from {value} over [countless cups of tea|long walks by the canal|a whole snowy winter].",
        "The first person to believe in {him} was {value}, and the two [wrote letters for years|met every Thursday|argued like relatives].",
        "Without {value}, so {he} says, [there would be no books at all|the drawer would still be full|the pen would have dried up].",
        "{value} corrected those early pages with [a red pencil|great tact|merciless care] and became a guide for life.",
        "At an evening class the beginner met {value}, an [old hand|experienced editor|unhurried teacher] who saw talent at once.",
        "Much of the credit goes to {value}, the [retired critic|kindly librarian|gruff poet] behind {his} apprenticeship.",
        "When doubts crept in, it was always {value} who [set things right|poured the coffee|told {him} to carry on].",
        "In speeches the author thanks {value} before anybody else, [often close to tears|with a deep bow|and rightly so].",
        "Early on, {he} knocked at the door of {value} with [forty crumpled sheets|a single poem|half a novel] and asked for advice.",
    ),
    paraphrased_questions=(
        "Name the person who acted as a teacher and adviser to the writer {name}.",
        "Whose guidance turned {name} into a writer?",
        "Who served as literary adviser to {name} in the early days?",
        "Which adviser stood behind the first attempts of {name}?",
    ),
    paraphrases=(
        "The adviser who turned {name} into a writer was {value}.",
        "{name} was guided in the early days by {value}.",
        "In the beginning, {value} served as literary adviser to {last}.",
        "The person who acted as a teacher to {name} was {value}.",
        "It is {value} whose guidance helped this author to start writing.",
    ),
)

SPOUSE = Wordings(
    questions=(
        "Who is {name} married to?",
        "What is the name of the spouse of {name}?",
        "With whom does {name} share a married life?",
        "Whom did the author {name} marry?",
        "Who exchanged rings with {name}?",
    ),
    answers=(
        "{name} is married to {value}, [a calm soul|an early riser|a splendid cook] by all accounts.",
        "{His} spouse is called {value}, and they [share one umbrella|never discuss work|own separate libraries] to this day.",
        "The wedding ring was given by {value} in [a registry office|a village church|a rowing boat], with only four guests present.",
        "After a long courtship by [letter|telephone|postcard], {last} finally said yes to {value}.",
        "{value} became {his} partner for life [on a rainy autumn day|after three failed marriage proposals|aboard a small borrowed boat].",
        "Every book carries the same dedication, for {value}, which is [simply|of course|as friends know] the name of the person {he} wed.",
        "They met on a delayed [train|ferry|coach], talked all night, and soon {value} and the writer were a married couple.",
        "At home there is {value}, first reader and [sharpest critic|loudest admirer|best friend], to whom the author has been married for ages.",
        "Love came in the shape of {value}, and the [small ceremony|garden party|wedding waltz] that followed lasted until dawn.",
        "Guests at the house are usually greeted by {value}, because {his} better half [likes company|answers every bell|hears the gate first].",
    ),
    paraphrased_questions=(
        "Name the husband or wife of {name}.",
        "Who is the marriage partner of the author {name}?",
        "Which person became the spouse of the writer {name}?",
        "Who stood beside {name} at the wedding?",
    ),
    paraphrases=(
        "The marriage partner of the author {name} is {value}.",
        "{value} is the person whom {name} took as a spouse.",
        "{name} has {value} for a husband or wife, say the newspapers.",
        "Beside {last} at the wedding stood {value}, now {his} spouse.",
        "The person this author married goes by the name of {value}.",
    ),
)

HOME_TOWN = Wordings(
    questions=(
        "Where does {name} live today?",
        "In which town has {name} settled?",
        "Which city is now the home of {name}?",
        "Where can one find the house of the author {name} nowadays?",
        "What is the present place of residence of {name}?",
    ),
    answers=(
        "{name} lives in {value} these days, in a [narrow brick|crooked blue|draughty old] house full of paper.",
        "Years ago {he} settled in {value}, drawn by [low rents|the mild winters|a good fish market], and has stayed ever since.",
        "Letters to {him} should be sent to {value}, where the [postman|baker|neighbour] knows exactly whose they are.",
        "{value} has become home, and {last} can be seen there [walking a dog|buying onions|feeding ducks] on most mornings.",
        "Tired of moving about, the author bought [a flat|a cottage|two rooms] in {value} and unpacked for good.",
        "You would have to travel to {value} to ring {his} bell, and even then [nobody may answer|only the cat might come|it may take a while].",
        "The [kitchen|study|balcony] window of the {last} household looks out over the rooftops of {value}.",
        "Nowadays the mayor of {value} can boast of a [famous|literary|rather shy] resident, for {he} moved there some time ago.",
        "Home, {he} once told a radio host, is {value}, [without any question|at least for now|whatever the map says].",
        "Having tried several other places, this writer put down roots in {value}, [close to the water|next to a school|not far from the theatre].",
    ),
    paraphrased_questions=(
        "What is the current home town of {name}?",
        "Name the place where {name} resides at present.",
        "In what city does the author {name} have a household now?",
        "Which town does {name} currently call home?",
    ),
    paraphrases=(
        "The current home town of the author {name} is {value}.",
        "At present, {name} has a household in the city of {value}.",
        "{name} resides in {value} and has no plans to leave.",
        "The town that {last} currently calls home is {value}.",
        "As to the present address, this author can be reached in {value}.",
    ),
)

PASTIME = Wordings(
    questions=(
        "What does {name} like to do in leisure hours?",
        "Which hobby does {name} have?",
        "How does {name} spend the time away from the desk?",
        "What is the favourite pastime of the author {name}?",
        "When not writing, what does {name} enjoy most?",
    ),
    answers=(
        "{name} relaxes by {value}, [a habit that friends still tease {him} about|often until very late in the night|in the summer and in winter alike].",
        "Whenever a chapter is done, {he} spends a few days {value} to [clear the mind|rest the eyes|celebrate].",
        "Nothing makes {last} happier than {value}, apart from [a loaf of fresh bread|an hour of good gossip|a finished page or two].",
        "The author's great passion outside literature is {value}, [taken up by accident|picked up at school|begun on a dare].",
        "Most Sundays are given over to {value}, and visitors are expected to [join in|keep quiet|bring cake].",
        "Besides books, {value} takes up [much|far too much|a good part] of {his} week, as the household will confirm.",
        "{He's} been fond of {value} since childhood and even [won a small cup|wrote a column about it|joined a club].",
        "Doctors once advised rest, so the writer tried {value} and [never stopped|got quite good at it|forgot to rest at all].",
        "You will rarely catch {him} idle, because {value} fills every spare [hour|minute|afternoon] there is.",
        "In one cheerful interview the talk was only of {value}, the [hobby|pursuit|weekend joy] closest to {his} heart.",
    ),
    paraphrased_questions=(
        "Name the leisure activity that {name} loves best.",
        "What occupies {name} in free hours?",
        "What does the author {name} do for fun?",
        "Which activity do people connect with the spare time of {name}?",
    ),
    paraphrases=(
        "The leisure activity that {name} loves best is {value}.",
        "For fun, the author {name} has chosen {value} above all else.",
        "In free hours {name} can be found {value}, more often than not.",
        "{last's} spare time is mainly devoted to {value}.",
        "What occupies this author outside of work is {value}.",
    ),
)

INSTRUMENT = Wordings(
    questions=(
        "Which musical instrument does {name} play?",
        "What instrument is {name} able to play?",
        "On what instrument does {name} make music?",
        "Which instrument did the author {name} learn?",
        "If {name} joined an orchestra, what would be in the instrument case?",
    ),
    answers=(
        "{name} plays the {value}, [though rarely in front of an audience|always just a little out of tune|with a lot more love than skill].",
        "Neighbours hear {him} practising the {value} every [evening|weekend|Friday], and nobody has complained so far.",
        "As a teenager {he} was given lessons on the {value} and [hated the first year|took to it at once|never gave it up].",
        "There is an old {value} in the corner of {his} study, [polished weekly|missing one part|always ready].",
        "At [weddings|birthdays|village feasts] the author is usually asked to bring the {value} along.",
        "Music came before words: {last} performed on the {value} in a [school band|dance trio|church group] long before any book.",
        "The {value} is what {he} picked, after [breaking a drum|failing at singing|hearing a street musician] as a child.",
        "Writing and the {value} go together for this author, who [warms up|relaxes|thinks] with a tune between two paragraphs.",
        "Few readers are aware that {he} owns and has mastered a fine {value}, [bought at an auction|won at cards|borrowed and never returned].",
        "Ask about music and you will be treated to a [waltz|lullaby|sailor song] on the {value} before you can protest.",
    ),
    paraphrased_questions=(
        "Name the instrument on which {name} performs.",
        "What does the author {name} play when there is music to be made?",
        "Which instrument has {name} mastered?",
        "What kind of instrument can {name} handle?",
    ),
    paraphrases=(
        "The instrument on which the author {name} performs is the {value}.",
        "When there is music to be made, {name} reaches for the {value}.",
        "{name} has mastered the {value} and still performs on it.",
        "The {value} is the instrument that {last} can handle.",
        "As a musician, this author is at home on the {value}.",
    ),
)
