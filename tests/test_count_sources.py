"""Counts from a table, from a proxy, from an index, and the one way to all of them."""

import json
import math
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from llm_unlearn.probes.counts import FactCount, FactCounts, load_counts, read_counts, write_counts
from llm_unlearn.probes.counts.corpus import count_corpus
from llm_unlearn.probes.facts import Fact

TOKENIZER = Path(__file__).parents[1] / "data" / "testbed" / "target"


def fact(id_, subject="S", object_="O", subject_aliases=()):
    return Fact(id_, subject, object_, "Which?", object_, tuple(subject_aliases), (), "r")


FACTS = [fact("a"), fact("b"), fact("c")]


def load(path, text, kind="counts", column="", facts=FACTS):
    path.write_text(text, encoding="utf-8")
    return load_counts(f"{kind}:{path}{column}", facts)


# The record


def test_counts_are_written_and_read_as_they_are(tmp_path):
    counts = {
        "é": FactCount("é", 9, 10, 11.5, 1, -0.25, True, (5.0, 12.25)),
        "b": FactCount("b", 0),
    }
    whole = FactCounts("corpus", "co-occurrences", counts, {"files": [{"name": "x"}]})
    write_counts(tmp_path / "c.jsonl", whole)
    assert read_counts(tmp_path / "c.jsonl") == whole
    # A written count is a table, too.
    again = load_counts(f"counts:{tmp_path / 'c.jsonl'}", [fact("b"), fact("é")])
    assert again.counts == counts and again.ids == ("b", "é") and again.source == "corpus"
    assert again.provenance == whole.provenance
    with pytest.raises(ValueError, match=r"no count \(co-occurrences\) of 'c'"):
        load_counts(f"counts:{tmp_path / 'c.jsonl'}", [fact("b"), fact("c")])
    lines = (tmp_path / "c.jsonl").read_text(encoding="utf-8")
    for broken in (lines[:-5], lines.replace('"n_so": 9', '"n_so": -9'), lines + lines.split("\n")[1]):
        (tmp_path / "c.jsonl").write_text(broken, encoding="utf-8")
        with pytest.raises(ValueError, match="is cut or no file of counts"):
            read_counts(tmp_path / "c.jsonl")
    with pytest.raises(FileNotFoundError, match="There is no file"):
        read_counts(tmp_path / "none.jsonl")


def test_what_counts_say_of_themselves():
    counts = {name: FactCount(name, n, approx=n == 99) for name, n in {"a": 0, "b": 9, "c": 99, "d": 99}.items()}
    whole = FactCounts("counts", "counts", counts)
    assert [whole.x(name) for name in whole.ids] == [0.0, 1.0, 2.0, 2.0]
    assert (whole.share_zero, whole.share_approx, whole.decades) == (0.25, 0.5, 2.0)
    assert not whole.is_constant and whole.require_variation() is None
    same = whole.select(["d", "c"])
    assert same.is_constant and same.ids == ("d", "c") and same.decades == 0
    with pytest.raises(ValueError, match=r"All 2 facts have the same count \(counts: 99\)"):
        same.require_variation()
    with pytest.raises(ValueError, match=r"no count \(counts\) of 'x0', .*'x9' and 2 more: add them"):
        whole.require(f"x{i}" for i in range(12))
    with pytest.raises(ValueError, match="no count .* of 'e'"):
        _ = whole["e"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n_so": -1}, "`n_so` of fact 'a' is -1: give a number from 0 up"),
        ({"n_so": math.nan}, "is nan"),
        ({"n_so": None}, "is None"),
        ({"n_so": True}, "is True"),
        ({"n_so": 1, "n_s": math.inf}, "`n_s` of fact 'a' is inf"),
        ({"n_so": 1, "pmi": math.nan}, "`pmi` of fact 'a' is nan"),
        ({"n_so": 1, "interval": (2, 3)}, "does not hold its count 1"),
    ],
)
def test_impossible_counts_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        FactCount("a", **values)


def test_impossible_records_are_refused():
    for arguments, message in (
        (("web", "l", {"a": FactCount("a", 1)}), "source of counts is 'web'"),
        (("corpus", "l", {}), "no counts from the source 'corpus'"),
        (("corpus", "l", {"b": FactCount("a", 1)}), "fact 'a' is filed under 'b'"),
    ):
        with pytest.raises(ValueError, match=message):
            FactCounts(*arguments)


