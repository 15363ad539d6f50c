"""The rows of a data set that answers are scored on, as the papers use it."""

from __future__ import annotations

from stillhouse.catalogue.instructions import InstructionSet
from stillhouse.data import Row, read_rows
from stillhouse.data.conversation import RESPONSE_KEYS, read
from stillhouse.mistakes import Mistake
from stillhouse.recipe.data_sets import Source


def rows_of(source: Source, limit: int | None) -> tuple[list[Row], list[str]]:
    """The rows of `source`, at most `limit`, and what is to be said of them.

    Raises:
        Mistake: it cannot be had, a row is none, or none is left.
    """
    known = source.known
    if known is None:
        return read_rows(source.rows, split="test", limit=limit), []
    try:
        rows = read_rows(source.rows, split="test")
    except Mistake as mistake:
        if not source.on_the_hub:
            raise
        mend = f"put its test.jsonl into a folder '{known.folders[0]}' below --data_folder"
        raise Mistake(
            source.name, f"is not in --data_folder, and {known.hub} cannot be had from the Hub", mend
        ) from mistake
    if source.on_the_hub and known.asks:
        rows = [_asked(row, known) for row in rows]
    answers = [read(row).references[:1] for row in rows]  # none: whoever asks for a reference names the row
    long_enough = [
        row
        for row, answer in zip(rows, answers, strict=True)
        if not answer or len(answer[0].split()) >= known.least_words
    ]
    if not long_enough:
        wrong = f"no reference of its {len(rows)} rows has {known.least_words} words"
        raise Mistake(source.rows, wrong, "is it the right file? else name it in --data")
    limits = [number for number in (known.limit, limit) if number is not None]
    remarks = [f"{source.name}: not in the data folder, taken from the Hub: {source.rows}"] if source.on_the_hub else []
    if short := len(rows) - len(long_enough):
        remarks.append(f"{source.name}: {short} rows with a reference of fewer than {known.least_words} words left out")
    return long_enough[: min(limits, default=None)], remarks


def _asked(row: Row, known: InstructionSet) -> Row:
    context, answer = known.fields
    if context not in row.fields or answer not in row.fields:
        raise Mistake(row.origin, f"has no '{context}' and '{answer}'", f"is this {known.hub}?")
    fields = {"instruction": known.asks, "input": row.fields[context], RESPONSE_KEYS[0]: row.fields[answer]}
    return Row(fields, row.origin)
