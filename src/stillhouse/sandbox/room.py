"""What of this machine a Python program needs to see: the interpreter, its library, shared libraries; nothing else."""

from __future__ import annotations

import sys
import sysconfig
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")
_FILES = ("/etc/ld.so.cache", "/dev/null", "/dev/urandom")


@dataclass(frozen=True)
class Room:
    """Paths that exist inside, each where it is outside.

    Attributes:
        binds: files and folders to be shown read-only.
        links: symbolic links to be made, and their targets.
        python: the interpreter's executable.
    """

    binds: tuple[str, ...]
    links: tuple[tuple[str, str], ...]
    python: str


@cache
def python_room() -> Room:
    """The room that the interpreter of this process needs: its standard library, nothing of a virtual environment."""
    python = Path(sys.executable).resolve()
    prefixes = [Path(sys.base_prefix) / "lib", Path(sys.base_exec_prefix) / sys.platlibdir]
    base = {"platbase": sys.base_exec_prefix}  # not a virtual environment's, which holds packages alone
    standard = [Path(sysconfig.get_path(name, vars=base)) for name in ("stdlib", "platstdlib")]
    folders = [Path(name) for name in _LIBRARIES]
    links = tuple((str(folder), str(folder.readlink())) for folder in folders if folder.is_symlink())
    wanted = {path for path in [*prefixes, *standard, *folders, *map(Path, _FILES)] if path.exists()}
    wanted = {path for path in wanted if not path.is_symlink()} | {path.resolve() for path in wanted}
    shown = {path for path in wanted if not any(parent in wanted for parent in path.parents)}
    return Room(tuple(sorted(str(path) for path in shown | {python})), links, str(python))
