"""Rows cut to tokens that correspond in their context: CDM's dynamic vocabulary map, on gathered columns alone.

Letters: M aligned rows, K likeliest tokens of either side.

    t2s     the teacher's K likeliest tokens, each beside the student's logit of the token that it matches
    s2t     the student's K likeliest tokens, beside the teacher's logits of theirs

A token without a match has the logit -inf on both sides. Memory is M x K; no row of logits outlives its block.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillhouse.alignment import texts
from stillhouse.alignment.edit_distance import official_ends
from stillhouse.head import Blocks, Pairing, Predictions
from stillhouse.methods.pair import TokenizerPair
from stillhouse.vocabulary import VocabularyMap
from stillhouse.vocabulary.contextual import ContextualMap


@dataclass(frozen=True)
class Columns:
    """One direction: logits of corresponding tokens, [M, K] each, -inf where a token has no match."""

    student: Tensor
    teacher: Tensor

    def without_empty(self) -> tuple[Tensor, Tensor]:
        """Student and teacher; in a row where nothing matches both are uniform, so that it is worth nothing."""
        empty = torch.isneginf(self.teacher).all(1, keepdim=True)
        return self.student.masked_fill(empty, 0.0), self.teacher.masked_fill(empty, 0.0)


@dataclass(frozen=True)
class ContextualRows:
    """M aligned rows of one batch, in the directions that were asked for.

    Attributes:
        t2s: the teacher's likeliest tokens; None where not asked for.
        s2t: the student's likeliest tokens; None where not asked for.
        weight: [M] what a row counts, so that every scored token of an example weighs the same: n_s / M of it.
        pairing: of the rows.
    """

    t2s: Columns | None
    s2t: Columns | None
    weight: Tensor
    pairing: Pairing

    @property
    def directions(self) -> list[Columns]:
        """Those that were asked for."""
        return [columns for columns in (self.t2s, self.s2t) if columns is not None]

    @property
    def matched(self) -> Tensor:
        """The sum over rows, by their weights, of the share of likeliest tokens that have a match."""
        share = torch.cat([torch.isfinite(columns.teacher) for columns in self.directions], 1).float().mean(1)  # [M]
        return (self.weight * share).sum()


class ContextualVocabulary:
    """CDM's map between two tokenizers, with its settings (`catalogue.axes`); `official` with the code's slips.

    Args:
        pair: both sides' tokens, with a static map.
        settings: top_k, threshold, directions, scope, protect_digits.
    """

    def __init__(self, pair: TokenizerPair, settings: Mapping[str, Any], *, official: bool = False) -> None:
        assert pair.map is not None, "CDM begins with a static map"
        self.pair = replace(pair, _official=official)
        self.k, self.directions, self.scope = int(settings["top_k"]), settings["directions"], settings["scope"]
        self.official = official
        ours, theirs = (texts(side, "official" if official else "decoded") for side in (pair.student, pair.teacher))
        forward = _sized(pair.map, pair.teacher_vocabulary)
        inverse = VocabularyMap(forward, pair.student_vocabulary).inverse(last=True)
        digits = bool(settings["protect_digits"]) and not official
        threshold = float(settings["threshold"])
        ours, theirs = _filled(ours, pair.student_vocabulary), _filled(theirs, pair.teacher_vocabulary)
        ends = pair.ends
        self.to_student = ContextualMap.of(
            theirs, ours, forward, threshold, ends=(ends[1], ends[0]), protect_digits=digits
        )
        self.to_teacher = ContextualMap.of(ours, theirs, inverse, threshold, ends=ends, protect_digits=digits)
        if official:
            self.to_student, self.to_teacher = (
                slipping(self.to_student, theirs, ours),
                slipping(self.to_teacher, ours, theirs),
            )

    def rows(self, student: Predictions, teacher: Predictions, blocks: Blocks | None = None) -> ContextualRows:
        """The corresponding columns of a batch; differentiable by the student's hidden states and head."""
        late = self.pair.aligns_late
        k_s, k_t = (min(self.k, side.head.vocabulary) for side in (student, teacher))
        ours = student.survey(k_s, entropies=late, blocks=blocks)
        theirs = teacher.survey(k_t, entropies=late, blocks=blocks)
        pairing = teacher.pairing
        if late:
            pairing = self.pair.paired(student, teacher, ours.entropy, theirs.entropy)
        assert pairing is not None
        student_rows = student.means(pairing.student_index, pairing.student_bounds)  # [M, d]
        teacher_rows = teacher.means(pairing.teacher_index, pairing.teacher_bounds)
        of_student = _likeliest(student_rows, ours.ids, pairing.student_index, pairing.student_bounds, blocks)  # [M, K]
        of_teacher = _likeliest(teacher_rows, theirs.ids, pairing.teacher_index, pairing.teacher_bounds, blocks)
        matched = self._matched(of_student, of_teacher, student_rows.sequence, pairing)
        columns = _columns(student_rows, teacher_rows, (of_student, of_teacher), matched, blocks)
        asked = (self.directions != "s2t", self.directions != "t2s")
        t2s, s2t = (part if wanted else None for part, wanted in zip(columns, asked, strict=True))
        return ContextualRows(t2s, s2t, row_weights(pairing, student_rows.sequence, columns[0].student.dtype), pairing)

    def _matched(
        self, of_student: Tensor, of_teacher: Tensor, sequence: Tensor, pairing: Pairing
    ) -> tuple[Tensor, Tensor]:
        """The student token of each of the teacher's likeliest, and the other way round; [M, K] each, on the device."""
        student_ids, teacher_ids, of = (part.cpu().numpy() for part in (of_student, of_teacher, sequence))
        first = pairing.student_index[pairing.student_bounds[:-1]].cpu().numpy()
        order = np.argsort(first, kind="stable")  # a pairing has its shared rows first; the last match is the text's
        examples = len(pairing.student_counts)
        rows_of = np.bincount(of, minlength=examples).tolist() if self.scope == "sequence" or self.official else None
        to_student, to_teacher = np.empty_like(teacher_ids), np.empty_like(student_ids)
        to_student[order] = self.to_student(teacher_ids[order], student_ids[order], rows_of)
        candidates = teacher_ids
        if self.official:  # there the unmatched of the first direction are 0 when the second one begins
            candidates = np.where(to_student < 0, 0, teacher_ids)
        to_teacher[order] = self.to_teacher(student_ids[order], candidates[order], rows_of)
        device = of_student.device
        return torch.from_numpy(to_student).to(device), torch.from_numpy(to_teacher).to(device)


