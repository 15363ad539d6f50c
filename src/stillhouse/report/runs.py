"""A run's folder as the report reads it: its recipe, its learning curves, its scores.

Folders may come from strangers: YAML without aliases or tags, JSON, and nothing else is read, checked where it has a
hash; a value that is not what its name promises is left out and said in `Run.remarks`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from stillhouse import store
from stillhouse.mistakes import Mistake
from stillhouse.recipe.document import read_document
from stillhouse.recipe.runs import FINISHED
from stillhouse.report.spread import Spread, spread

METRICS = ("rougeL", "exact_match")
Line = Mapping[str, float]


@dataclass(frozen=True)
class Run:
    """One finished or unfinished run.

    Attributes:
        folder: its own.
        recipe: its keys.
        training: a line for each logging step.
        evaluation: a line for each epoch.
        scores: of its evaluation/, by data set and metric, over sampling seeds.
        seconds: of training.
        remarks: what was left out.
        suite: the folder of the suite that it is of.
        row: of that suite's table, as folders are called by it.
        measures: what that suite measured, by name, over sampling seeds.
    """

    folder: Path
    recipe: Mapping[str, Any]
    training: tuple[Line, ...]
    evaluation: tuple[Line, ...]
    scores: Mapping[str, Mapping[str, Spread]]
    seconds: float | None
    remarks: tuple[str, ...]
    suite: Path | None = None
    row: str | None = None
    measures: Mapping[str, Spread] = field(default_factory=dict)

    @property
    def method(self) -> str:
        """The recipe's name of the method."""
        return str(_mapping(self.recipe.get("method")).get("name", "?"))

    @property
    def student(self) -> str:
        """The student's model as the recipe names it."""
        return str(_mapping(self.recipe.get("student")).get("model", "?"))

    @property
    def seed(self) -> float:
        """The recipe's seed; -1 where it has none."""
        seed = self.recipe.get("seed")
        return float(seed) if isinstance(seed, int | float) else -1.0


def find_runs(paths: Iterable[str | Path]) -> list[Run]:
    """Every run at or below `paths`, in the order of their folders' names.

    Raises:
        Mistake: a path does not exist or holds no run.
    """
    folders: dict[Path, None] = {}
    for path in map(Path, paths):
        if not path.is_dir():
            raise Mistake(str(path), "no such folder", "give the folder of a run, or one that holds runs")
        found = sorted(file.parent for file in path.rglob("recipe.yaml") if (file.parent / "metrics.jsonl").is_file())
        if not found:
            raise Mistake(str(path), "holds no run (a folder with recipe.yaml and metrics.jsonl)", "see `output` of it")
        folders.update(dict.fromkeys(found))
    return [read_run(folder) for folder in folders]


def read_run(folder: Path) -> Run:
    """The run in `folder`.

    Raises:
        Mistake: a file is missing, corrupt, or not what a run writes.
    """
    recipe = read_recipe(folder / "recipe.yaml")
    remarks: list[str] = []
    lines = [_numbers(line, remarks) for line in _metric_lines(folder / "metrics.jsonl", remarks)]
    scores = folder / "evaluation" / "scores.json"
    suite, row = _suite_of(folder, recipe)
    measures = {} if suite is None else _measures(folder, suite / "scores" / folder.resolve().name, remarks)
    return Run(
        folder,
        recipe,
        tuple(line for line in lines if "loss" in line),
        tuple(line for line in lines if any(key.startswith("eval_") for key in line)),
        _scores(scores) if scores.is_file() else {},
        _seconds(lines),
        tuple(dict.fromkeys(remarks)),
        suite,
        row,
        measures,
    )


def read_recipe(path: Path) -> dict[str, Any]:
    """A recipe's keys; aliases, which can unfold without end and which no run writes, are refused.

    Raises:
        Mistake: it is corrupt, or is not a recipe.
    """
    try:
        tokens = yaml.scan(store.read_text(path, require_hash=False))
        if any(isinstance(token, yaml.AliasToken) for token in tokens):
            raise Mistake(str(path), "has YAML aliases, which no run writes", "write each value out")
    except yaml.YAMLError:
        pass  # read_document says what is wrong, and where
    return read_document(str(path)).nested()


