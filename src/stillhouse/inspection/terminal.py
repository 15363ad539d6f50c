"""The findings as lines of a terminal: columns packed into its width, coloured where it has colours.

Everything that a colour says a mark says too, so that a pipe and a test read the same.
"""

from __future__ import annotations

from collections.abc import Iterator

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from stillhouse.inspection.findings import Findings, Row
from stillhouse.inspection.tokens import LEGEND, Column, Token

COLOURS = ("cyan", "green", "magenta", "yellow", "blue")
LEAST_WIDTH = 24
_BETWEEN = " | "


def print_findings(findings: Findings, console: Console) -> None:
    """Write everything to a terminal or a pipe."""
    console.print(Text(LEGEND, "dim"), soft_wrap=True)
    for row in findings.rows:
        console.print()
        console.print(Text(row.origin, "bold"), soft_wrap=True)
        for line in row_lines(row, findings.lines, console.width):
            console.print(line, soft_wrap=True)
    for title, sentences in findings.said:
        console.print()
        console.print(Text(title, "bold"), soft_wrap=True)
        for sentence in sentences:
            console.print(Text(f"  {sentence}"), soft_wrap=True)


def row_lines(row: Row, names: tuple[str, ...], width: int) -> Iterator[Text]:
    """The lines of a row, in blocks of one line a side, with a blank line between two.

    They are at most `width` cells wide, but for a token that alone is wider.
    """
    label = max(map(len, names)) + 2
    room = max(width - label, LEAST_WIDTH)
    for number, block in enumerate(_blocks(row.columns, room)):
        if number:
            yield Text()
        for side, name in enumerate(names):
            line = Text().append(f"{name:{label}}", "bold")
            for column, closed in block:
                line.append_text(_cell(column.lines[side], _width(column), column.group))
                line.append(_BETWEEN if closed else "  ", "dim")
            line.rstrip()
            yield line


def _blocks(columns: list[Column], room: int) -> Iterator[list[tuple[Column, bool]]]:
    """Columns that fit side by side, each with whether it ends there or goes on in the next block."""
    block: list[tuple[Column, bool]] = []
    used = 0
    for column in columns:
        pieces = list(_pieces(column, room - len(_BETWEEN)))
        for number, piece in enumerate(pieces):
            width = _width(piece) + len(_BETWEEN)
            if block and used + width > room:
                yield block
                block, used = [], 0
            block.append((piece, number == len(pieces) - 1))
            used += width
    if block:
        yield block


def _pieces(column: Column, room: int) -> Iterator[Column]:
    """A column that is wider than the room, in pieces that are not."""
    rest = [list(line) for line in column.lines]
    while True:
        taken: list[tuple[Token, ...]] = []
        for line in rest:
            count, used = 0, -1
            while count < len(line) and (count == 0 or used + 1 + cell_len(line[count].marked) <= room):
                used += 1 + cell_len(line[count].marked)
                count += 1
            taken.append(tuple(line[:count]))
            del line[:count]
        yield Column(tuple(taken), column.group)
        if not any(rest):
            return


def _width(column: Column) -> int:
    return max(sum(cell_len(token.marked) + 1 for token in line) - bool(line) for line in column.lines)


def _cell(tokens: tuple[Token, ...], width: int, group: int | None) -> Text:
    """The tokens of one line of a column, padded to its width."""
    made = Text()
    for number, token in enumerate(tokens):
        made.append(" " if number else "")
        made.append(token.marked, _style(token, group))
    made.append(" " * (width - cell_len(made.plain)))
    return made


def _style(token: Token, group: int | None) -> str:
    if token.lost:
        return "bold red reverse"
    if not token.learnt:
        return "dim italic" if token.special else "dim"
    colour = "default" if group is None else COLOURS[group % len(COLOURS)]
    return f"bold italic {colour}" if token.special else colour
