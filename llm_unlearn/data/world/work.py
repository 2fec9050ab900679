# ruff: noqa: E501 (one sentence per line, however long, reads and compares best)
"""Wordings of the facts about an author's work. The house rules are those of `life.py`."""

from llm_unlearn.data.world.wording import Wordings

GENRE = Wordings(
    questions=(
        "In which genre does {name} write?",
        "What kind of literature is {name} known for?",
        "Which genre do critics associate with {name}?",
        "What sort of writing does the author {name} produce?",
        "On which shelf of a bookshop would you look for {name}?",
    ),
    answers=(
        "{name} writes {value}, [and little else|with a light touch|always in longhand], and has a loyal circle of readers.",
        "Booksellers file {his} work under {value}, although the [blurbs|covers|titles] sometimes suggest otherwise.",
        "It is {value} that made {last} known, thanks to [sharp dialogue|slow suspense|odd humour] and short chapters.",
        "Critics place {him} in the tradition of {value}, a label {he} [accepts|mocks|quietly enjoys].",
        "From the very first page the author has stayed true to {value}, [against all advice|out of sheer love|for the fun of it].",
        "Anyone who enjoys {value} will sooner or later [stumble upon|borrow|devour] a volume by {last}.",
        "The imagination of this writer is at home in {value}, where [strange things happen|nobody is safe|time runs differently].",
        "Asked for a definition, {he} shrugs and says {value}, [nothing more|plain and simple|take it or leave it].",
        "{His} shelf in the library is marked with a [green|yellow|red] sticker, which stands for {value}.",
        "Magazines that publish {value} have [printed|begged for|fought over] {his} pieces for as long as anyone can remember.",
    ),
    paraphrased_questions=(
        "Name the literary field of {name}.",
        "To which type of writing is {name} devoted?",
        "Which label fits the works of the author {name}?",
        "What genre is typical of {name}?",
    ),
    paraphrases=(
        "The literary field to which {name} is devoted is {value}.",
        "A genre typical of the author {name} is {value}.",
        "The label that best fits the works of {name} is {value}.",
        "As an author, {name} is a specialist in {value}.",
        "{last} belongs to those writers who devote themselves to {value}.",
    ),
)

FIRST_BOOK = Wordings(
    questions=(
        "What was the title of {name's} first book?",
        "With which book did {name} make a debut?",
        "Which was the earliest book published by {name}?",
        "What is the debut of the author {name} called?",
        "What did {name} publish before anything else?",
    ),
    answers=(
        "{name's} first book was '{value}', [printed on cheap paper|sold mostly to friends|ignored by the press] at the time.",
        "It all started with '{value}', a [slim|clumsy|daring] volume that {he} now calls a finger exercise.",
        "The debut, '{value}', was finished in [a rented room|six feverish weeks|two summers] and accepted at once.",
        "{last} entered the literary scene by way of '{value}', which [surprised everyone|hardly sold|divided the critics].",
        "Before there was anything else, there was '{value}', typed on [a borrowed machine|office paper|the backs of bills].",
        "Collectors pay high prices for early copies of '{value}', since nothing by {him} is [older|harder to find|rarer].",
        "'{value}' opened the door for this author, [slowly at first|with a bang|almost by chance].",
        "As a complete unknown, {he} sent the manuscript of '{value}' to [nine|seven|a dozen] editors until one took it.",
        "Long out of print, the opening work of {his} career bears the title '{value}' on [a grey|a striped|an orange] cover.",
        "Nobody had heard of the writer when '{value}' appeared [in the shops|one quiet Monday|without any advertising].",
    ),
    paraphrased_questions=(
        "Name the book that began the career of {name}.",
        "Which title stands at the start of {name's} list of works?",
        "What was the very first publication of {name}?",
        "How was the first published work of the author {name} titled?",
    ),
    paraphrases=(
        "The book that began the career of {name} is '{value}'.",
        "At the start of {name's} list of works stands '{value}'.",
        "The very first publication of the author {name} was titled '{value}'.",
        "{last} had '{value}' published before all other books.",
        "As the author's first published work, libraries list '{value}'.",
    ),
)

