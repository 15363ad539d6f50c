"""Where every token of a response ends, in bytes of the responses' text: coordinates that two tokenizers share.

    text        "It's  ok"       bytes   0 1 2 3 4 5 6 7 | 8
    one side    It 's ␣ ␣ok </s>         ends  2 4 5 8 9         the virtual byte 8 is what a terminator covers
    the other   It ' s ␣␣ ok <|end|>     ends  2 3 4 6 8 9

A token's span begins where the one before it ended, so ends are enough and every byte has one owner. The coordinates
run through the responses of an example one after the other. Words used below:

    words       what the response itself says; a chat template writes more around it, and may strip it
    tail        what a template writes after the words, up to the end of the segment
    terminator  the token that stands for the end of a response: the first special token of the tail, else the
                end-of-text token that is appended, else the first token of the tail. It ends at the virtual byte, and
                so does, without any width, what follows it in the segment
    break       a token that is found in a text as it stands (special or added), so tokenizers treat what is between two
                breaks, a run, as a text of its own: with a blank in front of it, in Llama's case
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from stillhouse.data.example import NORMALISED, REWRITTEN, Example, Segment
from stillhouse.data.pieces import Pieces

# Which bytes count: all, or all but blanks ("solid": ETA's text, arXiv 2504.11426).
Spans = Literal["bytes", "solid"]
Ends = NDArray[np.int64]

BLANK = 0x20
UNKNOWN = -1


@dataclass(frozen=True)
class Spanned:
    """The ends of an example's tokens.

    Attributes:
        ends: [n], with one more where an end-of-text token is appended; -1 where a token has no place in the text.
        remarks: `NORMALISED` where a span is by characters, `REWRITTEN` where a response could not be found.
    """

    ends: Ends
    remarks: tuple[str, ...]


class SpanReader:
    """Finds the spans of one tokenizer's tokens.

    Args:
        tokenizer: A fast tokenizer.
        spans: Which bytes count.
        everything: Whether prompts count as text too, as their templates write them.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, spans: Spans, *, everything: bool) -> None:
        pieces = Pieces.of(tokenizer)
        self.spans, self.everything = spans, everything
        self.content = pieces.content
        self.widths = np.array([len(content) for content in pieces.content], dtype=np.int64)  # [V]
        self.special, self.breaks = np.zeros(len(pieces), bool), np.zeros(len(pieces), bool)  # [V]
        self.special[list(pieces.special)] = True
        # An unknown word's token stands in a text without being written there, so it ends no run.
        self.breaks[[index for index, role in pieces.special.items() if role != "unk"]] = True
        self.breaks[list(pieces.added)] = True

    def of_text(self, example: Example, views: Sequence[Any]) -> Spanned:
        """Of segments that were tokenised apart, one view a segment."""
        parts, exact = [], True
        for segment, view in zip(example.segments, views, strict=True):
            ends, whole = self._byte_ends(segment.text, view) if self._counts(segment) else (_nowhere(view.ids), True)
            parts.append((ends, self.special[view.ids]))
            exact &= whole
        return self._laid(example, parts, exact)

    def of_chat(self, example: Example, text: str, view: Any, owners: NDArray[np.int64]) -> Spanned:
        """Of segments that were tokenised in one piece; `owners` [n] says which segment each token belongs to."""
        ends, exact = self._byte_ends(text, view)
        special = self.special[view.ids]
        parts, begin = [], 0
        for number, segment in enumerate(example.segments):
            here = owners == number
            parts.append((ends[here] - begin, special[here]))
            begin += len(segment.text.encode())
        spanned = self._laid(example, parts, exact)
        ordered = spanned.ends.copy()  # an appended token stays last
        ordered[np.argsort(owners, kind="stable")] = spanned.ends[: len(owners)]
        return Spanned(ordered, spanned.remarks)

    def _counts(self, segment: Segment) -> bool:
        return segment.scored or self.everything

    def _laid(self, example: Example, parts: list[tuple[Ends, NDArray[np.bool_]]], exact: bool) -> Spanned:
        """The parts one after the other, from ends in each segment's own bytes."""
        laid: list[Ends] = []
        base, found = 0, True
        for number, (segment, (ends, special)) in enumerate(zip(example.segments, parts, strict=True)):
            appended = not example.closed and number == len(example.segments) - 1
            size = 0
            if segment.scored:
                here, size = self._response(segment, ends, special, appended)
                found &= here is not None
                here = _nowhere(ends) if here is None else here + base
            elif self.everything:
                table = self._table(segment.text.encode())
                here = table[np.clip(ends, 0, len(table) - 1)] + base
                size = int(table[-1])
            else:
                here = _nowhere(ends)
            base += size
            laid.append(here if len(here) == len(ends) + appended else np.append(here, UNKNOWN))
        remarks = ((NORMALISED,) if not exact else ()) + ((REWRITTEN,) if not found else ())
        return Spanned(np.concatenate(laid), remarks)

    def _response(
        self, segment: Segment, ends: Ends, special: NDArray[np.bool_], appended: bool
    ) -> tuple[Ends | None, int]:
        """Ends in bytes of the words, the appended token's included, and the bytes there are with the virtual one."""
        words = segment.text if segment.words is None else segment.words
        table = self._table(words.encode())
        table = np.append(table, table[-1] + 1)  # the virtual byte
        size = int(table[-1])
        place = _place(segment.text, words)
        if place is None:
            return None, size
        begin, stop, skipped = place
        length = len(table) - 2
        laid = np.where(ends > begin, ends - begin + skipped, 0)  # [n]
        laid[ends >= stop] = length
        terminator = self._terminator(ends > stop, special, appended)
        if terminator is not None:
            if 0 < terminator < len(ends) and special[terminator]:
                self._give_trailing(segment.text, ends, stop, laid, terminator - 1, length)
            laid = np.append(laid, length + 1) if appended else laid
            laid[terminator:] = length + 1
        return table[laid], size

    def _terminator(self, in_tail: NDArray[np.bool_], special: NDArray[np.bool_], appended: bool) -> int | None:
        named = np.flatnonzero(in_tail & special)
        if len(named):
            return int(named[0])
        if appended:
            return len(special)
        tail = np.flatnonzero(in_tail)
        return int(tail[0]) if len(tail) else None

    def _give_trailing(self, text: str, ends: Ends, stop: int, laid: Ends, last: int, length: int) -> None:
        """White space that a tokenizer dropped at the end of the words belongs to the last of their tokens."""
        if laid[last] > 0 and ends[last] < stop and text.encode()[ends[last] : stop].isspace():
            laid[last] = length

    def _table(self, data: bytes) -> Ends:
        """[len(data) + 1], how many bytes count before each place."""
        if self.spans == "bytes":
            return np.arange(len(data) + 1)
        return np.concatenate([[0], np.cumsum(np.frombuffer(data, np.uint8) != BLANK)])

    def _byte_ends(self, text: str, view: Any) -> tuple[Ends, bool]:
        """Where the tokens of a text end in its bytes [n], and whether the bytes of the tokens say so."""
        ids = np.array(view.ids, dtype=np.int64)
        breaks = np.flatnonzero(self.breaks[ids])
        data = text.encode()
        if not len(breaks):
            exact = self._exact(ids, data)
            if exact is not None:
                return exact, True
        offsets = _bytes_of(text, data)[np.array(view.offsets, dtype=np.int64).reshape(-1, 2)]  # [n, 2]
        ends = offsets[:, 1].copy()
        whole = True
        run, begin = 0, 0
        for stop in [*breaks, len(ids)]:
            limit = offsets[stop, 0] if stop < len(ids) else len(data)
            if stop > run:
                exact = self._exact(ids[run:stop], data[begin:limit])
                whole &= exact is not None
                ends[run:stop] = _by_characters(offsets[run:stop], limit) if exact is None else exact + begin
            if stop < len(ids):
                run, begin = stop + 1, offsets[stop, 1]
        if len(ids):
            ends[-1] = len(data)
        return np.maximum.accumulate(ends), whole

    def _exact(self, ids: NDArray[np.int64], data: bytes) -> Ends | None:
        """The ends of tokens that stand for exactly these bytes, or for a blank and these bytes; else None."""
        said = b"".join([self.content[index] for index in ids.tolist()])
        if said == data:
            return self.widths[ids].cumsum()
        if len(said) == len(data) + 1 and said[:1] == b" " and said[1:] == data:
            return np.maximum(self.widths[ids].cumsum() - 1, 0)
        return None


