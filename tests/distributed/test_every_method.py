"""However a batch is split, laid out or worked on, the weights after training are the same, for every method."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stillhouse.catalogue import METHODS
from stillhouse.head import Head
from stillhouse.methods import build
from stillhouse.recipe import Recipe
from stillhouse.training import run
from tests import toy
from tests.distributed.test_backends import AHEAD, DDP, FSDP, WHOLE, recipe, same, split, weights

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student, a teacher, and 24 rows."""
    return toy.write_world(tmp_path_factory.mktemp("world"))


ALONE = {
    "1 x 2 x 4, the teacher ahead": [*split(2, 4), AHEAD],
    "packed": [*WHOLE, "--data.packing=true"],
    "packed 1 x 2 x 4, the teacher ahead": [*split(2, 4), "--data.packing=true", AHEAD],
    "blocks": [*WHOLE, "--head.rows=5", "--head.elements=700", "--head.vocabulary_tile=37"],
    "recomputed": [*WHOLE, "--training.activation_checkpointing=true"],
}  # one process; without the teacher ahead: tests/training/test_run.py


@pytest.fixture(scope="module")
def ends(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    """The folder of every method's run, in one process and in two: one fork a backend for all methods."""
    output = tmp_path_factory.mktemp("ends")

    def recipes(name: str, options: list[str]) -> list[Recipe]:
        return [recipe(world, output / name / method, method, *options) for method in METHODS]

    def by_method(folders: list[Path]) -> dict[str, Path]:
        return dict(zip(METHODS, folders, strict=True))

    found = {
        how: by_method([run(made) for made in recipes(how, options)])
        for how, options in {"alone": WHOLE, **ALONE}.items()
    }
    return found | {
        "2 x 4": by_method(DDP.run_all(recipes("ddp", split(4, 1)))),
        "2 x 2 x 2": by_method(DDP.run_all(recipes("ddp2", [*split(2, 2), AHEAD]))),
        "fsdp2": by_method(FSDP.run_all(recipes("fsdp", [*split(2, 2), AHEAD, *FSDP.options]))),
    }


@pytest.mark.parametrize("how", [*ALONE, "2 x 4", "2 x 2 x 2", "fsdp2"])
@pytest.mark.parametrize("method", METHODS)
def test_no_split_changes_the_weights(ends: dict[str, dict[str, Path]], method: str, how: str) -> None:
    same(ends[how][method], ends["alone"][method])


@pytest.mark.parametrize("method", METHODS)
def test_everything_that_should_learn_moves(ends: dict[str, dict[str, Path]], world: Path, method: str) -> None:
    made, teacher = build(method), "foreign" if METHODS[method].two_sided else "large"
    heads = (
        Head(load_file(world / name / "model.safetensors")["model.embed_tokens.weight"]) for name in ("small", teacher)
    )
    made.size(*heads, seed=10)
    before = load_file(world / "small" / "model.safetensors") | made.state_dict()
    for name, value in weights(ends["alone"][method]).items():
        if value.is_floating_point():  # a counter may belong to parity alone
            assert not torch.equal(value, before[name]), name
