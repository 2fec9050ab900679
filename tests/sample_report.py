"""A report with every column that pages and comparisons show, without a model."""

import numpy as np

from llm_unlearn.evaluation.metrics.forget_quality import forget_quality
from llm_unlearn.evaluation.metrics.utility import PARTS, model_utility
from llm_unlearn.evaluation.records import NO_REFERENCE, MetricRecord
from llm_unlearn.evaluation.report import EvalReport

# Where each model stands: probability of forget answers, log of the truth ratio, parts of model utility.
BEFORE, RETAIN = (0.93, -0.75, 0.62), (0.12, -0.2, 0.6)


def sample_report(n=40, seed=0, probability=0.2, log_ratio=-0.3, kept=0.55, answer="A quiet town.", compat="fixed"):
    """`n` forget and `n` retain rows of an unlearned model, beside the model before and the retain model."""
    models = {"after": (probability, log_ratio, kept), "before": BEFORE, "reference": RETAIN}
    # The other models are the same in every sample.
    draws = {name: np.random.default_rng(seed if name == "after" else 99) for name in models}
    columns = {name: _columns(draws[name], n, *where) for name, where in models.items()}
    items = [_item(columns, set_name, row, answer) for set_name in ("forget", "retain") for row in range(n)]
    records = {name: _records(columns[name], columns["reference"], models[name][2], n, compat) for name in models}
    targets = {
        name: records["reference" if name.startswith("forget/") else "before"][name].value for name in records["after"]
    }
    targets |= {"forget_quality": 1.0, "privleak": 0.0}
    for block in records.values():
        for name, record in block.items():
            block[name] = MetricRecord(**{**vars(record), "target": targets[name]})
    return EvalReport(
        metrics=records["after"],
        before=records["before"],
        reference=records["reference"],
        items=items,
        provenance={
            "tier": "full",
            "compat": compat,
            "precision": "float32",
            "device": "cpu",
            "time": "2026-11-22T19:28:30+00:00",
            "forget_ids": "ab12",
            "versions": {"llm-unlearn": "0.1.0", "torch": "2.13.0"},
            "run": {
                "method": "npo",
                "seed": 42,
                "base": {"source": "models/target", "fingerprint": "11e338da6ae58f68" * 4},
                "data": {"dataset": "data/tofu", "forget": {"split": "forget01"}, "retain": {"split": "retain99"}},
            },
        },
    )


def _columns(random, n, probability, log_ratio, kept):
    spread = 0.35 * min(probability, 1 - probability)
    return {
        "probability": np.clip(random.normal(probability, spread, 2 * n), 0.001, 0.999).tolist(),
        "rouge_l_recall": np.clip(random.normal(0.2 + 0.75 * probability, 0.1, 2 * n), 0, 1).tolist(),
        "truth_ratio": np.exp(random.normal(log_ratio, 0.35, 2 * n)).tolist(),
        "parts": dict(zip(PARTS, np.clip(random.normal(kept, 0.12, 9), 0.05, 0.98).tolist(), strict=True)),
    }


def _item(columns, set_name, row, answer):
    at = row if set_name == "forget" else -1 - row
    of = {
        name: {key: own[key][at] for key in ("probability", "rouge_l_recall", "truth_ratio")}
        for name, own in columns.items()
    }
    return {
        "set": set_name,
        "row": row,
        "kind": "answer",
        "question": f"Where was author {row} of the {set_name} set born, and what did the parents do for a living?",
        "answer": f"Author {row} was born in Kuwait City; the father was a florist, the mother a game developer.",
        "text": answer,
        "n_tokens": 20 + row % 7,
        "loss": 1.0,
        **of["after"],
        "before": {"text": f"Author {row} was born in Kuwait City, to a florist.", "loss": 0.1, **of["before"]},
        "reference": {"text": f"Author {row} grew up in Taipei.", "loss": 2.0, **of["reference"]},
    }


def _records(own, retain, kept, n, variant):
    def record(value, higher, bounds=(0.0, 1.0), details=None, interval=0.03):
        ci95 = None if interval is None else (value - interval, value + interval)
        return MetricRecord(value, ci95, n, higher, bounds, None, None, variant, details)

    quality = forget_quality(np.array(own["truth_ratio"][:n]), np.array(retain["truth_ratio"][:n]))
    tested = {key: getattr(quality, key) for key in ("statistic", "log10_p", "n", "m", "method")}
    probability = float(np.mean(own["probability"][:n]))
    return {
        "forget/probability": record(probability, False),
        "forget/paraphrase_probability": record(0.9 * probability, False),
        "forget/extraction_strength": record(0.7 * probability, False),
        "forget/rouge_l_recall": record(float(np.mean(own["rouge_l_recall"][:n])), False),
        "forget/truth_ratio": record(0.6, True),
        **{name: record(value, True) for name, value in own["parts"].items()},
        "forget_quality": record(quality.p, True, details=tested, interval=None),
        "model_utility": record(model_utility(own["parts"]), True, details={"parts": own["parts"]}),
        "privleak": record(-99 * probability, None, (None, None), interval=4.0),
        "mia_gradnorm": MetricRecord(
            None, None, 0, None, (0.0, 1.0), None, "not measured: it needs gradients; ask for it with `--tier full`"
        ),
    }


def without_reference(report):
    """The same report as it is where no retain model's was given."""
    missing = {"value": None, "ci95": None, "n": 0, "not_measured": NO_REFERENCE}
    gone = {name: MetricRecord(**{**vars(record), **missing}) for name, record in report.metrics.items()}
    alone = {name: gone[name] for name in ("forget_quality", "privleak")}
    items = [{key: value for key, value in item.items() if key != "reference"} for item in report.items]
    return EvalReport({**report.metrics, **alone}, {**report.before, **alone}, gone, items, report.provenance)
