"""CDM: contextual dynamic mapping between two tokenizers. (Chen et al., 2025, arXiv:2502.11104)"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from stillhouse.divergence import build as build_divergence
from stillhouse.head import Predictions, Term
from stillhouse.methods.clock import Clock
from stillhouse.methods.contextual import ContextualRows, ContextualVocabulary
from stillhouse.methods.method import Method, Terms

NO_MATCH = -10_000.0  # the released code's logit of a token without a match


class ContextualMapping(Method):
    """(1 - kd_weight) CE + kd_weight KD over the tokens that correspond in each aligned row."""

    def forward(self, student: Predictions, teacher: Predictions | None, clock: Clock) -> Terms:
        """Sum over N_s tokens; `teacher` must be given, with the rows of every example in its pairing."""
        assert teacher is not None
        now = self.at(clock)
        labels = self.summed(student, None, [Term("ce", build_divergence("cross_entropy"), 1.0 - now["kd_weight"])])
        rows = self.vocabulary.rows(student, teacher, self.blocks)
        if self.official or now["layout"] == "joint":
            values = _joint(rows, now["temperature"])  # [M]
        else:
            values = _split(rows, now["temperature"], now["b_divergence"])
        if now["reduction"] == "element":
            values = values / sum(columns.student.shape[1] for columns in rows.directions)
        kd = (rows.weight * values).sum()
        sums = {
            **labels.sums,
            "kd": kd.detach(),
            "aligned": torch.full_like(kd.detach(), len(rows.pairing)),
            "matched": rows.matched,
        }
        return Terms(labels.loss + now["kd_weight"] * kd, sums)

    @property
    def official(self) -> bool:
        """Whether the released code's slips are wanted."""
        return self.settings["preset"] == "official"

    @cached_property
    def vocabulary(self) -> ContextualVocabulary:
        """The map, from the tokenizers that were given."""
        assert self.tokenizers is not None, "CDM needs both tokenizers"
        return ContextualVocabulary(self.tokenizers, self.settings, official=self.official)


def _split(rows: ContextualRows, temperature: float, b_divergence: str) -> Tensor:
    """The mean over directions of T^2 times a divergence over the matched tokens: [M]."""
    parts = [("forward_kl", rows.t2s), (b_divergence, rows.s2t)]
    values = [
        build_divergence(name, temperature=temperature)(*columns.without_empty()) * temperature**2
        for name, columns in parts
        if columns is not None
    ]
    return torch.stack(values).mean(0)


def _joint(rows: ContextualRows, temperature: float) -> Tensor:
    """The released layout: one softmax over both directions, the second with its sides swapped: [M].

    sum pi (T^2 log pi - log softmax(Q / T)), pi = softmax(P); the gradient goes through both.
    """
    firsts = [columns for columns in (rows.t2s,) if columns is not None]
    seconds = [columns for columns in (rows.s2t,) if columns is not None]
    p = torch.cat([*(part.teacher for part in firsts), *(part.student for part in seconds)], 1)
    q = torch.cat([*(part.student for part in firsts), *(part.teacher for part in seconds)], 1)
    p, q = (side.masked_fill(torch.isneginf(side), NO_MATCH) for side in (p, q))
    log_pi = p.log_softmax(1)
    return (log_pi.exp() * (temperature**2 * log_pi - (q / temperature).log_softmax(1))).sum(1)
