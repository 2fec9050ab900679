"""llm-unlearn: make a language model forget on request, as an adapter, and measure what happened.

The public names below are imported on first use, so that `import llm_unlearn` costs nothing.
"""

from importlib import import_module

from llm_unlearn.version import __version__

_PUBLIC = {
    "KnowledgeRequest": "requests",
    "load_tofu": "data.tofu",
    "load_rows": "data.sources",
    "ExampleTokenizer": "data.tokenization",
    "ForgetRetainDataset": "data.pairing",
    "DataCollatorForUnlearning": "data.collator",
    "UnlearningConfig": "config",
    "UnlearningTrainer": "trainer",
    "METHODS": "methods",
    "GradAscentConfig": "methods.grad_ascent",
    "GradAscentTrainer": "methods.grad_ascent",
    "GradDiffConfig": "methods.grad_diff",
    "GradDiffTrainer": "methods.grad_diff",
    "NPOConfig": "methods.npo",
    "NPOTrainer": "methods.npo",
    "SimNPOConfig": "methods.simnpo",
    "SimNPOTrainer": "methods.simnpo",
    "ICUConfig": "methods.icu",
    "ICUTrainer": "methods.icu",
    "IdkDPOConfig": "methods.idk_dpo",
    "IdkDPOTrainer": "methods.idk_dpo",
    "load_model": "models",
    "load_tokenizer": "models",
    "lora_config": "adapters",
    "save_adapter": "adapters",
    "merge_adapter": "adapters",
    "IterativeRefinement": "refinement.callback",
    "RefinementPlan": "refinement.plan",
    "Evaluator": "evaluation.evaluator",
    "EvalReport": "evaluation.report",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
