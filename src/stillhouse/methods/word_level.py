"""Word-level distillation: cross-entropy and one divergence at every scored token (ToDi's repository, and SFT)."""

from __future__ import annotations

from stillhouse.divergence import build as build_divergence
from stillhouse.head import Predictions, Term
from stillhouse.methods.clock import Clock
from stillhouse.methods.method import Method, Terms


class SupervisedFineTuning(Method):
    """Cross-entropy on the responses; with responses that a teacher wrote it is SeqKD (Kim and Rush, 2016)."""

    needs_teacher = False

    def __init__(self, name: str = "sft") -> None:
        super().__init__(name)
        self.terms = (Term("ce", build_divergence("cross_entropy")),)

    def forward(self, student: Predictions, teacher: Predictions | None, clock: Clock | None = None) -> Terms:
        """Sum of the negative log-likelihood of N labels."""
        return self.summed(student, None, self.terms)


class WordLevel(Method):
    """(1 - kd_weight) CE + kd_weight D(teacher, student) at every scored token, as ToDi's repository mixes them.

    D is the divergence of the setting `loss` where there is one, else the method's, else that of the method's own name,
    with its own temperature; the cross-entropy is always at 1.
    """

    divergence: str | None = None

    def forward(self, student: Predictions, teacher: Predictions | None, clock: Clock) -> Terms:
        """Sum over N tokens; `teacher` must be given."""
        now = self.at(clock)
        kd_weight, name = now.pop("kd_weight"), now.pop("loss", self.divergence or self.name)
        return self.summed(student, teacher, self.mixed(build_divergence(name, **now), kd_weight))


class Overlap(WordLevel):
    """Forward KL over the tokens that both sides share: its aligner and its vocabulary make the difference."""

    divergence = "forward_kl"
