"""A block of student and teacher logits, and what several losses and monitors of that block share.

Everything is computed when first asked for and kept, so cross-entropy at T=1, a divergence at T=1 and the student's
entropy cost one softmax of the student together. Values are fp32 whatever the dtype of the logits; fp64 stays fp64.

On CPU a block of about 800,000 elements stays in cache, where a pass costs 0.2 ns (in place) to 0.6 ns (fresh) an
element, a softmax 1 ns, and `argmax` or a masked fill 3 to 5 ns: hence `_peak`, and the look for -inf before masking.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_PEAK_WIDTH = 256


class Softmax(NamedTuple):
    """softmax(logits / T) of one side."""

    probabilities: Tensor  # [N, V]
    highest: Tensor  # [N, 1] the highest of logits / T
    likeliest: Tensor  # [N, 1] its probability, so log q[i] = logits[i] / T - highest + log(likeliest)


class Pair(NamedTuple):
    """Both sides at one temperature, as a divergence reads them.

    The `common` probabilities are 0, and so is the log-ratio, where either side's logit is -inf; elsewhere they are the
    probabilities themselves (the very same tensor where there is no -inf).
    """

    student: Tensor  # [N, V] q
    teacher: Tensor  # [N, V] p
    student_common: Tensor  # [N, V]
    teacher_common: Tensor  # [N, V]
    log_ratio: Tensor  # [N, V] log q - log p; fresh for each caller, who may write into it


class Side:
    """One model's logits of a block."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits  # [N, V] fp32 or fp64
        self._softmax: dict[float, Softmax] = {}
        # No functools.cached_property here: its lock (Python 3.11) is where torch.compile would break off.
        self._peak: tuple[Tensor, Tensor] | None = None
        self._holes: tuple[Tensor | None] | None = None

    @property
    def peak(self) -> tuple[Tensor, Tensor]:
        """The highest logit of each row [N, 1] and its first index [N, 1]."""
        if self._peak is None:
            self._peak = _peak(self.logits)
        return self._peak

    @property
    def holes(self) -> Tensor | None:
        """Where the logits are -inf [N, V]; None where they are known to be nowhere.

        On an accelerator to know would stop and wait for the device, so there, and in a compiled graph, the mask is
        always made.
        """
        if self._holes is None:
            looks = self.logits.is_cpu and not torch.compiler.is_compiling()
            whole = looks and (self.logits.numel() == 0 or bool(self.logits.amin() > -torch.inf))
            self._holes = (None if whole else torch.isneginf(self.logits),)
        return self._holes[0]

    def softmax(self, temperature: float) -> Softmax:
        """softmax(logits / T); computed once for each temperature."""
        if temperature not in self._softmax:
            highest, index = self.peak
            scaled = self.logits if temperature == 1.0 else self.logits / temperature
            probabilities = scaled.softmax(-1)  # [N, V]
            self._softmax[temperature] = Softmax(probabilities, highest / temperature, probabilities.gather(-1, index))
        return self._softmax[temperature]


