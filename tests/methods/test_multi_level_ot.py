"""Multi-Level OT against dense twins: one example at a time, plain loops, gradients by autograd."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stillhouse.head import Blocks, Pairing, Predictions
from stillhouse.methods import Clock, build
from stillhouse.methods.multi_level_ot import transport
from tests.methods.two_sides import both, by_position, cross_entropy, example, logits, same, side

COUNTS = [([4, 1, 3], [2, 5, 3]), ([1], [1]), ([2, 3], [6, 1])]
K = 5


def plan_twin(rows: Tensor, columns: Tensor, epsilon: float = 0.1, iterations: int = 10) -> Tensor:
    """sum P W: rows [m, k] and columns [n, k] of probabilities."""
    rows, columns = ((side / 2.0).softmax(-1) for side in (rows, columns))
    cost = (rows[:, None] - columns[None]).abs().sum(-1)  # [m, n]
    plan = (-cost / epsilon).exp()
    for _ in range(iterations):
        plan = plan / plan.sum(1, keepdim=True)
        plan = plan / plan.sum(0, keepdim=True)
    return (plan * cost).sum()


def probabilities(side: Predictions, temperature: float = 1.0) -> Tensor:
    z = logits(side)
    return (z / ((z.std(-1, keepdim=True) + 1e-4) * temperature)).softmax(-1)


def likeliest(q: Tensor) -> Tensor:
    """q over the K columns of the highest sums."""
    return q[:, q.detach().sum(0).argsort(descending=True)[:K]]


def target_entropy(target: Tensor, prediction: Tensor) -> Tensor:
    return -(target.softmax(-1) * prediction.log_softmax(-1)).sum(-1)


def clean_twin(student: Predictions, teacher: Predictions, ours: Sequence[int], theirs: Sequence[int]) -> Tensor:
    total = cross_entropy(student)
    rows = zip(
        probabilities(student).split(list(ours)), probabilities(teacher).detach().split(list(theirs)), strict=True
    )
    for q, p in rows:
        q, p = likeliest(q), likeliest(p)
        shorter = min(len(q), len(p))
        l1 = (q[:shorter] - p[:shorter]).abs().sum()
        total = total + 1.5 * (l1 + 0.1 * target_entropy(p[:shorter], q[:shorter]).sum() + 0.1 * plan_twin(p, q))
    return total


def official_twin(student: Predictions, teacher: Predictions, ours: Sequence[int], theirs: Sequence[int]) -> Tensor:
    kept = [torch.arange(start, start + count - 1) for start, count in zip(np.cumsum([0, *ours]), ours, strict=False)]
    sizes = [count - 1 for count in ours]
    q = likeliest(probabilities(student)[torch.cat(kept)]).split(sizes)
    p = likeliest(probabilities(teacher).detach()).split(list(theirs))
    length = max(*sizes, *theirs)
    l1, entropies, costs = [], [], []
    for of_student, of_teacher in zip(q, p, strict=True):
        shorter = min(len(of_student), len(of_teacher))
        a, b = (torch.cat([rows, rows.new_zeros(length - len(rows), K)]) for rows in (of_student, of_teacher))
        gaps = (a - b).abs().sum(-1)[:shorter]
        l1.append(gaps.mean() if shorter else gaps.sum())
        entropies.append(target_entropy(a, b))
        costs.append(plan_twin(b, a))
    kd = torch.stack(l1).mean() + 0.1 * torch.cat(entropies).mean() + 0.1 * 0.001 * torch.stack(costs).sum()
    return cross_entropy(student) + 1.5 * len(student) * kd


def mcw_twin(student: Predictions, teacher: Predictions, ours: Sequence[int], theirs: Sequence[int]) -> Tensor:
    q = likeliest(probabilities(student, 2.0)).split(list(ours))
    p = likeliest(probabilities(teacher, 2.0).detach()).split(list(theirs))
    gaps, entropies, costs = [], [], []
    for of_student, of_teacher in zip(q, p, strict=True):
        shorter = min(len(of_student), len(of_teacher))
        a, b = of_student[:shorter], of_teacher[:shorter]
        gaps.append((a - b).abs().sum(-1))
        entropies.append(target_entropy(b, a))
        costs.append(plan_twin(of_student, of_teacher))
    gap, entropy = torch.cat(gaps), torch.cat(entropies)
    scalar = gap.mean() + 0.1 * entropy.mean() + 0.1 * 0.001 * torch.stack(costs).sum()
    return cross_entropy(student) + scalar * len(gap)


TWINS = {"clean": clean_twin, "official": official_twin, "mcw": mcw_twin}


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("vocabularies", [(13, 17), (17, 13), (9, 9)])
@pytest.mark.parametrize("form", TWINS)
def test_loss_and_gradients_are_those_of_the_twin(form, vocabularies, counts) -> None:
    student, teacher = both(*counts, vocabularies)
    method = build("multi_level_ot", form=form, top_k=K)
    method.blocks = Blocks(rows=2, elements=30)
    terms = method(student, teacher, Clock())
    same(terms.loss, TWINS[form](student, teacher, *counts), student)
    weight = 1.0 if form == "mcw" else 1.5
    torch.testing.assert_close(terms.sums["ce"] + weight * terms.sums["kd"], terms.loss.detach())


@pytest.mark.parametrize("form", [*TWINS, "official_greedy"])
def test_one_tokenizer_pairs_rows_one_by_one(form) -> None:
    counts = [3, 1, 4]
    student, teacher = both(counts, counts)
    method = build("multi_level_ot", form=form)
    same(method(student, replace(teacher, pairing=None), Clock()).loss, method(student, teacher, Clock()).loss, student)


def test_a_batch_is_the_sum_of_its_examples() -> None:
    ours, theirs = [4, 1, 3], [2, 5, 3]
    student, teacher = both(ours, theirs)
    method = build("multi_level_ot", top_k=K)
    parts = []
    for index, counts in enumerate(zip(ours, theirs, strict=True)):
        of_teacher = replace(example(teacher, theirs, index), pairing=by_position(*([count] for count in counts)))
        parts.append(method(example(student, ours, index), of_teacher, Clock()).loss)
    same(method(student, teacher, Clock()).loss, torch.stack(parts).sum(), student)


@pytest.mark.parametrize("form", TWINS)
def test_numbers_may_follow_a_schedule(form) -> None:
    student, teacher = both([4, 2], [3, 5])
    moved = ("kl_weight", "transport_weight", "epsilon", "kd_weight")
    ramp = {"schedule": "linear", "start": 0.2, "end": 0.8}
    moving = build("multi_level_ot", form=form, **dict.fromkeys(moved, ramp))
    constant = build("multi_level_ot", form=form, **dict.fromkeys(moved, 0.5))
    same(moving(student, teacher, Clock(5, 10)).loss, constant(student, teacher, Clock()).loss, student)
    assert moving.gauges(Clock(5, 10)) == dict.fromkeys(moved, 0.5)


def test_groups_of_rows_are_compared_by_their_means() -> None:
    student, teacher = side(0, [3], 13, 5), side(1, [2], 17, 7)
    groups = (np.array([0, 1, 2]), np.array([0, 2, 3])), (np.array([0, 1]), np.array([0, 1, 2]))
    pairing = Pairing.of(*groups, [3], [2], "mean")
    terms = build("multi_level_ot", top_k=K)(student, replace(teacher, pairing=pairing), Clock())
    q, p = likeliest(probabilities(student)), likeliest(probabilities(teacher))
    pairs = {(0, 1): 0, (2,): 1}
    wanted = sum((q[list(rows)].mean(0) - p[other]).abs().sum() for rows, other in pairs.items())
    torch.testing.assert_close(terms.sums["l1"], torch.as_tensor(wanted).detach())


@pytest.mark.parametrize("form", [*TWINS, "official_greedy"])
def test_where_nothing_corresponds_labels_are_learnt(form) -> None:
    student, teacher = side(0, [3], 13, 5), side(1, [0], 17, 7)
    nothing = (np.zeros(0, dtype=np.int64), np.zeros(1, dtype=np.int64))
    paired = replace(teacher, pairing=Pairing.of(nothing, nothing, [3], [0], "first"))
    terms = build("multi_level_ot", form=form, top_k=K)(student, paired, Clock())
    gradients = torch.autograd.grad(terms.loss, (student.hidden, student.head.weight))
    assert terms.loss.isfinite() and all(gradient.isfinite().all() for gradient in gradients)
    if not form.startswith("official"):  # those count rows of zeros
        torch.testing.assert_close(terms.loss, cross_entropy(student))


@given(seed=st.integers(0, 2**32), m=st.integers(1, 7), n=st.integers(1, 7), iterations=st.integers(1, 10))
@settings(max_examples=20)
def test_the_transport_is_sinkhorns(seed, m, n, iterations) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows, columns = (
        (3.0 * torch.randn(size, 6, generator=generator, dtype=torch.float64)).softmax(-1).requires_grad_()
        for size in (m, n)
    )
    wanted = plan_twin(rows, columns, 0.1, iterations)
    found = transport(columns, rows, 0.1, iterations)
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-12)
    gradients = [torch.autograd.grad(cost, (rows, columns)) for cost in (found, wanted)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)
    batch = transport(torch.stack([columns, columns]), torch.stack([rows, rows]), 0.1, iterations)
    torch.testing.assert_close(batch, torch.stack([found, found]))


def test_a_sharp_transport_stays_finite() -> None:
    rows, columns = (torch.randn(9, 6, generator=torch.Generator().manual_seed(seed)) * 20 for seed in range(2))
    rows.requires_grad_()
    cost = transport(columns.softmax(-1), rows.softmax(-1), 1e-4, 10)
    cost.backward()
    assert cost > 0.0 and cost.isfinite() and rows.grad is not None and rows.grad.isfinite().all()
