"""Numbers that models are compared by, item by item: what every kind of evaluation leaves for tables and tests.

<out>/measures.json  [{name, higher_is_better, per_item: {seed: [a number for each item]}}]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from stillhouse import store

MEASURES = "measures.json"


@dataclass(frozen=True)
class Measure:
    """One column of a table.

    Attributes:
        name: as the column is called: "dolly ROUGE-L".
        per_item: a number for each question, problem or document, by seed; in the unit of the table, mostly per cent.
        higher_is_better: else lower is.
    """

    name: str
    per_item: Mapping[int, Sequence[float]]
    higher_is_better: bool = True

    @property
    def per_seed(self) -> dict[int, float]:
        """The mean over items of each seed."""
        return {seed: fmean(values) for seed, values in self.per_item.items()}

    @property
    def mean(self) -> float:
        """The mean over seeds of the means over items."""
        return fmean(self.per_seed.values())

    @property
    def std(self) -> float | None:
        """The sample standard deviation over seeds; None for one seed."""
        values = list(self.per_seed.values())
        return stdev(values) if len(values) > 1 else None


def write_measures(out: Path, measures: Sequence[Measure]) -> None:
    """Leave `measures` in the folder `out`."""
    lines = [
        {
            "name": measure.name,
            "higher_is_better": measure.higher_is_better,
            "per_item": {str(seed): list(values) for seed, values in measure.per_item.items()},
        }
        for measure in measures
    ]
    store.write_json(out / MEASURES, lines)


def read_measures(out: Path) -> list[Measure]:
    """What `write_measures` left.

    Raises:
        Corrupt: it is not what was written; Absent, if there is nothing.
    """
    return [
        Measure(
            line["name"],
            {int(seed): values for seed, values in line["per_item"].items()},
            line["higher_is_better"],
        )
        for line in store.read_json(out / MEASURES)
    ]
