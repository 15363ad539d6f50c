"""The monitors of a block, and what a block keeps."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.catalogue import DIVERGENCES
from stillhouse.divergence import Divergence, Rows, build
from tests.divergence.twins import SomeRows


@given(seed=st.integers(0, 2**32), rows=st.integers(0, 4), vocabulary=st.sampled_from([1, 5, 255, 256, 257, 600, 1024]))
def test_monitors(seed, rows, vocabulary):
    some = SomeRows.draw(seed, rows, vocabulary, dtype=torch.float32)
    some.student, some.teacher = some.student.round(), some.teacher.round()  # ties: the first of the highest counts
    shared = Rows(some.student, some.teacher, some.labels)
    likeliest = torch.tensor([row.index(max(row)) for row in some.student.tolist()], dtype=torch.long)
    teachers = torch.tensor([row.index(max(row)) for row in some.teacher.tolist()], dtype=torch.long)
    assert shared.accuracy().tolist() == (likeliest == some.labels).tolist()
    assert shared.agreement().tolist() == (likeliest == teachers).tolist()
    log_q = some.student.double().log_softmax(-1)
    torch.testing.assert_close(shared.entropy().double(), -(log_q.exp() * log_q).sum(-1), rtol=2e-6, atol=2e-6)


def test_entropy_leaves_out_what_cannot_be():
    rows = Rows(torch.tensor([[0.0, 0.0, -torch.inf, -torch.inf], [0.0, -torch.inf, -torch.inf, -torch.inf]]))
    torch.testing.assert_close(rows.entropy(), torch.tensor([0.6931472, 0.0]))


def test_what_a_divergence_needs_is_what_the_catalogue_says():
    for name, entry in DIVERGENCES.items():
        assert build(name).needs_teacher == entry.needs_teacher
        assert build(name).needs_labels == (name in ("cross_entropy", "dkd"))
        assert build(name).name == name


def test_the_logits_are_left_as_they_were():
    some = SomeRows.draw(0, 3, 50, dtype=torch.float32)
    student, teacher = some.student.clone(), some.teacher.clone()
    shared = Rows(some.student, some.teacher, some.labels)
    for name in DIVERGENCES:
        build(name).value_and_gradient(shared)
        shared.entropy()
    assert torch.equal(some.student, student)
    assert torch.equal(some.teacher, teacher)


def test_a_softmax_is_taken_once():
    some = SomeRows.draw(0, 3, 50)
    shared = Rows(some.student, some.teacher, some.labels)
    assert shared.student.softmax(2.0) is shared.student.softmax(2.0)
    assert shared.student.softmax(2.0) is not shared.student.softmax(1.0)


def test_an_accelerator_would_take_the_masked_way_and_get_the_same_numbers(monkeypatch: pytest.MonkeyPatch):
    some = SomeRows.draw(5, 3, 80, dtype=torch.float32)
    looked = [numbers(build(name), some) for name in DIVERGENCES]
    monkeypatch.setattr("stillhouse.divergence.rows.Side.holes", property(lambda side: torch.isneginf(side.logits)))
    masked = [numbers(build(name), some) for name in DIVERGENCES]
    for a, b in zip(looked, masked, strict=True):
        assert torch.equal(a, b)


def numbers(loss: Divergence, some: SomeRows) -> torch.Tensor:
    values, gradient = loss.value_and_gradient(Rows(some.student, some.teacher, some.labels))
    return torch.cat([values[:, None], gradient], dim=-1)
