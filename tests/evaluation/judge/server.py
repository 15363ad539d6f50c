"""A real server on this machine that speaks as much of OpenAI's chat completions as a judge needs."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

JUDGE = "strict-judge-2026"  # as the server calls itself, whatever it was asked for


@dataclass
class Act:
    """What the server does with a request: answers `text`, or something else."""

    text: str = "Fair. Rating: [[5]]"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    cut: bool = False
    wait: threading.Event | None = None
    usage: bool = True


@dataclass
class Judge:
    """A server, and what it was asked, in the order of arrival."""

    address: str
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def texts(self) -> list[str]:
        """All messages of each request, as one text."""
        return [json.dumps(body["messages"]) for body in self.asked]


@contextmanager
def serving(act: Callable[[int, dict[str, Any]], Act]) -> Iterator[Judge]:
    """A server in a thread; `act` gets the number of the request, from 0, and its body."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with judge.lock:
                number = len(judge.asked)
                judge.asked.append(body)
                judge.headers.append(dict(self.headers))
                judge.paths.append(self.path)
            self.answer(act(number, body))

        def do_GET(self) -> None:
            with judge.lock:  # what a client that follows a redirect makes of its request
                judge.asked.append({})
                judge.headers.append(dict(self.headers))
            self.answer(act(-1, {}))

        def answer(self, doing: Act) -> None:
            if doing.wait is not None:
                doing.wait.wait(60)
            data = doing.raw
            if data is None:
                said: dict[str, Any] = {"model": JUDGE, "choices": [{"message": {"content": doing.text}}]}
                if doing.usage:
                    said["usage"] = {"prompt_tokens": 100, "completion_tokens": 7}
                data = json.dumps(said).encode()
            with suppress(BrokenPipeError, ConnectionResetError):
                self.send_response(doing.status)
                for name, value in doing.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[: len(data) // 2] if doing.cut else data)
            self.close_connection = doing.cut

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # a client that is killed

    with Server(("127.0.0.1", 0), Handler) as server:
        judge = Judge(f"http://127.0.0.1:{server.server_port}/v1")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield judge
        finally:
            server.shutdown()
            thread.join()
