"""Analogous samples: encoders, exact search, overlaps, pairs."""

import builtins
import json
import math
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.numpy import save_file
from scipy.sparse import csr_array
from sklearn.feature_extraction.text import TfidfVectorizer
from tiny import tiny_model, tiny_tokenizer

from llm_unlearn.data.analogues import (
    ModelTokens,
    RowTexts,
    WordTokens,
    find_analogues,
    longest_common_run,
    make_encoder,
    shared_ngrams,
    text_of,
)
from llm_unlearn.data.analogues import texts as texts_module
from llm_unlearn.data.analogues.encoders import ModelEncoder
from llm_unlearn.data.analogues.index import load_index, save_index
from llm_unlearn.data.analogues.search import CELLS_AT_ONCE, faiss_top_k, top_k
from llm_unlearn.data.analogues.texts import chunked
from llm_unlearn.data.tofu import load_tofu


class Embedded:
    """An encoder of texts whose embeddings are known."""

    name = "embedded"

    def __init__(self, embeddings):
        self.embeddings = embeddings
        self.encoded = 0

    def fit(self, chunks):
        pass

    def encode_pool(self, texts):
        self.encoded += len(texts)
        return np.array([self.embeddings[text] for text in texts], dtype=np.float32)

    def encode_queries(self, texts):
        return np.array([self.embeddings[text] for text in texts], dtype=np.float32)


class Stream:
    """A pool that can be counted and read again and again, and nothing else."""

    def __init__(self, make):
        self.make = make

    def __len__(self):
        return sum(1 for _ in self.make())

    def __iter__(self):
        return iter(self.make())


def at(degrees):
    return [math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]


def found(forget, pool, encoder="tfidf", **options):
    encoder = make_encoder(encoder) if isinstance(encoder, str) else encoder
    options.setdefault("tokenize", WordTokens().encode)
    return find_analogues(forget, pool, encoder, progress=False, **options)


# Search.


def reference_top_k(queries, rows, k, exclude=()):
    scores = (queries.astype(np.float64) @ rows.T.astype(np.float64)).astype(np.float32)
    scores[:, list(exclude)] = -np.inf
    order = np.lexsort((np.broadcast_to(np.arange(len(rows)), scores.shape), -scores))[:, :k]
    return np.take_along_axis(scores, order, axis=1), order


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("k", [1, 7, 300])
def test_the_result_does_not_depend_on_how_the_pool_is_cut(sparse, k):
    """Half of the rows occur twice, so that ties are everywhere; a tie goes to the lower position."""
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(150, 8)).astype(np.float32) * (generator.random((150, 8)) < 0.5)
    rows = np.concatenate([rows, rows])[generator.permutation(300)].astype(np.float32)
    queries = generator.normal(size=(5, 8)).astype(np.float32)
    excluded = [0, 17, 299]
    expected = reference_top_k(queries, rows, k, excluded)
    kind = csr_array if sparse else np.asarray
    for size in (1, 3, 64, 299, 300):
        chunks = (kind(rows[start : start + size]) for start in range(0, 300, size))
        scores, positions = top_k(kind(queries), chunks, k, excluded)
        keep = np.isfinite(expected[0])
        np.testing.assert_array_equal(scores, expected[0])
        np.testing.assert_array_equal(positions[keep], expected[1][keep])
        assert (positions[~keep] == -1).all()


def test_rows_that_tie_come_in_the_order_of_the_pool():
    rows = np.array([[1, 0], [0, 1], [1, 0], [1, 0]], dtype=np.float32)
    scores, positions = top_k(np.array([[1.0, 0.0]], dtype=np.float32), [rows[:1], rows[1:]], 2)
    assert positions.tolist() == [[0, 2]] and scores.tolist() == [[1.0, 1.0]]


