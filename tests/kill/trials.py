"""Runs in processes of their own, killed from outside while they are in a phase, and what they must leave in the end.

torch is imported once, in the process of the tests; every run is a fork of it, which never trains itself.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from stillhouse import store
from stillhouse.catalogue import METHODS
from stillhouse.recipe import Recipe, parse
from stillhouse.training import prepare, processes, run, trainer
from stillhouse.training.folder import FINISHED, RunFolder
from stillhouse.training.on_policy import SAMPLES, OnPolicy
from tests.distributed.ranks import forget_processes

TIMEOUT = 120.0
Kill = tuple[str, int, float]
Work = Callable[[], None]
Say = Callable[[str, str], None]

# What a recipe of the family adds: buffers and parameters of methods, packing, an adapter with dropout, saves between,
# a replay buffer of what the student wrote.
FAMILIES: dict[str, tuple[str, ...]] = {
    "sft": ("--training.train_sampling_strategy=group_by_length",),
    "todi": ("--method=todi", "--data.packing=true", "--training.save_steps=1"),
    "taid": ("--method=taid", "--training.save_steps=2", "--training.gradient_accumulation_steps=2"),
    "ctkd": ("--method=ctkd", "--evaluation.keep_best=2", "--training.max_steps=7"),  # ends within an epoch
    "forward_kl": ("--method=forward_kl", "--student.lora.r=2", "--student.lora.lora_dropout=0.2"),
    "distillm": (
        "--method=distillm", "--rollout.threshold=0.8", "--rollout.capacity=8", "--rollout.max_new_tokens=5",
        "--training.save_steps=1",
    ),
}  # fmt: skip
WRITING = "distillm"  # the family whose student writes
PHASES = ("encoding", "rollout", "step", "evaluation", "last", "epoch", "finish")


def recipe(world: Path, output: Path, family: str, *more: str) -> Recipe:
    tree: dict[str, Any] = {
        "student": {"model": str(world / "small")},
        "data": {
            "train": str(world / "train.jsonl"), "eval": str(world / "dev.jsonl"), "template": "short",
            "max_length": 96, "max_prompt_length": 64,
        },
        "evaluation": {"max_new_tokens": 2, "keep_best": 1},
        "training": {
            "learning_rate": 1e-2, "num_train_epochs": 2, "per_device_train_batch_size": 5, "logging_steps": 2,
            "use_cpu": True,
        },
        "output": str(output),
    }  # fmt: skip
    if METHODS[family].needs_teacher:
        tree["teacher"] = {"model": str(world / "large")}
    output.mkdir(parents=True, exist_ok=True)
    path = output / "recipe.yaml"
    path.write_text(json.dumps(tree))
    return parse("sft" if family == "sft" else "distill", [str(path), *FAMILIES[family], *more])


@contextmanager
def phases_told(say: Say) -> Iterator[None]:
    """Call `say(phase, "enter")` and `say(phase, "leave")` around the phases of a run in this process."""
    opened: set[str] = set()

    def enter(phase: str) -> None:
        if phase not in opened:  # a step of several micro-batches begins with the first
            opened.add(phase)
            say(phase, "enter")

    def leave(phase: str) -> None:
        opened.discard(phase)
        say(phase, "leave")

    def around(owner: Any, name: str, begins: str | None, ends: str | None) -> None:
        real = getattr(owner, name)

        def told(*given: Any, **named: Any) -> Any:
            if begins:
                enter(begins)
            result = real(*given, **named)
            if ends:
                leave(ends)
            return result

        setattr(owner, name, told)

    @contextmanager
    def written(*given: Any, **named: Any) -> Iterator[Path]:
        enter("last")
        with really_written(*given, **named) as folder:
            yield folder
        leave("last")

    distilling = trainer.DistillationTrainer
    really_written = processes.written_together
    processes.written_together = written
    around(OnPolicy, "step", "rollout", "rollout")
    around(prepare, "encode_all", "encoding", "encoding")
    around(distilling, "training_step", "step", None)
    around(trainer._Moments, "on_step_end", None, "step")
    around(distilling, "evaluate", "evaluation", "evaluation")
    around(trainer, "keep_best", "epoch", "epoch")
    around(distilling, "_finalize_training", "finish", None)
    around(RunFolder, "finish", "finish", "finish")
    yield


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        code: 0, or minus the signal that ended it.
        spans: phase -> how many seconds each visit to it took.
        output: what it said.
    """

    code: int
    spans: dict[str, list[float]]
    output: str


