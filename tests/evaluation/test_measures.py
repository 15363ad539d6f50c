"""What every kind of evaluation leaves for tables: back from disk as it was, and its means."""

from __future__ import annotations

from pathlib import Path
from statistics import stdev

import pytest

from stillhouse import store
from stillhouse.evaluation import Measure, read_measures, write_measures
from stillhouse.evaluation.measures import MEASURES

TWO = [
    Measure("rows ROUGE-L", {10: [0.0, 50.0, 100.0], 20: [25.0, 25.0, 10.0]}),
    Measure("rows perplexity", {10: [3.5]}, higher_is_better=False),
]


def test_they_come_back_as_they_were(tmp_path: Path) -> None:
    write_measures(tmp_path / "out", TWO)
    assert read_measures(tmp_path / "out") == TWO


def test_means_are_over_items_then_over_seeds() -> None:
    assert TWO[0].per_seed == {10: 50.0, 20: 20.0}
    assert TWO[0].mean == 35.0
    assert TWO[0].std == pytest.approx(stdev([50.0, 20.0]))
    assert TWO[1].std is None


def test_changed_ones_are_not_read(tmp_path: Path) -> None:
    write_measures(tmp_path, TWO)
    file = tmp_path / MEASURES
    file.write_bytes(file.read_bytes().replace(b"50.0", b"60.0"))
    with pytest.raises(store.Corrupt):
        read_measures(tmp_path)
