"""Pictures of runs: scores with their spread, and learning curves as mean and band over seeds.

A figure's text and axes are drawn in one ink. As SVG inside a page the ink becomes `currentColor`, so that the picture
follows light, dark and print; as PNG it stays dark on white.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from stillhouse import store
from stillhouse.mistakes import shorten
from stillhouse.report.groups import Group, Section
from stillhouse.report.markup import Markup, visible
from stillhouse.report.runs import Line

INK = "#3a3f47"
# Hues of Okabe and Ito, which colour-blind readers can tell apart, and a brown, at a lightness that stands on white and
# on black; dashes carry the difference in print.
STYLES = (
    ("#7d8590", (0, ())),
    ("#d9822b", (0, (5, 1.5))),
    ("#2f81c7", (0, ())),
    ("#1fa37a", (0, (6, 1.5, 1.5, 1.5))),
    ("#c45a9b", (0, (1.5, 1.2))),
    ("#8a63d2", (0, (3, 1.2))),
    ("#b8972c", (0, (8, 2))),
    ("#c8503c", (0, (4, 1.2, 1.5, 1.2, 1.5, 1.2))),
    ("#8c6a4f", (0, (2, 2, 8, 2))),
)
_COLUMNS = 3
_MOST_POINTS = 200
_LONGEST_LABEL = 48


@dataclass(frozen=True)
class Quantity:
    """A curve that metrics.jsonl may hold, and how to draw it."""

    key: str
    title: str
    unit: str
    factor: float = 1.0


QUANTITIES = (
    Quantity("ce", "Cross-entropy on training labels", "nats per token"),
    Quantity("accuracy", "Next token right, training", "% of tokens", 100.0),
    Quantity("agreement", "Same next token as the teacher", "% of tokens", 100.0),
    Quantity("entropy", "Entropy of the student", "nats per token"),
    Quantity("eval_loss", "Held-out loss", "nats per token"),
    Quantity("eval_rougeL", "Held-out ROUGE-L", "F, 0 to 100"),
    Quantity("eval_exact_match", "Held-out exact match", "% of prompts"),
)


def learning_curves(section: Section, quantities: Sequence[Quantity] = QUANTITIES) -> Figure | None:
    """Every quantity that some group has, over optimiser steps; None where there is none."""
    drawn = [quantity for quantity in quantities if any(curve(group, quantity.key) for group in section.groups)]
    if not drawn:
        return None
    with look():
        columns = min(_COLUMNS, len(drawn))
        rows = -(-len(drawn) // columns)
        figure = Figure(figsize=(3.35 * columns, 2.55 * rows + 0.35), layout="constrained")
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for quantity, panel in zip(drawn, axes, strict=False):
            _draw_curves(panel, section, quantity)
        for panel in axes[len(drawn) :]:
            panel.remove()
        handles = {str(line.get_label()): line for panel in figure.axes for line in panel.get_lines()}
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(5, len(handles)))
        return figure


def score_picture(sections: Sequence[Section], data: str, metric: str, label: str) -> Figure:
    """One panel for each section: a dot for each run, a ring at the mean, a bar of one standard deviation."""
    with look():
        tallest = max(len(section.groups) for section in sections)
        size = (1.3 + 3.8 * len(sections), 0.9 + 0.36 * tallest)
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(1, len(sections), squeeze=False, sharex=True)[0]
        for section, panel in zip(sections, panels, strict=True):
            _draw_scores(panel, section, data, metric)
            panel.set_xlabel(label)
        return figure


def curve(group: Group, key: str) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Steps, mean and standard deviation (0 for one run) of `key` at the steps that every run of the group has."""
    series = [_series([*run.training, *run.evaluation], key) for run in group.runs]
    steps = sorted(set(series[0]).intersection(*series[1:])) if series else []
    if not steps:
        return None
    values = np.array([[one[step] for step in steps] for one in series])  # [runs, steps]
    deviation = values.std(axis=0, ddof=1) if len(series) > 1 else np.zeros(len(steps))
    return _thinned(np.array(steps), values.mean(axis=0), deviation)


def svg(figure: Figure, alt: str) -> Markup:
    """The figure as an inline SVG element whose ink is the page's text colour."""
    out = io.BytesIO()
    with look(), warnings.catch_warnings():
        _allow_missing_glyphs()
        nothing = dict.fromkeys(("Date", "Creator", "Type", "Format"))
        figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    drawing = out.getvalue().decode()
    drawing = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", drawing[drawing.index("<svg") :], flags=re.DOTALL)
    drawing = drawing.replace(INK, "currentColor")
    return Markup(drawing.replace("<svg", f'<svg role="img" aria-label="{html.escape(visible(alt))}"', 1))


