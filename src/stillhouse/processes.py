"""The processes that a launcher started: what the first one does alone, and what all do together.

Under `python` there is one, and every function here is what it would be without the others.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import distributed

from stillhouse.mistakes import Mistake

Found = TypeVar("Found")


def is_first() -> bool:
    """Whether this process writes and speaks; asked of the launcher, so that it works before any group exists."""
    return int(os.environ.get("RANK", "0")) == 0


def launched() -> int:
    """How many processes the launcher (torchrun, accelerate) says there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """The number of this process, from 0."""
    return distributed.get_rank() if grouped() else 0


def by_first(work: Callable[[], Found]) -> Found:
    """What `work` gives, done by the first process alone and sent to all; its Mistake is everybody's."""
    if not grouped():
        return work()
    outcome: list[Any] = [None, None]
    if is_first():
        try:
            outcome[0] = work()
        except Mistake as mistake:
            outcome[1] = mistake
    distributed.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def summed(values: list[float]) -> list[float]:
    """`values` added up over all processes, in fp64."""
    if not grouped():
        return values
    device = None if "gloo" in distributed.get_backend() else torch.accelerator.current_accelerator()
    vector = torch.tensor(values, dtype=torch.float64, device=device)
    distributed.all_reduce(vector)
    return vector.tolist()


def share_of(items: list[Found], rank: int | None = None) -> list[Found]:
    """What of `items` falls to this process, or to the one of number `rank`; the first one never has fewer."""
    if not grouped():
        return items
    return items[distributed.get_rank() if rank is None else rank :: distributed.get_world_size()]


def joined(items: list[Found]) -> list[Found]:
    """The lists of all processes, one after the other."""
    if not grouped():
        return items
    lists: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(lists, items)
    return [item for part in lists for item in part]


def grouped() -> bool:
    """Whether there are several, and they know each other."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def meet() -> None:
    """Let the processes that a launcher started know each other, over gloo, from now on; each takes a device.

    They do not part again: a second group at the same address would race with the end of the first.
    """
    if launched() == 1 or distributed.is_initialized():
        return
    if torch.accelerator.is_available():
        torch.accelerator.set_device_index(int(os.environ.get("LOCAL_RANK", "0")) % torch.accelerator.device_count())
    distributed.init_process_group("gloo")
