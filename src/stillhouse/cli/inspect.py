"""`stillhouse inspect`."""

from __future__ import annotations

from stillhouse.recipe import InspectOptions

SUMMARY = "show both tokenisations of a text or of rows: what is aligned, learnt and mapped"
EXAMPLE = "--student=gpt2 --teacher=Qwen/Qwen1.5-1.8B --text=Fourteen. --out=page.html"


def run(options: InspectOptions) -> None:
    """Print what two tokenizers make of the same responses, and write it as a page where that is asked."""
    from stillhouse import inspection

    inspection.inspect(options)
