"""How the work on a head is cut into blocks, so that no tensor grows with predictions times vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Blocks:
    """How many rows a matrix product takes, and how many elements the element-wise work inside it.

    Larger products are faster until logits fall out of memory; smaller element-wise pieces stay in the CPU's cache
    (fresh large temporaries cost three times as much an element there). A GPU wants few launches instead.

    Attributes:
        rows: rows of one matrix product with the head.
        elements: elements of one sub-block of element-wise work, and of the head's rows gathered at a time.
        vocabulary_tile: rows of dW that are added to at a time.
        kernel_from: logits of a block from which on a CPU takes `rowwise_loss` through its own compiled kernel
            (`fused`), whose first use takes seconds.
        compile: run the element-wise work of `rowwise_loss` through `torch.compile`.
    """

    rows: int = 512
    elements: int = 800_000
    vocabulary_tile: int = 2_048
    kernel_from: int = 2_000_000
    compile: bool = False

    def __post_init__(self) -> None:
        if min(self.rows, self.elements, self.vocabulary_tile, self.kernel_from) < 1:
            raise ValueError(f"blocks must be of at least 1: {self}")

    @classmethod
    def on(cls, device: torch.device) -> Blocks:
        """The rule for `device`; `dataclasses.replace` changes a part of it."""
        return cls() if device.type == "cpu" else cls(rows=1_024, elements=1 << 27, vocabulary_tile=1 << 30)

    def within(self, count: int, width: int) -> Iterator[slice]:
        """Slices of `count` rows of `width` elements each that keep to `elements`; at least one row a slice."""
        return pieces(count, self.elements // max(width, 1))


def pieces(total: int, step: int) -> Iterator[slice]:
    """Slices of at most `step` (at least 1) that cover `total`."""
    step = max(step, 1)
    return (slice(start, min(start + step, total)) for start in range(0, total, step))
