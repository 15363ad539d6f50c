"""What evaluations say: remarks on stderr, tables on stdout, without rules, colours and breaks where nobody watches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table


def speaker(*, quiet: bool = False) -> Callable[[str], None]:
    """What prints a remark as it is."""
    return Console(stderr=True, soft_wrap=True, highlight=False, markup=False, quiet=quiet).print


def print_rows(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print `rows` below `titles`, the first column from the left, the others from the right."""
    watched = sys.stdout.isatty()
    table = Table(box=SIMPLE_HEAD if watched else None, pad_edge=False)
    for number, title in enumerate(titles):
        table.add_column(title, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    Console(width=None if watched else 500, markup=False).print(table)


def spread(mean: float, std: float | None) -> str:
    """A mean with its deviation, where there is one."""
    return f"{mean:.2f}" if std is None else f"{mean:.2f} ± {std:.2f}"
