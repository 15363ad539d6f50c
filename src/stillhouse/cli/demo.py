"""`stillhouse demo`."""

from __future__ import annotations

from stillhouse.recipe import DemoOptions

SUMMARY = "run the whole story in minutes, on made-up data: teach a teacher, distil it, compare"
EXAMPLE = "--seeds=3"


def run(options: DemoOptions) -> None:
    """Make the data, train every model, and write the report."""
    from stillhouse import demo

    demo.run(options)
