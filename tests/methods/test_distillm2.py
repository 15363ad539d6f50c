"""DistiLLM-2 against its formula, a response at a time, dense and by autograd."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from stillhouse.divergence.mixtures import SkewForwardKL, SkewReverseKL
from stillhouse.head import Blocks
from stillhouse.methods import Clock, Method, build
from stillhouse.mistakes import Mistake
from tests.methods.written import LENGTHS, Written, written

LOSSES = ("distillm_v2", "distillm_v1", "gkd", "kd", "seqkd", "dpkd", "speculative_kd")
MIDDLE = Clock(step=3, steps=10)


def kl(a: Tensor, b: Tensor) -> Tensor:
    """KL(a||b) of log-probabilities [n, V]: [n]."""
    return (a.exp() * (a - b)).sum(-1)


def divergence_of(loss: str, by_student: bool, lq: Tensor, lp: Tensor, now: dict[str, Any], alpha: float) -> Tensor:
    """Of each token of a response."""
    p, q = lp.exp(), lq.exp()
    if loss == "distillm_v2" and not by_student:
        return kl(lp, (alpha * p + (1 - alpha) * q).log())
    if loss in ("distillm_v2", "distillm_v1"):
        return kl(lq, (alpha * q.detach() + (1 - alpha) * p).log())
    if loss == "gkd":
        beta = now["js_beta"]
        mixture = (beta * p + (1 - beta) * q).log()
        return beta * kl(lp, mixture) + (1 - beta) * kl(lq, mixture)
    return kl(lp, lq)


def twin(batch: Written, method: Method, clock: Clock, anchors: tuple[float, float] | None = None) -> Tensor:
    """The mean over pairs."""
    now, loss = method.at(clock), method.settings["loss"]
    b = 1.0 + 0.5 * min(1.0, 2.0 * clock.progress) if now["gradual_beta"] else 1.0
    total, means = torch.zeros((), dtype=torch.float64), []
    for by_student, z_s, z_t, labels in batch.each():
        lq, lp = ((z / now["temperature"]).log_softmax(-1) for z in (z_s, z_t))
        at_label = [z.log_softmax(-1).gather(-1, labels[:, None]).mean() for z in (z_s, z_t)]
        means.append((by_student, at_label[0] - at_label[1]))
        alpha = now["alpha2" if by_student or loss == "distillm_v1" else "alpha1"]
        if anchors is not None:
            gap = (at_label[1].exp() - at_label[0].exp()).item() * (-1.0 if by_student else 1.0)
            alpha = min(alpha, max(0.01, 1.0 - (1.0 - alpha) * anchors[by_student] / (gap + 1e-5)))
        if loss == "dpkd" or (by_student and loss in ("kd", "seqkd", "speculative_kd")):
            continue
        value = -at_label[0] if loss == "seqkd" else divergence_of(loss, by_student, lq, lp, now, alpha).mean()
        total = total + (b if by_student else 2.0 - b) * value
    ours, theirs = ([lead for who, lead in means if who is by] for by in (True, False))
    if loss == "dpkd":
        pairs = zip(theirs, ours, strict=True)
        total = -torch.stack([torch.sigmoid(now["dpkd_beta"] * (chosen - own)).log() for chosen, own in pairs]).sum()
    return total / len(ours)


def check(batch: Written, method: Method, clock: Clock = MIDDLE, **extra: Any) -> None:
    """Value and gradients, as the trainer divides: by the number of responses."""
    wanted = twin(batch, method, clock, **extra)
    wanted_gradients = torch.autograd.grad(wanted, batch.leaves)
    terms = method(batch.student, batch.teacher, clock)
    loss = terms.loss / len(batch.student.sequence.unique())
    torch.testing.assert_close(loss.detach(), wanted.detach(), rtol=1e-8, atol=1e-10)
    for ours, theirs in zip(torch.autograd.grad(loss, batch.leaves), wanted_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)
    assert terms.sums["kd"] == terms.loss.detach() and not any(value.requires_grad for value in terms.sums.values())


@pytest.mark.parametrize("gradual", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_is_its_formula(loss: str, gradual: bool) -> None:
    settings: dict[str, Any] = {"loss": loss}
    settings |= {"gkd": {"js_beta": 0.7}, "dpkd": {"dpkd_beta": 0.4}}.get(loss, {})
    settings |= {} if loss in ("seqkd", "dpkd") else {"temperature": 1.7}
    settings |= {"distillm_v2": {"alpha1": 0.2, "alpha2": 0.3}, "distillm_v1": {"alpha2": 0.3}}.get(loss, {})
    if gradual and loss not in ("distillm_v2", "distillm_v1", "gkd"):
        with pytest.raises(Mistake, match=f"method.gradual_beta: is not of loss {loss}; remove it, or take distillm"):
            build("distillm2", gradual_beta=True, **settings)
        return
    check(written(), build("distillm2", gradual_beta=gradual, **settings))


@pytest.mark.parametrize("loss", ["kd", "seqkd", "speculative_kd"])
def test_where_nobody_asked_the_student_to_write_the_data_alone_is_learnt(loss: str) -> None:
    """As the part of the pairs that is the data's: the other one adds nothing to the loss."""
    batch, method = written(), build("distillm2", loss=loss)
    of_data = (~batch.student.sampled.by_student).nonzero()[:, 0]
    student, teacher = replace(batch.student, sampled=None).at(of_data), batch.teacher.at(of_data)
    alone, pairs = method(student, teacher, MIDDLE), method(batch.student, batch.teacher, MIDDLE)
    responses = len(batch.student.sequence.unique())
    torch.testing.assert_close(alone.loss / (responses // 2), pairs.loss / responses, rtol=1e-9, atol=0)
    assert alone.sums["kd"] == alone.loss.detach()
    with pytest.raises(ValueError, match="no `sampled`"):
        build("distillm2")(student, teacher, MIDDLE)


@pytest.mark.parametrize(
    ("loss", "setting"),
    [("kd", {"alpha1": 0.2}), ("distillm_v1", {"alpha1": 0.2}), ("gkd", {"alpha2": 0.2}), ("dpkd", {"temperature": 2}),
     ("seqkd", {"temperature": 2}), ("distillm_v2", {"js_beta": 0.5}), ("gkd", {"dpkd_beta": 1}),
     ("distillm_v1", {"curriculum": True})],
)  # fmt: skip
def test_a_setting_that_a_loss_does_not_read_is_a_mistake(loss: str, setting: dict[str, Any]) -> None:
    with pytest.raises(Mistake, match=f"is not of loss {loss}; remove it, or take"):
        build("distillm2", loss=loss, **setting)


@pytest.mark.parametrize(("step", "b"), [(0, 1.0), (5, 1.5), (10, 1.5)])
def test_b_grows_over_the_first_half(step: int, b: float) -> None:
    method, batch = build("distillm2", gradual_beta=True), written()
    terms = method(batch.student, batch.teacher, Clock(step, 10))
    wanted = (2.0 - b) * terms.sums["chosen"] + b * terms.sums["rejected"]
    torch.testing.assert_close(terms.loss.detach(), wanted)
    assert method.gauges(Clock(step, 10))["beta"] == b
    assert "beta" not in build("distillm2").gauges(MIDDLE)


def test_the_curriculum_follows_the_means_of_the_first_step() -> None:
    """Before there are anchors alpha is the base; afterwards each response has its own, without gradient."""
    batch, method = written(), build("distillm2", curriculum=True, alpha1=0.4, alpha2=0.5)
    assert method.follows_means and not build("distillm2").follows_means
    check(batch, method)
    sums = method(batch.student, batch.teacher, MIDDLE).sums
    means = {name: value / len(LENGTHS) for name, value in sums.items()}
    gaps: dict[bool, list[float]] = {False: [], True: []}
    for by_student, z_s, z_t, labels in batch.each():
        ours, theirs = (z.log_softmax(-1).gather(-1, labels[:, None]).mean().exp().item() for z in (z_s, z_t))
        gaps[by_student].append(ours - theirs if by_student else theirs - ours)
    wanted = tuple(sum(found) / len(found) for found in (gaps[False], gaps[True]))
    method.after_step(means, MIDDLE)
    torch.testing.assert_close(method.anchors, torch.tensor(wanted))
    method.after_step({name: 2.0 * value for name, value in means.items()}, Clock(4, 10))
    torch.testing.assert_close(method.anchors, torch.tensor(wanted))  # the first step's, for good
    check(batch, method, anchors=tuple(method.anchors.tolist()))
    planted = (0.02, 0.004)  # small enough that some alphas are between their bounds
    method.anchors.copy_(torch.tensor(planted))
    check(batch, method, anchors=tuple(method.anchors.tolist()))


def test_anchors_are_saved_and_a_step_that_was_not_finite_sets_none() -> None:
    method = build("distillm2", curriculum=True)
    gaps = {"gap_chosen": torch.tensor(torch.nan), "gap_rejected": torch.tensor(0.3)}
    method.after_step({}, MIDDLE)
    method.after_step(gaps, MIDDLE)
    assert method.anchors[0].isnan() and method.anchors[1] == pytest.approx(0.3)
    method.after_step(gaps | {"gap_chosen": torch.tensor(0.1)}, MIDDLE)
    assert "anchors" in method.state_dict() and not build("distillm2").state_dict()
    again = build("distillm2", curriculum=True)
    again.load_state_dict(method.state_dict())
    torch.testing.assert_close(again.anchors, torch.tensor([0.1, 0.3]))


@pytest.mark.parametrize("curriculum", [False, True])
def test_neither_blocks_nor_a_split_change_anything(curriculum: bool) -> None:
    batch, method = written(), build("distillm2", curriculum=curriculum, alpha1=0.4, alpha2=0.5)
    if curriculum:
        method.anchors.copy_(torch.tensor([0.02, 0.004]))
    whole = method(batch.student, batch.teacher, MIDDLE)
    gradients = torch.autograd.grad(whole.loss, batch.leaves)
    method.blocks = Blocks(rows=3, elements=25, vocabulary_tile=4)
    parts = [method(part.student, part.teacher, MIDDLE) for part in (batch.of([0, 1]), batch.of([2, 3, 4, 5]))]
    for loss, found in ((sum(p.loss for p in parts), parts), (method(batch.student, batch.teacher, MIDDLE).loss, None)):
        assert isinstance(loss, Tensor)
        torch.testing.assert_close(loss, whole.loss)
        for ours, theirs in zip(torch.autograd.grad(loss, batch.leaves), gradients, strict=True):
            torch.testing.assert_close(ours, theirs)
        for name in whole.sums if found else ():
            torch.testing.assert_close(sum(part.sums[name] for part in parts), whole.sums[name])


@pytest.mark.parametrize("loss", LOSSES)
def test_halves_pairs_and_a_side_that_is_missing(loss: str) -> None:
    """However the two kinds lie in the batch; a micro-batch with responses of one kind teaches by them alone."""
    batch, method = written(), build("distillm2", loss=loss)
    order = torch.cat([(batch.student.sequence % 2 == kind).nonzero()[:, 0] for kind in (1, 0)])
    mixed = method(batch.student.at(order), batch.teacher.at(order), MIDDLE)
    torch.testing.assert_close(mixed.loss, method(batch.student, batch.teacher, MIDDLE).loss)
    if loss == "dpkd":
        part = batch.of([0, 1, 3])
        with pytest.raises(ValueError, match="this batch has 1 chosen and 2 rejected"):
            method(part.student, part.teacher, MIDDLE)
        return
    part = batch.of([1, 3])
    terms = method(part.student, part.teacher, MIDDLE)
    assert terms.loss.isfinite() and terms.loss.requires_grad
    none = batch.of([])
    assert method(none.student, none.teacher, MIDDLE).loss == 0.0


@pytest.mark.parametrize("curriculum", [False, True])
def test_holes_in_the_vocabulary_give_no_nan(curriculum: bool) -> None:
    batch, method = written().holed(), build("distillm2", curriculum=curriculum)
    if curriculum:
        method.anchors.copy_(torch.tensor([0.02, 0.004]))
    terms = method(batch.student, batch.teacher, MIDDLE)
    assert terms.loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(terms.loss, batch.leaves))


def test_what_is_missing_is_said() -> None:
    batch, method = written(), build("distillm2")
    with pytest.raises(
        ValueError, match="distillm2 learns from what the student writes, and these predictions have no"
    ):
        method(replace(batch.student, sampled=None), batch.teacher, MIDDLE)
    with pytest.raises(
        ValueError, match="distillm2 compares token by token, and this teacher has a tokenizer of its own"
    ):
        method(batch.student, replace(batch.teacher, pairing=object()), MIDDLE)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", ["alpha1", "alpha2", "temperature"])
def test_a_schedule_moves_it(name: str) -> None:
    batch = written()
    moved = build("distillm2", **{name: {"schedule": "linear", "start": 0.2, "end": 0.8}})
    check(batch, moved)
    ours, theirs = (m(batch.student, batch.teacher, MIDDLE).loss for m in (moved, build("distillm2", **{name: 0.38})))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["forward", "reverse", "reverse detached"])
