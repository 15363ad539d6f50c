"""How much each of several costs counts: MCW-KD's quadratic programme, solved in closed form."""

from __future__ import annotations

import torch
from torch import Tensor


def cost_weights(costs: Tensor, sigma: float = 2.0, floor: float = 0.01) -> Tensor:
    """The w that makes w c + sigma |w - 1/n|^2 least, of those of sum 1 and at least `floor`: [..., n] -> [..., n].

    w_i = max(floor, 1/n - (c_i + nu) / (2 sigma)), where nu makes their sum 1; found by a sort.

    Raises:
        ValueError: n times `floor` is above 1, or sigma not above 0.
    """
    count = costs.shape[-1]
    if count * floor > 1.0 or sigma <= 0.0:
        raise ValueError(f"no {count} weights of at least {floor:g} have the sum 1 (sigma {sigma:g})")
    above = 1.0 / count - costs / (2.0 * sigma) - floor  # what each would have above the floor, but for nu
    sums = above.sort(-1, descending=True)
    free = torch.arange(1, count + 1, device=costs.device)
    shifts = (sums.values.cumsum(-1) - (1.0 - count * floor)) / free  # [..., n] nu / (2 sigma) if so many are free
    last = ((sums.values - shifts) > 0).sum(-1, keepdim=True).clamp(min=1) - 1
    return (above - shifts.gather(-1, last)).clamp(min=0.0) + floor
