"""GOLD: groups of tokens that cover the same bytes, each as one merged row. (Patiño et al., GOLD, in TRL)

A group of tokens x_1 ... x_n of one side is merged into q(. | before x_1) q(x_2 | x_1) ... q(x_n | ... x_n-1): how
likely the text is if the group began with another token (`observed`); or q(x_1) ... q(x_n-1 | ...) q(. | ... x_n-1),
if it ended with another (`bayesian`). So the row of one position, the base, is multiplied by the probability of the
labels of the others, and the gradient goes through both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillhouse import schedule
from stillhouse.divergence import build as build_divergence
from stillhouse.divergence.gold import LEAST, MergedRows
from stillhouse.head import Pairing, Predictions, Term
from stillhouse.head.likelihoods import log_likelihoods
from stillhouse.head.merged import merged_loss
from stillhouse.methods.clock import Clock
from stillhouse.methods.gold_groups import one_by_one, released
from stillhouse.methods.method import Method, Terms
from stillhouse.vocabulary import overlap

Ids = NDArray[np.int64]


class GeneralOnline(Method):
    """(1 - kd_weight) CE + kd_weight (matched_weight JSD + unmatched_weight U), a sum over groups.

    A group counts once however many tokens it has, so an example's loss depends on it alone. Under `parity` the sum is
    N_s times TRL's number, the mean over examples of the mean over their groups, so that after the division by N_s that
    number is left: of one micro-batch on one process. Over several it is their mean, weighted by tokens.
    """

    def forward(self, student: Predictions, teacher: Predictions | None, clock: Clock) -> Terms:
        """Sum over N_s tokens; `teacher` must be given, and without tokenizers the same vocabulary on both sides."""
        assert teacher is not None
        now = self.at(clock)
        labels = self._labels(student, 1.0 - now["kd_weight"])
        pairing = one_by_one(student.sequence) if teacher.pairing is None else teacher.pairing
        weights = torch.ones(len(pairing), device=student.hidden.device)  # [M]
        late = 0
        if now["parity"]:
            pairing, weights = released(pairing, student.hidden.device)
            late = int(now["merge"] == "observed")
        temperature = now["temperature"]
        measure = self._measure(student, teacher, now["hybrid"], now)
        ours, factor = self._merged(student, _Side.of(pairing, "student", now["merge"], late), temperature)
        with torch.no_grad():
            side = _Side.of(pairing, "teacher", now["merge"], late)
            theirs, their_factor = self._merged(teacher, side, measure.teacher_temperature)
        parts = (weights, measure.shared_weight, measure.apart_weight)
        found = merged_loss(ours, theirs, (factor, their_factor), measure, parts, self.blocks)
        with torch.no_grad():
            shared, apart = (weights * found.shared).sum(), (weights * found.apart).sum()
            kd = measure.shared_weight * shared + measure.apart_weight * apart
        aligned = torch.full_like(kd, len(pairing))
        sums = {**labels.sums, "kd": kd, "matched_kd": shared, "unmatched_kd": apart, "aligned": aligned}
        return Terms(labels.loss + now["kd_weight"] * found.loss, sums)

    def _labels(self, student: Predictions, weight: float) -> Terms:
        """The cross-entropy's part, and the monitors of labels; without weight all through the run, only looked at."""
        term = Term("ce", build_divergence("cross_entropy"), weight)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._learns_labels):
            return self.summed(student, None, [term])

    @property
    def _learns_labels(self) -> bool:
        return self.settings["kd_weight"] != 1.0 or schedule.is_schedule(self.settings["kd_weight"])

    def _merged(self, predictions: Predictions, side: _Side, temperature: float) -> tuple[Predictions, Tensor]:
        """The base row of every group, and the logarithm of its factor [M]."""
        others = predictions.at(side.others + side.late)
        if side.late:
            others = replace(others, labels=predictions.labels[side.others])
        found = log_likelihoods(others, temperature, blocks=self.blocks).labels.clamp(min=math.log(LEAST))
        factor = found.new_zeros(len(side.base)).index_add(0, side.group, found)
        return predictions.at(side.base + side.late), factor

    def _measure(self, student: Predictions, teacher: Predictions, hybrid: bool, now: dict[str, float]) -> MergedRows:
        sizes = student.head.vocabulary, teacher.head.vocabulary
        none = np.zeros(0, dtype=np.int64)
        shared = self._shared(*sizes) if hybrid else (none, none)
        matched, unmatched = 0.0, 1.0
        if hybrid:
            matched = len(shared[1]) / sizes[1] if now["matched_weight"] is None else now["matched_weight"]
            unmatched = max(0.0, 1.0 - matched) if now["unmatched_weight"] is None else now["unmatched_weight"]
        apart = [_without(size, ids) for size, ids in zip(sizes, shared, strict=True)]
        device = student.hidden.device
        ids = [torch.from_numpy(part).to(device) for part in (*shared, *apart)]
        teacher_temperature = now["teacher_temperature"]
        return MergedRows(
            shared=(ids[0], ids[1]),
            apart=(ids[2], ids[3]),
            beta=now["beta"],
            shared_weight=matched,
            apart_weight=unmatched,
            temperature=now["temperature"],
            teacher_temperature=now["temperature"] if teacher_temperature is None else teacher_temperature,
        )

    def _shared(self, student_vocabulary: int, teacher_vocabulary: int) -> tuple[Ids, Ids]:
        """Tokens that both sides predict: [K] ids of the student and [K] of the teacher."""
        if self.tokenizers is None:
            if student_vocabulary != teacher_vocabulary:
                raise ValueError("GOLD's shared tokens of unlike vocabularies need both tokenizers")
            every = np.arange(student_vocabulary)
            return every, every
        ours, theirs = self._equal
        predicted = (ours < student_vocabulary) & (theirs < teacher_vocabulary)
        return ours[predicted], theirs[predicted]

    @cached_property
    def _equal(self) -> tuple[Ids, Ids]:
        """Tokens of equal bytes and the ends of text; under parity, as released, of equal strings."""
        assert self.tokenizers is not None
        if not self.settings["parity"]:
            theirs, ours = overlap(self.tokenizers.teacher, self.tokenizers.student)
            return ours.astype(np.int64), theirs.astype(np.int64)
        at = {token: index for index, token in enumerate(self.tokenizers.teacher.raw) if token}
        pairs = [(index, at[token]) for index, token in enumerate(self.tokenizers.student.raw) if token in at]
        ours, theirs = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
        return ours, theirs


