"""Rows in the encodings of two tokenizers, each by a template and within limits of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from stillhouse.data.dataset import Census, EncodedDataset
from stillhouse.data.encode import Limits, encode_all
from stillhouse.data.example import Example
from stillhouse.data.rows import Row
from stillhouse.data.spans import Spans
from stillhouse.data.templates import Template
from stillhouse.mistakes import Mistake
from stillhouse.paired.dataset import Align, PairedDataset

SIDES = ("student", "teacher")


class Sides(NamedTuple):
    """How student and teacher read a row: their tokenizers and templates."""

    tokenizers: tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase]
    templates: tuple[Template, Template]


def encode_both(
    source: str, rows: Sequence[Row], sides: Sides, limits: Limits, spans: Spans | None, align: Align | None, name: str
) -> tuple[PairedDataset, tuple[Census, Census]]:
    """The examples that both sides have something to learn from, with their alignment, and what became of the rows.

    Args:
        source: where the rows are from, for what is said.
        limits: of both; its `bos` is the student's.
        spans: what the aligner goes by.
        align: the aligner; None where it needs predictions.
        name: the aligner's.

    Raises:
        Mistake: no example is left in both.
    """
    examples, unlike = examples_of_both(rows, sides.templates)
    said = [f"{len(unlike)} rows are left out, whose turns the templates cut otherwise: {unlike[0]}"] if unlike else []
    encoded: list[EncodedDataset] = []
    counts: list[Census] = []
    for kept, tokenizer, who in zip(examples, sides.tokenizers, SIDES, strict=True):
        own = limits if who == "student" else replace(limits, bos=None)
        side, census = encode_all(kept, tokenizer, own, f"encoding for the {who}", spans=spans)
        said += [f"{source} ({who}): {line}" for line in census.lines()]
        encoded.append(side)
        counts.append(census)
    paired = PairedDataset.of(encoded[0], encoded[1], align, name)
    if not len(paired):
        raise Mistake(source, "no example is left in both tokenisations", "raise data.max_length")
    dataset = PairedDataset(paired, paired.teacher, paired.alignments, [*said, *paired.said])
    return dataset, (counts[0], counts[1])


def examples_of_both(
    rows: Sequence[Row], templates: tuple[Template, Template]
) -> tuple[tuple[list[Example], list[Example]], list[str]]:
    """Every row's examples on both sides, and the origins of rows that the templates cut into unlike turns."""
    examples: tuple[list[Example], list[Example]] = ([], [])
    unlike: list[str] = []
    for row in rows:
        sides = [template.examples(row) for template in templates]
        if len(sides[0]) != len(sides[1]):
            unlike.append(row.origin)
            continue
        for kept, side in zip(examples, sides, strict=True):
            kept += side
    return examples, unlike
