"""A teacher that is cut over two CPU processes says what a whole one says."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch.distributed.tensor import DTensor

from stillhouse.head import Head
from stillhouse.mistakes import Mistake
from stillhouse.models import backbone
from stillhouse.training import run
from stillhouse.training.trainer import DistillationTrainer
from tests import toy
from tests.distributed.test_backends import AHEAD, DDP, FSDP, WHOLE, Backend, recipe, same, split

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student, a teacher whose head is tied to its embeddings, one whose head is not, and rows."""
    return toy.write_untied(toy.write_world(tmp_path_factory.mktemp("shards")))


def is_cut(trainer: DistillationTrainer) -> bool:
    """Whether of the teacher's backbone all is cut but what the head needs, and a process holds half of the layers."""
    teacher = trainer.distiller.teacher
    assert teacher is not None
    head = Head.of(teacher.model).weight
    body = [weight for weight in backbone(teacher.model).parameters() if weight is not head]
    layers = [weight for weight in body if isinstance(weight, DTensor)]
    held = sum(weight.to_local().numel() for weight in layers)
    return not isinstance(head, DTensor) and len(layers) == len(body) and 2 * held == sum(w.numel() for w in body)


PADDED, PACKED = [*split(2, 2), AHEAD], [*split(4, 1), "--data.packing=true"]


@pytest.mark.parametrize(
    ("student", "teacher", "method", "layout"),  # every two of them in some case
    [
        (DDP, "large", "todi", PADDED),
        (DDP, "untied", "todi", PACKED),
        (DDP, "untied", "dskd_cma", PADDED),
        (FSDP, "large", "todi", PACKED),
        (FSDP, "untied", "todi", PADDED),
        (FSDP, "untied", "dskd_cma", PACKED),
    ],
    ids=[f"{student}-{teaching}" for student in ("ddp", "fsdp2") for teaching in ("tied", "untied", "dskd_cma")],
)
def test_a_teacher_in_shards_teaches_the_same(
    world: Path, tmp_path: Path, student: Backend, teacher: str, method: str, layout: list[str]
) -> None:
    """Of `dskd_cma` its embeddings as well, which are looked up outside of its own forward."""
    named = f"--teacher.model={world / teacher}"
    alone = run(recipe(world, tmp_path / "alone", method, *WHOLE, named))
    made = recipe(world, tmp_path / "both", method, *layout, named, "--teacher.shard=fsdp", *student.options)
    both = Backend([], student.prepare, lambda trainer: student.shows(trainer) and is_cut(trainer))
    (folder,) = both.run_all([made])
    same(folder, alone)


def test_batches_of_unlike_lengths_do_not_part_the_processes(world: Path, tmp_path: Path) -> None:
    """Rows of a batch run in groups of like length on a CPU, and how many there are differs between processes."""
    lines = (world / "train.jsonl").read_text().splitlines()
    long = lines[0].replace("plus", "plus " * 12)
    (tmp_path / "uneven.jsonl").write_text("\n".join([*lines[:7], long, *lines[8:16]]) + "\n")
    options = [*split(8, 1), f"--data.train={tmp_path / 'uneven.jsonl'}", "--data.max_length=128"]
    options += ["--data.max_prompt_length=100", "--training.train_sampling_strategy=sequential"]
    made = recipe(world, tmp_path / "cut", "todi", *options, "--training.max_steps=1", "--teacher.shard=fsdp")
    alone = recipe(world, tmp_path / "alone", "todi", *split(16, 1), *options[2:], "--training.max_steps=1")
    (folder,) = DDP.run_all([made])
    same(folder, run(alone))


def test_one_process_has_nobody_to_share_with(world: Path, tmp_path: Path) -> None:
    with pytest.raises(Mistake, match=r"teacher.shard: a single process has the whole teacher anyway; write none, or"):
        run(recipe(world, tmp_path, "todi", *WHOLE, "--teacher.shard=fsdp"))
