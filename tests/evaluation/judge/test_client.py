"""Requests to a real server that fails in every way a server fails."""

from __future__ import annotations

import socket
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise

import pytest

from stillhouse.evaluation.judge import Server
from stillhouse.mistakes import LONGEST_LINE, Mistake
from tests.evaluation.judge.server import JUDGE, Act, serving

KEY = "sk-very-secret-0123456789"
MESSAGES = [{"role": "user", "content": "well?"}]


def server(address: str, **others) -> Server:
    settings = {"max_tokens": 50, "timeout": 5.0, "retries": 3, "wait": 0.01, **others}
    return Server(address, "gpt-4", KEY, **settings)


def test_a_reply_and_what_was_sent_for_it():
    with serving(lambda number, body: Act("so so [[4]]")) as judge:
        reply = server(judge.address + "/").ask(MESSAGES)
    assert (reply.text, reply.model, reply.tokens) == ("so so [[4]]", JUDGE, (100, 7))
    assert judge.asked == [{"model": "gpt-4", "messages": MESSAGES, "temperature": 0, "max_tokens": 50}]
    assert judge.paths == ["/v1/chat/completions"]
    assert judge.headers[0]["Authorization"] == f"Bearer {KEY}"


def test_no_key_sends_no_header():
    with serving(lambda number, body: Act()) as judge:
        Server(judge.address, "gpt-4", "", 50, 5.0, 0, 0.01).ask(MESSAGES)
    assert "Authorization" not in judge.headers[0]


FAILURES = {
    "500": Act(status=500),
    "503": Act(status=503, raw=b"<html>"),
    "429": Act(status=429),
    "a cut answer": Act(cut=True),
    "broken JSON": Act(raw=b'{"choices": [{'),
    "no choices": Act(raw=b'{"choices": []}'),
    "a list": Act(raw=b"[1]"),
    "brackets without end": Act(raw=b"[" * 100_000),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_what_may_pass_is_asked_again(failure):
    with serving(lambda number, body: FAILURES[failure] if number < 2 else Act("[[6]]")) as judge:
        assert server(judge.address).ask(MESSAGES).text == "[[6]]"
    assert len(judge.asked) == 3


@pytest.mark.parametrize("failure", FAILURES)
def test_what_does_not_pass_ends_in_one_line(failure):
    with serving(lambda number, body: FAILURES[failure]) as judge, pytest.raises(Mistake) as caught:
        server(judge.address).ask(MESSAGES)
    assert len(judge.asked) == 4
    assert "no answer in 4 requests" in str(caught.value)
    assert "goes on from here" in str(caught.value)
    assert len(str(caught.value)) <= LONGEST_LINE


def test_a_server_that_is_not_there_is_waited_for():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(Mistake, match=r"no answer in 2 requests: ConnectionRefusedError"):
        server(f"http://127.0.0.1:{port}/v1", retries=1).ask(MESSAGES)


def test_a_slow_answer_is_given_up_and_asked_again():
    late = threading.Event()
    with serving(lambda number, body: Act(wait=late) if number == 0 else Act("[[3]]")) as judge:
        assert server(judge.address, timeout=0.3).ask(MESSAGES).text == "[[3]]"
        late.set()
    assert len(judge.asked) == 2


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_the_server_says_how_long_to_wait(form):
    when = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
    busy = Act(status=429, headers={"Retry-After": "0.6" if form == "seconds" else when})
    began = time.monotonic()
    with serving(lambda number, body: busy if number == 0 else Act()) as judge:
        server(judge.address).ask(MESSAGES)
    assert time.monotonic() - began > 0.5
    assert len(judge.asked) == 2


def test_waits_grow():
    times: list[float] = []
    with (
        serving(lambda number, body: times.append(time.monotonic()) or Act(status=500)) as judge,
        pytest.raises(Mistake),
    ):
        server(judge.address, wait=0.1).ask(MESSAGES)
    waits = [after - before for before, after in pairwise(times)]
    assert len(waits) == 3
    assert waits[0] >= 0.07
    assert waits[1] >= 0.14
    assert waits[2] >= 0.28


REFUSALS = {
    400: f'{{"error": {{"message": "temperature {KEY} is not supported"}}}}',
    401: f'{{"error": "wrong key {KEY}"}}',
    403: "no",
    404: "not found " * 100,
}


@pytest.mark.parametrize("status", REFUSALS)
def test_a_refusal_is_said_at_once_and_without_the_key(status):
    refusing = Act(status=status, raw=REFUSALS[status].encode())
    with serving(lambda number, body: refusing) as judge, pytest.raises(Mistake) as caught:
        server(judge.address).ask(MESSAGES)
    assert len(judge.asked) == 1
    assert str(status) in str(caught.value)
    assert KEY not in repr(caught.value)
    assert len(str(caught.value)) <= LONGEST_LINE


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_the_key_is_not_carried_to_another_address(status):
    with serving(lambda number, body: Act()) as other:
        moved = Act(status=status, headers={"Location": f"{other.address}/chat/completions"})
        with serving(lambda number, body: moved) as judge, pytest.raises(Mistake, match=r"another address"):
            server(judge.address).ask(MESSAGES)
        assert other.asked == []


def test_a_key_that_the_server_repeats_is_blotted_out():
    with serving(lambda number, body: Act(f"you are {KEY}, [[2]]")) as judge:
        reply = server(judge.address).ask(MESSAGES)
    assert reply.text == "you are ***, [[2]]"
    assert KEY not in repr(server(judge.address))


def test_a_server_that_does_not_count_tokens_or_says_nothing():
    with serving(lambda number, body: Act(usage=False)) as judge:
        assert server(judge.address).ask(MESSAGES).tokens is None
    silent = Act(raw=b'{"choices": [{"message": {"content": null}}]}')
    with serving(lambda number, body: silent) as judge:
        reply = server(judge.address).ask(MESSAGES)
    assert (reply.text, reply.model) == ("", "gpt-4")


def test_nothing_is_sent_after_a_stop():
    with serving(lambda number, body: Act()) as judge:
        asking = server(judge.address)
        asking.stopping.set()
        with pytest.raises(Mistake, match=r"stopped"):
            asking.ask(MESSAGES)
    assert judge.asked == []


def test_after_a_failure_all_others_end_with_the_same():
    with serving(lambda number, body: Act(status=401)) as judge:
        asking = server(judge.address)
        for _ in range(3):
            with pytest.raises(Mistake, match=r"refuses the key"):
                asking.ask(MESSAGES)
    assert len(judge.asked) == 1
