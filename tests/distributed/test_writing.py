"""Two processes that share one server, or what is written at once: the weights of one, and no request more."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from stillhouse.mistakes import Mistake
from stillhouse.recipe import Recipe
from stillhouse.training import run
from stillhouse.training.trainer import DistillationTrainer
from tests import toy
from tests.distributed.ranks import on_ranks
from tests.distributed.test_backends import DDP, WHOLE, recipe, same, split, weights
from tests.rollout.serving import served_apart
from tests.training.test_run import Killed

pytestmark = pytest.mark.slow
METHODS = {
    "minillm": ["--rollout.teacher_mix=0", "--rollout.reuse=1"],
    "jsd": ["--rollout.source=student", "--rollout.max_new_tokens=6"],
}
STEPS = 3


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_world(tmp_path_factory.mktemp("world"), sharp=20.0)


def counted(asked: list[tuple[str, Any]], path: str) -> Counter[str]:
    """How often each was asked for."""
    return Counter(json.dumps(body, sort_keys=True) for at, body in asked if at == path)


def test_they_share_the_prompts_and_one_hands_over_the_weights(world: Path, tmp_path: Path) -> None:
    def of(name: str, options: list[str]) -> list[Any]:
        return [recipe(world, tmp_path / name / method, method, *more, *options) for method, more in METHODS.items()]

    with served_apart(world / "small") as (address, asked):
        at = [f"--rollout.server={address}", "--rollout.show_every=1"]
        alone = [run(made) for made in of("alone", [*WHOLE, *at])]
        expected = asked()
        spread = DDP.run_all(of("two", [*split(4, 1), *at]))
        found = asked()
    for ours, theirs in zip(spread, alone, strict=True):
        same(ours, theirs)
        assert not (ours / "served").exists()
    texts = counted(found, "/v1/completions")
    assert texts == counted(expected, "/v1/completions") and len(texts) == STEPS * 8
    assert set(texts.values()) == {len(METHODS)}, "once a method: both ask for the same"
    for path in ("/collective_rpc", "/reset_prefix_cache"):
        assert sum(counted(found, path).values()) == len(METHODS) * STEPS
    order = [path for path, _ in found if path in ("/collective_rpc", "/v1/completions")]
    assert order == (["/collective_rpc"] + ["/v1/completions"] * 8) * (len(METHODS) * STEPS), "all wait for the weights"


def test_they_share_the_rows_that_a_teacher_answers(world: Path, tmp_path: Path) -> None:
    with served_apart(world / "large", max_model_len=96) as (address, asked):
        more = ["--rollout.source=teacher", "--rollout.max_new_tokens=4", f"--rollout.server={address}"]
        alone = run(recipe(world, tmp_path / "alone", "forward_kl", *WHOLE, *more))
        expected = asked()
        (spread,) = DDP.run_all([recipe(world, tmp_path / "two", "forward_kl", *split(4, 1), *more)])
        found = asked()
    same(spread, alone)
    assert counted(found, "/v1/completions") == counted(expected, "/v1/completions")
    assert (spread / "teacher.jsonl").read_text() == (alone / "teacher.jsonl").read_text()


def test_they_share_a_window(world: Path, tmp_path: Path) -> None:
    more = ["--rollout.window=16", "--rollout.reuse=2", "--rollout.show_every=1", "--training.save_steps=1"]
    alone = run(recipe(world, tmp_path / "alone", "minillm", *WHOLE, *more))
    (spread,) = DDP.run_all([recipe(world, tmp_path / "two", "minillm", *split(2, 2), *more)])
    same(spread, alone)
    cut = recipe(world, tmp_path / "cut", "minillm", *split(2, 2), *more)
    on_ranks(lambda: killed(cut, 5))  # in the third step of four that learn from what was written in the first
    (again,) = DDP.run_all([cut])
    theirs = weights(spread)
    assert all(torch.equal(value, theirs[name]) for name, value in weights(again).items())
    assert (again / "samples.jsonl").read_text() == (spread / "samples.jsonl").read_text()
    odd = recipe(world, tmp_path / "odd", "minillm", *split(8, 1), "--rollout.window=24")
    (said, _) = on_ranks(lambda: refused(odd))
    assert said == ("rollout.window: 24 is no multiple of the 16 examples that 2 processes take in a step; write 32")


def killed(made: Recipe, call: int) -> None:
    step, calls = DistillationTrainer.training_step, iter(range(99))

    def killing(*given: Any, **named: Any) -> Any:
        if next(calls) == call:
            raise Killed
        return step(*given, **named)

    DistillationTrainer.training_step = killing
    with pytest.raises(Killed):
        run(made)


def refused(made: Recipe) -> str:
    with pytest.raises(Mistake) as caught:
        run(made)
    return str(caught.value)
