"""A teacher in memory, asked for its last hidden state only."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stillhouse.data.collate import Packed
from stillhouse.head import Head, Predictions, at_scored
from stillhouse.models import last_hidden


class LiveTeacher:
    """A frozen model that predicts the student's own tokens (same tokenizer, shared ids).

    It is no `nn.Module`, so that it can never enter the student's optimiser, checkpoints or gradient synchronisation.

    Args:
        model: any causal LM; frozen and put into evaluation mode here.
        vocabulary: real tokens; a head with more (padding) rows is cut to them.
    """

    def __init__(self, model: PreTrainedModel, vocabulary: int) -> None:
        self.model = model.eval().requires_grad_(False)
        self.vocabulary = vocabulary

    def to(self, device: torch.device) -> LiveTeacher:
        """Move the model to `device`."""
        self.model.to(device)  # type: ignore[arg-type]
        return self

    @torch.no_grad()
    def predict(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        labels: Tensor,
        scored_at: Tensor,
        packed: Packed | None = None,
    ) -> Predictions:
        """The teacher's predictions at the scored positions.

        Args:
            input_ids: [B, L], or [1, T] packed.
            attention_mask: [B, L], or None for a packed batch.
            labels: [B, L], the next token where scored, -100 elsewhere.
            scored_at: [N], flat indices of the scored positions.
            packed: where the examples of a packed batch are.
        """
        with torch.autocast(input_ids.device.type, enabled=False):
            hidden = last_hidden(self.model, input_ids, attention_mask, packed)  # [B, L, d]
        sequence = None if packed is None else packed["sequence"]
        return at_scored(hidden, Head.of(self.model, self.vocabulary), labels, scored_at, sequence)
