"""The order of examples that puts like lengths into one batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices


class LengthGrouped(Sampler[int]):
    """transformers' length-grouped order, drawn from (seed, epoch) alone.

    transformers' own sampler draws it from torch's global random state, which dropout moves on: processes that train
    together could disagree on the order, and it asks the data set for every item to learn its length.

    Args:
        lengths: of every example.
        batch_size: examples of an optimizer step; every so many that follow each other are of like length.
        seed: of the run.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = list(lengths), batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Accelerate says it before every epoch, the first after a resume included."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        mixed = np.random.SeedSequence([self.seed, self.epoch]).generate_state(1)[0]  # torch reads 32 bits of a seed
        generator = torch.Generator().manual_seed(int(mixed))
        return iter(get_length_grouped_indices(self.lengths, self.batch_size, generator=generator))

    def __len__(self) -> int:
        return len(self.lengths)