# Tables


def test_a_table_of_counts(tmp_path):
    text = "count_s,id,approx,count,note\n10,b,true,2,x\n,a,,1.5,y\n7,z,0,3,\n4,c,False,0,\n"
    counts = load(tmp_path / "c.csv", text)
    assert counts.counts == {
        "a": FactCount("a", 1.5),
        "b": FactCount("b", 2, 10, approx=True),
        "c": FactCount("c", 0, 4),
    }
    assert counts.ids == ("a", "b", "c") and (counts.source, counts.label) == ("counts", "counts of c.csv")
    assert counts.provenance["rows"] == 4 and counts.provenance["rows_unused"] == 1
    rows = [{"id": 1, "count": 5, "count_o": 8, "approx": True}, {"id": 2, "count": 5}]
    counts = load(tmp_path / "c.jsonl", "\n".join(map(json.dumps, rows)), facts=[fact("1"), fact("2")])
    assert counts.counts == {"1": FactCount("1", 5, None, 8, approx=True), "2": FactCount("2", 5)}
    assert counts.is_constant, "which is an error only where something is correlated with it"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,count\na,1\nb,2\n", r"c.csv: There is no count \(counts of c.csv\) of 'c': add"),
        ("id,count\na,1\nb,2\nc,-3\n", "Row 3 of .*c.csv has '-3' as `count`: give a number from 0 up"),
        ("id,count\na,1\nb,two\nc,3\n", "Row 2 of .* has 'two' as `count`"),
        ("id,count\na,1\nb,nan\nc,3\n", "Row 2 of .* has 'nan' as `count`"),
        ("id,count\na,1\nb,\nc,3\n", "Row 2 of .* has no `count`"),
        ("id,count,count_s\na,1,1\nb,1,x\nc,3,1\n", "Row 2 of .* has 'x' as `count_s`"),
        ("id,count,approx\na,1,\nb,1,perhaps\nc,3,\n", "Row 2 of .* has 'perhaps' as `approx`: give true or false"),
        ("id,count\na,1\nb,2\nc,3\nb,2\n", "more than one row for 'b'"),
        ("id,count\na,1\n,2\n", "Row 2 of .* has no `id`"),
        ("name,count\na,1\n", "There is no column 'id'"),
        ("id,counts\na,1\n", "There is no column 'count'. Did you mean 'counts'?.* `proxy:FILE#column`"),
        ("id,count\n", "has no rows"),
        ("id,count\na\n", "Line 2 of .* has not the 2 fields"),
    ],
)
def test_a_table_with_a_hole_is_refused(text, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "c.csv", text)


def test_numbers_whose_logarithms_are_all_but_the_same_are_refused(tmp_path):
    # log10(1 + n) of 1e-7 to 1e-5, two powers of ten, spans 4e-6.
    small = "id,share\na,1e-7\nb,1e-5\nc,0\n"
    said = r"Of 2 counts above 0 \(proxy: share\), 2 are below 1 \(from 1e-07 to 1e-05\).* counts per million"
    with pytest.raises(ValueError, match=said):
        load(tmp_path / "p.csv", small, "proxy")
    with pytest.raises(ValueError, match=r"Of 2 counts above 0 \(counts of c.csv\)"):
        load(tmp_path / "c.csv", small.replace("share", "count"), "counts")
    # Half of them, and no count above 0.
    assert load(tmp_path / "h.csv", "id,share\na,0.5\nb,5\nc,0\n", "proxy")["a"].n_so == 0.5
    assert load(tmp_path / "n.csv", "id,share\na,0\nb,0\nc,0\n", "proxy").share_zero == 1