def _metric_lines(path: Path, remarks: list[str]) -> Iterable[Mapping[str, Any]]:
    """The objects of metrics.jsonl; a line that a crash or a stranger broke is left out and said."""
    for number, text in enumerate(store.read_lines(path), 1):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            line = None
        if isinstance(line, dict):
            yield line
        elif text.strip():
            remarks.append(f"{path.name}:{number} is no JSON object and was left out")


def _numbers(line: Mapping[str, Any], remarks: list[str]) -> Line:
    """The numbers of a line; JSON's NaN and Infinity are kept, for a curve to break there."""
    for key in (key for key, value in line.items() if not _is_number(value) and value is not None):
        remarks.append(f"metrics.jsonl: '{key}' is not a number and was left out")
    return {key: float(value) for key, value in line.items() if _is_number(value)}


def _scores(path: Path) -> dict[str, dict[str, Spread]]:
    scores: dict[str, dict[str, Spread]] = {}
    for data, entry in _mapping(_mapping(store.read_json(path, require_hash=False)).get("data")).items():
        found = {metric: _spread_of(entry, metric, f"{path}: {data}.{metric}") for metric in METRICS}
        scores[str(data)] = {metric: value for metric, value in found.items() if value is not None}
    return scores


def _spread_of(entry: Any, metric: str, where: str) -> Spread | None:
    """Mean and spread over sampling seeds, counted again from the values of each."""
    values = list(_mapping(_mapping(_mapping(entry).get(metric)).get("per_seed")).values())
    if not all(map(_is_number, values)):
        raise Mistake(where, "holds something that is not a number", "evaluate the run again")
    return spread(values)


def _suite_of(folder: Path, recipe: Mapping[str, Any]) -> tuple[Path | None, str | None]:
    """The suite below whose output a run lies, <suite>/runs/<student>/<method>/<row>-seed<seed>, and its row.

    A run may be called so without one: a suite has noted what the run learnt from, or scored it.
    """
    place = folder.resolve()
    row, _, seed = place.name.rpartition("-seed")
    if len(place.parents) < 4 or place.parents[2].name != "runs" or not row or seed != str(recipe.get("seed")):
        return None, None
    suite = place.parents[3]
    ours = (suite / "learnt_from" / f"{place.name}.json").is_file() or (suite / "scores" / place.name).is_dir()
    return (suite, row) if ours else (None, None)


def _measures(folder: Path, scores: Path, remarks: list[str]) -> dict[str, Spread]:
    """What a suite measured of the run in `folder`, and not of one that was there before."""
    found: dict[str, Spread] = {}
    for made in sorted(scores.glob("*/made.json")):
        finished = folder / FINISHED
        run = store.read_json(finished, require_hash=False) if finished.is_file() else None
        if run is None or _mapping(store.read_json(made, require_hash=False)).get("run") != run:
            remarks.append(f"the scores in {made.parent} are of another run and were left out")
            continue
        for file in sorted(made.parent.rglob("measures.json")):
            for entry in _list(store.read_json(file, require_hash=False)):
                measure = _mapping(entry)
                name, per_item = measure.get("name"), _numbers_by_seed(measure.get("per_item"))
                if not isinstance(name, str) or per_item is None:
                    raise Mistake(str(file), "holds something that is no measure", "score the run again")
                over_seeds = spread(fmean(items) for items in per_item.values() if items)
                found |= {} if over_seeds is None else {name: over_seeds}
    return found


def _numbers_by_seed(value: Any) -> dict[str, list[float]] | None:
    """`value`, if it is lists of numbers by seed."""
    lists = list(value.values()) if isinstance(value, dict) else [None]
    return value if all(isinstance(items, list) and all(map(_is_number, items)) for items in lists) else None


def _seconds(lines: Sequence[Line]) -> float | None:
    return next((line["train_runtime"] for line in reversed(lines) if "train_runtime" in line), None)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