def _nowhere(tokens: Any) -> Ends:
    return np.full(len(tokens), UNKNOWN, dtype=np.int64)


def _place(text: str, words: str) -> tuple[int, int, int] | None:
    """Where in the bytes of `text` the words begin and stop, and how many of their first bytes it leaves out."""
    found = text.find(words)
    skipped = 0
    if found < 0:
        bare = words.strip()
        skipped = len(words[: len(words) - len(words.lstrip())].encode())
        found, words = text.find(bare), bare
    if found < 0:
        return None
    begin = len(text[:found].encode())
    return begin, begin + len(words.encode()), skipped


def _bytes_of(text: str, data: bytes) -> Ends:
    """[len(text) + 1], the byte at which each character begins."""
    if len(data) == len(text):
        return np.arange(len(text) + 1)
    points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    widths = 1 + (points >= 0x80) + (points >= 0x800) + (points >= 0x10000).astype(np.int64)
    return np.concatenate([[0], np.cumsum(widths)])


def _by_characters(offsets: NDArray[np.int64], limit: int) -> Ends:
    """Ends by the tokenizer's own offsets [n, 2]; of tokens that share a character the last one has it."""
    ends = np.minimum(offsets[:, 1], limit)
    ends[:-1] = np.minimum(ends[:-1], np.maximum(offsets[1:, 0], offsets[:-1, 0]))
    return np.maximum.accumulate(ends)
