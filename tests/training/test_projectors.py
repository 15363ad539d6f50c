"""Projectors that are trained alone, beside a student that stays as it is, and runs that begin with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from stillhouse.catalogue import METHODS
from stillhouse.mistakes import LONGEST_LINE, Mistake
from stillhouse.recipe import Recipe, check, parse
from stillhouse.training import prepare as preparing
from stillhouse.training import run
from stillhouse.training.arguments import training_arguments
from stillhouse.training.preflight import tokenizers_of
from stillhouse.training.prepare import prepare
from stillhouse.training.trainer import DistillationTrainer
from tests import toy
from tests.training.test_run import Killed, metrics, recipe, weights

WITH_PROJECTORS = [name for name, entry in METHODS.items() if entry.has_projectors]
FROZEN = "--student.frozen=true"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_world(tmp_path_factory.mktemp("world"))


def made(world: Path, output: Path, method: str, *options: str) -> Recipe:
    teacher = world / ("foreign" if METHODS[method].two_sided else "large")
    return recipe(world, output, f"--method={method}", f"--teacher.model={teacher}", *options)


def learnt(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "method.safetensors")


def drawn(of: Recipe, output: Path) -> dict[str, Tensor]:
    """What the method of a run begins with."""
    distiller = prepare(of, output, tokenizers_of(of)[0], training_arguments(of)).distiller
    return dict(distiller.method.named_parameters())


def the_whole_student(world: Path, folder: Path) -> bool:
    ours, theirs = weights(folder), weights(world / "small")
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("name", WITH_PROJECTORS)
def test_projectors_learn_alone_and_another_run_begins_with_them(world: Path, tmp_path: Path, name: str) -> None:
    alone = made(world, tmp_path / "alone", name, FROZEN, f"--data.eval={world / 'dev.jsonl'}")
    before = {key: value.detach().clone() for key, value in drawn(alone, tmp_path / "drawn").items()}
    folder = run(alone)
    (best,) = folder.glob("epoch*")
    assert best.name.startswith("epoch2_")  # the student says the same after every epoch: the later one counts
    found = learnt(best)
    assert the_whole_student(world, best) and the_whole_student(world, folder / "last")
    assert [key for key, value in before.items() if torch.equal(found[key], value)] == []
    steps = [line for line in metrics(folder) if "loss" in line]
    assert steps[-1]["t2s_ce"] < steps[0]["t2s_ce"]
    assert steps[0]["learning_rate"] == METHODS[name].parameters["projector_learning_rate"].default
    for given in (folder, best, best / "method.safetensors"):
        again = made(world, tmp_path / "again", name, f"--method.projectors={given}")
        check(again)
        begun = drawn(again, tmp_path / "begun")
        assert all(torch.equal(value, found[key]) for key, value in begun.items())
    end = run(made(world, tmp_path / "again", name, f"--method.projectors={folder}"))
    assert not the_whole_student(world, end / "last")
    assert [key for key in before if torch.equal(learnt(end / "last")[key], found[key])] == []


def test_what_follows_training_begins_anew(world: Path, tmp_path: Path) -> None:
    first = run(made(world, tmp_path, "mcw_kd", FROZEN, "--method.update_interval=2"))
    of = made(world, tmp_path / "again", "mcw_kd", f"--method.projectors={first}")
    method = prepare(of, tmp_path, tokenizers_of(of)[0], training_arguments(of)).distiller.method
    weights_of_costs = method.get_buffer("cost_weights")
    assert not torch.equal(learnt(first / "last")["cost_weights"], weights_of_costs)
    assert weights_of_costs[0].tolist() == pytest.approx([0.2, 0.5, 0.3])


def test_a_frozen_student_is_in_eval_mode_and_another_is_not(world: Path, tmp_path: Path) -> None:
    for options, training in (([FROZEN], False), ([], True)):
        of = made(world, tmp_path, "dskd", *options)
        distiller = prepare(of, tmp_path, tokenizers_of(of)[0], training_arguments(of)).distiller.train()
        assert distiller.student.training == training and distiller.method.training
        assert not distiller.eval().student.training


def test_a_killed_run_goes_on_to_the_same_projectors(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(made(world, tmp_path / "whole", "dskd_cma", FROZEN))
    cut = made(world, tmp_path / "cut", "dskd_cma", FROZEN)
    step, calls = DistillationTrainer.training_step, iter(range(100))

    def killing(*given: Any, **named: Any) -> Tensor:
        if next(calls) == 4:
            raise Killed
        return step(*given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(DistillationTrainer, "training_step", killing)
        with pytest.raises(Killed):
            run(cut)
    again = run(cut)
    ours, theirs = learnt(again / "last"), learnt(whole / "last")
    assert "going on from" in (again / "train.log").read_text()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs) and the_whole_student(world, again / "last")


def changed(key: str, value: Tensor | None) -> dict[str, Tensor]:
    state = {"projectors.t2s.weight": torch.ones(16, 24), "projectors.t2s.bias": torch.ones(16)}
    state |= {"projectors.s2t.weight": torch.ones(24, 16), "projectors.s2t.bias": torch.ones(24)}
    state |= {} if value is None else {key: value}
    return {name: kept for name, kept in state.items() if value is not None or name != key}


def loaded(*_: Any, **__: Any) -> None:
    """Two large models would have been waited for."""
    raise AssertionError("a model was loaded")


WRONG = {
    "another size": (
        changed("projectors.s2t.weight", torch.ones(32, 16)),
        "'projectors.s2t.weight' is [32, 16] in '{path}' and [24, 16] here",
    ),
    "one fewer": (changed("projectors.s2t.bias", None), "'{path}' has no 'projectors.s2t.bias', which is [24] here"),
    "one more": (
        changed("projectors.query.weight", torch.ones(48, 32)),
        "'{path}' has 'projectors.query.weight' [48, 32], which is not here",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_weights_of_another_method_or_of_other_models_are_refused(
    world: Path, tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, wrong = WRONG[case]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(preparing, "load_causal_lm", loaded)
    path = "kept.safetensors"
    save_file(state, path)
    with pytest.raises(Mistake) as raised:
        drawn(made(world, tmp_path / "out", "dskd", f"--method.projectors={path}"), tmp_path)
    said = str(raised.value)
    assert said == f"method.projectors: {wrong.format(path=path)}; name a run of this method and of these models"


def test_a_damaged_file_is_refused(world: Path, tmp_path: Path) -> None:
    folder = run(made(world, tmp_path / "alone", "dskd", FROZEN, "--training.max_steps=1"))
    path = folder / "last" / "method.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    of = made(world, tmp_path / "out", "dskd", f"--method.projectors={path}")
    with pytest.raises(Mistake, match="corrupt: expected"):
        drawn(of, tmp_path)
    (tmp_path / "short.safetensors").write_bytes(b"{}")
    of = made(world, tmp_path / "out", "dskd", f"--method.projectors={tmp_path / 'short.safetensors'}")
    with pytest.raises(Mistake, match="cannot be read") as raised:
        drawn(of, tmp_path)
    assert len(str(raised.value)) <= LONGEST_LINE


def test_the_whole_recipe_of_a_frozen_run_is_read_again(world: Path, tmp_path: Path) -> None:
    of = made(world, tmp_path, "dskd_v2", FROZEN)
    path = tmp_path / "again.yaml"
    path.write_text(json.dumps(of.as_dict()))
    assert parse("distill", [str(path)]).as_dict() == of.as_dict() and of.student.frozen