def test_many_queries_are_compared_block_by_block(monkeypatch):
    generator = np.random.default_rng(0)
    queries, rows = (generator.normal(size=(n, 4)).astype(np.float32) for n in (40, 90))
    monkeypatch.setattr("llm_unlearn.data.analogues.search.CELLS_AT_ONCE", 100)  # two rows at a time
    assert CELLS_AT_ONCE > 100
    np.testing.assert_array_equal(top_k(queries, [rows], 3)[1], reference_top_k(queries, rows, 3)[1])


def test_one_query_and_one_row():
    scores, positions = top_k(np.array([[0.6, 0.8]]), [np.array([[0.6, 0.8]])], 10)
    assert scores[0, 0] == 1 and positions[0].tolist() == [0] + [-1] * 9


def test_faiss_finds_what_the_search_finds():
    pytest.importorskip("faiss")
    generator = np.random.default_rng(0)
    queries, rows = (generator.normal(size=(n, 16)).astype(np.float32) for n in (9, 500))
    excluded = top_k(queries, [rows], 1)[1][:, 0]
    expected = top_k(queries, [rows], 5, excluded)
    scores, positions = faiss_top_k(queries, (rows[at : at + 99] for at in range(0, 500, 99)), 5, excluded)
    np.testing.assert_array_equal(positions, expected[1])
    np.testing.assert_allclose(scores, expected[0], rtol=1e-5)
    free = faiss_top_k(queries, [rows], 5)
    np.testing.assert_array_equal(free[1], top_k(queries, [rows], 5)[1])
    short, none = faiss_top_k(queries, [rows[:2]], 3, [0])
    assert none[0].tolist() == [1, -1, -1] and short[0, 1] == -np.inf
    a = found(["a"], ["b", "c"], Embedded({"a": at(0), "b": at(40), "c": at(20)}), search="faiss")
    assert a.partners == [[1, 0]]


def test_chunks_are_bounded_in_rows_and_in_characters(monkeypatch):
    monkeypatch.setattr(texts_module, "CHUNK_ROWS", 3)
    monkeypatch.setattr(texts_module, "CHUNK_CHARACTERS", 10)
    texts = ["a", "b", "c", "d", "e" * 30, "f", "g" * 9, "h"]
    assert [len(chunk) for chunk in chunked(texts)] == [3, 2, 2, 1]
    assert [text for chunk in chunked(texts) for text in chunk] == texts
    assert list(chunked([])) == []


# Overlaps.


def test_the_longest_common_run_against_brute_force():
    generator = np.random.default_rng(0)
    for _ in range(60):
        a, b = (generator.integers(0, 4, size=generator.integers(0, 25)).tolist() for _ in range(2))
        runs = {tuple(a[i:j]) for i in range(len(a)) for j in range(i + 1, len(a) + 1)}
        expected = max(
            (j - i for i in range(len(b)) for j in range(i + 1, len(b) + 1) if tuple(b[i:j]) in runs), default=0
        )
        assert longest_common_run(a, b) == longest_common_run(b, a) == expected


def test_the_longest_common_run_of_long_texts():
    generator = np.random.default_rng(1)
    a, b, shared = (generator.integers(0, 50_000, size=size).tolist() for size in (5000, 4000, 61))
    assert longest_common_run(a[:3000] + shared + a[3000:], b[:10] + shared + b[10:]) == 61


def test_shared_ngrams():
    """The 2-grams of 1 2 3 1 2 are 12 23 31 12; in 9 1 2 are 91 12: two of four, by repetition."""
    assert shared_ngrams([1, 2, 3, 1, 2], [9, 1, 2], n=2) == 0.5
    assert shared_ngrams(range(12), range(12)) == 1.0
    assert shared_ngrams(range(12), range(1, 11)) == pytest.approx(1 / 3)
    assert shared_ngrams(range(9), range(12)) is None


# Encoders.


POOL = [
    "the old river runs by the old mill",
    "a mill by the sea",
    "x is the sea of y",
    "river river river mill town",
    "nothing else matters here",
]


