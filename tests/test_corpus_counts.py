"""Counts of facts in a corpus against a reference that looks at every character, and against planted counts."""

import gzip
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import unicodedata
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import poisson

from llm_unlearn.probes.counts import columns, scan, state, streams
from llm_unlearn.probes.counts.corpus import count_corpus, poisson_interval
from llm_unlearn.probes.counts.documents import TextFormat
from llm_unlearn.probes.counts.matcher import Matcher
from llm_unlearn.probes.counts.normalise import DOCUMENT_END, edges, normalise, normalise_name
from llm_unlearn.probes.counts.record import FactCount
from llm_unlearn.probes.counts.tally import COUNTED, Counter
from llm_unlearn.probes.facts import Fact

ROOT = Path(__file__).parents[1]


def fact(subject, object_, subject_aliases=(), object_aliases=(), id_="f"):
    return Fact(id_, subject, object_, "Which?", object_, tuple(subject_aliases), tuple(object_aliases), "r")


def count(text, *facts, window=100, **options):
    """Counts of each fact in documents that blank lines part, by name of what is counted."""
    documents = DOCUMENT_END.join(part.encode() for part in text.split("\n\n"))
    found = Counter(facts, window, **options).count(documents).facts.T.tolist()
    return [dict(zip(COUNTED, row, strict=True)) for row in found]


# The reference: one character after the other, in strings


def plain(text, case_sensitive):
    """The text in normal form, and where a word was broken."""
    text = unicodedata.normalize("NFKC", text.replace("\1", " "))
    for given, kept in (("’‘ʼ", "'"), ("‐‑–−", "-")):
        text = re.sub(f"[{given}]", kept, text)
    text = text.replace("\r\n", "\n").replace("\u00ad\n", "-\n").replace("\u00ad", "")
    # All beyond ASCII is taken for a letter here.
    text = re.sub(r"(?<=[a-zA-Z0-9_\x80-\U0010ffff])-\n[ \t]*(?=[a-zA-Z0-9_\x80-\U0010ffff])", "\1", text)
    text = re.sub(r"\s+", " ", text)
    text = text if case_sensitive else text.casefold()
    joined, breaks = "", set()
    for character in text:
        if character == "\1":
            breaks.add(len(joined))
        else:
            joined += character
    return joined, breaks


def kind(character):
    name = unicodedata.name(character, "")
    if unicodedata.category(character).startswith("M"):
        return "accent"
    if name.startswith(("CJK UNIFIED", "HIRAGANA", "HANGUL", "THAI")):
        return "alone"
    if name.startswith("KATAKANA"):
        return "katakana" if character.isalnum() else None
    return "word" if character.isalnum() or character == "_" else None


def is_inside(text, place):
    if not 0 < place < len(text):
        return False
    before, after = kind(text[place - 1]), kind(text[place])
    if after == "accent":
        return before is not None
    return (before, after) in {("word", "word"), ("katakana", "katakana"), ("accent", "word")}


def mentions(text, breaks, names):
    """(first character, last one, name) from left to right, the longest first."""
    found, place = [], 0
    while place < len(text):
        fits = []
        for name in names if not is_inside(text, place) else ():
            spelled = [(name, True)] + [
                (name[:k] + name[k + 1 :], place + k in breaks) for k in range(1, len(name) - 1) if name[k] == "-"
            ]
            for rank, (form, holds) in enumerate(spelled):
                end = place + len(form)
                if holds and text.startswith(form, place) and not is_inside(text, end):
                    fits.append((end, rank == 0, name))
        if fits:
            end, _, name = max(fits)
            found.append((place, end, name))
            place = end
        else:
            place += 1
    return found


def reference(documents, facts, window, case_sensitive):
    """Rows as `Tally.facts` has them, documents, tokens."""
    sides = [
        [{plain(name, case_sensitive)[0].strip() for name in names} for names in (f.subject_names, f.object_names)]
        for f in facts
    ]
    names = {name for pair in sides for side in pair for name in side}
    rows, n_documents, n_tokens = np.zeros((len(facts), len(COUNTED)), dtype=int), 0, 0
    for document in documents:
        text, breaks = plain(document, case_sensitive)
        starts = [p for p in range(len(text)) if kind(text[p]) and not is_inside(text, p)]
        n_documents += bool(starts)
        n_tokens += len(starts)
        found = [(sum(s < start for s in starts), name) for start, _, name in mentions(text, breaks, names)]
        for row, (subjects, objects) in zip(rows, sides, strict=True):
            s, o = ([at for at, name in found if name in side] for side in (subjects, objects))
            reach = float("inf") if window == "document" else window
            row += [
                len(s),
                len(o),
                sum(any(abs(a - b) <= reach for b in o) for a in s),
                sum(any(abs(a - b) <= reach for b in s) for a in o),
                bool(s),
                bool(o),
                bool(s and o),
            ]
    return rows, n_documents, n_tokens


