"""A teacher in memory, asked for its last hidden state only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stillhouse.data.collate import Packed
from stillhouse.head import Head, Predictions, at_scored
from stillhouse.models import embedded, last_hidden
from stillhouse.teacher.window import joined, parted
from stillhouse.teacher.zero import gathered


class LiveTeacher:
    """A frozen model that predicts the student's own tokens (shared ids), or those of its own tokenizer.

    It is no `nn.Module`, so that it can never enter the student's optimiser, checkpoints or gradient synchronisation.

    Args:
        model: any causal LM; frozen and put into evaluation mode here.
        vocabulary: real tokens; a head with more (padding) rows is cut to them.
        window: batches of `predict_all` that go through the model together.

    Attributes:
        embeds: give the input embeddings with the predictions.
        whole: run padding as well, and give the deviation of all hidden states with the embeddings.
    """

    def __init__(self, model: PreTrainedModel, vocabulary: int, window: int = 1) -> None:
        self.model = model.eval().requires_grad_(False)
        self.vocabulary, self.window = vocabulary, window
        self.embeds, self.whole = False, False

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
        hidden = self._hidden(input_ids, attention_mask, packed)
        return self._scored(hidden, self.head(), input_ids, labels, scored_at, packed)

    @torch.no_grad()
    def predict_all(self, batches: Sequence[dict[str, Any]]) -> list[Predictions]:
        """The predictions for each of several batches, `window` of them in one forward.

        Packed rows stay apart where attention does the work of a whole row's mask, which grows with its square.
        """
        flash = "flash" in str(self.model.config._attn_implementation)
        quadratic = "packed" in batches[0] and not flash and not batches[0]["input_ids"].is_cpu
        step, head = 1 if quadratic else self.window, self.head()
        return [
            self._scored(hidden, head, batch["input_ids"], batch["labels"], batch["scored_at"], batch.get("packed"))
            for group in (batches[start : start + step] for start in range(0, len(batches), step))
            for batch, hidden in zip(group, parted(self._hidden(*joined(group)), group), strict=True)
        ]

    @torch.no_grad()
    def head(self) -> Head:
        """The whole head; of a teacher in ZeRO-3 shards gathered for as long as it is kept: all processes must ask."""
        with gathered(self.model.get_output_embeddings()):
            return Head.of(self.model, self.vocabulary).detach()

    def _hidden(self, input_ids: Tensor, attention_mask: Tensor | None, packed: Packed | None) -> Tensor:
        with torch.autocast(input_ids.device.type, enabled=False):
            return last_hidden(self.model, input_ids, attention_mask, packed, whole=self.whole)  # [B, L, d]

    def _scored(
        self, hidden: Tensor, head: Head, input_ids: Tensor, labels: Tensor, scored_at: Tensor, packed: Packed | None
    ) -> Predictions:
        sequence = None if packed is None else packed["sequence"]
        predicted = at_scored(hidden, head, labels, scored_at, sequence, input_ids)
        return embedded(self.model, predicted, hidden if self.whole else None) if self.embeds else predicted
