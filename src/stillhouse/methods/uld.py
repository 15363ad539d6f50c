"""ULD: universal logit distillation, across any two vocabularies. (Boizard et al., 2024, arXiv:2402.12030)"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from stillhouse import schedule
from stillhouse.divergence import build as build_divergence
from stillhouse.divergence.uld import RankDistance
from stillhouse.head import Predictions, Term, rowwise_loss
from stillhouse.head.rowwise import Monitor
from stillhouse.methods.clock import Clock
from stillhouse.methods.method import Method, Terms
from stillhouse.mistakes import Mistake

KD_WEIGHTS = {"dskd": 0.5, "mcw": 1.0, "official": 1.5}  # of each form, where the recipe names none


class UniversalLogit(Method):
    """CE and the distance of the sorted probabilities U at every pair of aligned rows, in one of three forms.

    dskd is (1 - kd_weight) CE + kd_weight U, mcw CE + kd_weight U, sums over tokens both. official is CE + kd_weight
    times the mean over a batch's examples of the mean of U over their pairs, without the pair of the student's last
    token. Its sum here is that mean times N_s, so that after the division by N_s the official number is left: of one
    micro-batch on one process. Over several it is their mean, weighted by tokens.
    """

    def __init__(self, name: str, settings: Mapping[str, Any]) -> None:
        super().__init__(name, settings)
        if self.settings["kd_weight"] is None:
            self.settings["kd_weight"] = KD_WEIGHTS[self.settings["form"]]
        weight: Any = self.settings["kd_weight"]
        highest = max(value for _, value in schedule.extremes(weight)) if schedule.is_schedule(weight) else weight
        if self.settings["form"] == "dskd" and highest > 1.0:
            raise Mistake(
                "method.kd_weight",
                f"is {highest:g}, but in form dskd CE has the weight 1 - kd_weight",
                "write at most 1, or form: mcw",
            )

    def forward(self, student: Predictions, teacher: Predictions | None, clock: Clock) -> Terms:
        """Sum over N_s tokens; `teacher` must be given, with any vocabulary."""
        assert teacher is not None
        now = self.at(clock)
        divergence = build_divergence("uld", temperature=now["temperature"], top_k=now["top_k"])
        assert isinstance(divergence, RankDistance)
        watched: dict[str, Monitor] = {"left_out": divergence.left_out} if now["top_k"] else {}
        if now["form"] == "dskd":
            return self.summed(student, teacher, self.mixed(divergence, now["kd_weight"]), watched)
        ce = Term("ce", build_divergence("cross_entropy"))
        if now["form"] == "mcw":
            return self.summed(student, teacher, [ce, Term("kd", divergence, now["kd_weight"])], watched)
        labels = self.summed(student, None, [ce])
        ours, theirs, weights = _by_example(student, self.aligned(student, teacher))
        kd = rowwise_loss(ours, theirs, [Term("kd", divergence)], watched, self.blocks, weights)
        sums = {name: (weights * values).sum() for name, values in kd.values.items()}
        aligned = torch.full_like(sums["kd"], len(ours))
        return Terms(labels.loss + now["kd_weight"] * kd.loss, {**labels.sums, **sums, "aligned": aligned})


def _by_example(student: Predictions, teacher: Predictions) -> tuple[Predictions, Predictions, Tensor]:
    """Pairs of rows, and weights [M] by which their sum is N_s times the mean over examples of the mean of a pair.

    A pair of the last row of an example weighs nothing; an example without any other counts as 0.
    """
    at = torch.arange(len(student), device=student.hidden.device)  # [M]
    ours, theirs, pairing = student, teacher, teacher.pairing
    if pairing is not None:
        ours = student.means(pairing.student_index, pairing.student_bounds)
        theirs = teacher.means(pairing.teacher_index, pairing.teacher_bounds)
        at = pairing.student_index[pairing.student_bounds[1:] - 1]
    last = torch.ones_like(student.sequence, dtype=torch.bool)  # [N_s]
    last[:-1] = student.sequence[1:] != student.sequence[:-1]
    kept = (~last[at]).to(torch.float32)  # [M]
    # Everything by tensors of known size: an accelerator would have to wait for a count.
    example = (last.long().cumsum(0) - last.long())[at]  # [M]
    pairs = kept.new_zeros(len(student)).index_add_(0, example, kept)  # [N_s], of which as many are used as examples
    share = len(student) / last.sum().clamp(min=1)
    return ours, theirs, kept * share / pairs[example].clamp(min=1.0)
