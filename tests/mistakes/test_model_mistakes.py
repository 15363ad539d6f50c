"""Mistakes that only show beside real tokenizers and configurations; each is said before any weights load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from stillhouse import cli, models
from stillhouse.training import prepare
from tests import toy


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    toy.write_model(folder / "student", 1)
    toy.write_model(folder / "teacher", 2, hidden=24)
    toy.write_model(folder / "foreign", 2, entries=290)
    toy.write_model(folder / "narrow", 3)
    config = json.loads((folder / "narrow" / "config.json").read_text())
    (folder / "narrow" / "config.json").write_text(json.dumps({**config, "vocab_size": 200}))
    toy.write_model(folder / "mute", 4)
    (folder / "mute" / "tokenizer.json").unlink()
    toy.write_rows(folder / "rows.jsonl", 8)
    (folder / "map.json").write_text(json.dumps({str(token): 5 for token in range(291)}))
    return folder


# What is wrong -> (changes of the recipe, the line without "stillhouse: ").
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "a map of another pair": (
        {"teacher.model": "foreign", "vocabulary.name": "file", "vocabulary.path": "map.json"},
        "map.json: maps 291 teacher tokens, but the teacher has 290; is it a map of another pair?",
    ),
    "another tokenizer for a method that compares token by token": (
        {"teacher.model": "foreign", "method.name": "minillm"},
        "teacher.model: has a tokenizer of its own (300 tokens here and 290 there), and minillm compares token by "
        "token; take gkd or distillm",
    ),
    "too few embeddings": (
        {"student.model": "narrow"},
        "student.model: has 200 embeddings for a tokenizer of 300 tokens; use the tokenizer that the model was trained "
        "with",
    ),
    "a teacher with too few embeddings": (
        {"teacher.model": "narrow"},
        "teacher.model: has 200 embeddings for a tokenizer of 300 tokens; use the tokenizer that the model was trained "
        "with",
    ),
    "no tokenizer": (
        {"student.model": "mute"},
        "mute: no tokenizer files in this folder; it needs tokenizer.json, tokenizer.model or vocab.json",
    ),
    "longer than the model": (
        {"data.max_length": 200},
        "data.max_length: 200 is more than the 128 positions of the student; write 128 or less",
    ),
    "float16 without an accelerator": (
        {"training.fp16": True},
        "training.fp16: needs an accelerator, and this machine has none; use bf16: true or neither",
    ),
    "no chat template": (
        {"data.template": "chat"},
        "student: this tokenizer has no chat template; use template: alpaca or plain, or the tokenizer of a chat model",
    ),
    "a key that the configuration lacks": (
        {"student.from_scratch": True, "student.config.n_layers": 2},
        "student: config.n_layers: LlamaConfig has no such key; see its config.json",
    ),
    "no beginning-of-text token": (
        {"data.bos": True},
        "data.bos: this tokenizer has no beginning-of-text token; set bos: null",
    ),
}


@pytest.mark.parametrize("mistake", CASES)
def test_the_line_is_said_before_weights_load(
    mistake: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, line = CASES[mistake]
    if "training.fp16" in changes and torch.accelerator.is_available():
        pytest.skip("this machine has an accelerator, where float16 is no mistake")
    monkeypatch.chdir(world)

    def loads(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were loaded before the mistake was said")

    monkeypatch.setattr(models, "load_causal_lm", loads)
    monkeypatch.setattr(prepare, "load_causal_lm", loads)
    keys = {
        "student.model": "student",
        "teacher.model": "teacher",
        "data.train": "rows.jsonl",
        "data.template": "short",
        "data.max_length": 96,
        "data.max_prompt_length": 48,
        "method.name": "todi",
        "output": str(tmp_path),
        **changes,
    }
    arguments = [f"--{key}={json.dumps(value) if not isinstance(value, str) else value}" for key, value in keys.items()]
    assert cli.main(["distill", *arguments]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1] == f"stillhouse: {line}"
