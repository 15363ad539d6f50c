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
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np

from stillhouse.mistakes import Mistake, shorten
from stillhouse.rollout.engine import Asked, Drawn, Manner

SECONDS = 3600.0  # for a response; a long queue is no mistake
REACHED = 10.0  # seconds, in which a server says what it serves


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
    """

    address: str
    name: str
    room: int | None
    batch_size: int = 32
    vocabulary: int = 0
    root: str = ""

    @classmethod
    def at(cls, address: str, *, batch_size: int, vocabulary: int, name: str = "") -> Server:
        """The server at `address`, and of the models that it serves `name`, or the only one.

        Raises:
            Mistake: nothing answers there, or what does serves several models, none of that name.
        """
        server = cls(address.rstrip("/"), name, None, batch_size, vocabulary)
        served: list[dict[str, Any]] = server._got("/v1/models", seconds=REACHED)["data"]
        models = [one for one in served if not one.get("parent")]  # an adapter has a parent
        named = [one for one in models if name in (one["id"], one.get("root"))] or models
        if len(named) != 1:
            raise Mistake(server._where, f"serves {', '.join(one['id'] for one in models)}", "serve the model alone")
        (found,) = named
        return replace(server, name=found["id"], room=found.get("max_model_len"), root=str(found.get("root") or ""))

    def write(self, asked: Sequence[Asked], manner: Manner) -> Generator[tuple[int, Drawn]]:
        """As they come.

        A log-probability is the server's, which is of temperature 1; at others it is NaN.

        Raises:
            Mistake: the server cannot bar n-grams, does not answer, or answers without token ids.
        """
        if manner.sampling.no_repeat_ngram_size:
            raise Mistake("no_repeat_ngram_size", "is not known to a server", "write 0, or remove server")
        pool = ThreadPoolExecutor(self.batch_size)
        try:
            places = {pool.submit(self._answer, one, manner): place for place, one in enumerate(asked)}
            for answered in as_completed(places):
                yield places[answered], answered.result()
        finally:
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

    def _answer(self, one: Asked, manner: Manner) -> Drawn:
        sampling = manner.sampling
        found = self._got("/v1/completions", {
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
        })  # fmt: skip
        (choice,) = found["choices"]
        ids = choice.get("token_ids")
        if ids is None:
            raise Mistake(self._where, "answers without token ids", "is it vLLM, 0.10.2 or later?")
        noted = sampling.greedy or sampling.temperature == 1.0
        logs = choice["logprobs"]["token_logprobs"] if noted else [math.nan] * len(ids)
        return Drawn(ids, logs, [1.0] * len(ids))

    def _got(self, path: str, asked: dict[str, Any] | None = None, *, seconds: float = SECONDS) -> Any:
        """What the server answers: to a GET, or to `asked` as a POST."""
        body = None if asked is None else json.dumps(asked).encode()
        request = Request(self.address + path, body, {"Content-Type": "application/json"})
        try:
            with urlopen(request, timeout=seconds) as reply:
                return json.loads(reply.read() or b"{}")
        except HTTPError as error:
            raise _Refused(self._where, error.code, _said(error)) from error
        except (OSError, HTTPException, ValueError) as error:
            wrong = f"does not answer: {shorten(str(getattr(error, 'reason', error)), 70)}"
            raise Mistake(self._where, wrong, "is it started? vllm serve MODEL") from error

    @property
    def _where(self) -> str:
        return f"server: {self.address}"


class _Refused(Mistake):
    """The server answers that it will not."""

    def __init__(self, where: str, code: int, wrong: str) -> None:
        super().__init__(where, wrong)
        self.code = code


def _said(error: HTTPError) -> str:
    """The server's own words, where it has any."""
    text = error.read().decode(errors="replace")
    try:
        found = json.loads(text)
        text = str(found.get("error", found).get("message", text))
    except (ValueError, AttributeError):
        pass
    return f"{error.code} {shorten(text or error.reason, 90)}"