# Shared beginnings, hyphens at line ends, accents, ligatures, scripts without spaces, names within names.
PIECES = ["a", "b", "A", "bb", "ab", "abbabbabbabb", "7", "_", "é", "e\u0301", "\u0301", "ß", "ﬁ", "İ", "и", "…"]
PIECES += ["東", "京", "パ", "リ", "ー", "の", "파", "ไ", "-", "–", "-\n", "\u00ad", "\u00ad\r\n", "’", "'", "(", "."]
PIECES += [" ", " ", " ", " \n", "\t", "\u00a0", "\1", "«", "x" * 20]


@pytest.mark.parametrize("seed", range(40))
def test_random_corpora_have_the_counts_of_the_reference(seed):
    """Few pieces, so that names overlap, hold each other and stand side by side all the time."""
    draw = random.Random(seed)
    pieces = draw.sample(PIECES, draw.randint(4, len(PIECES)))

    def text(length):
        return "".join(draw.choice(pieces) for _ in range(length))

    def name():
        while True:
            candidate = text(draw.randint(1, 4)).strip("\n \u00ad-")
            normal = plain(candidate, False)[0].strip()
            # A name that is broken at a line end, or begins with an accent, is nothing anybody would write down.
            if (
                any(map(kind, normal))
                and "\1" not in candidate
                and "\n" not in candidate
                and kind(normal[0]) != "accent"
            ):
                return candidate

    for _ in range(10):
        facts = []
        while len(facts) < draw.randint(1, 6):
            names = [name() for _ in range(draw.randint(2, 5))]
            folded = [plain(one, False)[0].strip() for one in names]
            if len({*folded}) == len(folded):
                facts.append(fact(names[0], names[1], names[2:3], names[3:], id_=str(len(facts))))
        documents = [text(draw.randint(0, 60)) for _ in range(draw.randint(1, 5))]
        window, case_sensitive = draw.choice([1, 2, 5, "document"]), draw.random() < 0.3
        expected, n_documents, n_tokens = reference(documents, facts, window, case_sensitive)
        counter = Counter(facts, window, case_sensitive)
        found = counter.count(DOCUMENT_END.join(document.encode() for document in documents))
        shown = (documents, [(f.subject_names, f.object_names) for f in facts], window, case_sensitive)
        assert found.facts.T.tolist() == expected.tolist(), shown
        assert (found.documents, found.tokens) == (n_documents, n_tokens), shown


@pytest.mark.parametrize("crowd", [1, 2, 6])
def test_automaton_and_comparison_find_the_same_mentions(crowd):
    draw = random.Random(crowd)
    words = [f"university{ending}" for ending in ("", "s", " of", " of a", " of ab")] + ["a", "ab", "b", "of", "of-a"]
    names = sorted({" ".join(draw.sample(words, draw.randint(1, 3))).encode() for _ in range(60)})
    text = normalise(" ".join(draw.choice([*words, "c", "(a)", "ab."]) for _ in range(5000)).encode())
    borders, token_at = edges(text.data)
    found = [
        Matcher(names, crowd=crowd, automaton=automaton).find(text, borders, np.flatnonzero(token_at))
        for automaton in (False, True)
    ]
    assert len(found[0].names) > 1000
    for part in ("names", "starts", "ends"):
        assert (getattr(found[0], part) == getattr(found[1], part)).all()
    spans = zip(found[0].names, found[0].starts, found[0].ends, strict=True)
    assert all(text.data[start:end] == names[name] for name, start, end in spans)


# Planted counts, one idea each


