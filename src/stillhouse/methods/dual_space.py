"""DSKD: the student learns from the teacher in the spaces of both. (Zhang et al., 2024, arXiv:2406.17328)

Letters: Z the student's head on the teacher's hidden states as they are seen in the student's space, Z' the teacher's
head on the student's in the teacher's; D a divergence.

    t2s_ce   CE(Z, label)                     trains what brings hidden states into the student's space
    t2s_kd   D(student || Z), Z detached      trains the student alone
    s2t_kd   KL(teacher || Z')                trains the student and what brings it into the teacher's space
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from stillhouse.divergence import Divergence
from stillhouse.divergence import build as build_divergence
from stillhouse.head import ALONE, MONITORS, Blocks, Head, Predictions, Term, parted, rowwise_loss
from stillhouse.methods import projectors as projecting
from stillhouse.methods.clock import Clock
from stillhouse.methods.cross_attention import cross_model_attention
from stillhouse.methods.method import Method, Terms

LABELS = build_divergence("cross_entropy")


@dataclass(frozen=True)
class Objective:
    """What is summed: label_weight CE + kd_weight (t2s_ce + t2s_kd + s2t_kd).

    Attributes:
        t2s: the divergence in the student's space.
        s2t: that in the teacher's.
    """

    label_weight: float
    kd_weight: float
    t2s: Divergence
    s2t: Divergence

    @classmethod
    def of(cls, now: Mapping[str, Any]) -> Objective:
        """From a method's settings: kd_weight, temperature, divergence, s2t_divergence, t."""
        t2s, s2t = now["divergence"], now["s2t_divergence"]
        made = [_divergence(t2s if name == "same" else name, now) for name in (t2s, s2t)]
        return cls(1.0 - now["kd_weight"], now["kd_weight"], *made)


def _divergence(name: str, now: Mapping[str, Any]) -> Divergence:
    own = {"t": now["t"]} if name == "taid" else {}
    return build_divergence(name, temperature=now["temperature"], **own)


def in_students_space(student: Predictions, hidden: Tensor) -> Predictions:
    """Predictions Z of the student's head, detached, on `hidden` [N, d]."""
    return replace(student.detach(), hidden=hidden.to(student.hidden.dtype))


def dual_space(
    student: Predictions,
    teacher: Predictions,
    to_student: Tensor,
    to_teacher: Tensor,
    objective: Objective,
    blocks: Blocks | None = None,
    *,
    only_right: bool,
) -> Terms:
    """The three losses in both spaces, and the student's cross-entropy, as sums over N_s and N_t rows.

    Args:
        student: N_s predictions.
        teacher: N_t predictions, of any tokens.
        to_student: [N_s, d], the teacher's hidden states in the student's space.
        to_teacher: [N_t, D], the student's in the teacher's.
        only_right: take t2s_kd only where Z's likeliest token is the label, as with cross-model attention.
    """
    seen = in_students_space(student, to_student)
    ce = rowwise_loss(seen, None, [Term("t2s_ce", LABELS)], {"right": MONITORS["accuracy"]}, blocks)
    right = ce.values["right"]  # [N_s]
    rows = (right > 0.5).nonzero().squeeze(-1) if only_right else None
    ours = student_part(student, seen.detach(), rows, objective, blocks)
    theirs = s2t_part(teacher, to_teacher, objective, blocks)
    kd = ce.loss.detach() + ours.sums["t2s_kd"] + theirs.sums["s2t_kd"]
    sums = {**ours.sums, **theirs.sums, "kd": kd, "t2s_ce": ce.loss.detach(), "t2s_accuracy": right.sum()}
    return Terms(objective.kd_weight * ce.loss + ours.loss + theirs.loss, sums)


def student_part(
    student: Predictions, seen: Predictions, rows: Tensor | None, objective: Objective, blocks: Blocks | None
) -> Terms:
    """label_weight CE of all rows and kd_weight t2s_kd of `rows` (None: all): the student's head once for both."""
    labels = Term("ce", LABELS, objective.label_weight)
    terms = [labels, Term("t2s_kd", objective.t2s, objective.kd_weight)]
    if rows is None:
        return _rowwise(student, seen, terms, blocks)
    others = torch.ones(len(student), dtype=torch.bool, device=rows.device).index_fill_(0, rows, False)
    parts = [
        _rowwise(student.at(rows), seen.at(rows), terms, blocks),
        _rowwise(student.at(others.nonzero().squeeze(-1)), None, [labels], blocks),
    ]
    sums = {name: sum((part.sums[name] for part in parts if name in part.sums), 0.0) for name in parts[0].sums}
    return Terms(parts[0].loss + parts[1].loss, sums)  # pyright: ignore[reportArgumentType]


