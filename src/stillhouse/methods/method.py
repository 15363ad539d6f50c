"""What every method is: a module whose forward turns two sets of predictions into named sums."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from stillhouse.head import MONITORS, Predictions, Term, rowwise_loss


@dataclass
class Terms:
    """A method's loss over one batch, as sums; whoever trains divides by the global count, once.

    Attributes:
        loss: scalar, sum over scored tokens; differentiable.
        sums: named sums over the same tokens, without gradient: parts of the loss, and monitors.
    """

    loss: Tensor
    sums: dict[str, Tensor] = field(default_factory=dict)


class Method(nn.Module):
    """A distillation method; its parameters and buffers are trained, saved, resumed and synchronised with the student.

    Attributes:
        name: the catalogue's name.
        needs_teacher: whether `forward` wants the teacher's predictions.
    """

    name: str = ""
    needs_teacher: bool = True

    def forward(self, student: Predictions, teacher: Predictions | None) -> Terms:
        """The loss of N scored tokens: `student` and `teacher` predict the same N tokens."""
        raise NotImplementedError


def summed(student: Predictions, teacher: Predictions | None, terms: Sequence[Term]) -> Terms:
    """Run `terms` through the chunked head, with every monitor that these predictions allow."""
    monitors = {name: monitor for name, monitor in MONITORS.items() if teacher is not None or name != "agreement"}
    result = rowwise_loss(student, teacher, terms, monitors)
    return Terms(result.loss, {name: values.sum() for name, values in result.values.items()})
