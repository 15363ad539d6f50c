"""A candidate against the tests of its problem, each in its own sandbox; the tests' process alone says the verdict.

The candidate's process gets arguments and gives values, both as plain data (`inside.plain`). It never sees the tests,
the expected values or the line on which the verdict leaves, and the tests' process never loads the candidate: so there
is no pass mark to print, no frame to look into, no `assert` to patch, and no object that equals everything.
"""

from __future__ import annotations

import json
import os
import select
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL

from stillhouse.sandbox.boxes import Box, Ended, Kind, started
from stillhouse.sandbox.limits import Limits

VERDICTS = ("passed", "failed", "error", "timeout", "memory", "ended", "protocol", "broken")
_LONGEST_VERDICT = 8192


@dataclass(frozen=True)
class Trial:
    """One candidate and the tests of its problem.

    Attributes:
        candidate: a Python module, as a model wrote it.
        checks: a Python program that ends without an exception where the candidate is right.
        names: names that `checks` may call, and the candidate's function behind each.
    """

    candidate: str
    checks: str
    names: Mapping[str, str]


@dataclass(frozen=True)
class Verdict:
    """How a trial went.

    Attributes:
        verdict: "passed"; "failed" an assertion; "error": an exception, in the candidate or over what it returned;
            "timeout"; "memory": more than it may use; "ended": its process was gone before it answered (`os._exit`,
            a crash, a kill); "protocol": what it answered was no data; "broken": the tests are at fault, not the
            candidate.
        detail: the exception's text, or why.
        seconds: by the clock.
    """

    verdict: str
    detail: str
    seconds: float


def judge(kind: Kind, trial: Trial, limits: Limits) -> Verdict:
    """Run a trial in two sandboxes of `kind`.

    Raises:
        Unavailable: the sandboxes could not be made.
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="stillhouse-trial-") as name, ExitStack() as stack:
        folders = [_folder(name, "worker", {"candidate.py": trial.candidate})]
        names = json.dumps(dict(trial.names))
        folders.append(_folder(name, "checker", {"checks.py": trial.checks, "names.json": names}))
        pipes = [os.pipe() for _ in range(3)]
        (asked, asks), (answered, answers), (verdict, says) = pipes
        files = _Files(stack, pipes)
        nothing = os.open(os.devnull, os.O_RDWR)
        stack.callback(os.close, nothing)
        worker = stack.enter_context(
            started(kind, "worker", folders[0], limits, stdin=asked, stdout=answers, stderr=nothing)
        )
        checker = stack.enter_context(
            started(kind, "checker", folders[1], limits, stdin=answered, stdout=asks, stderr=says)
        )
        files.close(asked, asks, answered, answers, says)
        text = _read(verdict, limits.wall_s)
        found, detail = _understood(text)
        late = time.monotonic() - began >= limits.wall_s
        if found is None or found == "ended":
            found, detail = _why([_ended(box) for box in (worker, checker)], late, detail, limits)
    return Verdict(found, detail, round(time.monotonic() - began, 3))


def count(verdicts: Iterable[Verdict]) -> dict[str, int]:
    """How often each verdict was given."""
    counted = Counter(verdict.verdict for verdict in verdicts)
    return {name: counted[name] for name in VERDICTS}


class _Files:
    """Open files that are closed once, however a trial ends."""

    def __init__(self, stack: ExitStack, pipes: Iterable[tuple[int, int]]) -> None:
        self.open = {file for pipe in pipes for file in pipe}
        stack.callback(lambda: self.close(*self.open))

    def close(self, *files: int) -> None:
        for file in files:
            os.close(file)
        self.open -= set(files)


def _folder(parent: str, name: str, texts: Mapping[str, str]) -> Path:
    folder = Path(parent, name)
    folder.mkdir(mode=0o755)
    for file, text in texts.items():
        (folder / file).write_bytes(text.encode("utf-8", "replace"))
    return folder


def _read(line: int, wall_s: float) -> bytes:
    """The checker's words until it closes its line, or until its time is up."""
    text, deadline = b"", time.monotonic() + wall_s
    while len(text) < _LONGEST_VERDICT and select.select([line], [], [], max(0.0, deadline - time.monotonic()))[0]:
        if not (more := os.read(line, _LONGEST_VERDICT)):
            break
        text += more
    return text


def _understood(text: bytes) -> tuple[str | None, str]:
    """The verdict in the checker's one line, or None where it is no verdict."""
    try:
        found = json.loads(text)
        verdict, detail = found["verdict"], str(found["detail"])
    except (ValueError, TypeError, KeyError):
        return None, text.decode(errors="replace").strip()[-200:]
    return (verdict, detail) if verdict in VERDICTS else (None, "")


def _ended(box: Box) -> Ended:
    """How a box ended, by itself or now; one that had ended already is not said to have been killed."""
    box.kill()
    return box.wait(0.0)


def _why(ended: Sequence[Ended], late: bool, detail: str, limits: Limits) -> tuple[str, str]:
    """The verdict where the worker or the checker went without one."""
    # The kernel kills by ticks that it has counted; what it says of the time afterwards is finer, and may be less.
    spent = (one.signal == SIGKILL and one.cpu_s >= limits.cpu_s / 2 for one in ended)
    if late or any(one.timeout for one in ended) or any(spent):
        return "timeout", f"after {limits.wall_s} s by the clock or {limits.cpu_s} s of processor time"
    worker = ended[0]
    return "ended", detail or (f"signal {worker.signal}" if worker.signal else f"exit code {worker.exit}")
