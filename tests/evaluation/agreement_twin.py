"""Every figure of `evaluate agreement` from whole softmaxes in fp64, example by example and row by row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stillhouse.evaluation.agreement.held_out import HeldOut
from stillhouse.evaluation.agreement.pair import Pair


@dataclass
class Row:
    """What both say of one position, over the tokens that are compared."""

    q: Tensor
    p: Tensor
    q_tempered: Tensor
    p_tempered: Tensor


@dataclass
class Twin:
    """Flat lists over the whole file, and `examples`, the rows of each."""

    nll: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))
    entropy: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))
    right: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))
    confidence: list[float] = field(default_factory=list)
    examples: list[list[Row]] = field(default_factory=list)
    unreached: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))
    text: list[float] = field(default_factory=list)

    @property
    def rows(self) -> list[Row]:
        return [row for rows in self.examples for row in rows]


def logits_of(model: Any, item: dict[str, Any], vocabulary: int) -> tuple[Tensor, Tensor]:
    """Of the scored positions alone: logits [n, V] of the model's own forward, and labels [n]."""
    ids = torch.from_numpy(item["input_ids"])
    logits = model(input_ids=ids[None]).logits[0, :, :vocabulary].double()
    at = torch.from_numpy(np.flatnonzero(item["scored"]))
    return logits[at], ids[at + 1]


def entropy(p: Tensor) -> float:
    return -(p * p.clamp_min(1e-300).log()).sum().item()


def merged(p: Tensor, ids: np.ndarray, size: int, many: str) -> Tensor:
    """[size] the probability of the teacher tokens that go to each student token; all, or that of the first alone."""
    moved, taken = [0.0] * size, set()
    for student, probability in zip(ids[: len(p)].tolist(), p.tolist(), strict=True):
        if 0 <= student < size and not (many == "first" and student in taken):
            moved[student] += probability
            taken.add(student)
    return torch.tensor(moved, dtype=torch.float64)


@torch.no_grad()
def read(held: HeldOut, pair: Pair, models: Sequence[Any], temperature: float) -> Twin:
    """Both models read one example at a time, without a batch."""
    twin = Twin()
    sizes = len(pair.student), len(pair.teacher)
    for place in range(len(held.dataset)):
        item = held.dataset[place]
        items = item, item.get("teacher", item)
        sides = [logits_of(model, one, size) for model, one, size in zip(models, items, sizes, strict=True)]
        for which, (logits, labels) in enumerate(sides):
            for row, label in zip(logits.softmax(-1), labels.tolist(), strict=True):
                twin.nll[which].append(-math.log(row[label].item()))
                twin.entropy[which].append(entropy(row))
                twin.right[which].append(float(row.argmax().item() == label))
                if which == 0:
                    twin.confidence.append(row.max().item())
        count = len(sides[0][1])
        pairs = [(at, at) for at in range(count)]
        if "alignment" in item:
            pairs = [(ours[0], theirs[0]) for ours, theirs in item["alignment"].groups()]
        twin.examples.append(
            [_row(twin, pair, sides[0][0][ours], sides[1][0][theirs], temperature) for ours, theirs in pairs]
        )
    return twin


def _row(twin: Twin, pair: Pair, z: Tensor, y: Tensor, temperature: float) -> Row:
    q, p = z.softmax(-1), y.softmax(-1)
    if pair.map is not None:
        targets = pair.map[: len(y)]
        reached = torch.zeros(len(q), dtype=torch.bool)
        reached[torch.from_numpy(targets[(targets >= 0) & (targets < len(q))].astype(np.int64))] = True
        p = merged(p, pair.map, len(q), pair.many)
        twin.unreached[0].append(1 - q[reached].sum().item())
        twin.unreached[1].append(1 - p.sum().item())
        q, p = q[reached] / q[reached].sum(), p[reached] / p.sum()
        ours, theirs = pair.student, pair.teacher
        a, b = int(z.argmax()), int(y.argmax())
        ends = a == ours.eos_token_id, b == theirs.eos_token_id
        same = all(ends) if any(ends) else ours.decode([a]) == theirs.decode([b])
        twin.text.append(float(same))
    return Row(q, p, tempered(q, temperature), tempered(p, temperature))


def tempered(p: Tensor, temperature: float) -> Tensor:
    """Of the tokens that are compared: a temperature comes after the map."""
    return (p.log() / temperature).softmax(-1)


def kl(p: Tensor, q: Tensor) -> float:
    kept = p > 0
    return (p[kept] * (p[kept].log() - q[kept].log())).sum().item()


def divergences(row: Row) -> dict[str, float]:
    q, p = row.q_tempered, row.p_tempered
    m = (p + q) / 2
    return {
        "forward_kl": kl(p, q),
        "reverse_kl": kl(q, p),
        "jsd": (kl(p, m) + kl(q, m)) / 2,
        "tvd": (p - q).abs().sum().item() / 2,
    }


def agreements(row: Row, k: int) -> dict[str, float]:
    """In per cent."""
    tops = [set(side.argsort(descending=True)[:k].tolist()) for side in (row.q, row.p)]
    best = int(row.q.argmax()), int(row.p.argmax())
    return {
        "top1": 100.0 * (best[0] == best[1]),
        "topk": 100.0 * len(tops[0] & tops[1]) / k,
        "found": 100.0 * (best[1] in tops[0]),
    }


def error(stated: Sequence[float], true: Sequence[float], bins: int) -> float:
    """The expected calibration error."""
    total = 0.0
    for b in range(bins):
        here = [
            at
            for at, value in enumerate(stated)
            if b / bins <= value < (b + 1) / bins or (value == 1 and b == bins - 1)
        ]
        if here:
            total += abs(sum(stated[at] for at in here) - sum(true[at] for at in here))
    return total / len(stated)


def figures(twin: Twin, k: int, bins: int) -> dict[str, float]:
    """Means over the file, as the flat names of an entry."""
    rows = twin.rows
    found: dict[str, float] = {"compared": len(rows)}
    for which, who in enumerate(("student", "teacher")):
        found |= {
            f"{who} tokens": len(twin.nll[which]),
            f"{who} cross_entropy": fmean(twin.nll[which]),
            f"{who} perplexity": math.exp(fmean(twin.nll[which])),
            f"{who} entropy": fmean(twin.entropy[which]),
            f"{who} accuracy": 100 * fmean(twin.right[which]),
        }
        if twin.text:
            found[f"unreached {who}"] = 100 * fmean(twin.unreached[which])
    if twin.text:
        found["text"] = 100 * fmean(twin.text)
    each = [{**divergences(row), **agreements(row, k)} for row in rows]
    found |= {name: fmean(one[name] for one in each) for name in each[0]}
    sure = [row.q.max().item() for row in rows]
    trust = [row.p[int(row.q.argmax())].item() for row in rows]
    found["error teacher"] = error(sure, trust, bins)
    found["error labels"] = error(twin.confidence, twin.right[0], bins)
    return found


def flat(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry of agreement.json by the same names, without what the twin does not know."""
    found = {name: value for name, value in entry.items() if isinstance(value, int | float) and name != "examples"}
    for who in ("student", "teacher"):
        found |= {
            f"{who} {name}": value for name, value in entry[who].items() if name not in ("bytes", "bits_per_byte")
        }
        if entry["unreached"] is not None:
            found[f"unreached {who}"] = entry["unreached"][who]
    return found | {f"error {kind}": one["error"] for kind, one in entry["calibration"].items()}
