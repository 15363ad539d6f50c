"""Several batches as one, so that a teacher is asked once for all micro-batches of an optimizer step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from stillhouse.data.collate import Packed

Inputs = tuple[Tensor, Tensor | None, Packed | None]


def joined(batches: Sequence[dict[str, Any]]) -> Inputs:
    """Input ids, attention mask and packing of all `batches` in one.

    Padded batches go below each other, [sum of B, longest L], with further padding on the right; packed rows go end to
    end, [1, sum of T].
    """
    ids = [batch["input_ids"] for batch in batches]
    if "packed" in batches[0]:
        return torch.cat(ids, dim=1), None, _end_to_end([batch["packed"] for batch in batches])
    longest = max(rows.shape[1] for rows in ids)
    masks = [batch["attention_mask"] for batch in batches]
    wide_ids, wide_masks = ([pad(rows, (0, longest - rows.shape[1])) for rows in all_] for all_ in (ids, masks))
    return torch.cat(wide_ids), torch.cat(wide_masks), None


def _end_to_end(rows: Sequence[Packed]) -> Packed:
    starts = [0]
    for row in rows:
        starts.append(starts[-1] + row["position_ids"].shape[1])
    moved = [row["boundaries"][:-1] + start for row, start in zip(rows, starts, strict=False)]
    end = rows[-1]["boundaries"][-1:] + starts[-2]
    return {
        "position_ids": torch.cat([row["position_ids"] for row in rows], dim=1),
        "boundaries": torch.cat([*moved, end]),
        "longest": max(row["longest"] for row in rows),
        "sequence": torch.cat([row["sequence"] for row in rows]),  # nobody asks: each batch keeps its own
    }


def parted(hidden: Tensor, batches: Sequence[dict[str, Any]]) -> list[Tensor]:
    """What of the joined batches' hidden states is each batch's: [B, L, d] of each, or [1, T, d]."""
    shapes = [batch["input_ids"].shape for batch in batches]
    if "packed" in batches[0]:
        return list(hidden.split([length for _, length in shapes], dim=1))
    rows = hidden.split([count for count, _ in shapes])
    return [part[:, :length] for part, (_, length) in zip(rows, shapes, strict=True)]
