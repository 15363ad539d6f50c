"""How likely each row's own label was, and some set of tokens together, differentiable, a block of logits at a time.

What a loss does with these may couple rows (the likelihood of a chunk of text is a sum over its tokens): its gradient
by each row is known in the backward pass only, which multiplies by the head once more. So forward and backward take
four products with the head, one more than a cross-entropy, whatever set is asked for beside the labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from stillhouse.head.blocks import Blocks, pieces
from stillhouse.head.lm_head import Finish, Head
from stillhouse.head.predictions import Predictions
from stillhouse.head.products import Gradients, Leaves, Products, compute_dtype, statistics_dtype

# A set of tokens with less probability than this counts as having it, and gets no gradient.
LEAST = 1e-30


class LogLikelihoods(NamedTuple):
    """Of N predictions, in nats; fp32 (fp64 for fp64)."""

    labels: Tensor  # [N] log q(label)
    among: Tensor  # [N] log of the probability of the tokens asked for, together; 0 where none were
    accuracy: Tensor  # [N] 1 where no token is likelier than the label, else 0; without gradient


def log_likelihoods(
    predictions: Predictions, temperature: float = 1.0, among: Tensor | None = None, blocks: Blocks | None = None
) -> LogLikelihoods:
    """log q(label) of every row, and log of the sum of q over the tokens `among`; no [N, V] tensor on the way.

    Args:
        predictions: N rows.
        temperature: divides the logits.
        among: [V] true at the tokens of the set.
        blocks: block sizes; by default the rule for the device.

    Raises:
        ValueError: temperature is not above 0, or `among` is not of the vocabulary's size.
    """
    hidden, head = predictions.hidden, predictions.head
    if not temperature > 0.0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    if among is not None and among.shape != (head.vocabulary,):
        raise ValueError(f"a set of tokens must be [{head.vocabulary}], got {list(among.shape)}")
    mask = None if among is None else among.to(hidden.device, statistics_dtype(hidden))
    plan = _Plan(head, temperature, compute_dtype(hidden), blocks or Blocks.on(hidden.device))
    found = _LogLikelihoods.apply(plan, mask, predictions.labels, hidden, head.weight, head.bias)
    return LogLikelihoods(*found)  # pyright: ignore[reportGeneralTypeIssues]


@dataclass(frozen=True)
class _Plan:
    head: Head
    temperature: float
    dtype: torch.dtype  # of the products
    blocks: Blocks

    @property
    def finish(self) -> Finish:
        return self.head.finishing


class _LogLikelihoods(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, plan: _Plan, mask: Tensor | None, labels: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, ...]:
        dtype = statistics_dtype(hidden)
        found = torch.zeros(3, len(hidden), dtype=dtype, device=hidden.device)  # [3, N]
        with torch.autocast(hidden.device.type, enabled=False):
            products = Products((hidden, weight, bias), plan.head, plan.dtype)
            for rows in pieces(len(hidden), plan.blocks.rows):
                block = products.of(rows)  # [B, V]
                for sub in plan.blocks.within(len(block), plan.head.vocabulary):
                    logits = plan.finish.forward(block[sub]) / plan.temperature  # [n, V]
                    for row, value in zip(found[:, rows], _values(logits, labels[rows][sub], mask), strict=True):
                        row[sub] = value
        ctx.plan = plan
        of_labels, of_set, accuracy = found.unbind(0)
        ctx.mark_non_differentiable(accuracy)
        ctx.save_for_backward(mask, labels, of_set, hidden, weight, bias)
        return of_labels, of_set, accuracy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        mask, labels, of_set, *leaves = ctx.saved_tensors
        plan: _Plan = ctx.plan
        by_label, by_set = (part / plan.temperature for part in upstream[:2])  # [N]
        among = None
        if mask is not None:
            # Below LEAST the value is constant; through log q(set) every token of the set gets q / q(set).
            by_set = torch.where(of_set > _log_least(of_set), by_set, 0.0)
            among = (mask, by_set / of_set.exp())
        both = by_label + by_set if mask is not None else by_label
        blocks = sum(1 for _ in pieces(len(labels), plan.blocks.rows))
        gradients = Gradients(_leaves(leaves), ctx.needs_input_grad[3:], plan.dtype, blocks)
        with torch.autocast(labels.device.type, enabled=False):
            products = Products(_leaves(leaves), plan.head, plan.dtype)
            for rows in pieces(len(labels), plan.blocks.rows):
                block = products.of(rows)  # [B, V]
                for sub in plan.blocks.within(len(block), plan.head.vocabulary):
                    logits = plan.finish.forward(block[sub])  # [n, V]
                    gradient = (logits / plan.temperature).softmax(-1)  # [n, V]
                    _slopes_(gradient, both[rows][sub], None if among is None else (among[0], among[1][rows][sub]))
                    gradient.scatter_add_(1, labels[rows][sub].unsqueeze(-1), by_label[rows][sub].unsqueeze(-1))
                    block[sub] = plan.finish.backward_(gradient, logits)
                gradients.add(products, rows, block, plan.blocks)
        return None, None, None, *gradients.finished()


def _values(logits: Tensor, labels: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """log q(label), log q(set) and whether the label is likeliest, [n] each, of `logits` [n, V]."""
    highest, at_label = logits.amax(-1), logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1)  # [n]
    probabilities = logits.softmax(-1)  # [n, V]
    # q of the highest logit is 1 / sum(exp(z - highest)): no third exponential over the vocabulary.
    of_labels = at_label - highest + probabilities.amax(-1).log()
    of_set = torch.zeros_like(of_labels) if mask is None else (probabilities @ mask).clamp_min(LEAST).log()
    return of_labels, of_set, (at_label >= highest).to(logits.dtype)


def _slopes_(probabilities: Tensor, both: Tensor, among: tuple[Tensor, Tensor] | None) -> None:
    """Multiply q [n, V] by -`both` [n], and in the set [V] by what each row's gets besides [n]."""
    if among is None:
        probabilities.mul_(both.neg().unsqueeze(-1))
    else:
        mask, of_set = among
        probabilities.mul_(torch.outer(of_set, mask).sub_(both.unsqueeze(-1)))


def _log_least(like: Tensor) -> Tensor:
    return torch.full((), LEAST, dtype=like.dtype, device=like.device).log()


def _leaves(saved: list[Any]) -> Leaves:
    hidden, weight, bias = saved
    return hidden, weight, bias
