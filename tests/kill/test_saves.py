"""A fault at every change that one save of a real trainer makes to the disk: the state before it, or it, is chosen."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stillhouse.recipe import Recipe
from stillhouse.training.trainer import DistillationTrainer
from tests import toy
from tests.kill.injected import CUTTING, DIED, RAISED, REFUSED, SAVED, WRITERS, Point, at_save, sweep
from tests.kill.trials import launch, left_by, recipe

pytestmark = pytest.mark.slow
MODES = ["death", "torn", REFUSED, "short", "limit"]
BEFORE, NEW = 4, 6  # steps of the third save, within the second epoch, and of the fourth, at its end


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def made(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A run in the working directory, whatever that is."""
    return recipe(world, tmp_path_factory.mktemp("recipe"), "taid", "--output=out", "--evaluation.generate=false")


@pytest.fixture(scope="module")
def swept(made: Recipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Point], Path]:
    """Every fault in the save at the end of the second epoch, and copies of what some of them left."""
    root, points = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("points")

    def work(trainer: DistillationTrainer, save: Callable[[], None]) -> None:
        found = sweep(save, trainer.run_folder, points, MODES, keep_every=23)
        (root / "found.json").write_text(json.dumps([vars(point) for point in found]))

    ended = launch(made, root / "said.txt", where=root, first=lambda: at_save(4, work))
    assert ended.code == 0, ended.output
    return [Point(**point) for point in json.loads((root / "found.json").read_text())], points


@pytest.mark.parametrize("mode", MODES)
def test_a_save_is_all_or_nothing(swept: tuple[list[Point], Path], mode: str) -> None:
    points = [point for point in swept[0] if point.mode == mode]
    assert [point for point in points if point.wrong] == []
    assert [point for point in points if point.step not in (BEFORE, NEW)] == []
    if mode == "limit":  # of bytes: at first nothing can be written, in the end everything
        assert {point.code for point in points} == {RAISED, SAVED}
    else:
        cutting = {"write", *(name for _, name, _ in WRITERS)}
        others = {"create", "fsync", "rename", "make_folder", "unlink", "remove_empty"}
        folders = [point for point in points if point.call == "make_folder"]
        assert len(folders) == (0 if mode in CUTTING else 2)  # a better epoch's, whose loser is removed, and last/
        assert {point.call for point in points} == (cutting if mode in CUTTING else cutting | others)
    for point in points:
        if point.code == DIED:
            assert mode in ("death", "torn") and point.sound >= 1, point
        elif point.code == SAVED:  # the fault was in cleaning
            assert point.step == NEW and point.sound == 2, point
            assert mode in ("short", "limit") or point.call in ("unlink", "remove_empty", "rename"), point
        else:
            assert point.code == RAISED and point.sound == 2, point
    steps = [point.step for point in points]
    assert steps == sorted(steps) or mode not in ("death", "torn")  # the new state is chosen from one call on


def test_the_run_goes_on_to_the_same_end(swept: tuple[list[Point], Path], made: Recipe, tmp_path: Path) -> None:
    whole = launch(made, tmp_path / "whole.txt", where=tmp_path)
    assert whole.code == 0, whole.output
    expected = left_by(tmp_path / made.folder)
    places = sorted(swept[1].iterdir())
    assert len(places) >= 6
    for place in places:
        ended = launch(made, place / "said.txt", where=place)
        assert ended.code == 0, (place.name, ended.output)
        found: dict[str, Any] = left_by(place / made.folder)
        assert {name for name in expected if found[name] != expected[name]} == set(), place.name
