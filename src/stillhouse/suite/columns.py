"""A suite's table: what its cells are, which is the best of a column, and which differ from the baseline."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev

import numpy as np

from stillhouse import store
from stillhouse.evaluation import Measure, read_measures
from stillhouse.evaluation.measures import MEASURES
from stillhouse.mistakes import Mistake
from stillhouse.recipe.suite import SuiteOptions, SuiteRow
from stillhouse.report.tables import Table
from stillhouse.suite.jobs import Line
from stillhouse.suite.significance import Difference, Resampled, difference

LEVEL = 0.05
SECONDS = "training, s"
COSTS = {SECONDS: ".0f", "tokens/s": ".0f", "peak memory, GiB": ".2f"}  # what training took, and how it is written


@dataclass(frozen=True)
class Found:
    """What is known of a row.

    Attributes:
        row: of the suite.
        measures: by name, then by training seed.
        costs: by their names, the mean over training seeds; a run that was resumed has only its last stretch.
        resumed: whether one was.
    """

    row: SuiteRow
    measures: Mapping[str, Mapping[int | None, Measure]]
    costs: Mapping[str, float]
    resumed: bool

    @classmethod
    def read(cls, line: Line) -> Found:
        """From the folders of its runs and scores."""
        measures: dict[str, dict[int | None, Measure]] = {}
        for seed, scorings in line.scorings.items():
            for scoring in scorings:
                for file in sorted(scoring.out.rglob(MEASURES)):
                    for measure in read_measures(file.parent):
                        if seed in measures.setdefault(measure.name, {}):
                            wrong = f"two kinds of evaluation give '{measure.name}'"
                            raise Mistake(line.row.name, wrong, "write a suite for each")
                        measures[measure.name][seed] = measure
        runs = [_costs(training.folder) for training in line.trainings.values()]
        costs = {name: fmean(run[name] for run in runs) for name in COSTS if runs and all(name in run for run in runs)}
        return cls(line.row, measures, costs, any("resumed" in run for run in runs))

    def values(self, name: str) -> list[float]:
        """One for each training seed; where there is one, one for each sampling seed."""
        by_training = list(self.measures[name].values())
        if len(by_training) == 1:
            return list(by_training[0].per_seed.values())
        return [measure.mean for measure in by_training]

    def items(self, name: str) -> np.ndarray:
        """[n], of each item the mean over all seeds.

        Raises:
            Mistake: two seeds were scored on unlike numbers of items.
        """
        every = [values for measure in self.measures[name].values() for values in measure.per_item.values()]
        if len({len(values) for values in every}) > 1:
            raise Mistake(self.row.name, f"was scored on unlike numbers of items: {name}", "score it anew")
        return np.mean(np.array(every, np.float64), axis=0)


def _costs(folder: Path) -> dict[str, float]:
    lines = [json.loads(text) for text in store.read_lines(folder / "metrics.jsonl")]
    speeds = [line["tokens_per_second"] for line in lines if "tokens_per_second" in line]
    last = next((line for line in reversed(lines) if "train_runtime" in line), {})
    found = {"tokens/s": fmean(speeds)} if speeds else {}
    if "train_runtime" in last:
        found |= {SECONDS: last["train_runtime"], "peak memory, GiB": last["peak_memory_gib"]}
    if "going on from" in (folder / "train.log").read_text(encoding="utf-8", errors="replace"):
        found["resumed"] = 1.0
    return found


@dataclass(frozen=True)
class Column:
    """One measure, or the mean of several data sets' (`parts` are their names)."""

    title: str
    parts: tuple[str, ...]
    higher_is_better: bool

    def cell(self, found: Found) -> tuple[float, float | None] | None:
        """Mean and standard deviation; None where the row lacks a part."""
        if any(part not in found.measures for part in self.parts):
            return None
        values = [found.values(part) for part in self.parts]
        mean = fmean(fmean(part) for part in values)
        if len({len(part) for part in values}) > 1 or len(values[0]) < 2:
            return mean, None
        return mean, stdev(fmean(together) for together in zip(*values, strict=True))


