"""Two processes in one test: forked from this one, so that nothing heavy is imported twice, and joined over gloo."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

TIMEOUT = 600.0  # a core may have much else to do, and all methods come in one call


def on_ranks(work: Callable[[], Any], world: int = 2, *, daemon: bool = True, **environment: str) -> list[Any]:
    """What `work` gives on each of `world` processes, in the order of their ranks.

    Raises:
        AssertionError: a process failed or did not end; the message holds its traceback.
    """
    context = multiprocessing.get_context("fork")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = []
    for rank in range(world):
        ours, theirs = context.Pipe(duplex=False)
        variables = {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **environment,
        }  # fmt: skip
        process = context.Process(target=_rank, args=(work, variables, theirs), daemon=daemon)
        process.start()
        theirs.close()
        ranks.append((process, ours))
    outcomes = [_outcome(process, pipe) for process, pipe in ranks]
    for process, _ in ranks:
        process.kill()
    failures = [text for good, text in outcomes if not good]
    assert not failures, "\n\n".join(failures)
    return [value for _, value in outcomes]


def _outcome(process: Any, pipe: Connection) -> tuple[bool, Any]:
    try:
        if pipe.poll(TIMEOUT):
            return pipe.recv()
    except EOFError:
        process.join(5.0)
        return False, f"process {process.pid} ended with {process.exitcode}"
    return False, f"process {process.pid} gave nothing in {TIMEOUT:.0f} s"


def _rank(work: Callable[[], Any], variables: dict[str, str], pipe: Connection) -> None:
    os.environ.update(variables)
    forget_processes()
    try:
        pipe.send((True, work()))
    except BaseException:  # noqa: BLE001 - whatever it is, the test shall see it
        pipe.send((False, traceback.format_exc()))
    finally:
        pipe.close()
        os._exit(0)  # no clean-up of the process that this one was forked from


def forget_processes() -> None:
    """Let accelerate look at the environment anew: it keeps what it saw before the fork."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()
    GradientState._reset_state()
