"""A run's folder: new, interrupted or finished; and what it says of itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillhouse import store
from stillhouse.mistakes import Mistake
from stillhouse.model_folders import RECIPE, epoch_folders
from stillhouse.recipe import Recipe, dump
from stillhouse.recipe.runs import FINISHED, difference
from stillhouse.training.checkpoints import LAST


@dataclass(frozen=True)
class RunFolder:
    """outputs/<student>/<method>/<name>, opened for one run.

    Attributes:
        path: the folder.
        resume_from: the checkpoint to go on from, or None for a start from nothing.
        remarks: what the log shall say of that choice.
    """

    path: Path
    resume_from: Path | None
    remarks: tuple[str, ...] = ()

    @classmethod
    def open(cls, recipe: Recipe) -> RunFolder:
        """Make the folder, or take up the interrupted run in it.

        Raises:
            Mistake: it holds a finished run, or an interrupted one that is of another recipe or does not verify, and
                `overwrite` is not set.
        """
        path = recipe.folder
        wrong = _why_not(path, recipe)
        if wrong is not None:
            if not recipe.overwrite:
                raise wrong
            store.remove_folder(path)
        path.mkdir(parents=True, exist_ok=True)
        store.write_text(path / RECIPE, dump(recipe.as_dict()))
        remarks: list[str] = []
        return cls(path, _last(path, remarks), tuple(remarks))

    def finish(self, summary: dict[str, Any]) -> None:
        """Mark the run as finished; from now on it is not overwritten unless told."""
        store.drop_previous(self.path / LAST)
        store.write_json(self.path / FINISHED, summary)


def _last(path: Path, remarks: list[str]) -> Path | None:
    """The newest state that verifies; `remarks` gets a line where a newer one does not."""
    try:
        return store.find_folder(path / LAST, tell=remarks.append)
    except store.Absent:
        return None


def _why_not(path: Path, recipe: Recipe) -> Mistake | None:
    """What stands against training `recipe` in `path`; an interrupted run of the same recipe does not."""
    if (path / FINISHED).exists():
        return Mistake(str(path), "holds a finished run", "give another --name, or --overwrite=true to replace it")
    try:
        if _last(path, []) is None and not epoch_folders(path):
            return None
        store.verify_file(path / RECIPE)
    except (store.Corrupt, store.Absent) as lost:
        return Mistake(lost.where, lost.wrong, "--overwrite=true starts this run anew")
    changed = difference(path, recipe)
    if changed is None:
        return None
    key, before, now = changed
    wrong = f"is {now} here, but {before} in the interrupted run in {path}"
    return Mistake(key, wrong, "give another --name, or --overwrite=true")
