"""A window: many responses written at once, from which further optimizer steps learn, in inner epochs.

(Gu et al., MiniLLM, arXiv:2306.08543: 256 responses, four epochs over them)

    prompts of the window -> every process writes its share -> appraised together -> all processes hold all of it
    each step: the next batch of the inner epoch's order, its own part in every process

Prompts and orders are drawn from (seed, window), so nothing depends on micro-batches or processes. Only a step of the
data set's that is smaller, as the last of its epoch may be, does: it takes the beginning of its batch, as much of it as
all processes' loaders have rows for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from stillhouse.rollout.drawing import Seed
from stillhouse.rollout.replay import Rollout, from_arrays, to_arrays
from stillhouse.training import processes

_PROMPTS, _ORDER = 3, 4  # what a seed is for; `on_policy` has the numbers before


class Window:
    """What was written at once, and how much of it has been learnt.

    Args:
        size: responses of a window, of all processes together; a multiple of `batch`.
        batch: examples of an optimizer step, of all processes together.
        epochs: inner epochs.
        seed: of the run.
        samples: of the training set, whose prompts are asked for in passes, each in an order of its own.
    """

    def __init__(self, size: int, batch: int, epochs: int, seed: int, samples: Sequence[int]) -> None:
        self.size, self.batch, self.epochs, self.seed, self.samples = size, batch, epochs, seed, sorted(samples)
        self._number, self._taken = -1, 0
        self._held: list[Rollout] = []

    @property
    def used(self) -> bool:
        """Whether nothing is left to learn, so that the next one must be written."""
        return not self._held

    def asked(self) -> tuple[list[int], list[Seed]]:
        """The samples of the next window that fall to this process, and what tells draws of one sample apart."""
        count, first = len(self.samples), (self._number + 1) * self.size
        passes = range(first // count, (first + self.size - 1) // count + 1)
        places = [place for turn in passes for place in self._permuted(_PROMPTS, turn, count)]
        drawn = [self.samples[place] for place in places[first % count :][: self.size]]
        turns: list[Seed] = [(drawn[:place].count(sample),) for place, sample in enumerate(drawn)]
        each = self.size // len(processes.joined([0]))
        mine = slice(processes.rank() * each, (processes.rank() + 1) * each)
        return drawn[mine], turns[mine]

    def _permuted(self, purpose: int, number: int, count: int) -> list[int]:
        return np.random.default_rng([self.seed, purpose, number]).permutation(count).tolist()

    def fill(self, written: Sequence[Rollout]) -> None:
        """Begin the next window with what every process wrote to what it was asked."""
        self._held = processes.joined(list(written))
        self._number, self._taken = self._number + 1, 0

    def take(self, parts: Sequence[int]) -> list[list[Rollout]]:
        """This process's part of the next step, as many responses in each micro-batch as `parts` says."""
        everybody = processes.joined([sum(parts)])
        epoch, step = divmod(self._taken, self.size // self.batch)
        order = self._permuted(_ORDER, self._number * self.epochs + epoch, self.size)
        before = step * self.batch + sum(everybody[: processes.rank()])
        mine = iter(order[before : before + sum(parts)])
        found = [[self._held[next(mine)] for _ in range(part)] for part in parts]
        self._taken += 1
        if self._taken == self.epochs * (self.size // self.batch):
            self._held = []
        return found

    def state(self) -> dict[str, Tensor]:
        """What the next process goes on with, as arrays; the same in all processes."""
        learnt = self._taken * self.batch
        return {"window.at": torch.tensor([self._number, learnt]), **to_arrays(self._held, "window")}

    def load(self, arrays: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave; with another batch at the beginning of the one that its place falls into."""
        self._number, learnt = arrays["window.at"].tolist()
        self._taken, self._held = learnt // self.batch, from_arrays(arrays, "window")
