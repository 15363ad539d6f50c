"""What of this machine a Python program needs to see: the interpreter, its library, shared libraries; nothing else."""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")
_PACKAGES = ("site-packages", "dist-packages", "python*/site-packages", "python*/dist-packages")
_FILES = ("/etc/ld.so.cache", "/dev/null", "/dev/urandom")


@dataclass(frozen=True)
class Room:
    """Paths that exist inside, each where it is outside.

    Attributes:
        binds: files and folders to be shown read-only.
        hidden: folders below those that are to be empty: packages that somebody installed for that interpreter.
        links: symbolic links to be made, and their targets.
        python: the interpreter's executable.
    """

    binds: tuple[str, ...]
    hidden: tuple[str, ...]
    links: tuple[tuple[str, str], ...]
    python: str


@cache
def python_room() -> Room:
    """The room that the interpreter of this process needs: its standard library, no packages."""
    python = Path(sys.executable).resolve()
    prefixes = [Path(sys.base_prefix) / "lib", Path(sys.base_exec_prefix) / sys.platlibdir]
    base = {"platbase": sys.base_exec_prefix}  # not a virtual environment's, which holds packages alone
    standard = [Path(sysconfig.get_path(name, vars=base)) for name in ("stdlib", "platstdlib")]
    folders = [Path(name) for name in _LIBRARIES]
    links = tuple((str(folder), str(folder.readlink())) for folder in folders if folder.is_symlink())
    wanted = {path for path in [*prefixes, *standard, *folders, *map(Path, _FILES)] if path.exists()}
    wanted = {path for path in wanted if not path.is_symlink()} | {path.resolve() for path in wanted}
    shown = {path for path in wanted if not any(parent in wanted for parent in path.parents)}
    hidden = sorted(str(path) for path in _packages(shown))
    return Room(tuple(sorted(str(path) for path in shown | {python})), tuple(hidden), links, str(python))


def _packages(shown: Iterable[Path]) -> set[Path]:
    """Every site-packages and dist-packages of a Python in the folders `shown`, by each path that it is shown at."""
    folders = [path for path in shown if path.is_dir()]
    found = {path.resolve() for folder in folders for pattern in _PACKAGES for path in folder.glob(pattern)}
    return {folder / path.relative_to(folder.resolve()) for path in found for folder in folders
            if path.is_dir() and path.is_relative_to(folder.resolve())}  # fmt: skip
