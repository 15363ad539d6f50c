"""Single files: `<name>` and, beside it, `<name>.xxh3` with the hashes that it may have.

Two renames cannot be one step, so the sidecar goes first and, while the file is replaced, vouches for both versions:

    1. the new bytes, under a temporary name: written, fsynced, hashed
    2. the sidecar becomes {new, old}; fsync of the folder
    3. the temporary becomes `<name>`; fsync of the folder

A crash before 2 leaves the old pair; between 2 and 3 the old file, which the sidecar still knows; after 3 the new file,
which it knows already. So nothing whole is ever called corrupt, and no new file is ever without its hash. The old hash
stays until the next write and costs nothing: what it lets pass is the earlier version, whole. "Old" is the hash of
the bytes that are replaced, taken then, and only if they still were what their own sidecar says (or had none).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stillhouse.mistakes import Mistake
from stillhouse.store import durable, syscalls
from stillhouse.store.digests import Absent, Corrupt, Digest, check, of_bytes, of_file
from stillhouse.store.records import dumps, read_manifest, read_sidecar, render_sidecar, sidecar_of


@contextmanager
def write_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path with the suffix of `path`; what was written there becomes `path` with its hash.

    After any failure `path` is what it was. Inside a folder that `write_folder` yields, the file is written in place:
    that folder is whole or not at all.

    Raises:
        Mistake: the disk refused.
    """
    path = Path(path)
    if durable.under_construction(path):
        yield path
        return
    with durable.writing(path) as temporary:
        yield temporary
        with durable.naming(path):
            digest = durable.settle(temporary)
            with durable.locked(path.parent) as folder:
                _write_sidecar(path, [digest, *_vouched(path)])
                syscalls.fsync(folder)
                syscalls.rename(temporary, path)
                syscalls.fsync(folder)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` as the file `path`, as `write_file` does."""
    with write_file(path) as temporary, durable.naming(Path(path)):
        durable.write_new(temporary, data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` in UTF-8, as `write_file` does.

    Raises:
        Mistake: the disk refused, or the text has half of a surrogate pair.
    """
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        raise Mistake(str(path), f"cannot be written: character {error.start} is half of a surrogate pair") from None
    write_bytes(path, data)


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write `content` as indented JSON, as `write_file` does; NaN and infinities are a ValueError."""
    write_bytes(path, dumps(content, indent=2) + b"\n")


def write_jsonl(path: str | os.PathLike[str], rows: Iterable[Any]) -> None:
    """Write one line of JSON a row, as `write_file` does; NaN and infinities are a ValueError."""
    write_bytes(path, b"".join(dumps(row) + b"\n" for row in rows))


def read_bytes(path: str | os.PathLike[str], *, require_hash: bool = True) -> bytes:
    """The bytes of a file, checked against its sidecar or against the manifest of the folder that it is in.

    Args:
        require_hash: refuse a file that has no hash. Where False, for what others wrote, one that has a hash is
            checked all the same.

    Raises:
        Absent: there is no such file.
        Corrupt: its bytes are not those that were written.
        Mistake: it cannot be read, or has no hash.
    """
    path = Path(path)
    with _reading(path):
        data = path.read_bytes()
        _check(path, of_bytes(data), require_hash)
    return data


def read_text(path: str | os.PathLike[str], *, require_hash: bool = True) -> str:
    """The text of a UTF-8 file, line ends as they are, checked as `read_bytes` does."""
    try:
        return read_bytes(path, require_hash=require_hash).decode()
    except UnicodeDecodeError as error:
        raise Mistake(str(path), f"is not UTF-8 at byte {error.start}", "save it as UTF-8") from None


def read_json(path: str | os.PathLike[str], *, require_hash: bool = True) -> Any:
    """The content of a JSON file, checked as `read_bytes` does; broken JSON is a Mistake with its line."""
    return _loads(read_text(path, require_hash=require_hash), str(path), 1)


def read_jsonl(path: str | os.PathLike[str], *, require_hash: bool = True) -> list[Any]:
    """The rows of a JSON Lines file, checked as `read_bytes` does; broken JSON is a Mistake with its line."""
    lines = read_text(path, require_hash=require_hash).split("\n")  # splitlines() would cut at U+2028 inside a string
    return [_loads(line, str(path), number) for number, line in enumerate(lines, 1) if line.strip()]


def verify_file(path: str | os.PathLike[str]) -> None:
    """Check a file that another library will read, as `read_bytes` does, without holding it in memory."""
    path = Path(path)
    with _reading(path):
        _check(path, of_file(path), require_hash=True)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise Absent(path) from None
    except OSError as error:
        raise durable.unreadable(path, error) from error


def _check(path: Path, found: Digest, require_hash: bool) -> None:
    """Check what was read a moment ago; read before its record, it may be the version that the record calls old."""
    expected = read_sidecar(path)
    if expected is None and (files := read_manifest(path.parent)) and path.name in files:
        expected = [files[path.name]]
    if expected is not None:
        check(path, found, expected)
    elif require_hash:
        raise Mistake(str(path), "has no hash to check it against", "make it again, or keep its .xxh3 file beside it")


def _vouched(path: Path) -> list[Digest]:
    """The digest of the file that is about to be replaced, unless it is corrupt already."""
    try:
        found = of_file(path)
        recorded = read_sidecar(path)
    except (FileNotFoundError, Corrupt):
        return []
    return [found] if recorded is None or found in recorded else []


def _write_sidecar(path: Path, digests: list[Digest]) -> None:
    sidecar = sidecar_of(path)
    with durable.writing(sidecar) as temporary:
        durable.write_new(temporary, render_sidecar(digests))
        syscalls.rename(temporary, sidecar)


def _loads(text: str, where: str, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise Mistake(f"{where}:{line + error.lineno - 1}", f"is not JSON: {error.msg}") from None
    except RecursionError:
        raise Mistake(f"{where}:{line}", "is nested too deeply") from None
