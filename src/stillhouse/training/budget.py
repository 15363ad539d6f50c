"""Batches that hold as many examples as fit into a number of positions, instead of a number of examples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

POOL = 64  # batches that are filled from one pool of examples: the last one of a pool stays emptier than the others

Lengths = NDArray[np.int64]


class TokenBudget(Sampler[list[int]]):
    """Which examples share a batch is drawn from the seed, the order of batches from (seed, epoch).

    Every epoch so has the same number of batches, which the schedule of a run is counted by, and every process as many.

    Args:
        streams: the positions of every example, once for each tokenisation that a batch is laid out in.
        budget: the most positions of a batch, padding included, in any of the streams.
        packed: whether examples lie end to end; else they are padded to the longest of the batch.
        seed: of the run.
        processes: the batches of an epoch are a multiple of it, filled up from the epoch's beginning.

    Raises:
        ValueError: an example has more positions than the budget.
    """

    def __init__(
        self, streams: Sequence[Sequence[int]], budget: int, *, packed: bool, seed: int, processes: int = 1
    ) -> None:
        lengths = np.array(streams, dtype=np.int64).T  # [n, streams]
        if lengths.max(initial=0) > budget:
            raise ValueError(f"an example has {lengths.max()} positions, but a batch at most {budget}")
        self.seed, self.epoch, self.processes = seed, 0, processes
        fill = _end_to_end if packed else _like_lengths
        order = np.random.default_rng(seed).permutation(len(lengths))
        pool = max(1, int(POOL * budget / max(1.0, lengths.mean(0).max(initial=0))))
        self.batches: list[list[int]] = []
        for start in range(0, len(order), pool):
            examples = order[start : start + pool]
            longest_first = examples[np.argsort(-lengths[examples].max(1), kind="stable")]
            self.batches += fill(longest_first, lengths, budget)

    def set_epoch(self, epoch: int) -> None:
        """The Trainer says it before every epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.batches))
        return iter([self.batches[index] for index in np.resize(order, len(self))])

    def __len__(self) -> int:
        return -(-len(self.batches) // self.processes) * self.processes


def _end_to_end(examples: NDArray[np.int64], lengths: Lengths, budget: int) -> list[list[int]]:
    """Each example into the first batch that has room for it in every stream."""
    room = np.full((len(examples), lengths.shape[1]), budget)
    batches: list[list[int]] = []
    for example in examples.tolist():
        place = int((room[: len(batches) + 1] >= lengths[example]).all(1).argmax())  # the last one is still empty
        if place == len(batches):
            batches.append([])
        batches[place].append(example)
        room[place] -= lengths[example]
    return batches


def _like_lengths(examples: NDArray[np.int64], lengths: Lengths, budget: int) -> list[list[int]]:
    """Neighbours of like length, while the padded batch fits in every stream."""
    batches: list[list[int]] = []
    longest = np.zeros(lengths.shape[1], dtype=np.int64)
    for example in examples.tolist():
        longest = np.maximum(longest, lengths[example])
        if not batches or (longest * (len(batches[-1]) + 1)).max() > budget:
            batches.append([])
            longest = lengths[example]
        batches[-1].append(example)
    return batches
