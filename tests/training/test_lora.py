"""A student with an adapter: a frozen base, checkpoints that peft reads, and resuming to the bit."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from stillhouse import adapters, models, store
from stillhouse.data.tokenizer import load_tokenizer
from stillhouse.mistakes import Mistake
from stillhouse.models import load_causal_lm, load_config
from stillhouse.recipe import Recipe, parse
from stillhouse.rollout import Sampling
from stillhouse.rollout.generate import respond
from stillhouse.training import run
from stillhouse.training.trainer import DistillationTrainer
from tests import toy

# peft's own remarks on heads that are tied, where a test adapts such a head on purpose.
TIED = pytest.mark.filterwarnings("ignore:.*(tied|tie_word_embeddings)")
# What peft, called by a test itself, calls is deprecated in transformers.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student, a teacher, and rows."""
    return toy.write_world(tmp_path_factory.mktemp("world"))


def recipe(world: Path, output: Path, *overrides: str, lora: dict[str, Any] | None = None, **student: Any) -> Recipe:
    tree: dict[str, Any] = {
        "student": {"model": str(world / "small"), "lora": {"r": 4, **(lora or {})}, **student},
        "teacher": {"model": str(world / "large")},
        "data": {"train": str(world / "train.jsonl"), "template": "short", "max_length": 96, "max_prompt_length": 64},
        "method": {"name": "todi"},
        "training": {
            "learning_rate": 1e-1,
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


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in store.read_lines(folder / "metrics.jsonl")]
    return [line["loss"] for line in lines if "loss" in line]


def logits(model: Any) -> Tensor:
    ids = torch.arange(12)[None]
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


@TIED
@pytest.mark.parametrize(
    "lora",
    [
        {},
        {"use_rslora": True},
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj", "lm_head"], "lora_dropout": 0.0},
        {"init_lora_weights": "pissa"},
    ],
    ids=str,
)
def test_a_checkpoint_is_an_adapter_that_peft_reads(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: dict[str, Any]
) -> None:
    trained: list[Any] = []
    optimized: list[set[int]] = []
    train = DistillationTrainer.train

    def noted(self: DistillationTrainer, *given: Any, **named: Any) -> Any:
        result = train(self, *given, **named)
        trained.append(self.distiller.student)
        assert self.optimizer is not None
        optimized.append({id(p) for group in self.optimizer.param_groups for p in group["params"]})
        return result

    monkeypatch.setattr(DistillationTrainer, "train", noted)
    folder = run(recipe(world, tmp_path, lora=lora))
    (student,) = trained
    moved = {id(p): name for name, p in student.named_parameters() if p.requires_grad}
    assert optimized == [moved.keys()]
    assert all("lora_" in name or "modules_to_save" in name for name in moved.values())
    assert losses(folder)[-1] < losses(folder)[0]

    (kept,) = folder.glob("epoch*")
    names = {path.name for path in (folder / "last").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= names
    assert not {"model.safetensors", "config.json", "README.md"} & names
    config = json.loads((kept / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(world / "small")
    assert config["target_modules"] == sorted(lora.get("target_modules", ["q_proj", "v_proj"]))
    assert re.search(
        r"student: LlamaForCausalLM, 0.0\d M parameters, 0.0\d M of them", (folder / "train.log").read_text()
    )

    ours, theirs = load_causal_lm(str(folder / "last")), AutoPeftModelForCausalLM.from_pretrained(folder / "last")
    assert adapters.is_adapted(ours) and not any(p.requires_grad for p in ours.parameters())
    torch.testing.assert_close(logits(ours), logits(student), rtol=0, atol=1e-6)
    torch.testing.assert_close(logits(theirs), logits(student), rtol=0, atol=1e-6)
    base = load_causal_lm(str(world / "small"))
    assert (logits(base) - logits(student)).abs().max() > 1e-3
    merged = load_causal_lm(str(folder / "last"), adapter="merge")
    assert not isinstance(merged, peft.PeftModel)
    torch.testing.assert_close(logits(merged), logits(student), rtol=0, atol=1e-5)
    assert load_config(str(folder)).hidden_size == base.config.hidden_size
    if "init_lora_weights" not in lora:  # PiSSA takes a part of the base into the adapter
        below = student.get_base_model().state_dict()
        for name, value in base.state_dict().items():
            if "lm_head" in name:
                continue
            path, _, leaf = name.rpartition(".")
            assert torch.equal(below.get(name, below.get(f"{path}.base_layer.{leaf}")), value), name


class Killed(BaseException):
    """What a test throws to end a run without any cleaning up."""


@TIED
@pytest.mark.parametrize(
    ("method", "lora"), [("todi", {"lora_dropout": 0.2}), ("taid", {"use_dora": True, "modules_to_save": ["lm_head"]})]
)
def test_a_killed_run_goes_on_to_the_same_adapter(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, lora: dict[str, Any]
) -> None:
    options = [f"--method={method}", f"--data.eval={world / 'dev.jsonl'}", "--evaluation.max_new_tokens=3",
               "--training.num_train_epochs=3"]  # fmt: skip
    whole = run(recipe(world, tmp_path / "whole", *options, lora=lora))
    step = DistillationTrainer.training_step
    calls = iter(range(100))

    def killing(*given: Any, **named: Any) -> Tensor:
        if next(calls) == 4:  # in the second epoch, past the first checkpoint
            raise Killed
        return step(*given, **named)

    monkeypatch.setattr(DistillationTrainer, "training_step", killing)
    with pytest.raises(Killed):
        run(recipe(world, tmp_path / "cut", *options, lora=lora))
    with pytest.raises(Mistake, match=r"student.lora.r: is 5 here, but 4 in the interrupted run in"):
        run(recipe(world, tmp_path / "cut", *options, "--student.lora.r=5", lora=lora))
    monkeypatch.setattr(DistillationTrainer, "training_step", step)
    again = run(recipe(world, tmp_path / "cut", *options, lora=lora))
    assert "going on from" in (again / "train.log").read_text()
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (again / "last" / file).read_bytes() == (whole / "last" / file).read_bytes()
    assert losses(again) == losses(whole)
    assert [path.name for path in again.glob("epoch*")] == [path.name for path in whole.glob("epoch*")]
    assert (whole / "last" / "method.safetensors").exists() == (method == "taid")


def test_a_saved_adapter_that_is_not_the_students_is_refused(world: Path, tmp_path: Path) -> None:
    student = load_causal_lm(str(world / "small"), lora={"r": 2, "target_modules": ["q_proj"]}, seed=0)
    adapters.save(student, tmp_path)
    other = load_causal_lm(str(world / "small"), lora={"r": 2, "target_modules": ["k_proj"]}, seed=0)
    with pytest.raises(Mistake, match=r"its weights are not this adapter's \('base_model.*k_proj.*'\); resume with"):
        adapters.restore(other, tmp_path)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    from safetensors.torch import save_file

    save_file(
        {name: value for name, value in weights.items() if "lora_A" in name}, tmp_path / "adapter_model.safetensors"
    )
    with pytest.raises(Mistake, match=r"weights of the adapter are missing: base_model.*lora_B.weight; is the folder"):
        load_causal_lm(str(tmp_path))
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(world / "large")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    save_file(weights, tmp_path / "adapter_model.safetensors")
    with pytest.raises(Mistake, match=r"this adapter does not go on '.*; is it of another model\?"):
        load_causal_lm(str(tmp_path))


def test_a_run_is_its_best_checkpoint_as_teacher_and_as_student(world: Path, tmp_path: Path) -> None:
    first = run(recipe(world, tmp_path / "first", f"--data.eval={world / 'dev.jsonl'}", "--evaluation.generate=false"))
    (best,) = first.glob("epoch*")
    made = recipe(world, tmp_path / "second", f"--teacher.model={first}", lora=None, model=str(first))
    with pytest.raises(Mistake, match=r"student.lora: .*which goes on with its own settings; write null, or merge the"):
        run(made)
    made = recipe(world, tmp_path / "second", f"--teacher.model={first}", "--student.lora=null", model=str(first))
    assert made.student_name == "small"
    second = run(made)
    said = (second / "train.log").read_text()
    assert said.count(f"{first} is a run; its best checkpoint is used: {best.name}") == 2
    # The teacher is merged; the student goes on as an adapter with the settings that it had, on the same base.
    assert "teacher: LlamaForCausalLM, 0.01 M parameters\n" in said
    configs = [json.loads((folder / "last" / "adapter_config.json").read_text()) for folder in (first, second)]
    assert configs[0] == configs[1]
    adapted = [load_file(folder / "adapter_model.safetensors") for folder in (best, second / "last")]
    assert adapted[0].keys() == adapted[1].keys()
    assert not all(torch.equal(adapted[0][name], adapted[1][name]) for name in adapted[0])
    # Both begin as the same model: the first divergence is nothing but the student's dropout.
    kd = [json.loads(line)["kd"] for line in store.read_lines(second / "metrics.jsonl")[:1]]
    assert kd[0] < 1e-3


def test_a_teacher_that_is_an_adapter_predicts_as_base_and_adapter_do(world: Path, tmp_path: Path) -> None:
    folder = run(recipe(world, tmp_path, "--training.max_steps=2"))
    merged = load_causal_lm(str(folder), adapter="merge")
    both = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(world / "small"), folder / "last")
    torch.testing.assert_close(logits(merged), logits(both), rtol=0, atol=1e-5)
    assert (logits(merged) - logits(load_causal_lm(str(world / "small")))).abs().max() > 1e-4


def test_a_base_beside_its_adapter_is_found_after_a_move(world: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "both" / "adapter"
    adapter.mkdir(parents=True)
    adapters.save(load_causal_lm(str(world / "small"), lora={"r": 2}, seed=0), adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "../base"}))
    toy.write_model(tmp_path / "both" / "base", 1)
    (tmp_path / "both").rename(tmp_path / "elsewhere")
    loaded = load_causal_lm(str(tmp_path / "elsewhere" / "adapter"))
    torch.testing.assert_close(logits(loaded), logits(load_causal_lm(str(world / "small"))))


def test_a_saved_adapter_names_its_base_from_the_root(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)
    adapters.save(load_causal_lm("small", lora={"r": 2}, seed=0), tmp_path)
    again = load_causal_lm(str(tmp_path), adapter="train")
    assert {name for name, p in again.named_parameters() if p.requires_grad} == {
        name for name, _ in again.named_parameters() if "lora_" in name
    }
    monkeypatch.chdir(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == str(world / "small")
    load_causal_lm(str(tmp_path))


def test_answering_leaves_the_defaults_of_the_model_below_the_adapter(world: Path) -> None:
    model: Any = load_causal_lm(str(world / "small"), lora={"r": 2}, seed=0)
    own = model.get_base_model().generation_config
    respond(model, load_tokenizer(world / "small"), [[5, 6, 7]], Sampling(3), seed=1, batch_size=1)
    assert model.get_base_model().generation_config is own


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputation_changes_nothing_though_the_embeddings_are_frozen(
    world: Path, tmp_path: Path, reentrant: bool
) -> None:
    plain = run(recipe(world, tmp_path / "plain", "--training.max_steps=3", lora={"lora_dropout": 0.0}))
    options = ["--training.max_steps=3", "--training.activation_checkpointing=true"]
    options += [f"--training.activation_checkpointing_kwargs.use_reentrant={str(reentrant).lower()}"]
    again = run(recipe(world, tmp_path / "again", *options, lora={"lora_dropout": 0.0}))
    assert losses(again) == pytest.approx(losses(plain), rel=1e-6)
    ours, theirs = (load_file(folder / "last" / "adapter_model.safetensors") for folder in (again, plain))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-5)


MISTAKES = {
    "no such layer": (
        {"lora": {"target_modules": ["q_prj"]}},
        "student.lora: Target modules {'q_prj'} not found in the base model; its layers: ",
    ),
    "a pattern that is the head": (
        {"lora": {"target_modules": ".*lm_head"}},
        "lm_head: adapter 'default' on it has dropout, which no weight can express; set lora_dropout to 0, leave "
        "lm_head out of target_modules, or use modules_to_save",
    ),
    "four bits on a CPU": (
        {"quantize": "4bit"},
        "student.quantize: needs an accelerator, and this machine has none; remove it",
    ),
    "eight bits on a CPU": (
        {"quantize": "8bit"},
        "student.quantize: needs an accelerator, and this machine has none; remove it",
    ),
}


@TIED
@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_does_not_fit_is_said_before_weights_load(
    mistake: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loads(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were loaded before the mistake was said")

    monkeypatch.setattr(models, "_saved", loads)
    student, line = MISTAKES[mistake]
    with pytest.raises(Mistake) as said:
        run(recipe(world, tmp_path, **student))
    assert str(said.value).startswith(line)
    if mistake == "no such layer":
        assert str(said.value).endswith("; its layers: down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj")
