"""Questions of two turns, as MT-Bench's question.jsonl has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillhouse.data.rows import Row, read_rows
from stillhouse.mistakes import Mistake, shorten

TURNS = 2
_SHAPE = 'a question is {"question_id": 1, "category": "math", "turns": ["first", "second"], "reference": [...]}'


@dataclass(frozen=True)
class Question:
    """What is asked, in two turns.

    Attributes:
        id: as the file has it, in text.
        turns: what the user says first, and after the answer to that.
        references: the right answer to each turn, where there is one.
        origin: of its row.
    """

    id: str
    category: str
    turns: tuple[str, str]
    references: tuple[str | None, str | None]
    origin: str


def read_questions(source: str | Path, *, limit: int | None = None) -> list[Question]:
    """The questions of a file.

    Raises:
        Mistake: at file and line: no file, no JSON, not the shape of a question, or an id that is there twice.
    """
    questions: dict[str, Question] = {}
    for row in read_rows(source, split="test", limit=limit):
        question = _question(row)
        if question.id in questions:
            before = questions[question.id].origin
            raise Mistake(row.origin, f"question_id {question.id} is there already, in {before}", "give it another")
        questions[question.id] = question
    return list(questions.values())


def _question(row: Row) -> Question:
    fields = row.fields
    named = fields.get("question_id")
    if isinstance(named, bool) or not isinstance(named, int | str) or not str(named).strip():
        raise Mistake(row.origin, "has no question_id", _SHAPE)
    category = fields.get("category")
    if not isinstance(category, str) or not category.strip():
        raise Mistake(row.origin, "has no category", _SHAPE)
    turns = fields.get("turns")
    if not isinstance(turns, list) or len(turns) != TURNS:
        raise Mistake(row.origin, "'turns' is not a list of two texts", _SHAPE)
    first, second = (_text(turn, f"turns[{place}]", row.origin) for place, turn in enumerate(turns))
    return Question(str(named), category, (first, second), _references(fields, row.origin), row.origin)


def _references(fields: Mapping[str, Any], origin: str) -> tuple[str | None, str | None]:
    given = fields.get("reference")
    if given is None or given == []:
        return None, None
    if not isinstance(given, list) or len(given) > TURNS:
        raise Mistake(origin, "'reference' is not a list of at most two texts", _SHAPE)
    padded = [*given, None][:TURNS]
    first, second = (None if one in (None, "") else _text(one, "reference", origin) for one in padded)
    return first, second


def _text(value: Any, key: str, origin: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise Mistake(origin, f"'{key}' is not a text but {shorten(repr(value), 40)}", _SHAPE)
    try:
        value.encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair
        raise Mistake(origin, f"'{key}' holds a broken character at {error.start}", "mend the text") from error
    return value
