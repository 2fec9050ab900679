"""What it costs to count facts in a corpus: megabytes of plain text per second and core, for each stage and for all.

    python benchmarks/counts.py
    python benchmarks/counts.py --corpus FILE.txt --names 10000

Without `--corpus`, documents of a made-up language are written, with words as frequent as those of a natural one
(Zipf), sentences, lines of 80 characters, and one word in `--accents` beyond ASCII. A quarter of the names is one word
that the text has anyhow, the others are two to four words; one in `--mentions` words of the text begins one. Times are
processor time of one process, so that they stand for a core also on a machine with other work; the best of `--rounds`
counts, since whatever disturbs a round makes it slower.
"""

import argparse
import random
import tempfile
import time
from pathlib import Path


def vocabulary(draw: random.Random, size: int) -> list[str]:
    """Different words of one to four syllables, the frequent ones short."""
    syllables = [a + b + c for a in "bcdfghklmnprstvw" for b in "aeiou" for c in ("", "n", "r", "s")]
    words: dict[str, None] = {}
    while len(words) < size:
        words["".join(draw.choice(syllables) for _ in range(draw.choice((1, 2, 2, 3, 3, 4))))] = None
    return sorted(words, key=len)


def make_corpus(path: Path, args: argparse.Namespace) -> list[str]:
    """Write the corpus; the names to look for in it."""
    import numpy as np

    draw, generator = random.Random(0), np.random.default_rng(0)
    words = vocabulary(draw, 50_000)
    chances = 1 / (np.arange(len(words)) + 2.7)
    chances /= chances.sum()
    rare = words[500:]
    names: dict[str, None] = {}
    while len(names) < args.names:
        several = len(names) >= args.names // 4
        parts = draw.sample(rare, draw.choice((2, 2, 3, 4))) if several else [draw.choice(rare)]
        names[" ".join(parts).title()] = None
    planted = list(names)[args.names // 4 :]
    size = 0
    with path.open("w", encoding="utf-8") as file:
        while size < args.megabytes * 1_000_000:
            text = [words[i] for i in generator.choice(len(words), p=chances, size=int(generator.integers(50, 1200)))]
            for place in range(draw.randrange(args.mentions), len(text), args.mentions):
                text[place] = draw.choice(planted)
            for place in range(draw.randrange(args.accents), len(text), args.accents):
                text[place] = draw.choice(("«{}»", "{}é", "“{}”", "{}…")).format(text[place])
            for place in range(0, len(text) - 1, 14):
                text[place], text[place - 1] = text[place].capitalize(), text[place - 1] + "."
            lines, width = [], 0
            for word in text:
                lines.append(("\n" if width > 80 else " ") + word)
                width = len(word) if width > 80 else width + len(word) + 1
            size += file.write("".join(lines).strip() + "\n\n")
    return list(names)


def stages(path: Path, counter, rounds: int) -> dict[str, float]:
    """Seconds of each stage of a pass over a file; the best round of each."""
    import numpy as np

    from llm_unlearn.probes.counts.documents import TextFormat
    from llm_unlearn.probes.counts.normalise import edges, normalise
    from llm_unlearn.probes.counts.texts import cut_into_units, find_sources, read

    form, matcher = TextFormat(), counter._matcher
    best: dict[str, float] = {}
    for _ in range(rounds):
        spent = dict.fromkeys(("read", "normalise", "tokens", "match", "whole"), 0.0)

        def timed(name, run, *arguments, spent=spent):
            began = time.process_time()
            result = run(*arguments)
            spent[name] += time.process_time() - began
            return result

        for unit in (unit for source in find_sources(path) for unit in cut_into_units(source, form)):
            batches = read(unit, form)
            while (batch := timed("read", next, batches, None)) is not None:
                text = timed("normalise", normalise, batch.texts)
                borders, token_at = timed("tokens", edges, text.data)
                places = timed("tokens", np.flatnonzero, token_at)
                timed("match", matcher.find, text, borders, places)
                timed("whole", counter.count, batch.texts)
        spent["window"] = spent["whole"] - spent["normalise"] - spent["tokens"] - spent["match"]
        spent["pass"] = spent["read"] + spent.pop("whole")
        best = {name: min(best.get(name, seconds), seconds) for name, seconds in spent.items()}
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, help="a plain text; unset: one is made")
    parser.add_argument("--names", type=int, default=10_000, help="names to look for")
    parser.add_argument("--megabytes", type=int, default=32, help="size of the text that is made")
    parser.add_argument("--mentions", type=int, default=60, help="one in so many words begins a name")
    parser.add_argument("--accents", type=int, default=150, help="one in so many words is beyond ASCII")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()

    from llm_unlearn.probes.counts.tally import COUNTED, Counter
    from llm_unlearn.probes.facts import Fact

    with tempfile.TemporaryDirectory() as folder:
        path = args.corpus or Path(folder) / "corpus.txt"
        names = make_corpus(Path(folder) / "corpus.txt", args)
        random.Random(1).shuffle(names)
        groups = [names[i : i + 4] for i in range(0, len(names) - 3, 4)]
        facts = [Fact(s, s, o, "?", o, (t,), (u,), "r") for s, o, t, u in groups]
        megabytes = path.stat().st_size / 1e6
        print(f"{megabytes:.1f} MB of plain text, {len(names)} names of {len(facts)} facts; MB/s of one core")
        for window in ("document", 100):
            counter = Counter(facts, window)
            seconds = stages(path, counter, args.rounds)
            beginning = path.read_bytes()[:2_000_000].rpartition(b"\n")[0]
            found = counter.count(beginning).facts.sum(axis=1)
            mentions = sum(found[COUNTED.index(side)] for side in ("subjects", "objects"))
            figures = ", ".join(f"{name} {megabytes / spent:.1f}" for name, spent in seconds.items())
            print(f"window {window}: {figures} ({1e6 * mentions / len(beginning):.0f} mentions per MB)")


if __name__ == "__main__":
    main()
