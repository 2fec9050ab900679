"""TOFU's evaluation in the plain way of published harnesses, to compare with (`evaluate.py`).

One pass per metric and data set, one sequence per answer, batches of 16 in file order, ``model(labels=...)`` with
full-vocabulary fp32 logits, a `generate` call per set and batch, one backward pass per item for the gradient norm, one
`generate` call per prefix for extraction likelihood. Each metric is written straight from its definition, so that it
also checks the values of the fast way.
"""

import math
import zlib
from collections import defaultdict

import numpy as np
import torch
import torch.nn.functional as F

BATCH = 16


class PlainEvaluation:
    """The plain way, on sets of rows already tokenised.

    Args:
        model: a causal LM.
        tokenizer: an `ExampleTokenizer`.
        sets: `EvalSet`s by name.
        caps: most new tokens per set and row.
    """

    def __init__(self, model, tokenizer, sets, caps):
        self.model, self.tokenizer, self.sets, self.caps = model, tokenizer, sets, caps
        self.seconds = defaultdict(float)

    def default(self) -> dict[str, float]:
        """What a default run of TOFU measures: likelihoods, truth ratios, EM, ES, ROUGE, model utility."""
        values = {}
        for name, data in self.sets.items():
            if name == "holdout":
                continue
            values[f"{name}/probability"] = np.mean(np.exp(-self.losses(data.items)))
            values |= self.truth_ratio(name, data)
            if name in ("real_authors", "world_facts"):
                values[f"{name}/normalised_probability"] = self.normalised(data)
        forget = self.sets["forget"].items
        values["forget/exact_memorization"] = np.mean([h.float().mean().item() for h in self.hits(forget)])
        values["forget/extraction_strength"] = np.mean([_strength(h.tolist()) for h in self.hits(forget)])
        for name, data in self.sets.items():
            if name != "holdout":
                values[f"{name}/rouge_l_recall"] = np.mean(self.rouge(name, data))
        parts = [
            values[f"{name}/{metric}"]
            for name in ("retain", "real_authors", "world_facts")
            for metric in (
                "probability" if name == "retain" else "normalised_probability",
                "rouge_l_recall",
                "truth_ratio",
            )
        ]
        values["model_utility"] = len(parts) / sum(1 / part for part in parts)
        return values

    def everything(self) -> dict[str, float]:
        """The default, and every other metric, each with passes of its own."""
        values = self.default()
        self.rouge("holdout", self.sets["holdout"])
        members = [self.sets["forget"].items, self.sets["holdout"].items]
        attacks = {
            "mia_loss": self.losses,
            "mia_zlib": self.zlib,
            "mia_min_k": self.min_k,
            "mia_min_k_plus_plus": self.min_k_plus_plus,
            "mia_gradnorm": self.gradient_norms,
        }
        for name, attack in attacks.items():
            forget, holdout = (np.asarray(attack(items)) for items in members)
            values[name] = np.mean([(h > forget).mean() + (h == forget).mean() / 2 for h in holdout])
        values["forget/ma"] = np.mean([h.float().mean().item() for h in self.hits(members[0])])
        values["forget/el_10"] = np.nanmean(self.extraction_likelihood(members[0]))
        values["forget/zrf"] = np.mean(self.zrf(members[0]))
        values["holdout/zrf"] = np.mean(self.zrf(members[1]))
        return values

    # One forward per batch and call: nothing is remembered.

    @torch.no_grad()
    def forwards(self, items):
        """Per item its answer's logits and labels."""
        for at in range(0, len(items), BATCH):
            batch = items[at : at + BATCH]
            length = max(len(item.input_ids) for item in batch)
            ids = torch.zeros(len(batch), length, dtype=torch.long)
            labels = torch.full((len(batch), length), -100)
            mask = torch.zeros(len(batch), length, dtype=torch.long)
            for row, item in enumerate(batch):
                n = len(item.input_ids)
                ids[row, :n] = torch.tensor(item.input_ids)
                labels[row, item.prompt_length : n] = torch.tensor(item.answer_ids)
                mask[row, :n] = 1
            logits = self.model(input_ids=ids, attention_mask=mask, labels=labels).logits.float()
            for row in range(len(batch)):
                there = labels[row, 1:] != -100
                yield logits[row, :-1][there], labels[row, 1:][there]

    def losses(self, items):
        return np.array([F.cross_entropy(logits, labels).item() for logits, labels in self.forwards(items)])

    def hits(self, items):
        return [logits.argmax(-1) == labels for logits, labels in self.forwards(items)]

    def truth_ratio(self, name, data):
        true = [p[0] for p in data.paraphrases] if name in ("forget", "retain") else data.items
        true_losses = self.losses(true)
        wrong = self.losses([item for row in data.wrong for item in row])
        wrong_losses = wrong.reshape(len(true), -1).mean(1)
        ratio = np.exp(true_losses - wrong_losses)
        shown = np.minimum(ratio, 1 / ratio) if name == "forget" else np.maximum(0, 1 - ratio)
        return {f"{name}/truth_ratio": shown.mean()}

    def normalised(self, data):
        p = np.exp(-self.losses(data.items))
        wrong = np.exp(-self.losses([item for row in data.wrong for item in row])).reshape(len(p), -1)
        return np.mean(p / (p + wrong.sum(1)))

    def rouge(self, name, data):
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer(["rouge1", "rougeL"], use_stemmer=True)
        values = []
        for at in range(0, len(data.items), BATCH):
            batch = data.items[at : at + BATCH]
            caps = self.caps[name][at : at + BATCH]
            for row, text in enumerate(self.answers([item.prompt_ids for item in batch], caps)):
                values.append(scorer.score(data.rows[at + row]["answer"], text)["rougeL"].recall)
        return values

    @torch.no_grad()
    def generate(self, prompts, caps):
        """New ids, each row cut at its cap."""
        end = self.tokenizer.tokenizer.eos_token_id
        length = max(map(len, prompts))
        ids = torch.tensor([[end] * (length - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts])
        out = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max(caps),
            do_sample=False,
            repetition_penalty=1.0,
            eos_token_id=end,
            pad_token_id=end,
        )
        return [row[:cap] for row, cap in zip(out[:, length:].tolist(), caps, strict=True)]

    def answers(self, prompts, caps):
        end = self.tokenizer.tokenizer.eos_token_id
        for ids in self.generate(prompts, caps):
            yield self.tokenizer.decode(ids[: ids.index(end)] if end in ids else ids)

    def zlib(self, items):
        texts = [row["answer"] for data in self.sets.values() if data.items is items for row in data.rows]
        return self.losses(items) / np.array([len(zlib.compress(text.encode())) for text in texts])

    def min_k(self, items, k=0.4):
        scores = []
        for logits, labels in self.forwards(items):
            lowest = logits.log_softmax(-1).gather(1, labels[:, None])[:, 0].sort().values
            scores.append(-lowest[: max(1, int(k * len(lowest)))].mean().item())
        return scores

    def min_k_plus_plus(self, items, k=0.4):
        scores = []
        for logits, labels in self.forwards(items):
            log_p = logits.log_softmax(-1)
            mean = (log_p.exp() * log_p).sum(-1)
            std = (log_p.exp() * (log_p - mean[:, None]).square()).sum(-1).clamp_min(1e-6).sqrt()
            lowest = ((log_p.gather(1, labels[:, None])[:, 0] - mean) / std).sort().values
            scores.append(-lowest[: max(1, int(k * len(lowest)))].mean().item())
        return scores

    def gradient_norms(self, items):
        norms = []
        for item in items:
            labels = torch.tensor([[-100] * item.prompt_length + item.answer_ids])
            self.model.zero_grad()
            self.model(input_ids=torch.tensor([item.input_ids]), labels=labels).loss.backward()
            norms.append(np.mean([p.grad.norm().item() for p in self.model.parameters()]))
        self.model.zero_grad()
        return norms

    def extraction_likelihood(self, items, n=10):
        overlaps = [[] for _ in items]
        for t in range(max(len(item.answer_ids) for item in items)):
            rows = [row for row, item in enumerate(items) if t <= len(item.answer_ids) - n]
            for at in range(0, len(rows), BATCH):
                batch = rows[at : at + BATCH]
                prompts = [items[row].prompt_ids + items[row].answer_ids[:t] for row in batch]
                caps = [len(items[row].answer_ids) - t for row in batch]
                for row, ids, cap in zip(batch, self.generate(prompts, caps), caps, strict=True):
                    end = self.tokenizer.tokenizer.eos_token_id
                    ids = ids[: ids.index(end) + 1] if end in ids else ids
                    label = items[row].answer_ids[t:]
                    grams = {tuple(label[i : i + n]) for i in range(len(label) - n + 1)}
                    found = sum(tuple(ids[i : i + n]) in grams for i in range(len(ids) - n + 1))
                    overlaps[row].append(found / (cap - n + 1))
        return [np.mean(values) if values else math.nan for values in overlaps]

    def zrf(self, items):
        size = self.model.get_output_embeddings().weight.shape[0]
        counts = torch.ones(size)
        for data in self.sets.values():
            for item in data.items:
                counts += torch.bincount(torch.tensor(item.answer_ids), minlength=size)
        teacher = counts / counts.sum()
        values = []
        for logits, _ in self.forwards(items):
            p = logits.softmax(-1)
            middle = (p + teacher) / 2
            first = torch.where(p > 0, p * (p.log2() - middle.log2()), 0).sum(-1)
            second = (teacher * (teacher.log2() - middle.log2())).sum(-1)
            values.append(1 - ((first + second) / 2).mean().item())
        return values


def _strength(hits: list[bool]) -> float:
    """From the definition: the shortest prefix after which all is reproduced, the whole answer if need be."""
    return 1 - next(k for k in range(len(hits) + 1) if all(hits[k:])) / len(hits)
