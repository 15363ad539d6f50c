"""Likelihoods of labels and of sets of tokens a block at a time, next to every logit at once in fp64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from stillhouse.head.likelihoods import LEAST, log_likelihoods
from tests.head.sides import SMALL, gradients, logits, predictions

HEADS: list[dict[str, Any]] = [
    {},
    {"scale": 0.3},
    {"softcap": 2.0, "padded": 3},
    {"bias": torch.linspace(-1.0, 1.0, 11, dtype=torch.float64).requires_grad_()},
]


@pytest.mark.parametrize("temperature", [1.0, 1.7])
@pytest.mark.parametrize("rows", [0, 1, 7])
@pytest.mark.parametrize("head", HEADS, ids=lambda head: "+".join(head) or "plain")
def test_values_and_gradients(head: dict[str, Any], rows: int, temperature: float) -> None:
    side = predictions(3, rows, 5, 11, torch.float64, **head)
    among = torch.arange(11) % 3 == 1
    weights = torch.randn(2, rows, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    log_q = (logits(side) / temperature).log_softmax(-1)
    wanted = log_q.gather(1, side.labels[:, None]).squeeze(1), log_q[:, among].logsumexp(-1)
    found = log_likelihoods(side, temperature, among, SMALL)
    torch.testing.assert_close(found.labels, wanted[0])
    torch.testing.assert_close(found.among, wanted[1])
    assert torch.equal(found.accuracy, (log_q.argmax(-1) == side.labels).double())
    (weights[0] * wanted[0] + weights[1] * wanted[1]).sum().backward()
    expected = gradients(side)
    (weights[0] * found.labels + weights[1] * found.among).sum().backward()
    for ours, theirs in zip(gradients(side), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_without_a_set_there_is_none() -> None:
    side = predictions(3, 7, 5, 11, torch.float64)
    found = log_likelihoods(side, blocks=SMALL)
    assert not found.among.any()
    (-found.labels.sum()).backward()
    ours = gradients(side)
    torch.nn.functional.cross_entropy(logits(side), side.labels, reduction="sum").backward()
    for gradient, theirs in zip(ours, gradients(side), strict=True):
        torch.testing.assert_close(gradient, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_numbers_come_close(dtype: torch.dtype) -> None:
    exact = predictions(3, 40, 16, 300, torch.float64)
    narrow = predictions(3, 40, 16, 300, dtype)
    among = torch.arange(300) < 40
    pairs = zip(log_likelihoods(narrow, among=among)[:2], log_likelihoods(exact, among=among)[:2], strict=True)
    for ours, theirs in pairs:
        tolerance = 2e-6 if dtype == torch.float32 else 0.1
        torch.testing.assert_close(ours.double(), theirs, rtol=tolerance, atol=tolerance)
        assert ours.dtype == torch.float32


def test_a_set_without_probability_is_finite_and_learns_nothing() -> None:
    """-300 nats below the rest, where fp32 has no such probability."""
    side = predictions(3, 4, 5, 11, torch.float32)
    bias = torch.zeros(11)
    bias[:3] = -300.0
    side = replace(side, head=replace(side.head, bias=bias))
    found = log_likelihoods(side, among=torch.arange(11) < 3, blocks=SMALL)
    torch.testing.assert_close(found.among, torch.full((4,), LEAST).log())
    found.among.sum().backward()
    assert side.hidden.grad is not None and not side.hidden.grad.any()


def test_mistakes_are_named() -> None:
    side = predictions(3, 4, 5, 11, torch.float32)
    with pytest.raises(ValueError, match="temperature must be above 0"):
        log_likelihoods(side, 0.0)
    with pytest.raises(ValueError, match=r"must be \[11\], got \[10\]"):
        log_likelihoods(side, among=torch.ones(10, dtype=torch.bool))
