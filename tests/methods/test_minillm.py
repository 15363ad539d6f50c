"""MiniLLM against its formula: rewards and returns a token at a time, the losses dense and by autograd."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from stillhouse.divergence import Rows
from stillhouse.divergence.policy import ClippedPolicyGradient
from stillhouse.head import Blocks, Head, Predictions
from stillhouse.methods import Clock, build
from stillhouse.methods.minillm import clipped_rewards, returns
from stillhouse.methods.responses import Responses
from tests.methods.rows import dense
from tests.methods.written import Written, written

NOW = Clock(3, 10)


def twin(batch: Written, temperature: float, cliprange: float, *, single_step: bool) -> Tensor:
    """The sum over tokens."""
    lq = (dense(batch.student) / temperature).log_softmax(-1)
    lp = (dense(batch.teacher).detach() / temperature).log_softmax(-1)
    noted, total = batch.sampled, torch.zeros((), dtype=torch.float64)
    for k, label in enumerate(batch.student.labels.tolist()):
        rho = noted.importance[k] * (lq[k, label] - noted.log_probability[k]).exp()
        worth = noted.advantage[k]
        total = total - torch.minimum(worth * rho, worth * rho.clamp(1.0 - cliprange, 1.0 + cliprange))
    return total + ((lq.exp() * (lq - lp)).sum() if single_step else 0.0)


@pytest.mark.parametrize("single_step", [True, False])
@pytest.mark.parametrize(("temperature", "cliprange"), [(1.0, 0.2), (1.7, 0.2), (0.6, 0.0), (1.0, 3.0)])
def test_loss_and_gradients_are_the_formula(temperature: float, cliprange: float, single_step: bool) -> None:
    batch = written(alone=True)
    settings = {"temperature": temperature, "cliprange": cliprange, "single_step": single_step}
    wanted = twin(batch, **settings)
    wanted_gradients = torch.autograd.grad(wanted, batch.leaves)
    terms = build("minillm", **settings)(batch.student, batch.teacher, NOW)
    torch.testing.assert_close(terms.loss.detach(), wanted.detach(), rtol=1e-8, atol=1e-10)
    for ours, theirs in zip(torch.autograd.grad(terms.loss, batch.leaves), wanted_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)
    assert {"policy", "ce", "accuracy", "agreement"} <= terms.sums.keys()
    assert ("kd" in terms.sums) == single_step


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_loss_on_plain_text_is_its_formula(share: float) -> None:
    batch = written(alone=True)
    weight, found = build("minillm", lm_kd=share, lm_coef=0.7, temperature=1.7).on_text(
        batch.student, batch.teacher, NOW
    )
    lq, lp = dense(batch.student).log_softmax(-1), dense(batch.teacher).detach().log_softmax(-1)
    wanted = (1.0 - share) * -lq.gather(-1, batch.student.labels[:, None]).sum()
    wanted = wanted + share * (lp.exp() * (lp - lq)).sum()
    assert weight == 0.7
    torch.testing.assert_close(found.detach(), wanted.detach(), rtol=1e-8, atol=1e-10)
    wanted_gradients = torch.autograd.grad(wanted, batch.leaves)
    for ours, theirs in zip(torch.autograd.grad(found, batch.leaves), wanted_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


def test_cliprange_may_follow_a_schedule() -> None:
    batch = written(alone=True)
    moved = build("minillm", cliprange={"schedule": "linear", "start": 0.0, "end": 1.0})
    torch.testing.assert_close(moved(batch.student, batch.teacher, NOW).loss, twin(batch, 1.0, 0.3, single_step=True))


def test_neither_blocks_nor_a_split_change_anything() -> None:
    batch, method = written(alone=True), build("minillm")
    whole = method(batch.student, batch.teacher, NOW)
    gradients = torch.autograd.grad(whole.loss, batch.leaves)
    method.blocks = Blocks(rows=3, elements=25, vocabulary_tile=4)
    parts = [method(part.student, part.teacher, NOW).loss for part in (batch.of([4, 1]), batch.of([0, 2, 3, 5]))]
    for loss in (parts[0] + parts[1], method(batch.student, batch.teacher, NOW).loss):
        torch.testing.assert_close(loss, whole.loss)
        for ours, theirs in zip(torch.autograd.grad(loss, batch.leaves), gradients, strict=True):
            torch.testing.assert_close(ours, theirs)
    nothing = batch.of([])
    assert method(nothing.student, nothing.teacher, NOW).loss == 0.0


@pytest.mark.parametrize("length_norm", [True, False])
@pytest.mark.parametrize("from_next", [True, False])
def test_returns_are_those_of_each_token(from_next: bool, length_norm: bool) -> None:
    """Responses of unlike lengths, one token among them, whose rows may lie between each other's."""
    generator = torch.Generator().manual_seed(1)
    sequence = torch.tensor([7, 7, 2, 7, 2, 2, 5, 7, 2])
    rewards = torch.randn(9, generator=generator, dtype=torch.float64)
    found = returns(rewards, sequence, 0.8, from_next=from_next, length_norm=length_norm)
    for k in range(9):
        after = [j for j in range(k + from_next, 9) if sequence[j] == sequence[k]]
        wanted = sum(0.8**place * rewards[j].item() for place, j in enumerate(after))
        assert found[k].item() == pytest.approx(wanted / (max(1, len(after)) if length_norm else 1)), k
    assert returns(rewards[:0], sequence[:0], 0.8, from_next=from_next, length_norm=True).shape == (0,)
    undiscounted = returns(rewards, sequence, 1.0, from_next=False, length_norm=False)
    assert undiscounted[6] == rewards[6] and undiscounted[0] == pytest.approx(rewards[sequence == 7].sum().item())
    nearsighted = returns(rewards, sequence, 0.0, from_next=False, length_norm=False)
    torch.testing.assert_close(nearsighted, rewards)


