"""A server that answers as vLLM does, over HTTP, with a model of transformers: one thread, one prompt at a time."""

from __future__ import annotations

import json
import multiprocessing
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM

from stillhouse.data.tokenizer import load_tokenizer
from stillhouse.rollout import Sampling, respond


class Serving:
    """What is served, and what was asked.

    Attributes:
        asked: (path, body) of every request.
        takes: whether it takes weights, as with VLLM_SERVER_DEV_MODE=1.
        odd: answers that stand in for its own, by path: (status, body); of status 0 the connection is cut.
        first: such answers that come once each, before its own.
    """

    def __init__(self, folder: Path, max_model_len: int = 96, takes: bool = True) -> None:
        self.root, self.max_model_len, self.takes = str(folder), max_model_len, takes
        self.tokenizer, self.asked = load_tokenizer(str(folder)), []
        self.odd: dict[str, tuple[int, Any]] = {}
        self.first: dict[str, list[tuple[int, Any]]] = {}
        self.address, self._one = "", threading.Lock()
        self._load(str(folder))

    def _load(self, folder: str) -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()

    def answer(self, path: str, body: Any) -> tuple[int, Any]:
        with self._one:
            self.asked.append((path, body))
            if self.first.get(path):
                return self.first[path].pop(0)
            if path in self.odd:
                return self.odd[path]
            if path == "/v1/models":
                card = {"id": "served", "root": self.root, "parent": None, "max_model_len": self.max_model_len}
                return 200, {"data": [card]}
            if path == "/v1/completions":
                return 200, self._completed(body)
            if self.takes and path == "/collective_rpc" and body["method"] == "reload_weights":
                self._load(body["kwargs"]["weights_path"])
                return 200, {"results": [None]}
            if self.takes and path == "/reset_prefix_cache":
                return 200, {"success": True}
            return 404, {"detail": "Not Found"}

    def _completed(self, body: dict[str, Any]) -> dict[str, Any]:
        sampling = Sampling(body["max_tokens"], body["temperature"], body["top_p"], max(body["top_k"], 0))
        (said,) = respond(
            self.model, self.tokenizer, [body["prompt"]], sampling, seed=[(body["seed"],)], description=None,
            stop=body["stop_token_ids"],
        )  # fmt: skip
        logs = {"token_logprobs": list(said.log_probability)}
        return {"choices": [{"token_ids": list(said.ids), "logprobs": logs, "text": said.text}]}


BROKEN_OFF = b"so many wor"  # its reader waits for more


@contextmanager
def served(folder: Path, port: int = 0, **options: Any) -> Iterator[Serving]:
    """A server of the model in `folder`, at `address`."""
    serving = Serving(folder, **options)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._reply(None)

        def do_POST(self) -> None:
            self._reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _reply(self, body: Any) -> None:
            status, found = serving.answer(self.path, body)
            if not status:
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            raw = found if isinstance(found, bytes) else json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(raw) + (500 if raw == BROKEN_OFF else 0)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    serving.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield serving
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def served_apart(folder: Path, **options: Any) -> Iterator[tuple[str, Callable[[], list[tuple[str, Any]]]]]:
    """The same in a process of its own, for those who fork: its address, and what was asked since the last call."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def work() -> None:
        with served(folder, **options) as serving:
            theirs.send(serving.address)
            while theirs.recv():
                theirs.send(serving.asked)
                serving.asked = []

    process = context.Process(target=work, daemon=True)
    process.start()

    def asked() -> list[tuple[str, Any]]:
        ours.send(True)
        return ours.recv()

    try:
        yield ours.recv(), asked
        ours.send(False)
        process.join(10.0)
    finally:
        process.kill()
