"""A picture of how far the probability that a student states is what its teacher gives, and what comes true."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stillhouse.mistakes import shorten
from stillhouse.report.curves import INK, STYLES, look
from stillhouse.report.markup import visible

_KINDS = (("teacher", "the teacher gives it", STYLES[2][0]), ("labels", "it is the label", STYLES[1][0]))
_COLUMNS = 3


def reliability_picture(data: Mapping[str, Mapping[str, Any]]) -> Figure:
    """A panel for each data set of agreement.json: in each bin of confidence what the teacher and the labels say.

    On the diagonal the stated probability is the true one; the size of a dot goes by the tokens of its bin.
    """
    with look():
        columns = min(_COLUMNS, len(data))
        rows = -(-len(data) // columns)
        figure = Figure(figsize=(3.35 * columns, 3.3 * rows + 0.35), layout="constrained")
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for (name, entry), panel in zip(data.items(), axes, strict=False):
            _draw(panel, name, entry["calibration"])
        for panel in axes[len(data) :]:
            panel.remove()
        handles = {str(line.get_label()): line for line in axes[0].get_lines()[1:]}
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2)
        return figure


def _draw(panel: Axes, name: str, calibration: Mapping[str, Any]) -> None:
    panel.set_title(visible(shorten(name, 40)))
    panel.plot([0, 1], [0, 1], color=INK, linewidth=0.6, linestyle=(0, (2, 2)))
    for kind, label, colour in _KINDS:
        filled = [one for one in calibration[kind]["table"] if one["tokens"]]
        most = max(one["tokens"] for one in filled)
        xs, ys = ([one[key] for one in filled] for key in ("confidence", "truth"))
        panel.plot(xs, ys, color=colour, linewidth=1.2, label=label)
        panel.scatter(xs, ys, s=[4 + 36 * one["tokens"] / most for one in filled], color=colour, linewidths=0)
    errors = " / ".join(f"{calibration[kind]['error']:.3f}" for kind, _, _ in _KINDS)
    panel.annotate(f"ECE {errors}", (0.03, 0.94), xycoords="axes fraction")
    panel.set_xlabel("probability of the student's likeliest token")
    panel.set_xlim(0, 1)
    panel.set_ylim(0, 1)
    panel.set_aspect("equal")
