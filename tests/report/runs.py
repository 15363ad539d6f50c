"""Small run folders, written as training and evaluation write them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from stillhouse import store


def write_run(
    folder: Path,
    *,
    method: str = "sft",
    seed: int = 1,
    ce: tuple[float, ...] = (3.0, 2.0, 1.0),
    exact_match: float | None = 40.0,
    data: str = "held-out",
    recipe: Mapping[str, Any] | None = None,
    line: Mapping[str, Any] | None = None,
) -> Path:
    """A run with a line for each value of `ce`, 10 steps apart, an epoch's evaluation, and a score."""
    whole = {"student": {"model": "small"}, "method": {"name": method}, "seed": seed, "name": f"s{seed}", "output": "o"}
    store.write_text(folder / "recipe.yaml", yaml.safe_dump({**whole, **(recipe or {})}, sort_keys=False))
    lines: list[Mapping[str, Any]] = [
        {"step": 10 * place, "epoch": 0.5, "loss": value, "ce": value, "accuracy": 0.5, **(line or {})}
        for place, value in enumerate(ce, 1)
    ]
    lines += [{"step": 20, "epoch": 1.0, "eval_loss": 2.5, "eval_exact_match": 30.0}]
    lines += [{"step": 30, "epoch": 1.5, "train_runtime": 8.0 + seed}]
    for one in lines:
        store.append_line(folder / "metrics.jsonl", json.dumps(one))
    if exact_match is not None:
        scores = {"exact_match": {"per_seed": {"10": exact_match}}, "rougeL": {"per_seed": {"10": exact_match + 20}}}
        store.write_json(folder / "evaluation" / "scores.json", {"model": str(folder), "data": {data: scores}})
    return folder
