"""A server that speaks OpenAI's chat completions, asked over HTTP by the standard library.

The key is sent in one header of a request to the address that the user gave, and nowhere else: redirects are not
followed, and where a server repeats it, it is blotted out before anything is kept or shown.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from stillhouse.mistakes import Mistake, shorten
from stillhouse.patience import Passing, Patience, Stopped, may_pass, retry_after

_LONGEST_WAIT = 120.0  # seconds
_LARGEST = 1 << 24  # bytes of an answer
_SECRET = 8  # characters


@dataclass(frozen=True)
class Reply:
    """What a server answered.

    Attributes:
        text: the message.
        model: as the server calls it.
        tokens: of prompt and message, or None where the server does not count.
    """

    text: str
    model: str
    tokens: tuple[int, int] | None


class _NoRedirect(HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        """None makes an error of the redirect; following it would hand the key to whoever is there."""


@dataclass(frozen=True)
class Server:
    """Where a model is asked, and how patiently.

    Attributes:
        address: up to and with /v1.
        model: as the server is asked for it.
        key: its password; never shown.
        max_tokens: of a reply.
        timeout: seconds for a whole request.
        retries: how often a request is sent again that failed.
        wait: seconds before the first repetition; doubled each time.
        stopping: once set, nothing is sent any more; the first request that fails for good sets it.
        failures: why it was set.
    """

    address: str
    model: str
    key: str = field(repr=False)
    max_tokens: int
    timeout: float
    retries: int
    wait: float
    stopping: threading.Event = field(default_factory=threading.Event, repr=False)
    failures: list[Mistake] = field(default_factory=list, repr=False)

    def ask(self, messages: list[dict[str, str]]) -> Reply:
        """The reply to `messages`, drawn at temperature 0.

        Raises:
            Mistake: the server refuses the request, or does not answer it in all repetitions; or another request has
                failed for good before, in which case it is that one's.
        """
        try:
            return self._ask(messages)
        except Mistake as failure:
            self.failures.append(failure)
            self.stopping.set()
            raise

    def _ask(self, messages: list[dict[str, str]]) -> Reply:
        body = {"model": self.model, "messages": messages, "temperature": 0, "max_tokens": self.max_tokens}
        patience = Patience(self.retries, self.wait, _LONGEST_WAIT)
        try:
            return patience.ask(lambda: self._reply(self._send(body)), self.stopping)
        except Stopped:
            raise [*self.failures, Mistake("judge", "was stopped", "the same command goes on from here")][0] from None
        except Passing as failure:
            wrong = f"{self.address} gave no answer in {self.retries + 1} requests: {failure}"
            raise Mistake("judge", wrong, "the same command goes on from here") from None

    def blot(self, text: str) -> str:
        """`text` without the key; a very short one (EMPTY, or 8) is no secret, and may be a word of a judgement."""
        return text.replace(self.key, "***") if len(self.key) >= _SECRET else text

    def _send(self, body: Mapping[str, Any]) -> bytes:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        data = json.dumps(body).encode()
        request = Request(f"{self.address.rstrip('/')}/chat/completions", data=data, headers=headers, method="POST")
        deadline = time.monotonic() + self.timeout
        try:
            with build_opener(_NoRedirect).open(request, timeout=self.timeout) as response:
                parts = []
                while part := response.read1(1 << 16):
                    parts.append(part)
                    if time.monotonic() > deadline or sum(map(len, parts)) > _LARGEST:
                        raise Passing("an answer without end")
                return b"".join(parts)
        except HTTPError as error:
            with error:
                raise self._refusal(error) from None
        except (URLError, OSError, HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise Passing(shorten(self.blot(f"{type(reason).__name__} {reason}".strip()), 60)) from None

    def _refusal(self, error: HTTPError) -> Exception:
        if may_pass(error.code):
            return Passing(f"HTTP {error.code}", retry_after(error.headers.get("Retry-After")), error.code)
        said = ""
        with suppress(OSError, HTTPException):
            said = " ".join(self.blot(error.read(4096).decode("utf-8", "replace")).split())
        if error.code in (401, 403):
            return Mistake("judge", f"the server refuses the key (HTTP {error.code})", "see --key_variable")
        if 300 <= error.code < 400:
            return Mistake("judge", f"the server sends on to another address (HTTP {error.code})", "give that address")
        mend = "the address ends in /v1" if error.code == 404 else "see --judge_model"
        return Mistake("judge", f"HTTP {error.code}: {shorten(said, 80)}", mend)

    def _reply(self, data: bytes) -> Reply:
        try:
            said = json.loads(data)
            text = said["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError, RecursionError):
            raise Passing("an answer that is no chat completion") from None
        if not isinstance(text, str):
            text = ""  # a refusal has null; it holds no rating
        usage = said.get("usage")
        tokens = None
        with suppress(LookupError, TypeError, ValueError):
            tokens = (int(usage["prompt_tokens"]), int(usage["completion_tokens"]))
        return Reply(self.blot(text), self.blot(str(said.get("model") or self.model)), tokens)