def launch(
    made: Recipe, said: Path, *, where: Path | None = None, kill: Kill | None = None, first: Work | None = None
) -> Ended:
    """Train in a fork, in the working directory `where`; `first` is done there before.

    SIGKILL comes so many seconds after the start of a visit to a phase, which `kill` names with the visit's number. The
    process never leaves that visit: it kills itself at its end, if the seconds were too many.
    """
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_train, args=(made, said, theirs, where, kill, first))
    process.start()
    theirs.close()
    assert process.pid is not None
    spans: dict[str, list[float]] = {}
    begun: dict[str, float] = {}
    try:
        while ours.poll(TIMEOUT):
            phase, what, at = ours.recv()
            if what == "enter":
                begun[phase] = at
                if kill and (phase, len(spans.get(phase, []))) == kill[:2]:
                    time.sleep(max(0.0, at + kill[2] - time.monotonic()))
                    os.kill(process.pid, signal.SIGKILL)
            else:
                spans.setdefault(phase, []).append(at - begun.pop(phase))
    except EOFError:
        process.join(TIMEOUT)
    if process.exitcode is None:
        process.kill()
        process.join()
    assert process.exitcode is not None
    return Ended(process.exitcode, spans, said.read_text(errors="replace"))


def _train(
    made: Recipe, said: Path, pipe: Connection, where: Path | None, kill: Kill | None, first: Work | None
) -> None:
    code = 1
    visits: dict[str, int] = dict.fromkeys(PHASES, 0)
    output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)

    def say(phase: str, what: str) -> None:
        if what == "leave" and kill and (phase, visits[phase]) == kill[:2]:
            os.kill(os.getpid(), signal.SIGKILL)
        visits[phase] += what == "leave"
        pipe.send((phase, what, time.monotonic()))

    try:
        if where is not None:
            os.chdir(where)
        if first is not None:
            first()
        forget_processes()
        with phases_told(say):
            run(made)
        code = 0
    except BaseException:  # noqa: BLE001 - the test shows it
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


TIMES = {"tokens_per_second"}


def left_by(folder: Path) -> dict[str, Any]:
    """All that a finished run leaves which does not say when: bytes, or numbers without times."""
    store.verify_folder(folder / "last")
    epochs = sorted(folder.glob("epoch*"))
    for epoch in epochs:
        store.verify_folder(epoch)
    lines = [json.loads(line) for line in store.read_lines(folder / "metrics.jsonl")]
    timeless = [{key: value for key, value in line.items() if key not in TIMES} for line in lines]
    bytes_of_last = {
        path.name: path.read_bytes()
        for path in (folder / "last").iterdir()
        if path.name not in ("manifest.json", "trainer_state.json")
    }
    return {
        "names": sorted(path.name for path in folder.iterdir() if path.name != "train.log"),
        "finished": store.read_json(folder / FINISHED),
        "metrics": [json.dumps(line) for line in timeless if "train_runtime" not in line],
        "samples": (folder / SAMPLES).read_text() if (folder / SAMPLES).exists() else "",
        "runtimes": sum("train_runtime" in line for line in lines) <= 1,
        **{f"last/{name}": content for name, content in bytes_of_last.items()},
        **{f"{epoch.name}/manifest.json": (epoch / "manifest.json").read_bytes() for epoch in epochs},
    }