@dataclass(frozen=True)
class _Side:
    """The rows of one side's M groups.

    Attributes:
        base: [M] the row that a group's merged row is made of.
        others: [K - M] the rows whose labels' probabilities multiply it.
        group: [K - M] of each of those.
        late: how many rows later the released code reads the probabilities of a label.
    """

    base: Tensor
    others: Tensor
    group: Tensor
    late: int

    @classmethod
    def of(cls, pairing: Pairing, who: str, merge: str, late: int) -> _Side:
        index: Tensor = getattr(pairing, f"{who}_index")
        bounds: Tensor = getattr(pairing, f"{who}_bounds")
        at = bounds[:-1] if merge == "observed" else bounds[1:] - 1  # [M] in index
        is_base = torch.zeros(len(index), dtype=torch.int8, device=index.device).index_fill_(0, at, 1)
        # How many there are is known, so that an accelerator need not be waited for, as a mask would.
        others = is_base.argsort(stable=True)[: len(index) - len(at)]
        group = torch.repeat_interleave(bounds.diff(), output_size=len(index))
        return cls(index[at], index[others], group[others], late)


def _without(size: int, ids: Ids) -> Ids:
    kept = np.ones(size, dtype=bool)
    kept[ids] = False
    return np.flatnonzero(kept)
