"""Decoupled knowledge distillation: the label against the rest, and the rest among itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from stillhouse.divergence.base import Divergence
from stillhouse.divergence.rows import Rows, Side


class _Apart(NamedTuple):
    """One side at T, its label taken out."""

    rest: Tensor  # [N, V] softmax of the rest, 0 at the label
    lead: Tensor  # [N, 1] a = z[y] - logsumexp of the rest
    highest: Tensor  # [N, 1] the highest logit of the rest
    log_total: Tensor  # [N, 1] log of the sum of exp(z - highest)


@dataclass(frozen=True)
class Decoupled(Divergence):
    """T^2 (alpha KL(b_p||b_q) + beta KL(p'||q')): b is label against rest, ' the rest renormalised. (arXiv:2203.08679)

    With a = z[y] - logsumexp of the rest, b = (sigmoid(a), sigmoid(-a)). Gradient, over T: at the label
    alpha (q[y] - p[y]), elsewhere alpha (p[y] - q[y]) q' + beta (q' - p').
    """

    name = "dkd"
    needs_labels = True
    temperature: float
    alpha: float
    beta: float

    def value_and_gradient(self, rows: Rows) -> tuple[Tensor, Tensor]:
        labels = rows.labels.unsqueeze(-1)  # [N, 1]
        q, p = self._apart(rows.student, labels), self._apart(rows.teacher, labels)
        label_value, label_slope = _label_against_rest(q.lead, p.lead)  # [N, 1], [N, 1]
        log_ratio = rows.student.logits - rows.teacher.logits  # [N, V]
        if self.temperature != 1.0:
            log_ratio.div_(self.temperature)
        log_ratio.sub_((q.highest - p.highest).add_(q.log_total - p.log_total))  # log q' - log p'
        p_rest, mass = p.rest, 1.0
        if rows.excluded is not None:
            log_ratio.masked_fill_(rows.excluded, 0.0)
            p_rest = p_rest.masked_fill(rows.excluded, 0.0)
            mass = 1.0 - (p.rest - p_rest).sum(-1, keepdim=True)  # [N, 1] exactly 1 in a row that excludes nothing
        rest_value = -log_ratio.mul_(p_rest).sum(-1, keepdim=True)  # [N, 1]
        values = (self.alpha * label_value + self.beta * rest_value).squeeze(-1)
        gradient = q.rest.mul_(self.beta * mass - self.alpha * label_slope).sub_(p_rest, alpha=self.beta)  # [N, V]
        gradient.scatter_(-1, labels, self.alpha * label_slope)
        return values * self.temperature**2, gradient.mul_(self.temperature)

    def _apart(self, side: Side, labels: Tensor) -> _Apart:
        logits = side.logits / self.temperature  # [N, V]
        of_label = logits.gather(-1, labels)  # [N, 1]
        logits.scatter_(-1, labels, -torch.inf)
        highest = logits.amax(-1, keepdim=True)  # [N, 1]
        impossible = torch.isneginf(highest)  # V is 1, or the rest is all -inf
        highest.masked_fill_(impossible, 0.0)
        rest = logits.sub_(highest).exp_()  # [N, V]
        log_total = rest.sum(-1, keepdim=True).log_()  # [N, 1]
        lead = of_label - (highest + log_total)
        log_total.masked_fill_(impossible, 0.0)
        return _Apart(rest.div_(log_total.exp()), lead, highest, log_total)


def _label_against_rest(q_lead: Tensor, p_lead: Tensor) -> tuple[Tensor, Tensor]:
    """KL(b_p||b_q) and its derivative by `q_lead`: q[y] - p[y], but for a part that either side excludes."""
    value, slope = torch.zeros_like(q_lead), torch.zeros_like(q_lead)
    for sign in (1.0, -1.0):
        log_q, log_p = logsigmoid(sign * q_lead), logsigmoid(sign * p_lead)
        common = torch.isfinite(log_q) & torch.isfinite(log_p)
        share = log_p.exp()
        value += torch.where(common, share * (log_p - log_q), 0.0)
        slope -= torch.where(common, sign * share * torch.sigmoid(-sign * q_lead), 0.0)
    return value, slope
