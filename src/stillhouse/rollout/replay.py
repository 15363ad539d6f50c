"""The responses that a run keeps of what its student wrote: tokens with their notes, saved and resumed as arrays."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Rollout:
    """A response that the student wrote.

    Attributes:
        sample: which example of the training set it answers.
        prompt: token ids.
        response: token ids, the one that ends it included.
        finished: whether there is one.
        log_probability: of each token of the response, when it was drawn.
        importance: of each, see `rollout.Response`.
        advantage: of each, where the method appraises what is written.
    """

    sample: int
    prompt: tuple[int, ...]
    response: tuple[int, ...]
    finished: bool
    log_probability: tuple[float, ...]
    importance: tuple[float, ...]
    advantage: tuple[float, ...]


_LISTS = tuple(field.name for field in fields(Rollout) if field.name not in ("sample", "finished"))
_IDS = ("prompt", "response")


class Replay:
    """The last `capacity` responses; the oldest make room.

    Every process holds the same ones, so that a sample does not depend on how many processes share the work.
    """

    def __init__(self, capacity: int) -> None:
        self._kept: deque[Rollout] = deque(maxlen=capacity)

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def full(self) -> bool:
        """Whether there is no room left."""
        return len(self._kept) == self._kept.maxlen

    def push(self, written: Iterable[Rollout]) -> None:
        """Add `written`, in that order."""
        self._kept.extend(written)

    def sample(self, count: int, seed: Sequence[int]) -> list[Rollout]:
        """`count` of them, drawn with `seed` without replacement; where there are too few, every one more than once."""
        random = np.random.default_rng(seed)
        places: list[int] = []
        while len(places) < count:
            places += random.permutation(len(self._kept)).tolist()
        return [self._kept[place] for place in places[:count]]

    def as_list(self) -> list[Rollout]:
        """All, the oldest first."""
        return list(self._kept)


def to_arrays(written: Sequence[Rollout], prefix: str) -> dict[str, Tensor]:
    """`written` as flat arrays by name, for a file of tensors."""
    found: dict[str, Tensor] = {
        f"{prefix}.sample": torch.tensor([one.sample for one in written], dtype=torch.long),
        f"{prefix}.finished": torch.tensor([one.finished for one in written], dtype=torch.bool),
    }
    for name in _LISTS:
        values = [getattr(one, name) for one in written]
        dtype = torch.long if name in _IDS else torch.float64
        found[f"{prefix}.{name}"] = torch.tensor([value for part in values for value in part], dtype=dtype)
        found[f"{prefix}.{name}.lengths"] = torch.tensor([len(part) for part in values], dtype=torch.long)
    return found


def from_arrays(arrays: Mapping[str, Tensor], prefix: str) -> list[Rollout]:
    """What `to_arrays` was given."""
    samples = arrays[f"{prefix}.sample"].tolist()
    columns = {
        name: [
            tuple(part.tolist())
            for part in arrays[f"{prefix}.{name}"].split(arrays[f"{prefix}.{name}.lengths"].tolist())
        ]
        for name in _LISTS
    }
    finished = arrays[f"{prefix}.finished"].tolist()
    return [
        Rollout(sample=samples[place], finished=finished[place], **{name: columns[name][place] for name in _LISTS})
        for place in range(len(samples))
    ]
