"""Whether a probability that a model states is what comes true: bins of equal width, and the gap over all of them.

The expected calibration error is sum over bins of n_b / N |mean confidence - mean truth| (Naeini et al., 2015). The
truth of the student's likeliest token is here either the probability that the teacher gives it, or 1 where it is the
label and 0 elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

# A bin of one example: which it is, tokens, the sum of their confidences and of their truths.
Bin = tuple[int, int, float, float]


def binned(confidence: Tensor, truth: Tensor, sequence: Tensor, examples: int, bins: int) -> list[list[Bin]]:
    """The bins of each example that hold anything.

    Args:
        confidence: [N] in [0, 1]; bin b is from b / bins on, up to (b + 1) / bins, and the last one holds 1 as well.
        truth: [N] in [0, 1].
        sequence: [N] the example of each, from 0 to `examples` - 1.
    """
    within = (confidence * bins).long().clamp(0, bins - 1)  # [N]
    cell = sequence * bins + within
    sums = torch.zeros(3, examples * bins, dtype=torch.float64, device=confidence.device)
    values = torch.stack([torch.ones_like(confidence), confidence, truth]).double()  # [3, N]
    count, sure, true = sums.index_add_(1, cell, values).view(3, examples, bins).tolist()
    return [
        [(b, int(count[at][b]), sure[at][b], true[at][b]) for b in range(bins) if count[at][b]]
        for at in range(examples)
    ]


def calibration(found: Iterable[Iterable[Bin]], bins: int) -> dict[str, Any]:
    """The error, in [0, 1], and the table of all examples' bins; a bin without a token has no means."""
    count, sure, true = ([0.0] * bins for _ in range(3))
    for b, tokens, confidence, truth in (one for example in found for one in example):
        count[b] += tokens
        sure[b] += confidence
        true[b] += truth
    total = sum(count)
    return {
        "error": sum(abs(s - t) for s, t in zip(sure, true, strict=True)) / total,
        "confidence": sum(sure) / total,
        "truth": sum(true) / total,
        "table": [
            {
                "from": b / bins,
                "to": (b + 1) / bins,
                "tokens": int(count[b]),
                "confidence": sure[b] / count[b] if count[b] else None,
                "truth": true[b] / count[b] if count[b] else None,
            }
            for b in range(bins)
        ],
    }
