"""Small predictions for methods: random hidden states under random heads."""

from __future__ import annotations

import torch
from torch import Tensor

from stillhouse.head import Head, Predictions


def predictions(seed: int, rows: int = 6, size: int = 5, vocabulary: int = 11) -> Predictions:
    """fp64, everything learnable."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, size, generator=generator, dtype=torch.float64).requires_grad_()
    weight = torch.randn(vocabulary, size, generator=generator, dtype=torch.float64).requires_grad_()
    labels = torch.randint(vocabulary, (rows,), generator=torch.Generator().manual_seed(99))
    return Predictions(hidden, Head(weight), labels, torch.zeros(rows, dtype=torch.long), positions=4 * rows)


def dense(side: Predictions) -> Tensor:
    """All logits [N, V], differentiable."""
    return side.hidden @ side.head.weight.T


def both() -> tuple[Predictions, Predictions]:
    """A student and a teacher of the same rows."""
    return predictions(1), predictions(2, size=7)
