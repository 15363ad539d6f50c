"""Student and method in one module, so that every wrapper (DDP, FSDP2, ZeRO) sees every parameter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stillhouse.data.collate import Packed
from stillhouse.head import Head, Pairing, Predictions, Sampled, Translation, at_scored
from stillhouse.methods import Clock, Method, SupervisedFineTuning
from stillhouse.models import embedded, last_hidden
from stillhouse.teacher import LiveTeacher


class Distiller(nn.Module):
    """One wrapped forward: student backbone, teacher, method, and the chunked head inside it.

    Args:
        student: the model that learns.
        method: what it learns by.
        teacher: the frozen signal, which is no module and so no part of this one's parameters and state.
        vocabulary: real tokens of the student's tokenizer.
        translation: of the teacher's tokens to the student's, where it has others.

    Attributes:
        peaks: of the last batch, the highest hidden state of each scored row of either side, with the row's example
            ([N], [N]); for whoever looks for what was not finite.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        method: Method,
        teacher: LiveTeacher | None,
        vocabulary: int,
        translation: Translation | None = None,
    ) -> None:
        super().__init__()
        self.student, self.method, self.teacher, self.vocabulary = student, method, teacher, vocabulary
        self.translation = translation
        self.peaks: list[tuple[Tensor, Tensor]] = []
        if teacher is not None:
            teacher.embeds, teacher.whole = method.needs_embeddings, method.needs_padding
        self._no_split_modules = student._no_split_modules  # where FSDP may cut, as the model's own class says
        # DDP would begin every forward with the first process's; they are the same everywhere, or each one's own.
        self._ddp_params_and_buffers_to_ignore = [f"method.{name}" for name, _ in method.named_buffers()]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        labels: Tensor,
        scored_at: Tensor,
        clock: Clock | None = None,
        packed: Packed | None = None,
        predicted: Predictions | None = None,
        teacher: dict[str, Any] | None = None,
        pairing: dict[str, Any] | None = None,
        sampled: dict[str, Tensor] | None = None,
        corpus: dict[str, Any] | None = None,
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
            predicted: the teacher's predictions, where it has been asked already.
            teacher: the same examples as the teacher's own tokenizer writes them, as a batch; None: ids are shared.
            pairing: how the rows of such a batch correspond to the student's: a `Pairing` as a dictionary.
            sampled: what was noted of the labels when they were written: a `Sampled` as a dictionary.
            corpus: plain text to be learnt beside, as a batch with a "ratio"; see `training.corpus`.
            yardstick: take the cross-entropy, by which every method is measured, and leave method and teacher alone.
        """
        hidden = last_hidden(self.student, input_ids, attention_mask, packed)  # [B, L, d]
        sequence = None if packed is None else packed["sequence"]
        if predicted is None and self.teacher is not None and self.method.needs_teacher and not yardstick:
            own = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels, "scored_at": scored_at}
            names = ("input_ids", "attention_mask", "labels", "scored_at", "packed")
            seen: dict[str, Any] = teacher or {**own, "packed": packed}
            inputs: Any = {name: seen.get(name) for name in names}
            predicted = self.teacher.predict(**inputs)
        if predicted is not None and pairing is not None:
            predicted = replace(predicted, pairing=Pairing(**pairing), translation=self.translation)

        def loss(hidden: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            head = Head.of(self.student, self.vocabulary)
            student = at_scored(hidden, head, labels, scored_at, sequence, input_ids)
            if sampled is not None:
                student = replace(student, sampled=Sampled(**sampled))
            self.peaks = [_peaks(side) for side in (student, predicted) if side is not None]
            if yardstick:
                terms = SupervisedFineTuning()(student, None)
            else:
                if self.method.needs_embeddings:
                    student = embedded(self.student, student)
                terms = self.method(student, predicted, clock or Clock())
            return terms.loss, terms.sums

        total, sums = _inside(self.lm_head, loss, hidden)
        if corpus is None:
            return total, sums
        weight, text = self._text(corpus, clock or Clock())
        return total + weight * corpus["ratio"] * text, {**sums, "text": corpus["ratio"] * text.detach()}

    def _text(self, corpus: dict[str, Any], clock: Clock) -> tuple[float, Tensor]:
        """The weight of the method's loss on plain text, and its sum over the tokens of a batch."""
        fed: Any = {name: corpus.get(name) for name in ("input_ids", "attention_mask", "labels", "scored_at", "packed")}
        hidden = last_hidden(self.student, fed["input_ids"], fed["attention_mask"], fed["packed"])  # [B, L, d]
        predicted = None if self.teacher is None else self.teacher.predict(**fed)
        sequence = None if fed["packed"] is None else fed["packed"]["sequence"]

        def loss(hidden: Tensor) -> tuple[float, Tensor]:
            head = Head.of(self.student, self.vocabulary)
            student = at_scored(hidden, head, fed["labels"], fed["scored_at"], sequence, fed["input_ids"])
            return self.method.on_text(student, predicted, clock)

        return _inside(self.lm_head, loss, hidden)

    def train(self, mode: bool = True) -> Distiller:
        """As of any module; a student that does not learn stays in eval mode, so that it says the same every time."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.student.parameters()):
            self.student.eval()
        return self

    @property
    def lm_head(self) -> nn.Module:
        """The student's module that turns hidden states into logits."""
        module = self.student.get_output_embeddings()
        assert module is not None, "the head was probed before"
        return module

    def activation_checkpointing_enable(self, **options: Any) -> None:
        """Recompute the student's activations in the backward; the teacher keeps none anyway."""
        self.student.activation_checkpointing_enable(**options)


def _peaks(side: Predictions) -> tuple[Tensor, Tensor]:
    return torch.linalg.vector_norm(side.hidden.detach(), torch.inf, dim=-1), side.sequence  # NaN where one is


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
