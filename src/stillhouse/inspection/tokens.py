"""Tokens as people read them, in columns: a group of the alignment, or a stretch that is in no group.

A column has one line for each side. The *lead*, what stands before the first token that is learnt, is shortened to its
last tokens: a prompt is long, and the same for every row.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from stillhouse.alignment import Alignment
from stillhouse.data.pieces import Pieces
from stillhouse.data.spans import UNKNOWN

LEAD = 6  # tokens of a prompt that are shown
LEGEND = (
    "| ends a group  · blank  ↵ newline  ␍ return  ⇥ tab  <0xE4> a byte of a character  "
    "«special token»  (not learnt)  !not aligned  …9 tokens before  ∅ no match in the map"
)
_SIGNS = {" ": "·", "\n": "↵", "\r": "␍", "\t": "⇥"}


@dataclass(frozen=True)
class Token:
    """One token of a row.

    Attributes:
        text: what it stands for, made legible.
        id: its id; -1 for what stands for tokens that are left out.
        span: the bytes of the responses that it covers, or None where that is unknown.
        learnt: whether some position is scored by it.
        special: whether it is a special token.
        group: which group of the alignment the position that predicts it is in, or None.
        alone: whether there is no other side to be aligned with.
    """

    text: str
    id: int
    span: tuple[int, int] | None = None
    learnt: bool = False
    special: bool = False
    group: int | None = None
    alone: bool = False

    @property
    def lost(self) -> bool:
        """Whether it is learnt, but no group of the alignment holds it."""
        return self.learnt and self.group is None and not self.alone

    @property
    def marked(self) -> str:
        """The text with the marks of the legend, which say everything that colours say."""
        text = f"«{self.text}»" if self.special else self.text
        return f"!{text}" if self.lost else text if self.learnt or self.id < 0 else f"({text})"


@dataclass(frozen=True)
class Column:
    """The tokens of every side that belong together, and the group that they are."""

    lines: tuple[tuple[Token, ...], ...]
    group: int | None = None


def legible(content: bytes) -> str:
    """Text of bytes in which everything is seen: blanks and line ends as signs, what is no text by its number.

    Nothing is left that a terminal would obey.
    """
    shown: list[str] = []
    for character in content.decode(errors="surrogateescape"):
        code = ord(character)
        if 0xDC80 <= code <= 0xDCFF:
            shown.append(f"<0x{code - 0xDC00:02X}>")
        elif character in _SIGNS:
            shown.append(_SIGNS[character])
        elif not character.isprintable() or character in _SIGNS.values():
            shown.append(f"<U+{code:04X}>")
        elif unicodedata.category(character).startswith("M") and not shown:
            shown.append(f"◌{character}")  # else it would land on the sign before
        else:
            shown.append(character)
    return "".join(shown)


def text_of(pieces: Pieces, token: int) -> str:
    """What a token stands for, made legible."""
    content = pieces.content[token] if token < len(pieces) else b""
    raw = pieces.raw[token] if token < len(pieces) else ""
    return legible(content) if content else legible(raw.encode(errors="surrogateescape")) or f"<id {token}>"


def tokens_of(item: dict[str, Any], pieces: Pieces, *, alone: bool) -> list[Token]:
    """The tokens of an item of an `EncodedDataset` that has its ends in bytes; none is in a group yet."""
    ids, ends = np.asarray(item["input_ids"]).tolist(), np.asarray(item["ends"]).tolist()
    learnt = [False, *np.asarray(item["scored"]).tolist()[:-1]]
    made, before = [], 0
    for token, end, is_learnt in zip(ids, ends, learnt, strict=True):
        span = None if end == UNKNOWN else (min(before, end), end)
        before = before if end == UNKNOWN else end
        made.append(Token(text_of(pieces, token), token, span, is_learnt, token in pieces.special, alone=alone))
    return made


def columns_alone(tokens: list[Token]) -> list[Column]:
    """A column for every token that is learnt, the lead and what lies between shortened or together."""
    made, start = _lead_column([tokens])
    for token in tokens[start[0] :]:
        made.append(Column(((token,),), len(made) if token.learnt else None))
    return made


def columns_of(student: list[Token], teacher: list[Token], alignment: Alignment) -> list[Column]:
    """A column for every group, and one for what lies between two of them; every token is in one, in its order."""
    sides = [_grouped(student, alignment, 0), _grouped(teacher, alignment, 1)]
    made, cursors = _lead_column(sides)
    places = [{group: [] for group in range(len(alignment))} for _ in sides]
    for found, side in zip(places, sides, strict=True):
        for place, token in enumerate(side):
            if token.group is not None:
                found[token.group].append(place)
    for group in range(len(alignment)):
        begins, ends = [found[group][0] for found in places], [found[group][-1] + 1 for found in places]
        made += _column(sides, cursors, begins, None)
        made += _column(sides, [max(pair) for pair in zip(cursors, begins, strict=True)], ends, group)
        cursors = [max(pair) for pair in zip(cursors, ends, strict=True)]
    return made + _column(sides, cursors, [len(side) for side in sides], None)


def _column(
    sides: Sequence[list[Token]], begins: Sequence[int], ends: Sequence[int], group: int | None
) -> list[Column]:
    lines = tuple(tuple(side[begin:end]) for side, begin, end in zip(sides, begins, ends, strict=True))
    return [Column(lines, group)] if any(lines) else []


def _grouped(tokens: list[Token], alignment: Alignment, side: int) -> list[Token]:
    """The tokens with the groups of the positions that predict them."""
    targets = [place for place, token in enumerate(tokens) if token.learnt]
    made = list(tokens)
    for group, members in enumerate(alignment.groups()):
        for position in members[side]:
            made[targets[position]] = replace(made[targets[position]], group=group)
    return made


def _lead_column(sides: Sequence[list[Token]]) -> tuple[list[Column], list[int]]:
    """The column of what stands before the first learnt token of each side, and where it ends."""
    stops = [next((place for place, token in enumerate(side) if token.learnt), len(side)) for side in sides]
    lines = []
    for side, stop in zip(sides, stops, strict=True):
        left_out = stop - LEAD if stop > LEAD + 1 else 0
        sign = (Token(f"…{left_out}", -1),) if left_out else ()
        lines.append((*sign, *side[left_out:stop]))
    return ([Column(tuple(lines))] if any(lines) else []), stops
