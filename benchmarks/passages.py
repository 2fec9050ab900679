"""What a model recites of passages, and how well it still reads other text: before and after unlearning, side by side.

    python benchmarks/passages.py --model TARGET --adapter OUT/adapter --dataset data/tofu --split 'biographies[0:16]' \
        --kept 'biographies[16:32]' --prefix 64 96 --max_length 128

Per model, on the passages and on those to be kept: MA over all tokens, EL_10 from the end of the prompt on, and of a
greedy continuation of the prompt, with all that stands before it as context: BLEU, BERTScore F1 (vectors of the model
before unlearning), ROUGE-L recall and entropy in bits. On held-out text: perplexity over windows of 512 tokens that do
not overlap, of all rows joined by blank lines, exp of the mean over windows, as for WikiText.
"""

import argparse
import json
import math
from contextlib import nullcontext
from functools import partial
from pathlib import Path


def perplexity(model, tokenizer, text: str, window: int = 512) -> float:
    """exp of the unweighted mean of the windows' token-mean NLL; a last window that is not full is left out."""
    import torch

    ids = torch.tensor(tokenizer(text, add_special_tokens=False).input_ids)
    losses = []
    with torch.no_grad():
        for start in range(0, len(ids) - window + 1, window):
            part = ids[start : start + window][None]
            losses.append(model(input_ids=part, labels=part).loss.item())
    return math.exp(sum(losses) / len(losses))


def recited(model, encoder, before, config, tokenizer, rows) -> dict[str, float]:
    """Means over passages."""
    import numpy as np

    from llm_unlearn.evaluation.metrics.similarity import bert_score
    from llm_unlearn.refinement.look import Look
    from llm_unlearn.refinement.probes import Probes

    probes = Probes.of(tokenizer.all(rows), config, tokenizer)
    look = Look(model, probes, config, tokenizer, progress=True)
    look.generate(range(len(probes)))
    look.extract(range(len(probes)))
    with before():
        vectors = encoder.embed([*look.texts, *probes.references])
    pairs = zip(vectors[: len(probes)], vectors[len(probes) :], strict=True)
    names = {"ma": "MA", "el": "EL_10", "bleu": "BLEU", "rouge_l": "ROUGE-L", "entropy": "entropy"}
    return {
        **{shown: look.mean(name) for name, shown in names.items()},
        "BERTScore F1": float(np.mean([bert_score(*pair).f1 for pair in pairs])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="the model that recites")
    parser.add_argument("--adapter", nargs="*", default=[], help="adapters on it, each measured by itself")
    parser.add_argument("--dataset", required=True, help="source with a column `text`")
    parser.add_argument("--split", required=True, help="the passages to forget")
    parser.add_argument("--kept", required=True, help="the passages to keep")
    parser.add_argument("--held_out", nargs="+", required=True, help="files of rows for perplexity")
    parser.add_argument("--prefix", type=int, nargs=2, default=[64, 96], help="first and last+1 token of the prompt")
    parser.add_argument("--max_length", type=int, default=128, help="tokens of a passage")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    args = parser.parse_args()

    import torch

    from llm_unlearn.adapters import without_newest_adapter
    from llm_unlearn.data.analogues import RowTexts
    from llm_unlearn.data.sources import load_rows
    from llm_unlearn.data.tokenization import ExampleTokenizer
    from llm_unlearn.evaluation.outputs.embeddings import HiddenStates
    from llm_unlearn.models import load_model, load_tokenizer
    from llm_unlearn.refinement.config import RefinementConfig

    config = RefinementConfig(iur_prefix=args.prefix, iur_context="full", iur_beams=1, el_start=args.prefix[1])
    plain = load_tokenizer(args.model)
    tokenizer = ExampleTokenizer(plain, max_length=args.max_length)
    splits = {name: load_rows(split, args.dataset) for name, split in (("forget", args.split), ("kept", args.kept))}
    texts = {Path(file).stem: "\n\n".join(RowTexts(load_rows(None, file))) for file in args.held_out}
    results = {}
    for adapter in [None, *args.adapter]:
        # An adapter's record names what it stands on.
        model = load_model(adapter or args.model, torch.float32).eval()
        before = partial(without_newest_adapter, model) if adapter else nullcontext
        encoder = HiddenStates(model, plain, progress=False)
        row = {}
        for name, rows in splits.items():
            values = recited(model, encoder, before, config, tokenizer, rows)
            row |= {f"{name} {key}": value for key, value in values.items()}
        row |= {f"{name} perplexity": perplexity(model, plain, text) for name, text in texts.items()}
        results[adapter or "before"] = row
    names = list(results)
    print("| | " + " | ".join(names) + " |\n" + "|---" * (len(names) + 1) + "|")
    for key in results["before"]:
        print(f"| {key} | " + " | ".join(f"{results[name][key]:.3f}" for name in names) + " |")
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
