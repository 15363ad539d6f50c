"""Loss curves of the official training loops, repeated through our own trainer in parity mode.

Every run found in `loops/curves.json` is rebuilt from its own fields: models from their seeds, rows, lengths, batching,
loss, optimizer. Runs whose method does not exist here yet are skipped by name.
"""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedModel

from stillhouse import store
from stillhouse.catalogue import METHODS, find
from stillhouse.data.tokenizer import load_tokenizer
from stillhouse.mistakes import Mistake
from stillhouse.recipe import parse
from stillhouse.training import run as train

REPOSITORY = Path(__file__).resolve().parents[2]
GOLDEN = Path(os.environ.get("STILLHOUSE_GOLDEN", REPOSITORY.parent / "shared" / "golden"))
CURVES = GOLDEN / "loops" / "curves.json"
RUNS: dict[str, dict[str, Any]] = json.loads(CURVES.read_text()) if CURVES.exists() else {}
TOKENIZERS = {"gpt2": "gpt2-base"}

pytestmark = pytest.mark.slow


def method_of(run: dict[str, Any]) -> str | None:
    """The name of the word-level method of a run, or None for families that are not built yet."""
    word_level = "ToDi" in run["official_repo"] and "projector_init" not in run
    if not word_level or run["teacher"].get("tokenizer") != run["student"]["tokenizer"]:
        return None
    try:
        return find("method", METHODS, run["kd_objective"]).name
    except Mistake:
        return None


def build(side: dict[str, Any]) -> PreTrainedModel:
    """A model from its description: architecture, configuration, seed, and a factor on the head."""
    architecture = getattr(transformers, side["arch"])
    config = architecture.config_class(**side["config"])
    seed = re.search(r"manual_seed\((\d+)\)", side["init"])
    assert seed is not None, side["init"]
    torch.manual_seed(int(seed[1]))
    model = architecture(config)
    factor = re.search(r"lm_head\.weight\.mul_\(([\d.]+)\)", side["init"])
    if factor is not None:
        with torch.no_grad():
            model.lm_head.weight.mul_(float(factor[1]))
    return model


def norm(model: torch.nn.Module) -> float:
    return math.sqrt(sum(p.detach().double().square().sum().item() for p in model.parameters()))


def write_model(side: dict[str, Any], expected: float, folder: Path, tokenizers: Path) -> str:
    model = build(side)
    assert norm(model) == pytest.approx(expected, rel=1e-9), "this torch does not draw the same initial weights"
    model.save_pretrained(folder)
    load_tokenizer(str(tokenizers / TOKENIZERS[side["tokenizer"]])).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("name", RUNS or ["none found"])
def test_official_loss_curve(name: str, golden: Path, shared: Path, tmp_path: Path) -> None:
    run = RUNS[name]
    method = method_of(run)
    if method is None:
        pytest.skip(f"{name}: its method is not built yet")
    checks = run["initial_model_check"]
    (student_check,) = (check for key, check in checks.items() if key.startswith("student"))
    (teacher_check,) = (check for key, check in checks.items() if key.startswith("teacher"))
    student = write_model(run["student"], student_check["l2_norm"], tmp_path / "student", shared / "tokenizers")
    teacher = write_model(run["teacher"], teacher_check["l2_norm"], tmp_path / "teacher", shared / "tokenizers")
    data, steps = run["data"], run["optimizer"]["steps"]
    rate = run["per_step"]["lr"][0][0]
    recipe = {
        "student": {"model": student},
        "teacher": {"model": teacher},
        "data": {
            "train": str(shared / "data" / "dolly" / "train.jsonl"),
            "limit": steps * run["batch_size"] * run["grad_accumulation"],
            "template": "alpaca",
            "max_length": data["max_length"],
            "max_prompt_length": data["max_prompt_length"],
            "cut": "end",
            "bos": False,
            "pad_to_max_length": True,
        },
        "method": {"name": method, "temperature": run["temperature"], "kd_weight": run["kd_rate"]},
        "training": {
            "parity": True,
            "learning_rate": rate,
            "weight_decay": 0.01,
            "max_steps": steps,
            "per_device_train_batch_size": run["batch_size"],
            "gradient_accumulation_steps": run["grad_accumulation"],
            "train_sampling_strategy": "sequential",
            "logging_steps": 1,
            "use_cpu": True,
        },
        "name": name,
        "output": str(tmp_path / "outputs"),
    }
    store.write_json(tmp_path / "recipe.yaml", recipe)  # JSON is YAML
    folder = train(parse("distill", [str(tmp_path / "recipe.yaml")]))
    lines = [json.loads(line) for line in store.read_lines(folder / "metrics.jsonl")]
    lines = [line for line in lines if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, steps + 1))
    for key in ("loss", "ce", "kd"):
        assert [line[key] for line in lines] == pytest.approx(run["per_step"][key], rel=1e-5), key
    assert [line["learning_rate"] for line in lines] == pytest.approx(
        [rates[0] for rates in run["per_step"]["lr"]], rel=1e-6
    )
    assert [line["grad_norm"] for line in lines] == pytest.approx(run["per_step"]["grad_norm"], rel=1e-5)
    trained = transformers.AutoModelForCausalLM.from_pretrained(next(folder.glob("epoch*")))
    assert norm(trained) == pytest.approx(run["student_l2"][f"step{steps}"], rel=1e-6)
