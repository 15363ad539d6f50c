"""`stillhouse methods`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

from stillhouse.catalogue import METHODS, Entry
from stillhouse.catalogue.compositions import page
from stillhouse.catalogue.page import markdown
from stillhouse.recipe import MethodsOptions

SUMMARY = "list the methods: paper, settings with defaults, other names"
EXAMPLE = "--json"


def run(options: MethodsOptions) -> None:
    """Print the catalogue: a table on a terminal, plain lines in a pipe, one JSON object, or a page of Markdown."""
    if options.json:
        print(json.dumps({name: _described(entry) for name, entry in METHODS.items()}, indent=2))
    elif options.markdown:
        print(markdown(), end="")
    elif options.compositions:
        print(page(), end="")
    elif sys.stdout.isatty():
        _print_table()
    else:
        print("\n\n".join("\n".join(_lines(entry)) for entry in METHODS.values()))


def _described(entry: Entry) -> dict[str, object]:
    return {
        "paper": entry.paper,
        "summary": entry.summary,
        "formula": entry.formula,
        "official": entry.official,
        "needs_teacher": entry.needs_teacher,
        "rollout": None if entry.rollout is None else dict(entry.rollout),
        "settings": {
            name: {"default": setting.default, "meaning": setting.meaning, "fixed": setting.fixed}
            for name, setting in entry.parameters.items()
        },
        "aliases": list(entry.aliases),
    }


def _settings(entry: Entry) -> str:
    values = (f"{name}={json.dumps(setting.default)}" for name, setting in entry.parameters.items())
    return ", ".join(values) or "-"


def _lines(entry: Entry) -> Iterator[str]:
    yield f"{entry.name}{' (' + ', '.join(entry.aliases) + ')' if entry.aliases else ''}"
    yield f"  {entry.summary}"
    yield f"  paper: {entry.paper}"
    yield f"  teacher: {'needed' if entry.needs_teacher else 'none'}"
    yield f"  formula: {entry.formula}"
    yield f"  settings: {_settings(entry)}"


def _print_table() -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("method", "what it does", "settings", "paper", title="Methods", row_styles=["", "dim"])
    for entry in METHODS.values():
        names = f"[bold]{entry.name}[/bold]\n" + "\n".join(entry.aliases)
        table.add_row(names, entry.summary, _settings(entry).replace(", ", "\n"), entry.paper)
    Console().print(table)
