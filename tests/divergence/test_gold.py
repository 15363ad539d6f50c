"""GOLD's distance of merged rows next to autograd in fp64, by the logits and by the factor."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stillhouse.divergence.gold import MergedRows, divergence, ranks


def rows(seed: int, count: int, vocabulary: int) -> tuple[Tensor, Tensor]:
    """Logits [n, V] and logarithms of factors [n]."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, vocabulary, generator=generator, dtype=torch.float64) * 3.0
    return logits, -torch.rand(count, generator=generator, dtype=torch.float64) * 4.0


def filled(a: Tensor, b: Tensor) -> Tensor:
    """sum over ranks, the shorter side filled with 0."""
    size = max(a.shape[1], b.shape[1])
    a, b = (torch.nn.functional.pad(x.sort(-1, descending=True).values, (0, size - x.shape[1])) for x in (a, b))
    return (a - b).abs().sum(-1)


def generalised(a: Tensor, b: Tensor, beta: float) -> Tensor:
    a, b = a.clamp(min=1e-8), b.clamp(min=1e-8)
    m = (1.0 - beta) * a + beta * b
    if beta in (0.0, 1.0):
        return (b * (b / a).log() if beta == 0.0 else a * (a / b).log()).sum(-1)
    return (beta * b * (b / m).log() + (1.0 - beta) * a * (a / m).log()).sum(-1)


@pytest.mark.parametrize("beta", [0.0, 1e-3, 0.5, 1.0])
@pytest.mark.parametrize(
    ("count", "ours", "theirs", "shared"), [(1, 1, 1, 1), (5, 9, 14, 4), (4, 14, 9, 0), (0, 5, 6, 2)]
)
def test_values_gradient_and_slope(count: int, ours: int, theirs: int, shared: int, beta: float) -> None:
    (z_s, s), (z_t, t) = rows(1, count, ours), rows(2, count, theirs)
    orders = torch.randperm(ours), torch.randperm(theirs)
    both, apart = [order[:shared] for order in orders], [order[shared:].sort().values for order in orders]
    measure = MergedRows((both[0], both[1]), (apart[0], apart[1]), beta, 0.7, 1.9, 1.3, 0.8)
    found = measure(z_s, z_t, s, t)
    z_s, s = z_s.requires_grad_(), s.requires_grad_()
    a, b = (z_s / 1.3).softmax(-1) * s.exp()[:, None], (z_t / 0.8).softmax(-1) * t.exp()[:, None]
    jsd, ranked = generalised(a[:, both[0]], b[:, both[1]], beta), filled(a[:, apart[0]], b[:, apart[1]])
    torch.testing.assert_close(found.shared, jsd.detach())
    torch.testing.assert_close(found.apart, ranked.detach())
    by_logits, by_factor = torch.autograd.grad((0.7 * jsd + 1.9 * ranked).sum(), (z_s, s))
    torch.testing.assert_close(found.gradient, by_logits)
    torch.testing.assert_close(found.slope, by_factor)


def test_probabilities_below_the_least_are_the_least() -> None:
    a, b = torch.tensor([[1e-12, 0.5, 0.0]]), torch.tensor([[0.3, 1e-12, 0.0]])
    for beta in (0.0, 0.5, 1.0):
        values, gradient = divergence(a.clone(), b.clone(), beta)
        torch.testing.assert_close(values, generalised(a.double(), b.double(), beta).float())
        assert gradient.isfinite().all() and gradient[0, 0] == 0.0 and gradient[0, 2] == 0.0


def test_a_row_that_is_not_a_number_stays_alone() -> None:
    a, b = torch.rand(3, 6), torch.rand(3, 8)
    whole = ranks(a.clone(), b.clone())
    a[1, 2] = torch.nan
    values, gradient = ranks(a, b.clone())
    assert values[1].isnan() and torch.equal(values[[0, 2]], whole[0][[0, 2]])
    assert torch.equal(gradient[[0, 2]], whole[1][[0, 2]])
