"""The chunked head against its twin: all logits at once, in fp64, gradients by autograd."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stillhouse import divergence
from stillhouse.head import MONITORS, Blocks, Head, Predictions, Term, rowwise_loss
from tests.head.sides import SMALL, gradients, logits, predictions


def dense(student: Predictions, teacher: Predictions, terms: list[Term]) -> Tensor:
    """The twin: every logit of every row at once, through the public divergences and plain autograd."""
    z_s, z_t = logits(student), logits(teacher).detach()
    parts = [term.weight * term.divergence(z_s, z_t, student.labels).sum() for term in terms]
    return torch.stack(parts).sum()


TERMS = [
    Term("ce", divergence.build("ce"), 0.5),
    Term("todi", divergence.build("todi", temperature=2.0), 0.3),
    Term("jsd", divergence.build("jsd", beta=0.2), 0.2),
]


@pytest.mark.parametrize(("softcap", "scale", "bias"), list(itertools.product([None, 4.0], [1.0, 0.25], [False, True])))
@pytest.mark.parametrize("blocks", [None, SMALL, Blocks(rows=1, elements=1, vocabulary_tile=1)])
def test_value_and_gradients_equal_the_dense_twin(
    softcap: float | None, scale: float, bias: bool, blocks: Blocks | None
) -> None:
    extra = {"bias": torch.randn(13 + 2, dtype=torch.float64).requires_grad_()} if bias else {}
    student = predictions(1, 7, 4, 13, torch.float64, padded=2, softcap=softcap, scale=scale, **extra)
    teacher = predictions(2, 7, 6, 13, torch.float64, padded=5, softcap=3.0)
    dense(student, teacher, TERMS).backward()
    expected = gradients(student)
    result = rowwise_loss(student, teacher, TERMS, blocks=blocks)
    (result.loss * 3.0 / 3.0).backward()
    torch.testing.assert_close(result.loss.detach(), dense(student, teacher, TERMS).detach(), rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(gradients(student), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)
    assert teacher.hidden.grad is None and teacher.head.weight.grad is None


@given(st.integers(0, 30), st.integers(1, 9), st.integers(1, 200), st.integers(1, 9), st.integers(0, 10_000))
def test_no_block_size_changes_anything(rows: int, per_block: int, elements: int, tile: int, seed: int) -> None:
    student, teacher = (predictions(seed + i, rows, 5, 11, torch.float64) for i in range(2))
    whole = rowwise_loss(student, teacher, TERMS)
    whole.loss.backward()
    expected = gradients(student)
    split = rowwise_loss(student, teacher, TERMS, blocks=Blocks(per_block, elements, tile))
    split.loss.backward()
    torch.testing.assert_close(split.loss, whole.loss, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(gradients(student), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@given(st.integers(1, 40), st.sampled_from([1, 2, 3, 17, 257, 4099]), st.integers(0, 10_000))
def test_fp32_is_within_a_millionth_of_fp64(rows: int, vocabulary: int, seed: int) -> None:
    exact = [predictions(seed + i, rows, 8, vocabulary, torch.float64) for i in range(2)]
    rounded = [
        Predictions(
            side.hidden.detach().float().requires_grad_(),
            Head(side.head.weight.detach().float(), vocabulary=vocabulary),
            side.labels,
            side.sequence,
        )
        for side in exact
    ]
    for side, small in zip(exact, rounded, strict=True):  # the twin starts from the same rounded numbers
        side.hidden.data = small.hidden.detach().double()
        side.head.weight.data = small.head.weight.double()
    ours = rowwise_loss(rounded[0], rounded[1], TERMS).loss
    theirs = dense(exact[0], exact[1], TERMS)
    assert abs(ours.item() - theirs.item()) <= 1e-6 * max(abs(theirs.item()), rows)


def test_bf16_error_is_at_most_twice_that_of_plain_dense_bf16() -> None:
    student, teacher = (predictions(i, 64, 32, 501, torch.bfloat16) for i in range(2))
    rows = {}
    for name, cast in (("truth", torch.float64), ("plain", torch.bfloat16)):
        z_s, z_t = ((p.hidden.detach().to(cast) @ p.head.weight.detach().to(cast).T) for p in (student, teacher))
        rows[name] = torch.stack([term.divergence(z_s, z_t, student.labels).double() for term in TERMS])
    values = rowwise_loss(student, teacher, TERMS).values
    ours = torch.stack([values[term.name].double() for term in TERMS])
    error, plain_error = ((side - rows["truth"]).abs().mean(1) for side in (ours, rows["plain"]))  # [terms]
    assert (error <= 2 * plain_error).all() and (plain_error > 0).all()


def test_a_frozen_head_gets_no_gradient_and_frozen_hidden_states_neither() -> None:
    student, teacher = (predictions(i, 5, 4, 9, torch.float32) for i in range(2))
    student.head.weight.requires_grad_(False)
    rowwise_loss(student, teacher, TERMS).loss.backward()
    assert student.hidden.grad is not None and student.head.weight.grad is None
    student.hidden.grad = None
    student.hidden.requires_grad_(False)
    student.head.weight.requires_grad_(True)
    rowwise_loss(student, teacher, TERMS).loss.backward()
    assert student.head.weight.grad is not None and student.hidden.grad is None


def test_the_loss_may_be_scaled_after_the_fact_but_not_used_twice() -> None:
    student, teacher = (predictions(i, 5, 4, 9, torch.float64) for i in range(2))
    (dense(student, teacher, TERMS) * 0.37).backward()
    expected = gradients(student)
    loss = rowwise_loss(student, teacher, TERMS).loss * 0.37
    loss.backward(retain_graph=True)
    for ours, theirs in zip(gradients(student), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_rows_may_weigh_differently() -> None:
    student, teacher = (predictions(i, 7, 4, 9, torch.float64) for i in range(2))
    weights = torch.tensor([0.0, 2.0, 1.0, 0.25, 3.0, 0.0, 1.0], dtype=torch.float64)
    parts = [term.weight * term.divergence(logits(student), logits(teacher).detach(), student.labels) for term in TERMS]
    expected = (torch.stack(parts).sum(0) * weights).sum()
    expected.backward()
    expected_gradients = gradients(student)
    result = rowwise_loss(student, teacher, TERMS, blocks=SMALL, weights=weights)
    result.loss.backward()
    torch.testing.assert_close(result.loss.detach(), expected.detach(), rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(gradients(student), expected_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(result.values["ce"], rowwise_loss(student, teacher, TERMS).values["ce"])


def test_values_of_terms_and_monitors_come_back_by_row() -> None:
    student, teacher = (predictions(i, 6, 4, 9, torch.float64) for i in range(2))
    result = rowwise_loss(student, teacher, TERMS, MONITORS, blocks=SMALL)
    z_s, z_t = student.head.logits(student.hidden), teacher.head.logits(teacher.hidden)
    torch.testing.assert_close(result.values["ce"], TERMS[0].divergence(z_s, None, student.labels).detach())
    assert result.values["accuracy"].tolist() == (z_s.argmax(-1) == student.labels).double().tolist()
    assert result.values["agreement"].tolist() == (z_s.argmax(-1) == z_t.argmax(-1)).double().tolist()
    entropy = torch.distributions.Categorical(logits=z_s).entropy()
    torch.testing.assert_close(result.values["entropy"].double(), entropy.detach(), rtol=1e-6, atol=1e-6)
    assert not any(values.requires_grad for values in result.values.values())


def test_without_gradient_nothing_is_kept_and_the_value_is_the_same() -> None:
    student, teacher = (predictions(i, 6, 4, 9, torch.float64) for i in range(2))
    with torch.no_grad():
        result = rowwise_loss(student, teacher, TERMS)
    assert not result.loss.requires_grad
    torch.testing.assert_close(result.loss, rowwise_loss(student, teacher, TERMS).loss.detach())


def test_autocast_multiplies_in_bf16_and_keeps_row_statistics_in_fp32() -> None:
    student, teacher = (predictions(i, 32, 16, 101, torch.float32) for i in range(2))
    exact = rowwise_loss(student, teacher, TERMS).loss.item()
    with torch.autocast("cpu", torch.bfloat16):
        result = rowwise_loss(student, teacher, TERMS)
    result.loss.backward()
    assert result.loss.dtype == torch.float32 and result.loss.item() != exact
    assert abs(result.loss.item() - exact) < 2e-2 * exact
    assert student.head.weight.grad is not None and student.head.weight.grad.dtype == torch.float32


def test_what_does_not_fit_together_is_refused() -> None:
    student, teacher = predictions(0, 5, 4, 9, torch.float64), predictions(1, 4, 4, 9, torch.float64)
    with pytest.raises(ValueError, match="5 student rows but 4 teacher rows"):
        rowwise_loss(student, teacher, TERMS)
    with pytest.raises(ValueError, match="student predicts 9 tokens, teacher 8"):
        rowwise_loss(student, predictions(1, 5, 4, 8, torch.float64), TERMS)
    with pytest.raises(ValueError, match="todi, jsd needs a teacher"):
        rowwise_loss(student, None, TERMS)
    with pytest.raises(ValueError, match="cannot predict 10 tokens"):
        Head(torch.zeros(9, 4), vocabulary=10)