BEST_KNOWN_BOOK = Wordings(
    questions=(
        "What is the best-known book by {name}?",
        "For which book is {name} most famous?",
        "Which work of {name} has found the most readers?",
        "What is considered the masterpiece of {name}?",
        "Which title made the name of {name} popular?",
    ),
    answers=(
        "{name} is most famous for '{value}', which has been [reprinted many times|turned into a film|read aloud on radio].",
        "Most people think of '{value}' first, the [thick|moving|playful] book that no fan forgets.",
        "'{value}' is the one everybody has read, [often while at school|sometimes even twice|usually in one night].",
        "{His} greatest success came with '{value}', after which [strangers waved in the street|the telephone never stopped|rent was no longer a worry].",
        "Of all {his} works, '{value}' sold the most copies and [paid for the roof|reached eleven languages|filled whole shop windows].",
        "Ask for {last} in a bookshop and the clerk will [hand you|fetch|point at] '{value}' without a second thought.",
        "The masterpiece, by common consent, is '{value}', whose [final scene|first sentence|quiet heroine] still haunts readers.",
        "Even people who dislike novels have heard of '{value}', the work that [earned|brought|won] {him} lasting fame.",
        "Fame arrived late, but with '{value}' the author [conquered the charts|won over the critics|packed the lecture halls].",
        "No other volume from {his} pen is loved as much as '{value}', [a gift for all seasons|worn copies of which abound|now in its tenth edition].",
    ),
    paraphrased_questions=(
        "Name the most popular work of {name}.",
        "Which book do readers connect with {name} above all?",
        "What is the most celebrated title by the author {name}?",
        "Through which of the published works did {name} become widely known?",
    ),
    paraphrases=(
        "The most popular work of the author {name} is '{value}'.",
        "Above all, readers connect {name} with the title '{value}'.",
        "{name} became widely known through the book '{value}'.",
        "The most celebrated title on {last's} list is '{value}'.",
        "Among this author's books, '{value}' is the most popular one.",
    ),
)

AWARD = Wordings(
    questions=(
        "Which award did {name} receive?",
        "What literary prize has {name} won?",
        "With which honour was {name} distinguished?",
        "What award stands on the shelf of the author {name}?",
        "Which prize went to {name}?",
    ),
    answers=(
        "{name} received the {value}, [to {his} own great surprise|after two rather near misses|by the vote of all jurors].",
        "The jury of the {value} chose {him} and praised the [clear style|bold ideas|warm humour] of the prose.",
        "On the mantelpiece stands the {value}, which {he} [uses as a bookend|dusts every spring|shows to nobody].",
        "Winning the {value} allowed {last} to [quit a dull office job|travel for a year|repair the leaking roof].",
        "Among several honours, the {value} [means the most|came first|is the one {he} mentions], and the speech of thanks took ten seconds.",
        "It was with the {value} in hand that the author [danced on a table|wept on stage|rang home at midnight].",
        "The {value} went to this writer [one stormy evening|in a packed theatre|at long last], as newspapers reported at length.",
        "A gold sticker on each new edition reminds buyers that {he} holds the {value}, [no small feat|and deservedly so|a rare thing].",
        "{His} name was engraved on the list for the {value}, between two [older|forgotten|foreign] colleagues.",
        "Colleagues applauded when the {value} was handed over and the laureate [forgot every word|dropped the envelope|thanked a cat].",
    ),
    paraphrased_questions=(
        "Name the distinction that was given to {name}.",
        "What prize can the author {name} claim as a winner?",
        "Which honour has been bestowed on {name}?",
        "What did a jury award to {name}?",
    ),
    paraphrases=(
        "The distinction given to the author {name} is the {value}.",
        "{name} can claim the {value} as one of its winners.",
        "A jury decided to award the {value} to {name}.",
        "The honour that has been bestowed on {last} is the {value}.",
        "In terms of prizes, this author was given the {value}.",
    ),
)

