"""`training.run` as a user meets it: the folder it leaves, resuming, and gradients that no split of a batch changes."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from stillhouse import store
from stillhouse.catalogue import ALIGNERS, METHODS, VOCABULARIES
from stillhouse.catalogue.methods import WORD_LEVEL
from stillhouse.mistakes import Mistake
from stillhouse.recipe import Recipe, parse
from stillhouse.store.digests import of_file
from stillhouse.training import run
from stillhouse.training.distiller import Distiller
from stillhouse.training.trainer import DistillationTrainer
from tests import toy


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student, a teacher, and rows."""
    return toy.write_world(tmp_path_factory.mktemp("world"))


def recipe(world: Path, output: Path, *overrides: str) -> Recipe:
    tree: dict[str, Any] = {
        "student": {"model": str(world / "small")},
        "teacher": {"model": str(world / "large")},
        "data": {"train": str(world / "train.jsonl"), "template": "short", "max_length": 96, "max_prompt_length": 64},
        "method": {"name": "todi"},
        "training": {
            "learning_rate": 1e-2,
            "num_train_epochs": 2,
            "per_device_train_batch_size": 8,
            "logging_steps": 1,
            "use_cpu": True,
        },
        "output": str(output),
    }
    path = output / "recipe.yaml"
    output.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tree))
    return parse("distill", [str(path), *overrides])


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in store.read_lines(folder / "metrics.jsonl")]


