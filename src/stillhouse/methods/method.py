"""What every method is: a module whose forward turns two sets of predictions into named sums."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stillhouse import schedule
from stillhouse.divergence import Divergence, Rows
from stillhouse.divergence import build as build_divergence
from stillhouse.head import (
    ALONE,
    MONITORS,
    Blocks,
    Head,
    Pairing,
    Predictions,
    Sampled,
    Term,
    parted,
    rowwise_loss,
)
from stillhouse.head.rowwise import Monitor
from stillhouse.methods.beginning import begin_with
from stillhouse.methods.clock import Clock
from stillhouse.methods.contextual import ContextualRows, ContextualVocabulary
from stillhouse.methods.pair import TokenizerPair
from stillhouse.paired.dataset import Edits

Unit = Literal["token", "sequence"]


@dataclass
class Terms:
    """A method's loss over one batch, as sums; whoever trains divides by the global count, once.

    Attributes:
        loss: scalar, sum over what the method's `unit` names: scored tokens, or sequences; differentiable.
        sums: named sums over the same, without gradient: parts of the loss, and monitors. Over sequences they are sums
            of each one's mean over its tokens.
    """

    loss: Tensor
    sums: dict[str, Tensor] = field(default_factory=dict)


class Method(nn.Module):
    """A distillation method; its parameters and buffers are trained, saved, resumed and synchronised with the student.

    Args:
        name: the catalogue's name.
        settings: every parameter of its entry: a value, or a schedule.

    Attributes:
        needs_teacher: whether `forward` wants the teacher's predictions.
        follows_means: whether `after_step` wants the means of the step that was taken.
        needs_embeddings: whether `forward` wants both sides' input embeddings beside their predictions.
        unit: what the loss is a mean of, over the whole optimizer step; `forward` gives sums of it.
        appraises: whether `appraise` is asked of what the student has written.
        blocks: block sizes of the head, or None for the rule of the device.
        tokenizers: both sides' tokens, where they are not the same; given before training.
        contextual: CDM's vocabulary, where the recipe puts it under a method that has another; given before training.
    """

    needs_teacher: bool = True
    follows_means: bool = False
    needs_embeddings: bool = False
    unit: Unit = "token"
    appraises: bool = False

    def __init__(self, name: str, settings: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.name, self.settings = name, dict(settings or {})
        self.blocks: Blocks | None = None
        self.tokenizers: TokenizerPair | None = None
        self.contextual: ContextualVocabulary | None = None

    @property
    def edits(self) -> Edits | None:
        """What is to be found between the tokens of both sides of an example while its batch is made, if anything."""
        return None

    @property
    def needs_padding(self) -> bool:
        """Whether the teacher's hidden states on padding count as well, so that whole batches must go through it."""
        return False

    def size(self, student: Head, teacher: Head, seed: int) -> None:
        """Make the parameters whose sizes are the models'; called once, before there is an optimizer.

        Args:
            student: its head, whole.
            teacher: its head, whole.
            seed: of what is drawn.

        Raises:
            Mistake: the setting `projectors` names no weights of this method and of these models.
        """
        self.make(student, teacher, seed)
        given = self.settings.get("projectors", "none")
        if given != "none":
            begin_with(self, given, "method.projectors")

    def make(self, student: Head, teacher: Head, seed: int) -> None:
        """What `size` does of a method with parameters of such sizes, as they are drawn; by default nothing."""

    def forward(self, student: Predictions, teacher: Predictions | None, clock: Clock) -> Terms:
        """The loss of N scored tokens.

        `teacher` predicts the same N tokens; with a tokenizer of its own it predicts others, and its `pairing` says
        which of them correspond.
        """
        raise NotImplementedError

    def appraise(self, teacher: Predictions, sampled: Sampled) -> Tensor:
        """What each token [N] is worth that the student has just written, before it learns from it: [N].

        The worths of all tokens of the optimizer step, of all ranks, are then brought to mean 0 and variance 1; the
        result is the `advantage` of `Sampled`. Only a method that `appraises` is asked.

        Args:
            teacher: its predictions of those tokens, every sequence's in order.
            sampled: the student's own notes of them; the advantage is not known yet.
        """
        raise NotImplementedError

    def on_text(self, student: Predictions, teacher: Predictions | None, clock: Clock) -> tuple[float, Tensor]:
        """The weight and the loss of the N tokens of plain text that are learnt beside (`data.corpus`).

        Only a method with the setting `lm_coef` is asked.
        """
        raise NotImplementedError

    def after_step(self, means: Mapping[str, Tensor], clock: Clock) -> None:
        """Called once an optimizer step, with the means of `Terms.sums` over all its units, ranks and micro-batches.

        `clock` is that of the step's forwards. Only a method that `follows_means` is given any.
        """

    def gauges(self, clock: Clock) -> dict[str, float | Tensor]:
        """What to log of the method's own state: every setting that a schedule moves."""
        return {name: value for name, value in self.at(clock).items() if schedule.is_schedule(self.settings[name])}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Optimizer groups of the method's own parameters; by default they are decayed and learn like the student's."""
        return []

    def at(self, clock: Clock) -> dict[str, Any]:
        """Every setting as it is now."""
        return {name: schedule.value_at(setting, clock.progress) for name, setting in self.settings.items()}

    def mixed(self, divergence: Divergence, kd_weight: float, factor: float = 1.0) -> list[Term]:
        """(1 - kd_weight) CE + kd_weight · factor · D; a part without weight all through the run is not computed."""
        moving = schedule.is_schedule(self.settings["kd_weight"])
        terms = [
            Term("ce", build_divergence("cross_entropy"), 1.0 - kd_weight),
            Term("kd", divergence, kd_weight * factor),
        ]
        return [term for term in terms if moving or term.weight > 0.0]

    def summed(
        self,
        student: Predictions,
        teacher: Predictions | None,
        terms: Sequence[Term],
        monitors: Mapping[str, Monitor] | None = None,
        unpaired: Sequence[Term] = (),
    ) -> Terms:
        """Run `terms` through the chunked head, with every monitor that these predictions allow, and `monitors`.

        A teacher with a tokenizer of its own is compared where its `pairing` says; labels are learnt everywhere, and
        `unpaired` in rows without a pair.
        """
        if teacher is None or teacher.pairing is None:
            return self._of_rows(student, teacher, terms, monitors)
        labelled = [term for term in terms if not term.divergence.needs_teacher]
        compared = [term for term in terms if term.divergence.needs_teacher]
        if self.contextual is not None:
            labels = self._of_rows(student, None, labelled)
            rows = self.contextual.rows(student, teacher, self.blocks)
            return _added([labels, _of_columns(rows, compared, monitors or {})], rows.pairing)
        teacher = self.aligned(student, teacher)
        shared, apart, rest = parted(student, teacher)
        parts = [
            self._of_rows(*shared, terms, monitors),
            self._of_rows(*apart, compared, monitors, labelled=False),
            self._of_rows(rest, None, [*labelled, *unpaired]),
        ]
        return _added(parts, teacher.pairing)

    def aligned(self, student: Predictions, teacher: Predictions) -> Predictions:
        """The teacher with its pairing; one that depends on the predictions is found here."""
        if self.tokenizers is None or not self.tokenizers.aligns_late:
            return teacher
        entropies = (side.survey(0, blocks=self.blocks).entropy for side in (student, teacher))
        return replace(teacher, pairing=self.tokenizers.paired(student, teacher, *entropies))

    def row_by_row(
        self, student: Predictions, teacher: Predictions | None, terms: Sequence[Term], weights: Tensor | None = None
    ) -> Terms:
        """`summed` of rows that correspond one by one, all sums weighted by `weights` [N].

        Raises:
            ValueError: the teacher has a tokenizer of its own.
        """
        self.one_by_one(teacher)
        return self._of_rows(student, teacher, terms, weights=weights)

    def one_by_one(self, teacher: Predictions | None) -> None:
        """ValueError unless the teacher predicts the student's own tokens."""
        if teacher is not None and teacher.pairing is not None:
            raise ValueError(f"{self.name} compares token by token, and this teacher has a tokenizer of its own")

    def noted(self, student: Predictions) -> Sampled:
        """What was noted of the tokens when they were written; ValueError where nothing was."""
        if student.sampled is None:
            raise ValueError(
                f"{self.name} learns from what the student writes, and these predictions have no `sampled`"
            )
        return student.sampled

    def _of_rows(
        self,
        student: Predictions,
        teacher: Predictions | None,
        terms: Sequence[Term],
        monitors: Mapping[str, Monitor] | None = None,
        *,
        labelled: bool = True,
        weights: Tensor | None = None,
    ) -> Terms:
        """`summed` of rows that correspond one by one; monitors of labels only where these are the rows' own."""
        taken = {term.name for term in terms} | (set() if _comparable(student, teacher) else {"agreement"})
        known = {name: monitor for name, monitor in MONITORS.items() if labelled or monitor not in ALONE}
        watched = {name: monitor for name, monitor in known.items() if name not in taken} | dict(monitors or {})
        result = rowwise_loss(student, teacher, terms, watched, self.blocks, weights)
        values = {name: value if weights is None else value * weights for name, value in result.values.items()}
        return Terms(result.loss, {name: value.sum() for name, value in values.items()})


