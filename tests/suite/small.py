"""A suite over the toy world: written down, planned, and carried out in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from stillhouse import cli, store
from stillhouse.recipe import SuiteOptions, dump, parse
from stillhouse.suite.jobs import Job, Line, Training
from tests.toy import write_rows, write_world

ROWS = [
    {"name": "Base", "model": "small"},
    {"name": "SFT", "method.name": "sft"},
    {"name": "FKL", "student.model": "{SFT}", "method": {"name": "forward_kl"}},
    {"name": "ToDi", "training": {"learning_rate": 0.2}},
]
INSTRUCT = {
    "data": ["one.jsonl", "two.jsonl"], "template": "short", "max_length": 96, "max_prompt_length": 64,
    "max_new_tokens": 10, "seeds": [1, 2],
}  # fmt: skip
RECIPE = {
    "student": {"model": "small"},
    "teacher": {"model": "large"},
    "data": {"train": "train.jsonl", "template": "short", "max_length": 96, "max_prompt_length": 64},
    "method": {"name": "todi", "kd_weight": 0.7},
    "training": {"max_steps": 2, "use_cpu": True, "learning_rate": 0.03},
}


def write_folder(folder: Path) -> None:
    """What a suite in `folder` needs, recipe.yaml and suite.yaml included."""
    write_world(folder)
    write_rows(folder / "one.jsonl", 12)
    write_rows(folder / "two.jsonl", 9)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    write_suite()


def write_suite(**changes: Any) -> None:
    """suite.yaml of the working folder."""
    written = {
        "title": "Toy", "output": "out", "recipe": "recipe.yaml", "seeds": [3, 4], "set": {"training.logging_steps": 1},
        "rows": ROWS, "evaluate": {"instruct": INSTRUCT}, "resamples": 200, "columns": ["ROUGE-L"],
    }  # fmt: skip
    Path("suite.yaml").write_text(yaml.safe_dump({**written, **changes}, sort_keys=False))


def options(*arguments: str, **changes: Any) -> SuiteOptions:
    """Of suite.yaml with `changes`, and of what a user types behind it."""
    write_suite(**changes)
    return parse("suite", ["suite.yaml", *arguments])


def job(lines: list[Line], title: str) -> Job:
    """The one that is called so."""
    return next(job for line in lines for job in line.jobs if job.title == title)


def do(job: Job) -> None:
    """The job's own command, in this process: a start of Python takes longer than all that a toy does."""
    words = job.command[job.command.index("stillhouse") + 1 :]
    job.begin()
    assert cli.main(words) == 0
    job.stamp()


def pretend(training: Training, **says: Any) -> None:
    """Begin a run, and leave of it what a suite looks at: quicker than the least training."""
    training.begin()
    (training.folder / "epoch1_step2").mkdir(parents=True, exist_ok=True)
    (training.folder / "epoch1_step2/config.json").write_text("{}")
    store.write_text(training.folder / "recipe.yaml", dump(training.recipe.as_dict()))
    store.write_json(training.folder / "finished.json", {"steps": 2, "best": "epoch1_step2", **says})
