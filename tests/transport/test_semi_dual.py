"""The semi-dual against the formulas, number by number."""

from __future__ import annotations

import math
from copy import deepcopy

import torch
from torch import Tensor

from stillhouse.transport import Potential, ascend, c_transform, climbing, semi_dual_value

EPSILON = 0.1


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def transform_twin(phi: Tensor, costs: Tensor) -> Tensor:
    """One cost: [M], [M, N] -> [N]"""
    columns = []
    for j in range(costs.shape[1]):
        sums = torch.zeros((), dtype=phi.dtype)
        for i in range(len(phi)):
            exponent = ((phi[i].clamp(-50, 50) - costs[i, j]) / EPSILON).clamp(-50, 50)
            sums = sums + exponent.exp() * (1 / len(phi) + 1e-10)
        columns.append(-EPSILON * sums.log())
    return torch.stack(columns)


def value_twin(phi: Tensor, costs: Tensor, weights: Tensor) -> Tensor:
    parts = [weight * transform_twin(phi, cost).mean() for weight, cost in zip(weights, costs, strict=True)]
    return phi.mean() + torch.stack(parts).sum()


def test_the_value_and_its_gradients_are_those_of_the_twin() -> None:
    phi = (drawn(4) * 2 - 1).requires_grad_()
    costs = (drawn(3, 4, 6, seed=1) * 9).requires_grad_()  # so that some exponents are cut
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64, requires_grad=True)
    found, by_cost = semi_dual_value(phi, costs, weights, EPSILON)
    expected = value_twin(phi, costs, weights)
    torch.testing.assert_close(found, expected)
    alone = [phi.mean() + transform_twin(phi, cost).mean() for cost in costs]
    torch.testing.assert_close(by_cost, torch.stack(alone).detach())
    leaves = (phi, costs, weights)
    for slope, wanted in zip(torch.autograd.grad(found, leaves), torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(slope, wanted)


def test_a_potential_beyond_the_bound_is_cut() -> None:
    far, at = torch.tensor([80.0, 0.0]), torch.tensor([50.0, 0.0])
    costs = torch.full((1, 2, 1), 49.0)
    torch.testing.assert_close(c_transform(far, costs, 1.0), c_transform(at, costs, 1.0))


def test_the_network_is_the_formula() -> None:
    network = Potential(3, hidden=5).double()
    rows = drawn(4, 3)
    weights = {name: parameter.detach() for name, parameter in network.named_parameters()}
    context = rows.mean(0) @ weights["context_proj.weight"].T + weights["context_proj.bias"]
    expected = []
    for row in rows:
        token = row @ weights["token_proj.weight"].T + weights["token_proj.bias"]
        joined = torch.cat([context, token]) @ weights["combine.weight"][0]
        expected.append(math.tanh(float(joined + weights["combine.bias"][0])))
    torch.testing.assert_close(network(rows).detach(), torch.tensor(expected, dtype=torch.float64))


def test_the_ascent_is_plain_steps_of_cut_gradients() -> None:
    network = Potential(3, hidden=5).double()
    twin = deepcopy(network)
    rows = drawn(4, 3).requires_grad_()
    costs = drawn(2, 4, 5, seed=2) * torch.linspace(0.0, 2.0, 5, dtype=torch.float64)
    weights = torch.tensor([7.0, 3.0], dtype=torch.float64)  # some gradients above 1, whatever the network is
    ascend(network, rows, costs, weights, EPSILON, 3, 0.05)
    cut = kept = 0
    for _ in range(3):
        twin.zero_grad()
        value_twin(twin(rows.detach()), costs, weights).backward()
        with torch.no_grad():
            for parameter in twin.parameters():
                assert parameter.grad is not None
                cut += int((parameter.grad.abs() > 1).sum())
                kept += int((parameter.grad.abs() < 1).sum())
                parameter += 0.05 * parameter.grad.clamp(-1, 1)
    assert cut and kept
    for found, expected in zip(network.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(found, expected)
        assert found.grad is None
    assert rows.grad is None


def test_climbing_turns_the_gradient_of_the_network_alone() -> None:
    network = Potential(3, hidden=5).double()
    rows = drawn(4, 3).requires_grad_()
    found, expected = climbing(network, rows), network(rows)
    assert torch.equal(found, expected)
    leaves = [rows, *network.parameters()]
    turned, plain = (torch.autograd.grad(phi.square().sum(), leaves) for phi in (found, expected))
    torch.testing.assert_close(turned[0], plain[0])
    for slope, wanted in zip(turned[1:], plain[1:], strict=True):
        torch.testing.assert_close(slope, -wanted)
