"""Command lines in a few processes at a time, each task as soon as what it needs is done."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

from stillhouse.mistakes import Mistake

# One thread a process, as the processes fill the cores; nothing is looked up elsewhere; and glibc keeps freed blocks
# instead of mapping them anew at every step, a fifth of the time of a model this small.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
}
_TAIL = 15


@dataclass(frozen=True)
class Task:
    """Command lines of `stillhouse`, run in order by one process once `needs` are done; then `after`, here."""

    name: str
    commands: tuple[tuple[str, ...], ...]
    needs: tuple[str, ...] = ()
    after: Callable[[], None] | None = None


def run_tasks(tasks: Sequence[Task], workers: int, logs: Path) -> Iterator[Task]:
    """Run `tasks` in `workers` new processes and yield each when it is done; their output goes to files in `logs`.

    Raises:
        Mistake: a task failed. The end of its log has been shown on standard error, and the other processes stopped.
    """
    logs.mkdir(parents=True, exist_ok=True)
    waiting, done, crew = list(tasks), set[str](), list[_Worker]()
    try:
        with _environment(ENVIRONMENT):
            crew += [_Worker() for _ in range(min(workers, len(tasks)))]
        while len(done) < len(tasks):
            for worker in [worker for worker in crew if worker.task is None]:
                ready = next((task for task in waiting if done.issuperset(task.needs)), None)
                if ready is not None:
                    waiting.remove(ready)
                    worker.begin(ready, _log(logs, ready))
            busy = [worker for worker in crew if worker.task is not None]
            if not busy:
                raise ValueError(f"tasks wait for what nobody does: {[task.name for task in waiting]}")
            ended = wait([worker.connection for worker in busy])
            for worker in (worker for worker in busy if worker.connection in ended):
                task = _finished(worker, logs)
                done.add(task.name)
                yield task
    finally:
        for worker in crew:
            worker.stop()


class _Worker:
    """A process that imports once and then takes one task after the other."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other_end = context.Pipe()
        self.process = context.Process(target=_work, args=(other_end,), daemon=True)
        self.process.start()
        other_end.close()  # so that the end of the process is the end of the pipe
        self.task: Task | None = None

    def begin(self, task: Task, log: Path) -> None:
        self.task = task
        self.connection.send((task.commands, log))

    def stop(self) -> None:
        self.process.terminate()
        self.process.join()
        self.connection.close()


def _work(connection: Connection) -> None:
    """Run tasks until the pipe ends; an error of our own ends the process, and its traceback the log."""
    while True:
        try:
            commands, log = connection.recv()
        except EOFError:
            return
        connection.send(run_commands(commands, log))


def run_commands(commands: Sequence[Sequence[str]], log: Path) -> int:
    """Run command lines with this process's output in `log`; the first exit code that is not 0, or 0."""
    with log.open("w", encoding="utf-8") as file:
        # By descriptor, for what libraries write past sys.stdout; it stays there for a traceback that may follow.
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    for command in commands:
        print("$ stillhouse", *command, flush=True)
        code = _command(command)
        sys.stdout.flush()
        sys.stderr.flush()
        if code:
            return code
    return 0


def _command(arguments: Sequence[str]) -> int:
    """`python -m stillhouse` with `arguments` in this process, which has imported everything once."""
    sys.argv = ["stillhouse", *arguments]
    try:
        runpy.run_module("stillhouse", run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def _finished(worker: _Worker, logs: Path) -> Task:
    """The task that `worker` has just ended, and that it now is free of."""
    task, worker.task = worker.task, None
    assert task is not None
    try:
        code = worker.connection.recv()
    except EOFError:
        worker.process.join()
        code = worker.process.exitcode
    if code == 0:
        if task.after is not None:
            task.after()
        return task
    log = _log(logs, task)
    if log.is_file():
        print(*log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL:], sep="\n", file=sys.stderr)
    raise Mistake(str(log), f"the demo's task '{task.name}' ended with code {code}", "the end of its log stands above")


def _log(logs: Path, task: Task) -> Path:
    return logs / f"{task.name}.log"


@contextmanager
def _environment(settings: dict[str, str]) -> Iterator[None]:
    """Settings for processes that start in here."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
