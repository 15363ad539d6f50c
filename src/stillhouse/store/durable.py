"""What writing files and writing folders share: temporary names, fsync, locks, cleaning, and errors in one line.

A temporary is `.stillhouse-<host>-<pid>-<random>-<name>`, beside what it will become. One that no living process owns
was left by a crash, and the next write into its folder removes it.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import secrets
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import xxhash

from stillhouse.mistakes import Mistake
from stillhouse.store import syscalls
from stillhouse.store.digests import Digest, of_descriptor

logger = logging.getLogger(__name__)

_HOST = xxhash.xxh3_64_hexdigest(socket.gethostname().encode())[:8]
_TEMPORARY = re.compile(r"\.stillhouse-(?P<host>[0-9a-f]{8})-(?P<pid>[0-9]{1,9})-[0-9a-f]{16}-")
_NAME_KEPT = 60  # characters of the end of a name: its suffix tells writers the format, and 255 bytes hold it
_STALE = 24 * 3600  # seconds; whether a process of another host lives cannot be asked
_live: set[Path] = set()

_MENDS = {
    errno.ENOSPC: "free some space on the disk",
    errno.EDQUOT: "free some space in your quota",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.EROFS: "choose a folder that you may write to",
    errno.EIO: "check the disk",
}
# What a disk does to whoever writes on it, as against a mistake inside the caller's own code.
_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG}
_TORCH_ERROR = re.compile(r"inline_container\.cc|PytorchStreamWriter|iostream error")  # torch.save, whatever happened
_RUST_ERROR = re.compile(r"\(os error ([0-9]+)\)")  # how safetensors and tokenizers say it


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Yield a free temporary name beside `path`, for a file or a folder; nothing of that name is left after a failure.

    Raises:
        Mistake: the disk refused (full, broken, read-only), whoever was writing.
    """
    with naming(path):
        make_folders(path.parent)
        clean(path.parent)
    temporary = new_temporary(path)
    _live.add(temporary)
    try:
        with blaming(path, temporary):
            yield temporary
    except BaseException:
        _live.discard(temporary)
        with suppress(OSError):
            clean(path.parent)
        raise
    finally:
        _live.discard(temporary)


@contextmanager
def blaming(path: Path, temporary: Path) -> Iterator[None]:
    """Turn what a full or broken disk does to any library that writes `temporary` into one line about `path`.

    Raises:
        Mistake: the disk refused; of a folder it names the file in it.
    """
    try:
        yield
    except Exception as error:
        if number := _disk_trouble(error, path):
            raise _refused(_being_written(path, temporary), number) from error
        raise


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn an OSError into the Mistake that `path` cannot be written."""
    try:
        yield
    except OSError as error:
        raise _refused(path, error.errno or errno.EIO) from error


def under_construction(path: Path) -> bool:
    """Whether `path` lies in a folder that this process is writing, whose manifest will cover it."""
    return not _live.isdisjoint(path.parents)


def new_temporary(path: Path) -> Path:
    """A name beside `path` that nobody else uses."""
    return path.with_name(f".stillhouse-{_HOST}-{os.getpid()}-{secrets.token_hex(8)}-{path.name[-_NAME_KEPT:]}")


def clean(folder: Path) -> None:
    """Remove what crashed processes left in `folder`."""
    for path in folder.iterdir():
        if (match := _TEMPORARY.match(path.name)) and not _owned(path, match["host"], int(match["pid"])):
            remove_or_say(path)


def _owned(path: Path, host: str, pid: int) -> bool:
    if host != _HOST:
        try:
            return time.time() - path.lstat().st_mtime < _STALE
        except FileNotFoundError:
            return True
    if pid == os.getpid():  # in a container, the process that crashed had the same number
        return path in _live
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def remove_or_say(path: Path) -> None:
    """Remove `path` and all in it; a failure is logged, since it takes nothing from what was saved."""
    try:
        remove(path)
    except OSError as error:
        logger.warning("%s is left over and could not be removed: %s", path, error.strerror)


def remove(path: Path) -> None:
    """Remove a file, or a folder and all in it; what is not there is removed already.

    Raises:
        OSError: a part of it cannot be removed.
    """
    with suppress(FileNotFoundError):
        if path.is_symlink() or not path.is_dir():
            syscalls.unlink(path)
            return
        for child in path.iterdir():
            remove(child)
        syscalls.remove_empty(path)


def write_new(path: Path, data: bytes) -> None:
    """Write and fsync a file that is not there yet.

    Raises:
        OSError: the disk refused.
    """
    descriptor = syscalls.create(path)
    try:
        write_all(descriptor, data)
        syscalls.fsync(descriptor)
    finally:
        os.close(descriptor)


def settle(path: Path) -> Digest:
    """Fsync a file that another library wrote, and take its digest while the disk is busy with that.

    Raises:
        OSError: the disk refused.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with ThreadPoolExecutor(1) as beside:
            flushing = beside.submit(syscalls.fsync, descriptor)
            digest = of_descriptor(descriptor)
            flushing.result()
        return digest
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of `data`: one call takes as much as it likes, and never more than 2 GiB."""
    rest = memoryview(data)
    while rest:
        rest = rest[syscalls.write(descriptor, rest) :]


def make_folders(path: Path) -> None:
    """Make `path` and the folders above it that are missing, each known to the disk."""
    if path == path.parent or path.is_dir():
        return
    make_folders(path.parent)
    with suppress(FileExistsError):  # another process was faster; a file of that name is found out by who uses it
        syscalls.make_folder(path)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    with opened_folder(path) as descriptor:
        syscalls.fsync(descriptor)


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Yield a descriptor of `folder`, held alone: of two processes that rename in it, one waits for the other.

    The lock ends with its process, however that ends. Some network file systems refuse to lock a folder; there,
    nothing orders two processes that write the same artifact at the same time.
    """
    with opened_folder(folder) as descriptor:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor


@contextmanager
def opened_folder(path: Path) -> Iterator[int]:
    """Yield a descriptor of a folder."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def unreadable(path: Path, error: OSError) -> Mistake:
    """The mistake of asking for a file that cannot be read."""
    return Mistake(str(path), f"cannot be read: {error.strerror}", _MENDS.get(error.errno or 0, ""))


def _refused(path: Path, number: int) -> Mistake:
    return Mistake(str(path), f"cannot be written: {os.strerror(number)}", _MENDS.get(number, ""))


def _being_written(path: Path, temporary: Path) -> Path:
    """`path`, or the file in the folder `path` that a library was at: the one changed last."""
    with suppress(OSError):
        files = [file for file in temporary.rglob("*") if file.is_file()]
        if files:
            return path / max(files, key=lambda file: file.stat().st_mtime_ns).relative_to(temporary)
    return path


def _disk_trouble(error: Exception, path: Path) -> int | None:
    """The errno of an error that is the disk's doing, also where a Rust library says it, or torch does not."""
    if isinstance(error, Mistake):
        return None
    if isinstance(error, OSError):
        number = error.errno
    elif _TORCH_ERROR.search(str(error)):
        return _asked(path)
    else:
        found = _RUST_ERROR.search(str(error))
        number = int(found[1]) if found else None
    return number if number in _OF_THE_DISK else None


def _asked(path: Path) -> int:
    """What the disk says to a few bytes beside `path`; EIO where it takes them."""
    tried = new_temporary(path)
    try:
        write_new(tried, bytes(1 << 20))
    except OSError as error:
        return error.errno or errno.EIO
    finally:
        with suppress(OSError):
            syscalls.unlink(tried)
    return errno.EIO
