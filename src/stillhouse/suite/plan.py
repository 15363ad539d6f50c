"""What a suite is to do, as command lines: each row trained once per seed, and scored in every way."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stillhouse import store
from stillhouse.mistakes import Mistake, unknown_name
from stillhouse.recipe import Recipe, check, parse
from stillhouse.recipe.document import read_document
from stillhouse.recipe.runs import FINISHED, difference
from stillhouse.recipe.suite import SuiteOptions, SuiteRow, flat

MADE = "made.json"
OF_A_TEACHER = ("teacher", "alignment", "vocabulary", "rollout")  # sections that sft does not ask
_OTHER_ROW = re.compile(r"\{([^{}:,\"]+)\}")  # {SFT}: the folder of that row's run


@dataclass(frozen=True)
class Job:
    """One command.

    Attributes:
        title: what it is, for people.
        command: of the shell, whole.
        log: where its output goes.
        needs: titles of jobs that come before it.
    """

    title: str
    command: tuple[str, ...]
    log: Path
    needs: tuple[str, ...] = ()

    @property
    def done(self) -> bool:
        """Whether what it makes is there."""
        raise NotImplementedError

    def __str__(self) -> str:
        return shlex.join(self.command)


@dataclass(frozen=True)
class Training(Job):
    """One row with one seed."""

    recipe: Recipe | None = None

    @property
    def folder(self) -> Path:
        """Of the run."""
        assert self.recipe is not None
        return self.recipe.folder

    @property
    def done(self) -> bool:
        """Whether the run is finished."""
        return (self.folder / FINISHED).is_file()


@dataclass(frozen=True)
class Scoring(Job):
    """One model in one way; `out` gets the scores, and what they were made by."""

    out: Path = Path()
    model: str = ""

    @property
    def stamp(self) -> dict[str, Any]:
        """What the scores depend on, as far as it can be told without reading weights."""
        finished = Path(self.model) / FINISHED
        return {
            "arguments": list(self.command[self.command.index("evaluate") :]),
            "run": store.read_json(finished) if finished.is_file() else None,
        }

    @property
    def done(self) -> bool:
        """Whether the scores are there, made by the same; of a model that no suite trained, `evaluate` itself looks."""
        try:
            return self.stamp["run"] is not None and store.read_json(self.out / MADE) == self.stamp
        except (store.Corrupt, store.Absent):
            return False


@dataclass(frozen=True)
class Line:
    """A row with all that is to be done for it: trainings and scorings by seed; `None` where nothing is trained."""

    row: SuiteRow
    trainings: dict[int | None, Training]
    scorings: dict[int | None, list[Scoring]]


def plan(options: SuiteOptions) -> list[Line]:
    """The whole suite, checked: every command would be taken as it is.

    Raises:
        Mistake: a row's recipe or a kind's options are wrong, or a finished run is of other settings.
    """
    lines: list[Line] = []
    for number, row in enumerate(options.lines, start=1):
        try:
            lines.append(_line(options, row, lines))
        except Mistake as mistake:
            raise Mistake(f"rows[{number}], {row.name}: {mistake.where}", mistake.wrong, mistake.mend) from None
    return lines


def _line(options: SuiteOptions, row: SuiteRow, before: Sequence[Line]) -> Line:
    if row.model is not None:
        return Line(row, {}, {None: _scorings(options, row, None, row.model, ())})
    trainings: dict[int | None, Training] = {seed: _training(options, row, seed, before) for seed in options.seeds}
    scorings = {
        seed: _scorings(options, row, seed, str(training.folder), (training.title,))
        for seed, training in trainings.items()
    }
    return Line(row, trainings, scorings)


def _training(options: SuiteOptions, row: SuiteRow, seed: int, before: Sequence[Line]) -> Training:
    assert row.recipe is not None
    common, written = flat(options.set), read_document(row.recipe).values
    verb = _verb({**written, **row.changes}) if "method.name" in row.changes else _verb(written)
    if verb == "sft":
        common = {key: value for key, value in common.items() if key.partition(".")[0] not in OF_A_TEACHER}
        common |= {key: None for key in OF_A_TEACHER if any(name.partition(".")[0] == key for name in written)}
    changes, needs = _with_other_rows({**common, **row.changes}, seed, before)
    settled = {**changes, "seed": seed, "output": str(Path(options.output, "runs")), "name": f"{row.slug}-seed{seed}"}
    if options.trust_remote_code:
        settled |= {f"{side}.trust_remote_code": True for side in ("student", *(("teacher",) * (verb == "distill")))}
    arguments = [verb, row.recipe, *(f"--{key}={_text(value)}" for key, value in settled.items())]
    recipe: Recipe = parse(verb, arguments[1:])
    title = f"{row.name}, seed {seed}"
    training = Training(title, (), Path(options.output, "logs", f"{row.slug}-seed{seed}.log"), needs, recipe)
    if training.done:
        _refuse_other_settings(options, training)
    elif not needs:
        check(replace(recipe, overwrite=True))
    again = ["--overwrite=true"] if training.done else []
    return replace(training, command=(*_launched(options.launcher), *arguments, *again))


def _verb(written: Mapping[str, Any]) -> str:
    """What trains a recipe of these keys."""
    name = written.get("method.name", written.get("method"))
    taught = any(key.partition(".")[0] == "teacher" for key in written)
    return "sft" if str(name).lower() == "sft" or (name is None and not taught) else "distill"


def _refuse_other_settings(options: SuiteOptions, training: Training) -> None:
    assert training.recipe is not None
    changed = difference(training.folder, training.recipe)
    if changed is not None and not options.overwrite:
        key, before, now = changed
        wrong = f"is {now} here, but {training.folder} was trained with {before}"
        raise Mistake(key, wrong, "give another output, or --overwrite=true to train it anew")


def _with_other_rows(
    changes: dict[str, Any], seed: int, before: Sequence[Line]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """`changes` with {ROW} replaced by the folder of that row's run, and the titles of those runs."""
    trained = {line.row.name: line.trainings[seed] for line in before if line.trainings}
    needs: list[str] = []

    def folder(found: re.Match[str], key: str) -> str:
        if found[1] not in trained:
            raise unknown_name(key, "row above this one", found[1], trained)
        needs.append(trained[found[1]].title)
        return str(trained[found[1]].folder)

    filled = {
        key: _OTHER_ROW.sub(lambda found, key=key: folder(found, key), value) if isinstance(value, str) else value
        for key, value in changes.items()
    }
    return filled, tuple(needs)


