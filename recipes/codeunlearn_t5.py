# /// script
# dependencies = ["llm-unlearn[recipes]"]
# ///
r"""CodeUnlearn's own experiment: T5 translates literary text, and forgets a word without a gradient step.

    accelerate launch recipes/codeunlearn_t5.py --config codeunlearn_t5-paper

A bottleneck is trained in the encoder on pairs of sentences. Then, for each topic word, the codes are deleted that
sentences with the word use more often than the same sentences with other words do, in several strengths, and held-out
sentences are translated freely: by the model before training (zero-shot), with the bottleneck, and after the deletion.
On a corpus of your own, which may be small:

    accelerate launch recipes/codeunlearn_t5.py --model MODEL --dataset pairs.jsonl --num_codes 2000 \
        --topics love Julien --output_dir out/t5

`OUT/codebook` is the trained bottleneck with no request in force, `OUT/drop.md` and `drop.json` hold all scores, and
`translations.jsonl` the sentences. The parts are in `llm_unlearn/codebook/`.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from common import ModelArguments, at_a_terminal, parse

from llm_unlearn.codebook.flags import CodebookFlags

TOPICS = ["love", "Julien", "Wish", "Captain", "White", "Black", "Poor"]
METRICS = ["BLEU", "METEOR", "BERT-P"]
CONTROL = "control sentences"


@dataclass
class TranslationArguments(CodebookFlags):
    """The corpus, the topics, the bottleneck, and how codes are deleted."""

    dataset: str | None = field(default=None, metadata={"help": "Parallel corpus: hub id, folder or file."})
    split: str | None = field(
        default=None, metadata={"help": "Split of the corpus, of OPUS Books en-fr; rows as in en-fr[0:5000]."}
    )
    source_column: str = field(default="source", metadata={"help": "Column to translate; translation.en is nested."})
    target_column: str = field(default="target", metadata={"help": "Column with translations."})
    prefix: str = field(default="translate English to French: ", metadata={"help": "Task prefix before each source."})
    target_language: str = field(default="french", metadata={"help": "By which METEOR finds stems."})
    holdout: float = field(default=0.1, metadata={"help": "Share of source sentences that are not trained on."})
    topics: list[str] = field(default_factory=lambda: list(TOPICS), metadata={"help": "Words to forget, one by one."})
    topic_rows: int = field(default=200, metadata={"help": "Most held-out sentences with a topic word (D_T)."})
    control_rows: int = field(default=200, metadata={"help": "Held-out sentences without any topic word (D_R)."})
    min_rows: int = field(default=20, metadata={"help": "Fewest held-out sentences with a topic word."})
    select_from: Literal["heldout", "train"] = field(
        default="heldout", metadata={"help": "Sentences by which codes are chosen: D_T itself, or others, of training."}
    )
    control_variants: int = field(default=8, metadata={"help": "Control texts per sentence, with other words."})
    selection: Literal["paper", "corrected"] = field(
        default="paper", metadata={"help": "Rule by which codes are chosen: the paper's, or ours."}
    )
    levels: list[int] = field(default_factory=list, metadata={"help": "List lengths S', ascending. Unset: S, 2S, 4S."})
    mode: Literal["refill", "ablate"] = field(
        default="refill", metadata={"help": "Deleted codes are replaced by the next (the paper's), or say nothing."}
    )
    layer: int | None = field(default=None, metadata={"help": "Encoder layer, from 0. Unset: the third, the paper's."})
    site: Literal["block", "post_attn"] = field(
        default="post_attn", metadata={"help": "Replace a layer's output, or its input plus attention (the paper's)."}
    )
    num_codes: int = field(default=25_000, metadata={"help": "Codes K; the paper's for T5-small."})
    eval_rows: int = field(
        default=200, metadata={"help": "Held-out pairs on which the loss is compared with that without bottleneck."}
    )
    max_new_tokens: int = field(default=200, metadata={"help": "Longest translation in tokens."})
    bert_encoder: str | None = field(
        default=None, metadata={"help": "Encoder for BERTScore: hub id or folder. Unset: it is not measured."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace an earlier run in --output_dir."})

    def list_lengths(self) -> list[int]:
        """The list lengths S'.

        Raises:
            ValueError: they do not ascend, or there are not so many codes.
        """
        lengths = self.levels or [self.top_s * factor for factor in (1, 2, 4)]
        if lengths != sorted(set(lengths)) or not 1 <= lengths[0] <= lengths[-1] <= self.num_codes:
            raise ValueError(
                f"`--levels` is {lengths}: give list lengths from 1 to {self.num_codes} (`--num_codes`), ascending."
            )
        return lengths


@dataclass
class T5Arguments(ModelArguments):
    """trl's model flags for an encoder-decoder model; those of an adapter count under `--train lora`."""

    lora_task_type: str = field(default="SEQ_2_SEQ_LM", metadata={"help": "Kind of model under an adapter."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.load_in_4bit or self.load_in_8bit:
            raise ValueError("This recipe does not quantise: drop `--load_in_4bit` and `--load_in_8bit`.")

    def load(self, source: str, device: Any, adapter: bool) -> Any:
        """The model in `source`, on `device`."""
        from llm_unlearn.codebook.seq2seq import load_pair_model
        from llm_unlearn.run import resolve_dtype

        return load_pair_model(source, resolve_dtype(self.dtype, adapter), revision=self.model_revision).to(device)


def main() -> None:
    """Train, forget and compare with the flags of the command line."""
    with at_a_terminal():
        from llm_unlearn.codebook.trainer import CodeUnlearnConfig

        reproduce(*parse("codeunlearn_t5", sys.argv[1:], TranslationArguments, CodeUnlearnConfig, T5Arguments))


def reproduce(data_args: TranslationArguments, args: Any, model_args: T5Arguments) -> None:
    """The run: sentences, zero-shot scores, first weights, training, scores with the bottleneck, deletions, report."""
    from rich.console import Console
    from transformers import set_seed
    from trl import get_peft_config

    import llm_unlearn.run as run
    from llm_unlearn.codebook.card import codebook_card
    from llm_unlearn.codebook.model import get_codebook_model
    from llm_unlearn.codebook.parallel import load_pairs, with_prefix
    from llm_unlearn.codebook.topics import draw, topic_sets
    from llm_unlearn.codebook.trainer import CodeUnlearnTrainer
    from llm_unlearn.forecast import forecast_line
    from llm_unlearn.models import absolute, check_source, load_tokenizer
    from llm_unlearn.progress import RunLog, show_live_losses

    main_process = args.process_index == 0
    console = Console(quiet=not main_process, highlight=False)
    out = Path(args.output_dir)

    # Everything that can be wrong is found before a model is loaded.
    source = model_args.model_name_or_path
    checkpoint = run.check_output(out, args.resume_from_checkpoint, data_args.overwrite, source)
    if not source or not data_args.dataset:
        raise ValueError(
            "There is no embedded default for translation: give a model and a corpus (`--model`, `--dataset`), or take "
            "T5-small and OPUS Books from the hub (`--config codeunlearn_t5-paper`)."
        )
    check_source(source)
    config = data_args.codebook_config(args.seed)
    data_args.list_lengths()
    columns = (data_args.source_column, data_args.target_column)
    pairs, n_empty = load_pairs(data_args.dataset, data_args.split, *columns)
    sets = topic_sets(
        pairs,
        data_args.topics,
        share=data_args.holdout,
        most=data_args.topic_rows,
        fewest=data_args.min_rows,
        n_control=data_args.control_rows,
        variants=data_args.control_variants,
        select_from=data_args.select_from,
        seed=args.seed,
    )
    tokenizer = load_tokenizer(source)
    judge = Judge(data_args, tokenizer, args.max_length, main_process)
    console.print(
        f"{len(sets.train)} pairs to train on, {len(sets.held_out)} held out, {n_empty} empty ones left out. Held out "
        f"and measured on: {', '.join(f'{len(topic.target)} with {word!r}' for word, topic in sets.topics.items())}, "
        f"{len(sets.control)} with none of these."
    )

    model = model_args.load(source, args.device, adapter=args.train != "full")
    set_seed(args.seed)
    measured_on = {CONTROL: sets.control} | {word: topic.target for word, topic in sets.topics.items()}
    zero_shot = {name: judge(model, some, f"{name}, zero-shot") for name, some in measured_on.items()}
    codebook = get_codebook_model(model, config, whitened=args.init_whiten)
    codebook.config.base = {"source": absolute(source)}
    trainer = CodeUnlearnTrainer(
        codebook,
        args,
        with_prefix(sets.train, data_args.prefix),
        tokenizer,
        eval_dataset=with_prefix(draw(sets.held_out, data_args.eval_rows, args.seed), data_args.prefix),
        peft_config=get_peft_config(model_args) if args.train == "lora" else None,
        callbacks=[RunLog(out)],
    )
    show_live_losses(trainer)
    console.print(forecast_line(trainer))
    if checkpoint is None:
        lost = trainer.make_first_weights()
        console.print(f"First weights lose {lost:.1%} of the variance of layer {config.layer}'s activations.")
        if main_process:
            run.remove_earlier(out)
    trainer.train(resume_from_checkpoint=checkpoint)
    end = trainer.evaluate()
    held_out = f"Loss on held-out pairs {end['eval_loss']:.4f}; perplexity {end['eval_perplexity']:.2f}."
    console.print(held_out)
    if main_process:
        codebook.save_pretrained(out / "codebook", codebook_card(codebook, held_out))
        console.print(f"Wrote {out / 'codebook'}")
    model = codebook.base_model
    trained = {name: judge(model, some, f"{name}, codebook") for name, some in measured_on.items()}
    told = {
        "model": source,
        "pairs": {"train": len(sets.train), "held_out": len(sets.held_out), "empty": n_empty},
        "trained": args.train,
        "steps": trainer.state.global_step,
        "learning_rate": args.learning_rate,
        "l1_coef": args.l1_coef,
        "seed": args.seed,
    }
    deletions, refused, translations = forget_each(data_args, codebook, judge, sets, zero_shot, trained, args.seed)
    if main_process:
        told |= {"layer": config.layer, "refused": refused}
        report(data_args, deletions, translations, told, out, console)
    trainer.accelerator.wait_for_everyone()


def forget_each(
    data_args: TranslationArguments, codebook: Any, judge: "Judge", sets: Any, zero_shot: dict, trained: dict, seed: int
) -> tuple[list, dict[str, str], list[dict[str, str]]]:
    """Delete each topic in each strength: what that did, why some were not deleted, and sentences before and after."""
    from llm_unlearn.codebook.parallel import with_prefix
    from llm_unlearn.codebook.selection import CORRECTED, PAPER
    from llm_unlearn.codebook.trial import try_strengths
    from llm_unlearn.codebook.unlearner import CodeUnlearner

    unlearner = CodeUnlearner(codebook, judge.tokenize, progress=judge.progress)
    rule = {"paper": PAPER, "corrected": CORRECTED}[data_args.selection]
    levels = data_args.list_lengths()
    deletions, refused, translations = [], {}, []
    for word, topic in sets.topics.items():
        chosen_by, kept, swapped = (
            with_prefix(some, data_args.prefix) for some in (topic.chosen_by, sets.kept, topic.swapped)
        )
        try:
            plan = unlearner.plan(chosen_by, kept, id=word, control=swapped, rule=rule, levels=levels)
        except ValueError as error:
            # No code is specific to this word; the others still count.
            refused[word] = str(error).partition(":")[0]
            continue
        written: dict[tuple[int, str], list[str]] = {}

        def measure(length: int, chosen: str, word=word, topic=topic, written=written) -> dict[str, dict[str, float]]:
            what = f"{word!r} deleted, S' {length}, {chosen}"
            target = judge(codebook.base_model, topic.target, f"{word!r}, {what}")
            written[length, chosen] = target.texts
            control = judge(codebook.base_model, sets.control, f"{CONTROL}, {what}")
            return {"target": target.scores, "control": control.scores}

        before = ({"target": of[word].scores, "control": of[CONTROL].scores} for of in (zero_shot, trained))
        deletions += try_strengths(codebook, plan, data_args.mode, measure, *before, reasons=judge.reasons, seed=seed)
        strongest = written[levels[-1], "selected"]
        sides = zip(topic.target, zero_shot[word].texts, trained[word].texts, strongest, strict=True)
        translations += [
            {"topic": word, **pair, "zero_shot": first, "codebook": second, "deleted": third}
            for pair, first, second, third in sides
        ]
    return deletions, refused, translations


def report(
    data_args: TranslationArguments,
    deletions: list,
    translations: list[dict[str, str]],
    told: dict[str, Any],
    out: Path,
    console: Any,
) -> None:
    """Show and write drops and raw scores, of the strongest deletion of each topic and of all strengths."""
    import json

    from llm_unlearn.codebook.drop import drop_record
    from llm_unlearn.codebook.drop_tables import curve_table, drop_markdown, drop_table, summary_lines
    from llm_unlearn.evaluation.report import versions
    from llm_unlearn.files import write_json, write_text
    from llm_unlearn.paths import public_name

    last = data_args.list_lengths()[-1]
    strongest = [one for one in deletions if (one.list_length, one.chosen) == (last, "selected")]
    flags = {name: value for name, value in vars(data_args).items() if name != "overwrite"}
    provenance = {**flags, **told, "versions": versions()}
    # A path is personal.
    for name in ("model", "dataset", "bert_encoder"):
        provenance[name] = provenance[name] and public_name(provenance[name])
    write_json(out / "drop.json", drop_record(deletions, provenance))
    write_text(out / "drop.md", drop_markdown(strongest, deletions, METRICS))
    lines = (json.dumps(line, ensure_ascii=False) + "\n" for line in translations)
    write_text(out / "translations.jsonl", "".join(lines))
    console.print(drop_table(strongest, f"Codes deleted at S' = {last}"))
    console.print(curve_table(deletions, METRICS[:1], "All strengths"))
    for line in summary_lines(strongest, deletions, METRICS):
        console.print(line, soft_wrap=True)
    for word, reason in told["refused"].items():
        console.print(f"{word!r} was not deleted: {reason}.", soft_wrap=True)
    console.print(f"Wrote {out / 'drop.md'}")


@dataclass
class Judged:
    """Translations of some sentences, and their scores by metric."""

    texts: list[str]
    scores: dict[str, float]


class Judge:
    """Translates sentences freely and scores what comes out."""

    def __init__(self, data_args: TranslationArguments, tokenizer: Any, max_length: int, progress: bool):
        from llm_unlearn.codebook.seq2seq import PairTokenizer
        from llm_unlearn.evaluation.metrics.translation import require_language

        require_language(data_args.target_language)
        self.args, self.progress = data_args, progress
        self.tokenize = PairTokenizer(tokenizer, max_length=max_length)
        self.encoder = self._encoder(data_args.bert_encoder)
        self.reasons = {} if self.encoder else {"BERT-P": "no encoder was given (`--bert_encoder`)"}

    def __call__(self, model: Any, pairs: list[dict[str, str]], name: str) -> Judged:
        from llm_unlearn.codebook.parallel import with_prefix
        from llm_unlearn.codebook.seq2seq import translate
        from llm_unlearn.evaluation.metrics.similarity import bert_score
        from llm_unlearn.evaluation.metrics.translation import corpus_bleu, meteor

        items = self.tokenize.all(with_prefix(pairs, self.args.prefix))
        texts = translate(model, items, self.tokenize, self.args.max_new_tokens, name=name, progress=self.progress)
        references = [pair["completion"] for pair in pairs]
        scores = {
            "BLEU": corpus_bleu(texts, references),
            "METEOR": float(meteor(texts, references, self.args.target_language).mean()),
        }
        precision = None
        if self.encoder:
            vectors = zip(self.encoder.embed(texts), self.encoder.embed(references), strict=True)
            precisions = [bert_score(given, true).precision for given, true in vectors]
            precision = sum(precisions) / len(precisions)
        return Judged(texts, scores | {"BERT-P": precision})

    def _encoder(self, name: str | None) -> Any:
        from llm_unlearn.evaluation.outputs.embeddings import HubEncoder

        if not name:
            return None
        try:
            return HubEncoder(name, progress=False)
        except ValueError as error:
            raise ValueError(
                f"The encoder {name!r} could not be loaded: give a folder with an encoder in safetensors and its "
                "tokenizer or the name of one on the hub, or leave `--bert_encoder` out, and BERTScore is not measured."
            ) from error


if __name__ == "__main__":
    main()
