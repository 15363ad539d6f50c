"""The size and hash by which bytes are recognised, and the mistake of finding other bytes."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import xxhash

from stillhouse.mistakes import Mistake

BLOCK = 1 << 18  # bytes; stays in the processor's cache between reading and hashing


class Absent(Mistake):
    """There is no such file or folder."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), "does not exist")


class Corrupt(Mistake):
    """A file is not what was written: other bytes, missing, or one too many."""

    def __init__(self, path: Path, wrong: str) -> None:
        super().__init__(str(path), f"corrupt: {wrong}", "delete it and make it again")


class Digest(NamedTuple):
    """What bytes are recognised by.

    Attributes:
        size: bytes.
        xxh3: XXH3-64 in 16 hexadecimal digits; against accidents, not against forgers.
    """

    size: int
    xxh3: str

    def __str__(self) -> str:
        return f"{self.size} bytes xxh3 {self.xxh3}"


def of_bytes(data: bytes) -> Digest:
    """The digest of bytes in memory."""
    return Digest(len(data), xxhash.xxh3_64_hexdigest(data))


def of_descriptor(descriptor: int) -> Digest:
    """The digest of an open file, from its beginning."""
    hasher, block, size = xxhash.xxh3_64(), memoryview(bytearray(BLOCK)), 0
    while count := os.preadv(descriptor, [block], size):
        hasher.update(block[:count])
        size += count
    return Digest(size, hasher.hexdigest())


def of_file(path: Path) -> Digest:
    """The digest of a file.

    Raises:
        OSError: it cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return of_descriptor(descriptor)
    finally:
        os.close(descriptor)


def check(path: Path, found: Digest, expected: Collection[Digest]) -> None:
    """Raise Corrupt where `found` at `path` is none of `expected` (the first of which is the newest)."""
    if found not in expected:
        raise Corrupt(path, f"expected {next(iter(expected))}, found {found}")
