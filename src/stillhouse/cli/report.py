"""`stillhouse report`."""

from __future__ import annotations

from stillhouse.recipe import ReportOptions

SUMMARY = "put runs on one page of HTML: tables and learning curves"
EXAMPLE = "outputs --out=report.html"


def run(options: ReportOptions) -> None:
    """Write the page."""
    from stillhouse import report

    report.write(options)
