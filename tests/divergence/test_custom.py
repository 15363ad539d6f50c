"""A user's own function of logits beside the closed forms: the same values, and the same gradients of everything."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from stillhouse import divergence
from stillhouse.divergence import Rows, from_function
from stillhouse.head import Blocks, Term, rowwise_loss
from tests.head.sides import gradients, predictions


def todi(student: Tensor, teacher: Tensor | None, labels: Tensor | None) -> Tensor:
    assert teacher is not None and labels is None
    lq, lp = student.log_softmax(-1), teacher.log_softmax(-1)
    b = torch.sigmoid(lq - lp).detach()
    return ((1 - b) * lp.exp() * (lp - lq) + b * lq.exp() * (lq - lp)).sum(-1)


def jsd(student: Tensor, teacher: Tensor | None, labels: Tensor | None) -> Tensor:
    assert teacher is not None and labels is None
    lq, lp = student.log_softmax(-1), teacher.log_softmax(-1)
    lm = torch.logaddexp(lp, lq) - math.log(2.0)
    return ((lp.exp() * (lp - lm)).sum(-1) + (lq.exp() * (lq - lm)).sum(-1)) / 2


def cross_entropy(student: Tensor, teacher: Tensor | None, labels: Tensor | None) -> Tensor:
    assert teacher is None and labels is not None
    return torch.nn.functional.cross_entropy(student, labels, reduction="none")


CASES: dict[str, tuple[Callable[..., Tensor], dict[str, Any]]] = {
    "todi": (todi, {}),
    "jsd": (jsd, {}),
    "cross_entropy": (cross_entropy, {"needs_teacher": False, "needs_labels": True}),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("blocks", [None, Blocks(rows=3, elements=30, vocabulary_tile=5)])
def test_a_naive_function_equals_ours_through_the_head(name: str, dtype: torch.dtype, blocks: Blocks | None) -> None:
    fn, needs = CASES[name]
    student, teacher = (predictions(i, 10, 4, 13, dtype, padded=2, softcap=5.0) for i in range(2))
    found = []
    for term in (divergence.build(name), from_function(fn, name, **needs)):
        terms = [
            Term("rkl", divergence.build("rkl"), 0.5),
            Term("own", term, 0.25),
            Term("fkl", divergence.build("fkl")),
        ]
        result = rowwise_loss(student, teacher, terms, blocks=blocks)
        result.loss.backward()
        found.append([result.loss.detach(), *(v for v in result.values.values()), *gradients(student)])
    tolerance = 1e-11 if dtype == torch.float64 else 2e-6
    for ours, own in zip(*found, strict=True):
        torch.testing.assert_close(own, ours, rtol=tolerance, atol=tolerance)
    assert teacher.hidden.grad is None


@pytest.mark.parametrize("name", CASES)
def test_a_custom_divergence_is_called_as_any_other(name: str) -> None:
    fn, needs = CASES[name]
    student = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    teacher, labels = torch.randn(5, 7, dtype=torch.float64), torch.arange(5)
    values = from_function(fn, **needs)(student, teacher, labels)
    expected = divergence.build(name)(student, teacher, labels)
    torch.testing.assert_close(values, expected)
    ours, theirs = (torch.autograd.grad(side.square().sum(), student)[0] for side in (expected, values))
    torch.testing.assert_close(theirs, ours)
    assert from_function(fn)(student[:0], teacher[:0], labels[:0]).shape == (0,) if name != "cross_entropy" else True


def test_logits_are_upcast_and_the_gradient_is_fresh() -> None:
    kept = torch.full((3, 4), 2.0)

    class Stored(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, z: Tensor) -> Tensor:
            assert z.dtype == torch.float32
            return z.sum(-1)

        @staticmethod
        def backward(ctx: Any, *upstream: Tensor) -> Tensor:  # type: ignore[override]
            return kept

    rows = Rows(torch.randn(3, 4).bfloat16())
    for fn in (lambda z, t, y: z.sum(-1), lambda z, t, y: Stored.apply(z)):
        values, gradient = from_function(fn, needs_teacher=False).value_and_gradient(rows)
        gradient.mul_(3.0)  # an expanded one would refuse
        assert values.dtype == gradient.dtype == torch.float32 and not values.requires_grad
    assert (kept == 2.0).all()


def test_what_is_missing_or_gives_no_gradient_is_refused_in_one_line() -> None:
    student, teacher = torch.randn(3, 4), torch.randn(3, 4)
    learned = torch.nn.Parameter(torch.ones(4, 2))

    def refused(fn: Callable[..., Any], wrong: str, rows: Rows | None = None, **needs: bool) -> None:
        with pytest.raises(ValueError, match=wrong) as caught:
            from_function(fn, "mine", **needs).value_and_gradient(rows or Rows(student, teacher))
        assert "\n" not in str(caught.value)

    refused(lambda z, t, y: z.sum(), r"'mine' must give one value a row, \[3\], but gave \[\]")
    refused(lambda z, t, y: z, r"\[3\], but gave \[3, 4\]")
    refused(lambda z, t, y: 0.5, r"\[3\], but gave float")
    refused(lambda z, t, y: z.detach().sum(-1), "no gradient flows from the values of 'mine' to student_logits")
    refused(lambda z, t, y: t.sum(-1), "no gradient flows")
    refused(lambda z, t, y: (z @ learned).sum(-1), r"gradient to something of shape \[4, 2\] besides the student's")
    refused(lambda z, t, y: (t @ learned).sum(-1), "besides the student's")
    refused(lambda z, t, y: z.sum(-1), "teacher logits", Rows(student))
    refused(lambda z, t, y: z.sum(-1), "labels", Rows(student, teacher), needs_labels=True)
    own = from_function(todi, "mine")
    with pytest.raises(ValueError, match="own needs a teacher's predictions"):
        rowwise_loss(predictions(0, 3, 4, 9, torch.float64), None, [Term("own", own)])
