"""What a user got wrong, said in one line; and the nearest right name for a wrong one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LONGEST_LINE = 200
LONGEST_PLACE = 60


class Mistake(Exception):
    """A user's mistake: one line naming the file, line or key, what was wrong, and the mend.

    The command line prints it and exits with code 2; no traceback is shown.
    """

    def __init__(self, where: str, wrong: str, mend: str = "") -> None:
        self.where, self.wrong, self.mend = where, wrong, mend
        super().__init__(where, wrong, mend)

    def __str__(self) -> str:
        line = self._line(self.where)
        if len(line) > LONGEST_LINE and len(self.where) > LONGEST_PLACE:
            line = self._line(f"...{self.where[3 - LONGEST_PLACE :]}")  # the end of a long path says more
        return shorten(line, LONGEST_LINE)

    def _line(self, where: str) -> str:
        parts = (where, self.wrong) if where else (self.wrong,)
        line = ": ".join(parts) + (f"; {self.mend}" if self.mend else "")
        return " ".join(line.split())


def shorten(text: str, limit: int) -> str:
    """`text` cut in its middle to at most `limit` characters: both ends of an error matter."""
    if len(text) <= limit:
        return text
    keep = limit - 3
    return f"{text[: keep - keep // 2]}...{text[len(text) - keep // 2 :]}"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The name in `known` that `name` was most likely meant to be, or None where nothing is near."""
    by_folded = {_fold(candidate): candidate for candidate in known}
    found = difflib.get_close_matches(_fold(name), by_folded, n=1, cutoff=0.5)
    return by_folded[found[0]] if found else None


def unknown_name(where: str, kind: str, name: str, known: Iterable[str], aliases: Iterable[str] = ()) -> Mistake:
    """The mistake of naming a `kind` ("key", "method", ...) that does not exist.

    The mend is the nearest of `known` and `aliases`, or where nothing is near, the list of `known`.
    """
    known = sorted(known)
    guess = nearest(name, [*known, *aliases])
    mend = (
        f"did you mean '{guess}'?" if guess else f"known: {shorten(', '.join(known), 90)}" if known else "it has none"
    )
    return Mistake(where, f"unknown {kind} '{shorten(str(name), 40)}'", mend)


def _fold(name: str) -> str:
    return name.lower().replace("-", "_")
