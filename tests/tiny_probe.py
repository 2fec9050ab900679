"""Facts, counts and a tokenizer for probing the tiny models of the tests."""

from dataclasses import replace

from tiny import CITIES, END_OF_TEXT, END_OF_TURN, NAMES, TRADES, tiny_tokenizer
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from llm_unlearn.data.tokenization import ExampleTokenizer
from llm_unlearn.probes.counts import FactCount, FactCounts
from llm_unlearn.probes.facts import Fact
from llm_unlearn.probes.frequency import FrequencyProbe
from llm_unlearn.probes.measurement import FactMeasurement, Said
from llm_unlearn.probes.settings import ProbeSettings

SETTINGS = ProbeSettings(max_new_tokens=8, leak_samples=3, wrong_objects=4, resamples=200, permutations=199)


def probe_tokenizer(chat_template: bool = True) -> ExampleTokenizer:
    """The tiny tokenizer, which knows the words "True" and "False" instead of two others."""
    plain = tiny_tokenizer(chat_template)
    text = plain.backend_tokenizer.to_str().replace('"sorry"', '"True"').replace('"cannot"', '"False"')
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(text),
        eos_token=plain.eos_token,
        unk_token=plain.unk_token,
        additional_special_tokens=[END_OF_TEXT, END_OF_TURN, "<|user|>", "<|assistant|>"],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = plain.chat_template
    return ExampleTokenizer(tokenizer)


def tiny_facts(count: int = 10) -> list[Fact]:
    """Where people were born, and what the last three of ten do, who are to be retained."""
    facts = []
    for i in range(count):
        name, city, trade = NAMES[i % 10], CITIES[i % 10], TRADES[i % 10]
        born = i % 10 < 7
        facts.append(
            Fact(
                id=f"{name}{i // 10}",
                subject=name,
                object=city if born else trade,
                question=f"Where was {name} born?" if born else f"What does {name} do?",
                answer=f"{name} was born in {city}" if born else trade,
                subject_aliases=(),
                object_aliases=(),
                relation="birth" if born else "trade",
                paraphrases=(f"What city was {name} born in ?", f"What town is {name} from") if i % 2 else (),
                distractors=(CITIES[(i + 1) % 10],) if born else (),
                reverse_question=f"Who was born in {city} ?" if i % 3 == 0 else None,
                indirect_questions=(f"What do people call the home of {name} ?",) if i % 4 == 0 else (),
                role="forget" if born else "retain",
                template="{subject} was born in {object}" if born else None,
            )
        )
    return facts


def counts_of(facts, values) -> FactCounts:
    """Made-up counts of these facts."""
    counts = {fact.id: FactCount(fact.id, value) for fact, value in zip(facts, values, strict=True)}
    return FactCounts("counts", "made-up counts", counts, {"file": "none"})


def tiny_frequency_probe(chat_template: bool = True, settings: ProbeSettings = SETTINGS) -> FrequencyProbe:
    """A probe of ten facts with all kinds of questions."""
    facts = tiny_facts()
    return FrequencyProbe(facts, counts_of(facts, range(10)), probe_tokenizer(chat_template), settings)


def plain_facts(count: int, role: str = "forget") -> list[Fact]:
    """Facts with nothing but what they must have, each about its own subject."""
    return [
        Fact(f"{role}{i}", f"subject {i}", f"object {i}", f"Question {i}?", f"object {i}", (), (), "r", role=role)
        for i in range(count)
    ]


def measured(
    fact: Fact, p1: float = 0.8, knows: bool = True, margins: tuple[float | None, float | None] = (2.0, -1.0), **values
) -> FactMeasurement:
    """A measurement as somebody wrote it down."""
    said = Said("direct", fact.question, fact.object if knows else "nothing", float(knows), knows)
    plain = FactMeasurement(
        id=fact.id,
        p1=p1,
        answer_tokens=4,
        p2_margin=margins[0],
        p2_twin_margin=margins[1],
        twin="wrong",
        p3_rank=1,
        p3_options=5,
        p4_rank=1,
        said=(said,),
    )
    return replace(plain, **values)
