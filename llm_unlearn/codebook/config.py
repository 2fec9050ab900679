"""What a codebook bottleneck is, as a JSON file beside its weights."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal, get_args

from llm_unlearn.files import write_json
from llm_unlearn.models import CODEBOOK_CONFIG
from llm_unlearn.suggest import unknown

SCHEMA = "llm-unlearn/codebook/1"

Site = Literal["block", "post_attn"]


@dataclass
class CodebookConfig:
    """A bottleneck of `num_codes` vectors in one layer of a model.

    Of the defaults, `top_s` and `combine` are the paper's (arXiv 2410.10866, as its reviews report it), the others
    ours: what the paper's body says of them is not known to us.

    Attributes:
        layer (`int`, *optional*):
            Index of the layer, from 0. Unset: four tenths of the depth; of T5 the third encoder layer, as in the paper.
        site (`str`, *optional*, defaults to `"block"`):
            `"block"` replaces a layer's output; `"post_attn"` the sum of its input and its attention, as in the paper.
        num_codes (`int`, *optional*, defaults to 10000):
            K, the number of codes. The paper has 25,000 for T5-small.
        code_dim (`int`, *optional*):
            m, the length of a code. Unset: the width of the model.
        top_s (`int`, *optional*, defaults to 8):
            S, how many codes stand for a token.
        combine (`str`, *optional*, defaults to `"sum"`):
            `"sum"` or `"mean"` of the S codes; the same up to the codes' scale.
        norm (`str`, *optional*, defaults to `"rms"`):
            `"rms"` or `"layer"` norm of the encoder's input, without weights; `"none"` lets training diverge on some
            models and is there to show it.
        unit_z (`bool`, *optional*, defaults to `True`):
            Whether the encoder's output is brought to root mean square 1. The search does not see its length, so that
            nothing else keeps straight-through gradients from making it longer and longer.
        exempt_bos (`bool`, *optional*, defaults to `True`):
            Whether a begin token at the first position passes by unchanged. In a causal model it says nothing of the
            text, and its norm is a hundred times the others' in many models.
        seed (`int`, *optional*, defaults to 0):
            Of the initial weights.
        d_model (`int`, *optional*), base (`dict`, *optional*):
            Width of the model, and which model it is (`source`, `fingerprint`, `quantization`); filled in when the
            bottleneck is put in and when it is saved.

    Raises:
        ValueError: a value out of its range.
    """

    layer: int | None = None
    site: Site = "block"
    num_codes: int = 10_000
    code_dim: int | None = None
    top_s: int = 8
    combine: Literal["sum", "mean"] = "sum"
    norm: Literal["rms", "layer", "none"] = "rms"
    unit_z: bool = True
    exempt_bos: bool = True
    seed: int = 0
    d_model: int | None = None
    base: dict | None = None

    def __post_init__(self) -> None:
        for name, options in (
            ("site", get_args(Site)),
            ("combine", ("sum", "mean")),
            ("norm", ("rms", "layer", "none")),
        ):
            if getattr(self, name) not in options:
                raise ValueError(unknown(f"`{name}`", str(getattr(self, name)), options))
        for name in ("num_codes", "top_s"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; it must be at least 1.")
        if self.code_dim is not None and self.code_dim < 1:
            raise ValueError(f"`code_dim` is {self.code_dim}; it must be at least 1, or unset.")
        if self.top_s > self.num_codes:
            raise ValueError(
                f"`top_s` is {self.top_s}, but there are only {self.num_codes} codes: lower `top_s` or raise "
                "`num_codes`."
            )

    def save(self, folder: Path) -> None:
        """Write `codebook_config.json` into `folder`."""
        write_json(folder / CODEBOOK_CONFIG, {"schema": SCHEMA, **asdict(self)})

    @classmethod
    def load(cls, folder: str | Path) -> "CodebookConfig":
        """Read the config of a codebook folder.

        Raises:
            FileNotFoundError: `folder` is no codebook folder.
            ValueError: it was written by a version with another format.
        """
        path = Path(folder) / CODEBOOK_CONFIG
        if not path.is_file():
            raise FileNotFoundError(f"{folder} has no {CODEBOOK_CONFIG}: give the `codebook` folder of a run.")
        content = json.loads(path.read_text(encoding="utf-8"))
        schema = content.pop("schema", None)
        names = {field.name for field in fields(cls)}
        if schema != SCHEMA or content.keys() - names:
            raise ValueError(
                f"{path} has the format {schema!r}; this version reads {SCHEMA!r}: install the version that wrote it."
            )
        return cls(**content)
