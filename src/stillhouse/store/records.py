"""Where digests are kept: `<name>.xxh3` beside a file, and `manifest.json` in a folder.

A sidecar is one line `<xxh3> <bytes>` for the file, and one for the version that it replaced. A manifest is
`{"files": {name: {"bytes", "xxh3"}}, "xxh3"}`, whose own hash is that of its "files"; it must be, byte for byte, what
`render_manifest` gives, so that no flip in it passes for white space.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stillhouse.store.digests import Corrupt, Digest, of_bytes

MANIFEST = "manifest.json"
_SIDECAR = re.compile(rb"(?:[0-9a-f]{16} [0-9]+\n){1,2}")


def sidecar_of(path: Path) -> Path:
    """Where the hash of the file `path` is kept."""
    return path.with_name(f"{path.name}.xxh3")


def render_sidecar(digests: Sequence[Digest]) -> bytes:
    """The bytes of a sidecar: the digest of the file, then of the version that it replaced."""
    return "".join(f"{digest.xxh3} {digest.size}\n" for digest in digests).encode()


def read_sidecar(path: Path) -> list[Digest] | None:
    """The digests that the file `path` may have, newest first, or None without a sidecar.

    Raises:
        Corrupt: the sidecar is no sidecar.
        OSError: it cannot be read.
    """
    sidecar = sidecar_of(path)
    try:
        text = sidecar.read_bytes()
    except FileNotFoundError:
        return None
    if not _SIDECAR.fullmatch(text):
        raise Corrupt(sidecar, f"expected lines of a hash and a size, found {of_bytes(text)}")
    return [Digest(int(size), xxh3) for xxh3, size in (line.split() for line in text.decode().splitlines())]


def render_manifest(files: Mapping[str, Digest]) -> bytes:
    """The bytes of a manifest: one text for one set of files."""
    entries = {name: {"bytes": files[name].size, "xxh3": files[name].xxh3} for name in sorted(files)}
    return dumps({"files": entries, "xxh3": of_bytes(dumps(entries)).xxh3}, indent=1) + b"\n"


def read_manifest(folder: Path) -> dict[str, Digest] | None:
    """What `manifest.json` says of the files in `folder`, or None where it is absent or another program's.

    Raises:
        Corrupt: it was changed since it was written.
        OSError: it cannot be read.
    """
    path = folder / MANIFEST
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise Corrupt(path, f"expected a manifest, found {of_bytes(text)}") from None
    if not isinstance(content, dict) or content.keys() != {"files", "xxh3"}:
        return None
    try:
        files = {name: Digest(entry["bytes"], entry["xxh3"]) for name, entry in content["files"].items()}
    except (AttributeError, KeyError, TypeError):
        files = {}
    if render_manifest(files) != text:
        found = of_bytes(dumps(content["files"])).xxh3
        raise Corrupt(path, f"expected xxh3 {str(content['xxh3'])[:16]} of its entries, found {found}")
    return files


def dumps(content: Any, indent: int | None = None) -> bytes:
    """JSON in UTF-8; NaN is refused (ValueError), and half of a surrogate pair stays the escape that it came as."""
    return json.dumps(content, ensure_ascii=False, allow_nan=False, indent=indent).encode("utf-8", "backslashreplace")