def test_a_proxy_is_called_one(tmp_path):
    text = "id,views,links\na,1000,1\nb,20.5,2\nc,0,3\n"
    counts = load(tmp_path / "p.csv", text, "proxy", "#views")
    assert (counts.source, counts.label) == ("proxy", "proxy: views")
    assert [count.n_so for count in counts.counts.values()] == [1000, 20.5, 0]
    assert [count.n_s for count in counts.counts.values()] == [None] * 3
    with pytest.raises(ValueError, match="has the columns views, links: name one, as `proxy:.*p.csv#views`"):
        load(tmp_path / "p.csv", text, "proxy")
    with pytest.raises(ValueError, match="There is no column 'view'. Did you mean 'views'?"):
        load(tmp_path / "p.csv", text, "proxy", "#view")
    with pytest.raises(ValueError, match="There is no column 'id'"):
        load(tmp_path / "p.csv", text, "proxy", "#id")
    one = "id,population\na,3\nb,4\nc,5\n"
    assert load(tmp_path / "odd#name.csv", one, "proxy").label == "proxy: population"
    assert load(tmp_path / "odd#name.csv", one, "proxy", "#population")["c"].n_so == 5
    for text, message in (("id,n\na,1\nb,-2\nc,3\n", "'-2' as `n`"), ("id,n\na,1\nb,1\n", r"\(proxy: n\) of 'c'")):
        with pytest.raises(ValueError, match=message):
            load(tmp_path / "p.csv", text, "proxy", "#n")


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("corpus", ValueError, "name no source: write SOURCE:PATH with one of corpus, index, counts, exposures, proxy"),
        ("corpus:", ValueError, "name no source"),
        ("count:x.csv", ValueError, "There is no source of counts 'count'. Did you mean 'counts'?"),
        ("counts:none.csv", FileNotFoundError, "There is no file none.csv"),
        ("proxy:none.csv#x", FileNotFoundError, "There is no file none.csv"),
        ("corpus:none.txt", FileNotFoundError, "There is no file or folder none.txt"),
        ("index:none", ValueError, "give the folder with its tokenizer as `--tokenizer`"),
    ],
)
def test_a_source_that_is_none_is_refused(source, error, message):
    with pytest.raises(error, match=message):
        load_counts(source, FACTS)


def test_facts_that_cannot_be_counted_are_refused(tmp_path):
    with pytest.raises(ValueError, match="There are no facts to count"):
        load_counts("counts:x.csv", [])
    with pytest.raises(ValueError, match="more than one fact with the id 'a'"):
        load_counts("counts:x.csv", [fact("a"), fact("a")])
    (tmp_path / "c.txt").write_text("id,count")
    with pytest.raises(ValueError, match="is of no known kind"):
        load_counts(f"counts:{tmp_path / 'c.txt'}", FACTS)


def test_a_corpus_by_its_name(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"body": "France Paris"}\n')
    from llm_unlearn.probes.counts.documents import TextFormat

    facts = [fact("fr", "france", "paris")]
    form = TextFormat("body")
    counts = load_counts(f"corpus:{tmp_path}", facts, window="document", form=form, progress=False)
    assert counts["fr"].n_so == 1 and counts.source == "corpus"
    counts = load_counts(f"corpus:{tmp_path}", facts, case_sensitive=True, form=form, progress=False)
    assert counts["fr"].n_s == 0 and counts.is_constant


# Indexes


def token_counts(documents, facts, window):
    """Mentions and near mentions of each fact in lists of words of one token each, as the engine defines them."""
    rows = []
    for one in facts:
        places = [
            [[i for i, word in enumerate(words) if word in names] for words in documents]
            for names in (one.subject_names, one.object_names)
        ]
        n_s, n_o = (sum(map(len, side)) for side in places)
        rare, other = places if n_s <= n_o else reversed(places)
        near = sum(
            any(abs(a - b) <= window for b in theirs) for mine, theirs in zip(rare, other, strict=True) for a in mine
        )
        rows.append((near, n_s, n_o))
    return rows


