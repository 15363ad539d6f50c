"""What a run reports between two log lines, kept on the device until then."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


class Means:
    """Named sums and the weight they are divided by; nothing leaves the device."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._weight = 0.0

    def add(self, sums: Mapping[str, Tensor], weight: float) -> None:
        """Add sums over `weight` things."""
        for name, value in sums.items():
            self._sums[name] = self._sums[name] + value.detach() if name in self._sums else value.detach()
        self._weight += weight

    def read(self, over_ranks: Callable[[Tensor], Tensor] = lambda sums: sums) -> dict[str, Tensor]:
        """The mean of every sum, in fp64; `over_ranks` adds a vector up over processes. Then start anew."""
        names, sums, weight = list(self._sums), list(self._sums.values()), self._weight
        self.__init__()
        if not names:
            return {}
        vector = torch.stack([value.double() for value in sums] + [sums[0].new_tensor(weight).double()])
        vector = over_ranks(vector)
        return dict(zip(names, vector[:-1] / vector[-1], strict=True))


class Meters:
    """Means over the scored tokens since the last `read`, and how fast they came."""

    def __init__(self) -> None:
        self._means = Means()
        self._tokens: Tensor | None = None
        self._since = time.perf_counter()

    def add(self, sums: Mapping[str, Tensor], weight: float, attention_mask: Tensor) -> None:
        """Add one micro-batch: its named sums over `weight` scored tokens, and [B, L] of its real tokens."""
        self._means.add(sums, weight)
        tokens = attention_mask.sum()
        self._tokens = tokens if self._tokens is None else self._tokens + tokens

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time of what happens inside (an evaluation, a save) from tokens a second."""
        began = time.perf_counter()
        yield
        self._since += time.perf_counter() - began

    def read(self, over_ranks: Callable[[Tensor], Tensor] = lambda sums: sums) -> dict[str, float]:
        """Means a scored token of every sum, and real tokens a second, since the last read; then start anew.

        `over_ranks` adds a vector up over processes.
        """
        means = self._means.read(over_ranks)
        if self._tokens is None or not means:
            return {}
        # One transfer for everything: each .item() would stop the device.
        *values, tokens = torch.stack([*means.values(), over_ranks(self._tokens.double())]).tolist()
        line = dict(zip(means, values, strict=True))
        line["tokens_per_second"] = round(tokens / max(time.perf_counter() - self._since, 1e-9), 1)
        self.__init__()
        return line


def peak_memory(device: torch.device) -> float:
    """The most memory that this process has held so far, in GiB: of its accelerator, or of the machine on a CPU."""
    if device.type != "cpu":
        return torch.accelerator.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 2**10  # bytes there, KiB here
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
