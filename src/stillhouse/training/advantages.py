"""What each token that was written is worth beside the others, and that kept with the responses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from stillhouse.rollout.replay import Rollout
from stillhouse.training import processes


def noted(rollouts: list[list[Rollout]], values: Sequence[Tensor]) -> list[list[Rollout]]:
    """`rollouts` with the advantages of their tokens, which are in a tensor for each part."""
    return [
        [
            replace(one, advantage=tuple(each.tolist()))
            for one, each in zip(part, value.float().split([len(one.response) for one in part]), strict=True)
        ]
        for part, value in zip(rollouts, values, strict=True)
    ]


def whitened(worths: Sequence[Tensor]) -> list[Tensor]:
    """At mean 0 and variance 1 over all of them and all processes; a bad number stays one, and stays alone."""
    joined = torch.cat(list(worths))
    sound = joined[joined.isfinite()]
    count, total, squares = processes.summed([float(len(sound)), float(sound.sum()), float(sound.square().sum())])
    mean = total / max(count, 1.0)
    deviation = max(squares / max(count, 1.0) - mean**2, 0.0) ** 0.5
    return [(worth - mean) / max(deviation, 1e-8) for worth in worths]
