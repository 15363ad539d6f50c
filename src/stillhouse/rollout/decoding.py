"""A batch of responses written in stretches: rows that have ended leave it, and nobody writes on for them.

A batch is as slow as its longest response. On a CPU, where a step costs what its rows cost, most of the time of a batch
goes to rows that ended long ago; on an accelerator they hold memory, and bandwidth that their keys and values take.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from stillhouse.rollout.drawing import Drawing

# Of the rows of a stretch, the share that has to end before it is over: to begin anew takes as long as a few steps.
ENDED = 0.125


def write(
    model: PreTrainedModel,
    input_ids: Tensor,
    mask: Tensor,
    *,
    budget: int,
    settings: dict[str, Any],
    stop_ids: Sequence[int],
    drawing: Drawing,
) -> list[list[int]]:
    """The tokens after each prompt, up to the one that ends a response, which is included.

    Args:
        input_ids: [B, P] prompts, padded on the left.
        mask: [B, P], 0 where padding is.
        budget: tokens of the longest response.
        settings: what a GenerationConfig is to say.
        stop_ids: tokens that end a response.
        drawing: of these rows, in this order.
    """
    generate: Any = model.generate
    read, mask, ends = (part.to(model.device) for part in (input_ids, mask, torch.tensor(stop_ids, dtype=torch.long)))
    alive, written = list(range(len(read))), [[] for _ in read]
    cache = None if drawing.beside is not None else _cache(model)  # a second model would have to be divided, too
    while alive and budget:
        seen = read.shape[1]
        given: dict[str, Any] = {}
        if cache is not None:
            given["past_key_values"] = cache
            given["stopping_criteria"] = StoppingCriteriaList([_EnoughEnded(ends, len(alive))])
        config = GenerationConfig(max_new_tokens=budget, **settings)
        drawers = LogitsProcessorList([drawing])
        read = generate(read, attention_mask=mask, generation_config=config, logits_processor=drawers, **given)
        fresh = read[:, seen:]  # [rows, steps of this stretch]
        over = torch.isin(fresh, ends)
        for row, tokens, end in zip(alive, fresh.tolist(), over.tolist(), strict=True):
            written[row] += tokens[: end.index(True) + 1] if True in end else tokens
        going = (~over.any(-1)).nonzero().squeeze(-1)
        budget -= fresh.shape[1]
        alive = [alive[row] for row in going.tolist()]
        if cache is None or not alive or not budget:
            break
        cache.batch_select_indices(going)
        drawing.keep(going)
        mask = torch.cat([mask, mask.new_ones(fresh.shape)], -1)[going]
        read = read[going]
    return written


def _cache(model: PreTrainedModel) -> DynamicCache | None:
    """A cache of keys and values whose rows can be told apart; None where the model remembers in another way."""
    if model._is_stateful or not model._supports_default_dynamic_cache():
        return None
    cache = DynamicCache(config=model.config)
    divisible = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers)
    return cache if divisible else None


class _EnoughEnded(StoppingCriteria):
    """Ends a stretch when enough of its rows have ended."""

    def __init__(self, ends: Tensor, rows: int) -> None:
        self.ends, self.enough = ends, max(1, int(ENDED * rows))
        self.ended = torch.zeros(rows, dtype=torch.bool, device=ends.device)

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        self.ended |= torch.isin(input_ids[:, -1], self.ends)
        return (self.ended.sum() >= self.enough).expand(len(input_ids))
