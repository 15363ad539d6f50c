from urllib.request import Request

import pytest

from stillhouse.recipe.address import host_of

PLAIN = {
    "http://localhost:8000": "localhost", "https://LOCALHOST/": "localhost", "http://127.0.0.1:80/v1": "127.0.0.1",
    "http://[::1]:8000/v1": "::1", "https://api.example.org/a/b-c": "api.example.org",
}  # fmt: skip
OTHERS = [
    "http://evil.example#@localhost", "http://me@localhost", "http://localhost?a", "http://localhost\\@evil.example",
    "http://local host", "http://localhost/a b", "http://[::1", "http://localhost%2eexample", "http://localhost:0",
    "http://localhost:65536", "http://localhost:8a", "ftp://localhost", "localhost:8000", "http://", "http://localhost\n",
    "http://localh\u00f6st", "http://localhost/#a",
]  # fmt: skip


@pytest.mark.parametrize("address", PLAIN)
def test_the_host_is_the_one_that_a_request_goes_to(address: str) -> None:
    assert host_of(address) == PLAIN[address]
    assert PLAIN[address] in Request(address).host.lower()


@pytest.mark.parametrize("address", OTHERS)
def test_what_is_no_plain_address_has_none(address: str) -> None:
    assert host_of(address) is None
