"""What was noted of tokens while a model wrote them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Sampled:
    """Of N predicted tokens, which the student may have written itself; all without gradient.

    Attributes:
        by_student: [N] bool, whether the student wrote the token in this run; the others stood in the data.
        log_probability: [N], its log q at the temperature it was drawn at, by the student as it was then; 0 elsewhere.
        importance: [N], the student's probability of it over that of what it was drawn from; 1 elsewhere.
        advantage: [N], what the method thought it worth when it was written (`Method.appraise`); 0 elsewhere.
    """

    by_student: Tensor
    log_probability: Tensor
    importance: Tensor
    advantage: Tensor

    def at(self, rows: Tensor | slice) -> Sampled:
        """Those of `rows`, in that order."""
        return Sampled(self.by_student[rows], self.log_probability[rows], self.importance[rows], self.advantage[rows])
