"""Both models read the examples of a data file, a few at a time: from batches to a line for each example."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stillhouse.evaluation.agreement.figures import SIDES, Line, lines_of
from stillhouse.evaluation.agreement.held_out import HeldOut
from stillhouse.evaluation.agreement.pair import Pair
from stillhouse.evaluation.agreement.rows import Reader, alone, together
from stillhouse.head import Blocks, Pairing, Predictions
from stillhouse.mistakes import Mistake
from stillhouse.progress import track

Figures = dict[str, Tensor]


class _Sides(NamedTuple):
    """Both models' predictions of a batch, and their figures."""

    predictions: tuple[Predictions, Predictions]
    figures: tuple[Figures, Figures]


@dataclass(frozen=True)
class Reading:
    """What reads, and what is asked.

    Attributes:
        pair: both tokenizers.
        readers: student and teacher, on one device.
        temperature: of the divergences.
        top_k: how many likeliest tokens are compared.
        bins: of reliability.
        blocks: block sizes of the heads; None: the rule of the device.
    """

    pair: Pair
    readers: tuple[Reader, Reader]
    temperature: float = 1.0
    top_k: int = 5
    bins: int = 15
    blocks: Blocks | None = None

    @torch.no_grad()
    def lines(self, held: HeldOut, batch_size: int, description: str = "reading") -> Iterator[Line]:
        """A line for each example, in order.

        Raises:
            Mistake: a prediction is not finite.
        """
        device = self.readers[0].device
        for start in track(range(0, len(held.dataset), batch_size), description):
            places = range(start, min(start + batch_size, len(held.dataset)))
            batch = held.collate([held.dataset[place] for place in places])
            origins = [held.dataset.origins[place] for place in places]
            student, teacher = self.readers
            predictions = student.predict(batch), teacher.predict(batch.get("teacher", batch))
            sides = _Sides(predictions, self._alone(predictions, origins))
            pairing = Pairing(**batch["pairing"]).to(device) if "pairing" in batch else None
            rows, owner = self._together(sides, pairing)
            _check(rows, owner, origins, "the comparison")
            widths = [np.concatenate(parts) for parts in zip(*map(held.widths, places), strict=True)]
            both = [
                (found, side.sequence, torch.from_numpy(width).to(device))
                for found, side, width in zip(sides.figures, predictions, widths, strict=True)
            ]
            yield from lines_of(origins, both, (rows, owner), self.bins)

    def _alone(self, predictions: tuple[Predictions, Predictions], origins: list[str]) -> tuple[Figures, Figures]:
        compared = self.pair.compared
        masks = (None, None) if compared is None else (compared.student, compared.teacher)
        found = []
        for who, side, mask in zip(SIDES, predictions, masks, strict=True):
            figures = alone(side, mask, self.blocks)
            _check(figures, side.sequence, origins, f"a prediction of the {who}")
            found.append(figures)
        return found[0], found[1]

    def _together(self, sides: _Sides, pairing: Pairing | None) -> tuple[Figures, Tensor]:
        """Figures of the rows that correspond, and the example of each."""
        student, teacher = sides.predictions
        ours, theirs = sides.figures
        if pairing is None:
            return together(student, teacher, self.temperature, self.top_k, self.blocks), student.sequence
        at, there = pairing.student_index, pairing.teacher_index
        student, teacher = student.at(at), teacher.at(there)
        compared = self.pair.compared
        if compared is None:
            return together(student, teacher, self.temperature, self.top_k, self.blocks), student.sequence
        teacher = replace(teacher, translation=compared.translation)
        rows = together(student, teacher, self.temperature, self.top_k, self.blocks)
        rows |= {"unreached_student": 1.0 - ours["reached"][at], "unreached_teacher": 1.0 - theirs["reached"][there]}
        texts = [text.to(at.device) for text in self.pair.texts]
        said = texts[0][ours["likeliest"][at].long()], texts[1][theirs["likeliest"][there].long()]
        rows["text"] = (said[0] == said[1]).to(rows["top1"].dtype)
        return rows, student.sequence


def _check(figures: Mapping[str, Tensor], sequence: Tensor, origins: list[str], what: str) -> None:
    """Mistake unless all figures are finite."""
    for values in figures.values():
        if not bool(torch.isfinite(values).all()):
            first = int(sequence[~torch.isfinite(values)][0])
            raise Mistake(origins[first], f"{what} is not finite here", "is the model whole? try --dtype=float32")
