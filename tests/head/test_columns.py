"""Probabilities at the likeliest columns against a dense twin in fp64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stillhouse.head import Blocks, Predictions
from stillhouse.head.columns import FLOOR, column_sums, probabilities_at
from tests.head.sides import SMALL, gradients, logits, predictions


def dense(side: Predictions, temperature: float) -> Tensor:
    """[N, V]"""
    z = logits(side)
    return (z / ((z.std(-1, keepdim=True) + FLOOR) * temperature)).softmax(-1)


@pytest.mark.parametrize("blocks", [None, SMALL, Blocks(rows=1, elements=1, vocabulary_tile=1)])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(("softcap", "scale", "bias"), [(None, 1.0, False), (4.0, 0.25, True), (None, 3.0, True)])
def test_values_and_gradients_are_those_of_the_dense_twin(softcap, scale, bias, temperature, blocks) -> None:
    extra = {"bias": torch.linspace(-1.0, 1.0, 15, dtype=torch.float64).requires_grad_()} if bias else {}
    side = predictions(1, 7, 4, 13, torch.float64, padded=2, softcap=softcap, scale=scale, **extra)
    group = torch.tensor([0, 0, 0, 2, 2, 2, 2])  # the second group has no rows
    q = dense(side, temperature)
    sums, standard = column_sums(side, group, 3, temperature, blocks)
    expected = torch.stack([q[group == index].sum(0) for index in range(3)])
    torch.testing.assert_close(sums, expected.detach(), rtol=1e-12, atol=1e-12)
    ids = sums.topk(5, -1).indices[group]  # [N, k]
    upstream = torch.randn(7, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    (q.gather(-1, ids) * upstream).sum().backward()
    wanted = gradients(side)
    found = probabilities_at(side, ids, standard, temperature, blocks)
    torch.testing.assert_close(found.detach(), q.gather(-1, ids).detach(), rtol=1e-12, atol=1e-12)
    (found * upstream).sum().backward()
    for ours, theirs in zip(gradients(side), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


# Of two or three tokens the deviation is nearly all there is to a row, and its gradient little but rounding.
@given(st.integers(0, 20), st.sampled_from([17, 257]), st.integers(1, 9), st.integers(0, 10_000))
def test_fp32_is_near_fp64_whatever_the_blocks(rows: int, vocabulary: int, per_block: int, seed: int) -> None:
    exact = predictions(seed, rows, 8, vocabulary, torch.float64)
    side = predictions(seed, rows, 8, vocabulary, torch.float32)
    group = torch.zeros(rows, dtype=torch.long)
    ids = torch.arange(3).expand(rows, -1)
    found = []
    for one, blocks in ((exact, None), (side, Blocks(rows=per_block, elements=60, vocabulary_tile=7))):
        q = probabilities_at(one, ids, column_sums(one, group, 1, blocks=blocks)[1], blocks=blocks)
        q.square().sum().backward()
        found.append((q.detach(), *gradients(one)))
    for wide, narrow in zip(*found, strict=True):
        torch.testing.assert_close(narrow.double(), wide, rtol=1e-4, atol=1e-5)


def test_equal_logits_have_a_gradient_that_is_a_number() -> None:
    side = predictions(0, 2, 3, 6, torch.float32)
    side.hidden.data[0] = 0.0
    ids = torch.tensor([[0, 1], [2, 3]])
    probabilities_at(side, ids, column_sums(side, torch.zeros(2, dtype=torch.long), 1)[1]).sum().backward()
    assert all(gradient.isfinite().all() for gradient in gradients(side))


def test_frozen_leaves_get_no_gradient() -> None:
    side = predictions(0, 4, 3, 6, torch.float64)
    side.head.weight.requires_grad_(False)
    ids = torch.tensor([[0, 1]]).expand(4, -1)
    probabilities_at(side, ids, column_sums(side, torch.zeros(4, dtype=torch.long), 1)[1]).sum().backward()
    assert side.hidden.grad is not None and side.head.weight.grad is None
