"""How much a program that nobody trusts may use."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """What one run may use at most.

    Attributes:
        wall_s: seconds by the clock, then everything that the run started is killed.
        cpu_s: whole seconds of processor time, of each process.
        memory_mb: MiB of address space, of each process.
        processes: how many processes the program may be at once; 1 leaves it without fork.
        files_mb: MiB that all of its files may hold together, in memory.
        open_files: open files of each process.
        output_kb: KiB of its standard output and errors that are read before it is killed.
    """

    wall_s: float = 10.0
    cpu_s: int = 10
    memory_mb: int = 1024
    processes: int = 1
    files_mb: int = 16
    open_files: int = 64
    output_kb: int = 256

    def as_record(self) -> dict[str, Any]:
        """As result files name them."""
        return asdict(self)
