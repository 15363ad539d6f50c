"""`stillhouse inspect`: look, print, and write the page where that is asked."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from stillhouse import store
from stillhouse.inspection.findings import look
from stillhouse.inspection.terminal import print_findings
from stillhouse.recipe import InspectOptions


def inspect(options: InspectOptions) -> None:
    """Print both tokenisations and what is to be said of them, and write `options.out`.

    Raises:
        Mistake: as `look`; or the disk refused the page.
    """
    findings = look(options)
    print_findings(findings, Console(highlight=False, markup=False, emoji=False))
    if options.out is not None:
        from stillhouse.inspection.page import html  # with it comes all that reports are drawn by

        store.write_text(Path(options.out), html(findings))
        print(f"\n{options.out}")