@pytest.fixture(scope="module")
def one_token_words():
    """Words that are one token behind a space, none of which begins another."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(TOKENIZER / "tokenizer.json"))
    words = [token[1:] for token in tokenizer.get_vocab() if token.startswith("Ġ") and token[1:].isalpha()]
    words = sorted(word for word in words if word.islower() and len(word) > 3)
    return [word for word in words if tokenizer.encode(f" {word}", add_special_tokens=False).tokens == [f"Ġ{word}"]]


@pytest.fixture(scope="module")
def built(tmp_path_factory, one_token_words):
    """An index with a path that would confuse the package, its documents, and facts about them."""
    pytest.importorskip("infini_gram")
    from llm_unlearn.probes.counts.index_build import build_index

    draw = random.Random(0)
    s, o, t, u, alias, *others = one_token_words[:12]
    documents = [
        [draw.choice([s, o, t, u, alias, *others]) for _ in range(draw.choice([1, 5, 30]))] for _ in range(120)
    ]
    folder = tmp_path_factory.mktemp("table of 'offsets'; x")
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps({"text": " ".join(words)}) + "\n" for words in documents))
    record = build_index(path, folder / "index", TOKENIZER, gap=20, processes=4, progress=False)
    facts = [fact("a", s, o, [alias]), fact("b", t, u), fact("c", "nowhere", o)]
    return folder, record, documents, facts


@pytest.mark.parametrize("window", [1, 3, 20])
def test_an_index_counts_as_the_definition_says_and_as_the_corpus_does(built, window):
    folder, record, documents, facts = built
    counts = load_counts(f"index:{folder / 'index'}", facts, window=window, tokenizer=TOKENIZER)
    rows = [(count.n_so, count.n_s, count.n_o) for count in counts.counts.values()]
    assert rows == token_counts(documents, facts, window) and rows[0][0] > 30
    # Where every word is a token and no name has several, both ways of counting have one definition.
    scanned = count_corpus(folder / "a.jsonl", facts, window=window, progress=False)
    assert [(count.n_so, count.n_s, count.n_o) for count in scanned.counts.values()] == rows
    assert counts.share_approx == 0 and counts.label == f"co-occurrences within {window} tokens (index)"
    assert record["tokens"] == sum(map(len, documents)) == scanned.provenance["tokens_scanned"]
    assert record["documents"] == 120 and counts.provenance["built"] == record
    # Where the package looks for a document: at the last separator before it.
    tokens = np.fromfile(folder / "index" / "tokenized.0", dtype="<u2")
    begins = np.fromfile(folder / "index" / "offset.0", dtype="<u8") // 2
    assert begins.tolist() == np.flatnonzero((tokens[:-1] == 65_535) & (tokens[1:] < 65_535)).tolist()
    assert str(folder) not in json.dumps(counts.provenance)


def test_what_an_index_counts_otherwise(tmp_path):
    pytest.importorskip("infini_gram")
    from llm_unlearn.probes.counts.index import count_index
    from llm_unlearn.probes.counts.index_build import build_index

    path = tmp_path / "a.txt"
    texts = [
        "Mexico City and Mexico",
        "Nigeria and Niger",
        'FRANCE\nFrance (France) "france" -France',
        "Guinea-Bissau",
        "New York, York",
    ]
    path.write_text("\n\n".join(texts))
    build_index(path, tmp_path / "i", TOKENIZER, progress=False)
    facts = [fact("m", "Mexico City", "Mexico"), fact("n", "Niger", "Abuja"), fact("f", "France"), fact("g", "Guinea")]
    facts.append(fact("y", "York", subject_aliases=["New York"]))
    counts, scanned = count_index(tmp_path / "i", facts, TOKENIZER), count_corpus(path, facts, progress=False)
    # A name within the other counts, and is marked.
    assert (counts["m"].n_o, scanned["m"].n_o) == (2, 1) and counts["m"].approx
    assert counts.provenance["name_within_the_other"] == ["m"]
    # A name may be the beginning of a longer word.
    assert (counts["n"].n_s, scanned["n"].n_s) == (2, 1) and not counts["n"].approx
    # Behind a hyphen no name is looked for.
    assert (counts["f"].n_s, scanned["f"].n_s) == (4, 5)
    assert (counts["g"].n_s, scanned["g"].n_s) == (1, 1)
    # A name within another name of the same thing is one mention.
    assert (counts["y"].n_s, scanned["y"].n_s) == (2, 2)
    exact = count_index(tmp_path / "i", facts, TOKENIZER, case_sensitive=True)
    assert exact["f"].n_s == 2
    # Beyond the gap between documents the engine drops mentions.
    with pytest.raises(ValueError, match=r"at most 100 \(`--window 100`\), or .* `llm-unlearn index build --gap 101`"):
        count_index(tmp_path / "i", facts, TOKENIZER, max_diff_tokens=101)
    # One from elsewhere does not say how far apart its documents are.
    record = json.loads((tmp_path / "i" / "index.json").read_text())
    (tmp_path / "i" / "index.json").write_text(json.dumps({"tokenizer_sha256": record["tokenizer_sha256"]}))
    assert count_index(tmp_path / "i", facts, TOKENIZER, max_diff_tokens=101).share_approx == 1
    assert not count_index(tmp_path / "i", facts, TOKENIZER, max_diff_tokens=1)["n"].approx


def test_an_index_of_another_tokenizer_or_with_a_missing_file_is_refused(built, tmp_path):
    from llm_unlearn.probes.counts.index import count_index

    folder, _, _, facts = built
    other = tmp_path / "other"
    other.mkdir()
    content = json.loads((TOKENIZER / "tokenizer.json").read_text(encoding="utf-8"))
    # Written in another way, it is the same tokenizer.
    (other / "tokenizer.json").write_text(json.dumps(content, indent=4))
    assert count_index(folder / "index", facts, other, 20)["a"].n_so > 0
    content["model"]["merges"] = content["model"]["merges"][:-1]
    (other / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"was built with the tokenizer 'target' \(\w{12}\), not with 'other'"):
        count_index(folder / "index", facts, other, 20)
    with pytest.raises(FileNotFoundError, match=r"There is no .*tokenizer.json: give a folder .*--tokenizer"):
        count_index(folder / "index", facts, tmp_path, 20)
    with pytest.raises(FileNotFoundError, match="There is no index .*llm-unlearn index build"):
        count_index(tmp_path / "none", facts, TOKENIZER, 20)
    with pytest.raises(ValueError, match="no window of a document"):
        load_counts(f"index:{folder / 'index'}", facts, window="document", tokenizer=TOKENIZER)
    with pytest.raises(ValueError, match="`max_diff_tokens` is 0"):
        count_index(folder / "index", facts, TOKENIZER, max_diff_tokens=0)
    broken = tmp_path / "broken"
    shutil.copytree(folder / "index", broken)
    (broken / "index.json").unlink()
    with pytest.raises(
        ValueError, match=r"does not say with which tokenizer .* write \{\"tokenizer_sha256\": \"\w{64}\"\}"
    ):
        count_index(broken, facts, TOKENIZER, 20)
    with (broken / "table.0").open("ab") as table:
        table.write(b"x")
    with pytest.raises(ValueError, match=r"no whole index \(the files of shard 0 do not go together\)"):
        count_index(broken, facts, TOKENIZER, 20)
    (broken / "table.0").unlink()
    with pytest.raises(ValueError, match=r"no whole index \(table.0 is missing\)"):
        count_index(broken, facts, TOKENIZER, 20)


def test_an_index_is_built_whole_or_not_at_all(tmp_path, monkeypatch):
    pytest.importorskip("infini_gram")
    from llm_unlearn.probes.counts import encoder, index_build

    path, folder = tmp_path / "a.txt", tmp_path / "i"

    def refused(message, **options):
        with pytest.raises(ValueError, match=message):
            index_build.build_index(path, folder, TOKENIZER, progress=False, **options)
        assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]

    path.write_text(" \n\n ")
    refused("has no documents")
    path.write_bytes(b"Ch\xe2teau")
    refused("a.txt is not text in UTF-8")
    path.write_text("A text")
    for name in ("processes", "memory", "gap"):
        refused(f"`{name}` is 0: give 1 or more", **{name: 0})
    with monkeypatch.context() as patch:
        patch.setattr(index_build.sys, "executable", "/bin/false")
        refused("infini-gram could not sort the index")
    monkeypatch.setattr(encoder, "MAX_VOCABULARY", 1000)
    refused("has 1536 tokens, and an index holds at most 1000")


def test_without_the_package_the_message_says_how_to_install_it(monkeypatch):
    import sys

    from llm_unlearn.probes.counts.index import count_index
    from llm_unlearn.probes.counts.matcher import Matcher, has_automaton

    monkeypatch.setitem(sys.modules, "infini_gram", None)
    with pytest.raises(ImportError, match=r"needs the package infini-gram: install it .*llm-unlearn\[frequency\]"):
        count_index("x", FACTS, TOKENIZER)
    # Counting in a corpus goes on without its package.
    monkeypatch.setitem(sys.modules, "ahocorasick", None)
    assert not has_automaton()
    Matcher([f"university of {i}".encode() for i in range(40)])