def test_tfidf_is_that_of_scikit_learn():
    theirs = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b").fit(POOL)
    queries = ["old mill by the river", "y is x", "Nothing!"]
    expected = (theirs.transform(queries) @ theirs.transform(POOL).T).toarray()
    encoder = make_encoder("tfidf")
    encoder.fit([POOL[:2], POOL[2:]])
    ours = (encoder.encode_queries(queries) @ encoder.encode_pool(POOL).T).toarray()
    np.testing.assert_allclose(ours, expected, atol=1e-12)


def test_bm25_by_hand():
    """Query "river mill mill": N = 5, words 8 + 5 + 6 + 5 + 4 = 28, mean 5.6; river is in 2 texts, mill in 3."""
    idf_river, idf_mill = math.log(1 + 3.5 / 2.5), math.log(1 + 2.5 / 3.5)

    def weight(tf, length):
        return tf * 2.5 / (tf + 1.5 * (0.25 + 0.75 * length / 5.6))

    expected = [
        idf_river * weight(1, 8) + 2 * idf_mill * weight(1, 8),
        2 * idf_mill * weight(1, 5),
        0,
        idf_river * weight(3, 5) + 2 * idf_mill * weight(1, 5),
        0,
    ]
    encoder = make_encoder("bm25")
    encoder.fit([POOL])
    ours = (encoder.encode_queries(["river mill mill"]) @ encoder.encode_pool(POOL).T).toarray()[0]
    np.testing.assert_allclose(ours, expected, atol=1e-12)


@pytest.mark.parametrize("name", ["tfidf", "bm25"])
def test_an_encoder_of_words_forgets_an_earlier_pool(name):
    fresh, used = make_encoder(name), make_encoder(name)
    used.fit([["mill", "mill town"]])
    for encoder in (fresh, used):
        encoder.fit([POOL])
    assert (fresh.encode_pool(POOL) != used.encode_pool(POOL)).nnz == 0
    assert fresh.encode_pool(["", "..."]).nnz == 0, "a text without words is like nothing, not an error"


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neo"])
@pytest.mark.parametrize("peft", [False, True])
def test_the_encoder_of_a_model_averages_hidden_states_and_leaves_the_model_as_it_was(architecture, peft):
    model, tokenizer = tiny_model(architecture), tiny_tokenizer()
    if peft:
        model = get_peft_model(model, LoraConfig(target_modules="all-linear", r=2))
    model.train()
    embedding = model.get_input_embeddings().eval()
    texts = ["Where was Ada born?", "the old river hill by the great house", "Ada"]
    expected = []
    with torch.no_grad():
        model.eval()
        for text in texts:
            ids = torch.tensor([tokenizer(text).input_ids])
            hidden = model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0].mean(0)
            expected.append((hidden / hidden.norm()).numpy())
        model.train()
        embedding.eval()
    model.get_output_embeddings().forward = None  # logits would be an error
    encoder = ModelEncoder(model, tokenizer, batch_size=2)
    rows = encoder.encode_pool(texts)
    np.testing.assert_allclose(rows, expected, atol=1e-5)
    np.testing.assert_allclose(encoder.encode_queries(texts[:1]), expected[:1], atol=1e-5)
    assert rows.dtype == np.float32 and encoder.encode_pool([""]).shape == (1, 32)
    assert model.training and not embedding.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_encoder_of_a_model_reads_so_many_tokens_and_knows_its_weights():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    short = ModelEncoder(model, tokenizer, max_tokens=2)
    np.testing.assert_allclose(short.encode_pool(["the old river"]), short.encode_pool(["the old hill"]), atol=1e-6)
    assert short.name != ModelEncoder(model, tokenizer).name == ModelEncoder(tiny_model(), tokenizer).name
    before = short.name
    model.model.layers[1].mlp.down_proj.weight.data[0, 0] += 1
    assert ModelEncoder(model, tokenizer, max_tokens=2).name != before
    model.model.norm.weight.data[:] = float("nan")
    with pytest.raises(ValueError, match="not finite.*`--model`"):
        short.encode_pool(["the old river"])