def test_a_share_for_each_row_is_that_of_each_row_alone(kind: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    z_s, z_t = (20.0 * torch.randn(6, 40, generator=generator, dtype=dtype) for _ in range(2))
    z_s[0, 3], z_t[1, 5] = -math.inf, -math.inf
    shares = torch.tensor([0.01, 0.1, 0.5, 0.9, 1.0, 1e-30], dtype=dtype)

    def made(lam: float | Tensor) -> SkewForwardKL | SkewReverseKL:
        return SkewForwardKL(1.3, lam) if kind == "forward" else SkewReverseKL(1.3, lam, kind.endswith("detached"))

    z_s.requires_grad_()
    values = made(shares)(z_s, z_t)
    (gradient,) = torch.autograd.grad(values.sum(), z_s)
    for row, share in enumerate(shares.tolist()):
        alone = made(share)(z_s[row : row + 1], z_t[row : row + 1])
        torch.testing.assert_close(values[row : row + 1], alone, rtol=1e-5, atol=1e-6)
        (wanted,) = torch.autograd.grad(alone.sum(), z_s)
        torch.testing.assert_close(gradient[row], wanted[row], rtol=1e-5, atol=1e-6)
    assert made(shares).part(slice(1, 3)).lam.tolist() == shares[1:3].tolist()  # pyright: ignore[reportAttributeAccessIssue]
