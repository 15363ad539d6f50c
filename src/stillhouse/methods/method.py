"""What every method is: a module whose forward turns two sets of predictions into named sums."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from stillhouse import schedule
from stillhouse.divergence import Divergence
from stillhouse.divergence import build as build_divergence
from stillhouse.head import MONITORS, Blocks, Predictions, Term, rowwise_loss
from stillhouse.head.rowwise import Monitor
from stillhouse.methods.clock import Clock


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

    Args:
        name: the catalogue's name.
        settings: every parameter of its entry: a value, or a schedule.

    Attributes:
        needs_teacher: whether `forward` wants the teacher's predictions.
        follows_means: whether `after_step` wants the means of the step that was taken.
        blocks: block sizes of the head, or None for the rule of the device.
    """

    needs_teacher: bool = True
    follows_means: bool = False

    def __init__(self, name: str, settings: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.name, self.settings = name, dict(settings or {})
        self.blocks: Blocks | None = None

    def forward(self, student: Predictions, teacher: Predictions | None, clock: Clock) -> Terms:
        """The loss of N scored tokens: `student` and `teacher` predict the same N tokens."""
        raise NotImplementedError

    def after_step(self, means: Mapping[str, Tensor], clock: Clock) -> None:
        """Called once an optimizer step, with the means of `Terms.sums` over all its tokens, ranks and micro-batches.

        `clock` is that of the step's forwards. Only a method that `follows_means` is given any.
        """

    def gauges(self, clock: Clock) -> dict[str, float | Tensor]:
        """What to log of the method's own state: every setting that a schedule moves."""
        return {name: value for name, value in self.at(clock).items() if schedule.is_schedule(self.settings[name])}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Optimizer groups of the method's own parameters; by default they are decayed and learn like the student's."""
        return []

    def at(self, clock: Clock) -> dict[str, Any]:
        """Every setting as it is now."""
        return {name: schedule.value_at(setting, clock.progress) for name, setting in self.settings.items()}

    def mixed(self, divergence: Divergence, kd_weight: float, factor: float = 1.0) -> list[Term]:
        """(1 - kd_weight) CE + kd_weight · factor · D; a part without weight all through the run is not computed."""
        moving = schedule.is_schedule(self.settings["kd_weight"])
        terms = [
            Term("ce", build_divergence("cross_entropy"), 1.0 - kd_weight),
            Term("kd", divergence, kd_weight * factor),
        ]
        return [term for term in terms if moving or term.weight > 0.0]

    def summed(
        self,
        student: Predictions,
        teacher: Predictions | None,
        terms: Sequence[Term],
        monitors: Mapping[str, Monitor] | None = None,
    ) -> Terms:
        """Run `terms` through the chunked head, with every monitor that these predictions allow, and `monitors`."""
        taken = {term.name for term in terms} | (set() if teacher is not None else {"agreement"})
        watched = {name: monitor for name, monitor in MONITORS.items() if name not in taken} | dict(monitors or {})
        result = rowwise_loss(student, teacher, terms, watched, self.blocks)
        return Terms(result.loss, {name: values.sum() for name, values in result.values.items()})