def test_any_other_name_is_a_sentence_transformers_model(monkeypatch):
    class SentenceTransformer(torch.nn.Linear):
        def __init__(self, name, trust_remote_code, model_kwargs):
            if name != "good":
                raise OSError("no such\nmodel")
            super().__init__(2, 2)
            assert not trust_remote_code and model_kwargs == {"use_safetensors": True}

        def encode(self, texts, normalize_embeddings, show_progress_bar):
            assert normalize_embeddings and not show_progress_bar
            return np.array([at(len(text)) for text in texts], dtype=np.float32)

    monkeypatch.setitem(
        sys.modules, "sentence_transformers", types.SimpleNamespace(SentenceTransformer=SentenceTransformer)
    )
    a = found(["aaaa"], ["a" * 90, "a" * 5], make_encoder("good"))
    assert a.partners == [[1, 0]] and a.scores[0][0] == pytest.approx(math.cos(math.radians(1)))
    with pytest.raises(ValueError, match=r"'tfdif' is none of .* could not be loaded \(no such model\)"):
        make_encoder("tfdif")


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [("tfidf", "sklearn", "recipes"), ("bm25", "sklearn", "recipes"), ("mini", "sentence_transformers", "similarity")],
)
def test_a_missing_package_is_named_with_its_extra(name, package, extra, monkeypatch):
    without(package, monkeypatch)
    with pytest.raises(ValueError, match=re.escape(f"pip install 'llm-unlearn[{extra}]'")):
        make_encoder(name)


def test_missing_faiss_is_named_with_its_extra(monkeypatch):
    without("faiss", monkeypatch)
    with pytest.raises(ValueError, match=r"llm-unlearn\[similarity\]"):
        found(["a"], ["b"], Embedded({"a": at(0), "b": at(1)}), search="faiss")


