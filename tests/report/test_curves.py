import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from stillhouse.report import find_runs, learning_curves, score_picture, sections, svg, write_png
from stillhouse.report.curves import QUANTITIES, curve
from tests.report.runs import write_run


@pytest.fixture
def section(tmp_path):
    for seed in (1, 2, 3):
        write_run(tmp_path / f"sft{seed}", seed=seed, ce=(3.0 + seed, 2.0, 1.0), exact_match=30.0 + seed)
        write_run(tmp_path / f"todi{seed}", method="todi", seed=seed, exact_match=60.0 + seed)
    (found,) = sections(find_runs([tmp_path]))
    return found


def test_a_curve_is_mean_and_deviation_over_the_runs(section):
    drawn = curve(section.groups[0], "ce")
    assert drawn is not None
    np.testing.assert_allclose(drawn, [[10, 20, 30], [5.0, 2.0, 1.0], [1.0, 0.0, 0.0]])


def test_a_curve_has_the_steps_that_every_run_has(section, tmp_path):
    write_run(tmp_path / "sft4", seed=4, ce=(7.0, 2.0))
    (longer,) = sections(find_runs([tmp_path]))
    drawn = curve(longer.groups[0], "ce")
    assert drawn is not None and drawn[0].tolist() == [10, 20] and drawn[1].tolist() == [5.5, 2.0]


def test_a_long_curve_is_thinned_to_means_of_neighbours(tmp_path):
    write_run(tmp_path / "long", ce=tuple(float(value) for value in range(1000)))
    (section,) = sections(find_runs([tmp_path]))
    drawn = curve(section.groups[0], "ce")
    assert drawn is not None and len(drawn[0]) == 200
    assert drawn[1][:2].tolist() == [2.0, 7.0] and drawn[0][0] == 30.0


def test_a_panel_for_each_quantity_that_some_run_has(section):
    figure = learning_curves(section)
    assert figure is not None
    titles = [panel.get_title(loc="left") for panel in figure.axes]
    there = {"ce", "accuracy", "eval_loss", "eval_exact_match"}
    assert titles == [quantity.title for quantity in QUANTITIES if quantity.key in there]
    assert all(panel.get_xlabel() and panel.get_ylabel() for panel in figure.axes)
    assert figure.axes[1].get_lines()[0].get_ydata()[0] == 50.0  # a fraction, drawn in per cent


def test_no_curves_no_picture(section):
    assert learning_curves(section, quantities=()) is None


def test_the_svg_is_whole_takes_the_pages_ink_and_asks_for_nothing(section):
    figure = learning_curves(section)
    assert figure is not None
    drawing = svg(figure, "Curves")
    ET.fromstring(drawing)
    assert "currentColor" in drawing and "#3a3f47" not in drawing and "<metadata" not in drawing
    assert all(target.startswith("#") for target in re.findall(r'href="([^"]*)', drawing))


def test_the_score_picture_shows_every_run_and_the_mean(section):
    panel = score_picture([section], "held-out", "exact_match", "%").axes[0]
    dots = [line.get_xdata().tolist() for line in panel.get_lines() if line.get_marker() == "o"]
    assert dots == [[31.0, 32.0, 33.0], [61.0, 62.0, 63.0]]
    assert [text.get_text() for text in panel.texts] == ["32.0", "62.0"]


def test_a_png_is_written_through_the_store(section, tmp_path):
    figure = learning_curves(section)
    assert figure is not None
    write_png(figure, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG") and (tmp_path / "curves.png.xxh3").exists()
