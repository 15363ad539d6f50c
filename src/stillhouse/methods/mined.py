"""MinED: the teacher's row moved to the student's tokens, where one token meets one. (Wan et al., arXiv:2401.10491)"""

from __future__ import annotations

from stillhouse.divergence import build as build_divergence
from stillhouse.divergence.kl import TemperedCrossEntropy
from stillhouse.head import Predictions, Term
from stillhouse.methods.clock import Clock
from stillhouse.methods.method import Method, Terms


class MinimumEditDistance(Method):
    """(1 - kd_weight) CE + kd_weight KD: KL to the teacher's translated row in paired rows, the label elsewhere.

    Its aligner gives pairs of one row with one alone; how several teacher tokens that go to one count is the
    translation's matter.
    """

    def forward(self, student: Predictions, teacher: Predictions | None, clock: Clock) -> Terms:
        """Sum over N_s tokens; `teacher` must be given."""
        now = self.at(clock)
        terms = self.mixed(build_divergence("forward_kl", temperature=now["temperature"]), now["kd_weight"])
        label = Term("kd", TemperedCrossEntropy(now["temperature"]), now["kd_weight"])
        return self.summed(student, teacher, terms, unpaired=[label])