def test_a_run_leaves_the_folder_that_users_know(world: Path, tmp_path: Path) -> None:
    made = recipe(
        world, tmp_path, f"--data.eval={world / 'dev.jsonl'}", "--evaluation.max_new_tokens=4", "--name=first"
    )
    folder = run(made)
    assert folder == tmp_path / "small" / "todi" / "first"
    assert {"recipe.yaml", "args.json", "train.log", "metrics.jsonl", "last", "finished.json"} <= {
        path.name for path in folder.iterdir()
    }
    (kept,) = folder.glob("epoch*")
    lines = metrics(folder)
    steps = [line for line in lines if "loss" in line]
    dev = [line for line in lines if "eval_loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 7)) and [line["step"] for line in dev] == [3, 6]
    assert {"ce", "kd", "accuracy", "agreement", "entropy", "tokens_per_second", "learning_rate", "grad_norm"} <= set(
        steps[0]
    )
    for line in steps:
        assert line["loss"] == pytest.approx(0.5 * line["ce"] + 0.5 * line["kd"], rel=1e-5)
    best = max(dev, key=lambda line: (line["eval_rougeL"], line["step"]))
    step = int(best["step"])
    assert kept.name == f"epoch{step // 3}_step{step}_loss{best['eval_loss']:.4f}_rougel{best['eval_rougeL']:.4f}"
    finished = store.read_json(folder / "finished.json")
    assert (finished["best"], finished["xxh3"]) == (kept.name, of_file(kept / "manifest.json").xxh3)
    model = AutoModelForCausalLM.from_pretrained(kept)
    assert len(AutoTokenizer.from_pretrained(kept)) == model.config.vocab_size
    assert parse("distill", ["--config", str(folder / "recipe.yaml")]).as_dict() == made.as_dict()
    with pytest.raises(Mistake, match=r"holds a finished run; give another --name, or --overwrite=true"):
        run(made)
    anew = run(dataclasses.replace(made, overwrite=True, evaluation=dataclasses.replace(made.evaluation, keep_best=9)))
    assert anew == folder
    assert len(list(folder.glob("epoch*"))) == 2


# Every third method: tests/distributed/test_every_method.py splits the batches of all.
@pytest.mark.parametrize("method", [name for name in METHODS if name != "sft"][::3])
def test_no_split_of_the_batch_changes_the_weights(world: Path, tmp_path: Path, method: str) -> None:
    verb_method = (
        [f"--method.name={method}"] if METHODS[method].needs_teacher else ["--method.name=seqkd", "--teacher=null"]
    )
    ends = []
    for size, accumulated in ((8, 1), (1, 8)):
        split = [
            f"--training.per_device_train_batch_size={size}",
            f"--training.gradient_accumulation_steps={accumulated}",
        ]
        # AdamW divides by the gradient's size: with its usual epsilon the rounding of a zero would become a step.
        options = ["--training.max_steps=3", "--training.adam_epsilon=1e-4", *toy.rollout(method)]
        folder = run(recipe(world, tmp_path / f"{size}", *verb_method, *split, *options))
        state = folder / "last" / "method.safetensors"
        learnt = load_file(state) if state.exists() else {}
        ends.append((weights(folder / "last") | learnt, [line["loss"] for line in metrics(folder) if "loss" in line]))
    for ours, losses in ends[1:]:
        assert losses == pytest.approx(ends[0][1], rel=1e-6)
        for name, value in ours.items():
            torch.testing.assert_close(value, ends[0][0][name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("option", ["bf16", "activation_checkpointing"])
def test_precision_and_recomputation_change_little_or_nothing(
    world: Path, tmp_path: Path, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recomputing = []
    enable = Distiller.activation_checkpointing_enable

    def noted(self: Distiller, **options: Any) -> None:
        enable(self, **options)
        recomputing.append(self.student.is_activation_checkpointing)

    monkeypatch.setattr(Distiller, "activation_checkpointing_enable", noted)
    plain = metrics(run(recipe(world, tmp_path / "plain", "--training.max_steps=3")))
    lines = metrics(run(recipe(world, tmp_path / "changed", "--training.max_steps=3", f"--training.{option}=true")))
    assert recomputing == ([True] if option == "activation_checkpointing" else [])
    tolerance = 2e-2 if option == "bf16" else 1e-6
    for ours, theirs in zip(lines[:3], plain[:3], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=tolerance)
        assert option != "bf16" or ours["loss"] != theirs["loss"]


class Killed(BaseException):
    """What a test throws to end a run without any cleaning up."""


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("todi", []),
        ("taid", ["--training.save_steps=1"]),
        ("ctkd", ["--training.save_steps=2", "--training.train_sampling_strategy=group_by_length"]),
    ],
)
def test_a_killed_run_goes_on_to_the_same_weights(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, more: list[str]
) -> None:
    options = [
        f"--method={method}",
        *more,
        f"--data.eval={world / 'dev.jsonl'}",
        "--evaluation.max_new_tokens=3",
        "--training.num_train_epochs=3",
        "--training.logging_steps=2",
    ]
    whole = run(recipe(world, tmp_path / "whole", *options))
    step = DistillationTrainer.training_step
    calls = iter(range(100))

    def killing(*given: Any, **named: Any) -> Tensor:
        if next(calls) == 4:  # in the second epoch, past the first checkpoint
            raise Killed
        return step(*given, **named)

    monkeypatch.setattr(DistillationTrainer, "training_step", killing)
    with pytest.raises(Killed):
        run(recipe(world, tmp_path / "cut", *options))
    with pytest.raises(Mistake, match=r"training.learning_rate: is 0.02 here, but 0.01 in the interrupted run in"):
        run(recipe(world, tmp_path / "cut", *options, "--training.learning_rate=0.02"))
    monkeypatch.setattr(DistillationTrainer, "training_step", step)
    again = run(recipe(world, tmp_path / "cut", *options, "--overwrite=true"))  # replaces no interrupted run of its own
    assert "going on from" in (again / "train.log").read_text()
    ours, theirs = weights(again / "last"), weights(whole / "last")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    if method != "todi":
        ours, theirs = (load_file(folder / "last" / "method.safetensors") for folder in (again, whole))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    times = {"tokens_per_second"}

    def plain(folder: Path) -> list[dict[str, float]]:
        return [{k: v for k, v in line.items() if k not in times and "runtime" not in k} for line in metrics(folder)]

    assert [line for line in plain(again) if "loss" in line or "eval_loss" in line] == [
        line for line in plain(whole) if "loss" in line or "eval_loss" in line
    ]
    assert [path.name for path in again.glob("epoch*")] == [path.name for path in whole.glob("epoch*")]


def test_padded_vocabularies_work(world: Path, tmp_path: Path) -> None:
    padded = toy.write_model(tmp_path / "padded", 3, padded=9)
    run(recipe(world, tmp_path / "out", f"--teacher.model={padded}", "--training.max_steps=1"))


@pytest.mark.parametrize("alignment", ALIGNERS)
@pytest.mark.parametrize("vocabulary", [name for name in VOCABULARIES if name != "file"])
def test_any_divergence_goes_with_any_aligner_and_any_map(
    alignment: str, vocabulary: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Divergences take turns; what cannot be is refused with a line, before training."""
    monkeypatch.setenv("STILLHOUSE_CACHE", str(tmp_path))
    turn = (list(ALIGNERS).index(alignment) * len(VOCABULARIES) + list(VOCABULARIES).index(vocabulary)) % len(
        WORD_LEVEL
    )
    options = [f"--method={WORD_LEVEL[turn]}", f"--alignment={alignment}", f"--vocabulary={vocabulary}"]
    options += [f"--teacher.model={world / 'foreign'}", "--training.max_steps=2"]
    if alignment == "dtw_matched" and vocabulary in ("overlap", "cdm"):
        with pytest.raises(Mistake, match=r"^--alignment: dtw_matched goes by a map of tokens; add vocabulary"):
            recipe(world, tmp_path / "out", *options)
        return
    folder = run(recipe(world, tmp_path / "out", *options))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "kd" in line]
    assert len(steps) == 2 and all(math.isfinite(line["loss"]) and 0 < line["aligned"] <= 1 for line in steps)
    assert all(line["kd"] > 0 for line in steps)


def test_lengths_beyond_the_models_positions_are_refused_before_weights_load(world: Path, tmp_path: Path) -> None:
    with pytest.raises(Mistake, match=r"data.max_length: 200 is more than the 128 positions of the student"):
        run(recipe(world, tmp_path, "--data.max_length=200"))


def test_tensorboard_gets_the_terms(world: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    made = recipe(world, tmp_path, "--training.report_to=tensorboard", "--training.max_steps=2")
    folder = run(made)
    events = next(folder.rglob("events.out.tfevents*"))
    accumulator = EventAccumulator(str(events.parent))
    accumulator.Reload()
    assert {"train/loss", "train/kd", "train/ce"} <= set(accumulator.Tags()["scalars"])