def _added(parts: Sequence[Terms], pairing: Pairing | None) -> Terms:
    """The sums of rows that were taken apart, and how many rows were compared."""
    sums: dict[str, Tensor] = {}
    for name, value in (item for part in parts for item in part.sums.items()):
        sums[name] = sums[name] + value if name in sums else value
    loss = sum((part.loss for part in parts[1:]), parts[0].loss)
    return Terms(loss, {**sums, "aligned": torch.full_like(loss.detach(), 0 if pairing is None else len(pairing))})


def _of_columns(rows: ContextualRows, terms: Sequence[Term], monitors: Mapping[str, Monitor]) -> Terms:
    """`terms` over the corresponding columns, the mean over directions of their sums over rows."""
    loss, sums = rows.weight.new_zeros(()), {}
    for columns in rows.directions:
        student, teacher = columns.without_empty()
        share = rows.weight / len(rows.directions)  # [M]
        for term in terms:
            values = term.divergence(student, teacher)  # [M]
            loss = loss + term.weight * (share * values).sum()
            sums[term.name] = sums.get(term.name, 0.0) + (share * values.detach()).sum()
        for name, monitor in monitors.items():
            sums[name] = sums.get(name, 0.0) + (share * monitor(Rows(student, teacher))).sum()
    return Terms(loss, sums | {"matched": rows.matched})


def _comparable(student: Predictions, teacher: Predictions | None) -> bool:
    """Whether a token of the one is a token of the other."""
    return teacher is not None and (
        teacher.translation is not None or teacher.head.vocabulary == student.head.vocabulary
    )
