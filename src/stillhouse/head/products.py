"""What every pass over a head shares: the dtype of its products, one cast of its operands, and how gradients add up."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from stillhouse.head.blocks import Blocks, pieces
from stillhouse.head.lm_head import Head

# What a pass is differentiable by: hidden [N, d], weight [V', d], bias [V'] or None; and which of them are wanted.
Leaves = tuple[Tensor, Tensor, Tensor | None]
Wants = tuple[bool, bool, bool]


def compute_dtype(hidden: Tensor) -> torch.dtype:
    """The dtype of the matrix products: autocast's where it is on, as for any linear layer."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def statistics_dtype(hidden: Tensor) -> torch.dtype:
    """The dtype of row statistics and of sums: fp32, or fp64 for fp64."""
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32


class Products:
    """hidden @ weight.T a block of rows at a time, the operands cast once for the whole pass.

    The cast is a no-op where the dtypes agree; it gives no gradient.
    """

    def __init__(self, leaves: Leaves, head: Head, dtype: torch.dtype) -> None:
        hidden, weight, bias = leaves
        self.hidden = hidden.detach().to(dtype)  # [N, d]
        bias = None if bias is None else bias.detach().to(dtype)
        self.head = replace(head, weight=weight.detach().to(dtype), bias=bias)

    def of(self, rows: slice) -> Tensor:
        """[B, V] before scale and soft-cap; fresh, so that a gradient may be written over it."""
        return self.head.linear(self.hidden[rows])


class Gradients:
    """dH, dW and db of one pass, added up a block of rows at a time; None where nobody wants it.

    dW and db are added in fp32 (fp64 for fp64): over many blocks a bf16 sum would stop growing.
    """

    def __init__(self, leaves: Leaves, wants: Wants, dtype: torch.dtype) -> None:
        hidden, weight, bias = leaves
        sums = statistics_dtype(hidden)
        self._dtypes = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        self.hidden = torch.zeros_like(hidden, dtype=dtype) if wants[0] else None  # [N, d]
        self.weight = torch.zeros_like(weight, dtype=sums) if wants[1] else None  # [V', d]
        self.bias = torch.zeros_like(bias, dtype=sums) if wants[2] and bias is not None else None  # [V']

    @property
    def wanted(self) -> bool:
        """Whether there is anything to compute."""
        return any(part is not None for part in (self.hidden, self.weight, self.bias))

    def add(self, products: Products, rows: slice, gradient: Tensor, blocks: Blocks) -> None:
        """Add what `gradient`, by the products of these rows [B, V] and of their dtype, gives to all three."""
        hidden, vocabulary = products.hidden[rows], products.head.vocabulary
        if self.hidden is not None:
            torch.mm(gradient, products.head.weight[:vocabulary], out=self.hidden[rows])
        if self.weight is not None:
            for tile in pieces(vocabulary, blocks.vocabulary_tile):
                self.weight[tile] += gradient[:, tile].T @ hidden  # [tile, d], added in fp32
        if self.bias is not None:
            self.bias[:vocabulary] += gradient.sum(0, dtype=self.bias.dtype)

    def finished(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """dH, dW and db in the dtypes of what they are gradients of."""
        found = (self.hidden, self.weight, self.bias)
        hidden, weight, bias = (
            None if g is None else g.to(dtype) for g, dtype in zip(found, self._dtypes, strict=True)
        )
        return hidden, weight, bias
