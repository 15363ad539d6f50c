"""The commands of a suite, each in a process of its own, as many at a time as asked, in the order of their needs."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from stillhouse.mistakes import Mistake, shorten
from stillhouse.suite.plan import Job


def carry_out(
    jobs: Sequence[Job], workers: int, say: Callable[[str], None], after: Callable[[Job], None] = lambda job: None
) -> None:
    """Run what is not done; `after` is told of each job that has just ended well.

    Raises:
        Mistake: one failed; its log has the whole story. The others that run are stopped.
    """
    waiting = [job for job in jobs if not job.done]
    undone, running = {job.title for job in waiting}, dict[Future[float], Job]()
    processes: list[subprocess.Popen[bytes]] = []
    total, ended = len(waiting), 0
    with ThreadPoolExecutor(workers) as pool:
        try:
            while waiting or running:
                ready = [job for job in waiting if undone.isdisjoint(job.needs)][: workers - len(running)]
                for job in ready:
                    waiting.remove(job)
                    running[pool.submit(_run, job, processes)] = job
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    job = running.pop(future)
                    seconds = future.result()
                    after(job)
                    undone.discard(job.title)
                    ended += 1
                    say(f"[{ended}/{total}] {job.title}: {seconds:.0f} s")
        except BaseException:
            for process in processes:
                process.terminate()
            raise


def _run(job: Job, processes: list[subprocess.Popen[bytes]]) -> float:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    with job.log.open("wb") as log:
        log.write(f"$ {job}\n".encode())
        log.flush()
        process = subprocess.Popen(job.command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        processes.append(process)
        code = process.wait()
    if code:
        raise Mistake(str(job.log), f"{job.title} ended with code {code}: {_last_line(job.log)}", "mend it, go on")
    return time.perf_counter() - started


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return shorten(lines[-1].removeprefix("stillhouse: "), 100)
