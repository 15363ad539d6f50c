"""Every divergence of the catalogue through the head: neither blocks, nor order, nor company change a row's part."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stillhouse import divergence
from stillhouse.catalogue import DIVERGENCES
from stillhouse.head import Blocks, Predictions, Term, rowwise_loss
from tests.head.sides import gradients, predictions

every_divergence = pytest.mark.parametrize("name", DIVERGENCES)
drawn = {
    "rows": st.integers(1, 25),
    "vocabulary": st.sampled_from([2, 11, 300]),
    "blocks": st.builds(Blocks, st.integers(1, 9), st.integers(1, 900), st.integers(1, 9)),
    "seed": st.integers(0, 10_000),
}


def both_sides(seed: int, rows: int, vocabulary: int) -> tuple[Predictions, Predictions]:
    student, teacher = (predictions(seed + i, rows, 5, vocabulary, torch.float64) for i in range(2))
    return student, teacher


def run(name: str, student: Predictions, teacher: Predictions, blocks: Blocks | None = None) -> list[Tensor]:
    """Values by row [N], dH [N, d] and dW [V, d]."""
    result = rowwise_loss(student, teacher, [Term("kd", divergence.build(name))], blocks=blocks)
    result.loss.backward()
    torch.testing.assert_close(result.loss.detach(), result.values["kd"].sum())
    return [result.values["kd"], *gradients(student)]


def some_rows(side: Predictions, chosen: Tensor) -> Predictions:
    """These rows, as leaves of their own."""
    return replace(
        side,
        hidden=side.hidden.detach()[chosen].requires_grad_(),
        labels=side.labels[chosen],
        sequence=side.sequence[chosen],
    )


@every_divergence
@given(**drawn)
@settings(max_examples=15)
def test_blocks_change_nothing(name, rows, vocabulary, blocks, seed) -> None:
    student, teacher = both_sides(seed, rows, vocabulary)
    for split, whole in zip(run(name, student, teacher, blocks), run(name, student, teacher), strict=True):
        torch.testing.assert_close(split, whole, rtol=1e-11, atol=1e-12)


@every_divergence
@given(**drawn, kept=st.floats(0.0, 1.0))
@settings(max_examples=15)
def test_rows_in_any_order_and_without_others_keep_their_values_and_gradients(
    name, rows, vocabulary, blocks, seed, kept
) -> None:
    student, teacher = both_sides(seed, rows, vocabulary)
    values, d_hidden, d_weight = run(name, student, teacher)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    cut = round(kept * rows)
    total = torch.zeros_like(d_weight)
    for chosen in (order[:cut], order[cut:]):
        part = run(name, some_rows(student, chosen), some_rows(teacher, chosen), blocks)
        torch.testing.assert_close(part[0], values[chosen], rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(part[1], d_hidden[chosen], rtol=1e-11, atol=1e-12)
        total += part[2]
    torch.testing.assert_close(total, d_weight, rtol=1e-11, atol=1e-12)  # dW is the sum over rows and nothing else
