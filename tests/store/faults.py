"""A disk that fails at the k-th call: every call of the store that changes a disk passes through here."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from stillhouse.store import syscalls

CALLS = ("create", "open_log", "write", "truncate", "fsync", "rename", "make_folder", "unlink", "remove_empty")


class Death(BaseException):
    """The process is gone: nothing it would do in a `finally` reaches the disk any more."""


class Faults:
    """Counts calls, and at the k-th does what `mode` says.

    Modes: "death" (this call and all later ones do nothing), "torn" (the same, after half of a write), "interrupt"
    (control-C, once), an errno (once), "full" (ENOSPC for everything that needs space from then on), "short" (half of
    a write is taken, without an error).

    fsync is only noted, which is fast and lets `lose_power` take what no fsync had made safe.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.trace: list[tuple[str, Any]] = []
        self.k: int | None = None
        self.mode: str | int = "death"
        self.fired: str | None = None
        self.calls = 0
        self._safe: dict[int, int] = {}  # inode -> bytes that a loss of power leaves

    def arm(self, k: int, mode: str | int) -> None:
        """Fail at call `k`, counted from here on; what is on the disk now is safe."""
        self.k, self.mode, self.fired, self.trace = k, mode, None, []
        self._safe = {path.lstat().st_ino: path.lstat().st_size for path in self.root.rglob("*")}

    def disarm(self) -> None:
        """Fail no more, and count no more."""
        self.k, self.calls = None, len(self.trace)

    def step(self) -> None:
        """A moment in the caller's own writing, at which it may die as well."""
        self.call("step", lambda: None)

    def call(self, name: str, real: Callable[..., Any], *arguments: Any) -> Any:
        """Make the call, or fail as armed."""
        here = self.k is not None and len(self.trace) == self.k
        gone = self.fired is not None and self.mode in ("death", "torn")
        if gone and self.k is not None:
            raise Death
        of_folder = name == "fsync" and stat.S_ISDIR(os.fstat(arguments[0]).st_mode)
        self.trace.append(("fsync folder" if of_folder else name, arguments))
        if here:
            self.fired = name
            self._fail(name, real, arguments)
        elif self.k is not None and self.mode == "full" and self.fired and name in ("create", "write", "make_folder"):
            raise OSError(28, os.strerror(28))
        if here and self.mode == "short" and name == "write":
            return real(arguments[0], _half(arguments[1]))
        if name == "fsync":
            self._safe[os.fstat(arguments[0]).st_ino] = os.fstat(arguments[0]).st_size
            return None
        if name == "unlink" and arguments[0].exists():
            self._safe.pop(arguments[0].lstat().st_ino, None)  # another file may get its number
        return real(*arguments)

    def _fail(self, name: str, real: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        if self.mode == "torn" and name == "write":
            real(arguments[0], _half(arguments[1]))
        if self.mode in ("death", "torn"):
            raise Death
        if self.mode == "interrupt":
            raise KeyboardInterrupt
        number = 28 if self.mode == "full" else self.mode
        if isinstance(number, int):
            raise OSError(number, os.strerror(number))

    def lose_power(self) -> None:
        """Cut every file to what it was when it was last fsynced; a new one that never was is empty."""
        for path in self.root.rglob("*"):
            if path.is_file():
                found = path.stat()
                os.truncate(path, min(found.st_size, self._safe.get(found.st_ino, 0)))


def _half(data: memoryview) -> memoryview:
    return data[: (len(data) + 1) // 2]


@contextmanager
def faults_below(root: Path) -> Iterator[Faults]:
    """Put a failing disk under the store."""
    faults = Faults(root)
    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            real = getattr(syscalls, name)
            patch.setattr(syscalls, name, lambda *a, name=name, real=real: faults.call(name, real, *a))
        yield faults
