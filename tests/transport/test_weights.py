"""Weights of costs: what the quadratic programme's conditions say, and sums."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.transport import cost_weights


@given(st.lists(st.floats(-20, 20), min_size=1, max_size=6), st.sampled_from([0.5, 2.0]))
def test_no_shift_between_two_weights_makes_it_less(costs: list[float], sigma: float) -> None:
    c = torch.tensor(costs, dtype=torch.float64)
    w = cost_weights(c, sigma)
    assert w.sum().item() == pytest.approx(1.0) and w.min().item() >= 0.01 - 1e-12

    def value(weights: torch.Tensor) -> float:
        return float(weights @ c + sigma * (weights - 1 / len(c)).square().sum())

    for giver in range(len(c)):
        for taker in range(len(c)):
            step = min(1e-3, w[giver].item() - 0.01)
            if giver != taker and step > 1e-9:
                moved = w.clone()
                moved[giver] -= step
                moved[taker] += step
                assert value(moved) >= value(w) - 1e-12


def test_rows_are_solved_apart() -> None:
    costs = torch.tensor([[0.1, 0.5, 0.2], [9.0, 0.0, 0.0]], dtype=torch.float64)
    both = cost_weights(costs)
    torch.testing.assert_close(both, torch.stack([cost_weights(row) for row in costs]))
    torch.testing.assert_close(both[1], torch.tensor([0.01, 0.495, 0.495], dtype=torch.float64))


def test_impossible_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="no 3 weights of at least"):
        cost_weights(torch.zeros(3), floor=0.5)
