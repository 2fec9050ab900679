"""Which facts are expected to be hard to forget, and what such a forecast is worth."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats
from tiny import tiny_model, tiny_rows, tiny_tokenizer

from llm_unlearn.data.tokenization import ExampleTokenizer
from llm_unlearn.probes.counts import FactCount, FactCounts
from llm_unlearn.probes.forecast import calibrate, forecast_difficulty, measure_confidence
from llm_unlearn.probes.world import facts_of_world

FACTS = facts_of_world(tiny_rows(4))
IDS = [fact.id for fact in FACTS]


def counted(*counts, label="exposures in fine-tuning"):
    return FactCounts("counts", label, {name: FactCount(name, n) for name, n in zip(IDS, counts, strict=False)})


def probed(x, p, f, label="exposures in fine-tuning"):
    rows = [
        SimpleNamespace(x=a, confidence=b, forgetting=lambda outcome, c=c: c if outcome == "generation" else None)
        for a, b, c in zip(x, p, f, strict=True)
    ]
    return SimpleNamespace(label=label, known=lambda: tuple(rows))


def test_confidence_is_the_probability_of_the_answer_per_token():
    model, tokenize = tiny_model(), ExampleTokenizer(tiny_tokenizer())
    found = measure_confidence(model, tokenize, FACTS, progress=False)
    assert list(found) == IDS
    import torch

    for fact in FACTS:
        item = tokenize({"question": fact.question, "answer": fact.answer}, 0)
        with torch.no_grad():
            logps = model(input_ids=torch.tensor([item.input_ids])).logits[0].log_softmax(-1)
        own = [logps[t - 1, item.input_ids[t]] for t in range(item.prompt_length, len(item.input_ids))]
        assert found[fact.id] == pytest.approx(float(torch.stack(own).mean().exp()), rel=1e-4)


def test_an_uncalibrated_order_is_the_mean_of_two_ranks():
    """Ranks of counts 1, 2, 3.5, 3.5 and of confidence 4, 1, 2, 3: from 0 to 1, their means are .5, .167, .583, .75."""
    confidence = dict(zip(IDS, (0.9, 0.1, 0.2, 0.3), strict=True))
    forecast = forecast_difficulty(FACTS, counted(0, 5, 99, 99), confidence)
    assert [row.id for row in forecast.rows] == [IDS[3], IDS[2], IDS[0], IDS[1]]
    assert [row.difficulty for row in forecast.rows] == pytest.approx([0.75, 3.5 / 6, 0.5, 1 / 6])
    assert [row.level for row in forecast.rows] == ["hard", "hard", "medium", "easy"]
    assert [row.x for row in forecast.rows] == pytest.approx([2, 2, 0, np.log10(6)])
    assert all(row.predicted is None for row in forecast.rows)
    assert forecast.calibration is None and "Uncalibrated [ours]" in forecast.note
    header, first, *_ = forecast.cells()
    assert len(header) == len(first) and first[:1] == [IDS[3]] and first[-1] == "hard"
    assert forecast.cells(most=1) == [header, first]


def test_an_earlier_probe_calibrates_it():
    """F = .9 - .2 x - .1 p without noise: the coefficients come back, and facts left out are predicted."""
    random = np.random.default_rng(0)
    x, p = random.uniform(0, 3, 30), random.uniform(0, 1, 30)
    earlier = probed(x, p, 0.9 - 0.2 * x - 0.1 * p)
    confidence = dict(zip(IDS, (0.9, 0.1, 0.2, 0.3), strict=True))
    forecast = forecast_difficulty(FACTS, counted(0, 9, 99, 999), confidence, earlier)
    fitted = forecast.calibration
    assert (fitted.constant, fitted.of_x, fitted.of_confidence) == pytest.approx((0.9, -0.2, -0.1))
    assert (fitted.n, fitted.r2, fitted.rho) == (30, pytest.approx(1), pytest.approx(1))
    by_id = {row.id: row for row in forecast.rows}
    assert by_id[IDS[2]].predicted == pytest.approx(0.9 - 0.4 - 0.02)
    assert [row.id for row in forecast.rows] == IDS[::-1]
    assert forecast.cells()[1][-1] == "0.27" and "30 known facts" in forecast.note
    assert "do not use it" not in forecast.note


def test_a_fit_is_judged_by_the_facts_it_was_not_made_on():
    random = np.random.default_rng(1)
    x, p = random.uniform(0, 3, 25), random.uniform(0, 1, 25)
    f = 0.5 - 0.1 * x + random.normal(0, 0.1, 25)
    fitted = calibrate(probed(x, p, f), "exposures in fine-tuning")
    without = []
    for i in range(25):
        kept = np.arange(25) != i
        line = np.linalg.lstsq(np.column_stack([np.ones(24), x[kept], p[kept]]), f[kept], rcond=None)[0]
        without.append(line @ [1, x[i], p[i]])
    assert fitted.r2 == pytest.approx(1 - ((f - without) ** 2).sum() / ((f - f.mean()) ** 2).sum())
    assert fitted.rho == pytest.approx(stats.spearmanr(without, f).statistic)
    noise = calibrate(probed(x, p, random.normal(size=25)), "exposures in fine-tuning")
    assert noise.r2 < 0 and "do not use it" in noise.note
    flat = calibrate(probed(x, p, np.ones(25)), "exposures in fine-tuning")
    assert flat.r2 == 0 and flat.rho is None


def test_what_cannot_be_forecast_is_refused():
    confidence = dict.fromkeys(IDS, 0.5)
    with pytest.raises(ValueError, match="1 fact is to be forgotten"):
        forecast_difficulty(FACTS[:1], counted(1), confidence)
    with pytest.raises(ValueError, match="There is no count"):
        forecast_difficulty(FACTS, counted(1, 2, 3), confidence)
    with pytest.raises(ValueError, match="no base probability of fact 'forget/3'"):
        forecast_difficulty(FACTS, counted(1, 2, 3, 4), dict.fromkeys(IDS[:3], 0.5))
    x = np.arange(20.0)
    with pytest.raises(ValueError, match="counted proxy: views and this forecast counts exposures"):
        calibrate(probed(x, x, x, "proxy: views"), "exposures in fine-tuning")
    with pytest.raises(ValueError, match="19 known facts and a fit needs 20"):
        calibrate(probed(x[:19], x[:19], x[:19]), "exposures in fine-tuning")
    with pytest.raises(ValueError, match="same count"):
        calibrate(probed(np.ones(20), x, x), "exposures in fine-tuning")
    with pytest.raises(ValueError, match="no outcome 'p3'"):
        calibrate(probed(x, x, x), "exposures in fine-tuning", "p3")
