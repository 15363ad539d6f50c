"""Folders: every file in `manifest.json` inside, and one rename.

No call of POSIX exchanges two folders, so a folder that is replaced steps aside under a name that `find_folder` knows:

    1. the new files and their manifest, in a temporary folder: written, hashed, fsynced
    2. `<name>` becomes `<name>.previous`; fsync of the folder above
    3. the temporary becomes `<name>`; fsync of the folder above
    4. `<name>.previous` becomes a temporary, and is removed

A crash between 2 and 3 leaves the old version as `<name>.previous`, whole; one during 4 leaves the new version whole
beside the old one. The next write puts the one back and removes the other before it begins. A `<name>` that no longer
verifies never pushes out a `<name>.previous`, which may be the only good one: it steps aside as a temporary instead.

With `keep_previous` step 4 waits for the next write: in 2, what was `<name>.previous` until then becomes a temporary
first. So from the second write on there are two whole versions at any moment, and a third one while it is written.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from stillhouse.mistakes import Mistake
from stillhouse.store import durable, syscalls
from stillhouse.store.digests import Absent, Corrupt, Digest, check, of_file
from stillhouse.store.records import MANIFEST, read_manifest, render_manifest

logger = logging.getLogger(__name__)


@contextmanager
def write_folder(path: str | os.PathLike[str], *, keep_previous: bool = False) -> Iterator[Path]:
    """Yield a temporary folder; what was written into it becomes the folder `path`, with a manifest.

    After any failure `path` is what it was.

    Args:
        path: the folder.
        keep_previous: leave the version that it replaces as `<path>.previous`, for `find_folder` to fall back on.

    Raises:
        Mistake: the disk refused, or `path` holds files that no manifest covers and that are not ours to replace.
    """
    path = Path(path)
    with durable.writing(path) as temporary:
        with durable.naming(path):
            with durable.locked(path.parent) as above:
                sound = _recover(path, above, keep_previous)
            durable.clean(path.parent)
            syscalls.make_folder(temporary)
        yield temporary
        with durable.naming(path):
            _seal(temporary)
            with durable.locked(path.parent) as above:
                _take_place(temporary, path, above, sound)
                if not keep_previous:
                    _doom(previous_of(path))
    with durable.naming(path):
        durable.clean(path.parent)


def verify_folder(path: str | os.PathLike[str]) -> None:
    """Check every file of a folder against its manifest, and that there is no other (hidden ones aside).

    Raises:
        Absent: there is no such folder.
        Corrupt: a file is missing, changed, or one too many; or there is no manifest.
    """
    path = Path(path)
    try:
        if not path.is_dir():
            raise Absent(path)
        files = read_manifest(path)
        if files is None:
            raise Corrupt(path, f"expected {MANIFEST}, found none: unfinished, or not written by stillhouse")
        present = {name for name in _names(path) if name not in files and name != MANIFEST}
    except OSError as error:
        raise Corrupt(path, f"cannot be read: {error.strerror}") from error
    for name, expected in files.items():
        _verify(path / name, expected)
    # No loader reads hidden files, and file browsers and network file systems leave them.
    if extra := sorted(name for name in present if "/." not in f"/{name}"):
        raise Corrupt(path / extra[0], f"expected no file of this name by {MANIFEST}, found one")


def find_folder(path: str | os.PathLike[str], tell: Callable[[str], None] = logger.warning) -> Path:
    """The newest version of a folder that verifies: `path` itself, or `<path>.previous`.

    Args:
        path: the folder.
        tell: hears one line where it is the version before, with what is wrong with the newer one.

    Raises:
        Absent: there is neither.
        Corrupt: what there is does not verify.
    """
    path = Path(path)
    wrong: Corrupt | None = None
    for version in (path, previous_of(path), path):  # again, since a writer may have finished between two looks
        try:
            verify_folder(version)
        except Absent:
            continue
        except Corrupt as error:
            wrong = wrong or error
            continue
        if version != path:
            what = f"{wrong.where} is {wrong.wrong}" if wrong else f"{path} is missing"
            tell(f"using {version}, the version before: {what}")
        return version
    raise wrong or Absent(path)


def drop_previous(path: str | os.PathLike[str]) -> None:
    """Remove the version before that `keep_previous` left, if `path` verifies: it is needed no more.

    Raises:
        Mistake: the disk refused.
    """
    path = Path(path)
    with durable.naming(path):
        with durable.locked(path.parent) as above:
            _recover(path, above, keep_previous=False)
        durable.clean(path.parent)


def remove_folder(path: str | os.PathLike[str]) -> None:
    """Remove a folder of any kind and its earlier version, in one step: a crash leaves all of it, or none by its name.

    Raises:
        Absent: there is no such folder.
        Mistake: the disk refused.
    """
    path = Path(path)
    if not path.is_dir():
        raise Absent(path)
    with durable.naming(path):
        try:
            with durable.locked(path.parent) as above:
                if (previous_of(path) / MANIFEST).exists():
                    _doom(previous_of(path))
                syscalls.rename(path, durable.new_temporary(path))
                syscalls.fsync(above)
        finally:
            durable.clean(path.parent)


def previous_of(path: Path) -> Path:
    """The name of a folder while, and if, another one takes its place."""
    return path.with_name(f"{path.name}.previous")


def _refuse_foreign(path: Path) -> None:
    if path.is_dir() and not (path / MANIFEST).exists() and any(path.iterdir()):
        raise Mistake(str(path), f"holds files without a {MANIFEST}, not ours to replace", "give another folder")


def _recover(path: Path, above: int, keep_previous: bool) -> bool:
    """End what a crashed write left undone (see the steps above); and whether `path` may become the version before."""
    previous = previous_of(path)
    if not (keep_previous and (previous / MANIFEST).exists()):  # else it is ours that lost its manifest
        _refuse_foreign(path)
    _refuse_foreign(previous)
    if not previous.exists():
        return True
    if not path.exists():
        syscalls.rename(previous, path)
        syscalls.fsync(above)
    elif not _verifies(path):
        return False
    elif not keep_previous:
        _doom(previous)
    return True


def _seal(folder: Path) -> None:
    """Hash and fsync every file, write the manifest, and fsync every folder."""
    files = {name: durable.settle(folder / name) for name in _names(folder)}
    durable.write_new(folder / MANIFEST, render_manifest(files))
    above = {folder / inner for name in files for inner in Path(name).parents}
    for inner in sorted(above | {folder}, reverse=True):
        durable.sync_folder(inner)


def _take_place(temporary: Path, path: Path, above: int, sound: bool) -> None:
    """Put `temporary` at `path`, which steps aside; if that fails, everything comes back to where it was."""
    moved: list[tuple[Path, Path]] = []

    def step_aside(source: Path, target: Path) -> None:
        syscalls.rename(source, target)
        moved.append((source, target))

    try:
        if path.is_dir() and any(path.iterdir()):
            aside = previous_of(path)
            if (aside / MANIFEST).exists():
                if sound:  # what was before the version before
                    step_aside(aside, durable.new_temporary(path))
                else:
                    aside = durable.new_temporary(path)
            step_aside(path, aside)
            syscalls.fsync(above)
        syscalls.rename(temporary, path)
    except BaseException:
        for source, target in reversed(moved):
            with suppress(OSError):
                syscalls.rename(target, source)
        raise
    syscalls.fsync(above)


def _doom(previous: Path) -> None:
    """Make a temporary of what is to be removed, so that its removal never meets another writer's `<name>.previous`."""
    try:
        if previous.exists():
            syscalls.rename(previous, durable.new_temporary(previous))
    except OSError as error:
        logger.warning("%s is left over: %s", previous, error.strerror)


def _verifies(path: Path) -> bool:
    try:
        verify_folder(path)
    except Corrupt:
        return False
    return True


def _verify(path: Path, expected: Digest) -> None:
    try:
        found = of_file(path)
    except FileNotFoundError:
        raise Corrupt(path, f"expected {expected}, found no file") from None
    except OSError as error:
        raise Corrupt(path, f"expected {expected}, found {error.strerror}") from error
    check(path, found, [expected])


def _names(folder: Path) -> list[str]:
    """Every file below `folder`, by its path from there; a link to a folder counts as a file, and cannot be read."""
    found: list[str] = []
    for child in folder.iterdir():
        if child.is_dir() and not child.is_symlink():
            found.extend(f"{child.name}/{name}" for name in _names(child))
        else:
            found.append(child.name)
    return sorted(found)