class Rows:
    """N next-token predictions of a student, and of a teacher and labels where a loss needs them.

    `student_logits` and `teacher_logits` are [N, V] of any floating dtype, `labels` [N] are real token ids (rows
    without one are dropped before). Gradients are not followed. Raises ValueError where shapes or labels do not fit;
    labels on an accelerator are not looked at here, because to look is to wait: there the gather itself asserts. With
    `any_vocabularies` the teacher may have another V, and then nothing that compares token by token may be asked for.
    """

    def __init__(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor | None = None,
        labels: Tensor | None = None,
        any_vocabularies: bool = False,
    ) -> None:
        _check_shapes(student_logits, teacher_logits, labels, any_vocabularies)
        sides = [student_logits] if teacher_logits is None else [student_logits, teacher_logits]
        dtype = torch.float64 if any(side.dtype == torch.float64 for side in sides) else torch.float32
        self.student = Side(student_logits.detach().to(dtype))
        self._teacher = None if teacher_logits is None else Side(teacher_logits.detach().to(dtype))
        self._labels = None if labels is None else labels.long()
        self._excluded: tuple[Tensor | None] | None = None
        if labels is not None and labels.is_cpu and not torch.compiler.is_compiling():
            check_labels(labels, student_logits.shape[-1])

    @property
    def teacher(self) -> Side:
        """The teacher's side; ValueError where there is none."""
        if self._teacher is None:
            raise ValueError("teacher logits [N, V] are needed, got None")
        return self._teacher

    @property
    def labels(self) -> Tensor:
        """The labels [N]; ValueError where there are none."""
        if self._labels is None:
            raise ValueError("labels [N] are needed, got None")
        return self._labels

    def pair(self, temperature: float) -> Pair:
        """Both sides' probabilities at `temperature` and the logarithm of their ratio."""
        student, teacher = self.student.softmax(temperature), self.teacher.softmax(temperature)
        log_ratio = self.student.logits - self.teacher.logits  # [N, V]
        if temperature != 1.0:
            log_ratio.div_(temperature)
        # The difference of the logsumexps, from parts that are small: a logsumexp near 10 is rounded by 5e-7, and the
        # whole row with it.
        log_ratio.sub_((student.highest - teacher.highest).sub_((student.likeliest / teacher.likeliest).log_()))
        q, p = student.probabilities, teacher.probabilities
        if self.excluded is None:
            return Pair(q, p, q, p, log_ratio)
        q_common, p_common = q.masked_fill(self.excluded, 0.0), p.masked_fill(self.excluded, 0.0)
        return Pair(q, p, q_common, p_common, log_ratio.masked_fill_(self.excluded, 0.0))

    @property
    def excluded(self) -> Tensor | None:
        """Where either side's logit is -inf [N, V]; None where that is known to be nowhere."""
        if self._excluded is None:
            holes = [side.holes for side in (self.student, self.teacher) if side.holes is not None]
            self._excluded = (torch.stack(holes).any(0) if holes else None,)
        return self._excluded[0]

    def cross_entropy(self) -> Tensor:
        """-log q[label] at T=1, in nats: [N]."""
        return self.surprise(1.0).squeeze(-1)

    def surprise(self, temperature: float) -> Tensor:
        """-log q[label], in nats: [N, 1]."""
        _, highest, likeliest = self.student.softmax(temperature)
        at_label = self.student.logits.gather(-1, self.labels.unsqueeze(-1))  # [N, 1]
        if temperature != 1.0:
            at_label.div_(temperature)
        return (highest - at_label).sub_(likeliest.log())

    def accuracy(self) -> Tensor:
        """1 where the student's likeliest token is the label, else 0: [N]."""
        return (self.student.peak[1].squeeze(-1) == self.labels).to(self.student.logits.dtype)

    def agreement(self) -> Tensor:
        """1 where student and teacher have the same likeliest token, else 0: [N]."""
        return (self.student.peak[1] == self.teacher.peak[1]).squeeze(-1).to(self.student.logits.dtype)

    def entropy(self) -> Tensor:
        """The student's entropy at T=1 in nats: [N]."""
        logits, holes = self.student.logits, self.student.holes
        if holes is not None:
            logits = logits.masked_fill(holes, 0.0)
        probabilities, highest, likeliest = self.student.softmax(1.0)
        return (highest - likeliest.log()).squeeze(-1).sub_((probabilities * logits).sum(-1))


def check_labels(labels: Tensor, vocabulary: int) -> None:
    """ValueError unless all `labels` are ids below `vocabulary`; on an accelerator this waits for the device."""
    outside = (labels < 0) | (labels >= vocabulary)
    if bool(outside.any()):
        row = int(outside.nonzero()[0])
        raise ValueError(
            f"labels must be token ids from 0 to {vocabulary - 1}, got {int(labels[row])} in row {row}; "
            "drop rows without a label first"
        )


def _check_shapes(student: Tensor, teacher: Tensor | None, labels: Tensor | None, any_vocabularies: bool) -> None:
    if student.ndim != 2 or student.shape[-1] == 0 or not student.is_floating_point():
        raise ValueError(f"student logits must be floating [N, V], got {student.dtype} {list(student.shape)}")
    shape = None if teacher is None else (*student.shape[:1], teacher.shape[-1]) if any_vocabularies else student.shape
    if teacher is not None and (teacher.shape != shape or not teacher.is_floating_point()):
        raise ValueError(
            f"teacher logits must be floating {list(student.shape)} as the student's, got {teacher.dtype} "
            f"{list(teacher.shape)}; cut both to the shared vocabulary"
        )
    if labels is not None and (labels.shape != student.shape[:1] or labels.is_floating_point()):
        raise ValueError(f"labels must be integers [{len(student)}], got {labels.dtype} {list(labels.shape)}")


def _peak(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The highest value of each row and its first index, each [N, 1].

    First the block of 256 columns with the highest maximum, then the place in it: on CPU torch's `argmax` over a whole
    row costs ten times as much as `amax`.
    """
    width = min(_PEAK_WIDTH, logits.shape[-1])
    blocks = logits.shape[-1] // width
    highest = logits[:, : blocks * width].unflatten(-1, (blocks, width)).amax(-1)  # [N, blocks]
    if logits.shape[-1] > blocks * width:
        highest = torch.cat([highest, logits[:, blocks * width :].amax(-1, keepdim=True)], dim=-1)
    start = highest.argmax(-1, keepdim=True) * width  # [N, 1]
    columns = start + torch.arange(width, device=logits.device)  # [N, width]
    # The last block may be short: its columns past the end repeat the last one, which the first index wins over.
    inside = logits.gather(-1, columns.clamp_(max=logits.shape[-1] - 1)).argmax(-1, keepdim=True)  # [N, 1]
    return highest.amax(-1, keepdim=True), start + inside