def without(package, monkeypatch):
    real = builtins.__import__

    def import_(name, *rest):
        if name.partition(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", import_)


# Pairs.


TOY = {
    "forget 0": at(0), "forget 1": at(90), "forget 2": at(180),
    "near 0": at(5), "less near 0": at(-30), "near 1": at(80), "far": at(225), "near 2": at(170),
}  # fmt: skip
FORGET = ["forget 2", "forget 0", "forget 1"]
TOY_POOL = ["near 0", "forget 0", "near 1", "less near 0", "Forget  1", "far", "near 2"]
ENCODED = TOY | {"Forget  1": at(90)}


def test_nearest_partners_in_two_dimensions():
    """T12: as expected, never a forget row (whatever its case and spaces), in the order of the forget rows."""
    a = found(FORGET, TOY_POOL, Embedded(ENCODED), k=2)
    assert a.partners == [[6, 5], [0, 3], [2, 6]]
    assert a.n_identical == 2 and a.n_distinct == 3 and a.skipped == [[], [], []]
    assert a.scores[1] == pytest.approx([math.cos(math.radians(5)), math.cos(math.radians(30))])
    assert [first for first, *_ in found(FORGET, TOY_POOL, Embedded(ENCODED), rank=1).partners] == [5, 3, 6]


def words(*parts):
    """A text of numbered words, without a run in common with another name."""
    return " ".join(f"{name}{i}" for name, count in parts for i in range(count))


def planted():
    """A forget text, a near-duplicate (run of 12), a text with a run of another forget text (11), a clean one."""
    forget = [words(("a", 12), ("b", 6)), words(("c", 20))]
    pool = [words(("z", 3), ("a", 12)), words(("c", 11), ("y", 3)), words(("x", 9)), words(("w", 9))]
    angles = dict(zip([*forget, *pool], [0, 120, 1, 2, 3, 121], strict=True))
    return forget, pool, Embedded({text: at(angle) for text, angle in angles.items()})


def test_near_duplicates_are_skipped_where_that_is_asked_for():
    forget, pool, encoder = planted()
    assert found(forget, pool, encoder).partners == [[0, 1, 2, 3], [3, 2, 1, 0]], "off, as in the released code"
    assert found(forget, pool, encoder).longest_runs[0] == [12, 0, 0, 0]
    a = found(forget, pool, encoder, max_overlap=8)
    assert a.partners == [[2, 3], [3, 2]]
    assert [(s.position, s.longest_run) for s in a.skipped[0]] == [(0, 12), (1, 0)]
    assert a.skipped[0][0].reason == "shares a run of 12 tokens with its forget text"
    assert a.skipped[0][1].reason == "shares a run of 10 tokens or more with another forget text"
    assert found(forget, pool, encoder, max_overlap=8, rank=1).partners == [[3], [2]]


def test_a_limit_above_ten_counts_for_all_forget_texts():
    forget, pool, encoder = planted()
    assert found(forget, pool, encoder, max_overlap=12).partners[0] == [1, 2, 3]
    assert found(forget, pool, encoder, max_overlap=13).partners[0] == [0, 1, 2, 3]


def test_overlaps_of_the_partners():
    """Of the nine 10-grams of 18 words, the three that lie in the shared twelve occur in the partner."""
    forget, pool, encoder = planted()
    a = found(forget[:1], pool, encoder)
    assert a.shared[0][:2] == [pytest.approx(3 / 9), 0]
    assert found(["a b"], ["a c"]).shared == [[None]]
    assert a.summary() == {
        "pairs": 1, "distinct_partners": 1, "median_longest_run": 12, "share_with_long_run": 0.0,
        "skipped_neighbours": 0, "identical_texts": 0,
    }  # fmt: skip


@pytest.mark.parametrize("at_once", [1, 2**18])
def test_the_search_widens_until_a_partner_is_found(monkeypatch, at_once):
    """Of 40 near-duplicates all 3 nearest are skipped; the search doubles to 48 neighbours for that text alone."""
    monkeypatch.setattr("llm_unlearn.data.analogues.pairs.NEIGHBOURS_AT_ONCE", at_once)
    forget = [words(("a", 12)), words(("c", 12))]
    pool = [*(words((f"z{i}_", 2), ("a", 12)) for i in range(40)), words(("clean", 5)), words(("other", 5))]
    angles = [0, 170, *(1 + i for i in range(40)), 50, 160]
    encoder = Embedded({text: at(angle) for text, angle in zip([*forget, *pool], angles, strict=True)})
    a = found(forget, pool, encoder, k=3, max_overlap=10)
    assert a.partners[0] == [40, 41] and len(a.skipped[0]) == 40
    assert a.partners[1][0] == 41
    # 3, 6, 12, 24 and all 42 neighbours; the second text is searched once, alone where one is searched at a time.
    assert encoder.encoded == 42 * (5 if at_once > 1 else 6)
    wanted = found(forget, pool, encoder, k=3, max_overlap=10, wanted=2)
    assert wanted.partners[0] == [40, 41] and wanted.partners[1] == [41, 40]


@pytest.mark.parametrize("max_overlap", [None, 8])
def test_a_pool_that_can_only_be_read_gives_the_same(max_overlap):
    forget, pool, encoder = planted()
    stream = Stream(lambda: (text for text in pool))
    assert found(forget, stream, encoder, max_overlap=max_overlap) == found(
        forget, pool, encoder, max_overlap=max_overlap
    )


@pytest.mark.parametrize("encoder", ["tfidf", "bm25"])
def test_one_forget_text_and_one_text_in_the_pool(encoder):
    a = found(["the old mill"], ["a new mill"], encoder)
    assert a.partners == [[0]] and a.longest_runs == [[1]] and a.scores[0][0] > 0


def test_partners_repeat_where_the_pool_is_smaller():
    a = found(["one mill", "two mills", "three"], ["mill", "mills"])
    assert [own[0] for own in a.partners] == [0, 1, 0] and a.n_distinct == 2


@pytest.mark.parametrize("encoder", ["tfidf", "bm25"])
def test_the_chunks_of_the_pool_change_nothing(encoder, monkeypatch):
    forget, pool = (RowTexts(load_tofu(name)) for name in ("forget05", "retain90[0:300]"))
    whole = found(forget, pool, encoder, max_overlap=8)
    monkeypatch.setattr(texts_module, "CHUNK_ROWS", 7)
    assert found(forget, pool, encoder, max_overlap=8) == whole


@pytest.mark.parametrize("encoder", ["tfidf", "bm25"])
def test_the_bundled_data_have_partners_of_other_authors(encoder):
    forget, retain = load_tofu("forget10"), load_tofu("retain90")
    a = found(RowTexts(forget), RowTexts(retain), encoder)
    assert [len(own) for own in a.partners] == [10] * 80
    authors, attributes = set(forget["author"]), []
    for row, own in zip(forget, a.partners, strict=True):
        assert not authors & {retain[i]["author"] for i in own}
        attributes.append(retain[own[0]]["attribute"] == row["attribute"])
    assert np.mean(attributes) > 0.8, "the nearest row asks the same of somebody else"
    clean = found(RowTexts(forget), RowTexts(retain), encoder, max_overlap=8)
    assert max(run for runs in clean.longest_runs for run in runs) < 8
    assert clean.summary()["skipped_neighbours"] > 100


@pytest.mark.parametrize(
    ("forget", "pool", "options", "said"),
    [
        ([], ["b"], {}, r"no forget texts.*`--forget_split`"),
        (["a"], [], {}, r"pool has no texts.*`--pair_pool`"),
        (["a", "b"], ["B ", "a", "a"], {}, r"All 3 texts of the pool are forget texts.*`--pair_pool`"),
        (["d e", "a b"], ["x a b", "a b y", "a b"], {"max_overlap": 2},
         r"Forget text 1 keeps none of 2 texts.*of 2 tokens.*raise `--pair_max_overlap` or .* `--pair_pool`"),
        (["a"], ["b", "c"], {"rank": 2}, r"Forget text 0 keeps 2 of 2 texts .* rank of 2 .* lower `--pair_rank`"),
        (["a"], ["b"], {"k": 2, "wanted": 3}, r"wanted 3"),
        (["a"], ["b"], {"search": "faiss"}, r"'tfidf' makes sparse rows.*drop `--pair_search`"),
        (["a"], ["b"], {"index": "nowhere"}, r"'tfidf' makes sparse rows.*`--pair_encoder`"),
    ],
)  # fmt: skip
def test_a_mistake_is_explained_in_one_sentence(forget, pool, options, said, monkeypatch):
    monkeypatch.setattr("llm_unlearn.data.analogues.pairs.import_faiss", lambda: None)  # it may not be installed
    with pytest.raises(ValueError, match=said) as raised:
        found(forget, pool, **options)
    assert "\n" not in str(raised.value) and not Path("nowhere").exists()


def test_the_model_encoder_needs_a_model():
    with pytest.raises(ValueError, match="`--model`"):
        make_encoder("model")


# A saved index.


def test_an_index_is_written_once_read_thereafter_and_gives_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(texts_module, "CHUNK_ROWS", 3)
    expected = found(FORGET, TOY_POOL, Embedded(ENCODED))
    encoder = Embedded(ENCODED)
    for _ in range(2):
        assert found(FORGET, TOY_POOL, encoder, index=tmp_path / "index") == expected
    assert encoder.encoded == len(TOY_POOL), "once"
    assert found(["far"], TOY_POOL, encoder, index=tmp_path / "index").partners[0][0] == 6, (
        "of the pool, not the queries"
    )
    names = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    assert names == ["index.json", *(f"rows-0000{i}.safetensors" for i in range(3))]
    record = json.loads((tmp_path / "index" / "index.json").read_text())
    assert (record["encoder"], record["dimension"], record["rows"]) == ("embedded", 2, 7)
    assert len(record["sha256"]) == 64


def test_an_index_is_read_slice_by_slice(tmp_path, monkeypatch):
    rows = np.arange(20, dtype=np.float32).reshape(10, 2)
    index = save_index(tmp_path / "index", "e", [rows[:7], rows[7:]], "sha")
    monkeypatch.setattr("llm_unlearn.data.analogues.index.CHUNK_ROWS", 4)
    assert [chunk.shape[0] for chunk in index.chunks()] == [4, 3, 3]
    np.testing.assert_array_equal(np.concatenate(list(index.chunks())), rows)
    assert load_index(tmp_path / "index", "e", 2, "sha") == index


def test_an_index_of_something_else_is_refused_before_the_search(tmp_path):
    folder, encoder = tmp_path / "index", Embedded(ENCODED)
    found(FORGET, TOY_POOL, encoder, index=folder)
    before = encoder.encoded

    def refused(said, pool=TOY_POOL):
        with pytest.raises(ValueError, match=said) as raised:
            found(FORGET, pool, encoder, index=folder)
        assert "`--pair_index`" in str(raised.value) and "\n" not in str(raised.value)
        assert encoder.encoded == before

    refused("is of another pool", TOY_POOL[::-1])
    encoder.name = "other"
    refused("is of the encoder 'embedded', and this is 'other'")
    encoder.name, encoder.embeddings = "embedded", {text: [*row, 0] for text, row in ENCODED.items()}
    refused("has 2 dimensions, and the encoder gives 3")
    encoder.embeddings = ENCODED
    (whole,) = folder.glob("*.safetensors")
    save_file({"rows": np.zeros((5, 2), dtype=np.float32)}, whole)
    refused(r"damaged \(5 of 7 rows\)")
    whole.write_bytes(whole.read_bytes()[:40])
    refused("damaged")
    (folder / "index.json").write_text("{")
    refused("damaged")
    (folder / "index.json").unlink()
    refused("is not empty and holds no index")


def test_an_encoder_that_fails_leaves_no_index(tmp_path):
    encoder = Embedded({"a": at(0)})
    with pytest.raises(KeyError):
        found(["a"], ["b"], encoder, index=tmp_path / "index")
    assert list(tmp_path.iterdir()) == []


# Texts.


@pytest.mark.parametrize(
    ("example", "text"),
    [
        ({"question": "Who?", "answer": "Ada."}, "Who?\nAda."),
        ({"prompt": "Who?", "completion": " Ada."}, "Who? Ada."),
        ({"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ada."}]}, "Who?\nAda."),
        ({"text": "Ada  was here."}, "Ada  was here."),
    ],
)
def test_what_of_an_example_is_compared(example, text):
    assert text_of(example) == text
    rows = RowTexts(Dataset.from_list([{**example, "other": 1}] * 2))
    assert list(rows) == [rows[1]] * 2 == [text] * 2 and len(rows) == 2


def test_a_slice_of_plain_text_is_counted_in_tokens():
    tokenizer = ModelTokens(tiny_tokenizer())
    row = {"text": "the old river by the hill"}
    assert text_of(row, (1, 3)) == text_of(row, (1, 3), tokenizer) == "old river"
    assert text_of({"text": "the old"}, (2, 4)) == "the old", "compared whole, for nothing of it lies in the slice"
    assert text_of({"question": "the old river", "answer": "hill"}, (1, 2)) == "the old river\nhill"
    assert WordTokens().encode("a b a") == [0, 1, 0]
    assert tokenizer.encode("the old") == tiny_tokenizer()("the old").input_ids
