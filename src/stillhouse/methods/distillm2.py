"""DistiLLM-2: the data's responses are made likelier and the student's own less.

(Ko et al., 2025, arXiv:2503.07067)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from stillhouse.catalogue import METHODS
from stillhouse.divergence import Divergence
from stillhouse.divergence import build as build_divergence
from stillhouse.divergence.mixtures import SkewForwardKL, SkewReverseKL
from stillhouse.head import Predictions, Term
from stillhouse.head.likelihoods import LogLikelihoods, log_likelihoods
from stillhouse.head.products import statistics_dtype
from stillhouse.methods.clock import Clock
from stillhouse.methods.method import Method, Terms, Unit
from stillhouse.methods.responses import Responses
from stillhouse.mistakes import Mistake

_ON_BOTH = ("distillm_v2", "distillm_v1", "gkd")
_OF_LOSSES: dict[str, tuple[str, ...]] = {  # which losses read a setting
    "temperature": (*_ON_BOTH, "kd", "speculative_kd"),
    "alpha1": ("distillm_v2",),
    "alpha2": ("distillm_v2", "distillm_v1"),
    "curriculum": ("distillm_v2",),
    "gradual_beta": _ON_BOTH,
    "js_beta": ("gkd",),
    "dpkd_beta": ("dpkd",),
}
_LEAST_ALPHA = 0.01
_EPSILON = 1e-5


class _Side(NamedTuple):
    """The responses of one author."""

    name: str
    student: Predictions
    teacher: Predictions
    responses: Responses

    @property
    def shares(self) -> Tensor:
        """[n], what share of its response a row is."""
        return self.responses.shares(statistics_dtype(self.student.hidden))


class Contrastive(Method):
    """(2 - b) D(the data's response) + b D'(the student's own) of every prompt, each a mean over its tokens.

    By default D is the skew forward KL and D' the skew reverse KL with a detached mixture. The loss is a mean over
    pairs; as a sum over responses, of which there are two a pair, every part counts twice.

    Attributes:
        anchors: [2], mean of (p - q) over the data's responses and of (q - p) over the student's in the first
            optimizer step, p and q the geometric means of token probabilities; NaN before. None without `curriculum`.
    """

    unit: Unit = "sequence"

    anchors: Tensor

    def __init__(self, name: str, settings: Mapping[str, Any]) -> None:
        super().__init__(name, settings)
        loss, usual = self.settings["loss"], METHODS[name].parameters
        for key, losses in _OF_LOSSES.items():
            if loss not in losses and self.settings[key] != usual[key].default:
                raise Mistake(f"method.{key}", f"is not of loss {loss}", f"remove it, or take {' or '.join(losses)}")
        self.follows_means = self.settings["curriculum"]
        unknown = torch.full((2,), torch.nan, dtype=torch.float32)
        self.register_buffer("anchors", unknown if self.settings["curriculum"] else None)

    def forward(self, student: Predictions, teacher: Predictions | None, clock: Clock) -> Terms:
        """Sum over the responses of N tokens; `teacher` and, but for losses on the data's alone, who wrote which."""
        assert teacher is not None
        self.one_by_one(teacher)
        now = self.at(clock)
        if student.sampled is None and now["loss"] in ALONE:
            return self._alone(student, teacher, now)
        by_student = self.noted(student).by_student
        sides = [
            _Side(name, student.at(rows), teacher.at(rows), Responses.of(student.sequence[rows]))
            for name, rows in (("chosen", (~by_student).nonzero()[:, 0]), ("rejected", by_student.nonzero()[:, 0]))
        ]
        if now["loss"] == "dpkd":
            return self._preferences(sides, now["dpkd_beta"])
        b = self._rejected_weight(clock)
        of_data, own = self._side(sides[0], now, 2.0 - b, 0), self._side(sides[1], now, b, 1)
        both = of_data.sums.keys() & own.sums.keys()
        shared = {name: of_data.sums[name] + own.sums[name] for name in both}
        loss = of_data.loss + own.loss
        return Terms(loss, {**of_data.sums, **own.sums, **shared, "kd": loss.detach()})

    def _alone(self, student: Predictions, teacher: Predictions, now: dict[str, Any]) -> Terms:
        """The loss where nobody asked the student to write: the mean over responses is the one over pairs."""
        side = _Side("chosen", student, teacher, Responses.of(student.sequence))
        divergence = _divergence(now, 0)
        assert divergence is not None
        return self.row_by_row(student, teacher, [Term("kd", divergence)], side.shares)

    def _side(self, side: _Side, now: dict[str, Any], factor: float, index: int) -> Terms:
        """The part of one author's responses."""
        sums = {}
        if now["curriculum"]:
            gap = _gap(side, self.blocks) * (1.0, -1.0)[index]  # [S]
            sums[f"gap_{side.name}"] = 2.0 * gap.sum()
            now = now | {ALPHAS[index]: self._alpha(gap, now[ALPHAS[index]], index)[side.responses.of_row]}
        divergence = _divergence(now, index)
        terms = [] if divergence is None else [Term(side.name, divergence, 2.0 * factor)]
        result = self.row_by_row(side.student, side.teacher, terms, side.shares)
        if divergence is not None:
            sums[side.name] = 2.0 * result.sums.pop(side.name)
        return Terms(result.loss, {**result.sums, **sums})

    def _alpha(self, gap: Tensor, base: float, index: int) -> Tensor:
        """1 - (1 - base) anchor / gap of each response, from _LEAST_ALPHA to base; base before there is an anchor."""
        anchor = self.anchors[index].to(gap.dtype)
        alpha = 1.0 - (1.0 - base) * anchor / (gap + _EPSILON)
        return torch.where(alpha.isnan(), base, alpha.clamp(min(_LEAST_ALPHA, base), base))

    def _preferences(self, sides: list[_Side], beta: float) -> Terms:
        """-log sigmoid(beta (student's - teacher's log-ratio of a pair's two responses)), by mean log-probabilities."""
        if len(sides[0].responses) != len(sides[1].responses):
            counts = " and ".join(f"{len(side.responses)} {side.name}" for side in sides)
            raise ValueError(f"dpkd compares the two responses of a prompt, and this batch has {counts}")
        ours = [log_likelihoods(side.student, blocks=self.blocks) for side in sides]
        with torch.no_grad():
            theirs = [log_likelihoods(side.teacher, blocks=self.blocks) for side in sides]
        student, teacher = (_log_ratio(sides, found) for found in (ours, theirs))  # [pairs]
        loss = -2.0 * logsigmoid(beta * (student - teacher)).sum()
        shares, labels = torch.cat([side.shares for side in sides]), torch.cat([found.labels for found in ours])
        accuracy = torch.cat([found.accuracy for found in ours])
        sums = {"kd": loss, "ce": -(labels * shares).sum(), "accuracy": (accuracy * shares).sum()}
        return Terms(loss, {name: value.detach() for name, value in sums.items()})

    @torch.no_grad()
    def after_step(self, means: Mapping[str, Tensor], clock: Clock) -> None:
        """The first step's mean gaps become the anchors; without a branch on a value."""
        if not {"gap_chosen", "gap_rejected"} <= means.keys():
            return
        found = torch.stack([means["gap_chosen"], means["gap_rejected"]]).to(self.anchors)
        self.anchors.copy_(torch.where(self.anchors.isnan() & found.isfinite(), found, self.anchors))

    def gauges(self, clock: Clock) -> dict[str, float | Tensor]:
        """The schedules, and b where it grows."""
        grows = {"beta": self._rejected_weight(clock)} if self.settings["gradual_beta"] else {}
        return {**super().gauges(clock), **grows}

    def _rejected_weight(self, clock: Clock) -> float:
        """b: 1, or from there to 1.5 over the first half of the run."""
        return 1.0 + 0.5 * min(1.0, 2.0 * clock.progress) if self.settings["gradual_beta"] else 1.0


ALPHAS = ("alpha1", "alpha2")
ALONE = METHODS["distillm2"].alone["loss"]


def _divergence(now: dict[str, Any], index: int) -> Divergence | None:
    """Of the data's responses (`index` 0) or the student's (1); None where these teach nothing."""
    loss, temperature = now["loss"], now["temperature"]
    if loss == "distillm_v2" and index == 0:
        return SkewForwardKL(temperature, now["alpha1"])
    if loss in ("distillm_v2", "distillm_v1"):
        return SkewReverseKL(temperature, now["alpha2"], detach_mixture=True)
    if loss == "gkd":
        return build_divergence("jsd", temperature=temperature, beta=now["js_beta"])
    if index == 1:
        return None
    return (
        build_divergence("cross_entropy")
        if loss == "seqkd"
        else build_divergence("forward_kl", temperature=temperature)
    )


@torch.no_grad()
def _gap(side: _Side, blocks: Any) -> Tensor:
    """Teacher's less student's geometric mean of the token probabilities of each response: [S]."""
    found = [log_likelihoods(who, blocks=blocks).labels for who in (side.teacher, side.student)]
    teacher, student = (side.responses.means(labels).exp() for labels in found)
    return teacher - student


def _log_ratio(sides: list[_Side], found: list[LogLikelihoods]) -> Tensor:
    """Mean log-probability of each pair's first response less that of its second: [pairs]."""
    chosen, rejected = (side.responses.means(one.labels) for side, one in zip(sides, found, strict=True))
    return chosen - rejected
