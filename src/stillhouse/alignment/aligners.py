"""The aligners that need tokens alone, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from stillhouse.alignment.alignment import Alignment, Side
from stillhouse.alignment.dtw import DTW, MatchedDTW
from stillhouse.alignment.edit_distance import EditDistances, texts
from stillhouse.alignment.spans import exact, identity, position, span
from stillhouse.data.pieces import Pieces
from stillhouse.data.spans import Spans
from stillhouse.mistakes import unknown_name

Align = Callable[[Side, Side], Alignment]


@dataclass(frozen=True)
class Aligner:
    """What an aligner asks of the data; what it does is in the catalogue.

    Attributes:
        spans: Which spans `encode_all` must find for it; None for none.
        weighted: Whether it also needs both models' entropies, so that it cannot be settled before training.
    """

    spans: Spans | None = None
    weighted: bool = False


ALIGNERS: dict[str, Aligner] = {
    "identity": Aligner(),
    "position": Aligner(),
    "span": Aligner("bytes"),
    "exact": Aligner("solid"),
    "dtw": Aligner(),
    "dtw_matched": Aligner(),
    "entropy_dtw": Aligner(weighted=True),
}


def build(
    name: str,
    student: Pieces | None = None,
    teacher: Pieces | None = None,
    teacher_to_student: NDArray[Any] | None = None,
) -> Align:
    """The aligner called `name`, for those that tokens alone settle; `EntropyDTW` is built by its method.

    Args:
        name: One of `ALIGNERS` that is not weighted.
        student: The student's tokens, which only those by edit distance ask for.
        teacher: The teacher's.
        teacher_to_student: [V_t], for "dtw_matched": the student token of each teacher token; negative for none.

    Raises:
        Mistake: there is no such aligner.
        ValueError: it is weighted, or it lacks the tokens of both sides, or their map.
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
    distances = EditDistances(texts(student, "bare"), texts(teacher, "bare"))
    if name == "dtw":
        return DTW(distances)
    if teacher_to_student is None:
        raise ValueError(f"aligner '{name}' needs a map of tokens")
    return MatchedDTW(distances, teacher_to_student)
