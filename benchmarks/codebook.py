"""What a codebook bottleneck costs: time per token, per size of the codebook, and the time to plan a deletion.

    python benchmarks/codebook.py --model PATH --codes 1000 10000 50000
    python benchmarks/codebook.py --model PATH --request --dataset TOFU --split forget01 --others 'retain90[0:400]'

Variants are run in turn, round after round, and reported as ratios to the model without bottleneck: medians over rounds
of a forward over `--tokens` tokens in rows of 128 (as in training and when a prompt is read) and of one token after 128
with a cache (as in generation). Weights are random: only time is measured, which does not depend on them.
"""

import argparse
import statistics
import time


def forwards(model, tokens: int):
    """A forward over a batch, and one over a single token behind a cached prompt."""
    import torch

    device = model.get_input_embeddings().weight.device
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(10, 1000, (max(1, tokens // 128), 128), generator=generator).to(device)

    def batch() -> None:
        model(input_ids=ids, use_cache=False)

    cache = model(input_ids=ids[:1], use_cache=True).past_key_values

    def token() -> None:
        model(input_ids=ids[:1, -1:], past_key_values=cache, use_cache=True)
        cache.crop(-1)

    return {"batch": batch, "token": token}


def seconds(run, repeats: int) -> float:
    """Seconds of one call."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(repeats):
        run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / repeats


def overhead(args: argparse.Namespace) -> None:
    """Ratios of the time of a forward with the bottleneck to that without, per number of codes."""
    import torch

    from llm_unlearn.codebook.config import CodebookConfig
    from llm_unlearn.codebook.model import get_codebook_model
    from llm_unlearn.models import load_model

    model = load_model(args.model).to("cuda" if torch.cuda.is_available() else "cpu")
    layers = model.config.num_hidden_layers
    print(f"{args.model}: {layers} layers, width {model.config.hidden_size}; S = {args.top_s}")
    with torch.no_grad():
        for n_codes in args.codes:
            config = CodebookConfig(num_codes=n_codes, top_s=args.top_s, layer=args.layer)
            codebook = get_codebook_model(model, config)
            times = {(kind, name): [] for kind in ("batch", "token") for name in ("without", "with")}
            runs = forwards(model, args.tokens)
            for _ in range(args.rounds):
                for kind, run in runs.items():
                    repeats = 1 if kind == "batch" else 20
                    with codebook.disabled():
                        times[kind, "without"].append(seconds(run, repeats))
                    times[kind, "with"].append(seconds(run, repeats))
            # The first round warms up.
            middle = {key: statistics.median(values[1:]) for key, values in times.items()}
            codebook.detach()
            ratios = {kind: middle[kind, "with"] / middle[kind, "without"] for kind in runs}
            print(
                f"K = {n_codes:6d}: batch {middle['batch', 'without']:.3f} s -> x {ratios['batch']:.3f}; "
                f"token {1000 * middle['token', 'without']:.2f} ms -> x {ratios['token']:.3f}"
            )


def request(args: argparse.Namespace) -> None:
    """Seconds to plan a deletion: control texts, their codes, the choice."""
    from llm_unlearn.codebook.config import CodebookConfig
    from llm_unlearn.codebook.initialise import initialise_from
    from llm_unlearn.codebook.model import get_codebook_model
    from llm_unlearn.codebook.selection import PAPER
    from llm_unlearn.codebook.unlearner import CodeUnlearner
    from llm_unlearn.data.sources import load_rows
    from llm_unlearn.data.tokenization import ExampleTokenizer
    from llm_unlearn.models import load_model, load_tokenizer

    tokenize = ExampleTokenizer(load_tokenizer(args.model))
    rows, others = (list(load_rows(split, args.dataset)) for split in (args.split, args.others))
    codebook = get_codebook_model(load_model(args.model), CodebookConfig(num_codes=args.codes[0], top_s=args.top_s))
    initialise_from(codebook, tokenize.all(rows + others), max_tokens=4000)
    began = time.perf_counter()
    plan = CodeUnlearner(codebook, tokenize).plan(rows, others[: args.kept], rule=PAPER)
    print(
        f"{len(rows)} texts, {plan.grounds['control']['texts']} control texts, {len(plan.retain)} texts to keep, "
        f"{sum(plan.grounds['tokens'].values())} tokens, K = {args.codes[0]}: planned in "
        f"{time.perf_counter() - began:.1f} s ({plan.selection.sizes[0]} codes)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--codes", type=int, nargs="+", default=[1000, 10_000, 50_000], help="codebook sizes")
    parser.add_argument("--top_s", type=int, default=8, help="codes per token")
    parser.add_argument("--layer", type=int, default=None, help="layer of the bottleneck; unset: 0.4 of the depth")
    parser.add_argument("--tokens", type=int, default=1024, help="tokens of a batch")
    parser.add_argument("--rounds", type=int, default=6, help="rounds, the first not counted")
    parser.add_argument("--request", action="store_true", help="time the plan of a deletion instead")
    parser.add_argument("--dataset", help="source of the rows of --request")
    parser.add_argument("--split", help="rows to forget")
    parser.add_argument("--others", help="rows on other subjects, which lend their names")
    parser.add_argument("--kept", type=int, default=40, help="of the others, how many are read as texts to keep")
    args = parser.parse_args()
    request(args) if args.request else overhead(args)


if __name__ == "__main__":
    main()
