"""A table of texts in the terminal, without rules, colours and line breaks where nobody watches it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table


def print_rows(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print `rows` below `titles`, the first column from the left, the others from the right."""
    watched = sys.stdout.isatty()
    table = Table(box=SIMPLE_HEAD if watched else None, pad_edge=False)
    for number, title in enumerate(titles):
        table.add_column(title, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    Console(width=None if watched else 500, markup=False).print(table)
