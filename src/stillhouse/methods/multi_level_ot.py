"""Multi-Level OT: the likeliest columns of both sides, by token and by response. (Cui et al., arXiv:2412.14528)"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stillhouse.divergence import build as build_divergence
from stillhouse.head import Pairing, Predictions, Term
from stillhouse.head.columns import column_sums, probabilities_at
from stillhouse.methods.clock import Clock
from stillhouse.methods.method import Method, Terms

KD_WEIGHTS = {"clean": 1.5, "official": 1.5, "official_greedy": 1.5, "mcw": 1.0}
TRANSPORT_SCALE = 0.001  # of W in the released forms
SECOND_TEMPERATURE = 2.0  # of the softmax that W takes of the probabilities
PORT_TEMPERATURE = 2.0  # of MCW-KD's first softmax, that of the logits; everywhere else it is 1


@dataclass(frozen=True)
class Levels:
    """The three parts of the loss, scalars."""

    l1: Tensor
    cross_entropy: Tensor
    transport: Tensor


class MultiLevelTransport(Method):
    """CE + kd_weight (L1 + kl_weight H + transport_weight W) of the k likeliest columns of softmax(z / std(z)).

    clean: columns are ranked by example; L1 and H, to the teacher as the target, are sums over pairs of rows; W is the
    cost of the transport over an example's positions, whose mass is the student's tokens: all are sums over tokens.
    official: columns are ranked over the batch, the student's last token is left out, L1 and H are means, rows of
    padding included in H, H has the student as its target, W has a factor of 0.001. Their sum here is N_s times the
    official number, so that it is left after the division by N_s: of one micro-batch on one process. official_greedy
    is the same with the student's columns matched as the code's other setting has it. mcw is MCW-KD's port, on scored
    rows alone: there every position counts, prompts and padding too, which dilutes it by as much as there is of them.
    """

    def __init__(self, name: str, settings: Mapping[str, Any]) -> None:
        super().__init__(name, settings)
        if self.settings["kd_weight"] is None:
            self.settings["kd_weight"] = KD_WEIGHTS[self.settings["form"]]

    def forward(self, student: Predictions, teacher: Predictions | None, clock: Clock) -> Terms:
        """Sum over N_s tokens; `teacher` must be given, with any vocabulary."""
        assert teacher is not None
        now = self.at(clock)
        labels = self.summed(student, None, [Term("ce", build_divergence("cross_entropy"))])
        levels = self.levels(student, teacher.detach(), now)
        kd = levels.l1 + now["kl_weight"] * levels.cross_entropy + now["transport_weight"] * levels.transport
        parts = {"kd": kd, "l1": levels.l1, "column_ce": levels.cross_entropy, "transport": levels.transport}
        sums = {**labels.sums, **{name: part.detach() for name, part in parts.items()}}
        sums["aligned"] = torch.full_like(sums["ce"], len(teacher if teacher.pairing is None else teacher.pairing))
        return Terms(labels.loss + now["kd_weight"] * kd, sums)

    def levels(self, student: Predictions, teacher: Predictions, now: Mapping[str, Any]) -> Levels:
        """L1, H and W as the form has them, times what makes them sums."""
        epsilon, iterations = now["epsilon"], int(now["iterations"])
        k = min(int(now["top_k"]), student.head.vocabulary, teacher.head.vocabulary)
        counts = _counts(student, teacher)
        if now["form"].startswith("official"):
            greedy = now["form"] == "official_greedy"
            return self._official(student, teacher, counts, k, greedy, epsilon, iterations)
        clean = now["form"] == "clean"
        ours, theirs = (
            self._ranked(side, of_side, k, 1.0 if clean else PORT_TEMPERATURE, by_example=clean)
            for side, of_side in zip((student, teacher), counts, strict=True)
        )
        of_pairs = _pairs(ours, theirs, teacher.pairing)  # [M, k] each
        l1 = (of_pairs[0] - of_pairs[1]).abs().sum()
        cross_entropy = _cross_entropy(of_pairs[1], of_pairs[0]).sum()
        rows = zip(ours.split(counts[0]), theirs.split(counts[1]), strict=True)
        examples = [(of_student, of_teacher) for of_student, of_teacher in rows if len(of_student) and len(of_teacher)]
        if not clean:
            examples = [(of_teacher, of_student) for of_student, of_teacher in examples]
        # The columns of the plan, here the student's positions, have a mass of 1 each.
        costs = [transport(*example, epsilon, iterations) for example in examples]
        total = sum(costs, start=l1.new_zeros(()))
        return Levels(l1, cross_entropy, total if clean else total * TRANSPORT_SCALE * len(of_pairs[0]))

    def _ranked(
        self, side: Predictions, counts: Sequence[int], k: int, temperature: float = 1.0, *, by_example: bool
    ) -> Tensor:
        """Probabilities of the rows at the k columns that are likeliest in their example, or in all rows: [N, k]."""
        groups = len(counts) if by_example else 1
        group = _numbered(counts, side.hidden.device) if by_example else torch.zeros_like(side.sequence)  # [N]
        sums, standard = column_sums(side, group, groups, temperature, self.blocks)  # [G, V]
        ids = sums.topk(k, -1).indices  # [G, k]
        return probabilities_at(side, ids[group], standard, temperature, self.blocks)

    def _official(
        self,
        student: Predictions,
        teacher: Predictions,
        counts: tuple[list[int], list[int]],
        k: int,
        greedy: bool,
        epsilon: float,
        iterations: int,
    ) -> Levels:
        sizes = [count - 1 if count else 0 for count in counts[0]]
        kept = student.at(_all_but_last(counts[0], student.hidden.device))
        length = max([*sizes, *counts[1], 1])
        theirs = _padded(self._ranked(teacher, counts[1], k, by_example=False), counts[1], length)  # [B, m, k]
        if greedy:
            ours = self._matched(kept, sizes, theirs)
        else:
            ours = _padded(self._ranked(kept, sizes, k, by_example=False), sizes, length)  # [B, m, k]
        shorter = [min(pair) for pair in zip(sizes, counts[1], strict=True)]
        by_row = (ours - theirs).abs().sum(-1)  # [B, m]
        means = [rows[:count].mean() for rows, count in zip(by_row, shorter, strict=True) if count]
        l1 = sum(means, start=by_row.new_zeros(())) / len(shorter)
        cross_entropy = _cross_entropy(ours, theirs).mean()
        total = transport(ours, theirs, epsilon, iterations).sum() * TRANSPORT_SCALE
        # Whoever trains divides by N_s.
        return Levels(*(part * len(student) for part in (l1, cross_entropy, total)))

    def _matched(self, side: Predictions, counts: Sequence[int], theirs: Tensor) -> Tensor:
        """Student columns for those of the teacher [B, m, k], by the greedy matching of the released code: [B, m, k].

        Its loops run over positions where they should run over columns: the teacher's column i < m gets, of the
        student's tokens 0 to m - 1, the one that is nearest over time and not taken, and the columns from m on nothing.
        Where m is above k, the released code ends with an error; here the loops end at k.
        """
        batch, length, k = theirs.shape
        columns = min(length, side.head.vocabulary)
        standard = column_sums(side, torch.zeros_like(side.sequence), 1, blocks=self.blocks)[1]
        ids = torch.arange(columns, device=side.hidden.device).expand(len(side), -1)
        first = _padded(probabilities_at(side, ids, standard, blocks=self.blocks), counts, length)  # [B, m, c]
        distance = torch.cdist(theirs.mT, first.detach().mT, p=1.0)  # [B, k, c]
        found = torch.zeros_like(theirs)
        example = torch.arange(batch, device=theirs.device)
        for column in range(min(k, columns)):
            nearest = distance[:, column].argmin(-1)  # [B]
            distance[example, :, nearest] = torch.inf
            found = found.index_copy(-1, nearest.new_tensor([column]), first[example, :, nearest].unsqueeze(-1))
        return found


def transport(columns: Tensor, rows: Tensor, epsilon: float, iterations: int) -> Tensor:
    """sum P W after Sinkhorn, P's rows and columns normalised in turn, columns last: [..., n, k], [..., m, k] -> [...].

    W [..., m, n] is the L1 distance between softmax(p / 2) of the positions. Differentiable through all iterations.
    """
    columns, rows = ((side / SECOND_TEMPERATURE).softmax(-1) for side in (columns, rows))
    cost = torch.cdist(rows, columns, p=1.0)  # [..., m, n]
    # The first step divides each row by its sum, so what its costs have in common may go before. A cost is at most 2:
    # the bound is for an epsilon below 1/30 alone, and keeps sums from 0 and their gradients from infinity.
    plan = ((cost.detach().amin(-1, keepdim=True) - cost) / epsilon).clamp(min=-60.0).exp()
    for _ in range(iterations):
        plan = plan / plan.sum(-1, keepdim=True)
        plan = plan / plan.sum(-2, keepdim=True)
    return (plan * cost).sum((-2, -1))


def _cross_entropy(target: Tensor, prediction: Tensor) -> Tensor:
    """Between the softmaxes of two rows of probabilities: [..., k] -> [...]."""
    return -(target.softmax(-1) * prediction.log_softmax(-1)).sum(-1)


def _pairs(ours: Tensor, theirs: Tensor, pairing: Pairing | None) -> tuple[Tensor, Tensor]:
    """The aligned rows of both sides, each the mean of its group: [M, k] each."""
    if pairing is None:
        return ours, theirs
    return (
        _group_means(ours, pairing.student_index, pairing.student_bounds),
        _group_means(theirs, pairing.teacher_index, pairing.teacher_bounds),
    )


def _group_means(rows: Tensor, index: Tensor, bounds: Tensor) -> Tensor:
    if len(index) == len(bounds) - 1:
        return rows[index]
    sizes = bounds.diff()  # [M]
    group = torch.repeat_interleave(sizes, output_size=len(index))  # [K]
    sums = rows.new_zeros(len(sizes), rows.shape[1]).index_add(0, group, rows[index])
    return sums / sizes.unsqueeze(-1)


def _counts(student: Predictions, teacher: Predictions) -> tuple[list[int], list[int]]:
    """How many rows each example has, of either side."""
    if teacher.pairing is not None:
        return list(teacher.pairing.student_counts), list(teacher.pairing.teacher_counts)
    counts = torch.unique_consecutive(student.sequence, return_counts=True)[1].tolist()
    return counts, counts


def _numbered(counts: Sequence[int], device: torch.device) -> Tensor:
    """The example of every row: [N]."""
    return torch.repeat_interleave(torch.tensor(counts)).to(device)


def _all_but_last(counts: Sequence[int], device: torch.device) -> Tensor:
    """The rows that are not the last of their example."""
    rows = (row for start, count in _starts(counts) for row in range(start, start + count - 1))
    return torch.tensor(list(rows), dtype=torch.long).to(device)


def _starts(counts: Sequence[int]) -> Iterator[tuple[int, int]]:
    start = 0
    for count in counts:
        yield start, count
        start += count


def _padded(rows: Tensor, counts: Sequence[int], length: int) -> Tensor:
    """Rows [N, k] by example, zeros at the end: [B, m, k]."""
    parts = [torch.nn.functional.pad(part, (0, 0, 0, length - len(part))) for part in rows.split(list(counts))]
    return torch.stack(parts)
