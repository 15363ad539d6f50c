"""`stillhouse export`."""

from __future__ import annotations

from stillhouse.recipe import ExportOptions

SUMMARY = "make a checkpoint a model of its own: adapter merged, weights cast, model card written"
EXAMPLE = "--model=outputs/gpt2/todi/todi --out=gpt2-todi --dtype=bfloat16"


def run(options: ExportOptions) -> None:
    """Write a folder that transformers reads without Stillhouse and peft."""
    from stillhouse import export

    export.export(options)
