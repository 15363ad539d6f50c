"""TAID: the target moves from the student to the teacher. (Shing et al., 2025, arXiv:2501.16937)"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from stillhouse.divergence.taid import InterpolatedTarget
from stillhouse.head import Predictions
from stillhouse.methods.clock import Clock
from stillhouse.methods.method import Method, Terms


class TAID(Method):
    """Cross-entropy to softmax((1 - t) z_student + t z_teacher), whose t rises with training and with the loss's fall.

    Attributes:
        t: the teacher's share of the target, used at the next step.
        momentum: of the loss's relative change.
        previous: the loss of the step before; infinite before the first one, which is only recorded.
    """

    follows_means = True

    t: Tensor
    momentum: Tensor
    previous: Tensor

    def __init__(self, name: str, settings: Mapping[str, Any]) -> None:
        super().__init__(name, settings)
        self.register_buffer("t", torch.tensor(self.settings["t_start"], dtype=torch.float32))
        self.register_buffer("momentum", torch.zeros((), dtype=torch.float32))
        self.register_buffer("previous", torch.full((), torch.inf, dtype=torch.float32))
        self.follows_means = not self.settings["parity"]

    def forward(self, student: Predictions, teacher: Predictions | None, clock: Clock) -> Terms:
        """Sum over N tokens; `teacher` must be given. Under `parity` t moves here, at every micro-batch."""
        now = self.at(clock)
        # A copy: t moves in place, and under parity before this target's backward.
        target = InterpolatedTarget(now["temperature"], self.t.clone())
        terms = self.summed(student, teacher, self.mixed(target, now["kd_weight"]))
        if self.settings["parity"] and self.training and len(student):
            self._move(terms.sums["kd"] / len(student), clock)
        return terms

    def after_step(self, means: Mapping[str, Tensor], clock: Clock) -> None:
        """Move t by the mean loss of the step."""
        if "kd" in means:
            self._move(means["kd"], clock)

    def gauges(self, clock: Clock) -> dict[str, float | Tensor]:
        """The schedules, and t after its last move."""
        return {**super().gauges(clock), "t": self.t}

    @torch.no_grad()
    def _move(self, loss: Tensor, clock: Clock) -> None:
        """Without a branch on a value, so that an accelerator need not be waited for."""
        now, loss = self.at(clock), loss.to(self.t.dtype)
        sound = torch.isfinite(loss)  # a step whose loss is not is not taken, and so never was
        first = torch.isinf(self.previous)
        change = (self.previous - loss) / (self.previous + 1e-15)
        momentum = now["beta"] * self.momentum + (1.0 - now["beta"]) * change
        line = now["t_start"] + (now["t_end"] - now["t_start"]) * clock.progress
        if now["adaptive"]:
            step = now["alpha"] * torch.sigmoid(momentum) * (1.0 - self.t)
            moved = (self.t + step).clamp(min=line).clamp(max=now["t_end"])
        else:
            moved = torch.full_like(self.t, line)
        self.t.copy_(torch.where(first | ~sound, self.t, moved))
        self.momentum.copy_(torch.where(first | ~sound, self.momentum, momentum))
        self.previous.copy_(torch.where(sound, loss, self.previous))