def write_png(figure: Figure, path: Path) -> None:
    """The figure as PNG, dark on white, at 200 dots an inch."""
    with store.write_file(path) as temporary, look(), warnings.catch_warnings():
        _allow_missing_glyphs()
        FigureCanvasAgg(figure)
        figure.savefig(temporary, format="png", dpi=200, facecolor="white", metadata={"Software": None})


def _draw_curves(panel: Axes, section: Section, quantity: Quantity) -> None:
    panel.set_title(quantity.title)
    panel.set_ylabel(quantity.unit)
    panel.set_xlabel("optimizer step")
    for group, (colour, dashes) in zip(section.groups, _styles(), strict=False):
        drawn = curve(group, quantity.key)
        if drawn is None:
            continue
        steps, mean, deviation = drawn[0], drawn[1] * quantity.factor, drawn[2] * quantity.factor
        panel.plot(steps, mean, color=colour, linestyle=dashes, linewidth=1.7, label=_label(group))
        if len(group.runs) > 1:
            panel.fill_between(steps, mean - deviation, mean + deviation, color=colour, alpha=0.18, linewidth=0)


def _draw_scores(panel: Axes, section: Section, data: str, metric: str) -> None:
    panel.set_title(visible(shorten(section.title, _LONGEST_LABEL)))
    for place, (group, (colour, _)) in enumerate(zip(section.groups, _styles(), strict=False)):
        score = group.score(data, metric)
        if score is None:
            continue
        panel.errorbar(score.mean, place, xerr=score.deviation or None, color=colour, elinewidth=5, alpha=0.35)
        values = group.scores(data, metric)
        panel.plot(values, [place] * len(values), "o", color=colour, markersize=4, alpha=0.9, markeredgewidth=0)
        panel.plot(score.mean, place, "|", color=colour, markersize=15, markeredgewidth=2.2)
        panel.annotate(
            f"{score.mean:.1f}", (max(values), place), xytext=(7, 0), textcoords="offset points", va="center"
        )
    panel.set_yticks(range(len(section.groups)), [_label(group) for group in section.groups])
    panel.set_ylim(len(section.groups) - 0.4, -0.6)
    panel.margins(x=0.14)
    panel.grid(visible=False, axis="y")


def _series(lines: Sequence[Line], key: str) -> Mapping[float, float]:
    return {line["step"]: line[key] for line in lines if key in line and "step" in line}


def _thinned(steps: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """At most `_MOST_POINTS` points, each the mean of its neighbours: a picture has no room for more."""
    count = len(steps)
    if count <= _MOST_POINTS:
        return steps, mean, deviation
    edges = np.linspace(0, count, _MOST_POINTS + 1).astype(int)[:-1]
    widths = np.diff(np.append(edges, count))
    means = [np.add.reduceat(values, edges) / widths for values in (steps, mean, deviation)]
    return means[0], means[1], means[2]


def _styles() -> Iterator[tuple[str, tuple[int, tuple[float, ...]]]]:
    while True:
        yield from STYLES


def _label(group: Group) -> str:
    # A label that begins with _ would be left out of the legend.
    return "\u200b" + visible(shorten(group.label, _LONGEST_LABEL))


@contextmanager
def look() -> Iterator[None]:
    """How figures of this package look."""
    settings: dict[Any, Any] = {
        "svg.fonttype": "path",
        "svg.hashsalt": "stillhouse",
        "text.parse_math": False,
        "text.usetex": False,
        "font.family": ["DejaVu Sans"],
        "font.size": 8.5,
        "axes.titlesize": 9,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titlepad": 7,
        "axes.labelsize": 8,
        "xtick.labelsize": 8,
        "ytick.labelsize": 8,
        "legend.fontsize": 8.5,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": INK,
        "axes.titlecolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.linewidth": 0.6,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": INK,
        "grid.alpha": 0.14,
        "grid.linewidth": 0.6,
        "axes.axisbelow": True,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "legend.frameon": False,
        "legend.handlelength": 2.6,
        "axes.facecolor": "none",
        "figure.facecolor": "none",
    }
    with mpl.rc_context(settings):
        yield


def _allow_missing_glyphs() -> None:
    warnings.filterwarnings("ignore", message="Glyph .* missing from font")
