"""Linear maps between the hidden states of two models, which belong to a method and are trained with the student."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def made(sizes: Mapping[str, tuple[int, int]], seed: int, *, bias: bool = True) -> nn.ModuleDict:
    """Projectors by name from their (in, out), fp32 with torch's default initialisation, drawn in this order."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        linear = {name: nn.Linear(*size, bias=bias, dtype=torch.float32, device="cpu") for name, size in sizes.items()}
    return nn.ModuleDict(linear)


def group(projectors: nn.ModuleDict, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
    """One optimizer group of all of them, biases included, as in the DSKD line."""
    return [{"params": list(projectors.parameters()), "lr": learning_rate, "weight_decay": weight_decay}]


def projected(projectors: nn.ModuleDict, name: str, rows: Tensor) -> Tensor:
    """[N, in] -> [N, out] in the projector's own dtype, whatever autocast is on."""
    linear: Any = projectors[name]
    with torch.autocast(rows.device.type, enabled=False):
        return linear(rows.to(linear.weight.dtype))
