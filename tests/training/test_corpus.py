"""Plain text that is learnt beside what the student writes: a mean over its own tokens, however a step is split."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from stillhouse.mistakes import Mistake
from stillhouse.training.trainer import DistillationTrainer
from tests import toy
from tests.training.test_on_policy import same, split, train
from tests.training.test_run import metrics

ROLLOUT = {"source": "student", "max_new_tokens": 5}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = toy.write_world(tmp_path_factory.mktemp("world"), sharp=20.0)
    texts = [
        {"text": f"{row['instruction']} {row['output']} " * (1 + place % 3)} for place, row in enumerate(toy.rows(9))
    ]
    (folder / "texts.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    return folder


def test_it_is_a_mean_over_its_own_tokens(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step's loss with it, less that without, against both models' own logits on the texts of all micro-batches."""
    parts: list[dict[str, Any]] = []
    compute = DistillationTrainer.compute_loss

    def noted(self: Any, model: Any, inputs: Any, *given: Any, **named: Any) -> Any:
        texts, distiller = inputs["corpus"], self.distiller
        ids = {"input_ids": texts["input_ids"], "attention_mask": texts["attention_mask"]}
        with torch.no_grad():
            logs = [
                side(**ids).logits.double().log_softmax(-1) for side in (distiller.student, distiller.teacher.model)
            ]
        rows = texts["labels"] >= 0
        vocabulary = distiller.vocabulary
        lq, lp = (log[rows][:, :vocabulary].log_softmax(-1) for log in logs)
        at = lq.gather(-1, texts["labels"][rows][:, None]).sum()
        parts.append({"n": int(rows.sum()), "loss": float(0.25 * (lp.exp() * (lp - lq)).sum() - 0.75 * at),
                      "texts": len(texts["sample"]), "examples": len(inputs["sample"])})  # fmt: skip
        return compute(self, model, inputs, *given, **named)

    told = [*split(4, 2), "--training.max_steps=1", "--rollout.teacher_mix=0"]
    plain = train(world, tmp_path / "plain", "minillm", ROLLOUT, *told)
    monkeypatch.setattr(DistillationTrainer, "compute_loss", noted)
    more = [f"--data.corpus={world / 'texts.jsonl'}", "--method.lm_coef=0.7", "--method.lm_kd=0.25"]
    found = train(world, tmp_path / "found", "minillm", ROLLOUT, *told, *more)
    mean = sum(part["loss"] for part in parts) / sum(part["n"] for part in parts)
    assert [(part["texts"], part["examples"]) for part in parts] == [(4, 4)] * 2
    assert parts[0]["n"] != parts[1]["n"], "else a mean of means would do"
    assert metrics(found)[0]["text"] == pytest.approx(mean, rel=1e-4)
    assert metrics(found)[0]["loss"] - metrics(plain)[0]["loss"] == pytest.approx(0.7 * mean, rel=1e-3)


def test_a_step_is_the_same_however_it_is_split(world: Path, tmp_path: Path) -> None:
    more = [f"--data.corpus={world / 'texts.jsonl'}", "--training.max_steps=2"]
    whole = train(world, tmp_path / "whole", "minillm", ROLLOUT, *split(8, 1), *more)
    parts = train(world, tmp_path / "parts", "minillm", ROLLOUT, *split(2, 4), *more, "--data.packing=true")
    same(whole, parts, 2e-4)
    assert metrics(whole)[0]["text"] != metrics(whole)[1]["text"]


def test_what_cannot_be_is_said(world: Path, tmp_path: Path) -> None:
    texts = f"--data.corpus={world / 'texts.jsonl'}"
    for method, more, said in [
        ("gkd", [texts], "data.corpus: is not learnt by gkd; remove it, or take minillm"),
        ("minillm", ["--method.lm_coef=0.5"], "method.lm_coef: is of data.corpus, which is not there"),
        ("minillm", [f"--data.corpus={world / 'train.jsonl'}"], "train.jsonl:1: is not a {text} row"),
    ]:
        with pytest.raises(Mistake, match=re.escape(said)):
            train(world, tmp_path, method, None, *more)
