"""What a run reports between two log lines, kept on the device until then."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class Meters:
    """Sums over the scored tokens since the last `read`; nothing leaves the device before it."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._scored = 0
        self._tokens: Tensor | None = None
        self._since = time.perf_counter()

    def add(self, sums: dict[str, Tensor], scored: int, attention_mask: Tensor) -> None:
        """Add one micro-batch: its named sums over `scored` tokens, and [B, L] of its real tokens."""
        for name, value in sums.items():
            self._sums[name] = self._sums[name] + value.detach() if name in self._sums else value.detach()
        self._scored += scored
        tokens = attention_mask.sum()
        self._tokens = tokens if self._tokens is None else self._tokens + tokens

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time of what happens inside (an evaluation, a save) from tokens a second."""
        began = time.perf_counter()
        yield
        self._since += time.perf_counter() - began

    def read(self) -> dict[str, float]:
        """Means a scored token of every sum, and real tokens a second, since the last read; then start anew."""
        if self._tokens is None or not self._scored:
            return {}
        names = list(self._sums)
        # One transfer for everything: each .item() would stop the device.
        numbers = torch.stack([self._sums[name].double() for name in names] + [self._tokens.double()]).tolist()
        means = {name: number / self._scored for name, number in zip(names, numbers[:-1], strict=True)}
        means["tokens_per_second"] = round(numbers[-1] / max(time.perf_counter() - self._since, 1e-9), 1)
        self.__init__()
        return means
