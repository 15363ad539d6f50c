"""Every method of the catalogue against its formula, dense and by autograd; schedules; state."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from stillhouse import divergence, schedule
from stillhouse.catalogue import METHODS
from stillhouse.catalogue.dual_space import DUAL_SPACE
from stillhouse.methods import Clock, build
from stillhouse.methods.ctkd import CurriculumTemperature
from tests.methods.rows import both, dense

MIDDLE = Clock(step=5, steps=10, epoch=1.5)
# Methods that always see two tokenisations, or the hidden spaces of both models, or must know who wrote a token, have
# twins of their own.
APART = [name for name, entry in METHODS.items() if entry.two_sided or name in DUAL_SPACE or entry.sources]
ROW_BY_ROW = [name for name in METHODS if name not in APART]
DIVERGENCES = {"gkd": "jsd", "imitkd": "forward_kl"}  # of methods that are a divergence with a rollout


def twin(name: str, now: dict[str, Any], z_s: Tensor, z_t: Tensor, labels: Tensor, extra: Any) -> Tensor:
    """The loss of all rows from dense logits."""
    ce = -z_s.log_softmax(-1).gather(-1, labels[:, None]).sum()
    if not METHODS[name].needs_teacher:
        return ce
    kd_weight = now.pop("kd_weight")
    now.pop("parity", None)
    if name == "taid":
        target = ((1.0 - extra) * z_s.detach() + extra * z_t).softmax(-1)
        kd = -(target * z_s.log_softmax(-1)).sum()
    elif name == "ctkd":
        lq, lp = (z_s / extra).log_softmax(-1), (z_t / extra).log_softmax(-1)
        kd = extra**2 * (lp.exp() * (lp - lq)).sum()
    else:
        named = now.pop("loss", DIVERGENCES.get(name, name))
        kd = divergence.build(named, **now)(z_s, z_t, labels).sum()
    return (1.0 - kd_weight) * ce + kd_weight * kd


@pytest.mark.parametrize("kd_weight", [0.3, 1.0])
@pytest.mark.parametrize("name", ROW_BY_ROW)
def test_loss_and_gradients_equal_the_dense_formula(name: str, kd_weight: float) -> None:
    settings = {"kd_weight": kd_weight} if METHODS[name].needs_teacher else {}
    method, (student, teacher) = build(name, **settings), both()
    extra: Any = getattr(method, "t", torch.tensor(1.0 + 20.0 * torch.sigmoid(torch.tensor(1.0)).item())).item()
    wanted = twin(name, method.at(MIDDLE), dense(student), dense(teacher).detach(), student.labels, extra)
    leaves = (student.hidden, student.head.weight)
    wanted_gradients = torch.autograd.grad(wanted, leaves)
    terms = method(student, teacher, MIDDLE)
    torch.testing.assert_close(terms.loss.detach(), wanted.detach(), rtol=1e-7, atol=1e-9)
    for ours, theirs in zip(torch.autograd.grad(terms.loss, leaves), wanted_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)
    assert "ce" in terms.sums and ("kd" in terms.sums) == METHODS[name].needs_teacher


@pytest.mark.parametrize("name", [name for name in ROW_BY_ROW if METHODS[name].needs_teacher])
def test_every_number_may_follow_a_schedule(name: str) -> None:
    """At every place of the run, the loss is that of the constant which the schedule has reached there."""
    moved = {
        key: {"schedule": "linear", "start": max(0.2, parameter.low), "end": min(0.9, parameter.high)}
        for key, parameter in METHODS[name].parameters.items()
        if not parameter.fixed and parameter.is_number
    }
    assert {"kd_weight"} <= moved.keys()
    method, (student, teacher) = build(name, **moved), both()
    for step in (0, 3, 10):
        clock = Clock(step, 10)
        now = {key: schedule.value_at(method.settings[key], step / 10) for key in moved}
        constant = build(name, **now)
        ours, theirs = method(student, teacher, clock), constant(student, teacher, clock)
        torch.testing.assert_close(ours.loss, theirs.loss, rtol=1e-9, atol=1e-12)
        assert {key: method.gauges(clock)[key] for key in moved} == now
        assert not set(constant.gauges(clock)) & set(moved)


def test_the_rollout_of_a_paper_is_a_divergence_under_its_name() -> None:
    """With the papers' defaults, which are no cross-entropy, and DistiLLM's both directions."""
    student, teacher = both()
    for name, of, settings in (
        ("gkd", "jsd", {"beta": 0.5}),
        ("imitkd", "forward_kl", {}),
        ("distillm", "skew_forward_kl", {"lam": 0.1}),
    ):
        ours, theirs = build(name), build(of, **settings, temperature=1.0, kd_weight=1.0)
        torch.testing.assert_close(ours(student, teacher, MIDDLE).loss, theirs(student, teacher, MIDDLE).loss)
    reverse = build("distillm", loss="skew-reverse-kl", skew_alpha=0.3)
    wanted = divergence.build("skew_reverse_kl", lam=0.3)(dense(student), dense(teacher)).sum()
    torch.testing.assert_close(reverse(student, teacher, MIDDLE).loss, wanted)


def test_a_part_without_weight_is_left_out_only_where_it_never_gets_any() -> None:
    student, teacher = both()
    ramp = {"schedule": "linear", "start": 0.0, "end": 1.0}
    assert build("todi", kd_weight=0.0)(student, teacher, Clock()).sums.keys() & {"kd"} == set()
    assert {"ce", "kd"} <= build("todi", kd_weight=ramp)(student, teacher, Clock()).sums.keys()


def test_t_is_only_recorded_at_first_then_rises_and_never_falls() -> None:
    method = build("taid", alpha=0.05)
    seen = [method.t.item()]
    for step, loss in enumerate([3.0, 2.0, 5.0, 5.0, 1.0]):
        method.after_step({"kd": torch.tensor(loss)}, Clock(step, 1000))
        seen.append(method.t.item())
    assert seen[0] == seen[1] == pytest.approx(0.4)
    assert all(after > before for before, after in pairwise(seen[1:]))
    state = {key: value.clone() for key, value in method.state_dict().items()}
    assert set(state) == {"t", "momentum", "previous"}
    again = build("taid", alpha=0.05)
    again.load_state_dict(state)
    for copy in (method, again):
        copy.after_step({"kd": torch.tensor(0.7)}, Clock(5, 1000))
    assert method.t.item() == again.t.item() and method.momentum.item() == again.momentum.item()


def test_t_moves_in_forward_under_parity_alone_and_only_in_training() -> None:
    student, teacher = both()
    for parity, training in ((True, True), (True, False), (False, True)):
        method = build("taid", parity=parity, alpha=0.5).train(training)
        for _ in range(2):
            method(student, teacher, Clock(0, 10))
        assert (method.t.item() != pytest.approx(0.4)) == (parity and training)
        assert method.follows_means == (not parity)


def test_theta_gets_the_reversed_gradient_of_the_temperature() -> None:
    """Against autograd through both softmaxes; the factor is the cosine's at epoch 2 of 10, and negative."""
    method, (student, teacher) = build("ctkd", kd_weight=0.25, reversal=0.5), both()
    assert isinstance(method, CurriculumTemperature)
    theta = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    temperature = 1.0 + 20.0 * torch.sigmoid(theta)
    lq, lp = (dense(student) / temperature).log_softmax(-1), (dense(teacher).detach() / temperature).log_softmax(-1)
    kd = temperature**2 * (lp.exp() * (lp - lq)).sum()
    (slope,) = torch.autograd.grad(0.25 * kd, theta)
    (method(student, teacher, Clock(3, 10, epoch=1.0)).loss * 2.0).backward()
    factor = -0.5 * 0.5 * (1.0 - math.cos(math.pi * 2.0 / 10.0))
    assert method.theta.grad is not None and slope.abs() > 1e-3
    assert method.theta.grad.item() == pytest.approx(2.0 * factor * slope.item(), rel=1e-5)
    assert method.reversal(Clock(epoch=50.0)) == pytest.approx(-0.5)
    (group,) = method.parameter_groups()
    assert group["params"] == [method.theta] and group["lr"] == 1e-3 and group["weight_decay"] == 0.0


def test_dkd_under_parity_divides_by_every_position() -> None:
    student, teacher = both()  # 6 scored of 24 positions
    clean, parity = (build("dkd", parity=parity)(student, teacher, Clock()) for parity in (False, True))
    torch.testing.assert_close(parity.loss, clean.loss / 4.0)
    torch.testing.assert_close(parity.sums["kd"], clean.sums["kd"] / 4.0)