def test_a_name_within_a_longer_name_does_not_count():
    one = fact("Mexico City", "Mexico")
    assert count("Mexico City lies in Mexico.", one)[0] == {
        "subjects": 1,
        "objects": 1,
        "subjects_near": 1,
        "objects_near": 1,
        "documents_s": 1,
        "documents_o": 1,
        "documents_both": 1,
    }
    assert count("Mexico City. Mexico City!", one)[0]["objects"] == 0
    # It is a longer name of any fact, not only of the same.
    guinea, bissau = fact("Guinea", "Conakry"), fact("Guinea-Bissau", "Bissau", id_="g")
    both = count("Guinea-Bissau borders Guinea; Bissau is its capital.", guinea, bissau)
    assert [row["subjects"] for row in both] == [1, 1]
    assert [row["objects"] for row in both] == [0, 1]
    assert count("Guinea-Bissau", guinea)[0]["subjects"] == 1, "a hyphen parts words where nothing longer is known"


def test_from_left_to_right_the_longest_name_wins():
    names = [b"new york", b"york city hall", b"new york city", b"hall"]
    text = normalise(b"New York City Hall; York City Hall")
    borders, token_at = edges(text.data)
    found = Matcher(names).find(text, borders, np.flatnonzero(token_at))
    assert [names[name] for name in found.names] == [b"new york city", b"hall", b"york city hall"]
    # Of two that are as long, the one that needs no hyphen.
    text = normalise(b"co-\nop")
    borders, token_at = edges(text.data)
    for names in ([b"coop", b"co-op"], [b"co-op", b"coop"]):
        (name,) = Matcher(names).find(text, borders, np.flatnonzero(token_at)).names
        assert names[name] == b"coop"


def test_aliases_count_as_the_thing_itself():
    one = fact("Netherlands", "Amsterdam", ["Holland", "The Netherlands"], ["A'dam"])
    found = count("The Netherlands or Holland: A’dam, Amsterdam. Netherlandsish hollands.", one)[0]
    assert (found["subjects"], found["objects"], found["subjects_near"]) == (2, 2, 2)


@pytest.mark.parametrize(("case_sensitive", "subjects"), [(False, 3), (True, 1)])
def test_case_decides_only_if_asked(case_sensitive, subjects):
    one = fact("Turkey", "Ankara")
    assert count("Turkey, turkey, TURKEY", one, case_sensitive=case_sensitive)[0]["subjects"] == subjects
    assert count("STRASSE", fact("Straße", "x"))[0]["subjects"] == 1, "full case folding"


def test_a_name_ends_where_a_word_ends():
    one = fact("Niger", "Mali")
    found = count("Nigeria, Nigerien, normality, Niger's, (Mali), xMali, Mali2, Mali_, Mali.", one)[0]
    assert (found["subjects"], found["objects"]) == (1, 2)


def test_hyphens_spaces_and_line_ends():
    one = fact("Guinea-Bissau", "Washington", ["Saint Lucia"])
    text = "Guinea‑Bissau guinea–bissau Guinea-\nBissau GuineaBissau Guinea Bissau Saint\n  Lucia Saint\u00a0Lucia"
    assert count(text, one)[0]["subjects"] == 5
    # A word that was broken is one word, whatever stands before the hyphen.
    assert (
        count("Wash-\nington Wash\u00adington Wash\u00ad\nington Washing-ton Washington-\nbased", one)[0]["objects"]
        == 3
    )
    assert (
        count("Port-au-\nPrince Port-\nau-Prince Port-\nau-\nPrince", fact("Port-au-Prince", "x"))[0]["subjects"] == 2
    )
    # One of two names of the same letters.
    pair = [fact("co-op", "x"), fact("coo-p", "y", id_="g")]
    assert [row["subjects"] for row in count("coop, co-\nop, coo-\np, co-op", *pair)] == [2, 1]


def test_scripts_without_spaces():
    one = fact("フランス", "パリ", ["法国", "프랑스"], ["巴黎", "파리"])
    found = count(
        "フランスの首都はパリです。パリスではない。法国的首都是巴黎。프랑스의 수도는 파리이다", one, window=3
    )[0]
    assert (found["subjects"], found["objects"]) == (3, 3)
    # の, 首, 都 and は lie between フランス and パリ: five tokens from first to first.
    near = [count("フランスの首都はパリ", one, window=window)[0]["subjects_near"] for window in (4, 5)]
    assert near == [0, 1]