def row_weights(pairing: Pairing, sequence: Tensor, dtype: torch.dtype) -> Tensor:
    """n_s / M of the example that each of the rows [M] belongs to."""
    tokens = torch.tensor(pairing.student_counts, dtype=dtype).to(sequence.device)  # [B]
    rows = torch.zeros_like(tokens).index_add(0, sequence, torch.ones_like(sequence, dtype=dtype))
    return (tokens / rows.clamp_min(1.0))[sequence]


def slipping(clean: ContextualMap, source: tuple[str, ...], target: tuple[str, ...]) -> ContextualMap:
    """As in the released code: *source* ids without a match are struck from the target's candidates, and 0 is none."""
    static = np.where(clean.static == 0, -1, clean.static)
    without = np.flatnonzero(static < 0)
    struck = np.zeros(len(target), dtype=bool)
    struck[without[without < len(target)]] = True
    return replace(clean, static=static, taken=struck, free=tuple(official_ends(source, target)), zero_is_none=True)


def _likeliest(rows: Predictions, ids: Tensor, index: Tensor, bounds: Tensor, blocks: Blocks | None) -> Tensor:
    """The likeliest tokens of each merged row [M, K]: those of its one member, or found anew."""
    found = ids[index[bounds[:-1]]]
    several = (bounds.diff() > 1).nonzero().squeeze(-1)
    if len(several):
        found[several] = rows.at(several).survey(ids.shape[1], entropies=False, blocks=blocks).ids
    return found


def _columns(
    student: Predictions,
    teacher: Predictions,
    likeliest: tuple[Tensor, Tensor],
    matched: tuple[Tensor, Tensor],
    blocks: Blocks | None,
) -> tuple[Columns, Columns]:
    (of_student, of_teacher), (to_student, to_teacher) = likeliest, matched
    k_t = of_teacher.shape[1]
    ours = student.gather(torch.cat([to_student.clamp_min(0), of_student], 1), blocks)  # [M, K_t + K_s]
    with torch.no_grad():
        theirs = teacher.gather(torch.cat([of_teacher, to_teacher.clamp_min(0)], 1), blocks)
    none = torch.cat([to_student < 0, to_teacher < 0], 1)
    ours, theirs = ours.masked_fill(none, -torch.inf), theirs.masked_fill(none, -torch.inf)
    return Columns(ours[:, :k_t], theirs[:, :k_t]), Columns(ours[:, k_t:], theirs[:, k_t:])


def _sized(ids: NDArray[np.int32], vocabulary: int) -> NDArray[np.int32]:
    """The map cut, or filled with -1, to the tokens that are predicted."""
    found = np.full(vocabulary, -1, dtype=np.int32)
    found[: min(len(ids), vocabulary)] = ids[:vocabulary]
    return found


def _filled(strings: tuple[str, ...], vocabulary: int) -> tuple[str, ...]:
    return (*strings[:vocabulary], *[""] * (vocabulary - len(strings)))
