"""ALM: the likelihoods of chunks of equal bytes, each as the chance of one event.

(Minixhofer et al., 2025, arXiv:2503.20083)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from stillhouse.data.pieces import Pieces
from stillhouse.head import Predictions
from stillhouse.head.likelihoods import LogLikelihoods, log_likelihoods
from stillhouse.methods.alm_chunks import Chunks
from stillhouse.methods.clock import Clock
from stillhouse.methods.method import Method, Terms

EPSILON = 1e-6  # keeps the likelihood of a chunk below 1, as in the released code
BLANKS = (b" ", b"\n", b"\t")


class ApproximateLikelihood(Method):
    """CE + kd_weight ALM: a distance between both sides' log-likelihoods of every chunk, a sum over chunks.

    A chunk counts once, so an example's loss depends on it alone. Under `parity` the sum is N_s times tokenkit's mean
    over the chunks of the batch, so that after the division by N_s that mean is left: of one micro-batch on one
    process.

    What follows a chunk is read at the next scored row, so the last chunk of a response has no boundary. A teacher
    without a `pairing` has the student's own tokens: each is a chunk, none could be cut otherwise, and the boundary is
    `none`.
    """

    def forward(self, student: Predictions, teacher: Predictions | None, clock: Clock) -> Terms:
        """Sum over N_s tokens; `teacher` must be given, and both tokenizers where the setting asks for blanks."""
        assert teacher is not None
        now = self.at(clock)
        if teacher.pairing is None:
            now |= {"boundary": "none", "chunks": "unconstrained"}
        marks = [None, None] if now["boundary"] == "none" else self._blanks(student, teacher)
        ours = log_likelihoods(student, among=marks[0], blocks=self.blocks)
        with torch.no_grad():
            theirs = log_likelihoods(teacher, among=marks[1], blocks=self.blocks)
        chunks = self._chunks(student, teacher, theirs, now)
        of_teacher, of_student = self._of_chunks(chunks, theirs, ours, appended=now["boundary"] != "none")
        distance = DIFFERENCES[now["difference"]](of_teacher, of_student, now["temperature"])
        kd = torch.where(chunks.present, distance, 0.0).sum()
        if now["parity"]:
            count = chunks.counted_twice() if now["boundary"] == "merge" else chunks.present.sum()
            kd = kd * len(student) / count.clamp(min=1)
        ce = -ours.labels.sum()
        sums = {
            "ce": ce.detach(),
            "accuracy": ours.accuracy.sum(),
            "kd": kd.detach(),
            "aligned": torch.full_like(kd.detach(), len(chunks)),
            "chunks": chunks.present.sum().to(kd.dtype),
        }
        return Terms(ce + now["kd_weight"] * kd, sums)

    def _chunks(
        self, student: Predictions, teacher: Predictions, theirs: LogLikelihoods, now: dict[str, Any]
    ) -> Chunks:
        if teacher.pairing is None:
            return Chunks.one_by_one(student.sequence)
        chunks = Chunks.of(teacher.pairing)
        if now["chunks"] == "space":
            spaces = [table.to(student.hidden.device) for table in self._spaces(student, teacher)]
            chunks = chunks.joined(
                spaces[0][student.labels][chunks.after_student] & spaces[1][teacher.labels][chunks.after_teacher]
            )
        if now["boundary"] == "merge":
            chunks = chunks.joined(theirs.among[chunks.after_teacher] > math.log(max(now["threshold"], 1e-30)))
        return chunks

    @staticmethod
    def _of_chunks(
        chunks: Chunks, theirs: LogLikelihoods, ours: LogLikelihoods, *, appended: bool
    ) -> tuple[Tensor, Tensor]:
        """log p(chunk) of the teacher and of the student, [M] each, 0 where there is no chunk."""
        sides = []
        for found, member, group, after in (
            (theirs, chunks.teacher_rows, chunks.teacher_groups, chunks.after_teacher),
            (ours, chunks.student_rows, chunks.student_groups, chunks.after_student),
        ):
            of_groups = found.labels.new_zeros(len(chunks)).index_add(0, group, found.labels[member]).clamp(max=0.0)
            if appended:  # the sum over a chunk's groups of what follows those that end it
                of_groups = of_groups + torch.where(chunks.bounded, found.among[after], 0.0)
            sides.append(torch.zeros_like(of_groups).index_add(0, chunks.chunk, of_groups))
        return sides[0], sides[1]

    def _blanks(self, student: Predictions, teacher: Predictions) -> list[Tensor]:
        """Which tokens of either side count as a blank after a chunk: [V_s] and [V_t]."""
        device = student.hidden.device
        return [
            _sized(table, side.head.vocabulary).to(device)
            for table, side in zip(self._tables[0], (student, teacher), strict=True)
        ]

    def _spaces(self, student: Predictions, teacher: Predictions) -> list[Tensor]:
        """Which tokens of either side begin with a space."""
        sides = (student, teacher)
        return [_sized(t, side.head.vocabulary) for t, side in zip(self._tables[1], sides, strict=True)]

    @cached_property
    def _tables(self) -> tuple[list[Tensor], list[Tensor]]:
        if self.tokenizers is None:
            raise ValueError("ALM needs both tokenizers to tell blanks; without them take boundary: none")
        sides = (self.tokenizers.student, self.tokenizers.teacher)
        blanks = _ends if self.settings["eos_as_space"] else _blanks
        return [blanks(side) for side in sides], [_spaces(side) for side in sides]


def _blanks(pieces: Pieces) -> Tensor:
    """Tokens that begin with a blank, a line's or text's end, and all special ones: [V]."""
    return torch.tensor([content.startswith(BLANKS) or i in pieces.special for i, content in enumerate(pieces.content)])


def _spaces(pieces: Pieces) -> Tensor:
    return torch.tensor([content.startswith(b" ") for content in pieces.content])


def _ends(pieces: Pieces) -> Tensor:
    return torch.tensor([pieces.special.get(index) == "eos" for index in range(len(pieces))])


def _sized(table: Tensor, vocabulary: int) -> Tensor:
    """Cut to the tokens that are predicted, or filled up by tokens that no string stands for."""
    return torch.nn.functional.pad(table, (0, vocabulary - len(table)))


def _binary_ce(t: Tensor, s: Tensor, temperature: float) -> Tensor:
    a, b = t / temperature - EPSILON, s / temperature - EPSILON
    return -(a.exp() * b - a.expm1() * _log_rest(b))


def _reverse_binary_kl(t: Tensor, s: Tensor, temperature: float) -> Tensor:
    a, b = t / temperature - EPSILON, s / temperature - EPSILON
    return b.exp() * (b - a) - b.expm1() * (_log_rest(b) - _log_rest(a))


def _binary_kl_temp_limit(t: Tensor, s: Tensor, temperature: float) -> Tensor:
    """What T times the binary KL comes to as T grows; `temperature` does not matter."""
    a, b = t - EPSILON, s - EPSILON
    return (a - b) + a * (-b).log() - a * (-a).log()


def _log_rest(x: Tensor) -> Tensor:
    """log(1 - exp(x)) of x < 0, exact on both ends."""
    return torch.where(x > -math.log(2.0), (-x.expm1()).log(), (-x.exp()).log1p())


# From log-likelihoods of chunks [M], the teacher's and the student's, and the temperature, to distances [M].
DIFFERENCES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "binary_ce": _binary_ce,
    "abs": lambda t, s, temperature: (t - s).abs(),
    "abs_exp": lambda t, s, temperature: ((t / temperature).exp() - (s / temperature).exp()).abs(),
    "reverse_binary_kl": _reverse_binary_kl,
    "binary_kl_temp_limit": _binary_kl_temp_limit,
    "joschu_k2": lambda t, s, temperature: 0.5 * ((t - s) / temperature).square(),
}