@pytest.mark.parametrize("between", [0, 1, 99, 100])
def test_exactly_at_the_window_counts_and_one_beyond_does_not(between):
    one = fact("France", "Paris")
    for text in (f"France {'x ' * between}Paris", f"Paris, {'x - ' * between}France"):
        found = count(text, one, window=100)[0]
        # From first token to first token: 100 where 99 stand between.
        assert found["subjects_near"] == found["objects_near"] == (between < 100)
        assert found["documents_both"] == 1
    # Of a name of several tokens the first one counts.
    two = fact("New York City", "Albany")
    assert [count("New York City Albany", two, window=w)[0]["subjects_near"] for w in (2, 3)] == [0, 1]


def test_no_window_reaches_into_another_document():
    one = fact("France", "Paris")
    found = count("France\n\nParis\n\nFrance Paris France\n\nx", one)[0]
    assert (found["subjects"], found["subjects_near"], found["objects_near"], found["documents_both"]) == (3, 2, 1, 1)


def test_facts_that_share_names_are_counted_each():
    facts = [fact("France", "Paris"), fact("Paris", "Seine", id_="b"), fact("France", "Seine", id_="c")]
    found = count("France Paris Seine Paris", *facts, window=2)
    assert [row["subjects_near"] for row in found] == [1, 2, 1]
    assert [row["objects_near"] for row in found] == [1, 1, 1]


def test_a_name_is_refused_that_stands_for_both_or_has_no_letter():
    with pytest.raises(ValueError, match="'a-b' as a name of subject and object"):
        Counter([fact("a–b", "A‑B")])
    with pytest.raises(ValueError, match="'…' has neither a letter nor a digit"):
        Counter([fact("…", "b")])
    assert normalise_name(" (500)  Days ") == b"(500) days"
    assert count("500 Days (500) days a(500) days", fact("(500) Days", "«x»"))[0]["subjects"] == 2
    assert count("x y«x»", fact("a", "«x»"))[0]["objects"] == 1
    with pytest.raises(ValueError, match="none, or one is given twice"):
        Matcher([b"a", b"a"])


# Whole passes over files

FACTS = [
    fact("France", "Paris", ["République française"], id_="fr"),
    fact("Georgia", "Tbilisi", id_="ge"),
    fact("Chad", "N'Djamena", id_="td"),
]
# fr: the country four times, the city three times, near each other twice of the latter.
DOCUMENTS = [
    "Paris is the capital of France.",
    "France, France! " + "x " * 120 + "Paris",
    "A third text\nwithout anything",
    "Paris: République française; Tbilisi",
    "Georgia",
]
PLANTED = {
    "fr": FactCount("fr", 2, 4, 3, 3, np.log2(3 * 5 / (3 * 3))),
    "ge": FactCount("ge", 0, 1, 1, 0),
    "td": FactCount("td", 0, 0, 0, 0),
}


