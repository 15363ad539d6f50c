"""Student and method in one module, so that every wrapper (DDP, FSDP2, ZeRO) sees every parameter."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from stillhouse.head import Head, at_scored
from stillhouse.methods import Clock, Method
from stillhouse.models import last_hidden
from stillhouse.teacher import LiveTeacher


class Distiller(nn.Module):
    """One wrapped forward: student backbone, teacher, method, and the chunked head inside it.

    Args:
        student: the model that learns.
        method: what it learns by.
        teacher: the frozen signal, which is no module and so no part of this one's parameters and state.
        vocabulary: real tokens of the shared tokenizer.
    """

    def __init__(self, student: PreTrainedModel, method: Method, teacher: LiveTeacher | None, vocabulary: int) -> None:
        super().__init__()
        self.student, self.method, self.teacher, self.vocabulary = student, method, teacher, vocabulary

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor,
        scored_at: Tensor,
        clock: Clock | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum of the loss over the scored tokens of a batch, and the named sums to report.

        Args:
            input_ids: [B, L]
            attention_mask: [B, L]
            labels: [B, L], the next token where a position is scored, -100 elsewhere.
            scored_at: [N], flat indices of the scored positions.
            clock: how far training is; by default its first step.
        """
        hidden = last_hidden(self.student, input_ids, attention_mask)  # [B, L, d]
        student = at_scored(hidden, Head.of(self.student, self.vocabulary), labels, scored_at)
        teacher = None
        if self.teacher is not None and self.method.needs_teacher:
            teacher = self.teacher.predict(input_ids, attention_mask, labels, scored_at)
        terms = self.method(student, teacher, clock or Clock())
        return terms.loss, terms.sums

    def activation_checkpointing_enable(self, **options: Any) -> None:
        """Recompute the student's activations in the backward; the teacher keeps none anyway."""
        self.student.activation_checkpointing_enable(**options)
