"""Rows in the encodings of one or two tokenizers, as training would have them, and what is to be said of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from transformers import PreTrainedTokenizerBase

from stillhouse import alignment, vocabulary
from stillhouse.alignment import Alignment, Coverage, Side
from stillhouse.data.dataset import EncodedDataset
from stillhouse.data.encode import Limits, encode_all
from stillhouse.data.example import Example
from stillhouse.data.pieces import Pieces
from stillhouse.data.rows import Row as DataRow
from stillhouse.data.rows import read_rows
from stillhouse.data.templates import build as build_template
from stillhouse.data.tokenizer import load_tokenizer, same_vocabulary
from stillhouse.inspection.reach import Reach, predicted_tokens, reach_of
from stillhouse.inspection.tokens import Column, Token, columns_alone, columns_of, text_of, tokens_of
from stillhouse.mistakes import Mistake
from stillhouse.progress import track
from stillhouse.recipe import InspectOptions
from stillhouse.vocabulary.matching import NONE

Align = Callable[[Side, Side], Alignment]
SIDES = ("student", "teacher")


@dataclass(frozen=True)
class Row:
    """One example, in columns."""

    origin: str
    columns: list[Column]


@dataclass(frozen=True)
class Findings:
    """Everything that is shown.

    Attributes:
        lines: what the lines of a column are of.
        rows: the rows that are shown.
        said: plain sentences under what they are about.
    """

    lines: tuple[str, ...]
    rows: list[Row]
    said: list[tuple[str, list[str]]]


@dataclass(frozen=True)
class _View:
    """What one tokenizer makes of the examples.

    `encoded` has the spans that the aligner goes by, `shown`, its first items, has them in bytes.
    """

    tokenizer: PreTrainedTokenizerBase
    pieces: Pieces
    encoded: EncodedDataset
    shown: EncodedDataset
    said: list[str]

    def tokens(self, index: int, *, alone: bool) -> list[Token]:
        return tokens_of(self.shown[index], self.pieces, alone=alone)


def look(options: InspectOptions) -> Findings:
    """Encode, align and count.

    Raises:
        Mistake: a tokenizer does not load or gives no offsets, a template does not suit it, or nothing is left to show.
    """
    names = [name for name in (options.student, options.teacher) if name is not None]
    tokenizers = [load_tokenizer(name, trust_remote_code=options.trust_remote_code) for name in names]
    chosen = "dtw" if options.alignment["name"] == "entropy_dtw" else options.alignment["name"]
    views, notes = _views(options, tokenizers, chosen)
    said = [(f"{side}: {name}", view.said) for side, name, view in zip(SIDES[: len(views)], names, views, strict=True)]
    if len(views) == 1:
        shown = range(min(options.rows, len(views[0].encoded)))
        rows = [_row(views[0], index, columns_alone(views[0].tokens(index, alone=True))) for index in shown]
        return Findings(("student",), rows, said)
    student, teacher = views
    same = same_vocabulary(student.tokenizer, teacher.tokenizer)
    if same is None:
        notes.append("the tokenizers are the same: ids are shared, and no map of tokens is needed")
    if options.alignment["name"] == "entropy_dtw":
        notes.append("entropy_dtw depends on predictions and is found in training; dtw is shown in its place")
    if chosen.startswith("dtw"):
        notes.append("dtw compares the tokens that positions read last; shown is what each of them predicts")
    reach = None
    if options.vocabulary is not None:
        ids = vocabulary.chosen(options.vocabulary, teacher.tokenizer, student.tokenizer).ids
        predicted = predicted_tokens(teacher.encoded)
        reach = reach_of(options.vocabulary["name"], ids, student.pieces, teacher.pieces, predicted)
    align = alignment.build(chosen, student.pieces, teacher.pieces, None if reach is None else reach.ids)
    shown_map = reach if options.show_map else None
    rows, coverages = _aligned(student, teacher, align, options.rows, shown_map)
    said += [("notes", notes)] if notes else []
    said += [(f"alignment {chosen}, {what}", coverage.lines()) for what, coverage in coverages]
    said += [(f"vocabulary {reach.name}", reach.lines)] if reach is not None else []
    return Findings((*SIDES, "map") if shown_map is not None else SIDES, rows, said)


def _views(
    options: InspectOptions, tokenizers: Sequence[PreTrainedTokenizerBase], aligner: str
) -> tuple[list[_View], list[str]]:
    """The examples that all tokenizers have left, and what became of the others."""
    names = (options.template, options.teacher_template or options.template)
    templates = [build_template(name, tokenizer) for name, tokenizer in zip(names, tokenizers, strict=False)]
    examples: list[list[Example]] = [[] for _ in templates]
    unlike: list[str] = []
    for row in _rows(options):
        sides = [template.examples(row) for template in templates]
        if len({len(side) for side in sides}) > 1:
            unlike.append(row.origin)
            continue
        for kept, side in zip(examples, sides, strict=True):
            kept += side
    notes = [f"{len(unlike)} rows are left out, whose turns the templates cut otherwise: {unlike[0]}"] if unlike else []
    return _encoded(options, tokenizers, examples, aligner, notes), notes


def _encoded(
    options: InspectOptions,
    tokenizers: Sequence[PreTrainedTokenizerBase],
    examples: Sequence[Sequence[Example]],
    aligner: str,
    notes: list[str],
) -> list[_View]:
    """The views of the examples that have something to learn on every side; what is lost is said in `notes`."""
    spans = alignment.ALIGNERS[aligner].spans or "bytes"
    limits = Limits(options.max_length, options.max_prompt_length, options.cut, options.bos, options.scored)
    sides = list(zip(SIDES, examples, tokenizers, (limits, replace(limits, bos=None)), strict=False))
    found = [encode_all(kept, whose, its, f"encoding for the {side}", spans) for side, kept, whose, its in sides]
    samples = [encoded.samples for encoded, _ in found]
    shared = np.intersect1d(samples[0], samples[-1])
    if lost := len(np.union1d(samples[0], samples[-1])) - len(shared):
        notes.append(f"{lost} examples are cut away on one side and left out")
    if not len(shared):
        raise Mistake(options.data or "text", "no example is left in both tokenisations", "raise max_length")
    views = []
    for (_, kept, tokenizer, its), (encoded, census) in zip(sides, found, strict=True):
        both = encoded.taken(np.isin(encoded.samples, shared))
        shown = both
        if spans != "bytes":
            first = [kept[sample] for sample in both.samples[: options.rows]]
            shown = encode_all(first, tokenizer, its, spans="bytes")[0]
        views.append(_View(tokenizer, Pieces.of(tokenizer), both, shown, census.lines()))
    return views


def _rows(options: InspectOptions) -> list[DataRow]:
    if options.data is not None:
        return read_rows(options.data, split=options.split, limit=options.limit)
    # As messages, a text may have an empty prompt in every template.
    turns = (("user", options.prompt), ("assistant", options.text))
    return [DataRow({"messages": [{"role": role, "content": content} for role, content in turns]}, "text")]


def _aligned(
    student: _View, teacher: _View, align: Align, count: int, reach: Reach | None
) -> tuple[list[Row], list[tuple[str, Coverage]]]:
    """The first `count` rows in columns, and how much is aligned of them and of all."""
    total = len(student.encoded)
    shown, all_rows = Coverage(), Coverage()
    rows: list[Row] = []
    for index in track(range(total), "aligning"):
        sides = Side.of(student.encoded[index]), Side.of(teacher.encoded[index])
        found = align(*sides)
        all_rows.add(found, *sides)
        if index < count:
            shown.add(found, *sides)
            columns = columns_of(student.tokens(index, alone=False), teacher.tokens(index, alone=False), found)
            rows.append(_row(student, index, columns if reach is None else _with_map(columns, reach, student.pieces)))
    coverages = [(f"the {len(rows)} shown" if len(rows) > 1 else "the one shown", shown)]
    return rows, coverages + ([(f"all {total} examples", all_rows)] if total > len(rows) else [])


def _with_map(columns: list[Column], reach: Reach, student: Pieces) -> list[Column]:
    """With a third line: what the map makes of the teacher's tokens."""

    def mapped(token: Token) -> Token:
        if not token.learnt:
            return Token("", -1)
        target = int(reach.ids[token.id]) if token.id < len(reach.ids) else NONE
        if target == NONE:
            return Token("∅", -1)
        return Token(text_of(student, target), target, None, True, target in student.special, token.group, alone=True)

    return [
        replace(column, lines=(*column.lines, tuple(made for token in column.lines[1] if (made := mapped(token)).text)))
        for column in columns
    ]


def _row(view: _View, index: int, columns: list[Column]) -> Row:
    return Row(view.encoded.origins[index], columns)
