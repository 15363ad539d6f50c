"""Items of an `EncodedDataset` as a batch: padded on the right, or packed end to end into one row.

Both give the same scored positions in the same order; they differ in what stands between them. What a batch says of one
tokenizer's ids is made by one call of a collator, so that a second tokenisation of the same items is collated apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

IGNORED = -100


class Packed(TypedDict):
    """Where the B examples of a packed row of T positions begin and end: all that keeps them apart.

    It is a plain dictionary when a program runs, because the Trainer and accelerate move tensors in those to a device.

    Attributes:
        position_ids: [1, T] long, anew from 0 at the first token of every example.
        boundaries: [B + 1] int32, the first position of every example, and T.
        longest: positions of the longest example; a number, because asking a device for it would make it wait.
        sequence: [N] long, the example of every scored position, from 0 to B - 1.
    """

    position_ids: Tensor
    boundaries: Tensor
    longest: int
    sequence: Tensor


class Collator:
    """Pads B items on the right to L positions: those of the longest, or `pad_to`.

    An item of n tokens has n - 1 positions: its last token is only ever predicted, never fed to the model.

    Args:
        pad_id: The token on padding; whatever it is, attention and scores leave it out.
        pad_to: A fixed L, for parity with loops that pad so.
    """

    def __init__(self, pad_id: int, pad_to: int | None = None) -> None:
        self.pad_id, self.pad_to = pad_id, pad_to

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """One batch.

        Returns:
            input_ids [B, L] long; attention_mask [B, L] long; scored [B, L] bool; labels [B, L] long, the next token
            where a position is scored and -100 elsewhere (already shifted); scored_at [N] long, the scored positions in
            the flattened [B * L], found here because finding them on an accelerator makes it wait; sample [B] long.

        Raises:
            ValueError: an item has more positions than `pad_to`.
        """
        longest = max(len(item["input_ids"]) - 1 for item in items)
        length = self.pad_to or longest
        if longest > length:
            raise ValueError(f"an item has {longest} positions, but pad_to is {length}")
        input_ids = np.full((len(items), length), self.pad_id, dtype=np.int64)  # [B, L]
        attention_mask = np.zeros((len(items), length), dtype=np.int64)  # [B, L]
        labels = np.full((len(items), length), IGNORED, dtype=np.int64)  # [B, L]
        for row, item in enumerate(items):
            ids, targets = _positions(item)
            input_ids[row, : len(ids)] = ids
            attention_mask[row, : len(ids)] = 1
            labels[row, : len(ids)] = targets
        return _batch(items, input_ids, labels) | {"attention_mask": torch.from_numpy(attention_mask)}


class PackingCollator:
    """Lays B items end to end in one row of T positions, without any padding.

    An item of n tokens has n - 1 positions, as in `Collator`: the row jumps from the last token but one of an example
    to the first of the next, so no position is ever scored on another example's token.
    """

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """One batch.

        Returns:
            input_ids [1, T] long; scored [1, T] bool; labels [1, T] long, as `Collator`'s; scored_at [N] long, the
            scored positions in [T]; sample [B] long; packed, a `Packed`. There is no attention_mask: a model that is
            given one takes the row for one text.
        """
        ids, targets = zip(*map(_positions, items), strict=True)
        lengths = np.array([len(part) for part in ids])  # [B]
        boundaries = np.concatenate([[0], lengths.cumsum()])  # [B + 1]
        examples = np.repeat(np.arange(len(items)), lengths)  # [T], the example of every position
        batch = _batch(items, np.concatenate(ids)[None], np.concatenate(targets)[None])
        packed: Packed = {
            "position_ids": torch.from_numpy(np.arange(len(examples)) - boundaries[examples])[None],
            "boundaries": torch.from_numpy(boundaries.astype(np.int32)),
            "longest": int(lengths.max()),
            "sequence": torch.from_numpy(examples)[batch["scored_at"]],
        }
        return {**batch, "packed": packed}


def _positions(item: dict[str, Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The ids [n - 1] that are fed, and the next token where it is scored, -100 elsewhere [n - 1]."""
    ids = item["input_ids"]
    return ids[:-1], np.where(item["scored"][:-1], ids[1:], IGNORED)


def _batch(
    items: Sequence[dict[str, Any]], input_ids: NDArray[np.int64], labels: NDArray[np.int64]
) -> dict[str, Tensor]:
    """What padded and packed batches have in common, from ids and labels of one shape."""
    shifted = torch.from_numpy(labels)
    return {
        "input_ids": torch.from_numpy(input_ids),
        "scored": shifted != IGNORED,
        "labels": shifted,
        "scored_at": torch.from_numpy(np.flatnonzero(labels != IGNORED)),
        "sample": torch.tensor([item["sample"] for item in items], dtype=torch.long),
    }
