"""The nearest of many strings by Levenshtein distance, compiled: exact, yet most pairs are never compared.

The distance is taken 64 rows at a time by bit-parallel dynamic programming (Myers, 1999; Hyyrö, 2003). Two lower bounds
spare it: the difference of the lengths, and the characters that one string has and the other lacks, as bits of a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

_COMPILED: Any = {"nogil": True, "boundscheck": False, "error_model": "numpy"}
_WORD = 64  # bits, and the longest pattern that fits in one
_U = np.uint64
_ONE = _U(1)


class Strings(NamedTuple):
    """Strings as the kernel takes them, by ascending length and then by ascending id.

    Attributes:
        codes: [characters] int32, all of them end to end.
        starts: [n + 1] int64, where each begins.
        ids: [n] int32
        masks: [n] uint64, the characters in it: one bit for the k-th occurrence of a character, some sharing a bit.
        first_of: [longest + 2] int64, the first with at least so many characters.
    """

    codes: NDArray[np.int32]
    starts: NDArray[np.int64]
    ids: NDArray[np.int32]
    masks: NDArray[np.uint64]
    first_of: NDArray[np.int64]


def alphabet(*texts: Sequence[str]) -> dict[str, int]:
    """A small number for every character that occurs."""
    return {character: code for code, character in enumerate(sorted({c for some in texts for t in some for c in t}))}


def strings(texts: Sequence[str], ids: Sequence[int], codes: dict[str, int]) -> Strings:
    """Lay out `texts`, each with its id."""
    order = sorted(range(len(texts)), key=lambda at: (len(texts[at]), ids[at]))
    lengths = np.array([len(texts[at]) for at in order], dtype=np.int64)
    starts = np.zeros(len(texts) + 1, dtype=np.int64)
    np.cumsum(lengths, out=starts[1:])
    flat = np.array([codes[character] for at in order for character in texts[at]], dtype=np.int32)
    longest = int(lengths[-1]) if len(lengths) else 0
    first_of = np.searchsorted(lengths, np.arange(longest + 2)).astype(np.int64)
    masks = _masks(flat, starts, len(codes))
    return Strings(flat, starts, np.array([ids[at] for at in order], dtype=np.int32), masks, first_of)


def nearest(patterns: Strings, start: int, stop: int, candidates: Strings, codes: int) -> NDArray[np.int32]:
    """The id of the nearest candidate for the patterns from `start` to `stop`, the least id among equally near ones.

    Args:
        codes: How many characters there are in the alphabet.

    Returns:
        [stop - start] int32, -1 where there is no candidate.
    """
    out = np.full(stop - start, -1, dtype=np.int32)
    _nearest(patterns, start, stop, candidates, np.zeros(codes, dtype=np.uint64), out)
    return out


@njit(**_COMPILED)
def _masks(codes: Any, starts: Any, size: int) -> Any:
    masks = np.zeros(len(starts) - 1, dtype=np.uint64)
    seen = np.zeros(size, dtype=np.int64)
    for at in range(len(starts) - 1):
        for i in range(starts[at], starts[at + 1]):
            seen[codes[i]] += 1
            # Fibonacci hashing: its high bits spread neighbouring codes well.
            mixed = _U(codes[i] * 131 + seen[codes[i]]) * _U(0x9E3779B97F4A7C15)
            masks[at] |= _ONE << (mixed >> _U(58))
        for i in range(starts[at], starts[at + 1]):
            seen[codes[i]] = 0
    return masks


@njit(**_COMPILED)
def _ones(word: Any) -> Any:
    """How many bits are set."""
    word = word - ((word >> _ONE) & _U(0x5555555555555555))
    word = (word & _U(0x3333333333333333)) + ((word >> _U(2)) & _U(0x3333333333333333))
    word = (word + (word >> _U(4))) & _U(0x0F0F0F0F0F0F0F0F)
    return np.int64((word * _U(0x0101010101010101)) >> _U(56))


@njit(**_COMPILED)
def _nearest(patterns: Any, start: Any, stop: Any, candidates: Any, table: Any, out: Any) -> None:
    longest = len(candidates.first_of) - 2
    for at in range(start, stop):
        pattern = patterns.codes[patterns.starts[at] : patterns.starts[at + 1]]
        size, mask = len(pattern), patterns.masks[at]
        for i in range(min(size, _WORD)):
            table[pattern[i]] |= _ONE << _U(i)
        best, found = np.int64(0x7FFFFFFF), np.int32(0x7FFFFFFF)
        for gap in range(max(size, longest) + 1):
            if gap > best:
                break
            for side in range(2 if gap else 1):  # candidates shorter by `gap`, then those longer by it
                length = size - gap if side == 0 else size + gap
                if not 0 <= length <= longest:
                    continue
                for other in range(candidates.first_of[length], candidates.first_of[length + 1]):
                    theirs, index = candidates.masks[other], candidates.ids[other]
                    bound = max(_ones(mask & ~theirs), _ones(theirs & ~mask), gap)
                    if bound > best or (bound == best and index > found):
                        continue
                    text = candidates.codes[candidates.starts[other] : candidates.starts[other + 1]]
                    distance = _distance(pattern, text, table)
                    if distance < best or (distance == best and index < found):
                        best, found = distance, index
        for i in range(size):
            table[pattern[i]] = _U(0)
        if found != 0x7FFFFFFF:
            out[at - start] = found


@njit(**_COMPILED)
def _distance(pattern: Any, text: Any, table: Any) -> Any:
    if len(pattern) == 0 or len(pattern) > _WORD:
        return _row_by_row(pattern, text)
    positive, negative, distance = ~_U(0), _U(0), np.int64(len(pattern))
    last = _ONE << _U(len(pattern) - 1)
    for code in text:  # one column of the table of distances: its steps of +1 and -1 as bits
        same = table[code]
        diagonal = (((same & positive) + positive) ^ positive) | same | negative
        up = negative | ~(diagonal | positive)
        down = diagonal & positive
        if up & last:
            distance += 1
        elif down & last:
            distance -= 1
        up = (up << _ONE) | _ONE
        positive = (down << _ONE) | ~(diagonal | up)
        negative = up & diagonal
    return distance


@njit(**_COMPILED)
def _row_by_row(pattern: Any, text: Any) -> Any:
    """The textbook's recurrence, for the few patterns of more than 64 characters."""
    row = np.arange(len(text) + 1)
    for i in range(len(pattern)):
        before, row[0] = row[0], i + 1
        for j in range(len(text)):
            changed = before + (pattern[i] != text[j])
            before = row[j + 1]
            row[j + 1] = min(changed, row[j] + 1, row[j + 1] + 1)
    return row[len(text)]
