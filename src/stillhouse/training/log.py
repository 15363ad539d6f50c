"""A run's own words: train.log, metrics.jsonl, and what a terminal shows."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stillhouse import store
from stillhouse.training.processes import is_first

METRICS = "metrics.jsonl"
logger = logging.getLogger("stillhouse")


class _StoredLog(logging.Handler):
    """Lines that are on the disk when the call returns, and are healed after a crash."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def emit(self, record: logging.LogRecord) -> None:
        store.append_line(self.path, self.format(record))


def open_log(folder: Path) -> list[logging.Handler]:
    """Send the "stillhouse" logger to `folder`/train.log and to standard error; give the handlers to close.

    Of several processes only the first one speaks.
    """
    if not is_first():
        logger.setLevel(logging.ERROR)
        return []
    handlers: list[logging.Handler] = [_StoredLog(folder / "train.log"), logging.StreamHandler(sys.stderr)]
    handlers[0].setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    handlers[1].setFormatter(logging.Formatter("%(message)s"))
    for handler in handlers:
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    return handlers


def close_log(handlers: list[logging.Handler]) -> None:
    """Detach and close what `open_log` opened."""
    for handler in handlers:
        logger.removeHandler(handler)
        handler.close()


class RunLog(TrainerCallback):
    """One line a log event in metrics.jsonl and in train.log."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / METRICS

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """After a resume, drop the lines that an interrupted run wrote past its checkpoint: they come again."""
        if state.is_world_process_zero and self.path.exists():
            lines = [(line, json.loads(line)) for line in store.read_lines(self.path)]
            kept = [line for line, of in lines if of["step"] <= state.global_step and "train_runtime" not in of]
            store.rewrite_lines(self.path, kept)

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Close the window of means before a checkpoint, so that a resumed run writes the same lines."""
        control.should_log = True

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **event: Any) -> None:
        """Write the event's `logs` with its step."""
        if not state.is_world_process_zero:
            return
        # train_loss is a mean since the process began, so a resumed run would give another one.
        line = {"step": state.global_step, **{key: v for key, v in event["logs"].items() if key != "train_loss"}}
        store.append_line(self.path, json.dumps(line))
        logger.info(_sentence(line, state.max_steps))


def _sentence(line: dict[str, float], steps: int) -> str:
    """A log event as a person reads it: where the run is, then every number."""
    shown = [f"{key} {value:.4g}" for key, value in line.items() if key not in ("step", "epoch")]
    return f"step {line['step']} of {steps}, epoch {line.get('epoch', 0):.2f}: " + ", ".join(shown)


class Progress(ProgressCallback):
    """The Trainer's bar without its own log lines, which `RunLog` writes."""

    def on_log(self, *_: Any, **__: Any) -> None:
        """Nothing."""