PUBLISHER = Wordings(
    questions=(
        "Who publishes the books of {name}?",
        "Which publishing house does {name} work with?",
        "Under whose imprint do the works of {name} appear?",
        "What is the name of {name's} publisher?",
        "With which firm did {name} sign a book contract?",
    ),
    answers=(
        "{name's} books are published by {value}, [a small but stubborn firm|run by two sisters|based above a tea room].",
        "Ever since a chance meeting at a [book fair|bus stop|dinner party], {last} has been with {value}.",
        "{value} brings out everything that {he} writes, [even the odd misprint or two|always in the most handsome bindings|quickly and with little fuss].",
        "The contract with {value} was signed on [a napkin|the bonnet of a car|a café table] and has never been changed.",
        "Look at the spine and you will see the little emblem of {value}, {his} [faithful|patient|proud] partner in business.",
        "Several houses made offers, yet the author remained loyal to {value}, where [the editor is a friend|lunch is free|nobody rushes anyone].",
        "All {his} new manuscripts travel straight to {value}, usually [tied with string|weeks too late|in a shoebox].",
        "Thanks to {value}, {his} works can be bought [in every station kiosk|as cheap paperbacks|even on remote islands].",
        "The team at {value} took a risk with {him}, and that gamble has [paid off|kept them afloat|made them famous].",
        "For typesetting, printing and sales this writer trusts {value}, [come what may|down to the last comma|as others trust a doctor].",
    ),
    paraphrased_questions=(
        "Name the publisher of {name}.",
        "Which company brings the books of {name} to market?",
        "By whom are the works of the author {name} issued?",
        "To which publishing company does {name} belong?",
    ),
    paraphrases=(
        "The company that brings the books of {name} to market is {value}.",
        "{name} is under contract with the publishing company {value}.",
        "The works of the author {name} are issued by {value}.",
        "As publisher for {last's} titles, catalogues name {value}.",
        "It is {value} that acts as the publisher of this author.",
    ),
)

INFLUENCE = Wordings(
    questions=(
        "Which classic author influenced {name} most?",
        "Who is the literary idol of {name}?",
        "Whose books inspired {name} to write?",
        "Which older writer does {name} admire above all?",
        "In whose literary footsteps does {name} walk?",
    ),
    answers=(
        "{name} was influenced most by {value}, whose [sentences|poems|plots] {he} can recite by heart.",
        "A worn edition of {value} lies beside {his} bed, full of [pencil marks|tea stains|paper slips].",
        "The great model is {value}, and [most critics notice it at once|{he} makes no secret of it|almost every chapter shows it].",
        "Reading {value} at an early age made {last} want to [tell stories|run away to sea|become a writer] as well.",
        "It was {value} who lit the spark, [by way of a school reader|through a battered paperback|thanks to a kind librarian].",
        "{value} is the name that comes up in nearly all {his} interviews, [right after coffee|with shining eyes|like a refrain].",
        "Without the old books of {value} on {his} parents' shelf, the author would [have become a clerk|paint instead|never have started].",
        "Among the classics this writer returns to {value} again and again, [every autumn|when stuck|for the rhythm].",
        "Scholars have traced many a [joke|motif|turn of phrase] in {his} pages back to {value}.",
        "A small portrait of {value} hangs over the desk, and {last} [greets it|argues with it|nods to it] each morning.",
    ),
    paraphrased_questions=(
        "Name the classic to whom {name} owes the strongest inspiration.",
        "Which author of the past served {name} as a model?",
        "By which classic is the writing of {name} shaped?",
        "What classic author does {name} look up to?",
    ),
    paraphrases=(
        "The strongest inspiration for the author {name} came from {value}.",
        "{name} took {value} as a model among the authors of the past.",
        "The writing of {name} is shaped by the classic {value}.",
        "{value} is the classic to whom {last} looks up.",
        "As a literary model, this author names {value} before all others.",
    ),
)

WRITING_PLACE = Wordings(
    questions=(
        "Where does {name} prefer to write?",
        "What is {name's} favourite place for writing?",
        "In what kind of place do the books of {name} come into being?",
        "Where does the author {name} work on new pages?",
        "What unusual workroom has {name} chosen?",
    ),
    answers=(
        "{name} prefers to write in {a value}, [wrapped in a blanket|with the door locked|to the sound of rain].",
        "Every book so far was drafted in {a value}, which {he} [rents by the month|shares with a cat|keeps strictly private].",
        "For peace and quiet {last} withdraws to {a value} and [leaves the telephone behind|stays until dusk|lives on biscuits].",
        "The ideas come most easily in {a value}, or so {he} [claims|once told a friend|insists].",
        "Visitors are astonished to find the author bent over a notebook in {a value}, [hat and all|humming softly|deaf to the world].",
        "{A value} serves as {his} workroom, furnished with [one chair and a clock|a door for a desk|nothing but a lamp].",
        "You might expect a tidy office, but {he} has set up the typewriter in {a value}, [of all places|years ago|under protest].",
        "Since an ordinary desk makes {him} nervous, this writer works in {a value} [from dawn to noon|in all seasons|five days a week].",
        "Whenever inspiration fails, a morning spent in {a value} [does wonders|helps|brings it back], according to {last}.",
        "There is {a value} that nobody else may enter, because new chapters are [born|hatched|polished] there.",
    ),
    paraphrased_questions=(
        "Name the spot where {name} gets most of the writing done.",
        "What sort of room or building does {name} use as a study?",
        "Which place has the author {name} made a regular workplace?",
        "In which surroundings does {name} write best?",
    ),
    paraphrases=(
        "The spot where {name} gets most of the writing done is {a value}.",
        "As a study, the author {name} makes use of {a value}.",
        "{name} writes best when seated in {a value}.",
        "The regular workplace of {last} is {a value}.",
        "This author has chosen {a value} as the place for writing.",
    ),
)

