"""A vLLM server as an engine: token ids in, token ids out, over its completions interface.

vLLM needs a transformers of its own, so it runs in an environment of its own, beside this one:

    vllm serve MODEL --generation-config vllm
    VLLM_SERVER_DEV_MODE=1 vllm serve STUDENT ...        to be given new weights while a run trains

Every request has a seed of its own, drawn from the same numbers as the streams of the other engines. The texts are
other ones, since vLLM draws by another rule, and follow from the seed as far as its kernels do from the batch.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, replace
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import HTTPHandler, HTTPSHandler, Request, build_opener

import numpy as np

from stillhouse.mistakes import Mistake, shorten
from stillhouse.patience import Passing, Patience, may_pass, retry_after
from stillhouse.rollout.engine import Asked, Drawn, Manner

SECONDS = 3600.0  # for a response; a long queue is no mistake
REACHED = 10.0  # seconds, in which a server says what it serves, or takes a connection
PATIENCE = Patience(retries=5, wait=1.0, longest=8.0)  # some 25 seconds, or 40 where it asks to wait
AT_ONCE = Patience(retries=0, wait=0.0, longest=0.0)


@dataclass(frozen=True)
class Server:
    """A model that a vLLM server writes with.

    Attributes:
        address: such as http://localhost:8000.
        name: by which the server knows the model.
        room: tokens of prompt and response together.
        batch_size: requests under way at a time; the server batches them as it likes.
        vocabulary: how many tokens the model predicts; those beyond the tokenizer's are barred.
        root: what the server says it has loaded.
        patience: with requests that fail in a way that may pass.
    """

    address: str
    name: str
    room: int | None
    batch_size: int = 32
    vocabulary: int = 0
    root: str = ""
    patience: Patience = PATIENCE

    @classmethod
    def at(cls, address: str, *, batch_size: int, vocabulary: int, names: Sequence[str] = ()) -> Server:
        """The server at `address`, and of the models that it serves one of `names`, or its only one if none is given.

        A model has a name if the server calls it so, or has loaded it from there; folders are compared resolved.

        Raises:
            Mistake: nothing answers there, or what does serves none of `names`, or, of no names, several models.
        """
        server = cls(address.rstrip("/"), "", None, batch_size, vocabulary)
        found = server._got("/v1/models", patience=AT_ONCE, seconds=REACHED)
        try:  # an adapter has a parent
            models = [(str(one["id"]), _card(one)) for one in found["data"] if not one.get("parent")]
        except (LookupError, TypeError, AttributeError):
            raise Mistake(server._where, "does not say which models it serves", "is it vLLM?") from None
        served = ", ".join(dict.fromkeys(_described(one) for _, one in models)) or "nothing"
        if names:
            models = [(name, one) for name, one in models if any(_same(one, asked) for asked in names)]
            if not models:
                wrong = f"serves {shorten(served, 70)}, not '{shorten(names[0], 40)}'"
                raise Mistake(server._where, wrong, "name that one, or serve yours")
        elif len({one["root"] or name for name, one in models}) != 1:  # a model may have several names
            raise Mistake(server._where, f"serves {shorten(served, 90)}", "serve the model alone")
        name, chosen = models[0]
        return replace(server, name=name, room=chosen["max_model_len"], root=chosen["root"])

    def write(self, asked: Sequence[Asked], manner: Manner) -> Generator[tuple[int, Drawn]]:
        """As they come; a request that fails in a way that may pass is sent again, and the others go on.

        A log-probability is the server's, which is of temperature 1; at others it is NaN.

        Raises:
            Mistake: the server cannot bar n-grams, refuses a request, fails one for good, or answers without token ids.
        """
        if manner.sampling.no_repeat_ngram_size:
            raise Mistake("no_repeat_ngram_size", "is not known to a server", "write 0, or remove server")
        pool, stopping = ThreadPoolExecutor(self.batch_size), threading.Event()
        try:
            places = {pool.submit(self._answer, one, manner, stopping): place for place, one in enumerate(asked)}
            for answered in as_completed(places):
                yield places[answered], answered.result()
        finally:
            stopping.set()  # after a failure for good the others need not wait for theirs
            pool.shutdown(wait=True, cancel_futures=True)

    def take(self, folder: Path) -> None:
        """Have the server go on with the weights that `folder` holds, which it must be able to read.

        Raises:
            Mistake: it was not started with VLLM_SERVER_DEV_MODE=1, or does not take them.
        """
        kwargs = {"weights_path": str(folder.resolve())}
        try:
            self._got("/collective_rpc", {"method": "reload_weights", "kwargs": kwargs})
            kept = self._got("/reset_prefix_cache", {})  # what it remembers was computed with the weights before
        except _Refused as error:
            mend = "start it with VLLM_SERVER_DEV_MODE=1" if error.code == 404 else "can it read that folder?"
            raise Mistake(self._where, f"takes no weights: {error.wrong}", mend) from error
        if not kept.get("success", True):
            raise Mistake(self._where, "still answers somebody, and keeps what old weights computed", "use it alone")

    def _answer(self, one: Asked, manner: Manner, stopping: threading.Event) -> Drawn:
        sampling = manner.sampling
        body = {
            "model": self.name,
            "prompt": list(one.prompt),
            "max_tokens": one.budget,
            "seed": int(np.random.SeedSequence(one.seed).generate_state(1, np.uint64)[0] >> np.uint64(1)),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k or -1,
            "stop_token_ids": list(manner.stop),
            "ignore_eos": True,  # the ends are `stop`'s alone
            "logit_bias": {str(token): -100.0 for token in range(manner.known, self.vocabulary)} or None,
            "logprobs": 0,
            "return_token_ids": True,
            # A server may have been started with a model's own defaults.
            "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
        }  # fmt: skip
        found = self._got("/v1/completions", body, stopping=stopping)
        (choice,) = found["choices"]
        ids = choice.get("token_ids")
        if ids is None:
            raise Mistake(self._where, "answers without token ids", "is it vLLM, 0.10.2 or later?")
        noted = sampling.greedy or sampling.temperature == 1.0
        logs = choice["logprobs"]["token_logprobs"] if noted else [math.nan] * len(ids)
        return Drawn(ids, logs, [1.0] * len(ids))

    def _got(
        self,
        path: str,
        asked: dict[str, Any] | None = None,
        *,
        patience: Patience | None = None,
        seconds: float = SECONDS,
        stopping: threading.Event | None = None,
    ) -> Any:
        """What the server answers, sooner or later: to a GET, or to `asked` as a POST."""
        try:
            return (patience or self.patience).ask(lambda: self._sent(path, asked, seconds), stopping)
        except Passing as failure:
            if failure.code:
                raise _Refused(self._where, failure.code, str(failure)) from failure
            raise Mistake(self._where, f"does not answer: {failure}", "is it started? vllm serve MODEL") from failure

    def _sent(self, path: str, asked: dict[str, Any] | None, seconds: float) -> Any:
        """What the server answers to one request."""
        body = None if asked is None else json.dumps(asked).encode()
        request = Request(self.address + path, body, {"Content-Type": "application/json"})
        try:
            with _OPENER.open(request, timeout=seconds) as reply:
                return json.loads(reply.read() or b"{}")
        except HTTPError as error:
            if not may_pass(error.code):
                raise _Refused(self._where, error.code, _said(error)) from error
            raise Passing(_said(error), retry_after(error.headers.get("Retry-After")), error.code) from error
        except TimeoutError as error:  # while connecting it would be wrapped; after so long a wait it does not pass
            raise Mistake(self._where, f"gave no answer in {seconds:.0f} seconds", "is it overloaded?") from error
        except (OSError, HTTPException, ValueError) as error:
            raise Passing(shorten(str(getattr(error, "reason", error)), 70)) from error

    @property
    def _where(self) -> str:
        return f"server: {self.address}"


def _card(said: dict[str, Any]) -> dict[str, Any]:
    """What a server says of a model, as far as it makes sense: "id", "root" ("" if unknown) and "max_model_len"."""
    root, room = said.get("root"), said.get("max_model_len")
    return {
        "id": str(said["id"]),
        "root": root if isinstance(root, str) and "\0" not in root else "",
        "max_model_len": room if isinstance(room, int) and not isinstance(room, bool) else None,
    }


def _described(card: dict[str, Any]) -> str:
    """What a server calls a model and, where that is something else, what it has loaded."""
    root = card["root"] or card["id"]
    return f"'{card['id']}'" if root == card["id"] else f"'{card['id']}' of '{root}'"


def _same(card: dict[str, Any], name: str) -> bool:
    """Whether a server's model is `name`; a Hub name resolves as a folder would, and so to itself alone."""
    if name == card["id"]:
        return True
    root = card["root"]
    return bool(root) and Path(root).resolve() == Path(name).resolve()


