"""The trainer against plain loops: TAID's own one, schedules along a run, and what a method keeps between steps."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from stillhouse.data.collate import Collator
from stillhouse.data.encode import Limits, encode_all
from stillhouse.data.rows import read_rows
from stillhouse.data.templates import build as build_template
from stillhouse.data.tokenizer import load_tokenizer, pad_id
from stillhouse.head import Blocks
from stillhouse.methods import Clock, build
from stillhouse.training import run
from stillhouse.training.distiller import Distiller
from tests import toy
from tests.training.test_run import metrics, recipe, weights

SEQUENTIAL = "--training.train_sampling_strategy=sequential"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student, a teacher, and rows."""
    return toy.write_world(tmp_path_factory.mktemp("loops"))


@pytest.mark.parametrize("scored", ["response", "all"])
def test_taid_under_parity_is_the_plain_loop(world: Path, tmp_path: Path, scored: str) -> None:
    """Six micro-batches of four, two a step: each has its own mean, and t moves after each by that mean."""
    options = ["--method.name=taid", "--method.parity=true", "--method.alpha=0.3", "--method.beta=0.5"]
    options += ["--training.parity=taid", "--training.max_steps=3", SEQUENTIAL, f"--data.scored={scored}"]
    options += ["--training.per_device_train_batch_size=4", "--training.gradient_accumulation_steps=2"]
    folder = run(recipe(world, tmp_path, *options))

    tokenizer = load_tokenizer(str(world / "small"))
    template = build_template("short", tokenizer)
    examples = [example for row in read_rows(str(world / "train.jsonl")) for example in template.examples(row)]
    encoded, _ = encode_all(examples, tokenizer, Limits(96, 64, scored=scored))  # type: ignore[arg-type]
    student, teacher = (AutoModelForCausalLM.from_pretrained(world / name) for name in ("small", "large"))
    decayed = list(student.parameters())  # RMSNorms are decayed in TAID's repository, and a Llama has no bias
    optimizer = torch.optim.AdamW(decayed, lr=1e-2, weight_decay=0.01)
    t, momentum, previous = 0.4, 0.0, math.inf
    logged = []
    for step in range(3):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * 0.5 * (1.0 + math.cos(math.pi * step / 3))
        losses = []
        for micro in range(2):
            first = 8 * step + 4 * micro
            batch = Collator(pad_id(tokenizer))([encoded[index] for index in range(first, first + 4)])
            inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
            kept = batch["labels"] != -100
            z_s, z_t = student(**inputs).logits[kept], teacher(**inputs).logits[kept].detach()
            target = ((1.0 - t) * z_s.detach() + t * z_t).softmax(-1)
            loss = -(target * z_s.log_softmax(-1)).sum(-1).mean()
            (loss / 2).backward()
            losses.append(loss.item())
            if math.isfinite(previous):
                momentum = 0.5 * momentum + 0.5 * (previous - loss.item()) / previous
                moved = t + 0.3 / (1.0 + math.exp(-momentum)) * (1.0 - t)
                t = min(1.0, max(0.4 + 0.6 * step / 3, moved))
            previous = loss.item()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        logged.append((sum(losses) / 2, t))
    lines = [line for line in metrics(folder) if "loss" in line]
    assert [line["loss"] for line in lines] == pytest.approx([loss for loss, _ in logged], rel=1e-5)
    assert [line["kd"] for line in lines] == pytest.approx([loss for loss, _ in logged], rel=1e-5)
    assert [line["t"] for line in lines] == pytest.approx([t for _, t in logged], rel=1e-5)
    ours = weights(folder / "last")
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(ours[name], parameter.detach(), rtol=1e-4, atol=1e-5)


def test_t_moves_once_a_step_by_the_mean_over_all_tokens(world: Path, tmp_path: Path) -> None:
    options = ["--method.name=taid", "--method.alpha=0.3", "--training.gradient_accumulation_steps=2"]
    folder = run(recipe(world, tmp_path, *options, "--training.per_device_train_batch_size=4"))
    lines = [line for line in metrics(folder) if "loss" in line]
    controller = build("taid", alpha=0.3)
    for line in lines:
        controller.after_step({"kd": torch.tensor(line["kd"])}, Clock(int(line["step"]) - 1, len(lines)))
        assert line["t"] == pytest.approx(controller.t.item(), rel=1e-5)
    assert lines[-1]["t"] > lines[1]["t"] > lines[0]["t"] == pytest.approx(0.4)
    state = load_file(folder / "last" / "method.safetensors")
    assert state["t"].item() == pytest.approx(lines[-1]["t"]) and state["previous"].item() == pytest.approx(
        lines[-1]["kd"]
    )


def test_the_learnt_temperature_has_its_own_learning_rate(world: Path, tmp_path: Path) -> None:
    options = ["--method.name=ctkd", "--method.theta_learning_rate=0.1", "--training.learning_rate=1e-4"]
    lines = [line for line in metrics(run(recipe(world, tmp_path, *options))) if "loss" in line]
    share = 1.0 / (1.0 + math.exp(-1.0))
    assert lines[0]["temperature"] == pytest.approx(1.0 + 20.0 * share)
    # AdamW's first step is its learning rate: 0.1, and not 1e-4.
    moved = abs(lines[1]["temperature"] - lines[0]["temperature"])
    assert moved == pytest.approx(0.1 * 20.0 * share * (1 - share), rel=0.1)
    assert len({line["temperature"] for line in lines}) == len(lines)


def test_settings_follow_their_schedules_and_are_logged(world: Path, tmp_path: Path) -> None:
    options = [
        "--method.temperature={schedule: linear, start: 4, end: 1}",
        "--method.kd_weight.schedule=steps",
        "--method.kd_weight.values=[0.2, 0.8]",
        "--method.kd_weight.at=[0.5]",
    ]
    folder = run(recipe(world, tmp_path, *options, "--training.max_steps=4"))
    lines = [line for line in metrics(folder) if "loss" in line]
    assert [line["temperature"] for line in lines] == pytest.approx([4.0, 3.25, 2.5, 1.75])
    assert [line["kd_weight"] for line in lines] == pytest.approx([0.2, 0.2, 0.8, 0.8])
    for line in lines:
        share = line["kd_weight"]
        assert line["loss"] == pytest.approx((1.0 - share) * line["ce"] + share * line["kd"], rel=1e-5)


def test_block_sizes_of_the_recipe_change_nothing_but_time(world: Path, tmp_path: Path) -> None:
    options = ["--training.max_steps=3", "--training.adam_epsilon=1e-4"]
    plain = run(recipe(world, tmp_path / "plain", *options))
    cut = ["--head.rows=7", "--head.elements=700", "--head.vocabulary_tile=11"]
    blocks = run(recipe(world, tmp_path / "cut", *options, *cut))
    for name, value in weights(plain / "last").items():
        torch.testing.assert_close(weights(blocks / "last")[name], value, rtol=0, atol=1e-6)
    assert weights(plain / "last").keys() == weights(blocks / "last").keys()


def test_the_head_gets_the_blocks_of_the_recipe(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[Blocks | None] = set()
    forward = Distiller.forward

    def noted(self: Distiller, *given: Any, **named: Any) -> Any:
        seen.add(self.method.blocks)
        return forward(self, *given, **named)

    monkeypatch.setattr(Distiller, "forward", noted)
    run(recipe(world, tmp_path / "a", "--training.max_steps=1"))
    run(recipe(world, tmp_path / "b", "--training.max_steps=1", "--head.rows=7"))
    assert seen == {None, replace(Blocks.on(torch.device("cpu")), rows=7)}