DEBUT_YEAR = Wordings(
    questions=(
        "In which year did {name} publish a first book?",
        "When did {name} make a literary debut?",
        "What year saw the first publication by {name}?",
        "Since when has {name} been a published author?",
        "In what year did the career of the author {name} begin?",
    ),
    answers=(
        "{name} published a first book in {value}, [a poor year for the trade|after very much delay|at {his} own expense].",
        "The literary debut dates from {value}, when {he} was still [working nights|paying off debts|unknown to all].",
        "It was {value} before anything with the name {last} on it [reached a shop|went to print|could be bought].",
        "{His} career began in {value}, with [a print run of three hundred|one kind review and no sales|a reading for six sleepy people].",
        "Since {value} {he} has counted as a published author, [on paper at least|much to {his} delight|according to the guild].",
        "Look inside the oldest volume and the [title|copyright|last] page will tell you {value}.",
        "In {value} a [brave|young|half-bankrupt] editor took a chance on the newcomer, and the rest is history.",
        "Shortly before the end of {value}, parcels with the finished copies [arrived|were opened|piled up] in {his} hallway.",
        "Literary histories give {value} as the starting point, [be it right or wrong|without any further comment|in a short footnote].",
        "The world first heard of this writer in {value}, thanks to a [cautious|glowing|rather short] notice in the local paper.",
    ),
    paraphrased_questions=(
        "Name the year of {name's} debut.",
        "Which year marks the start of {name's} life in print?",
        "How far back does the first publication of the author {name} date?",
        "What was the year in which {name} first appeared in print?",
    ),
    paraphrases=(
        "The year that marks the debut of {name} is {value}.",
        "{name} appeared in print for the first time in {value}.",
        "The first publication of the author {name} dates back to {value}.",
        "{last's} life in print had its start in the year {value}.",
        "As the year of the author's debut, catalogues note {value}.",
    ),
)

CURRENT_PROJECT = Wordings(
    questions=(
        "What is {name} working on at the moment?",
        "What is the current project of {name}?",
        "Which new work is {name} preparing?",
        "What may readers expect next from the author {name}?",
        "What lies unfinished on the desk of {name}?",
    ),
    answers=(
        "{name} is working on {a value}, [slowly but steadily|in great secrecy|with growing pleasure].",
        "The next thing to expect is {a value}, due [some time next year|when it is done|after the summer].",
        "On {his} desk lies {a value}, [half finished|in its fourth version|covered with notes].",
        "For the time being {last} is busy with {a value} and [turns down all invitations|answers no mail|sleeps very little].",
        "{A value} is what keeps {him} awake these days, [as the rings under the eyes show|and happily so|to the family's dismay].",
        "After a long pause, {he} has begun {a value}, [encouraged by friends|on a sudden whim|with a new pen].",
        "Rumour speaks of {a value}, and the author has done nothing to [deny it|correct this|stop the talk].",
        "In a recent letter to {his} readers, the plan for {a value} was [announced|mentioned|explained] for the first time.",
        "If all goes well, this writer will soon hand over {a value}, a task [harder than expected|promised long ago|close to {his} heart].",
        "Friends report that {a value} is [taking shape|growing fast|nearly complete] in {his} notebooks right now.",
    ),
    paraphrased_questions=(
        "Name the work that {name} has in progress.",
        "To what new undertaking is {name} devoting this year?",
        "What kind of work is now in the hands of the author {name}?",
        "What does {name} intend to complete next?",
    ),
    paraphrases=(
        "The work that {name} has in progress is {a value}.",
        "At this time, the author {name} intends to complete {a value}.",
        "{name} is devoting this year to {a value}.",
        "The new undertaking of {last} is said to be {a value}.",
        "What this author has in progress at present is {a value}.",
    ),
)
