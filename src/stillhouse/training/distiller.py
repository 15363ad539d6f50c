"""Student and method in one module, so that every wrapper (DDP, FSDP2, ZeRO) sees every parameter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from stillhouse.data.collate import Packed
from stillhouse.head import Head, at_scored
from stillhouse.methods import Clock, Method, SupervisedFineTuning
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
        self._no_split_modules = student._no_split_modules  # where FSDP may cut, as the model's own class says

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        labels: Tensor,
        scored_at: Tensor,
        clock: Clock | None = None,
        packed: Packed | None = None,
        yardstick: bool = False,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum of the loss over the scored tokens of a batch, and the named sums to report.

        Args:
            input_ids: [B, L], or [1, T] packed.
            attention_mask: [B, L], or None for a packed batch.
            labels: [B, L], the next token where a position is scored, -100 elsewhere.
            scored_at: [N], flat indices of the scored positions.
            clock: how far training is; by default its first step.
            packed: where the examples of a packed batch are.
            yardstick: take the cross-entropy, by which every method is measured, and leave method and teacher alone.
        """
        hidden = last_hidden(self.student, input_ids, attention_mask, packed)  # [B, L, d]
        sequence = None if packed is None else packed["sequence"]
        teacher = None
        if self.teacher is not None and self.method.needs_teacher and not yardstick:
            teacher = self.teacher.predict(input_ids, attention_mask, labels, scored_at, packed)

        def loss(hidden: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            student = at_scored(hidden, Head.of(self.student, self.vocabulary), labels, scored_at, sequence)
            if yardstick:
                terms = SupervisedFineTuning()(student, None)
            else:
                terms = self.method(student, teacher, clock or Clock())
            return terms.loss, terms.sums

        return _inside(self.lm_head, loss, hidden)

    @property
    def lm_head(self) -> nn.Module:
        """The student's module that turns hidden states into logits."""
        module = self.student.get_output_embeddings()
        assert module is not None, "the head was probed before"
        return module

    def activation_checkpointing_enable(self, **options: Any) -> None:
        """Recompute the student's activations in the backward; the teacher keeps none anyway."""
        self.student.activation_checkpointing_enable(**options)


def _inside(module: nn.Module, function: Callable[[Tensor], Any], hidden: Tensor) -> Any:
    """`function(hidden)` as the forward of `module`, so that the module's hooks run.

    Wrappers that cut weights into shards (FSDP2, ZeRO-3) gather them in those hooks; whoever reads `module.weight`
    past them finds a shard.
    """
    own = module.__dict__.get("forward")
    module.forward = function
    try:
        return module(hidden)
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own
