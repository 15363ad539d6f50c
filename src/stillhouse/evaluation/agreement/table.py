"""What is printed of an agreement: two lines for each data file, one of either model."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table


def print_table(data: Mapping[str, Mapping[str, Any]], top_k: int) -> None:
    """Print what each model is worth, then how near they are; without rules and colours where nobody watches."""
    watched = sys.stdout.isatty()
    console = Console(width=None if watched else 500)
    box = SIMPLE_HEAD if watched else None
    each = Table(box=box, pad_edge=False)
    both = Table(box=box, pad_edge=False)
    for table, titles in (
        (each, ("tokens", "perplexity", "bits/byte", "entropy", "accuracy")),
        (both, ("compared", "forward KL", "reverse KL", "JSD", "TVD", "top-1", f"top-{top_k}", f"in top-{top_k}",
                "ECE teacher", "ECE labels")),
    ):  # fmt: skip
        table.add_column("data", no_wrap=True)
        for title in titles:
            table.add_column(title, justify="right", no_wrap=True)
    for name, entry in data.items():
        for who in ("student", "teacher"):
            side = entry[who]
            bits = "-" if side["bits_per_byte"] is None else f"{side['bits_per_byte']:.4f}"
            numbers = (f"{side['perplexity']:.3f}", bits, f"{side['entropy']:.4f}", f"{side['accuracy']:.2f}%")
            each.add_row(f"{name} {who}", str(side["tokens"]), *numbers)
        nats = (f"{entry[key]:.4f}" for key in ("forward_kl", "reverse_kl", "jsd", "tvd"))
        shares = (f"{entry[key]:.2f}%" for key in ("top1", "topk", "found"))
        errors = (f"{entry['calibration'][kind]['error']:.4f}" for kind in ("teacher", "labels"))
        both.add_row(name, str(entry["compared"]), *nats, *shares, *errors)
    console.print(each)
    console.print(both)
    for name, entry in data.items():
        if entry["unreached"] is not None:
            ours, theirs = entry["unreached"]["student"], entry["unreached"]["teacher"]
            console.print(
                f"{name}: {ours:.2f}% of the student's probability and {theirs:.2f}% of the teacher's are on tokens "
                f"that are not compared; the likeliest tokens of all have the same text in {entry['text']:.2f}% of rows"
            )
