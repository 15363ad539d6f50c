"""Addresses of servers: plain ones alone, of which everybody who reads them sees the same host."""

from __future__ import annotations

import re

from stillhouse.mistakes import Mistake, shorten

# Neither user info nor query nor fragment: two readers of such an address may each see another host in it.
_PLAIN = re.compile(r"https?://([a-z0-9._-]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?(?:/[\w.~%+:,/-]*)?", re.ASCII | re.I)


def host_of(address: str) -> str | None:
    """The host that a request to `address` goes to; None where it is no plain http(s)://host[:port][/path]."""
    found = _PLAIN.fullmatch(address)
    if found is None or (found[2] is not None and not 0 < int(found[2]) < 1 << 16):
        return None
    return found[1].lower().strip("[]")


def check_address(key: str, address: str) -> None:
    """Refuse what is no address of a server."""
    if host_of(address) is None:
        wrong = f"'{shorten(address, 80)}' is no address of a server"
        raise Mistake(key, wrong, "write one like http://localhost:8000")