def test_responses_know_their_rows() -> None:
    responses = Responses.of(torch.tensor([7, 7, 2, 7, 5]))
    assert responses.lengths.tolist() == [1, 1, 3] and responses.place.tolist() == [0, 1, 0, 2, 0]
    assert responses.means(torch.tensor([1.0, 2.0, 9.0, 6.0, 4.0])).tolist() == [9.0, 4.0, 3.0]
    assert responses.shares(torch.float64).sum() == pytest.approx(3.0)


@pytest.mark.parametrize("setting", [{}, {"single_step": False}, {"parity": True}, {"length_norm": False},
                                     {"temperature": 2.0}, {"temperature": 2.0, "parity": True},
                                     {"cliprange_reward": 1.5}, {"gamma": 0.5}, {"reward_scaling": 2.0}])  # fmt: skip
def test_the_worth_of_a_token(setting: dict[str, Any]) -> None:
    batch = written(alone=True)
    now = build("minillm").settings | setting
    temperature = 1.0 if now["parity"] else now["temperature"]
    log_p = (dense(batch.teacher) / temperature).log_softmax(-1).gather(-1, batch.teacher.labels[:, None])[:, 0]
    rewards = ((log_p - batch.sampled.log_probability) / now["reward_scaling"]).clamp(
        -now["cliprange_reward"], now["cliprange_reward"]
    )
    own = now["parity"] or not now["single_step"]
    wanted = returns(
        rewards, batch.student.sequence, now["gamma"], from_next=not own, length_norm=bool(now["length_norm"])
    )
    method = build("minillm", **setting)
    method.blocks = Blocks(rows=4, elements=25)
    found = method.appraise(batch.teacher, batch.sampled)
    torch.testing.assert_close(found, wanted.detach())
    assert not found.requires_grad and method.appraises and method.unit == "token"


def test_rewards_of_tokens_without_probability() -> None:
    """The teacher's token that the student did not know, the reverse, and one that neither knew; NaN stays."""
    none, some = -math.inf, -2.0
    found = clipped_rewards(torch.tensor([some, none, none, math.nan]), torch.tensor([none, some, none, some]), 0.5, 7)
    assert found[:3].tolist() == [7.0, -7.0, 0.0] and found[3].isnan()


