"""Next-token predictions kept as hidden states and a head, so that logits exist only where a loss is taken."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from stillhouse.head.blocks import Blocks
from stillhouse.head.lm_head import Head
from stillhouse.head.normalizer import log_normalizer
from stillhouse.head.sparse import TopK, gather, top_k


@dataclass(frozen=True)
class Predictions:
    """N next-token predictions of one model.

    What takes the whole vocabulary is done a block of rows at a time and gives no [N, V] tensor: `rowwise_loss`, and
    the three methods here. They are differentiable once by the hidden states and the head's weight and bias. Logits are
    fp32 (fp64 for fp64); the matrix products are in autocast's dtype where it is on.

    Attributes:
        hidden: [N, d], the last hidden state at the predicting positions.
        head: what turns them into logits.
        labels: [N], the token that came next.
        sequence: [N], which example of the batch a prediction belongs to.
        positions: of the whole batch that these are the scored ones of, prompts and padding included; 0 if unknown.
    """

    hidden: Tensor
    head: Head
    labels: Tensor
    sequence: Tensor
    positions: int = 0

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

    def top_k(self, k: int, blocks: Blocks | None = None) -> TopK:
        """The k likeliest tokens of each prediction, the likeliest first: logits [N, k] and ids [N, k].

        Which of several equal logits are taken is open, as in `torch.topk`; logits that differ by no more than the
        rounding of a matrix product may stand in either order.

        Raises:
            ValueError: k is not from 1 to the size of the vocabulary.
        """
        return top_k(self.hidden, self.head, k, blocks)

    def gather(self, ids: Tensor, blocks: Blocks | None = None) -> Tensor:
        """The logits at `ids` [N, k]: [N, k]. An id may stand in a row more than once.

        Raises:
            ValueError: ids are no integers [N, k], or (on a CPU; an accelerator asserts) no ids of the vocabulary.
        """
        return gather(self.hidden, self.head, ids, blocks)

    def log_normalizer(self, temperature: float = 1.0, blocks: Blocks | None = None) -> Tensor:
        """logsumexp over the vocabulary of logits / temperature, in nats: [N].

        So log q(id) at that temperature is `gather(ids) / temperature - log_normalizer(temperature)[:, None]`. The
        backward pass multiplies by the head again instead of keeping what was multiplied.

        Raises:
            ValueError: temperature is not above 0.
        """
        return log_normalizer(self.hidden, self.head, temperature, blocks)

    def logits(self) -> Tensor:
        """All logits at once, [N, V]: for tests and the inspector; training never calls it."""
        return self.head.logits(self.hidden)


def at_scored(
    hidden: Tensor, head: Head, labels: Tensor, scored_at: Tensor, sequence: Tensor | None = None
) -> Predictions:
    """The predictions at the scored positions of a batch; prompt and padding are dropped here, before any logits.

    Args:
        hidden: [B, L, d]
        labels: [B, L], the next token where its position is scored (already shifted).
        scored_at: [N], indices into the flattened [B * L] positions. They come from the collator, on the CPU: finding
            them here would make a GPU wait for its host at every step.
        sequence: [N], the example of each scored position, where a row holds several; by default the row.
    """
    length = labels.shape[1]
    return Predictions(
        hidden.flatten(0, 1)[scored_at],  # [N, d]
        head,
        labels.flatten()[scored_at],  # [N]
        scored_at // length if sequence is None else sequence,  # [N]
        labels.numel(),
    )
