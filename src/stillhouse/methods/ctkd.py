"""CTKD: forward KL at a temperature that is learnt against the student. (Li et al., 2022, arXiv:2211.16231)"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from stillhouse.divergence import Rows
from stillhouse.divergence import build as build_divergence
from stillhouse.head import Predictions
from stillhouse.methods.clock import Clock
from stillhouse.methods.method import Method, Terms

SLOPE = "temperature_slope"


class CurriculumTemperature(Method):
    """T^2 KL(p||q) at T = temp_start + temp_end sigmoid(theta), theta climbing where the student descends.

    Attributes:
        theta: the learnt number [1], in an optimizer group of its own (FSDP2 takes no parameter without a dimension).
    """

    def __init__(self, name: str, settings: Mapping[str, Any]) -> None:
        super().__init__(name, settings)
        learns = not self.settings["parity"]
        self._used = 0.0
        self.theta = nn.Parameter(torch.full((1,), float(self.settings["theta"])), requires_grad=learns)

    def forward(self, student: Predictions, teacher: Predictions | None, clock: Clock) -> Terms:
        """Sum over N tokens; `teacher` must be given."""
        now = self.at(clock)
        climbing = self.temperature(self.reversal(clock))
        self._used = temperature = climbing.item()
        terms = self.mixed(build_divergence("forward_kl", temperature=temperature), now["kd_weight"], temperature**2)
        watched = {SLOPE: partial(temperature_slope, temperature=temperature)}
        if now["parity"]:
            watched = {SLOPE: partial(_teacher_entropy, temperature=temperature)}
        result = self.summed(student, teacher, terms, watched)
        extra = result.sums.pop(SLOPE)
        if "kd" not in result.sums:
            return result
        result.sums["kd"] = result.sums["kd"] * temperature**2
        if now["parity"]:  # the released values hold the teacher's entropy, which has no gradient
            entropy = temperature**2 * extra
            return Terms(result.loss + now["kd_weight"] * entropy, {**result.sums, "kd": result.sums["kd"] + entropy})
        # Worth nothing, but its gradient by T is that of the whole sum.
        through_temperature = (climbing - climbing.detach()) * extra.to(climbing.dtype)
        return Terms(result.loss + now["kd_weight"] * through_temperature, result.sums)

    def temperature(self, gradient_factor: float = 1.0) -> Tensor:
        """T, with theta's gradient multiplied by `gradient_factor`: negative is gradient reversal."""
        theta = gradient_factor * self.theta + (1.0 - gradient_factor) * self.theta.detach()
        return (self.settings["temp_start"] + self.settings["temp_end"] * torch.sigmoid(theta)).squeeze(0)

    def reversal(self, clock: Clock) -> float:
        """From nearly 0 in the first epoch to -reversal in epoch `num_loops` and after, by a cosine."""
        loops = self.settings["num_loops"]
        done = min(math.floor(clock.epoch) + 1.0, loops) / loops
        return -self.at(clock)["reversal"] * 0.5 * (1.0 - math.cos(math.pi * done))

    def gauges(self, clock: Clock) -> dict[str, float | Tensor]:
        """The schedules, and the temperature of the last forward; theta itself may be in shards between two."""
        return {**super().gauges(clock), "temperature": self._used}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """theta alone: its own learning rate, and no decay, which would draw T to the middle of its range."""
        if self.settings["parity"]:
            return []
        return [{"params": [self.theta], "lr": self.settings["theta_learning_rate"], "weight_decay": 0.0}]


def temperature_slope(rows: Rows, temperature: float) -> Tensor:
    """d(T^2 KL(p||q)) / dT of each row, both sides' softmax moving with T: [N].

    2 T KL + Cov_p(z_t, z_s - z_t) / T + E_p[z_s] - E_q[z_s].
    """
    student, teacher = rows.student.softmax(temperature), rows.teacher.softmax(temperature)
    p, q = teacher.probabilities, student.probabilities
    z_s = rows.student.logits - student.highest * temperature  # [N, V] at most 0
    z_t = rows.teacher.logits - teacher.highest * temperature
    if rows.excluded is not None:
        z_s, z_t = z_s.masked_fill(rows.excluded, 0.0), z_t.masked_fill(rows.excluded, 0.0)
    lead = z_s - z_t  # [N, V]
    of_lead, of_teacher = (p * lead).sum(-1), (p * z_t).sum(-1)  # [N]
    kl = (teacher.likeliest / student.likeliest).log().squeeze(-1) - of_lead / temperature
    covariance = (z_t.mul_(lead).mul_(p)).sum(-1) - of_teacher * of_lead
    expected = of_lead + of_teacher  # E_p[z_s]
    return 2.0 * temperature * kl + covariance / temperature + expected - z_s.mul_(q).sum(-1)


def _teacher_entropy(rows: Rows, temperature: float) -> Tensor:
    return torch.special.entr(rows.teacher.softmax(temperature).probabilities).sum(-1)  # [N]
