"""Small predictions with random heads, their logits by plain autograd, and the gradients that they were given."""

from __future__ import annotations

import torch
from torch import Tensor

from stillhouse.head import Blocks, Head, Predictions

SMALL = Blocks(rows=3, elements=40, vocabulary_tile=5)


def predictions(
    seed: int, rows: int, size: int, vocabulary: int, dtype: torch.dtype, padded: int = 0, **head: object
) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, size, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(vocabulary + padded, size, generator=generator, dtype=torch.float64).mul(0.7)
    labels = torch.randint(vocabulary, (rows,), generator=generator)
    made = Head(weight.to(dtype).requires_grad_(), vocabulary=vocabulary, **head)  # type: ignore[arg-type]
    return Predictions(hidden, made, labels, torch.zeros(rows, dtype=torch.long))


def logits(side: Predictions) -> Tensor:
    """The twin of all that is done a block at a time: every logit of every row at once, [N, V]."""
    z = side.hidden @ side.head.weight[: side.head.vocabulary].T
    z = z if side.head.bias is None else z + side.head.bias[: side.head.vocabulary]
    z = z * side.head.scale
    return z if side.head.softcap is None else side.head.softcap * torch.tanh(z / side.head.softcap)


def gradients(student: Predictions) -> list[Tensor]:
    leaves = [student.hidden, student.head.weight, *([student.head.bias] if student.head.bias is not None else [])]
    found = [leaf.grad.clone() for leaf in leaves if leaf.grad is not None]
    assert len(found) == len(leaves)
    for leaf in leaves:
        leaf.grad = None
    return found
