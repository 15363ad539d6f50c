"""Items of an `EncodedDataset`, padded on the right into a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

IGNORED = -100


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
            ids, scored = item["input_ids"], item["scored"][:-1]
            input_ids[row, : len(scored)] = ids[:-1]
            attention_mask[row, : len(scored)] = 1
            labels[row, : len(scored)] = np.where(scored, ids[1:], IGNORED)
        shifted = torch.from_numpy(labels)
        return {
            "input_ids": torch.from_numpy(input_ids),
            "attention_mask": torch.from_numpy(attention_mask),
            "scored": shifted != IGNORED,
            "labels": shifted,
            "scored_at": torch.from_numpy(np.flatnonzero(labels != IGNORED)),
            "sample": torch.tensor([item["sample"] for item in items], dtype=torch.long),
        }
