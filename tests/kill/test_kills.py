"""SIGKILL at seeded random moments of every phase; the same command then ends with what no interruption gives.

20 kills here; `make test-kill` does 200 and prints how many of each phase and family were survived.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stillhouse.training.folder import FINISHED
from tests import toy
from tests.kill.trials import FAMILIES, PHASES, WRITING, Ended, launch, left_by, recipe

KILLS = int(os.environ.get("STILLHOUSE_KILLS", "20"))
SEED = int(os.environ.get("STILLHOUSE_KILLS_SEED", "7"))
pytestmark = pytest.mark.slow
Whole = tuple[Ended, dict[str, Any]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Whole]:
    """The uninterrupted run of a family, made once: how long its phases took, and what it left."""
    made: dict[str, Whole] = {}

    def of(family: str) -> Whole:
        if family not in made:
            output = tmp_path_factory.mktemp(family)
            wanted = recipe(world, output, family)
            ended = launch(wanted, output / "said.txt")
            assert ended.code == 0, ended.output
            made[family] = ended, left_by(wanted.folder)
        return made[family]

    return of


def test_an_uninterrupted_run_gives_the_same_twice(world: Path, whole: Callable[[str], Whole], tmp_path: Path) -> None:
    wanted = recipe(world, tmp_path, "taid")
    again = launch(wanted, tmp_path / "said.txt")
    first, left = whole("taid")
    assert left_by(wanted.folder) == left
    assert set(first.spans) == {*PHASES} - {"rollout"}
    assert {phase: len(spans) for phase, spans in again.spans.items()} == {
        phase: len(spans) for phase, spans in first.spans.items()
    }


@pytest.mark.parametrize("number", range(KILLS))
def test_a_killed_run_ends_as_if_nothing_had_happened(
    world: Path,
    whole: Callable[[str], Whole],
    tmp_path: Path,
    number: int,
    record_property: Callable[[str, object], None],
) -> None:
    draw = random.Random(f"{SEED} {number}")
    phase = PHASES[number % len(PHASES)]
    # 6 and 7 share no factor: every pair comes in 42 trials.
    family = WRITING if phase == "rollout" else list(FAMILIES)[number % len(FAMILIES)]
    record_property("killed", (family, phase))
    usual, left = whole(family)
    wanted = recipe(world, tmp_path, family)

    def killed_in(phase: str, latest: int) -> Ended:
        visit = draw.randrange(latest)
        kill = (phase, visit, draw.uniform(0.0, 1.1 * usual.spans[phase][visit]))
        ended = launch(wanted, tmp_path / "said.txt", kill=kill)
        return ended

    ended = killed_in(phase, len(usual.spans[phase]))
    assert ended.code == -signal.SIGKILL, ended.output
    if number % 4 == 3 and not (wanted.folder / FINISHED).exists():  # and once more, where it goes on
        ended = killed_in(draw.choice([phase for phase in PHASES if phase in usual.spans]), 1)
        assert ended.code in (0, -signal.SIGKILL), ended.output
    if not (wanted.folder / FINISHED).exists():
        ended = launch(wanted, tmp_path / "said.txt")
        assert ended.code == 0, ended.output
    found = left_by(wanted.folder)
    assert found.keys() == left.keys()
    assert [name for name in left if found[name] != left[name]] == []
