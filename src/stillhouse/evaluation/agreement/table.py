"""What is printed of an agreement: two lines for each data file, one of either model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stillhouse.evaluation.terminal import print_rows


def print_table(data: Mapping[str, Mapping[str, Any]], top_k: int) -> None:
    """Print what each model is worth, then how near they are."""
    each, both = list[list[str]](), list[list[str]]()
    for name, entry in data.items():
        for who in ("student", "teacher"):
            side = entry[who]
            bits = "-" if side["bits_per_byte"] is None else f"{side['bits_per_byte']:.4f}"
            numbers = (f"{side['perplexity']:.3f}", bits, f"{side['entropy']:.4f}", f"{side['accuracy']:.2f}%")
            each.append([f"{name} {who}", str(side["tokens"]), *numbers])
        nats = (f"{entry[key]:.4f}" for key in ("forward_kl", "reverse_kl", "jsd", "tvd"))
        shares = (f"{entry[key]:.2f}%" for key in ("top1", "topk", "found"))
        errors = (f"{entry['calibration'][kind]['error']:.4f}" for kind in ("teacher", "labels"))
        both.append([name, str(entry["compared"]), *nats, *shares, *errors])
    print_rows(("data", "tokens", "perplexity", "bits/byte", "entropy", "accuracy"), each)
    tops = ("top-1", f"top-{top_k}", f"in top-{top_k}")
    print_rows(("data", "compared", "forward KL", "reverse KL", "JSD", "TVD", *tops, "ECE teacher", "ECE labels"), both)
    for name, entry in data.items():
        if entry["unreached"] is not None:
            ours, theirs = entry["unreached"]["student"], entry["unreached"]["teacher"]
            print(
                f"{name}: {ours:.2f}% of the student's probability and {theirs:.2f}% of the teacher's are on tokens "
                f"that are not compared; the likeliest tokens of all have the same text in {entry['text']:.2f}% of rows"
            )
