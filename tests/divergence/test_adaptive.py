"""Adaptive KL's head: the same as by a stable sort with ids, ties, ends and wide heads included."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.divergence import Rows, build
from tests.divergence.twins import SomeRows, twin


def compare(rows: SomeRows, mu: float, *, taid_port: bool = False) -> None:
    loss = build("adaptive_kl", mu=mu, taid_port=taid_port)
    values, gradient = loss.value_and_gradient(Rows(rows.student, rows.teacher))
    wanted, wanted_gradient = twin("adaptive_kl", {"mu": mu, "taid_port": taid_port}, 1.0, rows)
    torch.testing.assert_close(values, wanted, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-10, atol=1e-12)


@given(
    seed=st.integers(0, 2**32),
    mu=st.floats(0.01, 0.99),
    vocabulary=st.sampled_from([1, 2, 63, 64, 65, 513, 5000]),
    spread=st.sampled_from([0.01, 1.0, 5.0]),
    taid_port=st.booleans(),
)
@settings(max_examples=60)
def test_heads_of_any_width(seed, mu, vocabulary, spread, taid_port):
    compare(SomeRows.draw(seed, 3, vocabulary, spread), mu, taid_port=taid_port)


@pytest.mark.parametrize("mu", [0.0, 1e-18, 1.0])
@pytest.mark.parametrize("vocabulary", [50, 1000])
def test_bounds_that_leave_one_side_almost_empty(mu, vocabulary):
    compare(SomeRows.draw(0, 40, vocabulary, spread=8.0, likeness=0.0), mu)
    for seed in range(8):  # q is large where p is next to nothing, and the mass of p's first 64 is 1 after rounding
        compare(SomeRows.draw(seed, 1, vocabulary, spread=40.0, likeness=0.0), mu)


@pytest.mark.parametrize("mu", [0.0, 0.25, 0.3, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("vocabulary", [2, 4, 64, 128, 1024])
def test_equal_probabilities_are_in_the_head_by_descending_id(mu, vocabulary):
    rows = SomeRows.draw(1, 3, vocabulary)
    rows.teacher.zero_()  # every probability is a power of two, so the mass may meet the bound exactly
    compare(rows, mu)


@given(seed=st.integers(0, 2**32), vocabulary=st.sampled_from([9, 200, 3000]), mu=st.floats(0.05, 0.95))
@settings(max_examples=40)
def test_rows_of_few_distinct_logits(seed, vocabulary, mu):
    rows = SomeRows.draw(seed, 4, vocabulary)
    rows.teacher = rows.teacher.round()  # as bf16 logits are: many ties, the boundary among them
    compare(rows, mu)


def test_one_row_that_needs_more_does_not_change_another():
    narrow, wide = SomeRows.draw(2, 1, 4000, spread=8.0), SomeRows.draw(3, 1, 4000, spread=0.1)
    loss = build("adaptive_kl")
    both = loss(torch.cat([narrow.student, wide.student]), torch.cat([narrow.teacher, wide.teacher]))
    alone = [loss(rows.student, rows.teacher) for rows in (narrow, wide)]
    torch.testing.assert_close(both, torch.cat(alone), rtol=1e-13, atol=1e-13)
