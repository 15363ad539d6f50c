"""DSKD-v2: dual spaces whose maps come from both heads, with exact token alignment. (Zhang et al., arXiv:2504.11426)

Letters: W_s [n, d], W_t [n, D] the rows of both heads that stand for the n tokens which both sides share.

    t2s   h W_t^T pinv(W_s^T), trained from there on: logits of shared tokens are kept as far as d allows
    s2t   h W_s^T pinv(W_t^T), without parameters, of the student's head as it is at each step, detached

The labels in the student's space are the teacher's likeliest tokens.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillhouse import vocabulary
from stillhouse.head import MONITORS, Head, Predictions, Term, parted, rowwise_loss
from stillhouse.methods.clock import Clock
from stillhouse.methods.dual_space import (
    LABELS,
    DualSpace,
    Objective,
    in_students_space,
    label_part,
    s2t_part,
    student_part,
)
from stillhouse.methods.method import Terms
from stillhouse.methods.projectors import projected

Ids = NDArray[np.integer]


class DualSpaceByHeads(DualSpace):
    """DSKD-v2 between rows that correspond, of one tokenizer or of two."""

    def make(self, student: Head, teacher: Head, seed: int) -> None:
        """The map t2s, D to d, and what s2t needs, from the tokens that both sides share."""
        if self.tokenizers is None:
            ours = theirs = np.arange(min(student.vocabulary, teacher.vocabulary))
            names = None
        else:
            theirs, ours = vocabulary.overlap(self.tokenizers.teacher, self.tokenizers.student)
            kept = (ours < student.vocabulary) & (theirs < teacher.vocabulary)
            ours, theirs, names = ours[kept], theirs[kept], self.tokenizers.map
            assert names is not None, "the recipe was checked"
        first = int(self.settings["top_k"]) or len(ours)
        self.by_tokens(student, teacher, ours[:first], theirs[:first], names)

    def by_tokens(self, student: Head, teacher: Head, ours: Ids, theirs: Ids, names: Ids | None) -> None:
        """`make` from n shared tokens.

        Args:
            ours: [n] the student's ids of them.
            theirs: [n] the teacher's.
            names: [V_t] the student's id of every teacher token, -1 for none; None: they are the same.
        """
        own, other = student.weight.detach(), teacher.weight.detach()
        self._ours, index = torch.from_numpy(np.asarray(ours, np.int64)), torch.from_numpy(np.asarray(theirs, np.int64))
        self._names = None if names is None else torch.from_numpy(np.asarray(names, np.int64))
        self._projected_by({"t2s": (other.shape[1], own.shape[1])}, 0, bias=False)
        if own.is_meta or other.is_meta:  # a head of its size alone
            return
        self._inverse = torch.linalg.pinv(other[index.to(other.device)].T.float())  # [n, D]
        shared = torch.linalg.pinv(own[self._ours.to(own.device)].T.float())  # [n, d]
        kept = other[index.to(other.device)].T.float() @ shared.to(other.device)  # [D, d]
        with torch.no_grad():
            self.projectors["t2s"].weight.copy_(kept.T)  # pyright: ignore[reportCallIssue, reportArgumentType]

    def forward(self, student: Predictions, teacher: Predictions | None, clock: Clock) -> Terms:
        """Sum over N_s tokens; `teacher` must be given."""
        assert teacher is not None
        objective = Objective.of(self.at(clock))
        ours, theirs, rest = student, replace(teacher, translation=None, pairing=None), student.part(slice(0))
        if teacher.pairing is not None:
            (ours, theirs), _, rest = parted(student, replace(teacher, translation=None))
        likeliest = theirs.survey(1, entropies=False, blocks=self.blocks).ids.squeeze(-1)  # [M]
        if self._names is not None:
            self._names = self._names.to(likeliest.device)
            likeliest = self._names[likeliest]
            known = likeliest >= 0
            unknown = (~known).nonzero().squeeze(-1)
            rest = _joined(ours.at(unknown), rest)
            known = known.nonzero().squeeze(-1)
            ours, theirs, likeliest = ours.at(known), theirs.at(known), likeliest[known]
        found = self._in_both(ours, theirs, likeliest, objective, len(student))
        others = label_part(rest, objective, self.blocks)
        sums = {name: value + others.sums.get(name, 0.0) for name, value in found.sums.items()}
        return Terms(found.loss + others.loss, sums | {"aligned": torch.full_like(sums["kd"], len(ours))})

    def _in_both(
        self, ours: Predictions, theirs: Predictions, likeliest: Tensor, objective: Objective, tokens: int
    ) -> Terms:
        """M rows that correspond and whose `likeliest` tokens [M] the student has; `tokens` of it in all."""
        seen = replace(
            in_students_space(ours, projected(self.projectors, "t2s", theirs.hidden.detach())), labels=likeliest
        )
        ce = rowwise_loss(seen, None, [Term("t2s_ce", LABELS)], {"agrees": MONITORS["accuracy"]}, self.blocks)
        agrees = ce.values["agrees"]  # [M]
        rows = (agrees > 0.5).nonzero().squeeze(-1)
        of_all, of_agreeing = (tokens / max(len(ours), 1), tokens / max(len(rows), 1)) if self._means else (1.0, 1.0)
        in_student = replace(objective, kd_weight=objective.kd_weight * of_agreeing)
        in_teacher = replace(objective, kd_weight=objective.kd_weight * of_all)
        learnt = student_part(ours, seen.detach(), rows, in_student, self.blocks)
        back = s2t_part(theirs, ours.hidden @ self._s2t(ours.head).to(ours.hidden.dtype), in_teacher, self.blocks)
        parts = {
            "t2s_ce": ce.loss.detach() * of_all,
            "t2s_kd": learnt.sums["t2s_kd"] * of_agreeing,
            "s2t_kd": back.sums["s2t_kd"] * of_all,
        }
        sums = {**learnt.sums, **parts, "kd": sum(parts.values()), "t2s_agreement": agrees.sum()}
        return Terms(in_teacher.kd_weight * ce.loss + learnt.loss + back.loss, sums)

    def _s2t(self, head: Head) -> Tensor:
        """[d, D], of the student's head as it is now."""
        self._ours, self._inverse = (part.to(head.weight.device) for part in (self._ours, self._inverse))
        shared = head.weight.detach()[self._ours].to(self._inverse.dtype)  # [n, d]
        return shared.T @ self._inverse

    @property
    def _means(self) -> bool:
        return bool(self.settings["parity"])


def _joined(first: Predictions, second: Predictions) -> Predictions:
    """The rows of both, of one model."""
    return replace(
        first,
        hidden=torch.cat([first.hidden, second.hidden]),
        labels=torch.cat([first.labels, second.labels]),
        sequence=torch.cat([first.sequence, second.sequence]),
        inputs=None,
        embedded=None,
    )