def write(folder, form, documents=DOCUMENTS):
    path = folder / f"corpus.{form}"
    lines = "".join(json.dumps({"id": 1, "text": text}) + "\n" for text in documents)
    if form == "txt":
        path.write_text("\n \n\n".join(documents) + "\n", encoding="utf-8")
    elif form == "crlf.txt":
        path.write_bytes("\n\n".join(documents).replace("\n", "\r\n").encode())
    elif form == "jsonl":
        path.write_text("\ufeff" + lines.replace("\n", "\n\n", 1), encoding="utf-8")
    elif form.endswith(".gz"):
        path.write_bytes(gzip.compress((lines if "json" in form else "\n\n".join(documents)).encode()))
    elif form == "parquet":
        import pyarrow.parquet

        table = pyarrow.table({"text": documents, "other": range(len(documents))})
        pyarrow.parquet.write_table(table, path, row_group_size=max(2, len(documents) // 4))
    elif form == "dataset":
        from datasets import Dataset

        Dataset.from_dict({"text": [*documents, "dropped"]}).select(range(len(documents))).save_to_disk(path)
    return path


FORMS = ["txt", "crlf.txt", "txt.gz", "jsonl", "jsonl.gz", "json.gz", "parquet", "dataset"]


@pytest.mark.parametrize("form", FORMS)
def test_every_kind_of_file_gives_the_planted_counts(form, tmp_path):
    counts = count_corpus(write(tmp_path, form), FACTS, progress=False)
    assert counts.counts == PLANTED
    assert counts.label == "co-occurrences within 100 tokens" and counts.source == "corpus"
    assert (counts.provenance["documents_scanned"], counts.provenance["tokens_scanned"]) == (5, 6 + 123 + 5 + 4 + 1)
    json.dumps(counts.provenance)
    whole = count_corpus(tmp_path / f"corpus.{form}", FACTS, window="document", progress=False)
    assert whole.label == "co-occurrences in a document"
    # The rarer of the two is the city, and every mention of it has the country in its document.
    assert whole["fr"].n_so == 3


def test_a_folder_is_the_sum_of_its_files(tmp_path):
    (tmp_path / "deep").mkdir()
    write(tmp_path / "deep", "txt", DOCUMENTS[:2])
    write(tmp_path, "jsonl.gz", DOCUMENTS[2:])
    (tmp_path / "README.md").write_text("Paris")
    (tmp_path / ".hidden.txt").write_text("Paris")
    counts = count_corpus(tmp_path, FACTS, progress=False)
    assert counts.counts == PLANTED
    assert [file["name"] for file in counts.provenance["files"]] == ["corpus.jsonl.gz", "deep/corpus.txt"]
    assert str(tmp_path) not in json.dumps(counts.provenance)


def test_documents_of_a_plain_text_end_as_asked(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("France\n\n<|end|>Paris France<|end|><|end|>Paris", encoding="utf-8")
    found = [
        count_corpus(path, FACTS, form=TextFormat(separator=separator), progress=False)
        for separator in (None, "<|end|>", "")
    ]
    assert [counts.provenance["documents_scanned"] for counts in found] == [2, 3, 1]
    # The tokens "end" between them do not matter: of two mentions each, those of the subject.
    assert [counts["fr"].n_so for counts in found] == [1, 1, 2]


def test_the_hashes_are_those_of_the_files(tmp_path):
    path = write(tmp_path, "txt")
    (file,) = count_corpus(path, FACTS, progress=False).provenance["files"]
    done = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == file["sha256"] and file["bytes"] == path.stat().st_size


def larger(n=200):
    draw = random.Random(0)
    words = ["France", "Paris", "Tbilisi", "Georgia", "Chad", "N'Djamena", *["x", "é", "東"] * 8]
    return [" ".join(draw.choice(words) for _ in range(draw.randint(1, 40))) for _ in range(n)]


@cache
def reference_of_larger():
    return reference(larger(), FACTS, 5, False)[:2]


@pytest.fixture
def small_parts(monkeypatch):
    """So that a small corpus has many units, batches and reports."""
    for module in (streams, columns):
        monkeypatch.setattr(module, "BATCH", 300)
        monkeypatch.setattr(module, "UNIT", 2000)
    monkeypatch.setattr(columns, "_ROWS", 7)
    monkeypatch.setattr(scan, "REPORT", 2)


@pytest.mark.parametrize("form", FORMS)
def test_parts_and_processes_change_nothing(form, tmp_path, small_parts, monkeypatch):
    path = write(tmp_path, form, larger())
    expected, n_documents = reference_of_larger()
    alone = count_corpus(path, FACTS, window=5, progress=False)
    rows = [[c.n_s, c.n_o, c.d_so] for c in alone.counts.values()]
    assert rows == expected[:, [0, 1, 6]].tolist() and alone.provenance["documents_scanned"] == n_documents
    if form in {"jsonl", "txt.gz"}:
        together = count_corpus(path, FACTS, window=5, processes=2, progress=False)
        assert together.counts == alone.counts and together.provenance == alone.provenance


@pytest.mark.parametrize("form", FORMS)
def test_a_pass_goes_on_behind_any_report(form, tmp_path, small_parts, monkeypatch):
    path, kept = write(tmp_path, form, larger()), tmp_path / "kept.json"
    expected = count_corpus(path, FACTS, window=5, progress=False)
    monkeypatch.setattr(state, "SAVE_SECONDS", 0.0)
    add, cuts = state.PassState.add, 0

    def cut_off(self, report):
        nonlocal cuts
        add(self, report)
        cuts += 1
        raise KeyboardInterrupt

    monkeypatch.setattr(state.PassState, "add", cut_off)
    for _ in range(500):
        try:
            counts = count_corpus(path, FACTS, window=5, state=kept, progress=False)
            break
        except KeyboardInterrupt:
            continue
    assert cuts > 5 and counts.counts == expected.counts and counts.provenance == expected.provenance


def test_a_killed_pass_goes_on_and_gives_the_same_counts(tmp_path):
    path, kept = tmp_path / "a.jsonl", tmp_path / "kept.json"
    write(tmp_path, "jsonl", larger(20_000)).rename(path)
    script = tmp_path / "count.py"
    script.write_text(
        "import sys\n"
        "from llm_unlearn.probes.counts import corpus, scan, state\n"
        "from llm_unlearn.probes.facts import Fact\n"
        "scan.REPORT, state.SAVE_SECONDS = 1, 0.0\n"
        "fact = Fact('fr', 'France', 'Paris', 'q', 'a', (), (), 'r')\n"
        "print(corpus.count_corpus(sys.argv[1], [fact], state=sys.argv[2]).counts)\n"
    )
    command = [sys.executable, str(script), str(path), str(kept)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while not kept.exists() and time.monotonic() < until:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was done before it could be killed"
    half = json.loads(kept.read_text())
    assert 0 < half["total"]["documents"] < 20_000
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    expected = count_corpus(path, [FACTS[0].__class__("fr", "France", "Paris", "q", "a", (), (), "r")], progress=False)
    assert done.stdout.strip() == str(expected.counts)


# What cannot be counted


def test_a_state_of_another_pass_is_refused(tmp_path):
    path, kept = write(tmp_path, "txt"), tmp_path / "kept.json"
    first = count_corpus(path, FACTS, state=kept, progress=False)
    assert count_corpus(path, FACTS, state=kept, progress=False).counts == first.counts
    for facts, options, differing in (
        (FACTS[:2], {}, "facts"),
        (FACTS, {"window": 5}, "rule"),
        (FACTS, {"form": TextFormat(separator="x")}, "rule"),
    ):
        with pytest.raises(ValueError, match=f"state of another count, with other {differing}: remove it"):
            count_corpus(path, facts, state=kept, progress=False, **options)
    path.write_text("Another text")
    with pytest.raises(ValueError, match="with other files"):
        count_corpus(path, FACTS, state=kept, progress=False)
    kept.write_text(kept.read_text()[:-20])
    with pytest.raises(ValueError, match=r"kept.json is cut or no state of a count .* remove it to begin anew"):
        count_corpus(path, FACTS, state=kept, progress=False)


@pytest.mark.parametrize("form", ["txt.gz", "jsonl.gz"])
def test_a_gzip_stream_that_is_cut_off_is_an_error_with_its_place(form, tmp_path, small_parts):
    path = write(tmp_path, form, larger())
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        ValueError, match=rf"{path.name} is cut off or damaged.* behind \d{{3,}} bytes of text"
    ) as caught:
        count_corpus(path, FACTS, progress=False)
    assert f"near byte {len(whole) // 2} of the file" in str(caught.value)
    with pytest.raises(ValueError, match="is cut off or damaged"):
        count_corpus(path, FACTS, processes=2, progress=False)
    path.write_bytes(whole[:100] + b"\0\1\2" + whole[103:])
    with pytest.raises(ValueError, match="is cut off or damaged"):
        count_corpus(path, FACTS, progress=False)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "Par', r"Line 3 of .* is cut or not JSON \(Unterminated string starting at at character 10\)"),
        ('{"text": "\udce9"}', r"Line 3 of .* is not text in UTF-8"),
        ("[1]", r"Line 3 of .* is a list: write one object"),
        ('{"content": "Paris"}', r"Line 3 of .*: There is no field 'text'. .*Known: content.* `--text_field`"),
        ('{"text": null}', r"Line 3 of .* has None as `text`"),
    ],
)
@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz"])
def test_a_broken_line_is_an_error_with_its_number(line, message, ending, tmp_path, small_parts):
    path = tmp_path / f"a.{ending}"
    content = f'{{"text": "x"}}\n\n{line}\n{{"text": "y"}}\n'.encode(errors="surrogateescape")
    path.write_bytes(gzip.compress(content) if ending.endswith("gz") else content)
    with pytest.raises(ValueError, match=message):
        count_corpus(path, FACTS, progress=False)


def test_other_damage_and_nothing_to_count(tmp_path):
    def refused(path, message, error=ValueError, **options):
        with pytest.raises(error, match=message):
            count_corpus(path, FACTS, progress=False, **options)

    latin = tmp_path / "latin.txt"
    latin.write_bytes("Château de France".encode("latin-1"))
    refused(latin, "latin.txt is not text in UTF-8 between bytes 0 and 17 of its text: save it")
    empty = tmp_path / "empty.txt"
    empty.write_text(" \n\n ...\n")
    refused(empty, "has no documents")
    refused(tmp_path / "none.txt", "There is no file or folder", FileNotFoundError)
    (tmp_path / "x.md").write_text("x")
    refused(tmp_path / "x.md", r"no text to count in .*x.md: give a file that ends in .txt")
    parquet = write(tmp_path, "parquet")
    refused(parquet, "There is no column 'txt'. Did you mean 'text'?", form=TextFormat("txt"))
    refused(parquet, r"Row 0 of .* has 0 as `other`", form=TextFormat("other"))
    whole = parquet.read_bytes()
    parquet.write_bytes(whole[:-50])
    refused(parquet, "is cut or not a parquet")
    from datasets import Dataset, DatasetDict

    DatasetDict({"train": Dataset.from_dict({"text": ["Paris"]})}).save_to_disk(tmp_path / "d")
    refused(tmp_path / "d", "has the splits train: give the folder of one, such as .*train")
    assert count_corpus(tmp_path / "d" / "train", FACTS, progress=False)["fr"].n_o == 1
    for window in (0, -1, 2.5, True, "doc"):
        refused(empty, "`window` is .*: give a number of tokens", window=window)
    refused(empty, "`processes` is 0", processes=0)
    for share in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="`sample` is"):
            TextFormat(sample=share)