def label_part(student: Predictions, objective: Objective, blocks: Blocks | None) -> Terms:
    """label_weight CE of all rows."""
    return _rowwise(student, None, [Term("ce", LABELS, objective.label_weight)], blocks)


def s2t_part(teacher: Predictions, to_teacher: Tensor, objective: Objective, blocks: Blocks | None) -> Terms:
    """kd_weight D(teacher || Z') over the teacher's rows."""
    theirs = replace(teacher.detach(), translation=None)
    seen = replace(theirs, hidden=to_teacher.to(theirs.head.weight.dtype))
    found = rowwise_loss(seen, theirs, [Term("s2t_kd", objective.s2t, objective.kd_weight)], None, blocks)
    return Terms(found.loss, {"s2t_kd": found.values["s2t_kd"].sum()})


def _rowwise(student: Predictions, target: Predictions | None, terms: Sequence[Term], blocks: Blocks | None) -> Terms:
    """`terms`, and what the student alone tells of these rows."""
    named = {term.name for term in terms}
    watched = {name: monitor for name, monitor in MONITORS.items() if monitor in ALONE and name not in named}
    found = rowwise_loss(student, target, terms, watched, blocks)
    return Terms(found.loss, {name: values.sum() for name, values in found.values.items()})


class DualSpace(Method):
    """DSKD for one tokenizer: a projector each way between corresponding rows.

    Of a teacher with a tokenizer of its own the rows that correspond are taken, which need no map of tokens here.
    """

    def make(self, student: Head, teacher: Head, seed: int) -> None:
        """The projectors t2s, D to d, and s2t, d to D."""
        d, D = student.weight.shape[1], teacher.weight.shape[1]
        self._projected_by({"t2s": (D, d), "s2t": (d, D)}, seed)

    def _projected_by(self, sizes: Mapping[str, tuple[int, int]], seed: int, *, bias: bool = True) -> None:
        self.projectors = projecting.made(sizes, seed, bias=bias)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The projectors, with a learning rate and a weight decay of their own."""
        settings = self.settings
        return projecting.group(
            self.projectors, settings["projector_learning_rate"], settings["projector_weight_decay"]
        )

    def forward(self, student: Predictions, teacher: Predictions | None, clock: Clock) -> Terms:
        """Sum over N_s tokens; `teacher` must be given."""
        assert teacher is not None
        objective = Objective.of(self.at(clock))
        if teacher.pairing is None:
            return self._of_rows_in_both(student, teacher, objective)
        (ours, theirs), _, rest = parted(student, teacher)
        shared = self._of_rows_in_both(ours, theirs, objective)
        others = label_part(rest, objective, self.blocks)
        sums = {name: value + others.sums.get(name, 0.0) for name, value in shared.sums.items()}
        return Terms(shared.loss + others.loss, sums | {"aligned": torch.full_like(sums["kd"], len(ours))})

    def _of_rows_in_both(self, student: Predictions, teacher: Predictions, objective: Objective) -> Terms:
        """Rows that correspond one by one."""
        to_student = projecting.projected(self.projectors, "t2s", teacher.hidden.detach())  # [N, d]
        to_teacher = projecting.projected(self.projectors, "s2t", student.hidden)  # [N, D]
        return dual_space(student, teacher, to_student, to_teacher, objective, self.blocks, only_right=False)


class CrossModelDualSpace(DualSpace):
    """DSKD with cross-model attention, for any two tokenizers."""

    needs_embeddings = True

    @property
    def needs_padding(self) -> bool:
        """Whether the teacher's hidden states of prompts and padding count."""
        return self.settings["std_scope"] == "padded"

    def make(self, student: Head, teacher: Head, seed: int) -> None:
        """The projectors t2s, s2t and query, 2d to 2D."""
        d, D = student.weight.shape[1], teacher.weight.shape[1]
        self._projected_by({"t2s": (D, d), "s2t": (d, D), "query": (2 * d, 2 * D)}, seed)

    def forward(self, student: Predictions, teacher: Predictions | None, clock: Clock) -> Terms:
        """Sum over N_s tokens; `teacher` must be given, with the rows of every example in its pairing."""
        assert teacher is not None
        now = self.at(clock)
        if self.needs_padding:  # the released code knows nothing of a padded vocabulary either
            head = teacher.head
            teacher = replace(teacher, head=replace(head, vocabulary=head.weight.shape[0]))
        attended = cross_model_attention(student, teacher, self.projectors, now["std_scope"])
        return dual_space(student, teacher, *attended, Objective.of(now), self.blocks, only_right=True)
