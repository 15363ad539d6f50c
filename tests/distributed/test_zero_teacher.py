"""A teacher in ZeRO-3 shards over two CPU processes says what a whole one says, its head included."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, TrainingArguments

from stillhouse.mistakes import Mistake
from stillhouse.models import load_causal_lm
from stillhouse.recipe import Recipe
from stillhouse.teacher import LiveTeacher, elements, held, shard_by_zero
from stillhouse.training import preflight, run
from stillhouse.training.log import logger
from stillhouse.training.rehearsal import rehearse
from stillhouse.training.trainer import DistillationTrainer
from tests import toy
from tests.distributed.ranks import on_ranks
from tests.distributed.test_backends import AHEAD, DDP, FSDP, WHOLE, Backend, quiet_deepspeed, recipe, same, split, zero
from tests.distributed.test_configurations import environment

pytestmark = pytest.mark.slow
NEEDS_DEEPSPEED = pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student, a teacher whose head is tied to its embeddings, one whose head is not, and rows."""
    return toy.write_untied(toy.write_world(tmp_path_factory.mktemp("zero")))


def is_cut(model: PreTrainedModel) -> bool:
    """Whether a process holds half of each weight, and while the model rests nothing whole but norms."""
    weights = list(model.parameters())
    halved = all(2 * held(weight).numel() == elements(weight) > 0 for weight in weights)
    whole = [weight for weight in weights if weight.numel() > 0]
    return halved and len(whole) < len(weights) and all(weight.ndim == 1 for weight in whole)


def on(backend: Backend) -> Backend:
    """`backend` for the student, and a teacher that is cut beside it; without warnings of DeepSpeed's own."""

    def prepare() -> None:
        backend.prepare()
        quiet_deepspeed()

    def shows(trainer: DistillationTrainer) -> bool:
        teacher = trainer.distiller.teacher
        return backend.shows(trainer) and teacher is not None and is_cut(teacher.model)

    return Backend([], prepare, shows)


def students(folder: Path) -> dict[str, Backend]:
    return {"ddp": DDP, "fsdp2": FSDP, "zero2": zero(2, folder), "zero3": zero(3, folder)}


TAUGHT = (("large", "todi"), ("untied", "todi"), ("untied", "dskd_cma"), ("large", "dskd_v2"))
STUDENTS = ("ddp", "fsdp2", "zero2", "zero3")
LAYOUTS = ([*split(2, 2), AHEAD], [*split(4, 1), "--data.packing=true"])