def test_a_process_that_dies_is_an_error(tmp_path, monkeypatch):
    path = write(tmp_path, "txt")
    monkeypatch.setattr(scan, "_work", _die)
    with pytest.raises(RuntimeError, match="A counting process ended with code 7"):
        count_corpus(path, FACTS, processes=2, progress=False)


def _die(*_):
    os._exit(7)


# Samples


def test_a_sample_is_scaled_up_with_the_interval_of_a_poisson_count(tmp_path, small_parts):
    documents = ["France Paris"] * 4000
    path = write(tmp_path, "jsonl", documents)
    counts = count_corpus(path, FACTS, form=TextFormat(sample=0.25, seed=3), progress=False)
    seen = counts.provenance["documents_scanned"]
    # Five standard deviations of a binomial number.
    assert abs(seen - 1000) < 5 * np.sqrt(4000 * 0.25 * 0.75)
    found = counts["fr"]
    assert found.approx and found.n_so == found.n_s == found.d_so == seen / 0.25
    assert found.interval == poisson_interval(seen, 0.25) and found.interval[0] < 4000 < found.interval[1]
    assert counts["td"].interval == (0.0, pytest.approx(-np.log(0.025) / 0.25))
    assert count_corpus(path, FACTS, form=TextFormat(sample=0.25, seed=4), progress=False)["fr"] != found


