"""TAID's target: between student and teacher, interpolated in logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stillhouse.divergence.base import Divergence
from stillhouse.divergence.rows import Rows


@dataclass(frozen=True)
class InterpolatedTarget(Divergence):
    """-sum r log q, r = softmax(((1 - t) z_student + t z_teacher) / T) detached. Gradient (q - r) / T.

    `t` may be a tensor of no dimensions, so that a t that lives on an accelerator is never waited for. (Shing et al.,
    TAID, arXiv:2501.16937)
    """

    name = "taid"
    allows_zeros = True
    temperature: float
    t: float | Tensor

    def value_and_gradient(self, rows: Rows) -> tuple[Tensor, Tensor]:
        target = self._target(rows)  # [N, V]
        excluded = rows.excluded
        if excluded is not None:
            target.masked_fill_(excluded, 0.0)
        q, highest, likeliest = rows.student.softmax(self.temperature)
        # log q = (z / T - highest) + log(likeliest): both parts are at most 0, so that nothing cancels.
        log_q = torch.sub(self._scaled(rows.student.logits), highest)  # [N, V]
        if excluded is not None:
            log_q.masked_fill_(excluded, 0.0)
        mass = target.sum(-1, keepdim=True)  # [N, 1] 1, but for what is excluded
        values = log_q.mul_(target).sum(-1).addcmul_(mass.squeeze(-1), likeliest.log().squeeze(-1)).neg_()  # [N]
        gradient = torch.addcmul(target.neg_(), q, mass)  # [N, V]
        return values, gradient if self.temperature == 1.0 else gradient.div_(self.temperature)

    def _target(self, rows: Rows) -> Tensor:
        student, teacher = rows.student, rows.teacher
        if rows.excluded is None:
            mixed = torch.lerp(student.logits, teacher.logits, self._share(student.logits))  # [N, V]
        else:
            # 0 times -inf is 0: a side without a share has no say where it is -inf.
            share = self._share(student.logits)
            here, there = (torch.isneginf(side.logits) for side in (student, teacher))
            mixed = torch.lerp(student.logits.masked_fill(here, 0.0), teacher.logits.masked_fill(there, 0.0), share)
            mixed.masked_fill_((here & (share < 1.0)) | (there & (share > 0.0)), -torch.inf)
        return self._scaled(mixed).softmax(-1)

    def _scaled(self, logits: Tensor) -> Tensor:
        return logits if self.temperature == 1.0 else logits / self.temperature

    def _share(self, like: Tensor) -> Tensor:
        return torch.as_tensor(self.t, dtype=like.dtype, device=like.device)
