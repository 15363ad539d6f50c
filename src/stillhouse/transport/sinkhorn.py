"""Entropic optimal transport by Sinkhorn's scaling, differentiated through the iterations that were taken.

Two vectors scale a kernel that stays as it is, which needs a kernel that is nowhere tiny: MCW-KD's exp(-0.1 C) is not.
Multi-Level OT's kernel is sharp (exp(-10 C) and beyond): slopes of such scalings overflow in fp32, so it normalises the
whole plan in turn, as its authors do (`methods.multi_level_ot.transport`).
"""

from __future__ import annotations

import torch
from torch import Tensor

FLOOR = 1e-9  # of denominators, as MCW-KD's code has it
TOLERANCE = 1e-6


def entropic_plan(
    kernel: Tensor,
    row_mass: float,
    column_mass: float,
    iterations: int,
    *,
    floor: float = FLOOR,
    tolerance: float = 0.0,
) -> Tensor:
    """diag(u) K diag(v), each row of the mass `row_mass` and each column near `column_mass`: [..., M, N].

    v = column_mass / (K' u + floor), then u = row_mass / (K v + floor), from u = row_mass.

    Args:
        kernel: [..., M, N], above 0.
        iterations: at most so many.
        floor: added to denominators.
        tolerance: stop where no u has moved by more than this share of itself in an iteration, and after one more,
            since gradients come to rest one later than values. 0: take all iterations.
    """
    u = kernel.new_full(kernel.shape[:-1], row_mass)  # [..., M]
    v = kernel.new_full((*kernel.shape[:-2], kernel.shape[-1]), column_mass)  # [..., N]
    rested = False
    for _ in range(iterations):
        before = u
        v = column_mass / ((u.unsqueeze(-2) @ kernel).squeeze(-2) + floor)
        u = row_mass / ((kernel @ v.unsqueeze(-1)).squeeze(-1) + floor)
        if rested:
            break
        if tolerance:
            with torch.no_grad():
                rested = bool(((u - before).abs() <= tolerance * u).all())
    return u.unsqueeze(-1) * kernel * v.unsqueeze(-2)


def transport_cost(costs: Tensor, alpha: float = 0.1, iterations: int = 100, tolerance: float = TOLERANCE) -> Tensor:
    """sum P C of the entropic plan P with uniform marginals 1/M and 1/N and kernel exp(-alpha C): [M, N] -> scalar.

    (MCW-KD's primal form.) In fp32, or fp64 for fp64; early stopping leaves value and gradient what they are after
    all iterations, to 1e-6.

    Raises:
        ValueError: one side is empty.
    """
    if not costs.numel():
        raise ValueError(f"nothing can be carried between {costs.shape[0]} and {costs.shape[1]} positions")
    rows, columns = costs.shape
    with torch.autocast(costs.device.type, enabled=False):
        costs = costs if costs.dtype == torch.float64 else costs.float()
        plan = entropic_plan((-alpha * costs).exp(), 1.0 / rows, 1.0 / columns, iterations, tolerance=tolerance)
        return (plan * costs).sum()
