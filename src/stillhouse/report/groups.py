"""Runs that differ by their seed alone form a group; groups that may be compared form a section."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stillhouse.report.runs import Run
from stillhouse.report.spread import Spread, spread

# What may differ between two runs of one experiment.
_PER_RUN = ("seed", "name", "output", "overwrite")


@dataclass(frozen=True)
class Group:
    """The same experiment run with several seeds."""

    label: str
    runs: tuple[Run, ...]

    def score(self, data: str, metric: str) -> Spread | None:
        """Mean and spread over the runs, each of which counts with its mean over sampling seeds."""
        return spread(self.scores(data, metric))

    def scores(self, data: str, metric: str) -> list[float]:
        """One value for each run that was evaluated on `data`."""
        return [run.scores[data][metric].mean for run in self.runs if metric in run.scores.get(data, {})]

    def measure(self, name: str) -> Spread | None:
        """As `score`, of what a suite measured."""
        return spread(run.measures[name].mean for run in self.runs if name in run.measures)

    def seconds(self) -> Spread | None:
        """Seconds of training."""
        return spread(run.seconds for run in self.runs if run.seconds is not None)


@dataclass(frozen=True)
class Section:
    """Groups whose numbers stand beside each other in one table and one picture."""

    title: str
    note: str
    groups: tuple[Group, ...]

    def data_sets(self) -> list[str]:
        """The data sets that at least one run was evaluated on, in the order in which they appear."""
        return list(dict.fromkeys(data for group in self.groups for run in group.runs for data in run.scores))

    def measures(self) -> list[str]:
        """What suites measured of at least one run."""
        return list(dict.fromkeys(name for group in self.groups for run in group.runs for name in run.measures))


def sections(runs: Iterable[Run]) -> list[Section]:
    """One section for each suite, else for each student model and output folder; groups are rows, else recipes.

    Runs of a group differ by their seed, and in a suite by what they begin with and learn from: other rows' runs.
    """
    members: dict[tuple[str, ...], list[Run]] = defaultdict(list)
    for run in runs:
        of_recipe = run.student, str(run.recipe.get("output", ""))
        members[of_recipe if run.suite is None else (str(run.suite),)].append(run)
    return [_section(runs) for runs in members.values()]


def _section(runs: Sequence[Run]) -> Section:
    first, output = runs[0], str(runs[0].recipe.get("output", ""))
    if first.suite is None:
        return Section(f"{first.student} in {output}", "", _groups(runs))
    place = output.removesuffix("/runs")
    beside = f"; models that it scored as they are, and significance, are in {place}/table.html"
    note = f"Trained by a suite{beside if (first.suite / 'table.html').is_file() else ''}."
    return Section(f"Suite in {place}", note, _groups(runs))


def _groups(runs: Sequence[Run]) -> tuple[Group, ...]:
    alike: dict[tuple[str, ...], list[Run]] = defaultdict(list)
    for run in runs:
        experiment = {key: value for key, value in run.recipe.items() if key not in _PER_RUN}
        of_row = None if run.row is None else (run.row, *_place(run))
        alike[of_row or (json.dumps(experiment, sort_keys=True, default=str),)].append(run)
    groups = [tuple(sorted(members, key=lambda run: run.seed)) for members in alike.values()]
    return tuple(Group(label, members) for label, members in zip(_labels(groups), groups, strict=True))


def _labels(groups: Sequence[tuple[Run, ...]]) -> list[str]:
    """The row's name, of several of one name also their students and methods; else the method's name.

    Where that does not tell groups apart, the settings follow that do.
    """
    rows = [members[0].row for members in groups]
    flat = [dict(_flatten(members[0].recipe)) for members in groups]
    labels = []
    for own, members in zip(flat, groups, strict=True):
        rivals = [other for other, rival in zip(flat, groups, strict=True) if rival[0].method == members[0].method]
        telling = [key for key in own if key not in _PER_RUN and any(other.get(key) != own[key] for other in rivals)]
        row, of_method = members[0].row, [members[0].method, *(f"{key}={own[key]}" for key in telling)]
        labels.append(
            ", ".join(of_method if row is None else [row] if rows.count(row) == 1 else [row, *_place(members[0])])
        )
    return labels


def _place(run: Run) -> tuple[str, str]:
    """Student and method as a suite's folders are called by them: a student may be another row's run, of its seed."""
    student, method = run.folder.resolve().parts[-3:-1]
    return student, method


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
