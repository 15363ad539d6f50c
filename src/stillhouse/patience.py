"""Requests that a server fails for a while: what may pass is asked again, after waits that grow."""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

Found = TypeVar("Found")

_LATER = {408, 409, 425, 429}  # and 5xx: the same request may succeed another time


class Passing(Exception):
    """A request failed in a way that may pass.

    Attributes:
        seconds: how long the server asks to wait.
        code: what it answered; 0 where nothing came, or what came was broken.
    """

    def __init__(self, why: str, seconds: float = 0.0, code: int = 0) -> None:
        super().__init__(why)
        self.seconds, self.code = seconds, code


class Stopped(Exception):
    """Nothing is sent any more."""


@dataclass(frozen=True)
class Patience:
    """How often a request is sent again.

    Attributes:
        retries: how often after the first time.
        wait: seconds before the first repetition; doubled each time.
        longest: seconds of one wait, whatever the server asks for.
    """

    retries: int
    wait: float
    longest: float

    def ask(self, send: Callable[[], Found], stopping: threading.Event | None = None) -> Found:
        """What `send` gives, in one of the repetitions.

        Args:
            stopping: once set, waits end and nothing is sent any more.

        Raises:
            Passing: the last repetition's.
            Stopped: `stopping` is set.
        """
        stopping = stopping or threading.Event()
        attempt = 0
        while not stopping.is_set():
            try:
                return send()
            except Passing as failure:
                if attempt == self.retries:
                    raise
                backoff = self.wait * 2**attempt * random.uniform(0.75, 1.25)  # not all threads at once
                stopping.wait(min(max(backoff, failure.seconds), self.longest))
            attempt += 1
        raise Stopped


def may_pass(code: int) -> bool:
    """Whether a request that HTTP refuses with `code` may succeed another time."""
    return code in _LATER or code >= 500


def retry_after(header: str | None) -> float:
    """Seconds that a Retry-After header asks to wait, which says them or a date; 0 where it says neither."""
    if header is None:
        return 0.0
    with suppress(ValueError):
        asked = float(header)
        return 0.0 if math.isnan(asked) else max(0.0, asked)
    with suppress(ValueError, TypeError):
        return max(0.0, (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds())
    return 0.0
