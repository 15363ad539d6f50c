"""Next-token predictions kept as hidden states and a head, so that logits exist only where a loss is taken."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from stillhouse.head.lm_head import Head


@dataclass(frozen=True)
class Predictions:
    """N next-token predictions of one model.

    Attributes:
        hidden: [N, d], the last hidden state at the predicting positions.
        head: what turns them into logits.
        labels: [N], the token that came next.
        sequence: [N], which row of the batch a prediction belongs to.
    """

    hidden: Tensor
    head: Head
    labels: Tensor
    sequence: Tensor

    def __len__(self) -> int:
        return self.hidden.shape[0]

    def detach(self) -> Predictions:
        """The same predictions with no gradient to hidden states or head."""
        head = replace(
            self.head,
            weight=self.head.weight.detach(),
            bias=None if self.head.bias is None else self.head.bias.detach(),
        )
        return replace(self, hidden=self.hidden.detach(), head=head)


def at_scored(hidden: Tensor, head: Head, labels: Tensor, scored_at: Tensor) -> Predictions:
    """The predictions at the scored positions of a batch; prompt and padding are dropped here, before any logits.

    Args:
        hidden: [B, L, d]
        labels: [B, L], the next token where its position is scored (already shifted).
        scored_at: [N], indices into the flattened [B * L] positions. They come from the collator, on the CPU: finding
            them here would make a GPU wait for its host at every step.
    """
    length = labels.shape[1]
    return Predictions(
        hidden.flatten(0, 1)[scored_at],  # [N, d]
        head,
        labels.flatten()[scored_at],  # [N]
        scored_at // length,  # [N]
    )
