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
from stillhouse.data.encode import Limits, encode_all
from stillhouse.data.rows import read_rows
from stillhouse.data.templates import build as build_template
from stillhouse.data.tokenizer import load_tokenizer
from stillhouse.mistakes import Mistake
from stillhouse.recipe import parse
from stillhouse.training import run as train

REPOSITORY = Path(__file__).resolve().parents[2]
GOLDEN = Path(os.environ.get("STILLHOUSE_GOLDEN", REPOSITORY.parent / "shared" / "golden"))
CURVES = GOLDEN / "loops" / "curves.json"
RUNS: dict[str, dict[str, Any]] = json.loads(CURVES.read_text()) if CURVES.exists() else {}
TOKENIZERS = {"gpt2": "gpt2-base", "Qwen1.5-1.8B": "Qwen1.5-1.8B"}

pytestmark = pytest.mark.slow


# What a run logs, by its own names, and what our lines call it.
LOGGED = {
    "loss": "loss",
    "ce": "ce",
    "kd": "kd",
    "lm_loss": "ce",
    "distil_loss": "kd",
    "t2s_ce_loss": "t2s_ce",
    "t2s_kd_loss": "t2s_kd",
    "s2t_kd_loss": "s2t_kd",
    "t2s_acc": "t2s_accuracy",
}
TAID_SETTINGS = ("t_start", "t_end", "alpha", "beta")


def of_taid(run: dict[str, Any]) -> bool:
    return "taid" in f"{run['official_repo']} {run.get('kd_objective', '')}".lower()


def method_of(run: dict[str, Any]) -> dict[str, Any] | None:
    """The `method` section of a run, or None for families that are not built yet."""
    if run["run"] == "dskd_cma":
        return dual_space_of(run)
    if "projector_init" in run or run["teacher"].get("tokenizer") != run["student"]["tokenizer"]:
        return None
    settings = {"temperature": run.get("temperature", 1.0), "kd_weight": share_of_kd(run)}
    if of_taid(run):
        return {"name": "taid", "parity": True, **settings, **taid_settings(run)}
    try:
        return (
            {"name": find("method", METHODS, run["kd_objective"]).name, **settings}
            if "ToDi" in run["official_repo"]
            else None
        )
    except Mistake:
        return None


def dual_space_of(run: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": "dskd_cma",
        "std_scope": "padded",
        "temperature": run["temperature"],
        "kd_weight": share_of_kd(run),
        "divergence": run["kd_objective"],
        "projector_learning_rate": run["per_step"]["lr"][0][-1],
    }


def seed_of(run: dict[str, Any]) -> int:
    """That of the projectors; nothing else of a run is drawn."""
    drawn = re.search(r"manual_seed\((\d+)\)", str(run.get("projector_init")))
    return int(drawn[1]) if drawn else 42


def share_of_kd(run: dict[str, Any]) -> float:
    """By whichever of its names the run uses; TAID's loops have no cross-entropy."""
    return next((run[key] for key in ("kd_rate", "distil_ratio", "kd_ratio") if key in run), 1.0)


def taid_settings(run: dict[str, Any]) -> dict[str, Any]:
    """t's settings, from fields of these names wherever they stand, else from a text like "t_start 0.4"."""
    found: dict[str, Any] = {}

    def look(node: Any) -> None:
        for key, value in node.items() if isinstance(node, dict) else ():
            if key in TAID_SETTINGS and isinstance(value, int | float):
                found.setdefault(key, float(value))
            elif key == "disable_adaptive":
                found["adaptive"] = not value
            elif isinstance(value, dict):
                look(value)
            elif isinstance(value, str):
                for name, number in re.findall(rf"\b({'|'.join(TAID_SETTINGS)})\s*[=: ]\s*(\d[\d.e-]*)", value):
                    found.setdefault(name, float(number.rstrip(".")))

    look({key: value for key, value in run.items() if key not in ("optimizer", "student", "teacher")})
    return found


def scored_of(run: dict[str, Any], tokenizers: Path, rows: Path) -> str:
    """Which tokens a run learns, by the number of them that it counted in its first micro-batch."""
    first = run["micro"][0] if run.get("micro") else {}
    counted = next((first[key] for key in ("n_student", "n", "n_tokens", "valid") if key in first), None)
    if counted is None:
        return "all" if of_taid(run) and "all" in run["run"] else "response"
    examples = [build_template("alpaca").examples(row)[0] for row in read_rows(str(rows), limit=run["batch_size"])]
    tokenizer = load_tokenizer(str(tokenizers / TOKENIZERS[run["student"]["tokenizer"]]))
    data = run["data"]
    by_choice = {
        choice: encode_all(
            examples, tokenizer, Limits(data["max_length"], data["max_prompt_length"], "end", False, choice)
        )[1].scored_tokens
        for choice in ("response", "all")
    }
    (choice,) = [choice for choice, tokens in by_choice.items() if tokens == counted]
    return choice


def parity_of(run: dict[str, Any]) -> str:
    """Whose reduction and learning rates: TAID's where every micro-batch has its own mean."""
    micro = [step for step in run.get("micro", []) if {"n_student", "loss_denom"} <= step.keys()]
    if not micro:
        return "taid" if of_taid(run) else "dskd"
    return "taid" if all(step["loss_denom"] == step["n_student"] for step in micro) else "dskd"


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
            "scored": scored_of(run, shared / "tokenizers", shared / "data" / "dolly" / "train.jsonl"),
        },
        "method": method,
        "training": {
            "parity": parity_of(run),
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
        "seed": seed_of(run),
        "output": str(tmp_path / "outputs"),
    }
    store.write_json(tmp_path / "recipe.yaml", recipe)  # JSON is YAML
    folder = train(parse("distill", [str(tmp_path / "recipe.yaml")]))
    lines = [json.loads(line) for line in store.read_lines(folder / "metrics.jsonl")]
    lines = [line for line in lines if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, steps + 1))
    logged = {theirs: ours for theirs, ours in LOGGED.items() if theirs in run["per_step"]}
    assert logged
    for theirs, ours in logged.items():
        assert [line[ours] for line in lines] == pytest.approx(run["per_step"][theirs], rel=1e-5, abs=1e-7), theirs
    assert [line["learning_rate"] for line in lines] == pytest.approx(
        [rates[0] for rates in run["per_step"]["lr"]], rel=1e-6
    )
    assert [line["grad_norm"] for line in lines] == pytest.approx(run["per_step"]["grad_norm"], rel=1e-5)
    trained = transformers.AutoModelForCausalLM.from_pretrained(next(folder.glob("epoch*")))
    assert norm(trained) == pytest.approx(run["student_l2"][f"step{steps}"], rel=1e-6)
