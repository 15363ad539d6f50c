"""Decoupled knowledge distillation. (Zhao et al., 2022, arXiv:2203.08679)"""

from __future__ import annotations

from stillhouse.divergence import build as build_divergence
from stillhouse.head import Predictions
from stillhouse.methods.clock import Clock
from stillhouse.methods.method import Method, Terms


class Decoupled(Method):
    """(1 - kd_weight) CE + kd_weight DKD at every scored token."""

    def forward(self, student: Predictions, teacher: Predictions | None, clock: Clock) -> Terms:
        """Sum over N tokens; `teacher` must be given."""
        now = self.at(clock)
        divergence = build_divergence("dkd", **{key: now[key] for key in ("temperature", "alpha", "beta")})
        # Whoever trains divides by N; TAID's port divides by every position of the padded batch.
        share = len(student) / student.positions if now["parity"] else 1.0
        terms = self.summed(student, teacher, self.mixed(divergence, now["kd_weight"], share))
        if "kd" in terms.sums:
            terms.sums["kd"] *= share
        return terms
