"""The input embeddings of tokens that predictions were made after and of those that came next."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True)
class Embedded:
    """Input embeddings of one model beside its N predictions; no gradient goes into them.

    Attributes:
        inputs: [N, d], of the token that each prediction was made after.
        labels: [N, d], of the token that came next.
        filler: [d], of token 0, which the DSKD line has everywhere but at scored positions.
        hidden_deviation: scalar, the standard deviation of the last hidden states of the whole batch, prompts and
            padding included; None where nobody asked.
    """

    inputs: Tensor
    labels: Tensor
    filler: Tensor
    hidden_deviation: Tensor | None = None

    def at(self, rows: Tensor | slice) -> Embedded:
        """Those of `rows`."""
        return replace(self, inputs=self.inputs[rows], labels=self.labels[rows])
