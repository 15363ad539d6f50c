"""logsumexp of each row of logits over the vocabulary, differentiable, with never more logits than those of a block."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from stillhouse.head.blocks import Blocks, pieces
from stillhouse.head.lm_head import Head
from stillhouse.head.products import Gradients, Plan, statistics_dtype


def log_normalizer(hidden: Tensor, head: Head, temperature: float = 1.0, blocks: Blocks | None = None) -> Tensor:
    """logsumexp(logits / temperature) of each row of `hidden` [N, d]: [N]; see `Predictions.log_normalizer`."""
    if not temperature > 0.0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    plan = Plan.of(hidden, head, temperature, blocks)
    return _LogNormalizer.apply(plan, hidden, head.weight, head.bias)  # pyright: ignore[reportReturnType]


class _LogNormalizer(torch.autograd.Function):
    """The upstream gradient is known in the backward pass only, so that multiplies by the head once more."""

    @staticmethod
    def forward(ctx: Any, plan: Plan, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        found = torch.empty(len(hidden), dtype=statistics_dtype(hidden), device=hidden.device)  # [N]
        with torch.autocast(hidden.device.type, enabled=False):
            products = plan.products((hidden, weight, bias))
            for rows in pieces(len(hidden), plan.blocks.rows):
                block = products.of(rows)  # [B, V]
                for sub in plan.blocks.within(len(block), plan.vocabulary):
                    logits = plan.finish.forward(block[sub])  # [n, V]
                    found[rows][sub] = (logits / plan.temperature).logsumexp(-1)
        ctx.plan = plan
        ctx.save_for_backward(found, hidden, weight, bias)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        found, *leaves = ctx.saved_tensors
        plan: Plan = ctx.plan
        blocks = sum(1 for _ in pieces(len(found), plan.blocks.rows))
        gradients = Gradients(tuple(leaves), ctx.needs_input_grad[1:], plan.dtype, blocks)
        with torch.autocast(found.device.type, enabled=False):
            products = plan.products(tuple(leaves))
            for rows in pieces(len(found), plan.blocks.rows):
                block = products.of(rows)  # [B, V]
                for sub in plan.blocks.within(len(block), plan.vocabulary):
                    block[sub] = _by_product(plan, block[sub], found[rows][sub], upstream[0][rows][sub])
                gradients.add(products, rows, block, plan.blocks)
        return None, *gradients.finished()


def _by_product(plan: Plan, products: Tensor, found: Tensor, upstream: Tensor) -> Tensor:
    """The gradient by the products [n, V]: upstream * softmax(logits / T) / T, through soft-cap and scale."""
    logits = plan.finish.forward(products)  # [n, V]
    gradient = (logits / plan.temperature).sub_(found.unsqueeze(-1)).exp_()
    return plan.finish.backward_(gradient.mul_((upstream / plan.temperature).unsqueeze(-1)), logits)
