"""What every pass over a head shares: the dtype of its products, one cast of its operands, and how gradients add up."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stillhouse.head.blocks import Blocks, pieces
from stillhouse.head.lm_head import Finish, Head

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
        self._buffer: Tensor | None = None

    def of(self, rows: slice) -> Tensor:
        """[B, V] before scale and soft-cap; a gradient may be written over it, and the next block is.

        One buffer serves all blocks: a fresh one costs a CPU as much in page faults as a good part of the product.
        """
        hidden, vocabulary = self.hidden[rows], self.head.vocabulary
        if self._buffer is None or len(self._buffer) < len(hidden):
            self._buffer = hidden.new_empty(len(hidden), vocabulary)  # [B, V]
        product, weight = self._buffer[: len(hidden)], self.head.weight[:vocabulary]
        if self.head.bias is None:
            return torch.mm(hidden, weight.T, out=product)
        return torch.addmm(self.head.bias[:vocabulary], hidden, weight.T, out=product)


class Gradients:
    """dH, dW and db of one pass, added up a block of rows at a time; None where nobody wants it.

    dW and db are added in fp32 (fp64 for fp64): over many blocks a bf16 sum would stop growing. Where there is one
    block, or the products are of that dtype anyway, the matrix product itself writes into dW or adds to it.

    Args:
        blocks: how many blocks `add` will be called with; None where others write into the sums.
    """

    def __init__(self, leaves: Leaves, wants: Wants, dtype: torch.dtype, blocks: int | None = None) -> None:
        hidden, weight, bias = leaves
        sums = statistics_dtype(hidden)
        self._dtypes = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        self._direct = blocks is not None and dtype == (weight.dtype if blocks == 1 else sums)
        self._empty = blocks is not None  # nothing is in `weight` yet, not even zeros: those cost a pass
        self.hidden = torch.zeros_like(hidden, dtype=dtype) if wants[0] else None  # [N, d]
        fresh = torch.empty_like if blocks else torch.zeros_like
        self.weight = fresh(weight, dtype=dtype if self._direct else sums) if wants[1] else None  # [V', d]
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
            self._add_weight(self.weight, gradient, hidden, blocks.vocabulary_tile)
        if self.bias is not None:
            self.bias[:vocabulary] += gradient.sum(0, dtype=self.bias.dtype)

    def _add_weight(self, weight: Tensor, gradient: Tensor, hidden: Tensor, tile_rows: int) -> None:
        vocabulary = gradient.shape[1]
        first, self._empty = self._empty, False
        if first:
            weight[vocabulary:].zero_()  # the padding of the vocabulary
        if self._direct and first:
            torch.mm(gradient.T, hidden, out=weight[:vocabulary])
        elif self._direct:
            weight[:vocabulary].addmm_(gradient.T, hidden)
        else:
            for tile in pieces(vocabulary, tile_rows):
                product = gradient[:, tile].T @ hidden  # [tile, d], added in fp32
                weight[tile].copy_(product) if first else weight[tile].add_(product)

    def finished(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """dH, dW and db in the dtypes of what they are gradients of."""
        if self._empty and self.weight is not None:
            self.weight.zero_()
        found = (self.hidden, self.weight, self.bias)
        hidden, weight, bias = (
            None if g is None else g.to(dtype) for g, dtype in zip(found, self._dtypes, strict=True)
        )
        return hidden, weight, bias


@dataclass(frozen=True)
class Plan:
    """How a pass that is repeated in the backward goes over a head; all but the leaves, which autograd keeps."""

    finish: Finish
    vocabulary: int
    temperature: float
    dtype: torch.dtype  # of the products
    blocks: Blocks

    @classmethod
    def of(cls, hidden: Tensor, head: Head, temperature: float, blocks: Blocks | None) -> Plan:
        """For `hidden` [N, d] under `head`; by default with the block sizes of its device."""
        chosen = blocks or Blocks.on(hidden.device)
        return cls(head.finishing, head.vocabulary, temperature, compute_dtype(hidden), chosen)

    def head(self, weight: Tensor, bias: Tensor | None) -> Head:
        """The head, from its leaves."""
        return Head(weight, bias, *self.finish, vocabulary=self.vocabulary)

    def products(self, leaves: Leaves) -> Products:
        """What is multiplied."""
        return Products(leaves, self.head(*leaves[1:]), self.dtype)
