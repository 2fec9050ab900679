"""For every text to forget, the texts of a pool most like it: the analogous samples of ICU (arXiv 2407.20271).

A text becomes a row of a matrix (`encoders`), rows are compared by inner product, exactly and in bounded memory
(`search`, `index`), and what a forget text has in common with its neighbours is measured in tokens (`overlap`).
`find_analogues` puts these together.
"""

from llm_unlearn.data.analogues.encoders import Encoder, make_encoder
from llm_unlearn.data.analogues.overlap import longest_common_run, shared_ngrams
from llm_unlearn.data.analogues.pairs import Analogues, Skipped, find_analogues
from llm_unlearn.data.analogues.texts import ModelTokens, RowTexts, TextTokens, WordTokens, text_of

__all__ = [
    "Analogues",
    "Encoder",
    "ModelTokens",
    "RowTexts",
    "Skipped",
    "TextTokens",
    "WordTokens",
    "find_analogues",
    "longest_common_run",
    "make_encoder",
    "shared_ngrams",
    "text_of",
]
