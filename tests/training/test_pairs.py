"""DistiLLM-2's pairs that were written before training, and its losses that read none."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from stillhouse.mistakes import Mistake
from stillhouse.training.trainer import DistillationTrainer
from tests import toy
from tests.training.test_on_policy import split, train
from tests.training.test_run import metrics


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_world(tmp_path_factory.mktemp("world"), sharp=20.0)


@pytest.fixture
def both(world: Path, tmp_path: Path) -> Path:
    """A student's answers to six of eight training rows, in another order, one of them twice and others beside."""
    rows = [{**row, "output": f"{row['output']} {row['output']}"} for row in toy.rows(8)]
    answered = [rows[i] for i in (5, 1, 2, 0, 7, 6)] + [{**rows[5], "output": "later"}, *toy.rows(9)[8:]]
    for name, lines in (("train", toy.rows(8)), ("own", answered)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    return tmp_path


def test_pairs_written_before_are_learnt_and_nobody_writes(
    world: Path, both: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[list[tuple[str, bool]]] = []
    compute = DistillationTrainer.compute_loss
    tokenizer = AutoTokenizer.from_pretrained(world / "small")

    def noted(self: Any, model: Any, inputs: Any, *given: Any, **named: Any) -> Any:
        own = iter(inputs["sampled"]["by_student"].tolist())
        parts = [labels[labels >= 0].tolist() for labels in inputs["labels"]]
        who = [[next(own) for _ in part] for part in parts]
        read.append([(tokenizer.decode(part), all(by)) for part, by in zip(parts, who, strict=True)])
        return compute(self, model, inputs, *given, **named)

    monkeypatch.setattr(DistillationTrainer, "compute_loss", noted)
    monkeypatch.setattr("stillhouse.training.on_policy.respond", nobody)
    told = [f"--data.train={both / 'train.jsonl'}", f"--rollout.written={both / 'own.jsonl'}", *split(3, 2)]
    folder = train(world, both / "out", "distillm2", None, *told, "--training.max_steps=1")
    end, rows = tokenizer.eos_token, toy.rows(8)
    said = [rows[i]["output"] for i in (0, 1, 2, 5, 6, 7)]
    expected = [(f"{text}{end}", False) for text in said] + [(f"{text} {text}{end}", True) for text in said]
    assert sorted(one for batch in read for one in batch) == sorted(expected)
    assert all([by for _, by in batch] == [False] * 3 + [True] * 3 for batch in read), "a pair is in one batch"
    assert "answers 6 of 8 training rows; the others are left out" in (folder / "train.log").read_text()
    assert not (folder / "samples.jsonl").exists() and metrics(folder)[0]["on_policy"] == 1.0


def test_a_rows_own_pair_is_learnt_as_if_written_before(world: Path, both: Path) -> None:
    """Rows with both responses, two of which have one prompt, beside a file of the rejected ones."""
    pairs = [
        {"prompt": row["instruction"], "chosen": row["output"], "rejected": row["output"] * 2} for row in toy.rows(6)
    ]
    pairs += [{**pairs[2], "chosen": "other", "rejected": "another"}]
    own = [{"prompt": pair["prompt"], "completion": pair["rejected"]} for pair in pairs[:6]]
    for name, lines in (("pairs", pairs), ("six", pairs[:6]), ("rejected", own)):
        (both / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    found = {}
    for data, written in (("six", "rejected"), ("six", str(both / "rejected.jsonl")), ("pairs", "rejected")):
        told = [
            f"--data.train={both / data}.jsonl",
            f"--rollout.written={written}",
            "--training.max_steps=2",
            *split(7, 1),
        ]
        folder = train(world, both / f"out{len(found)}", "distillm2", None, *told)
        found[data, written == "rejected"] = [line["loss"] for line in metrics(folder) if "loss" in line]
    assert found["six", True] == found["six", False] != found["pairs", True]
    said = "train.jsonl:1: has no 'chosen'; a pair is {prompt, chosen, rejected}"
    with pytest.raises(Mistake, match=re.escape(said)):
        train(
            world, both / "out", "distillm2", None, f"--data.train={both / 'train.jsonl'}", "--rollout.written=rejected"
        )


def nobody(*_: Any, **__: Any) -> Any:
    raise AssertionError("nobody writes")


def test_pairs_that_are_none_are_refused(world: Path, both: Path) -> None:
    here = f"--data.train={both / 'train.jsonl'}"
    (both / "others.jsonl").write_text(json.dumps(toy.rows(9)[8]) + "\n")
    for more, said in [
        ([f"--rollout.written={both / 'others.jsonl'}"], "answers no prompt of"),
        (["--rollout.written=own.json"], "own.json"),
        (["--rollout.written=own.jsonl", "--rollout.server=http://a:1"], "rollout.server: has nothing to write"),
    ]:
        with pytest.raises(Mistake, match=re.escape(said)):
            train(world, both / "out", "distillm2", None, here, *more)


def test_a_loss_on_the_data_alone_has_nobody_write(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stillhouse.training.on_policy.respond", nobody)
    folder = train(world, tmp_path, "distillm2", None, "--method.loss=kd", "--training.max_steps=1")
    assert "on_policy" not in metrics(folder)[0] and np.isfinite(metrics(folder)[0]["loss"])
    with pytest.raises(
        Mistake, match="distillm2 with loss seqkd cannot learn from 'paired'; it takes dataset, teacher"
    ):
        train(world, tmp_path, "distillm2", {"source": "paired"}, "--method.loss=seqkd")
