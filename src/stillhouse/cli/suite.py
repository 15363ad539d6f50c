"""`stillhouse suite`."""

from __future__ import annotations

from stillhouse.recipe import SuiteOptions

SUMMARY = "train and score what a file names, methods x seeds, and write the table"
EXAMPLE = "recipes/todi/table.yaml --workers=2"


def run(options: SuiteOptions) -> None:
    """Do what is missing; a suite that was stopped goes on when its command is given again."""
    from stillhouse.suite import suite

    suite(options)