class Comparison:
    """Everything that the files of a suite are made of."""

    def __init__(self, options: SuiteOptions, found: Sequence[Found]) -> None:
        self.options, self.found = options, list(found)
        self._drawn: dict[tuple[str, str], Resampled] = {}  # by row and measure

    @cached_property
    def columns(self) -> list[Column]:
        """As measures were found, and behind each group of them that was asked for its mean.

        Raises:
            Mistake: an end of names that no measure has.
        """
        alone = {name: Column(name, (name,), measure.higher_is_better) for name, measure in self._ways.items()}
        if not self.options.columns:
            return list(alone.values())
        chosen: list[Column] = []
        for end in self.options.columns:
            group = [column for name, column in alone.items() if name.endswith(end)]
            if not group:
                raise Mistake("columns", f"no measure ends with '{end}'", f"there are {', '.join(alone)}")
            chosen += group
            if len(group) > 1 and len({column.higher_is_better for column in group}) == 1:
                chosen.append(Column(f"mean {end}", tuple(column.title for column in group), group[0].higher_is_better))
        return chosen

    @cached_property
    def baseline(self) -> Found | None:
        """The row that others are tested against."""
        named = [row for row in self.found if row.row.name == self.options.baseline]
        return next(iter(named or [row for row in self.found if not row.row.reference]), None)

    @cached_property
    def table(self) -> Table:
        """A row a method: every column's mean ± deviation, and what training cost."""
        costs = [name for name in COSTS if any(name in row.costs for row in self.found)]
        rows = [[row.row.name, *self._cells(row), *self._costs(row, costs)] for row in self.found]
        titles = ("", *(column.title for column in self.columns), *costs)
        return Table(self._caption(), titles, rows, strong=self._best())

    def difference(self, column: Column, ours: Found, theirs: Found) -> Difference | None:
        """Of two rows in a column, tested; None where one lacks a part.

        Raises:
            Mistake: they were scored on unlike numbers of items.
        """
        if any(part not in found.measures for part in column.parts for found in (ours, theirs)):
            return None
        pairs = [(self._resampled(ours, part), self._resampled(theirs, part)) for part in column.parts]
        for part, (one, other) in zip(column.parts, pairs, strict=True):
            if len(one.items) != len(other.items):
                wrong = f"has {len(one.items)} items of {part}, and {theirs.row.name} {len(other.items)}"
                raise Mistake(ours.row.name, wrong, "score both on the same data")
        return difference(pairs)

    def _resampled(self, row: Found, name: str) -> Resampled:
        """Every measure has draws of its own, which are the same for all rows."""
        key = row.row.name, name
        if key not in self._drawn:
            self._drawn[key] = Resampled.of(row.items(name), self.options.resamples, list(self._ways).index(name))
        return self._drawn[key]

    @cached_property
    def _ways(self) -> dict[str, Measure]:
        """Each measure that a row has, as one of them has it."""
        return {name: next(iter(by_seed.values())) for row in self.found for name, by_seed in row.measures.items()}

    def _cells(self, row: Found) -> list[str]:
        cells = []
        for column in self.columns:
            value = column.cell(row)
            if value is None:
                cells.append("-")
                continue
            mean, deviation = value
            text = f"{mean:.2f}" if deviation is None else f"{mean:.2f} ± {deviation:.2f}"
            cells.append(text + ("*" if self._differs(row, column) else ""))
        return cells

    def _differs(self, row: Found, column: Column) -> bool:
        if self.baseline is None or row is self.baseline or row.row.reference:
            return False
        found = self.difference(column, row, self.baseline)
        return found is not None and found.p < LEVEL

    def _costs(self, row: Found, names: Sequence[str]) -> list[str]:
        found = {name: format(row.costs[name], COSTS[name]) if name in row.costs else "-" for name in names}
        if row.resumed and SECONDS in row.costs:
            found[SECONDS] = f"≥ {found[SECONDS]}"
        return list(found.values())

    def _best(self) -> frozenset[tuple[int, int]]:
        """Row and column of the best means, the rows that stand there for comparison left out."""
        best = set()
        for place, column in enumerate(self.columns, start=1):
            means = {number: cell[0] for number, row in enumerate(self.found)
                     if not row.row.reference and (cell := column.cell(row)) is not None}  # fmt: skip
            if len(means) > 1:
                top = (max if column.higher_is_better else min)(means.values())
                best |= {(number, place) for number, mean in means.items() if mean == top}
        return frozenset(best)

    def _caption(self) -> str:
        several = len(self.options.seeds) > 1
        over = "sampling seeds"
        if several and any(len(by_seed) == 1 for row in self.found for by_seed in row.measures.values()):
            over = "training seeds (sampling seeds of what is not trained here)"
        elif several:
            over = "training seeds"
        said = [f"{self.options.title}. Mean ± standard deviation over {over}; the best in bold."]
        if self.baseline is not None and len(self.found) > 1:
            said.append(f"* differs from {self.baseline.row.name} (paired bootstrap over items, p < {LEVEL}).")
        if any(row.resumed for row in self.found):
            said.append("≥: the run was resumed, and its last stretch alone was timed.")
        return " ".join(said)