@pytest.fixture(scope="module")
def alone(world: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """What each of TAUGHT gives in one process."""
    place = tmp_path_factory.mktemp("alone")
    return [
        run(recipe(world, place / f"{teacher}-{method}", method, *WHOLE, f"--teacher.model={world / teacher}"))
        for teacher, method in TAUGHT
    ]


@NEEDS_DEEPSPEED
@pytest.mark.parametrize("student", STUDENTS)
def test_a_teacher_in_zero3_shards_teaches_the_same(
    world: Path, tmp_path: Path, alone: list[Path], student: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Padded and packed by turns: every student and every teacher has both.

    Of `dskd_cma` its embeddings are cut as well, which are looked up outside of its own forward.
    """
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    backend = students(tmp_path)[student]
    made: list[Recipe] = []
    for at, (teacher, method) in enumerate(TAUGHT):
        options = [f"--teacher.model={world / teacher}", "--teacher.shard=zero3", *backend.options]
        layout = LAYOUTS[(at + STUDENTS.index(student)) % 2]
        made += [recipe(world, tmp_path / f"{teacher}-{method}", method, *layout, *options)]
    for ours, theirs in zip(on(backend).run_all(made), alone, strict=True):
        same(ours, theirs)


def ends_of(work: Callable[[], str]) -> list[str]:
    """The line that each of two processes ends with, DeepSpeed's warnings aside."""

    def quietly() -> str:
        quiet_deepspeed()
        try:
            return work()
        except Mistake as mistake:
            return str(mistake)

    return on_ranks(quietly, DS_ACCELERATOR="cpu")


@NEEDS_DEEPSPEED
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_predictions_are_those_of_a_whole_teacher(world: Path, dtype: str) -> None:
    """Batches of unlike lengths in the two processes, one and several in a forward, a head that is read later."""

    def work() -> str:
        arguments = TrainingArguments(use_cpu=True, report_to="none")
        device, rank = arguments.device, torch.distributed.get_rank()
        ids = torch.arange(3 * (9 + 4 * rank)).reshape(3, -1) % 290 + 2
        mask = torch.ones_like(ids)
        mask[1, 5:] = 0
        places = torch.tensor([0, 3, ids.shape[1], 2 * ids.shape[1] + 6])
        batch: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "labels": ids, "scored_at": places}
        for name in ("large", "untied"):
            model = load_causal_lm(str(world / name), dtype=dtype)
            whole = LiveTeacher(model, 290).predict(**batch).logits()
            shard_by_zero(model, device)
            teacher = LiveTeacher(model, 290, window=2)
            both = [teacher.predict(**batch), *teacher.predict_all([batch] * 3)]
            assert is_cut(model)
            for found in both:
                torch.testing.assert_close(found.logits(), whole, rtol=0, atol=1e-6 if dtype == "float32" else 2e-2)
        return "the same"

    assert ends_of(work) == ["the same"] * 2


@NEEDS_DEEPSPEED
@pytest.mark.parametrize("name", ["ddp", "zero3"])
def test_beside_a_configuration_of_ours(
    world: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    backend = {"ddp": DDP, "zero3": zero(3, tmp_path)}[name]
    alone = run(recipe(world, tmp_path / "alone", "todi", *WHOLE))
    made = recipe(world, tmp_path / "launched", "todi", *split(4, 1), "--teacher.shard=zero3")
    (folder,) = on(backend).run_all([made], **environment(name))
    same(folder, alone)


@NEEDS_DEEPSPEED
def test_a_dry_run_counts_the_part_that_is_held(world: Path, tmp_path: Path) -> None:
    made = recipe(world, tmp_path, "todi", *split(4, 1), "--teacher.shard=zero3")
    lines: list[str] = []

    def work() -> str:
        logger.addHandler(handler := logging.Handler())
        handler.emit = lambda record: lines.append(record.getMessage())
        rehearse(made)
        return "\n".join(lines)

    first, _ = ends_of(work)
    assert "teacher: LlamaForCausalLM, 0.02 M parameters" in first and "dry run: nothing was written" in first


def refused(model: PreTrainedModel, device: str) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(Mistake) as raised:
            shard_by_zero(model, torch.device(device))
    return str(raised.value)


@NEEDS_DEEPSPEED
def test_another_kind_of_device_is_refused(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    model = load_causal_lm(str(world / "large"))
    assert refused(model, "cuda") == (
        "teacher.shard: DeepSpeed works on cpu here, and training on cuda; "
        "set DS_ACCELERATOR=cuda in the environment, or write fsdp"
    )


@NEEDS_DEEPSPEED
def test_weights_of_several_dtypes_are_refused(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    model = load_causal_lm(str(world / "untied"))
    model.lm_head.to(torch.bfloat16)
    assert refused(model, "cpu") == (
        "teacher.shard: zero3 takes weights of one dtype, these are bfloat16, float32; set teacher.dtype, or write fsdp"
    )


def test_one_process_has_nobody_to_share_with(world: Path, tmp_path: Path) -> None:
    with pytest.raises(Mistake, match=r"teacher.shard: a single process has the whole teacher anyway; write none, or"):
        run(recipe(world, tmp_path, "todi", *WHOLE, "--teacher.shard=zero3"))


def test_it_is_refused_without_deepspeed(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "find_spec", lambda name: None)
    made = recipe(world, tmp_path, "todi", *split(4, 1), "--teacher.shard=zero3")
    said = ends_of(lambda: str(run(made)))
    assert (
        said
        == ["teacher.shard: zero3 needs the package deepspeed; pip install 'stillhouse[deepspeed]', or write fsdp"] * 2
    )
