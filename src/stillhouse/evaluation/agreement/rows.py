"""What is measured of every row: one number a figure, through the chunked head.

    alone       of one model at all of its scored positions, over all of its tokens
    together    of both at the positions that correspond, over the tokens that are compared: all, where the ids are
                shared; else those that a map of tokens reaches, both sides renormalised over them

Heads are applied in fp32 whatever the weights are kept in: with the 8 bits of bf16 many tokens would share the highest
logit, and which of them is likeliest would be chance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from stillhouse.divergence import Rows
from stillhouse.divergence import build as build_divergence
from stillhouse.head import Blocks, Head, Predictions, Term, Translation, rowwise_loss
from stillhouse.head.rowwise import Monitor
from stillhouse.teacher import LiveTeacher

DIVERGENCES = ("forward_kl", "reverse_kl", "jsd", "tvd")


class Reader:
    """A frozen model that says what it expects after every token that it reads.

    Args:
        model: any causal LM; put into evaluation mode here.
        vocabulary: real tokens; rows of the head beyond them are never predicted.
    """

    def __init__(self, model: PreTrainedModel, vocabulary: int) -> None:
        self.live = LiveTeacher(model, vocabulary)
        self.head = _in_full(self.live.head())

    @property
    def device(self) -> torch.device:
        """Where it reads."""
        return self.live.model.device

    def predict(self, batch: Mapping[str, Any]) -> Predictions:
        """Its predictions at the scored positions of a collator's batch."""
        names = ("input_ids", "attention_mask", "labels", "scored_at")
        found = self.live.predict(*(batch[name].to(self.device) for name in names))
        return replace(found, hidden=_full(found.hidden), head=self.head)


@dataclass(frozen=True)
class Compared:
    """The tokens of two vocabularies that are compared.

    Attributes:
        translation: of the teacher's tokens to those of the student's that any of them goes to.
        student: [V_s] 1 at the student's tokens that are compared, else 0.
        teacher: [V_t] 1 at the teacher's.
    """

    translation: Translation
    student: Tensor
    teacher: Tensor

    @classmethod
    def of(cls, ids: NDArray[np.integer], vocabularies: tuple[int, int], many: str = "sum") -> Compared:
        """From the student token of every teacher token [V_t], -1 for none, and V_s and V_t.

        Raises:
            ValueError: no teacher token has one.
        """
        ids = np.where(ids < vocabularies[0], ids, -1)[: vocabularies[1]]
        targets = np.unique(ids[ids >= 0])
        if not len(targets):
            raise ValueError("the map reaches no token")
        within = np.where(ids >= 0, np.searchsorted(targets, ids), -1)
        translation = Translation.by_map(within, len(targets), "first" if many == "first" else "sum")
        translation = replace(translation, columns=torch.from_numpy(targets.astype(np.int64)))
        read = torch.cat([translation.source[translation.source >= 0], translation.members])
        masks = [torch.zeros(size) for size in vocabularies]
        masks[0][torch.from_numpy(targets.astype(np.int64))] = 1.0
        masks[1][read] = 1.0
        return cls(translation, *masks)


def alone(side: Predictions, among: Tensor | None, blocks: Blocks | None = None) -> dict[str, Tensor]:
    """Figures of each of N rows of one model, [N] each, at temperature 1.

    Args:
        among: [V] 1 at the tokens whose probability together is asked for.

    Returns:
        nll (of the label) and entropy in nats; right (1 where the likeliest token is the label, else 0); confidence,
        the probability of the likeliest token; likeliest, its id; reached, the probability of the tokens `among`.
    """
    monitors: dict[str, Monitor] = {
        "nll": Rows.cross_entropy,
        "entropy": Rows.entropy,
        "right": Rows.accuracy,
        "confidence": _confidence,
        "likeliest": _likeliest,
    }
    if among is not None:
        mask = among.to(side.hidden.device, side.hidden.dtype)
        monitors["reached"] = lambda rows: rows.student.softmax(1.0).probabilities @ mask
    return rowwise_loss(side, None, [], monitors, blocks).values


def together(
    student: Predictions, teacher: Predictions, temperature: float, top_k: int, blocks: Blocks | None = None
) -> dict[str, Tensor]:
    """Figures of each of M rows of both models over the tokens that are compared, [M] each.

    Args:
        student: its predictions.
        teacher: the teacher's of the same, with the `translation` of its tokens where it has others.
        temperature: of the divergences; everything else is at 1.
        top_k: how many likeliest tokens are compared.

    Returns:
        forward_kl, reverse_kl, jsd in nats and tvd; top1, 1 where the likeliest tokens are one; topk, the share of the
        k likeliest tokens of either that are also the other's; found, 1 where the teacher's likeliest token is among
        the student's k; sure, the probability of the student's likeliest token, and trust, what the teacher gives it.
    """
    terms = [Term(name, build_divergence(name, temperature=temperature)) for name in DIVERGENCES]
    monitors: dict[str, Monitor] = {
        "top1": Rows.agreement,
        "topk": lambda rows: _shared(rows, top_k),
        "found": lambda rows: _found(rows, top_k),
        "sure": _confidence,
        "trust": _trust,
    }
    return rowwise_loss(student, teacher, terms, monitors, blocks).values


def _confidence(rows: Rows) -> Tensor:
    return rows.student.softmax(1.0).likeliest.squeeze(-1)


def _likeliest(rows: Rows) -> Tensor:
    """Ids as floating point, like every figure: exact up to 2^24, which no vocabulary reaches."""
    return rows.student.peak[1].squeeze(-1).to(rows.student.logits.dtype)


def _trust(rows: Rows) -> Tensor:
    return rows.teacher.softmax(1.0).probabilities.gather(-1, rows.student.peak[1]).squeeze(-1)


def _shared(rows: Rows, k: int) -> Tensor:
    ours, theirs = (side.logits.topk(k).indices for side in (rows.student, rows.teacher))  # [n, k]
    return (ours.unsqueeze(-1) == theirs.unsqueeze(-2)).any(-1).to(rows.student.logits.dtype).mean(-1)


def _found(rows: Rows, k: int) -> Tensor:
    logits, wanted = rows.student.logits, rows.teacher.peak[1]  # [n, V], [n, 1]
    return (logits.topk(k).indices == wanted).any(-1).to(logits.dtype)


def _full(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _in_full(head: Head) -> Head:
    return replace(head, weight=_full(head.weight), bias=None if head.bias is None else _full(head.bias))