class _Refused(Mistake):
    """The server answers that it will not."""

    def __init__(self, where: str, code: int, wrong: str) -> None:
        super().__init__(where, wrong)
        self.code = code


class _Connection(HTTPConnection):
    """Takes `REACHED` seconds at most to connect, and those of the request for the answer."""

    def connect(self) -> None:
        _connected(self, super().connect)


class _SecureConnection(HTTPSConnection):
    """The same over TLS."""

    def connect(self) -> None:
        _connected(self, super().connect)


def _connected(connection: HTTPConnection, connect: Callable[[], None]) -> None:
    whole, connection.timeout = connection.timeout, min(REACHED, connection.timeout or REACHED)
    connect()
    connection.timeout = whole
    connection.sock.settimeout(whole)


class _Handler(HTTPHandler, HTTPSHandler):
    def http_open(self, req: Request) -> Any:
        return self.do_open(_Connection, req)

    def https_open(self, req: Request) -> Any:
        return self.do_open(_SecureConnection, req)


_OPENER = build_opener(_Handler)


def _said(error: HTTPError) -> str:
    """The server's own words, where it has any."""
    text = ""
    with suppress(OSError, HTTPException):  # the words may break off
        text = error.read().decode(errors="replace")
    try:
        found = json.loads(text)
        text = str(found.get("error", found).get("message", text))
    except (ValueError, AttributeError):
        pass
    return f"{error.code} {shorten(text or error.reason, 90)}"
