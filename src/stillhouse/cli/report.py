"""`stillhouse report`."""

from __future__ import annotations

from stillhouse.recipe import ReportOptions

SUMMARY = "one page of tables and learning curves over runs"
EXAMPLE = "outputs --out=report.html"


def run(options: ReportOptions) -> None:
    """Write the page."""
    from stillhouse import report

    report.write(options)
