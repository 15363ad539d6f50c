"""A training row as text: segments that are given (prompt) and segments to be learnt (response)."""

from __future__ import annotations

from dataclasses import dataclass

# What a template may have to say about an example, counted in `encode.Census` and said in its log lines.
TURN_APART = "turn_apart"
SPECIAL_TEXT = "special_text"

# What finding spans may have to say.
NORMALISED = "normalised"
REWRITTEN = "rewritten"


@dataclass(frozen=True)
class Segment:
    """A stretch of text, wholly prompt or wholly response.

    Attributes:
        text: The characters, exactly as they are tokenised.
        scored: Whether a model learns to write it.
        marker: How many characters at the end of a prompt a cut must keep ("### Response:", an assistant's header).
        special: The text was rendered by a chat template: names of special tokens in it are those tokens, and it is
            tokenised in one piece with its neighbours. Otherwise they are plain text, and it is tokenised apart.
        words: What a response says without what a chat template wrote around it; None is the whole text.
    """

    text: str
    scored: bool
    marker: int = 0
    special: bool = False
    words: str | None = None


@dataclass(frozen=True)
class Example:
    """One training example.

    Attributes:
        segments: In order; a conversation has several prompts and responses.
        origin: Where it came from, "train.jsonl:17".
        references: Acceptable answers to the last prompt; the first is the one that is trained on.
        closed: The last segment ends with the template's own end of turn; otherwise the end-of-text token is appended.
        remarks: What is worth counting about it: `TURN_APART`, `SPECIAL_TEXT`.
    """

    segments: tuple[Segment, ...]
    origin: str
    references: tuple[str, ...] = ()
    closed: bool = False
    remarks: tuple[str, ...] = ()
