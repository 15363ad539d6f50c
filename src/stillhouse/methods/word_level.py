"""Word-level distillation: cross-entropy and one divergence at every scored token (ToDi's repository, and SFT)."""

from __future__ import annotations

from stillhouse.divergence import Divergence
from stillhouse.divergence import build as build_divergence
from stillhouse.head import Predictions, Term
from stillhouse.methods.method import Method, Terms, summed


class SupervisedFineTuning(Method):
    """Cross-entropy on the responses; with responses that a teacher wrote it is SeqKD (Kim and Rush, 2016)."""

    needs_teacher = False

    def __init__(self, name: str = "sft") -> None:
        super().__init__()
        self.name = name
        self.terms = (Term("ce", build_divergence("cross_entropy")),)

    def forward(self, student: Predictions, teacher: Predictions | None) -> Terms:
        """Sum of the negative log-likelihood of N labels."""
        return summed(student, None, self.terms)


class WordLevel(Method):
    """(1 - kd_weight) CE + kd_weight D(teacher, student) at every scored token, as ToDi's repository mixes them.

    Args:
        divergence: D, with its own temperature; the cross-entropy is always at temperature 1.
        kd_weight: in [0, 1]; a part of weight 0 is not computed.
    """

    def __init__(self, name: str, divergence: Divergence, kd_weight: float) -> None:
        super().__init__()
        self.name = name
        parts = (Term("ce", build_divergence("cross_entropy"), 1.0 - kd_weight), Term("kd", divergence, kd_weight))
        self.terms = tuple(part for part in parts if part.weight > 0.0)

    def forward(self, student: Predictions, teacher: Predictions | None) -> Terms:
        """Sum over N tokens; `teacher` must be given."""
        return summed(student, teacher, self.terms)
