"""Training on what another engine writes: continuous batching, and a server that is given the weights of every step."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from stillhouse.mistakes import Mistake
from tests import toy
from tests.rollout.serving import served
from tests.rollout.small import save_model
from tests.training.test_on_policy import split, train
from tests.training.test_run import weights


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_world(tmp_path_factory.mktemp("world"), sharp=20.0)


@pytest.mark.parametrize("engine", ["continuous", "server"])
def test_another_engine_writes_with_the_weights_of_its_step(world: Path, tmp_path: Path, engine: str):
    """What batches write in each of three steps, so the same weights; a server is given new ones before each."""
    rollout: dict[str, Any] = {"source": "student", "max_new_tokens": 6, "show_every": 1}
    rollout |= {"temperature": 0.0} if engine == "server" else {}
    told = ["reverse_kl", rollout, *split(4, 2), "--training.max_steps=3"]
    expected = train(world, tmp_path / "own", *told)
    with served(world / "small") as serving:
        more = {"server": f"--rollout.server={serving.address}", "continuous": "--rollout.engine=continuous"}[engine]
        found = train(world, tmp_path / engine, *told, more)
        taken = [path for path, _ in serving.asked if path == "/collective_rpc"]
    assert len(taken) == (3 if engine == "server" else 0)
    assert (found / "samples.jsonl").read_text() == (expected / "samples.jsonl").read_text()
    for name, value in weights(expected / "last").items():
        torch.testing.assert_close(weights(found / "last")[name], value, rtol=0, atol=2e-4)
    assert not (found / "served").exists()


ROOMY = ["--data.max_length=160", "--data.max_prompt_length=128"]  # for a tokenizer of characters
ENGINES = {
    "no address": (["--rollout.server=localhost"], "rollout.server: 'localhost' is no address of a server"),
    "two engines": (["--rollout.server=http://a:1", "--rollout.engine=continuous"], "rollout.engine: is of a model in"),
    "server and teacher": (
        ["--rollout.server=http://a:1", "--rollout.teacher_mix=0.2"],
        "rollout.teacher_mix: needs b",
    ),
    "continuous and teacher": (
        ["--rollout.engine=continuous", "--rollout.teacher_mix=0.2"],
        "rollout.teacher_mix: reads along with batches alone",
    ),
    "adapter": (["--rollout.server=http://a:1", "--student.lora.r=2"], "student.lora: has weights that a server"),
    "nobody": (["--rollout.server=http://127.0.0.1:9"], "server: http://127.0.0.1:9: does not answer"),
}


@pytest.mark.parametrize("case", ENGINES)
def test_what_an_engine_cannot_do_is_said(world: Path, tmp_path: Path, case: str):
    more, said = ENGINES[case]
    with pytest.raises(Mistake, match=re.escape(said)):
        train(world, tmp_path, "reverse_kl", {"source": "student"}, *more)


def test_the_teachers_server_answers_once(tmp_path: Path):
    toy.write_rows(tmp_path / "train.jsonl", 8)
    toy.write_rows(tmp_path / "dev.jsonl", 4)
    for name, seed in (("small", 1), ("large", 2)):
        save_model(tmp_path / name, seed)
    told = ["reverse_kl", {"source": "teacher", "max_new_tokens": 6, "temperature": 0.0}, "--training.max_steps=1"]
    expected = train(tmp_path, tmp_path / "own", *told, *ROOMY)
    with served(tmp_path / "large", max_model_len=256) as serving:
        at = f"--rollout.server={serving.address}"
        found = train(tmp_path, tmp_path / "served", *told, *ROOMY, at)
        serving.root = str(tmp_path / "small")
        with pytest.raises(Mistake, match=r"serves 'served' of .*, not"):
            train(tmp_path, tmp_path / "other", *told, *ROOMY, at)
    assert (found / "teacher.jsonl").read_text() == (expected / "teacher.jsonl").read_text()


def test_minillm_learns_from_a_server_at_temperature_one(world: Path, tmp_path: Path):
    both = ["--rollout.teacher_mix=0", "--rollout.temperature=0.7", "--method.temperature=0.7"]
    with pytest.raises(Mistake, match=r"rollout\.temperature: must be 1: a server notes"):
        train(world, tmp_path, "minillm", None, *both, "--rollout.server=http://127.0.0.1:9")
