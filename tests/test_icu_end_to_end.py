"""ICU on sequences that a model knows by heart: they go, what stands beside them stays, and the KL is why."""

import copy
import random

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer

from llm_unlearn.adapters import lora_config
from llm_unlearn.data.collator import collate
from llm_unlearn.data.tokenization import ExampleTokenizer
from llm_unlearn.forward import AnswerScores, answer_logits
from llm_unlearn.methods import METHODS
from llm_unlearn.refinement.callback import IterativeRefinement
from llm_unlearn.refinement.plan import RefinementPlan

TOKENIZE = ExampleTokenizer(tiny_tokenizer())


@pytest.fixture(scope="module")
def rows():
    """32 random sequences of 20 words: 16 to forget, 16 to keep."""
    words = [word for word, i in TOKENIZE.tokenizer.get_vocab().items() if i >= 5 and not word.startswith("<")]
    # The order of a vocabulary is not the same in every process.
    draw = random.Random(0)
    return [{"text": " ".join(draw.choice(sorted(words)) for _ in range(20))} for _ in range(32)]


def mean_ce(model, rows):
    with torch.no_grad():
        return -AnswerScores.of(answer_logits(model, model, collate(TOKENIZE.all(rows)))).means.mean()


@pytest.fixture(scope="module")
def target(rows):
    """A model that has learned all of them."""
    model, batch = tiny_model(), collate(TOKENIZE.all(rows))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0)
    for _ in range(200):
        loss = -AnswerScores.of(answer_logits(model, model, batch)).means.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.02
    return model


def unlearn(method, target, rows, folder, **options):
    """Epochs, EL_3 at the end, and what the CE of the kept sequences has become."""
    config, trainer_class = METHODS[method].load()
    own = {"kl_form": "kl", "kl_mask_pad": True} if method == "icu" else {"forget_cap": "none"}
    args = config(
        output_dir=str(folder), use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True,
        per_device_train_batch_size=8, gradient_accumulation_steps=1, num_train_epochs=30, learning_rate=3e-3,
        warmup_steps=0, lr_scheduler_type="constant", weight_decay=0.0, max_grad_norm=0.0, refine=True,
        iur_judge="none", stop_el=0.05, el_n=3, el_start=4, iur_prefix=[4, 8], **own, **options,
    )  # fmt: skip
    trainer = trainer_class(
        copy.deepcopy(target), args, rows[:16], TOKENIZE.tokenizer, retain_dataset=rows[16:],
        partners=[[i] for i in range(16)], peft_config=lora_config(r=8, lora_alpha=16),
    )  # fmt: skip
    IterativeRefinement(trainer, RefinementPlan.of(args, TOKENIZE.all(rows[:16]), TOKENIZE), progress=False)
    trainer.train()
    looks = [line for line in trainer.state.log_history if "refine/active" in line]
    return round(trainer.state.epoch), looks[-1]["refine/el"], mean_ce(trainer.model, rows[16:]).item()


def test_forgetting_with_analogues_keeps_them_and_without_the_kl_less_so(target, rows, tmp_path):
    """Measured over two seeds: CE .25 to .28 for ICU, .75 to 1.5 without its KL, 1.7 to 4.4 for ascent alone.

    The rate is one of two tried. At 1e-3 ICU kept more (.15, .18), but its EL was still .054 and .058 after 30 epochs.
    """
    assert mean_ce(target, rows[16:]) < 0.02
    epochs, el, kept = unlearn("icu", target, rows, tmp_path / "icu")
    assert epochs < 30 and el < 0.05 and kept < 0.5
    _, el, without_kl = unlearn("icu", target, rows, tmp_path / "without", kl_coef=0.0)
    assert el < 0.05 and without_kl > 2 * kept
    _, el, ascent = unlearn("grad_ascent", target, rows, tmp_path / "ascent", max_weight_growth=1e9)
    assert el < 0.05 and ascent > 3 * kept
