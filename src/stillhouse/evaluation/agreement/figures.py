"""From figures of rows to a line for each example, and from those lines to means, a table and measures.

A line holds sums and counts, so that everything else follows from the lines that are kept on disk:

    origin
    student, teacher    tokens, nll, entropy, right, bytes; spanned, the nll of the tokens whose bytes are known
    compared            rows of both
    sums                over those rows, of what `rows.together` gives; unreached_student, unreached_teacher and text
                        where the tokens are others
    bins                by the teacher and by the labels, see `reliability`
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from stillhouse.evaluation.agreement.reliability import binned, calibration
from stillhouse.evaluation.measures import Measure

Line = dict[str, Any]
SIDES = ("student", "teacher")
_OF_A_SIDE = ("nll", "entropy", "right")


def lines_of(
    origins: Sequence[str],
    sides: Sequence[tuple[Mapping[str, Tensor], Tensor, Tensor]],
    rows: tuple[Mapping[str, Tensor], Tensor],
    bins: int,
) -> list[Line]:
    """A line for each of the examples of a batch.

    Args:
        origins: of the examples.
        sides: of the student and of the teacher: what `alone` gave, the example of each row, the bytes of each [N], -1
            where they are unknown.
        rows: what `together` gave and more of the like, and the example of each row.
    """
    examples, (figures, sequence) = len(origins), rows
    lines: list[Line] = [{"origin": origin} for origin in origins]
    for who, (found, owner, widths) in zip(SIDES, sides, strict=True):
        known = {name: found[name] for name in _OF_A_SIDE}
        spanned = torch.where(widths >= 0, found["nll"], 0.0)
        known |= {"tokens": torch.ones_like(owner), "bytes": widths.clamp(min=0), "spanned": spanned}
        for line, sums in zip(lines, _sums(known, owner, examples), strict=True):
            line[who] = {name: int(value) if name in ("tokens", "bytes") else value for name, value in sums.items()}
    counts = _sums({"rows": torch.ones_like(sequence)}, sequence, examples)
    by_teacher = binned(figures["sure"], figures["trust"], sequence, examples, bins)
    found, owner, _ = sides[0]
    by_labels = binned(found["confidence"], found["right"], owner, examples, bins)
    parts = zip(lines, counts, _sums(figures, sequence, examples), by_teacher, by_labels, strict=True)
    for line, count, sums, teacher, labels in parts:
        line |= {"compared": int(count["rows"]), "sums": sums, "bins": {"teacher": teacher, "labels": labels}}
    return lines


def entry_of(lines: Sequence[Line], bins: int) -> dict[str, Any]:
    """The means over all tokens of a data file; there is at least one row that is compared."""
    compared = sum(line["compared"] for line in lines)
    means = {name: math.fsum(line["sums"][name] for line in lines) / compared for name in lines[0]["sums"]}
    entry: dict[str, Any] = {"examples": len(lines), "compared": compared}
    entry |= {who: _of_side([line[who] for line in lines]) for who in SIDES}
    entry |= {name: means[name] for name in ("forward_kl", "reverse_kl", "jsd", "tvd")}
    entry |= {name: 100 * means[name] for name in ("top1", "topk", "found")}
    if "text" in means:
        entry["text"] = 100 * means["text"]
        entry["unreached"] = {who: 100 * means[f"unreached_{who}"] for who in SIDES}
    else:
        entry |= {"text": None, "unreached": None}
    entry["calibration"] = {
        kind: calibration((line["bins"][kind] for line in lines), bins) for kind in ("teacher", "labels")
    }
    return entry


def measures_of(name: str, lines: Sequence[Line], top_k: int) -> list[Measure]:
    """What is compared between students, example by example; only what every example has."""
    found: dict[str, tuple[list[float | None], bool]] = {
        f"{name} bits per byte": ([_bits(line["student"]) for line in lines], False)
    }
    kinds = (
        ("forward KL", "forward_kl", 1, False),
        ("reverse KL", "reverse_kl", 1, False),
        ("JSD", "jsd", 1, False),
        ("TVD", "tvd", 1, False),
        ("top-1 agreement", "top1", 100, True),
        (f"top-{top_k} overlap", "topk", 100, True),
    )
    for title, key, factor, higher in kinds:
        means = [factor * line["sums"][key] / line["compared"] if line["compared"] else None for line in lines]
        found[f"{name} {title}"] = means, higher
    return [
        Measure(title, {0: [value for value in values if value is not None]}, higher)
        for title, (values, higher) in found.items()
        if None not in values
    ]


def _of_side(sides: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    total = {name: math.fsum(side[name] for side in sides) for name in sides[0]}
    tokens = total["tokens"]
    return {
        "tokens": int(tokens),
        "bytes": int(total["bytes"]),
        "cross_entropy": total["nll"] / tokens,
        "perplexity": math.exp(min(total["nll"] / tokens, 700.0)),
        "bits_per_byte": _bits(total),
        "entropy": total["entropy"] / tokens,
        "accuracy": 100 * total["right"] / tokens,
    }


def _bits(side: Mapping[str, Any]) -> float | None:
    return side["spanned"] / math.log(2) / side["bytes"] if side["bytes"] else None


def _sums(figures: Mapping[str, Tensor], sequence: Tensor, examples: int) -> list[dict[str, float]]:
    """The sums over the rows of each example."""
    names = list(figures)
    values = torch.stack([figures[name].double() for name in names])  # [figures, N]
    sums = torch.zeros(len(names), examples, dtype=torch.float64, device=values.device)
    return [dict(zip(names, column, strict=True)) for column in sums.index_add_(1, sequence, values).T.tolist()]
