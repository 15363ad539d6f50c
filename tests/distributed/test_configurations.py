"""The configuration files that recipes/accelerate holds, in the environment that `accelerate launch` makes of them."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from stillhouse.training import run
from tests import toy
from tests.distributed.test_backends import DDP, FSDP, WHOLE, Backend, recipe, same, split, zero
from tests.habits.tree import ROOT

pytestmark = pytest.mark.slow
NEEDS_DEEPSPEED = pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student, a teacher, and rows."""
    return toy.write_world(tmp_path_factory.mktemp("configured"))


def environment(name: str) -> dict[str, str]:
    """What `accelerate launch --config_file recipes/accelerate/NAME.yaml` adds to the environment of its processes."""
    from accelerate.commands import launch

    file = ROOT / "recipes" / "accelerate" / f"{name}.yaml"
    given = launch.launch_command_parser().parse_args(["--config_file", str(file), "--num_processes=2", "none.py"])
    settled, defaults, _ = launch._validate_launch_command(given)
    fields: Any = defaults.deepspeed_config
    if settled.use_deepspeed:
        settled.deepspeed_fields_from_accelerate_config = ",".join(fields)
        made = launch.prepare_deepspeed_cmd_env(settled)[1]
    else:
        made = launch.prepare_multi_gpu_env(settled)
    return {key: value for key, value in made.items() if os.environ.get(key) != value}


@pytest.mark.parametrize(
    "name", ["ddp", "fsdp2", *(pytest.param(f"zero{stage}", marks=NEEDS_DEEPSPEED) for stage in (2, 3))]
)
def test_a_configuration_makes_the_backend_that_it_names(
    world: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    backend = {"ddp": DDP, "fsdp2": FSDP}.get(name) or zero(int(name[-1]), tmp_path)
    gloo = ["--training.ddp_backend=gloo"] if name == "fsdp2" else []  # what stands in for GPUs here
    alone = run(recipe(world, tmp_path / "alone", "ctkd", *WHOLE))
    made = recipe(world, tmp_path / "launched", "ctkd", *split(4, 1), *gloo)
    launched = Backend([], backend.prepare, backend.shows)
    (folder,) = launched.run_all([made], **environment(name))
    same(folder, alone)
