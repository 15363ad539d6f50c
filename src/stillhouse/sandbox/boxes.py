"""Programs in sandboxes, seen from outside: started, fed, waited for, killed; and how each ended."""

from __future__ import annotations

import atexit
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Literal

from stillhouse.sandbox.limits import Limits
from stillhouse.sandbox.room import python_room
from stillhouse.sandbox.system_calls import seccomp_filter

Kind = Literal["namespaces", "bubblewrap", "none"]
KINDS: tuple[Kind, ...] = ("namespaces", "bubblewrap", "none")  # the strictest first
_PROGRAM = Path(__file__).with_name("launch.py")
_INSIDE = Path(__file__).with_name("inside")
_GRACE_S = 10.0  # beyond its wall clock, for a keeper that is itself stuck
# All of a program's environment. One thread for each library that would start as many as there are cores.
_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "HOME": "/desk", "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"}


class Unavailable(Exception):
    """A sandbox of this kind cannot be made here; the text says why."""


@dataclass(frozen=True)
class Ended:
    """How a program ended.

    Attributes:
        exit: its exit code, 0 where a signal ended it.
        signal: the signal that ended it, or 0.
        timeout: it was killed when its time by the clock was up.
        flooded: it was killed because it wrote more than it may.
        output: its standard output and errors, as far as they may go.
        cpu_s: processor time, in seconds.
        peak_mb: peak of memory in use, in MiB.
    """

    exit: int
    signal: int
    timeout: bool
    flooded: bool
    output: bytes
    cpu_s: float
    peak_mb: float


@dataclass
class Box:
    """A program in its sandbox, running.

    `lifeline` is what it hangs by: once it is closed, here or because this process died, the program is killed.
    """

    lifeline: int
    status: int

    def kill(self) -> None:
        """End the program and all that it started."""
        if self.lifeline >= 0:
            os.close(self.lifeline)
            self.lifeline = -1

    def wait(self, wall_s: float) -> Ended:
        """How it ended, `wall_s` and some seconds from now at the latest.

        Raises:
            Unavailable: the sandbox could not be made.
        """
        lines = [json.loads(line) for line in self._read(wall_s + _GRACE_S).splitlines()]
        if errors := [line["error"] for line in lines if "error" in line]:
            raise Unavailable(errors[0])
        if not lines:
            raise Unavailable("its keeper was killed")
        return Ended(**lines[-1], flooded=False, output=b"")

    def close(self) -> None:
        """Let go of everything; the program is dead afterwards."""
        self.kill()
        self._read(_GRACE_S)
        os.close(self.status)

    def _read(self, seconds: float) -> bytes:
        text, deadline = b"", time.monotonic() + seconds
        while select.select([self.status], [], [], max(0.0, deadline - time.monotonic()))[0]:
            if not (more := os.read(self.status, 65536)):
                break
            text += more
        return text


