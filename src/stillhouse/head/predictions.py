"""Next-token predictions kept as hidden states and a head, so that logits exist only where a loss is taken."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stillhouse.head.blocks import Blocks
from stillhouse.head.embedded import Embedded
from stillhouse.head.lm_head import Head
from stillhouse.head.normalizer import log_normalizer
from stillhouse.head.pairing import Pairing
from stillhouse.head.products import statistics_dtype
from stillhouse.head.sampled import Sampled
from stillhouse.head.sparse import Survey, TopK, gather, survey, top_k
from stillhouse.head.translation import Translation


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
        inputs: [N], the token that each prediction was made after; None if unknown.
        pairing: of a teacher with a tokenizer of its own: how its rows correspond to the student's. None: one by one.
        translation: of such a teacher: how its tokens correspond to the student's. None: they are the same.
        embedded: the model's input embeddings of what was read and of what came next, for methods that ask for them.
        sampled: of a student's: what was noted of the labels when a model wrote them; None: nobody wrote in this run.
    """

    hidden: Tensor
    head: Head
    labels: Tensor
    sequence: Tensor
    positions: int = 0
    inputs: Tensor | None = None
    pairing: Pairing | None = None
    translation: Translation | None = None
    embedded: Embedded | None = None
    sampled: Sampled | None = None

    def __len__(self) -> int:
        return self.hidden.shape[0]

    def detach(self) -> Predictions:
        """The same predictions with no gradient to hidden states or head."""
        return replace(self, hidden=self.hidden.detach(), head=self.head.detach())

    def at(self, rows: Tensor) -> Predictions:
        """Those of `rows` [M], in that order; a row may come more than once."""
        return self._chosen(rows)

    def part(self, rows: slice) -> Predictions:
        """A run of rows, without a copy."""
        return self._chosen(rows)

    def _chosen(self, rows: Tensor | slice) -> Predictions:
        return replace(
            self,
            hidden=self.hidden[rows],
            labels=self.labels[rows],
            sequence=self.sequence[rows],
            inputs=None if self.inputs is None else self.inputs[rows],
            pairing=None,
            embedded=None if self.embedded is None else self.embedded.at(rows),
            sampled=None if self.sampled is None else self.sampled.at(rows),
        )

    def means(self, index: Tensor, bounds: Tensor) -> Predictions:
        """One prediction for each group of rows, whose logits before soft-cap are the mean of the group's.

        A head is linear, so that is the head of the mean hidden state. Label and sequence are those of the first row.

        Args:
            index: [K] rows, group by group.
            bounds: [M + 1] where in `index` each group begins; none is empty.
        """
        if len(index) == len(bounds) - 1:
            return self.at(index)
        counts = bounds.diff()  # [M]
        group = torch.repeat_interleave(counts, output_size=len(index))  # [K]
        dtype = statistics_dtype(self.hidden)
        sums = self.hidden.new_zeros(len(counts), self.hidden.shape[1], dtype=dtype)  # [M, d]
        sums = sums.index_add(0, group, self.hidden[index].to(dtype)) / counts.unsqueeze(-1)
        return replace(self.at(index[bounds[:-1]]), hidden=sums.to(self.hidden.dtype))

    def top_k(self, k: int, blocks: Blocks | None = None) -> TopK:
        """The k likeliest tokens of each prediction, the likeliest first: logits [N, k] and ids [N, k].

        Which of several equal logits are taken is open, as in `torch.topk`; logits that differ by no more than the
        rounding of a matrix product may stand in either order.

        Raises:
            ValueError: k is not from 1 to the size of the vocabulary.
        """
        return top_k(self.hidden, self.head, k, blocks)

    def survey(self, k: int, *, entropies: bool = True, blocks: Blocks | None = None) -> Survey:
        """The k likeliest tokens of each prediction (k may be 0) and its entropy, in one pass without gradient.

        Raises:
            ValueError: k is above the size of the vocabulary.
        """
        if not 0 <= k <= self.head.vocabulary:
            raise ValueError(f"k must be from 0 to the {self.head.vocabulary} tokens of the vocabulary, got {k}")
        return survey(self.hidden, self.head, k, entropies=entropies, blocks=blocks)

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
    hidden: Tensor,
    head: Head,
    labels: Tensor,
    scored_at: Tensor,
    sequence: Tensor | None = None,
    input_ids: Tensor | None = None,
) -> Predictions:
    """The predictions at the scored positions of a batch; prompt and padding are dropped here, before any logits.

    Args:
        hidden: [B, L, d]
        labels: [B, L], the next token where its position is scored (already shifted).
        scored_at: [N], indices into the flattened [B * L] positions. They come from the collator, on the CPU: finding
            them here would make a GPU wait for its host at every step.
        sequence: [N], the example of each scored position, where a row holds several; by default the row.
        input_ids: [B, L], for whoever asks what was read at those positions.
    """
    length = labels.shape[1]
    return Predictions(
        hidden.flatten(0, 1)[scored_at],  # [N, d]
        head,
        labels.flatten()[scored_at],  # [N]
        scored_at // length if sequence is None else sequence,  # [N]
        labels.numel(),
        None if input_ids is None else input_ids.flatten()[scored_at],
    )


def parted(
    student: Predictions, teacher: Predictions
) -> tuple[tuple[Predictions, Predictions], tuple[Predictions, Predictions], Predictions]:
    """The rows of a student and of a teacher with a `pairing`, as it parts them.

    Returns:
        shared: aligned rows of both sides, the student's with labels that no other part has.
        apart: the other aligned rows of both sides, for which the student's labels say nothing.
        rest: the student's other rows, for their labels alone.
    """
    pairing = teacher.pairing
    if pairing is None:
        raise ValueError("these predictions correspond one by one; there is nothing to part")
    count = pairing.shared
    theirs = teacher.means(pairing.teacher_index, pairing.teacher_bounds)  # [M, D]
    ours = student.at(pairing.student_index[:count])
    merged = student.means(pairing.student_index[count:], pairing.student_bounds[count:] - count)
    return (ours, theirs.part(slice(count))), (merged, theirs.part(slice(count, None))), student.at(pairing.rest)
