"""Which state a run goes on from: the newest that verifies, with a line in the log; or none, with a way out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stillhouse import store
from stillhouse.mistakes import LONGEST_LINE, Mistake
from stillhouse.training import run
from stillhouse.training.folder import RunFolder
from stillhouse.training.trainer import DistillationTrainer
from tests import toy
from tests.training.test_run import Killed, metrics, recipe, weights

DAMAGES: dict[str, Callable[[Path], Any]] = {
    "a byte": lambda last: flip(last / "optimizer.pt"),
    "no file": lambda last: (last / "model.safetensors").unlink(),
    "no manifest": lambda last: (last / "manifest.json").unlink(),
    "no folder": lambda last: last.rename(last.with_name("taken-away")),
}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_world(tmp_path_factory.mktemp("world"))


def options(world: Path) -> list[str]:
    return [f"--data.eval={world / 'dev.jsonl'}", "--evaluation.generate=false", "--training.save_steps=1"]


def stopped(world: Path, output: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> Path:
    """The folder of a run that was interrupted in the step after `step`."""
    train_step, calls = DistillationTrainer.training_step, iter(range(100))

    def killing(*given: Any, **named: Any) -> Tensor:
        if next(calls) == step:
            raise Killed
        return train_step(*given, **named)

    made = recipe(world, output, *options(world))
    with monkeypatch.context() as patch:
        patch.setattr(DistillationTrainer, "training_step", killing)
        with pytest.raises(Killed):
            run(made)
    return made.folder


def step_of(folder: Path) -> int:
    return store.read_json(folder / "trainer_state.json")["global_step"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_state_that_does_not_verify_is_passed_over_for_the_one_before(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    whole = run(recipe(world, tmp_path / "whole", *options(world)))
    assert not (whole / "last.previous").exists()
    cut = stopped(world, tmp_path / "cut", monkeypatch, step=5)
    assert (step_of(cut / "last"), step_of(cut / "last.previous")) == (5, 4)
    DAMAGES[damage](cut / "last")
    again = run(recipe(world, tmp_path / "cut", *options(world)))
    said = (again / "train.log").read_text()
    wrong = "last is missing" if damage == "no folder" else "is corrupt: expected"
    assert f"going on from {cut}/last.previous" in said
    assert f"using {cut}/last.previous, the version before: {cut}/last" in said and wrong in said
    ours, theirs = weights(again / "last"), weights(whole / "last")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert [line["loss"] for line in metrics(again) if "loss" in line] == [
        line["loss"] for line in metrics(whole) if "loss" in line
    ]
    assert not (again / "last.previous").exists()
    assert [path.name for path in again.glob("epoch*")] == [path.name for path in whole.glob("epoch*")]


def test_where_no_state_verifies_the_run_is_refused_unless_told(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = stopped(world, tmp_path, monkeypatch, step=5)
    flip(cut / "last" / "optimizer.pt")
    flip(cut / "last.previous" / "model.safetensors")
    with pytest.raises(
        Mistake, match=r"last/optimizer\.pt: corrupt: .*; --overwrite=true starts this run anew"
    ) as said:
        run(recipe(world, tmp_path, *options(world)))
    assert len(str(said.value)) <= LONGEST_LINE
    assert (cut / "last.previous").exists()
    again = run(recipe(world, tmp_path, *options(world), "--overwrite=true"))
    assert "going on from" not in (again / "train.log").read_text()


def test_a_save_within_the_last_step_of_an_epoch_waits_for_its_evaluation(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state from between the step and the evaluation would begin the next epoch, and this one's scores be lost."""
    made = recipe(world, tmp_path / "cut", *options(world))

    def killing(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(DistillationTrainer, "evaluate", killing)
        with pytest.raises(Killed):
            run(made)
    assert step_of(made.folder / "last") == 2
    again = run(made)
    assert [line["step"] for line in metrics(again) if "eval_loss" in line] == [3, 6]


def test_a_run_that_took_all_its_steps_takes_no_more(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe(world, tmp_path, "--training.max_steps=4")  # within the second epoch

    def killing(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "finish", killing)
        with pytest.raises(Killed):
            run(made)
    before = (made.folder / "last" / "manifest.json").read_bytes()
    lines = metrics(made.folder)
    again = run(made)
    assert store.read_json(again / "finished.json")["steps"] == 4
    assert (again / "last" / "manifest.json").read_bytes() == before and metrics(again) == lines


def test_checkpoints_of_another_recipe_are_not_ranked_with_ours(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was killed after its first epoch's checkpoint and before its first state."""
    cut = stopped(world, tmp_path, monkeypatch, step=3)
    store.remove_folder(cut / "last")
    assert [path.name for path in cut.glob("*last*")] == [] and len(list(cut.glob("epoch*"))) == 1
    with pytest.raises(Mistake, match=r"training.learning_rate: is 0.02 here, but 0.01 in the interrupted run in"):
        run(recipe(world, tmp_path, *options(world), "--training.learning_rate=0.02"))
