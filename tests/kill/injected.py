"""A checkpoint save whose k-th change to the disk goes wrong: the store's calls, and the writers of other libraries."""

from __future__ import annotations

import errno
import itertools
import os
import random
import resource
import shutil
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers.modeling_utils
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase, TrainerState

from stillhouse import store
from stillhouse.mistakes import Mistake
from stillhouse.model_folders import epoch_folders
from stillhouse.store import syscalls
from stillhouse.training import checkpoints
from stillhouse.training.trainer import DistillationTrainer
from tests.store.faults import CALLS

DIED, RAISED, SAVED = 9, 1, 0
UNSAID, UNREACHED = 3, 77
Mode = str | int  # or an errno
REFUSED = "errno"
ERRNOS = (errno.ENOSPC, errno.EIO)  # of REFUSED, by turns: which it is decides the words, and nothing else
CUTTING = ("torn", "short")  # modes that are something of their own where bytes are written, and nowhere else

# Owner, name, and which positional argument says where it writes.
WRITERS: tuple[tuple[Any, str, int], ...] = (
    (torch, "save", 1),
    (transformers.modeling_utils, "safe_save_file", 1),
    (checkpoints, "save_file", 1),
    (TrainerState, "save_to_json", 1),
    (PreTrainedTokenizerBase, "save_pretrained", 1),
)


@dataclass(frozen=True)
class Point:
    """One fault and what it left.

    Attributes:
        mode: "death", "torn" (half of the write first), "short" (half of a write, said so), "errno", or "limit".
        k: which call, counted from 0; of "limit", the most bytes that a file may have.
        call: its name.
        code: DIED, RAISED (one line), SAVED, or UNSAID (a traceback).
        step: of the state that a resume would choose.
        sound: how many of `last/` and `last.previous/` verify.
        wrong: what else is not as it should be.
    """

    mode: str
    k: int
    call: str
    code: int
    step: int
    sound: int
    wrong: str


def sweep(save: Callable[[], None], run: Path, points: Path, modes: list[str], keep_every: int) -> list[Point]:
    """Do `save` in a fork for every call and mode, each time in a copy of what lies in the working directory.

    Copies are kept for every so many points, in `points`/<mode>-<k>.
    """
    found: list[Point] = []
    for mode in modes:
        for k in _places(mode, found):
            place = points / f"{mode}-{k}"
            shutil.copytree(".", place)
            call, code = _forked(save, place, ERRNOS[k % len(ERRNOS)] if mode == REFUSED else mode, k)
            if code != UNREACHED:
                found.append(_look(mode, k, call, code, place / run))
            if code == UNREACHED or len(found) % keep_every:
                shutil.rmtree(place)
            if code == UNREACHED or (mode == "limit" and code == SAVED):
                break
    return found


def _places(mode: str, found: list[Point]) -> Iterable[int]:
    if mode == "limit":
        return (256 * k * k for k in itertools.count())
    if mode in CUTTING:
        writing = {"write", *(name for _, name, _ in WRITERS)}
        return [point.k for point in found if point.mode == "death" and point.call in writing]
    return itertools.count()


def _forked(save: Callable[[], None], place: Path, mode: Mode, k: int) -> tuple[str, int]:
    ours, theirs = os.pipe()
    drawn = random.getstate()
    pid = os.fork()
    if pid == 0:
        code = UNREACHED
        try:
            random.setstate(drawn)  # Python seeds it anew in a fork, and checkpoints hold it
            os.chdir(place)
            fault = _limit(k) if mode == "limit" else _inject(mode, k, theirs)
            save()
            code = SAVED if fault() else UNREACHED
        except Mistake:
            code = RAISED
        except BaseException:  # noqa: BLE001 - the parent looks at what is left
            code = UNSAID
        finally:
            os._exit(code)
    os.close(theirs)
    with os.fdopen(ours, "rb") as pipe:
        call = pipe.read().decode()
    return call, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _limit(most: int) -> Callable[[], bool]:
    """A true error of the system inside whatever writes: no file grows past `most` bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
    return lambda: True


def _inject(mode: Mode, k: int, pipe: int) -> Callable[[], bool]:
    """Patch this process, which ends after the save; the returned function says whether the fault came."""
    calls = 0

    def reached(name: str) -> bool:
        nonlocal calls
        calls += 1
        if calls - 1 == k:
            os.write(pipe, name.encode())
        return calls - 1 == k

    def through(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            if not reached(name):
                return real(*given)
            if name == "write" and mode in ("torn", "short"):
                count = real(given[0], given[1][: (len(given[1]) + 1) // 2])
                if mode == "short":
                    return count
            if mode == "short":
                return real(*given)
            _fail(mode)

        return call

    def writer(name: str, real: Callable[..., Any], at: int) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            if not reached(name):
                return real(*given, **named)
            if mode != "death":
                real(*given, **named)
            if mode == "short":
                return None
            if mode != "death":
                _halve(Path(given[at]))
            if isinstance(mode, int) and name == "save":  # how each library says it
                raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")
            if isinstance(mode, int) and name.endswith("save_file"):
                raise SafetensorError(f"Error while serializing: I/O error: {os.strerror(mode)} (os error {mode})")
            _fail(mode)

        return call

    for name in CALLS:
        setattr(syscalls, name, through(name, getattr(syscalls, name)))
    for owner, name, at in WRITERS:
        setattr(owner, name, writer(name, getattr(owner, name), at))
    return lambda: calls > k


def _fail(mode: Mode) -> None:
    if isinstance(mode, int):
        raise OSError(mode, os.strerror(mode))
    os._exit(DIED)


def _halve(path: Path) -> None:
    for file in [path] if path.is_file() else path.glob("tokenizer.json"):
        os.truncate(file, file.stat().st_size // 2)


def _look(mode: str, k: int, call: str, code: int, run: Path) -> Point:
    last, previous, wrong = run / "last", run / "last.previous", ""
    sound = sum(_verifies(folder) for folder in (last, previous))
    try:
        chosen = store.find_folder(last, tell=lambda line: None)
        step = store.read_json(chosen / "trainer_state.json")["global_step"]
    except store.Corrupt as corrupt:
        step, wrong = -1, str(corrupt)
    kept = epoch_folders(run)
    if not kept or not all(_verifies(folder.path) for folder in kept):
        wrong += f" epochs: {[folder.path.name for folder in kept]}"
    if code in (RAISED, UNSAID) and (
        left := [path.name for path in run.iterdir() if path.name.startswith(".stillhouse")]
    ):
        wrong += f" left: {left}"
    return Point(mode, k, call, code, step, sound, wrong)


def _verifies(folder: Path) -> bool:
    try:
        store.verify_folder(folder)
    except (store.Absent, store.Corrupt):
        return False
    return True


def at_save(number: int, work: Callable[[DistillationTrainer, Callable[[], None]], None]) -> None:
    """In this process, do `work` in the place of the `number`-th save of a run, and let it save then."""
    save, saves = DistillationTrainer._save_checkpoint, iter(range(1, 100))

    def watched(trainer: DistillationTrainer, *given: Any) -> None:
        if next(saves) == number:
            work(trainer, lambda: save(trainer, *given))
        save(trainer, *given)

    DistillationTrainer._save_checkpoint = watched
