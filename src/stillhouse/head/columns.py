"""The likeliest columns of many rows together: which they are, and the rows' probabilities there.

Letters: N rows in G groups, V tokens, k columns of a group, B and n rows of a block and a sub-block, T a temperature.
Before the softmax, logits are divided by their row's standard deviation: q = softmax(z / (T s)), s = std(z) + 1e-4.

    which     sums of q over the rows of a group, [G, V], and their k highest; one look at every row, without gradient
    there     q at these columns, [N, k]; the backward pass multiplies by the head again

With g the gradient by q at the columns, c = sum g q over them and E = sum q z over the vocabulary, the gradient by z is

    (g q at the columns, 0 elsewhere - c q) / (T s) - (sum g q z - c E) (z - mean z) / (T s^2 (V - 1) std(z))
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from stillhouse.head.blocks import Blocks, pieces
from stillhouse.head.predictions import Predictions
from stillhouse.head.products import Gradients, Plan, statistics_dtype
from stillhouse.head.sparse import gather

FLOOR = 1e-4  # added to a standard deviation


@dataclass(frozen=True)
class Standard:
    """What turns a row's logits into probabilities, [N] each."""

    mean: Tensor  # of its logits
    deviation: Tensor  # their standard deviation, over V - 1
    log_normalizer: Tensor  # logsumexp(z / (T s))

    def part(self, rows: slice) -> Standard:
        """Of some of the rows."""
        return Standard(self.mean[rows], self.deviation[rows], self.log_normalizer[rows])

    def scale(self, temperature: float) -> Tensor:
        """T s: [N]"""
        return (self.deviation + FLOOR) * temperature


@torch.no_grad()
def column_sums(
    side: Predictions, group: Tensor, groups: int, temperature: float = 1.0, blocks: Blocks | None = None
) -> tuple[Tensor, Standard]:
    """The sums of softmax(z / (T s)) over the rows of every group, [G, V], and what they were made with.

    Args:
        group: [N], from 0 to `groups` - 1.
    """
    hidden, head = side.hidden, side.head
    plan = Plan.of(hidden, head, temperature, blocks)
    sums = torch.zeros(groups, plan.vocabulary, dtype=statistics_dtype(hidden), device=hidden.device)  # [G, V]
    standard = Standard(*sums.new_empty(3, len(hidden)).unbind(0))
    with torch.autocast(hidden.device.type, enabled=False):
        products = plan.products((hidden, head.weight, head.bias))
        for rows in pieces(len(hidden), plan.blocks.rows):
            block = products.of(rows)  # [B, V]
            for sub in plan.blocks.within(len(block), plan.vocabulary):
                logits = plan.finish.forward(block[sub])  # [n, V]
                at = slice(rows.start + sub.start, rows.start + sub.stop)
                standard.mean[at] = logits.mean(-1)
                standard.deviation[at] = _deviation(logits, standard.mean[at])
                scaled = logits / standard.part(at).scale(temperature).unsqueeze(-1)
                q = scaled.softmax(-1)
                standard.log_normalizer[at] = scaled.amax(-1) - q.amax(-1).log()
                sums.index_add_(0, group[at], q)
    return sums, standard


def probabilities_at(
    side: Predictions, ids: Tensor, standard: Standard, temperature: float = 1.0, blocks: Blocks | None = None
) -> Tensor:
    """softmax(z / (T s)) of each row at its `ids` [N, k], no id twice in a row: [N, k].

    Differentiable by hidden states and head, the standard deviation as well; `standard` is of the same rows and T.
    """
    hidden, head = side.hidden, side.head
    plan = Plan.of(hidden, head, temperature, blocks)
    return _At.apply(plan, ids, standard, hidden, head.weight, head.bias)  # pyright: ignore[reportReturnType]


def _deviation(logits: Tensor, mean: Tensor) -> Tensor:
    """The standard deviation over V - 1 of each row: [n]."""
    centred = logits - mean.unsqueeze(-1)  # [n, V]
    return (centred.square_().sum(-1) / (logits.shape[-1] - 1)).sqrt_()


class _At(torch.autograd.Function):
    """The upstream gradient is known in the backward pass only, so that multiplies by the head once more."""

    @staticmethod
    def forward(
        ctx: Any, plan: Plan, ids: Tensor, standard: Standard, hidden: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        logits = gather(hidden, plan.head(weight, bias), ids, plan.blocks)  # [N, k]
        scale = standard.scale(plan.temperature).unsqueeze(-1)  # [N, 1]
        found = (logits / scale - standard.log_normalizer.unsqueeze(-1)).exp_()
        ctx.plan, ctx.standard = plan, standard
        ctx.save_for_backward(ids, logits, found, hidden, weight, bias)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        ids, logits, found, *leaves = ctx.saved_tensors
        plan: Plan = ctx.plan
        gradients = Gradients(
            tuple(leaves), ctx.needs_input_grad[3:], plan.dtype, sum(1 for _ in pieces(len(ids), plan.blocks.rows))
        )
        there = upstream[0] * found  # [N, k] g q
        pulls = torch.stack([there.sum(-1), (there * logits).sum(-1)])  # [2, N] c and sum g q z
        with torch.autocast(found.device.type, enabled=False):
            products = plan.products(tuple(leaves))
            for rows in pieces(len(ids), plan.blocks.rows):
                block = products.of(rows)  # [B, V]
                for sub in plan.blocks.within(len(block), plan.vocabulary):
                    at = slice(rows.start + sub.start, rows.start + sub.stop)
                    block[sub] = _by_product(plan, block[sub], ids[at], there[at], pulls[:, at], ctx.standard.part(at))
                gradients.add(products, rows, block, plan.blocks)
        return None, None, None, *gradients.finished()


def _by_product(plan: Plan, products: Tensor, ids: Tensor, there: Tensor, pulls: Tensor, standard: Standard) -> Tensor:
    """The gradient by the products [n, V], through soft-cap and scale."""
    logits = plan.finish.forward(products)  # [n, V]
    scale = standard.scale(plan.temperature).unsqueeze(-1)  # [n, 1]
    q = (logits / scale).sub_(standard.log_normalizer.unsqueeze(-1)).exp_()  # [n, V]
    total, weighted = pulls.unsqueeze(-1)  # [n, 1] each
    by_scale = (weighted - total * (q * logits).sum(-1, keepdim=True)) / scale  # [n, 1]
    deviation = standard.deviation.unsqueeze(-1)
    slope = by_scale / ((deviation + FLOOR) * (plan.vocabulary - 1) * deviation)
    slope = slope.masked_fill(deviation == 0.0, 0.0)  # all logits are equal, and stay so to first order
    gradient = q.mul_(-total / scale).scatter_add_(-1, ids, there / scale)
    gradient.addcmul_(logits - standard.mean.unsqueeze(-1), -slope)
    return plan.finish.backward_(gradient, logits)
