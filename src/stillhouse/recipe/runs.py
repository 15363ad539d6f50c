"""What is to be known of a run's folder without loading anything: whether it is finished, and by which recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stillhouse.model_folders import RECIPE
from stillhouse.recipe.document import read_document
from stillhouse.recipe.schema import Recipe

FINISHED = "finished.json"


def difference(path: Path, recipe: Recipe) -> tuple[str, Any, Any] | None:
    """The first key in which the run in `path` is of another recipe, what it is there and here; None for the same."""
    before, now = _flat(read_document(str(path / RECIPE)).nested()), _flat(recipe.as_dict())
    changed = (key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key))
    key = next((key for key in changed if key != "overwrite"), None)
    return None if key is None else (key, before.get(key), now.get(key))


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {
        name: value
        for key, child in tree.items()
        for name, value in _flat(child, f"{prefix}.{key}" if prefix else str(key)).items()
    }
