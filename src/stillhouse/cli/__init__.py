"""The command `stillhouse`: one verb a file, each of them a few lines over the library."""

from stillhouse.cli.command import main

__all__ = ["main"]
