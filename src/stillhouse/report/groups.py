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


def sections(runs: Iterable[Run]) -> list[Section]:
    """One section for each student model and output folder; in it one group for each recipe, whatever its seed."""
    members: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in runs:
        members[run.student, str(run.recipe.get("output", ""))].append(run)
    return [Section(f"{student} in {output}", "", _groups(runs)) for (student, output), runs in members.items()]


def _groups(runs: Sequence[Run]) -> tuple[Group, ...]:
    by_recipe: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        experiment = {key: value for key, value in run.recipe.items() if key not in _PER_RUN}
        by_recipe[json.dumps(experiment, sort_keys=True, default=str)].append(run)
    groups = [tuple(sorted(members, key=lambda run: run.seed)) for members in by_recipe.values()]
    return tuple(Group(label, members) for label, members in zip(_labels(groups), groups, strict=True))


def _labels(groups: Sequence[tuple[Run, ...]]) -> list[str]:
    """The method's name, and where that does not tell groups apart also the settings that do."""
    flat = [dict(_flatten(members[0].recipe)) for members in groups]
    labels = []
    for own, members in zip(flat, groups, strict=True):
        rivals = [other for other, rival in zip(flat, groups, strict=True) if rival[0].method == members[0].method]
        telling = [key for key in own if key not in _PER_RUN and any(other.get(key) != own[key] for other in rivals)]
        labels.append(", ".join([members[0].method, *(f"{key}={own[key]}" for key in telling)]))
    return labels


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
