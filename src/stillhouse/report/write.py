"""`stillhouse report`: runs read, grouped over their seeds, and shown on one page with its tables beside it."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import yaml

from stillhouse import store
from stillhouse.mistakes import Mistake
from stillhouse.recipe import ReportOptions
from stillhouse.report.curves import learning_curves, svg
from stillhouse.report.examples import example_table
from stillhouse.report.groups import Group, Section, sections
from stillhouse.report.markup import Markup, tag
from stillhouse.report.page import bullet_list, figure_block, page, paragraphs
from stillhouse.report.runs import METRICS, find_runs
from stillhouse.report.spread import Spread
from stillhouse.report.tables import Table, csv_text

METRIC_NAMES = {"rougeL": "ROUGE-L", "exact_match": "exact match"}


def write(options: ReportOptions) -> Path:
    """Write the page `options.out`, and beside it the tables as Markdown and every score as CSV; give the page's path.

    Raises:
        Mistake: no run is found, a run's file is broken, or `out` is not an HTML file's name.
    """
    out = Path(options.out)
    if out.suffix.lower() not in (".html", ".htm"):
        raise Mistake("out", f"'{options.out}' is not the name of an HTML file", "end it with .html")
    found = sections(find_runs(options.runs))
    blocks = [block for section in found for block in section_blocks(section)]
    store.write_text(out, page("Distillation runs", [summary(found), *blocks]))
    store.write_text(out.with_suffix(".md"), "\n".join(score_table(section).markdown() for section in found))
    store.write_text(out.with_suffix(".csv"), scores_csv(found))
    print(f"{out}, and beside it the tables as .md and the scores as .csv")
    return out


def summary(found: Sequence[Section]) -> Markup:
    """What the page counts, and what its numbers mean."""
    runs = [run for section in found for group in section.groups for run in group.runs]
    unscored = sum(not run.scores and not run.measures for run in runs)
    said = [f"{len(runs)} runs; those that differ by their seed alone are one line, with mean ± standard deviation."]
    if unscored:
        said.append(f"{unscored} of them were not evaluated (stillhouse evaluate): they have curves and no score.")
    return paragraphs(" ".join(said))


def section_blocks(section: Section) -> list[Markup]:
    """Heading, table, curves, examples and settings of a section."""
    blocks = [tag("h2", section.title)]
    if section.note:
        blocks.append(paragraphs(section.note))
    blocks.append(score_table(section).html())
    figure = learning_curves(section)
    if figure is not None:
        drawing = svg(figure, f"Learning curves: {section.title}")
        blocks.append(figure_block(drawing, "Mean over the seeds; the band is one standard deviation."))
    for data in section.data_sets():
        examples = example_table(section, data)
        if examples is not None:
            blocks.append(tag("details", tag("summary", f"Answers to prompts of {data}"), examples.html()))
    blocks.extend(_settings(group) for group in section.groups)
    remarks = [f"{run.folder}: {remark}" for group in section.groups for run in group.runs for remark in run.remarks]
    if remarks:
        blocks.append(tag("details", tag("summary", f"{len(remarks)} remarks"), bullet_list(remarks)))
    return blocks


def score_table(section: Section, data_sets: Sequence[str] | None = None) -> Table:
    """A row for each group: runs, both scores on each data set, what a suite measured, seconds of training."""
    measures = section.measures() if data_sets is None else []
    data_sets = section.data_sets() if data_sets is None else data_sets
    titles = [f"{data} {METRIC_NAMES[metric]}" for data in data_sets for metric in METRICS]
    measures = [name for name in measures if name not in titles]
    rows = [
        [
            group.label,
            str(len(group.runs)),
            *(_shown(group.score(data, metric)) for data in data_sets for metric in METRICS),
            *(_measured(group.measure(name)) for name in measures),
            _shown(group.seconds()),
        ]
        for group in section.groups
    ]
    units = "; grades, divergences and bits in their own units" if measures else ""
    caption = f"{section.title}. Scores from 0 to 100{units}."
    return Table(caption, ("method", "runs", *titles, *measures, "training, s"), rows)


def scores_csv(found: Sequence[Section]) -> str:
    """Every run's score on every data set, one a line."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("section", "method", "run", "seed", "data", "metric", "mean", "std_over_sampling_seeds"))
    for section in found:
        for group in section.groups:
            for run in group.runs:
                own = [(data, metric, score) for data, of in run.scores.items() for metric, score in of.items()]
                for data, metric, score in (*own, *(("", name, score) for name, score in run.measures.items())):
                    names = (section.title, group.label, str(run.folder), f"{run.seed:g}", data, metric)
                    deviation = "" if score.deviation is None else score.deviation
                    writer.writerow([*map(csv_text, names), score.mean, deviation])
    return out.getvalue()


def _settings(group: Group) -> Markup:
    recipe = yaml.safe_dump(dict(group.runs[0].recipe), sort_keys=False, allow_unicode=True)
    folders = ", ".join(str(run.folder) for run in group.runs)
    where = tag("p", folders, class_="faint")
    return tag("details", tag("summary", f"Recipe of {group.label}"), tag("pre", recipe), where)


def _measured(value: Spread | None) -> str:
    """With two decimals, as suites have it: a divergence is a small number."""
    if value is None or value.deviation is None:
        return "-" if value is None else f"{value.mean:.2f}"
    return f"{value.mean:.2f} ± {value.deviation:.2f}"


def _shown(value: Spread | None) -> str:
    return "-" if value is None else str(value)
