"""Projectors that are trained alone, beside a frozen student, by several processes: as by one."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stillhouse.training import run
from tests import toy
from tests.distributed.test_backends import AHEAD, DDP, FSDP, WHOLE, Backend, recipe, same, split, zero

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