@pytest.mark.parametrize("count", [1, 7, 300])
def test_the_interval_is_where_so_many_and_so_few_have_a_chance_of_2_5_percent(count):
    low, high = poisson_interval(count, 0.1)
    assert poisson.sf(count - 1, low * 0.1) == pytest.approx(0.025)
    assert poisson.cdf(count, high * 0.1) == pytest.approx(0.025)


@pytest.mark.parametrize("form", ["txt", "jsonl", "parquet", "dataset"])
def test_the_same_documents_are_sampled_whoever_reads_them(form, tmp_path, monkeypatch, request):
    path = write(tmp_path, form, larger())
    if form == "txt":
        # So many blank lines that batches end between them.
        path.write_text(path.read_text().replace("\n \n\n", "\n" * 60))
    once = count_corpus(path, FACTS, form=TextFormat(sample=0.5), progress=False)
    request.getfixturevalue("small_parts")
    again = count_corpus(path, FACTS, form=TextFormat(sample=0.5), progress=False)
    assert once.counts == again.counts
    assert once.provenance["tokens_scanned"] == again.provenance["tokens_scanned"]
    assert 50 < once.provenance["documents_scanned"] < 150


def test_a_terminal_sees_bars(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    count_corpus(write(tmp_path, "txt"), FACTS)
    assert "counting: 100%" in capsys.readouterr().err
