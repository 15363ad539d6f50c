"""However a batch is split, laid out or worked on, the weights after training are the same, for every method."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stillhouse.catalogue import METHODS
from stillhouse.head import Head
from stillhouse.methods import build
from stillhouse.training import run
from tests import toy
from tests.distributed.test_backends import AHEAD, DDP, FROM_ROWS, FSDP, WHOLE, Backend, recipe, same, split, weights

pytestmark = pytest.mark.slow
Ends = dict[str, Path]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student, a teacher, and 24 rows."""
    return toy.write_world(tmp_path_factory.mktemp("world"))


LAYOUTS: dict[str, tuple[Backend | None, list[str]]] = {  # None: one process; of it more in tests/training/test_run.py
    "1 x 2 x 4, the teacher ahead": (None, [*split(2, 4), AHEAD]),
    "packed": (None, [*WHOLE, "--data.packing=true"]),
    "packed 1 x 2 x 4, the teacher ahead": (None, [*split(2, 4), "--data.packing=true", AHEAD]),
    "blocks": (None, [*WHOLE, "--head.rows=5", "--head.elements=700", "--head.vocabulary_tile=37"]),
    "recomputed": (None, [*WHOLE, "--training.activation_checkpointing=true"]),
    "2 x 4": (DDP, split(4, 1)),
    "2 x 2 x 2": (DDP, [*split(2, 2), AHEAD]),
    "fsdp2": (FSDP, [*split(2, 2), AHEAD, *FSDP.options]),
}


# What these leave out the others hold: for every method packed rows, micro-batches, a teacher ahead, two processes,
# shards. The rest get methods by turns, a few of every kind each; STILLHOUSE_LAYOUTS=all: every method.
FOR_EVERY_METHOD = ("packed 1 x 2 x 4, the teacher ahead", "2 x 2 x 2", "fsdp2")
BY_TURNS = [layout for layout in LAYOUTS if layout not in FOR_EVERY_METHOD]
ALL = os.environ.get("STILLHOUSE_LAYOUTS") == "all"
WRITING = [method for method in METHODS if METHODS[method].rollout is not None]
WITH_ROWS = [method for method in WRITING if "dataset" in (METHODS[method].sources or ["dataset"])]


def methods_of(layout: str) -> list[str]:
    """Those that are tested in a layout; a student in shards does not write while it trains."""
    methods = [method for method in METHODS if LAYOUTS[layout][0] is not FSDP or method not in WRITING]
    return methods if ALL or layout in FOR_EVERY_METHOD else methods[BY_TURNS.index(layout) :: len(BY_TURNS)]


def trained(
    world: Path, output: Path, backend: Backend | None, options: list[str], methods: Iterable[str] = METHODS
) -> Ends:
    """The folder of each method's run; processes are forked once for all methods."""
    recipes = [recipe(world, output / method, method, *options) for method in methods]
    folders = [run(made) for made in recipes] if backend is None else backend.run_all(recipes)
    return dict(zip(methods, folders, strict=True))


@pytest.fixture(scope="module")
def alone(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Ends:
    """In one process and whole batches."""
    return trained(world, tmp_path_factory.mktemp("alone"), None, WHOLE)


@pytest.fixture(scope="module")
def laid_out(alone: Ends, world: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Ends]:
    """In a layout, made when it is first asked for; after `alone`: kernels are compiled before anything is forked."""
    made: dict[str, Ends] = {}

    def of(layout: str) -> Ends:
        if layout not in made:
            backend, options = LAYOUTS[layout]
            made[layout] = trained(world, tmp_path_factory.mktemp("laid_out"), backend, options, methods_of(layout))
        return made[layout]

    return of


@pytest.mark.parametrize(("layout", "method"), [(layout, name) for layout in LAYOUTS for name in methods_of(layout)])
def test_no_layout_changes_the_weights(laid_out: Callable[[str], Ends], alone: Ends, layout: str, method: str) -> None:
    """Those whose student writes learn from rows in shards, in the next test."""
    same(laid_out(layout)[method], alone[method])


def test_nor_do_shards_where_the_student_need_not_write(world: Path, tmp_path: Path) -> None:
    whole = trained(world, tmp_path / "alone", None, [*WHOLE, FROM_ROWS], WITH_ROWS)
    backend, options = LAYOUTS["fsdp2"]
    for method, folder in trained(world, tmp_path / "fsdp2", backend, [*options, FROM_ROWS], WITH_ROWS).items():
        same(folder, whole[method])


@pytest.mark.parametrize("method", METHODS)
def test_everything_that_should_learn_moves(alone: Ends, world: Path, method: str) -> None:
    made, teacher = build(method), "foreign" if METHODS[method].two_sided else "large"
    heads = (
        Head(load_file(world / name / "model.safetensors")["model.embed_tokens.weight"]) for name in ("small", teacher)
    )
    made.size(*heads, seed=10)
    before = load_file(world / "small" / "model.safetensors") | made.state_dict()
    for name, value in weights(alone[method]).items():
        if value.is_floating_point():  # a counter may belong to parity alone
            assert not torch.equal(value, before[name]), name