def _scorings(
    options: SuiteOptions, row: SuiteRow, seed: int | None, model: str, needs: tuple[str, ...]
) -> list[Scoring]:
    part = row.slug if seed is None else f"{row.slug}-seed{seed}"
    found = []
    for kind, chosen in options.evaluate.items():
        verb = ["evaluate"] if kind == "instruct" else ["evaluate", kind]
        out = Path(options.output, "scores", part, kind)
        settled = {**chosen, "model": model, "out": str(out)}
        if options.trust_remote_code:
            settled["trust_remote_code"] = True
        if options.overwrite:
            settled["overwrite"] = True
        if kind == "code" and options.run_generated_code:
            settled["run_generated_code"] = True
        arguments = [f"--{key}={_text(value)}" for key, value in settled.items()]
        _check_scoring(parse(" ".join(verb), arguments))
        command = (sys.executable, "-m", "stillhouse", *verb, *arguments)
        title = f"{row.name}{'' if seed is None else f', seed {seed}'}: {kind}"
        found.append(Scoring(title, command, Path(options.output, "logs", f"{part}-{kind}.log"), needs, out, model))
    return found


def _check_scoring(options: Any) -> None:
    """Look at the files that it names, but for a model that is yet to be trained."""
    try:
        check(options)
    except Mistake as mistake:
        if mistake.where != "model":
            raise


def _launched(launcher: str | None) -> tuple[str, ...]:
    return (*(shlex.split(launcher) if launcher else (sys.executable,)), "-m", "stillhouse")


def _text(value: Any) -> str:
    """A value as a command line says it."""
    return value if isinstance(value, str) else json.dumps(value)
