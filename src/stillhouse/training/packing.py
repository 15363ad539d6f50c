"""Whether a model keeps the examples of a packed row apart: asked of the model itself, before training."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from stillhouse.data.collate import PackingCollator
from stillhouse.mistakes import Mistake
from stillhouse.models import last_hidden

FIRST, SECOND = 9, 5  # positions of the two examples: unlike, so that positions that are not reset are seen


@torch.no_grad()
def check_packing(model: PreTrainedModel, side: str) -> None:
    """Compare the hidden states of two short examples in one packed row with those that each has alone.

    The second example is compared with itself behind another first one as well: the shapes are the same, so even the
    rounding is (but for experts, whose shapes depend on the tokens), and in bf16 a small leak is seen as well.

    Args:
        side: whose model it is, for the message.

    Raises:
        Mistake: the architecture ignores position ids, makes no packed mask, or carries a state from token to token.
    """
    training, device = model.training, model.device
    model.eval()
    embeddings: Any = model.get_input_embeddings()
    ids = torch.arange(2 * FIRST + SECOND, device=device) % embeddings.weight.shape[0]
    first, other, second = ids.split([FIRST, FIRST, SECOND])  # [FIRST], [FIRST], [SECOND]
    try:
        together, behind = _packed(model, first, second), _packed(model, other, second)  # [FIRST + SECOND, d]
    except TypeError:  # its forward has no position_ids
        raise _mixed(model, side) from None
    alone = torch.cat([last_hidden(model, part[None], torch.ones_like(part)[None])[0] for part in (first, second)])
    model.train(training)
    spread = alone.float().std().clamp_min(1e-6)
    leak = (together - behind)[FIRST:].abs().max() / spread
    change = (together - alone).abs().max() / spread
    exact = alone.dtype in (torch.float32, torch.float64)
    if not (leak < (1e-3 if exact else 0.01) and change < (1e-3 if exact else 0.1)):
        raise _mixed(model, side)


def _packed(model: PreTrainedModel, *examples: Tensor) -> Tensor:
    """Hidden states of `examples` [L_i] in one row: [sum L_i, d]."""
    items = [{"input_ids": np.append(ids.cpu().numpy(), 0), "sample": 0} for ids in examples]
    batch = PackingCollator()([{**item, "scored": np.zeros(len(item["input_ids"]), bool)} for item in items])
    packed = {name: value.to(model.device) if isinstance(value, Tensor) else value
              for name, value in batch["packed"].items()}  # fmt: skip
    return last_hidden(model, batch["input_ids"].to(model.device), None, packed)[0]  # type: ignore[arg-type]


def _mixed(model: PreTrainedModel, side: str) -> Mistake:
    wrong = f"{type(model).__name__} (the {side}) does not keep the examples of a packed row apart"
    return Mistake("data.packing", wrong, "write data.packing: false")
