"""What makes a divergence one, whatever the rows: sign, zero, invariances; and identities between them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stillhouse import divergence
from stillhouse.divergence import Rows, build
from tests.divergence.twins import SETTINGS, WITH_TEACHER, SomeRows

# TAID's numbers contain an entropy, a mixture that is its own first argument is at no distance, nor are parts of a row;
# ULD's sees no tokens, only ranks.
DIVERGENCES = [
    (name, p)
    for name, p in WITH_TEACHER
    if not p.get("taid_port")
    and p.get("lam") != 1.0
    and name not in ("taid", "uld")
    and 0.0 not in (p.get("alpha"), p.get("beta") if name == "dkd" else 1.0)
]

drawn = st.builds(
    SomeRows.draw,
    seed=st.integers(0, 2**32),
    rows=st.integers(1, 4),
    vocabulary=st.integers(2, 300),
    spread=st.sampled_from([0.5, 3.0, 30.0]),
    likeness=st.sampled_from([0.0, 0.9]),
)


def values(name: str, params: dict, rows: SomeRows) -> Tensor:
    return build(name, **params).value_and_gradient(Rows(rows.student, rows.teacher, rows.labels))[0]


@pytest.mark.parametrize(("name", "params"), DIVERGENCES)
@given(rows=drawn)
@settings(max_examples=8)
def test_a_divergence_is_positive_and_zero_only_between_equals(name, params, rows):
    apart = values("tvd", {}, rows) > 1e-6  # nearer than this, rounding decides the sign
    assert (values(name, params, rows)[apart] > 0.0).all()
    assert (values(name, params, rows) > -1e-14).all()
    loss = build(name, **params)
    for dtype in (torch.float32, torch.float64):
        logits = rows.teacher.to(dtype)
        zero, gradient = loss.value_and_gradient(Rows(logits, logits.clone(), rows.labels))
        assert zero.abs().max() <= 4 * torch.finfo(dtype).eps
        assert gradient.abs().max() <= 8 * torch.finfo(dtype).eps


@pytest.mark.parametrize(("name", "params"), SETTINGS)
@given(rows=drawn, shift=st.floats(-50.0, 50.0))
@settings(max_examples=6)
def test_a_shift_of_the_logits_changes_nothing(name, params, rows, shift):
    shifted = SomeRows(rows.student + shift, rows.teacher - 2.0 * shift, rows.labels)
    torch.testing.assert_close(values(name, params, shifted), values(name, params, rows), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize(("name", "params"), SETTINGS)
@given(rows=drawn)
@settings(max_examples=6)
def test_gradients_of_a_row_sum_to_zero(name, params, rows):
    _, gradient = build(name, **params).value_and_gradient(Rows(rows.student, rows.teacher, rows.labels))
    assert gradient.sum(-1).abs().max() <= 1e-12


@given(rows=drawn, temperature=st.sampled_from([0.5, 1.0, 2.0]))
@settings(max_examples=25)
def test_todi_has_the_value_of_both_kls(rows, temperature):
    kls = sum(values(name, {"temperature": temperature}, rows) for name in ("forward_kl", "reverse_kl"))
    torch.testing.assert_close(values("todi", {"temperature": temperature}, rows), kls, rtol=1e-12, atol=1e-12)


@given(rows=drawn)
@settings(max_examples=25)
def test_todi_without_slope_is_the_mean_of_both_kls_and_with_a_steep_one_chooses(rows):
    forward, reverse = (values(name, {}, rows) for name in ("forward_kl", "reverse_kl"))
    torch.testing.assert_close(values("todi", {"scale": 0.0}, rows), (forward + reverse) / 2, rtol=1e-12, atol=1e-12)
    lq, lp = rows.student.log_softmax(-1), rows.teacher.log_softmax(-1)
    chosen = torch.where(lp > lq, lp.exp() * (lp - lq), lq.exp() * (lq - lp)).sum(-1)
    torch.testing.assert_close(values("todi", {"scale": 1e9}, rows), chosen, rtol=1e-7, atol=1e-8)


def test_jsd_scaled_tends_to_the_kls_at_its_ends():
    rows = SomeRows.draw(1, 8, 50, spread=1.0)
    forward, reverse = (values(name, {}, rows) for name in ("forward_kl", "reverse_kl"))
    near = 1e-9
    torch.testing.assert_close(values("jsd", {"beta": near}, rows) / near, forward, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(values("jsd", {"beta": 1.0 - near}, rows) / near, reverse, rtol=1e-3, atol=1e-3)


def test_jsd_is_bounded_and_symmetric_at_one_half():
    rows = SomeRows.draw(0, 8, 50, spread=100.0, likeness=0.0)
    swapped = SomeRows(rows.teacher, rows.student, rows.labels)
    torch.testing.assert_close(values("jsd", {}, rows), values("jsd", {}, swapped), rtol=1e-12, atol=1e-12)
    assert values("jsd", {}, rows).max() <= math.log(2.0) + 1e-12


def test_a_divergence_says_how_it_was_built():
    assert divergence.build("JS", teacher_weight=0.1, kd_temp=2) == divergence.build("jsd", beta=0.1, temperature=2.0)
    assert "beta=0.1" in repr(divergence.build("generalized-jsd", js_beta=0.1))
