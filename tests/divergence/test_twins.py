"""Every divergence against its formula in fp64 autograd: values, closed-form gradients, and through autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse import divergence
from tests.divergence.twins import SETTINGS, WITH_TEACHER, SomeRows, twin

shapes = {"rows": st.integers(0, 5), "vocabulary": st.integers(1, 700)}
seeds = st.integers(0, 2**32)
temperatures = st.sampled_from([0.5, 1.0, 2.0, 7.0])
spreads = st.sampled_from([0.01, 1.0, 3.0, 20.0])


def built(name: str, params: dict[str, Any], temperature: float) -> divergence.Divergence:
    return divergence.build(name, **params, **({} if name == "cross_entropy" else {"temperature": temperature}))


def compare(name: str, params: dict[str, Any], temperature: float, rows: SomeRows) -> None:
    loss = built(name, params, temperature)
    values, gradient = loss.value_and_gradient(divergence.Rows(rows.student, rows.teacher, rows.labels))
    wanted, wanted_gradient = twin(name, params, temperature, rows)
    torch.testing.assert_close(values, wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, wanted_gradient, rtol=3e-12, atol=3e-12)


@pytest.mark.parametrize(("name", "params"), SETTINGS)
@given(seed=seeds, temperature=temperatures, spread=spreads, likeness=st.sampled_from([0.0, 0.8, 1.0]), **shapes)
@settings(max_examples=10)
def test_values_and_gradients_are_those_of_the_formula(
    name, params, seed, rows, vocabulary, temperature, spread, likeness
):
    compare(name, params, temperature, SomeRows.draw(seed, rows, vocabulary, spread, likeness))


@pytest.mark.parametrize("which", ["student", "teacher", "same", "either"])
@pytest.mark.parametrize(("name", "params"), SETTINGS)
def test_entries_without_a_logit_contribute_nothing(name, params, which):
    for seed in range(3):
        rows = SomeRows.draw(seed, 4, 60).with_holes(seed, which)
        assert not (torch.isfinite(rows.student) & torch.isfinite(rows.teacher)).all()
        compare(name, params, 2.0, rows)


@pytest.mark.parametrize(("name", "params"), SETTINGS)
def test_fp32_is_within_a_millionth_of_fp64(name, params):
    for seed, vocabulary in enumerate((2, 53, 997, 20_011)):
        rows = SomeRows.draw(seed, 4, vocabulary, likeness=0.5, dtype=torch.float32)
        shared = divergence.Rows(rows.student, rows.teacher, rows.labels)
        values, gradient = built(name, params, 2.0).value_and_gradient(shared)
        wanted, wanted_gradient = twin(name, params, 2.0, rows)
        assert values.dtype == gradient.dtype == torch.float32
        # The numbers that meet in a row are as large as those of its KL divergences, however small their balance is.
        kls = [twin(kl, {}, 2.0, rows) for kl in ("forward_kl", "reverse_kl")]
        size, slope = (max(part.abs().max().item() for part in parts) for parts in zip(*kls, strict=True))
        assert (values - wanted).abs().max() <= 1e-6 * max(size, wanted.abs().max().item())
        off = (gradient - wanted_gradient).abs() > 1e-6 * max(slope, wanted_gradient.abs().max().item())
        # ULD's gradient jumps where p and q of a rank, or two ranks, are nearly equal, and rounding decides the side.
        assert off.double().mean() <= (1e-3 if name == "uld" else 0.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("name", "params"), SETTINGS)
def test_half_precision_logits_are_read_exactly(name, params, dtype):
    rows = SomeRows.draw(1, 3, 300, dtype=dtype)
    student = rows.student.requires_grad_()
    values = built(name, params, 2.0)(student, rows.teacher, rows.labels)
    values.sum().backward()
    wanted, wanted_gradient = twin(name, params, 2.0, SomeRows(rows.student.detach(), rows.teacher, rows.labels))
    assert values.dtype == torch.float32
    torch.testing.assert_close(values.double(), wanted, rtol=1e-5, atol=1e-5)
    assert student.grad is not None
    assert student.grad.dtype == dtype
    torch.testing.assert_close(student.grad, wanted_gradient.to(dtype), rtol=2e-2, atol=1e-5)


@pytest.mark.parametrize(("name", "params"), SETTINGS)
def test_autograd_scales_the_gradient_of_each_row(name, params):
    rows = SomeRows.draw(2, 4, 30)
    student, teacher = rows.student.requires_grad_(), rows.teacher.requires_grad_()
    upstream = torch.tensor([1.0, -2.0, 0.0, 0.5], dtype=torch.float64)
    built(name, params, 2.0)(student * 1.0, teacher, rows.labels).backward(upstream)
    gradient = twin(name, params, 2.0, SomeRows(student.detach(), teacher.detach(), rows.labels))[1]
    torch.testing.assert_close(student.grad, upstream[:, None] * gradient, rtol=1e-11, atol=1e-11)
    assert teacher.grad is None


# Those whose weights or mixture are detached have a gradient that is not the derivative of their value.
ATTACHED = [
    (name, params)
    for name, params in SETTINGS
    if name not in ("todi", "taid")
    and not params.get("detach_mixture")
    and (name != "adaptive_kl" or params.get("taid_port"))
]


@pytest.mark.parametrize(("name", "params"), ATTACHED)
def test_gradcheck(name, params):
    rows = SomeRows.draw(3, 3, 9)
    loss = built(name, params, 2.0)
    student = rows.student.requires_grad_()
    assert torch.autograd.gradcheck(lambda logits: loss(logits, rows.teacher, rows.labels), (student,))


@pytest.mark.parametrize(("name", "params"), WITH_TEACHER)
def test_sharing_rows_changes_nothing(name, params):
    rows = SomeRows.draw(4, 3, 40)
    shared = divergence.Rows(rows.student, rows.teacher, rows.labels)
    losses = [built(name, params, 1.0), divergence.build("ce"), built(name, params, 2.0), built(name, params, 1.0)]
    for loss in losses:
        alone = loss.value_and_gradient(divergence.Rows(rows.student, rows.teacher, rows.labels))
        together = loss.value_and_gradient(shared)
        assert torch.equal(together[0], alone[0])
        assert torch.equal(together[1], alone[1])
        together[1].zero_()  # the gradient is the caller's own
    assert torch.equal(shared.entropy(), divergence.Rows(rows.student).entropy())
