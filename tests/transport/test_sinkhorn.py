"""Entropic plans against plain iterations, without any stop."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stillhouse.transport import entropic_plan, transport_cost


def plain(costs: Tensor, iterations: int = 100, alpha: float = 0.1) -> Tensor:
    """MCW-KD's loop, as the paper writes it down."""
    rows, columns = costs.shape
    kernel = (-alpha * costs).exp()
    u, v = costs.new_full((rows,), 1 / rows), costs.new_zeros(columns)
    for _ in range(iterations):
        v = (1 / columns) / (kernel.T @ u + 1e-9)
        u = (1 / rows) / (kernel @ v + 1e-9)
    return (u[:, None] * kernel * v * costs).sum()


def costs_of(rows: int, columns: int, scale: float, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(rows + columns)
    return (torch.rand(rows, columns, generator=generator, dtype=torch.float64) * scale).to(dtype).requires_grad_()


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 6), (9, 7), (40, 33)])
@pytest.mark.parametrize("scale", [0.05, 1.0, 12.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_stopping_early_changes_neither_value_nor_gradient(rows, columns, scale, dtype) -> None:
    costs = costs_of(rows, columns, scale, dtype)
    found, expected = transport_cost(costs), plain(costs.double())
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    (slope,), (wanted,) = torch.autograd.grad(found, costs), torch.autograd.grad(expected, costs)
    assert (slope - wanted).abs().max() <= 1e-6 * wanted.abs().max()


def test_it_stops_after_the_iterations_that_it_needs() -> None:
    """Fewer are kept for the backward pass."""
    costs = costs_of(20, 25, 1.0)
    few, all_of_them = transport_cost(costs), transport_cost(costs, tolerance=0.0)

    def operations(loss: Tensor) -> int:
        seen, waiting = set(), [loss.grad_fn]
        while waiting:
            node = waiting.pop()
            if node is not None and node not in seen:
                seen.add(node)
                waiting += [parent for parent, _ in node.next_functions]
        return len(seen)

    assert operations(few) < operations(all_of_them) / 10


def test_marginals_are_kept() -> None:
    plan = entropic_plan((-costs_of(6, 9, 2.0)).exp(), 2.0, 2.0 * 6 / 9, 200)
    torch.testing.assert_close(plan.sum(1), torch.full((6,), 2.0, dtype=torch.float64))
    torch.testing.assert_close(plan.sum(0), torch.full((9,), 2.0 * 6 / 9, dtype=torch.float64))


def test_it_is_in_fp32_under_autocast() -> None:
    costs = costs_of(6, 9, 2.0, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = transport_cost(costs.bfloat16())
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(plain(costs.bfloat16().double()).item(), rel=1e-6)


def test_nothing_to_carry_is_refused() -> None:
    with pytest.raises(ValueError, match="0 and 3 positions"):
        transport_cost(torch.zeros(0, 3))
