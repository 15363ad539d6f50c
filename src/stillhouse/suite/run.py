"""`stillhouse suite`: train what is missing, score what is not scored, write the table."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from stillhouse import store
from stillhouse.recipe import dump
from stillhouse.recipe.suite import SuiteOptions
from stillhouse.report.markup import Markup, tag
from stillhouse.report.page import page, paragraphs
from stillhouse.report.tables import Table, csv_text
from stillhouse.suite.carry_out import carry_out
from stillhouse.suite.jobs import Line
from stillhouse.suite.plan import plan

if TYPE_CHECKING:
    from stillhouse.suite.columns import Comparison


def suite(options: SuiteOptions) -> Path | None:
    """Do what `options` say, and give the folder of the tables; None where only the commands were asked for.

    What is there already, made by the same settings, is not made again; a suite that was stopped goes on.

    Raises:
        Mistake: a row or an option is wrong, or a command failed.
    """
    lines = plan(options)
    jobs = [*(training for line in lines for training in line.trainings.values()),
            *(scoring for line in lines for every in line.scorings.values() for scoring in every)]  # fmt: skip
    if options.plan:
        for job in jobs:
            print(f"# {job.title}{' (done)' if job.done else ''}\n{job}")
        return None
    carry_out(jobs, options.workers, print)
    return write(options, lines)


def write(options: SuiteOptions, lines: Sequence[Line]) -> Path:
    """table.md, .csv, .tex, .html; scores.csv, every value; significance.csv, every pair; recipes/, each exact."""
    from stillhouse.suite.columns import Comparison, Found  # with all that evaluation imports: not for a plan alone

    out = Path(options.output)
    comparison = Comparison(options, [Found.read(line) for line in lines])
    table = comparison.table
    for line in lines:
        for training in line.trainings.values():
            _keep(out / "recipes" / f"{line.row.part(training.recipe.seed)}.yaml", dump(training.recipe.as_dict()))
    _keep(out / "table.md", table.markdown())
    _keep(out / "table.csv", table.csv())
    _keep(out / "table.tex", table.latex())
    _keep(out / "table.html", page(options.title, _blocks(table, lines)))
    _keep(out / "scores.csv", _scores(comparison))
    _keep(out / "significance.csv", _significance(comparison))
    print(table.markdown())
    print(f"{out}/table.md, .csv, .tex, .html, every score in scores.csv, every pair of rows in significance.csv")
    return out


def _keep(path: Path, text: str) -> None:
    """Write `text`, unless the file has it already."""
    try:
        if store.read_text(path) == text:
            return
    except (store.Corrupt, store.Absent):
        pass
    store.write_text(path, text)


def _blocks(table: Table, lines: Sequence[Line]) -> list[Markup]:
    blocks = [table.html(), paragraphs("Every row with the commands that made it, and its recipe with all defaults.")]
    for line in lines:
        commands = tag("pre", "\n\n".join(map(str, line.jobs)))
        recipes = [tag("pre", dump(training.recipe.as_dict())) for training in list(line.trainings.values())[:1]]
        blocks.append(tag("details", tag("summary", line.row.name), commands, *recipes))
    return blocks


def _scores(comparison: Comparison) -> str:
    """One line for each row, training seed, measure and sampling seed."""
    lines = [
        (csv_text(row.row.name), "" if seed is None else seed, csv_text(name), sampling, value)
        for row in comparison.found
        for name, by_seed in row.measures.items()
        for seed, measure in by_seed.items()
        for sampling, value in measure.per_seed.items()
    ]
    return _csv(("row", "training_seed", "measure", "sampling_seed", "value"), lines)


def _significance(comparison: Comparison) -> str:
    """One line for each pair of rows and column of the table."""
    lines = []
    for ours, theirs in combinations(comparison.found, 2):
        for column in comparison.columns:
            found = comparison.difference(column, ours, theirs)
            if found is not None:
                names = (csv_text(ours.row.name), csv_text(theirs.row.name), csv_text(column.title))
                lines.append((*names, found.mean, found.low, found.high, found.p))
    return _csv(("row", "other", "measure", "difference", "low95", "high95", "p"), lines)


def _csv(titles: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(titles)
    writer.writerows(lines)
    return out.getvalue()
