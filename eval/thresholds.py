r"""Thresholds of forgetting for a model: mean MA, EL_n and ROUGE-L recall on rows it was never trained on.

    python eval/thresholds.py --model M --dataset texts.jsonl --text_column text --split 'train[500:600]'

What a run measures by itself with `--holdout_split`; by hand it is for choosing rows, or for sharing numbers. Prints
them as the flags of a recipe. Several processes: `torchrun --nproc_per_node 2 eval/thresholds.py ...`.
"""

import shlex
import sys
from dataclasses import dataclass, field

from transformers import HfArgumentParser

from llm_unlearn.data.tokenization import DEFAULT_SYSTEM_PROMPT
from llm_unlearn.flags import DataFlags
from llm_unlearn.quiet import quiet_upstream


@dataclass
class ThresholdArguments(DataFlags):
    """Whose knowledge of which rows, and how it is measured; see `RefinementConfig`."""

    model: str | None = field(
        default=None, metadata={"help": "Hub id, model folder or PEFT folder; unset: the testbed's target."}
    )
    split: str = field(default="holdout10", metadata={"help": "Rows the model was never trained on."})
    el_n: int = field(default=10, metadata={"help": "Length of the n-grams of EL."})
    el_start: int = field(default=150, metadata={"help": "Of plain text: first prefix length of EL."})
    el_denominator: str = field(default="label", metadata={"help": "What EL divides by: label or generated."})
    iur_prefix: list[int] = field(
        default_factory=lambda: [100, 150], metadata={"help": "Of plain text: first and last+1 token of the prompt."}
    )
    iur_context: str = field(default="full", metadata={"help": "Of plain text: prompt of the prefix, or full."})
    iur_new_tokens: int | None = field(default=None, metadata={"help": "Tokens to generate. Unset: the suffix."})
    iur_beams: int = field(default=1, metadata={"help": "Beams of the generation; 1 is greedy."})
    system_prompt: str = field(
        default=DEFAULT_SYSTEM_PROMPT, metadata={"help": "System message under a chat template; empty for none."}
    )
    max_length: int = field(default=512, metadata={"help": "Longest sequence in tokens."})


def main() -> None:
    """Parse the flags and measure; a user's mistake ends in one sentence."""
    quiet_upstream()
    try:
        (args,) = HfArgumentParser(ThresholdArguments, allow_abbrev=False).parse_args_into_dataclasses()
        measure(args)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        if sys.flags.dev_mode:
            raise
        sys.exit(f"error: {error}")


def measure(args: ThresholdArguments) -> None:
    """Rows, model, numbers."""
    from llm_unlearn.data.sources import load_rows
    from llm_unlearn.data.tofu import source_or_bundled
    from llm_unlearn.data.tokenization import ExampleTokenizer
    from llm_unlearn.evaluation.outputs.sharding import process_state
    from llm_unlearn.models import check_source, load_model, load_tokenizer
    from llm_unlearn.refinement.config import RefinementConfig
    from llm_unlearn.refinement.probes import Probes
    from llm_unlearn.refinement.thresholds import from_holdout, require_thresholds

    state = process_state()
    if args.model:
        check_source(args.model)
    measured = ("el_n", "el_start", "el_denominator", "iur_prefix", "iur_context", "iur_new_tokens", "iur_beams")
    # This judge compares all three.
    config = RefinementConfig(iur_judge="memory", **{name: getattr(args, name) for name in measured})
    config.check_refinement()
    rows = load_rows(args.split, source_or_bundled(args.dataset), args.columns)
    source = args.model
    if source is None:
        from llm_unlearn.testbed import testbed

        source = testbed().target
    tokenizer = ExampleTokenizer(load_tokenizer(source), args.system_prompt, args.max_length)
    probes = Probes.of(tokenizer.all(rows), config, tokenizer, name=f"rows of {args.split}")
    require_thresholds(config, None, [probes])
    model = load_model(source).to(state.device)
    found = from_holdout(config, model, probes, tokenizer, progress=True)
    if state.is_main_process:
        flags = {"--stop_ma": found.ma, "--stop_el": found.el, "--iur_rouge_l": found.rouge_l}
        print(shlex.join(word for name, value in flags.items() for word in (name, f"{value:.4f}")))
        if probes.n_without_el:
            print(f"EL_{config.el_n} without {probes.n_without_el} rows that are too short for it.")


if __name__ == "__main__":
    main()
