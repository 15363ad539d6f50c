"""Which student token a teacher token becomes: the same text, a part of it, and for special tokens the same role.

exact    the same bytes: 'Ġthe' = '▁the' = ' the'
prefix   else the longest student token that the teacher token begins with: a student that writes the same text
         writes that first
min-edit (`min_edit`) else the token whose string is nearest
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stillhouse.data.pieces import BYTE_PIECE, Pieces

NONE = -1


class Matches(NamedTuple):
    """What became of the teacher's tokens; V_t of them.

    Attributes:
        ids: [V_t] int32, the student id of each, NONE where there is none.
        counts: How many found one, by the way: "exact", "role" (special tokens), then what only some kinds have
            ("without blank", "prefix", "edited"); and "none".
    """

    ids: NDArray[np.int32]
    counts: dict[str, int]


def exact(teacher: Pieces, student: Pieces, *, ignore_space: bool = False) -> Matches:
    """Tokens that stand for the same bytes (the baseline EM of CDM, 2025).

    Of several student tokens for the same bytes it is the one that is spelt the same, else one that is no byte piece
    (<0x41>), else the least id. Special tokens go to the one of the same role, or without a role, of the same name.

    Args:
        ignore_space: Where there is none, the blank that begins a token does not count, as in the official mappings.
    """
    ids, roles = _same(teacher, student, index := _index(student))
    counts = {"exact": int((ids >= 0).sum()) - roles, "role": roles}
    if ignore_space:
        bare = {content.removeprefix(b" "): at for content, at in reversed(index.items())}
        bare |= {content: at for content, at in index.items() if not content.startswith(b" ")}
        bare.pop(b"", None)
        for at in np.flatnonzero(ids == NONE):
            ids[at] = bare.get(teacher.content[at].removeprefix(b" "), NONE)
        counts["without blank"] = int((ids >= 0).sum()) - sum(counts.values())
    return Matches(ids, counts | {"none": int((ids == NONE).sum())})


def prefix(teacher: Pieces, student: Pieces) -> Matches:
    """Tokens that stand for the same bytes, else the longest student token that the teacher's begins with (for CDM)."""
    ids, roles = _same(teacher, student, index := _index(student))
    counts = {"exact": int((ids >= 0).sum()) - roles, "role": roles}
    longest = max(map(len, index), default=0)
    for at in np.flatnonzero(ids == NONE):
        content = teacher.content[at]
        lengths = range(min(len(content), longest), 0, -1)
        ids[at] = next((index[content[:size]] for size in lengths if content[:size] in index), NONE)
    counts["prefix"] = int((ids >= 0).sum()) - sum(counts.values())
    return Matches(ids, counts | {"none": int((ids == NONE).sum())})


def overlap(teacher: Pieces, student: Pieces) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The vocabulary that both have, one to one: tokens for the same bytes, and the ends of text.

    Returns:
        The ids of the teacher [n] and of the student [n], by ascending id of the student.
    """
    there, back = (_same(*pair, _index(pair[1]))[0] for pair in ((teacher, student), (student, teacher)))
    ends = teacher.roles.get("eos", NONE), student.roles.get("eos", NONE)
    pairs = [
        (at, theirs)
        for theirs, at in enumerate(back.tolist())
        if at != NONE and there[at] == theirs and (theirs not in student.special or (at, theirs) == ends)
    ]
    teachers, students = zip(*pairs, strict=True) if pairs else ((), ())
    return np.array(teachers, dtype=np.int32), np.array(students, dtype=np.int32)


def _same(teacher: Pieces, student: Pieces, index: dict[bytes, int]) -> tuple[NDArray[np.int32], int]:
    """The student ids [V_t] of the same bytes or role, and how many have it by their role."""
    ids = np.full(len(teacher), NONE, dtype=np.int32)
    roles, named = student.roles, {student.raw[at]: at for at in student.special}
    spelt = {token: at for at, token in enumerate(student.raw)} if teacher.kind == student.kind else {}
    for at, content in enumerate(teacher.content):
        if at in teacher.special:
            role = teacher.special[at]
            ids[at] = named.get(teacher.raw[at], NONE) if role == "other" else roles.get(role, NONE)
        elif content:
            twin = spelt.get(teacher.raw[at], NONE)
            ids[at] = twin if twin != NONE and student.content[twin] == content else index.get(content, NONE)
    return ids, sum(int(ids[at] != NONE) for at in teacher.special)


def _index(pieces: Pieces) -> dict[bytes, int]:
    """The id for some bytes: of several, one that is no byte piece, then the least; in the order of such ids."""
    found: dict[bytes, int] = {}
    for wants_bytes in (False, True):
        for at, content in enumerate(pieces.content):
            if content and wants_bytes == bool(pieces.kind == "sentencepiece" and BYTE_PIECE.fullmatch(pieces.raw[at])):
                found.setdefault(content, at)
    return found
