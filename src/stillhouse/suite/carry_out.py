"""The commands of a suite, each in a process of its own, as many at a time as asked, in the order of their needs."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from stillhouse.mistakes import Mistake, shorten
from stillhouse.suite.jobs import Job

LOOK_S = 0.05  # between two looks at what runs
PATIENCE_S = 30.0  # for a process that was told to end
_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def carry_out(jobs: Sequence[Job], workers: int, say: Callable[[str], None]) -> None:
    """Run what is not done, and have each that ends well note what it was made from.

    Whatever ends this, a signal that cannot be caught included (on Linux), ends what runs.

    Raises:
        Mistake: one failed; its log has the whole story. The others that run are stopped.
    """
    waiting = [job for job in jobs if not job.done]
    undone, running = {job.title for job in waiting}, dict[str, tuple[Job, subprocess.Popen[bytes], float]]()
    total, ended = len(waiting), 0
    try:
        while waiting or running:
            ready = [job for job in waiting if undone.isdisjoint(job.needs)][: workers - len(running)]
            for job in ready:
                waiting.remove(job)
                job.begin()
                running[job.title] = job, _start(job), time.perf_counter()
            time.sleep(LOOK_S)
            for job, process, started in list(running.values()):
                code = process.poll()
                if code is None:
                    continue
                del running[job.title]
                if code:
                    wrong = f"{job.title} ended with code {code}: {_last_line(job.log)}"
                    raise Mistake(str(job.log), wrong, "mend it and go on by the same command")
                job.stamp()
                undone.discard(job.title)
                ended += 1
                say(f"[{ended}/{total}] {job.title}: {time.perf_counter() - started:.0f} s")
    finally:
        _stop([process for _, process, _ in running.values()])


def _start(job: Job) -> subprocess.Popen[bytes]:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("wb") as log:
        log.write(f"$ {job}\n".encode())
        log.flush()
        dies = None if _LIBC is None else _die_with(os.getpid())
        return subprocess.Popen(
            job.command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, preexec_fn=dies
        )


def _die_with(parent: int) -> Callable[[], None]:
    """What a child does before all else: it asks the kernel to be ended when `parent` is, however that comes.

    Two processes would else train in one folder, when a suite that was killed is taken up.
    """

    def ask() -> None:
        assert _LIBC is not None
        _LIBC.prctl(_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return ask


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return shorten(lines[-1].removeprefix("stillhouse: "), 100)
