"""The registry: every unlearning method, by the name of its file and recipe."""

from dataclasses import dataclass
from importlib import import_module

from llm_unlearn.suggest import unknown


@dataclass(frozen=True)
class Method:
    """One row of the registry. Classes are imported on demand, so that listing methods needs no torch.

    Attributes:
        title: what it does, in a few words.
        paper: arXiv number.
        class_prefix: `<class_prefix>Config` and `<class_prefix>Trainer` in the file of the method's name.
        needs: what the run needs beside the forget set.
    """

    title: str
    paper: str
    class_prefix: str
    needs: str

    def load(self) -> tuple[type, type]:
        """The method's config and trainer classes."""
        name = next(name for name, method in METHODS.items() if method is self)
        module = import_module(f"llm_unlearn.methods.{name}")
        return getattr(module, f"{self.class_prefix}Config"), getattr(module, f"{self.class_prefix}Trainer")


METHODS = {
    "grad_ascent": Method("raise the loss of the forget answers", "2401.06121", "GradAscent", "nothing"),
    "grad_diff": Method("ascent on forget, descent or KL on retain", "2401.06121", "GradDiff", "retain set"),
    "npo": Method("negative preference optimisation", "2404.05868", "NPO", "retain set, reference log-probs"),
    "simnpo": Method("length-normalised NPO without a reference", "2410.07163", "SimNPO", "retain set"),
    "icu": Method("ascent on forget, learning on analogues, refined", "2407.20271", "ICU", "retain set or pool"),
    "idk_dpo": Method("prefer a refusal to the answer", "2401.06121", "IdkDPO", "retain set, reference log-probs"),
}


def get_method(name: str) -> Method:
    """The method called `name`.

    Raises:
        ValueError: there is none; the message suggests the nearest.
    """
    if name not in METHODS:
        raise ValueError(unknown("method", name, METHODS))
    return METHODS[name]
