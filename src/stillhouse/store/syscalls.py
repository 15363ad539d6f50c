"""The operating-system calls that change a disk; the store changes it through these and through nothing else.

Tests put faults in their place (a crash, a full disk, a short write at the k-th call), so they are called as
`syscalls.fsync(...)`: a name imported from here would escape the faults.
"""

from __future__ import annotations

import os
from pathlib import Path


def create(path: Path) -> int:
    """Open a new file for writing."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)


def open_log(path: Path) -> int:
    """Open a file, made where it is not there, for reading and for writing at its end."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)


def write(descriptor: int, data: memoryview) -> int:
    """Write some of `data`, and say how many bytes."""
    return os.write(descriptor, data)


def truncate(descriptor: int, size: int) -> None:
    """Cut an open file."""
    os.ftruncate(descriptor, size)


def fsync(descriptor: int) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    os.fsync(descriptor)


def rename(source: Path, target: Path) -> None:
    """Give `source` the name `target`, in one step; a file or an empty folder of that name is replaced."""
    source.replace(target)


def make_folder(path: Path) -> None:
    """Make one folder."""
    path.mkdir()


def unlink(path: Path) -> None:
    """Remove a file."""
    path.unlink()


def remove_empty(path: Path) -> None:
    """Remove an empty folder."""
    path.rmdir()
