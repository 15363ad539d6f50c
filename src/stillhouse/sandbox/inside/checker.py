"""The process that runs a problem's tests: the candidate's functions are calls to another sandbox, the verdict its own.

The candidate's code is never loaded here, and the line on which the verdict leaves is open nowhere else.
"""

from __future__ import annotations

import builtins
import json
import os
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import plain


class Stopped(BaseException):
    """The candidate will answer no more; no test may catch it as an error that it expects."""


class Line:
    """The calls to the worker, and what was wrong with its answers, if anything was."""

    def __init__(self, answers: int, calls: int) -> None:
        self.answers, self.calls = answers, calls
        self.number = 0
        self.wrong: tuple[str, str] | None = None
        self.raised: Exception | None = None

    def call(self, name: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """The value of the candidate's function, or its exception."""
        self.number += 1
        # What a test passes and cannot be passed is the test's, not the candidate's: Unplain goes through.
        content = [self.number, name, plain.encode(arguments, opaque=False), plain.encode(named, opaque=False)]
        try:
            plain.send(self.calls, content)
        except OSError:
            self.stop("ended", "")
        return self.answer()

    def answer(self) -> Any:
        """The answer to the call made last."""
        try:
            found = plain.receive(self.answers)
            match found:
                case [int(number), "value", value] if number == self.number:
                    return plain.decode(value)
                case [int(number), "raised", str(kind), str(text)] if number == self.number:
                    known = getattr(builtins, kind, Exception)
                    if isinstance(known, type) and not issubclass(known, Exception):
                        self.stop("ended", f"{kind}: {text}")
                    self.raised = plain.exception(kind, text)
                    raise self.raised
                case [int(number), "unplain", str(text)] if number == self.number:
                    self.stop("protocol", text)
                case [int(number), "memory"] if number == self.number:
                    self.stop("memory", "")
        except plain.Gone:
            self.stop("ended", "")
        except plain.Unplain as error:
            self.stop("protocol", str(error))
        self.stop("protocol", "an answer that is none")

    def stop(self, verdict: str, detail: str) -> Any:
        """Note what was wrong for good, and leave the tests."""
        self.wrong = self.wrong or (verdict, detail)
        raise Stopped

    def function(self, name: str) -> Callable[..., Any]:
        """The candidate's function of that name, as tests call it."""
        return lambda *arguments, **named: self.call(name, arguments, named)


def main(folder: str) -> None:
    """Run `folder`/checks.py with the functions of `folder`/names.json; a line on standard error says how it went."""
    answers, calls, said = os.dup(0), os.dup(1), os.dup(2)
    plain.silence()
    verdict, detail = judge(Line(answers, calls), folder)
    os.write(said, json.dumps({"verdict": verdict, "detail": detail[:500]}).encode() + b"\n")


def judge(line: Line, folder: str) -> tuple[str, str]:
    """The verdict of the tests in `folder`, and what there is to say about it."""
    names = json.loads(Path(folder, "names.json").read_text(encoding="utf-8"))
    functions = {name: line.function(function) for name, function in names.items()}
    found = ("passed", "")
    try:
        line.answer()  # of the loading
        runpy.run_path(f"{folder}/checks.py", init_globals=functions)
    except Stopped:
        pass
    except plain.Unplain as error:
        found = ("broken", f"the tests pass {error}")
    except AssertionError as error:
        found = ("error" if error is line.raised else "failed", f"AssertionError: {error}")
    except BaseException as error:  # noqa: BLE001  no way out of the tests is a pass
        found = ("error", f"{type(error).__name__}: {error}")
    if line.wrong is None and found[0] == "passed" and line.number == 0:
        return "broken", "the tests never call the candidate"
    return line.wrong or found
