"""A run's folder: new, interrupted or finished; and what it says of itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillhouse import store
from stillhouse.mistakes import Mistake
from stillhouse.recipe import Recipe, dump
from stillhouse.recipe.document import read_document
from stillhouse.training.checkpoints import LAST

RECIPE, FINISHED = "recipe.yaml", "finished.json"


@dataclass(frozen=True)
class RunFolder:
    """outputs/<student>/<method>/<name>, opened for one run.

    Attributes:
        path: the folder.
        resume_from: the checkpoint to go on from, or None for a start from nothing.
    """

    path: Path
    resume_from: Path | None

    @classmethod
    def open(cls, recipe: Recipe) -> RunFolder:
        """Make the folder, or take up the interrupted run in it.

        Raises:
            Mistake: it holds a finished run, or an interrupted one of another recipe.
        """
        path = recipe.folder
        if recipe.overwrite and path.exists():
            store.remove_folder(path)
        if (path / FINISHED).exists():
            raise Mistake(str(path), "holds a finished run", "give another --name, or --overwrite=true to replace it")
        if (path / RECIPE).exists():
            _refuse_changes(path, recipe)
        path.mkdir(parents=True, exist_ok=True)
        store.write_text(path / RECIPE, dump(recipe.as_dict()))
        try:
            return cls(path, store.find_folder(path / LAST))
        except store.Absent:
            return cls(path, None)

    def finish(self, summary: dict[str, Any]) -> None:
        """Mark the run as finished; from now on it is not overwritten unless told."""
        store.write_json(self.path / FINISHED, summary)


def _refuse_changes(path: Path, recipe: Recipe) -> None:
    store.verify_file(path / RECIPE)
    before = _flat(read_document(str(path / RECIPE)).nested())
    now = _flat(recipe.as_dict())
    changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    changed = [key for key in changed if key != "overwrite"]
    if changed:
        key = changed[0]
        raise Mistake(
            key,
            f"is {now.get(key)} here, but {before.get(key)} in the interrupted run in {path}",
            "give another --name, or --overwrite=true",
        )


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {
        name: value
        for key, child in tree.items()
        for name, value in _flat(child, f"{prefix}.{key}" if prefix else str(key)).items()
    }