@pytest.mark.parametrize("advantage", [2.0, -2.0])
@pytest.mark.parametrize(("old", "likelier"), [(-math.inf, 0.0), (-300.0, 0.0), (-1.0, -math.inf), (-1.0, -400.0)])
def test_no_ratio_gives_nan(old: float, likelier: float, advantage: float) -> None:
    """A label that the student did not know, or knows no longer, or takes for certain now: fp32, through the head."""
    logits = torch.tensor([[0.0, -500.0, -500.0, 1.0 if likelier else -500.0]])
    logits[0, 0] = likelier
    loss = ClippedPolicyGradient(
        1.0, 0.2, torch.tensor([advantage]), torch.tensor([old]), torch.tensor([0.0 if math.isinf(old) else 1.0])
    )
    values, gradient = loss.value_and_gradient(Rows(logits, labels=torch.tensor([0])))
    assert values.isfinite().all() and gradient.isfinite().all()
    if math.isinf(old):
        assert values.item() == pytest.approx(-advantage * 0.8 if advantage < 0 else 0.0) and not gradient.any()


def test_a_worth_that_is_not_a_number_reaches_the_loss() -> None:
    loss = ClippedPolicyGradient(1.0, 0.2, torch.tensor([math.nan]), torch.zeros(1), torch.ones(1))
    values, gradient = loss.value_and_gradient(Rows(torch.randn(1, 5), labels=torch.tensor([0])))
    assert values.isnan().all() and gradient.isnan().any()


def test_holes_in_the_vocabulary_give_no_nan() -> None:
    batch, method = written(alone=True).holed(), build("minillm")
    terms = method(batch.student, batch.teacher, NOW)
    assert terms.loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(terms.loss, batch.leaves))
    assert method.appraise(batch.teacher, batch.sampled).isfinite().all()


def test_data_that_nobody_noted_teaches_nothing_by_policy() -> None:
    """Worth 0, so that only the reverse KL is left of such a row."""
    batch = written(alone=True)
    zeros = torch.zeros_like(batch.sampled.advantage)
    noted = replace(batch.sampled, advantage=zeros, log_probability=zeros)
    terms = build("minillm")(replace(batch.student, sampled=noted), batch.teacher, NOW)
    assert terms.sums["policy"] == 0.0
    torch.testing.assert_close(terms.loss, terms.sums["kd"])
    with pytest.raises(ValueError, match="minillm learns from what the student writes"):
        build("minillm")(replace(batch.student, sampled=None), batch.teacher, NOW)
    with pytest.raises(ValueError, match="minillm compares token by token"):
        build("minillm")(batch.student, replace(batch.teacher, pairing=object()), NOW)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("capped", [False, True])
def test_the_policy_gradient_moves_what_it_should(capped: bool) -> None:
    """A good token gets likelier and a bad one less; past the clip, in the same direction, neither moves."""
    generator = torch.Generator().manual_seed(0)
    weight, hidden = (torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in (5, 2))
    hidden.requires_grad_()
    labels = torch.tensor([1, 3])
    log_q = (hidden @ weight.T).log_softmax(-1).gather(-1, labels[:, None])[:, 0].detach()
    shift = torch.tensor([0.5, -0.5], dtype=torch.float64) if capped else torch.zeros(2, dtype=torch.float64)
    noted = replace(
        written((2,), alone=True).sampled,
        advantage=torch.tensor([1.0, -1.0], dtype=torch.float64),
        log_probability=log_q - shift,
        importance=torch.ones(2, dtype=torch.float64),
    )
    student = Predictions(hidden, Head(weight), labels, torch.zeros(2, dtype=torch.long), sampled=noted)
    teacher = Predictions(hidden.detach(), Head(weight), labels, student.sequence)
    loss = build("minillm", single_step=False)(student, teacher, NOW).loss
    (gradient,) = torch.autograd.grad(loss, hidden)
    moved = hidden.detach() - 1e-3 * gradient
    change = (moved @ weight.T).log_softmax(-1).gather(-1, labels[:, None])[:, 0] - log_q
    assert change.sign().tolist() == ([0.0, 0.0] if capped else [1.0, -1.0])
