"""The order of the training examples after a resume at every step is the order without one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stillhouse.recipe import Recipe
from stillhouse.training.arguments import training_arguments
from stillhouse.training.checkpoints import LAST
from stillhouse.training.preflight import tokenizers_of
from stillhouse.training.prepare import prepare
from stillhouse.training.trainer import DistillationTrainer
from tests import toy
from tests.distributed.ranks import on_ranks
from tests.training.test_run import recipe

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes:UserWarning"),  # on fewer cores
]
WORKERS, PACKING, GROUPING = (0, 1, 3), (False, True), (False, True)
ALL = "STILLHOUSE_ORDERS" in os.environ  # twelve cases take minutes; else every value beside every other kind's
PAIRWISE = [(0, False, False), (0, True, True), (1, False, True), (1, True, False), (3, True, False), (3, False, True)]
ALONE = list(product(WORKERS, PACKING, GROUPING)) if ALL else PAIRWISE
Fed = list[tuple[int, list[int]]]  # (steps taken before, sample ids of the micro-batch)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_world(tmp_path_factory.mktemp("world"))


def of(world: Path, output: Path, workers: int, packing: bool, grouping: bool, ranks: int) -> Recipe:
    """24 rows, 3 steps an epoch: of 2 batches, the last of 1, whose last has 4 rows; of 2 ranks, of a batch each."""
    return recipe(
        world,
        output,
        "--training.per_device_train_batch_size=5",
        f"--training.gradient_accumulation_steps={3 - ranks}",
        "--training.save_steps=1",
        f"--training.dataloader_num_workers={workers}",
        f"--data.packing={packing}".lower(),
        "--training.train_sampling_strategy=" + ("group_by_length" if grouping else "random"),
    )


@contextmanager
def fed() -> Iterator[Fed]:
    """Note what every step is fed, and learn nothing from it, but draw random numbers as dropout would."""
    seen: Fed = []

    def training_step(trainer: DistillationTrainer, model: Any, inputs: dict[str, Any], *_: Any) -> Tensor:
        seen.append((trainer.state.global_step, inputs["sample"].tolist()))
        torch.rand(7)
        return torch.zeros(())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DistillationTrainer, "training_step", training_step)
        patch.setattr(DistillationTrainer, "_clip_grad_norm", lambda *_: None)
        patch.setattr(DistillationTrainer, "_get_grad_norm", lambda *_, **__: 1.0)
        yield seen


def orders(made: Recipe) -> dict[int, Fed]:
    """Steps taken -> what is fed after a resume there; 0: an uninterrupted run of two epochs."""
    tokenizer, _ = tokenizers_of(made)
    arguments = training_arguments(made)
    made.folder.mkdir(parents=True, exist_ok=True)
    trainer = prepare(made, made.folder, tokenizer, arguments).trainer
    save = DistillationTrainer._save_checkpoint
    states: dict[int, Path] = {}

    def kept(trainer: DistillationTrainer, *given: Any) -> None:
        save(trainer, *given)
        step = trainer.state.global_step
        states[step] = made.folder / f"state{step}"
        if arguments.process_index == 0:
            shutil.copytree(made.folder / LAST, states[step])
        trainer.accelerator.wait_for_everyone()

    found: dict[int, Fed] = {}
    with fed() as seen:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(DistillationTrainer, "_save_checkpoint", kept)
            trainer.train()
        found[0] = list(seen)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(DistillationTrainer, "_save_checkpoint", lambda trainer, *given: None)
            for step, state in list(states.items())[:-1]:
                seen.clear()
                torch.manual_seed(step)  # nothing before the resume may matter
                trainer.train(resume_from_checkpoint=str(state))
                found[step] = list(seen)
    return found


def check(found: dict[int, Fed]) -> None:
    whole = found.pop(0)
    assert list(found) == list(range(1, 6)) and {step for step, _ in whole} == set(range(6))
    for step, after in found.items():
        assert after == [(at, samples) for at, samples in whole if at >= step], step


@pytest.mark.parametrize(("workers", "packing", "grouping"), ALONE)
def test_a_resume_at_any_step_is_fed_what_comes_next(
    world: Path, tmp_path: Path, workers: int, packing: bool, grouping: bool
) -> None:
    found = orders(of(world, tmp_path, workers, packing, grouping, 1))
    first, second = ([i for at, ids in found[0] if at // 3 == epoch for i in ids] for epoch in (0, 1))
    assert sorted(first) == sorted(second) == sorted(set(first)) and len(first) == 24
    assert first != second, "every epoch has an order of its own"
    check(found)


def test_so_is_each_of_two_processes(world: Path, tmp_path: Path) -> None:
    cases = ALONE if ALL else [(0, False, False), (1, True, False), (3, False, True), (3, True, True)]
    # Written before the processes begin: one must not read what the other is writing.
    recipes = [of(world, tmp_path / "-".join(map(str, case)), *case, 2) for case in cases]

    def all_of_them() -> list[dict[int, Fed]]:
        torch.rand(3)
        return [orders(made) for made in recipes]

    for case, one, other in zip(cases, *on_ranks(all_of_them, daemon=False), strict=True):
        firsts = [[ids for _, ids in fed] for fed in (one[0], other[0])]
        assert firsts[0] != firsts[1] and {i for part in firsts for ids in part for i in ids} == set(range(24)), case
        check(one)
        check(other)
