"""The commands of a suite: what each makes, what it is made from, and whether that is there already."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stillhouse import store
from stillhouse.mistakes import Mistake
from stillhouse.model_folders import base_of, find
from stillhouse.recipe import Recipe
from stillhouse.recipe.runs import FINISHED, difference
from stillhouse.recipe.scorers import evalplus_folder, evalplus_identity, lm_eval_version
from stillhouse.recipe.suite import SuiteRow
from stillhouse.store.digests import of_file
from stillhouse.suite.inputs import changed, files_of, states_of

MADE = "made.json"


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

    def begin(self) -> None:
        """Note what it is being made from, or forget what it was made from; a job may have neither."""

    def stamp(self) -> None:
        """Note what it was made from, when it has just ended well, if that was not noted before."""

    def __str__(self) -> str:
        return shlex.join(self.command)


@dataclass(frozen=True, kw_only=True)
class Training(Job):
    """One row with one seed.

    Attributes:
        recipe: that it is trained by.
        rehearsed: the same, with models that are there in the place of runs that are yet to be.
        sources: the runs of other rows that it learns from.
        note: the file that says which they were, and what else it read.
    """

    recipe: Recipe
    rehearsed: Recipe
    sources: tuple[Training, ...]
    note: Path

    @property
    def folder(self) -> Path:
        """Of the run. A student that is another row's run gives its student's name, whether it is there yet or not."""
        return self.rehearsed.folder

    @property
    def finished(self) -> bool:
        """Whether there is a run that has ended, by whatever recipe."""
        return (self.folder / FINISHED).is_file()

    @property
    def begun(self) -> bool:
        """Whether there is a run that has saved something."""
        return self.finished or any(path.is_dir() for path in self.folder.glob("*"))

    @property
    def changed(self) -> tuple[str, Any, Any] | None:
        """The first key in which the run that is there is of another recipe, what it is there and here."""
        return difference(self.folder, self.recipe) if self.begun else None

    @property
    def outdated(self) -> Training | None:
        """A run that this one learnt from and that is no more as it was; None too where nobody noted."""
        noted = self._noted
        if noted is None:
            return None
        return next((source for source in self.sources if noted["runs"].get(source.title) != source.result), None)

    @property
    def changed_file(self) -> tuple[str, Path] | None:
        """A key of the recipe, and a file behind it that is no more what this run read; None too where nobody noted."""
        noted = self._noted
        return None if noted is None or noted["files"] is None else changed(noted["files"], self._files)

    @property
    def result(self) -> Any:
        """What the run says of itself; None while it is not done."""
        return store.read_json(self.folder / FINISHED) if self.done else None

    @property
    def done(self) -> bool:
        """Whether the run is finished, is of this recipe, and learnt from runs and files that are still the same."""
        return self.finished and self.changed is None and self.outdated is None and self.changed_file is None

    def begin(self) -> None:
        """Note what it learns from, as it is: a run that is stopped goes on only under the same.

        A run that learnt from something else is removed first, so that this note is never taken for that run's.

        Raises:
            Mistake: that changed after the suite was planned, which did not say to replace the run.
        """
        if self.begun and (self.outdated is not None or self.changed_file is not None):
            if "--overwrite=true" not in self.command:
                wrong = "learnt from what has changed since this suite was started"
                raise Mistake(str(self.folder), wrong, "give the command again, which says what")
            store.remove_folder(self.folder)
        runs = {source.title: source.result for source in self.sources}
        store.write_json(self.note, {"runs": runs, "files": states_of(self._files)})

    @property
    def _noted(self) -> dict[str, Any] | None:
        try:
            noted = store.read_json(self.note)
        except (store.Corrupt, store.Absent):
            return None
        if noted.keys() == {"runs", "files"}:
            return noted
        return {"runs": noted, "files": None}  # as suites noted before they looked at files

    @property
    def _files(self) -> dict[str, list[Path]]:
        return files_of(self.recipe, [source.folder for source in self.sources])


@dataclass(frozen=True, kw_only=True)
class Scoring(Job):
    """One model in one way.

    Attributes:
        out: the folder of the scores, and of what they were made by.
        kind: of evaluation.
        chosen: its options.
        files: that it reads.
        model: that is scored.
        training: of it; None where the suite does not train it.
    """

    out: Path
    kind: str
    chosen: Mapping[str, Any] = field(hash=False)
    files: tuple[Path, ...]
    model: str
    training: Training | None

    @property
    def made_by(self) -> dict[str, Any] | None:
        """What the scores that are there were made by; None where there are none."""
        try:
            made = store.read_json(self.out / MADE)
        except (store.Corrupt, store.Absent):
            return None
        return made if all((self.out / file).is_file() for file in made["results"]) else None

    @property
    def done(self) -> bool:
        """Whether the scores are there, made by the same; of a model on the Hub, `evaluate` itself looks."""
        made = self.made_by
        if made is None or made["run"] is None:
            return False
        found = self._found()
        if found.get("scorer", "") is None:  # it is gone, and the scores are there
            found["scorer"] = made.get("scorer")
        return made == {**found, "results": made["results"]}

    def begin(self) -> None:
        """What is there may be replaced before this ends."""
        for file in self.out.glob(f"{MADE}*"):
            file.unlink()

    def stamp(self) -> None:
        """Note what the scores were made by."""
        from stillhouse.evaluation.measures import MEASURES  # with all that evaluation imports: not for a plan alone

        results = sorted(str(file.relative_to(self.out)) for file in self.out.rglob(MEASURES))
        store.write_json(self.out / MADE, {**self._found(), "results": results})

    def _found(self) -> dict[str, Any]:
        """What the scores depend on, as far as it can be told without reading weights."""
        return {
            "chosen": dict(self.chosen),
            "run": _files_of(self.model) if self.training is None else self.training.result,
            "files": {str(file): str(of_file(file)) for file in self.files},
            "teacher": _files_of(self.chosen["teacher"]) if "teacher" in self.chosen else None,
            **self._scorer(),
        }

    def _scorer(self) -> dict[str, str | None]:
        """Whose code, not ours, makes the scores; None where it is not installed, nothing where ours does."""
        if self.kind == "tasks":
            return {"scorer": lm_eval_version()}
        if self.chosen.get("scorer") != "evalplus" or not self.chosen["run_generated_code"]:
            return {}
        try:
            return {"scorer": evalplus_identity(evalplus_folder(self.chosen.get("evalplus")))}
        except Mistake:
            return {"scorer": None}


def _files_of(model: str) -> dict[str, list[int]] | None:
    """Size and time of every file of a model's folder, an adapter's base included; None for a name on the Hub."""
    folder = Path(find(model))
    if not folder.is_dir():
        return None
    base = base_of(str(folder))
    beneath = {} if base is None else _files_of(base)
    if beneath is None:
        return None
    states = {str(path): path.stat() for path in sorted(folder.iterdir()) if path.is_file()}
    return {**beneath, **{path: [state.st_size, state.st_mtime_ns] for path, state in states.items()}}


@dataclass(frozen=True)
class Line:
    """A row with all that is to be done for it: trainings and scorings by seed; `None` where nothing is trained."""

    row: SuiteRow
    trainings: dict[int | None, Training]
    scorings: dict[int | None, list[Scoring]]

    @property
    def jobs(self) -> list[Job]:
        """All of them, trainings first."""
        return [*self.trainings.values(), *(scoring for every in self.scorings.values() for scoring in every)]
