"""Projectors that are trained alone, beside a frozen student, by several processes: as by one."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stillhouse.training import run
from tests import toy
from tests.distributed.test_backends import AHEAD, DDP, FSDP, WHOLE, Backend, recipe, same, split, weights, zero

pytestmark = pytest.mark.slow
METHODS = ("dskd", "mcw_kd_dual")
NO_DEEPSPEED = pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_world(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize(
    "how", ["ddp", "fsdp2", pytest.param("zero2", marks=NO_DEEPSPEED), pytest.param("zero3", marks=NO_DEEPSPEED)]
)
def test_no_backend_changes_the_projectors(
    world: Path, tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    backend: Backend = {"ddp": DDP, "fsdp2": FSDP}.get(how) or zero(int(how[-1]), tmp_path)
    frozen = "--student.frozen=true"
    alone = [run(recipe(world, tmp_path / "alone" / name, name, frozen, *WHOLE)) for name in METHODS]
    options = [frozen, *split(2, 2), AHEAD, *backend.options]
    spread = backend.run_all([recipe(world, tmp_path / how / name, name, *options) for name in METHODS])
    before = load_file(world / "small" / "model.safetensors")
    for ours, theirs in zip(spread, alone, strict=True):
        same(ours, theirs)
        after = load_file(ours / "last" / "model.safetensors")
        assert all(torch.equal(after[key], value) for key, value in before.items())


@pytest.mark.parametrize("how", ["fsdp2", pytest.param("zero3", marks=NO_DEEPSPEED)])
def test_what_a_method_moves_itself_is_whole_in_every_process(
    world: Path, tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In parity the potentials climb on every process by itself; what is cut into shards would fail or stay."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    found = []
    for backend in (DDP, FSDP if how == "fsdp2" else zero(3, tmp_path)):
        options = ["--method.parity=true", *split(2, 2), AHEAD, *backend.options]
        found += backend.run_all([recipe(world, tmp_path / str(len(found)), "mcw_kd_dual", *options)])
    same(found[1], found[0])
    before = weights(run(recipe(world, tmp_path / "one", "mcw_kd_dual", "--method.parity=true", *WHOLE)))
    climbed = [not torch.equal(weights(found[0])[key], value) for key, value in before.items() if "potential" in key]
    assert len(climbed) == 12 and all(climbed)  # else as one process, which meets all examples
