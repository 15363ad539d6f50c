"""Every cost against a twin of plain loops: values and gradients by both sides, fp64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from stillhouse.transport import (
    context_windows,
    cosine_distances,
    distances,
    divided_by_maximum,
    edit_costs,
    kl_divergences,
    salience_gaps,
)

Costs = Callable[[Tensor, Tensor], Tensor]


def pairwise(of_pair: Costs) -> Costs:
    """The matrix of a cost of two rows, pair by pair."""
    return lambda rows, columns: torch.stack(
        [torch.stack([of_pair(row, column) for column in columns]) for row in rows]
    )


def of_probabilities(costs: Costs) -> Costs:
    return lambda rows, columns: costs(rows.softmax(-1), columns.softmax(-1))


def of_numbers(costs: Costs) -> Costs:
    return lambda rows, columns: costs(rows[:, 0], columns[:, 0])


def kl_twin(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p / (q + 1e-7)).log()).sum()


TWINS: dict[str, tuple[Costs, Costs]] = {
    "distances": (distances, pairwise(lambda a, b: (a - b).square().sum().sqrt())),
    "kl": (of_probabilities(kl_divergences), of_probabilities(pairwise(kl_twin))),
    "salience": (of_numbers(salience_gaps), of_numbers(pairwise(lambda a, b: (a.sigmoid() - b.sigmoid()).abs()))),
    "cosine": (cosine_distances, pairwise(lambda a, b: 1.0 - (a @ b) / (a.norm() + 1e-7) / (b.norm() + 1e-7))),
}


def sides(rows: int, columns: int, size: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    made = (torch.randn(count, size, generator=generator, dtype=torch.float64) for count in (rows, columns))
    first, second = (side.requires_grad_() for side in made)
    return first, second


@pytest.mark.parametrize(("rows", "columns"), [(4, 7), (1, 3), (30, 28)])
@pytest.mark.parametrize("name", TWINS)
def test_costs_and_gradients_are_those_of_the_twin(name: str, rows: int, columns: int) -> None:
    costs, twin = TWINS[name]
    leaves = sides(rows, columns)
    found, expected = costs(*leaves), twin(*leaves)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    weights = torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    slopes, wanted = (torch.autograd.grad((matrix * weights).sum(), leaves) for matrix in (found, expected))
    for slope, of_twin in zip(slopes, wanted, strict=True):
        torch.testing.assert_close(slope, of_twin, rtol=1e-7, atol=1e-9)


def test_equal_rows_are_at_distance_0_and_pull_nowhere() -> None:
    rows, columns = (torch.tensor([[1.5, -2.0], [300.0, 4.0]]).requires_grad_() for _ in range(2))
    found = distances(rows, columns)
    assert found.diagonal().tolist() == [0.0, 0.0]
    (slope,) = torch.autograd.grad(found.diagonal().sum(), rows)
    assert bool((slope == 0).all())


def test_a_probability_of_0_costs_nothing_and_has_a_finite_slope() -> None:
    rows = torch.tensor([[1.0, 0.0]], dtype=torch.float64).requires_grad_()
    found = kl_divergences(rows, torch.tensor([[0.5, 0.5]], dtype=torch.float64))
    assert found.item() == pytest.approx(0.6931470, abs=1e-6)
    (slope,) = torch.autograd.grad(found.sum(), rows)
    assert bool(slope.isfinite().all())


@pytest.mark.parametrize("length", [1, 2, 5, 12])
@pytest.mark.parametrize("reach", [0, 1, 4])
def test_windows_are_means_cut_at_the_ends(length: int, reach: int) -> None:
    rows, _ = sides(length, 1)
    found = context_windows(rows, reach)
    expected = torch.stack([rows[max(0, at - reach) : at + reach + 1].mean(0) for at in range(length)])
    torch.testing.assert_close(found, expected)
    weights = torch.arange(float(rows.numel()), dtype=torch.float64).view_as(rows)
    slopes = [torch.autograd.grad((means * weights).sum(), rows)[0] for means in (found, expected)]
    torch.testing.assert_close(*slopes)


def test_the_maximum_that_divides_is_followed() -> None:
    costs, _ = sides(3, 1)
    found = divided_by_maximum(costs)
    torch.testing.assert_close(found, costs / (costs.max() + 1e-7))
    (slope,) = torch.autograd.grad(found.sum(), costs)
    (expected,) = torch.autograd.grad((costs / (costs.max() + 1e-7)).sum(), costs)
    torch.testing.assert_close(slope, expected)


def test_costs_of_nothing_are_not_divided() -> None:
    assert divided_by_maximum(torch.zeros(2, 2)).tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert divided_by_maximum(torch.full((1, 1), 1e-8)).item() == pytest.approx(1e-8)


def test_edit_costs_are_the_mean_of_both_paths_inside_the_matrix() -> None:
    path = torch.tensor([[0, 0, 4], [1, 1, 2], [5, 0, 9]], dtype=torch.int32)
    other = torch.tensor([[0, 0, 4], [0, 1, 3], [1, 2, 9]], dtype=torch.int32)
    assert edit_costs(torch.cat([path, other]), 2, 2).tolist() == [[4.0, 1.5], [0.0, 1.0]]
