"""A model card from what a run's folder says of itself: base, method, settings, data, scores. No licence is chosen."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stillhouse import store
from stillhouse.catalogue import METHODS
from stillhouse.model_folders import RECIPE, base_of, epoch_folder, find
from stillhouse.recipe import dump
from stillhouse.recipe.document import read_document

_LICENCE = """## Licence

None is given here. Choose one that the licences of the base model, of the teacher and of the data allow."""


def model_card(checkpoint: str, name: str, *, dtype: str) -> str:
    """README.md for the model in `checkpoint`, which may be any model's folder; a checkpoint of a run says the most.

    Args:
        checkpoint: a folder or a Hub name, not a run's folder.
        name: the title.
        dtype: what the weights are written in.
    """
    run = Path(checkpoint).parent
    recipe = read_document(str(run / RECIPE)).nested() if (run / RECIPE).is_file() else {}
    base = _text(recipe, "student", "model") or base_of(checkpoint) or checkpoint
    # A folder says nothing to a reader elsewhere, and the Hub wants a name of its own here.
    head = {"base_model": base} if not Path(base).exists() else {}
    head |= {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["stillhouse"]}
    parts = [f"---\n{dump(head)}---", f"# {name}", _made(recipe, base), f"Weights: safetensors, {dtype}."]
    if recipe:
        parts += ["## Settings", _settings(recipe)]
    scores = [*_training_scores(run, checkpoint), *_test_scores(run, checkpoint)]
    if scores:
        parts += ["## Scores", "\n".join(["| data | metric | score |", "|---|---|---|", *scores])]
    return "\n\n".join([*parts, _LICENCE]) + "\n"


def _text(recipe: Mapping[str, Any], section: str, key: str) -> str | None:
    inside = recipe.get(section)
    value = inside.get(key) if isinstance(inside, dict) else None
    return None if value is None else str(value)


def _made(recipe: Mapping[str, Any], base: str) -> str:
    """One paragraph: what learnt what from whom."""
    if not recipe:
        return f"From `{base}`, written by `stillhouse export`."
    method = METHODS.get(_text(recipe, "method", "name") or "")
    teacher, data = _text(recipe, "teacher", "model"), _text(recipe, "data", "train")
    said = f"`{base}`, trained on `{data}`"
    if teacher is not None:
        said += f" with the teacher `{teacher}`"
    if method is not None:
        said += f". Method: {method.name}, {method.summary} ({method.paper})"
    return f"{said}."


def _settings(recipe: Mapping[str, Any]) -> str:
    """The parts of the recipe that decide on the weights, as YAML."""
    student = recipe.get("student") if isinstance(recipe.get("student"), dict) else {}
    kept: dict[str, Any] = {key: recipe[key] for key in ("method", "data", "training", "seed") if key in recipe}
    if isinstance(student, dict) and student.get("lora"):
        kept = {"lora": student["lora"], **kept}
    return f"```yaml\n{dump(kept)}```"


def _training_scores(run: Path, checkpoint: str) -> Iterator[str]:
    """Scores on the development rows, as they were logged at the checkpoint's step."""
    step = _step(Path(checkpoint))
    if step is None or not (run / "metrics.jsonl").is_file():
        return
    lines = [json.loads(line) for line in store.read_lines(run / "metrics.jsonl")]
    for line in lines:
        if line.get("step") == step and "eval_loss" in line:
            yield f"| development | loss a token | {line['eval_loss']:.4f} |"
            if "eval_rougeL" in line:
                yield f"| development | ROUGE-L | {line['eval_rougeL']:.2f} |"
                yield f"| development | exact match | {line['eval_exact_match']:.2f} |"


def _step(checkpoint: Path) -> int | None:
    named = epoch_folder(checkpoint)
    if named is not None:
        return named.step
    state = checkpoint / "trainer_state.json"
    return json.loads(state.read_text(encoding="utf-8")).get("global_step") if state.is_file() else None


def _test_scores(run: Path, checkpoint: str) -> Iterator[str]:
    """What `stillhouse evaluate` measured, if it was of this very checkpoint."""
    path = run / "evaluation" / "scores.json"
    if not path.is_file():
        return
    report = store.read_json(path)
    if Path(find(str(report["model"]))).resolve() != Path(checkpoint).resolve():
        return
    for data, entry in report["data"].items():
        for key, name in (("rougeL", "ROUGE-L"), ("exact_match", "exact match")):
            score = entry[key]
            deviation = "" if score["std"] is None else f" ± {score['std']:.2f}"
            yield f"| {data} | {name} | {score['mean']:.2f}{deviation} |"
