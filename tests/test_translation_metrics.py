"""BLEU of a set and METEOR of sentences, by hand and against packages that compute the same."""

import math

import numpy as np
import pytest
from nltk.translate import bleu_score, meteor_score

from llm_unlearn.evaluation.metrics.translation import corpus_bleu, meteor, require_language, words_of

# Six words each; candidate and reference share "the cat sat on", and the candidate has "mat" for "rug".
CANDIDATE, REFERENCE = "the cat sat on a mat", "the cat sat on a rug"
SENTENCES = [
    ("le chat est assis sur le tapis .", "le chat est assis sur un tapis ."),
    ("il aimait les grandes maisons", "il aime la grande maison"),
    ("rien de commun", "une tout autre phrase , plus longue"),
    ("Oui , monsieur !", "oui , monsieur !"),
    ("la la la la la la", "la mer"),
]


def test_bleu_of_a_pair_by_hand():
    # 5 of 6 words, 4 of 5 pairs, 3 of 4 triples, 2 of 3 quadruples; equal lengths.
    expected = (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** (1 / 4)
    assert corpus_bleu([CANDIDATE], [REFERENCE]) == pytest.approx(expected)
    # Words above what the reference has do not count, and a short candidate pays exp(1 - 8/6).
    longer = REFERENCE + " over there"
    assert corpus_bleu([CANDIDATE], [longer]) == pytest.approx(expected * math.exp(1 - 8 / 6))
    assert corpus_bleu([REFERENCE], [REFERENCE]) == 1
    assert corpus_bleu(["the the the the"], [REFERENCE]) == 0
    assert corpus_bleu([""], [REFERENCE]) == 0 and corpus_bleu([REFERENCE], [""]) == 0 and corpus_bleu([], []) == 0


def test_bleu_of_a_set_is_of_all_its_n_grams_together():
    # 6 + 5 of 12 words, and so on: not the mean of 1 and the value above.
    value = corpus_bleu([REFERENCE, CANDIDATE], [REFERENCE, REFERENCE])
    assert value == pytest.approx((11 / 12 * 9 / 10 * 7 / 8 * 5 / 6) ** (1 / 4))
    assert corpus_bleu(["The cat sat on a rug"], [REFERENCE]) < 1, "case counts"
    with pytest.raises(ValueError):
        corpus_bleu([REFERENCE], [])


def test_bleu_as_two_packages_have_it():
    def of(sentences):
        return [[words_of(text) for text in side] for side in zip(*sentences, strict=True)]

    long_enough = [pair for pair in SENTENCES if len(words_of(pair[0])) > 3]
    given, true = of(long_enough)
    mine = corpus_bleu(*zip(*long_enough, strict=True))
    assert 0.2 < mine < 0.6
    assert mine == pytest.approx(bleu_score.corpus_bleu([[text] for text in true], given))
    sacrebleu = pytest.importorskip("sacrebleu")
    given, true = ([" ".join(text) for text in side] for side in of(SENTENCES))
    theirs = sacrebleu.corpus_bleu(given, [true], tokenize="none", smooth_method="none", force=True)
    assert corpus_bleu(*zip(*SENTENCES, strict=True)) == pytest.approx(theirs.score / 100)


def test_meteor_by_hand():
    # Five matches in one run: P = R = F = 5/6, penalty 0.5 (1/5)^3.
    (value,) = meteor([CANDIDATE], [REFERENCE])
    assert value == pytest.approx(5 / 6 * (1 - 0.5 / 125))
    # "CATS" has the stem of "cat": two matches in two runs, P = 1, R = 2/6, F = P R / (0.9 P + 0.1 R).
    (value,) = meteor(["rug CATS"], [REFERENCE])
    precision, recall = 1, 2 / 6
    assert value == pytest.approx(precision * recall / (0.9 * precision + 0.1 * recall) * 0.5)
    assert meteor(["xyz", ""], [REFERENCE, REFERENCE]).tolist() == [0, 0]
    assert meteor([], []).tolist() == []


def test_meteor_as_nltk_has_it_without_synonyms():
    class Nothing:
        def synsets(self, word):
            return []

    from nltk.stem.snowball import SnowballStemmer

    given, true = zip(*SENTENCES, strict=True)
    mine = meteor(given, true, "french")
    theirs = [
        meteor_score.single_meteor_score(words_of(t), words_of(g), stemmer=SnowballStemmer("french"), wordnet=Nothing())
        for g, t in SENTENCES
    ]
    assert mine.tolist() == pytest.approx(theirs) and len(np.unique(mine)) > 3
    assert mine[1] > meteor(given, true, "english")[1], "aimait and aime have one stem in French"


def test_a_language_without_stemmer_is_refused():
    require_language("french")
    with pytest.raises(ValueError, match="no stemmer of the language 'klingon': give one of .*french"):
        require_language("klingon")
