"""How the tests of codebooks make one: a tiny model with a bottleneck in it, and a trainer for it."""

from pathlib import Path

import torch
from tiny import tiny_model, tiny_rows, tiny_tokenizer
from transformers import PreTrainedModel, T5Config, T5ForConditionalGeneration

from llm_unlearn.adapters import lora_config
from llm_unlearn.codebook.bottleneck import CodebookBottleneck
from llm_unlearn.codebook.config import CodebookConfig
from llm_unlearn.codebook.model import CodebookModel, get_codebook_model
from llm_unlearn.codebook.registry import DeletionRecord
from llm_unlearn.codebook.trainer import CodeUnlearnConfig, CodeUnlearnTrainer
from llm_unlearn.data.collator import collate
from llm_unlearn.data.tokenization import ExampleTokenizer

FAMILIES = ["llama", "qwen2", "gpt2", "gpt_neox"]
# The usual GPT-NeoX has no place between attention and feed-forward; the other three kinds have.
SITES = [(family, "block") for family in FAMILIES] + [(family, "post_attn") for family in FAMILIES[:3]]
IDS = torch.arange(5, 25).reshape(2, 10)


def tiny_bottleneck(num_codes: int, top_s: int, *, d_model: int = 8, **options) -> CodebookBottleneck:
    """A bottleneck by itself, with random weights."""
    return CodebookBottleneck(CodebookConfig(layer=0, d_model=d_model, num_codes=num_codes, top_s=top_s, **options))


def tiny_t5(seed: int = 0) -> PreTrainedModel:
    """A random T5 of width 32 with four encoder layers, in eval mode."""
    config = T5Config(
        vocab_size=120, d_model=32, d_kv=8, d_ff=64, num_layers=4, num_decoder_layers=2, num_heads=4,
        initializer_factor=2.0, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return T5ForConditionalGeneration(config).eval()


def tiny_codebook(model: PreTrainedModel | str = "llama", **options) -> CodebookModel:
    """A bottleneck of 40 codes, 3 for a token, in the first of the two layers of a tiny model."""
    model = tiny_model(model) if isinstance(model, str) else model
    return get_codebook_model(model, CodebookConfig(**{"layer": 0, "num_codes": 40, "top_s": 3, **options}))


@torch.no_grad()
def trained_like(codebook: CodebookModel, n_rows: int = 20) -> CodebookModel:
    """With weights as training leaves them: codes of all sorts of tokens, and the decoder that makes the
    best of them."""
    batch = collate(ExampleTokenizer(tiny_tokenizer()).all(tiny_rows(n_rows)))
    (x,) = codebook.site.captured(lambda: codebook.base_model(input_ids=batch["input_ids"]))
    counted = batch["attention_mask"].bool() & x.isfinite().all(-1)
    x, ids = x[counted].float(), batch["input_ids"][counted].tolist()
    bottleneck, config = codebook.bottleneck, codebook.config
    # Each token once, then each a second time, and so on; which come first is drawn.
    generator = torch.Generator().manual_seed(config.seed)
    random = torch.randperm(len(ids), generator=generator).tolist()
    seen: dict[int, int] = {}
    places = sorted((seen.setdefault(ids[i], 0), seen.update({ids[i]: seen[ids[i]] + 1}) or i) for i in random)
    codes = bottleneck.encode(x)[[i for _, i in places][: config.num_codes]]
    # Or the same token in the same place would be two codes, between which nothing decides.
    codes = codes * (1 + 0.01 * torch.randn(codes.shape, generator=generator))
    bottleneck.codebook.weight.copy_(codes / (config.top_s if config.combine == "sum" else 1))
    observed = []
    with bottleneck.observed(observed.append):
        bottleneck(x[None])
    # In fp64, so that it is the same bit for bit each time.
    q, x = torch.cat([observed[0].q[0], torch.ones(len(x), 1)], 1).double(), x.double()
    solution = torch.linalg.solve(q.T @ q + 0.01 * torch.eye(q.shape[1]), q.T @ x).T.float()
    bottleneck.dec.weight.copy_(solution[:, :-1])
    bottleneck.dec.bias.copy_(solution[:, -1])
    bottleneck.x_variance.copy_(x.var(0, correction=0).mean())
    return codebook


def delete(
    codebook: CodebookModel, mode: str, codes, request: str = "request", threshold: float = 3.0, triggers=None
) -> None:
    """Put one request into force; a gate's own codes trigger it where no others are given."""
    codes = tuple(sorted(int(code) for code in codes))
    gate = {"triggers": tuple(triggers or codes), "threshold": threshold} if mode == "gated" else {}
    codebook.registry.add(DeletionRecord(request, codes, mode, **gate))
    codebook.delete()


def used_codes(codebook: CodebookModel, ids: torch.Tensor = IDS, **inputs) -> list[list[list[int]]]:
    """The codes of each token of each text, nearest first."""
    seen = []
    with torch.no_grad(), codebook.bottleneck.observed(seen.append):
        codebook(input_ids=ids, **inputs)
    (observed,) = seen
    return observed.codes.tolist()


@torch.no_grad()
def logits_of(model, ids: torch.Tensor = IDS, **inputs) -> torch.Tensor:
    """Logits of one plain forward pass."""
    return model(input_ids=ids, **inputs).logits


def with_deletions(
    codebook: CodebookModel, mode: str, ids: torch.Tensor = IDS, threshold: float = 3.0
) -> CodebookModel:
    """Delete a quarter of the codes, those that a text uses most, so that it matters; "all": some in each mode."""
    counts = torch.tensor(used_codes(codebook, ids)).flatten().bincount(minlength=codebook.config.num_codes)
    codes = counts.argsort(descending=True)[:10].tolist()
    if mode == "all":
        delete(codebook, "refill", codes[:3], "one")
        delete(codebook, "ablate", codes[3:5], "two")
        delete(codebook, "gated", codes[5:], "three", threshold=threshold / 2, triggers=codes[5:8])
    elif mode != "none":
        delete(codebook, mode, codes, threshold=threshold)
    return codebook


def make_codebook_trainer(
    folder: Path | str,
    *,
    codebook: CodebookModel | None = None,
    n_rows: int = 12,
    callbacks=(),
    eval_rows: int = 0,
    **options,
) -> CodeUnlearnTrainer:
    """A trainer with batches of two rows for the bottleneck of a tiny Llama, by default for the bottleneck alone."""
    defaults = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "num_train_epochs": 1,
        "learning_rate": 1e-3,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
        "save_strategy": "no",
        "warmup_steps": 0,
    }  # fmt: skip
    args = CodeUnlearnConfig(output_dir=str(folder), **(defaults | options))
    return CodeUnlearnTrainer(
        trained_like(tiny_codebook()) if codebook is None else codebook,
        args,
        tiny_rows(n_rows),
        tiny_tokenizer(),
        eval_dataset=tiny_rows(eval_rows, first=40) if eval_rows else None,
        peft_config=lora_config(r=4, lora_alpha=8) if args.train == "lora" else None,
        callbacks=list(callbacks),
    )


def bottleneck_weights(codebook: CodebookModel) -> dict[str, torch.Tensor]:
    """Copies of all parameters and buffers of a bottleneck."""
    return {name: tensor.clone() for name, tensor in codebook.bottleneck.state_dict().items()}
