"""Logs: text files that grow by whole lines while a run goes on, for people and for plots.

A log has no hash, since that would change with every line. A crash can tear its last line only: readers leave a line
without its end out, and the next line is written in its place.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from stillhouse.mistakes import Mistake
from stillhouse.store import durable, syscalls
from stillhouse.store.digests import Absent
from stillhouse.store.records import sidecar_of

logger = logging.getLogger(__name__)


def append_line(path: str | os.PathLike[str], text: str) -> None:
    """Add `text` and a line end to a log, which is begun where it is not there; on the disk when this returns.

    Raises:
        Mistake: the disk refused; the log is what it was.
    """
    path = Path(path)
    if sidecar_of(path).exists():
        raise ValueError(f"{path} has a hash, so it is not a log")
    data = text.encode("utf-8", "backslashreplace") + b"\n"  # no text that a model wrote may stop a run here
    with durable.naming(path):
        durable.make_folders(path.parent)
        is_new = not path.exists()
        descriptor = syscalls.open_log(path)
        try:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            _append(descriptor, data, path)
        finally:
            os.close(descriptor)
        if is_new:
            durable.sync_folder(path.parent)


def read_lines(path: str | os.PathLike[str]) -> list[str]:
    """The whole lines of a log, without their ends; a torn last line is left out, with a warning.

    Raises:
        Absent: there is no such file.
        Mistake: it cannot be read, or is not UTF-8.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise Absent(path) from None
    except OSError as error:
        raise durable.unreadable(path, error) from error
    *lines, torn = data.split(b"\n")
    if torn:
        logger.warning("%s: its last line, %d bytes, is torn and was left out", path, len(torn))
    try:
        return [line.decode() for line in lines]
    except UnicodeDecodeError:
        number = next(number for number, line in enumerate(lines, 1) if not _is_text(line))
        raise Mistake(f"{path}:{number}", "is not UTF-8", "remove the line") from None


def rewrite_lines(path: str | os.PathLike[str], lines: Iterable[str]) -> None:
    """Replace a log by `lines`, whole or not at all: how a resumed run drops what came after its checkpoint.

    Raises:
        Mistake: the disk refused; the log is what it was.
    """
    path = Path(path)
    data = "".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace")
    with durable.writing(path) as temporary, durable.naming(path):
        durable.write_new(temporary, data)
        syscalls.rename(temporary, path)
        durable.sync_folder(path.parent)


def _append(descriptor: int, data: bytes, path: Path) -> None:
    size = os.fstat(descriptor).st_size
    whole = _end_of_last_line(descriptor, size)
    if whole < size:
        logger.warning("%s: its last line, %d bytes, was torn by a crash and is replaced", path, size - whole)
        syscalls.truncate(descriptor, whole)
    try:
        durable.write_all(descriptor, data)
    except OSError:
        with suppress(OSError):
            syscalls.truncate(descriptor, whole)
        raise
    syscalls.fsync(descriptor)


def _end_of_last_line(descriptor: int, size: int) -> int:
    """The number of bytes up to and with the last line end among the first `size`."""
    while size:
        begin = max(0, size - 4096)
        if found := os.pread(descriptor, size - begin, begin).rfind(b"\n") + 1:
            return begin + found
        size = begin
    return 0


def _is_text(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True
