"""Which rows are of which response, how many, and where in it: what losses by the response and returns go by."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Responses:
    """N rows of S responses; those of each are in the order of its text, the responses by their number.

    Attributes:
        of_row: [N], which response a row is of, from 0.
        lengths: [S], rows of each; none is empty.
        place: [N], where in its response a row is, from 0.
    """

    of_row: Tensor
    lengths: Tensor
    place: Tensor

    @classmethod
    def of(cls, sequence: Tensor) -> Responses:
        """Those of `Predictions.sequence` [N]."""
        _, of_row, lengths = torch.unique(sequence, return_inverse=True, return_counts=True)
        order = of_row.argsort(stable=True)  # [N]
        starts = lengths.cumsum(0) - lengths  # [S]
        place = torch.empty_like(of_row)
        place[order] = torch.arange(len(of_row), device=of_row.device) - starts[of_row[order]]
        return cls(of_row, lengths, place)

    def __len__(self) -> int:
        return len(self.lengths)

    def shares(self, dtype: torch.dtype) -> Tensor:
        """[N], what share of its response a row is; so a sum weighted by them is a sum of means."""
        return self.lengths.to(dtype).reciprocal()[self.of_row]

    def means(self, values: Tensor) -> Tensor:
        """The mean over each response of `values` [N]: [S]."""
        return values.new_zeros(len(self)).index_add(0, self.of_row, values) / self.lengths

    def table(self, values: Tensor) -> Tensor:
        """`values` [N] as [S, L], 0 past the end of a response."""
        longest = int(self.lengths.max()) if len(self) else 0
        table = values.new_zeros(len(self), longest)
        table[self.of_row, self.place] = values
        return table
