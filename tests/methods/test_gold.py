"""GOLD next to its definition, group by group over dense fp64 rows."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from stillhouse.head import Blocks, Predictions
from stillhouse.methods import Clock, Method, build
from tests.methods.groups import EXAMPLES, STUDENT, TEACHER, Batch, batch, dense, tokenizers
from tests.methods.rows import both

SMALL = Blocks(rows=3, elements=40, vocabulary_tile=5)
SETTINGS: list[dict[str, Any]] = [
    *({"merge": merge, "hybrid": hybrid} for merge, hybrid in product(("observed", "bayesian"), (True, False))),
    *({"beta": beta} for beta in (0.0, 0.2, 1.0)),
    {"matched_weight": 0.7},
    {"matched_weight": 2.0, "unmatched_weight": 0.4, "kd_weight": 0.3},
    {"temperature": 1.7, "teacher_temperature": 0.6, "kd_weight": 0.5},
]


def gold(settings: dict[str, Any]) -> Method:
    method = build("gold", **settings)
    method.tokenizers, method.blocks = tokenizers(), SMALL
    return method


def merged(logits: Tensor, labels: Tensor, rows: list[int], merge: str) -> Tensor:
    q = logits.softmax(-1)
    base, others = (rows[0], rows[1:]) if merge == "observed" else (rows[-1], rows[:-1])
    found = q[base]
    for row in others:
        found = found * q[row, labels[row]].clamp(min=1e-8)
    return found


def jsd(a: Tensor, b: Tensor, beta: float) -> Tensor:
    a, b = a.clamp(min=1e-8), b.clamp(min=1e-8)
    if beta in (0.0, 1.0):
        return (b * (b / a).log() if beta == 0.0 else a * (a / b).log()).sum()
    m = (1.0 - beta) * a + beta * b
    return (beta * b * (b / m).log() + (1.0 - beta) * a * (a / m).log()).sum()


def by_rank(a: Tensor, b: Tensor) -> Tensor:
    size = max(len(a), len(b))
    filled = [torch.nn.functional.pad(x.sort(descending=True).values, (0, size - len(x))) for x in (a, b)]
    return (filled[0] - filled[1]).abs().sum()


def twin(given: Batch, settings: dict[str, Any]) -> Tensor:
    now = {"merge": "observed", "hybrid": True, "beta": 0.5, "temperature": 1.0, "kd_weight": 1.0, **settings}
    z_s, z_t = dense(given.student), dense(given.teacher).detach()
    ce = torch.nn.functional.cross_entropy(z_s, given.student.labels, reduction="sum")
    ours = list(range(3, STUDENT)) if now["hybrid"] else []
    theirs = [i - 3 for i in ours]
    matched = now.get("matched_weight", 10 / TEACHER) if now["hybrid"] else 0.0
    unmatched = now.get("unmatched_weight", 1.0 - matched)
    rest = [i for i in range(STUDENT) if i not in ours], [i for i in range(TEACHER) if i not in theirs]
    kd = z_s.new_zeros(())
    for s_rows, t_rows in (group for groups in given.groups() for group in groups):
        a = merged(z_s / now["temperature"], given.student.labels, s_rows, now["merge"])
        t_t = now.get("teacher_temperature", now["temperature"])
        b = merged(z_t / t_t, given.teacher.labels, t_rows, now["merge"])
        kd = kd + matched * jsd(a[ours], b[theirs], now["beta"]) + unmatched * by_rank(a[rest[0]], b[rest[1]])
    return (1.0 - now["kd_weight"]) * ce + now["kd_weight"] * kd


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_loss_and_gradients_equal_the_definition(settings: dict[str, Any]) -> None:
    given = batch()
    wanted = twin(given, settings)
    terms = gold(settings)(given.student, given.teacher, Clock())
    torch.testing.assert_close(terms.loss, wanted, rtol=1e-9, atol=1e-12)
    expected = torch.autograd.grad(wanted, given.leaves)
    for ours, theirs in zip(torch.autograd.grad(3.0 * terms.loss, given.leaves), expected, strict=True):
        torch.testing.assert_close(ours, 3.0 * theirs, rtol=1e-7, atol=1e-10)
    assert terms.sums["aligned"] == 11
    assert {"ce", "kd", "matched_kd", "unmatched_kd", "accuracy"} <= terms.sums.keys()


def test_a_batch_is_the_sum_of_its_examples() -> None:
    given = batch()
    for settings in SETTINGS:
        method = gold(settings)
        whole = method(given.student, given.teacher, Clock()).loss
        parts = [given.alone(example) for example in range(len(EXAMPLES))]
        loss = sum((method(part.student, part.teacher, Clock()).loss for part in parts), torch.zeros(()))
        torch.testing.assert_close(whole, loss, rtol=1e-10, atol=1e-12, check_dtype=False)


@pytest.mark.parametrize("parity", [False, True])
def test_without_a_group_there_is_nothing_to_compare(parity: bool) -> None:
    given = batch([(3, 2, []), (1, 1, [])])
    terms = gold({"parity": parity})(given.student, given.teacher, Clock())
    assert terms.loss == 0.0 or parity  # what TRL leaves over is a group
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(terms.loss, given.leaves))


def test_what_is_alike_costs_nothing_and_one_tokenizer_needs_no_pairing() -> None:
    student, teacher = both()
    method = build("gold")
    assert method(student, replace(student, pairing=None), Clock()).loss.item() == pytest.approx(0.0, abs=1e-12)
    wanted = sum(
        jsd(a, b, 0.5) for a, b in zip(dense(student).softmax(-1), dense(teacher).detach().softmax(-1), strict=True)
    )
    torch.testing.assert_close(method(student, teacher, Clock()).loss, wanted)


def test_unlike_vocabularies_need_tokenizers_where_tokens_are_matched() -> None:
    given = batch()
    method = gold({})
    method.tokenizers = None
    with pytest.raises(ValueError, match="need both tokenizers"):
        method(given.student, given.teacher, Clock())
    ranked = gold({"hybrid": False})
    ranked.tokenizers = None
    assert ranked(given.student, given.teacher, Clock()).loss > 0.0


def test_parity_is_a_mean_of_means_of_rows_one_late() -> None:
    """Two examples by hand; the last row of each is left out, and what follows the last whole group is one."""
    examples = [
        (4, 4, [([0], [0]), ([1, 2], [1, 2]), ([3], [3])]),
        (4, 5, [([0], [0]), ([1], [1]), ([2, 3], [2, 3, 4])]),
    ]
    given = batch(examples)
    kept = [[([0], [0]), ([1, 2], [1, 2])], [([4], [4]), ([5], [5]), ([6], [6, 7])]]
    z_s, z_t = dense(given.student), dense(given.teacher).detach()
    means = []
    for groups in kept:
        values = []
        for s_rows, t_rows in groups:
            # Row k + 1 with label k.
            a = merged(z_s.roll(-1, 0), given.student.labels, s_rows, "observed")
            b = merged(z_t.roll(-1, 0), given.teacher.labels, t_rows, "observed")
            values.append(by_rank(a, b))
        means.append(torch.stack(values).mean())
    method = gold({"parity": True, "hybrid": False})
    loss = method(given.student, given.teacher, Clock()).loss
    torch.testing.assert_close(loss / 8, torch.stack(means).mean(), rtol=1e-6, atol=0.0, check_dtype=False)


def test_predictions_in_bf16_come_close() -> None:
    given = batch()
    wanted = twin(given, {})

    def rounded(side: Predictions) -> Predictions:
        head = replace(side.head, weight=side.head.weight.detach().bfloat16().requires_grad_())
        return replace(side, hidden=side.hidden.detach().bfloat16().requires_grad_(), head=head)

    student, teacher = rounded(given.student), replace(rounded(given.teacher), pairing=given.teacher.pairing)
    loss = gold({})(student, teacher, Clock()).loss
    loss.backward()
    assert loss.item() == pytest.approx(wanted.item(), rel=0.05)
    assert student.hidden.grad is not None and student.hidden.grad.dtype == torch.bfloat16