class _Launcher:
    """The process that forks keepers: one for this process, started when first needed."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.process: subprocess.Popen[bytes] | None = None
        self.control: socket.socket | None = None
        self.owner = 0

    def order(self, files: Sequence[int]) -> None:
        """Hand the open files of a job over."""
        with self.lock:
            if (
                self.control is None
                or self.owner != os.getpid()
                or self.process is None
                or self.process.poll() is not None
            ):
                self.start()
            assert self.control is not None
            socket.send_fds(self.control, [b"j"], files)

    def start(self) -> None:
        """Start it anew, with nothing of this process but one socket."""
        if self.control is not None:  # of one that died, or of the process that this one was forked from
            self.control.close()
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-I", "-S", "-B", str(_PROGRAM), str(theirs.fileno())]
        with theirs:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(),), env={}, cwd="/", start_new_session=True
            )
        self.owner = os.getpid()

    def stop(self) -> None:
        """End it, where this process has one."""
        if self.control is not None and self.process is not None and self.owner == os.getpid():
            self.control.close()
            self.process.wait()
            self.control = self.process = None


_launcher = _Launcher()
atexit.register(_launcher.stop)


@contextmanager
def started(
    kind: Kind,
    call: str,
    folder: Path,
    limits: Limits,
    *,
    stdin: int,
    stdout: int,
    stderr: int,
    shown: Mapping[str, str] | None = None,
) -> Iterator[Box]:
    """Run a program in a sandbox of `kind`: `call` of `inside`, or `folder`/program.py where it is "".

    The program sees `folder` as /program, and what `shown` maps paths inside to, read-only (in "none": where they are).
    The open files are its standard ones; it gets no others.

    Raises:
        Unavailable: the sandbox could not be made (or from `Box.wait`).
    """
    with tempfile.TemporaryDirectory(prefix="stillhouse-room-") as place:
        spec = _specification(kind, call, folder, limits, place)
        spec["binds"] += [(source, target) for target, source in (shown or {}).items()]
        if kind == "bubblewrap":
            spec["argv"] = _bubblewrap(spec, limits)
        theirs, lifeline = os.pipe()
        status, their_status = os.pipe()
        box = Box(lifeline, status)
        try:
            try:
                _launcher.order([theirs, their_status, stdin, stdout, stderr])
            finally:
                os.close(theirs)
                os.close(their_status)
            with suppress(BrokenPipeError):  # a keeper that is dead already says so by its status
                os.write(lifeline, json.dumps(spec).encode() + b"\n")
            yield box
        finally:
            box.close()


def _specification(kind: Kind, call: str, folder: Path, limits: Limits, place: str) -> dict[str, Any]:
    """What the keeper is told."""
    room = python_room()
    program, code = (str(folder), str(_INSIDE.parent)) if kind == "none" else ("/program", "/code")
    start = f"import sys; sys.path.insert(0, {code!r}); from inside.{call} import main; main({program!r})"
    spec = {
        "kind": kind,
        "call": call,
        "argv": [room.python, "-I", "-S", "-B", *(["-c", start] if call else [f"{program}/program.py"])],
        "env": _ENVIRONMENT,
        "limits": limits.as_record(),
        "filter": (seccomp_filter(limits.processes) or b"").hex(),
        "binds": [*((path, path) for path in room.binds), (str(folder), "/program"), (str(_INSIDE), "/code/inside")],
        "hidden": room.hidden,
        "links": room.links,
        "root": place,
        "chdir": place if kind == "none" else "",
        "shared_memory": limits.processes > 1,
    }
    return spec


def _bubblewrap(spec: Mapping[str, Any], limits: Limits) -> list[str]:
    """The command line of bubblewrap for the same room; it reads the filter from open file 3."""
    found = shutil.which("bwrap")
    if found is None:
        raise Unavailable("bubblewrap (bwrap) is not installed")
    if not spec["filter"]:
        raise Unavailable("no seccomp filter for this machine, without which bubblewrap would not limit processes")
    line = [found, "--unshare-all", "--unshare-user", "--die-with-parent", "--new-session", "--clearenv"]
    line += ["--cap-drop", "ALL", "--uid", "65534", "--gid", "65534", "--seccomp", "3"]
    line += [word for name, value in spec["env"].items() for word in ("--setenv", name, value)]
    line += [word for target, text in spec["links"] for word in ("--symlink", text, target)]
    for source, target in spec["binds"]:
        line += ["--dev-bind" if source.startswith("/dev/") else "--ro-bind", source, target]
    line += [word for path in spec["hidden"] for word in ("--tmpfs", path, "--remount-ro", path)]
    # Bubblewrap cannot limit how many files a file system in memory has, so that none may be written there.
    line += ["--hostname", "sandbox", "--dir", "/desk", "--remount-ro", "/", "--chdir", "/desk", "--"]
    return [*line, *spec["argv"]]


def run(
    kind: Kind,
    text: str,
    limits: Limits,
    files: Mapping[str, str] | None = None,
    shown: Mapping[str, str] | None = None,
) -> Ended:
    """Run the Python program `text` in a sandbox of `kind`, with nothing to read, and collect what it prints.

    Beside it, in /program, are `files`; `shown` maps further paths inside to what is shown there, read-only.

    Raises:
        Unavailable: the sandbox could not be made.
    """
    with tempfile.TemporaryDirectory(prefix="stillhouse-program-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        for file, content in {"program.py": text, **(files or {})}.items():
            (folder / file).write_text(content, encoding="utf-8", errors="replace")
        ours, theirs = os.pipe()
        with open(os.devnull, "rb") as nothing:  # noqa: PTH123  a device
            try:
                with started(
                    kind, "", folder, limits, stdin=nothing.fileno(), stdout=theirs, stderr=theirs, shown=shown
                ) as box:
                    os.close(theirs)
                    theirs = -1
                    output, flooded = _collected(box, ours, limits)
                    ended = box.wait(limits.wall_s)
            finally:
                os.close(ours)
                if theirs >= 0:
                    os.close(theirs)
    return Ended(**(vars(ended) | {"output": output, "flooded": flooded}))


def _collected(box: Box, readable: int, limits: Limits) -> tuple[bytes, bool]:
    """What comes out of a pipe, and whether it was more than it may be, upon which the program is killed."""
    most, output = limits.output_kb << 10, b""
    deadline = time.monotonic() + limits.wall_s + _GRACE_S
    while select.select([readable], [], [], max(0.0, deadline - time.monotonic()))[0]:
        if not (more := os.read(readable, 65536)):
            return output, False
        output += more
        if len(output) > most:
            box.kill()
            return output[:most], True
    box.kill()
    return output, False
