"""What a training reads from the disk, and whether that is as it was: by size and time, else by hash."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from stillhouse.catalogue.sources import REJECTED
from stillhouse.data.rows import files_of_split
from stillhouse.mistakes import Mistake
from stillhouse.model_folders import base_of, decisive_files, find, method_weights
from stillhouse.recipe import Recipe
from stillhouse.store.digests import of_file

State = Sequence[int | str]  # bytes, time of the last change in ns, xxh3
States = Mapping[str, Mapping[str, State]]  # by key of the recipe, then by path


def files_of(recipe: Recipe, made: Sequence[Path]) -> dict[str, list[Path]]:
    """The files behind every key of `recipe` that names some; a name on the Hub has none, nor has what is gone.

    Args:
        recipe: of a training.
        made: runs of the same suite, which are compared as a whole: their files are left out.
    """
    data, rollout, vocabulary = recipe.data, recipe.rollout or {}, recipe.vocabulary or {}
    rows = [
        ("data.train", data.train, data.train_split), ("data.eval", data.eval, data.eval_split),
        ("data.corpus", data.corpus, "train"), ("rollout.written", rollout.get("written", "none"), "train"),
    ]  # fmt: skip
    found = {key: _rows(name, split) for key, name, split in rows if name not in (None, "none", REJECTED)}
    if "path" in vocabulary:
        found["vocabulary.path"] = [Path(vocabulary["path"])]
    if (projectors := recipe.method.get("projectors", "none")) != "none":
        found["method.projectors"] = _weights(projectors)
    for side in ("student", "teacher"):
        for key in ("model", "tokenizer"):
            name = getattr(getattr(recipe, side), key, None)
            if name is not None:
                found[f"{side}.{key}"] = _model(name)
    ours = {key: [path for path in paths if path.is_file() and not _lies_in(path, made)]
            for key, paths in found.items()}  # fmt: skip
    return {key: paths for key, paths in ours.items() if paths}


def states_of(files: Mapping[str, Sequence[Path]]) -> dict[str, dict[str, State]]:
    """How they are now."""
    return {key: {str(path): _state(path) for path in paths} for key, paths in files.items()}


def changed(noted: States, files: Mapping[str, Sequence[Path]]) -> tuple[str, Path] | None:
    """The first key of which a file is not as it was, and that file; None where all are, or are gone."""
    for key, paths in files.items():
        before = noted.get(key, {})
        for path in paths:
            if str(path) not in before or not _same(path, before[str(path)]):
                return key, path
        if missing := before.keys() - {str(path) for path in paths}:
            return key, Path(min(missing))
    return None


def _same(path: Path, before: State) -> bool:
    status = path.stat()
    if [status.st_size, status.st_mtime_ns] == list(before[:2]):
        return True
    return status.st_size == before[0] and _state(path)[2] == before[2]


def _state(path: Path) -> State:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, _hash(path, status.st_size, status.st_mtime_ns)]


@cache
def _hash(path: Path, size: int, time: int) -> str:  # once for all rows and seeds
    return of_file(path).xxh3


def _rows(name: str, split: str) -> list[Path]:
    path = Path(name)
    try:
        return files_of_split(path, split) if path.is_dir() else [path]
    except Mistake:  # no such split, any more
        return []


def _model(name: str) -> list[Path]:
    """Of a run, its best checkpoint; an adapter's base included."""
    try:
        folder = Path(find(name))
        base = base_of(str(folder))
    except Mistake:  # no longer whole
        return []
    return [*(decisive_files(folder) if folder.is_dir() else []), *(_model(base) if base is not None else [])]


def _weights(name: str) -> list[Path]:
    try:
        return [method_weights(name, "method.projectors")]
    except Mistake:
        return []


def _lies_in(path: Path, folders: Sequence[Path]) -> bool:
    return any(folder in path.parents for folder in folders)
