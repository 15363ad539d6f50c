"""The aligners that need tokens alone, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from stillhouse.alignment.alignment import Alignment, Side
from stillhouse.alignment.dtw import DTW
from stillhouse.alignment.edit_distance import EditDistances, texts
from stillhouse.alignment.spans import exact, identity, position, span
from stillhouse.data.pieces import Pieces
from stillhouse.data.spans import Spans
from stillhouse.mistakes import unknown_name

Align = Callable[[Side, Side], Alignment]


@dataclass(frozen=True)
class Aligner:
    """A way to align, and what it asks of the data.

    Attributes:
        summary: What it does, in a few words.
        spans: Which spans `encode_all` must find for it; None for none.
        weighted: Whether it also needs both models' entropies, so that it cannot be settled before training.
    """

    summary: str
    spans: Spans | None = None
    weighted: bool = False


ALIGNERS: dict[str, Aligner] = {
    "identity": Aligner("one tokenizer on both sides"),
    "position": Aligner("the first with the first, as far as both sides go"),
    "span": Aligner("groups that cover the same bytes", "bytes"),
    "exact": Aligner("single tokens that cover the same text, blanks aside", "solid"),
    "dtw": Aligner("time warping over edit distances between tokens"),
    "entropy_dtw": Aligner("time warping over edit distances, weighted by entropies", weighted=True),
}


def build(name: str, student: Pieces | None = None, teacher: Pieces | None = None) -> Align:
    """The aligner called `name`, for those that tokens alone settle; `EntropyDTW` is built by its method.

    Args:
        name: One of `ALIGNERS` that is not weighted.
        student: The student's tokens, which only "dtw" asks for.
        teacher: The teacher's.

    Raises:
        Mistake: there is no such aligner.
        ValueError: it is weighted, or it needs the tokens of both sides.
    """
    if name not in ALIGNERS:
        raise unknown_name("alignment", "aligner", name, ALIGNERS)
    simple: dict[str, Align] = {"identity": identity, "position": position, "span": span, "exact": exact}
    if name in simple:
        return simple[name]
    if ALIGNERS[name].weighted:
        raise ValueError(f"aligner '{name}' needs entropies; build EntropyDTW")
    if student is None or teacher is None:
        raise ValueError(f"aligner '{name}' needs the tokens of both sides")
    return DTW(EditDistances(texts(student, "bare"), texts(teacher, "bare")))
