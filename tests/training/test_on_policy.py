"""Training on what the student writes: what it learns from, however it is split; kills and resumes; bad students."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from stillhouse.mistakes import Mistake
from stillhouse.recipe import parse
from stillhouse.rollout.drawing import Drawing
from stillhouse.training import rehearse, run
from stillhouse.training.on_policy import OnPolicy
from stillhouse.training.rewriting import UNREADABLE
from stillhouse.training.trainer import DistillationTrainer
from tests import toy
from tests.rollout.small import END, save_model
from tests.training.test_run import Killed, metrics, weights

SOURCES: dict[str, dict[str, Any]] = {
    "student": {"source": "student", "max_new_tokens": 9},
    "reused": {"source": "student", "max_new_tokens": 9, "reuse": 3},
    "replayed": {"source": "mixed", "share": 0.7, "replay": True, "capacity": 12, "max_new_tokens": 9},
    "adaptive": {"source": "adaptive", "threshold": 0.8, "capacity": 8, "max_new_tokens": 9},
    "paired": {"source": "paired", "max_new_tokens": 9},
}
OWN = ("gkd", "imitkd", "distillm", "distillm2", "minillm")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_world(tmp_path_factory.mktemp("world"), sharp=20.0)


def train(
    world: Path, output: Path, method: str, rollout: dict[str, Any] | None, *more: str, student: str = "small"
) -> Path:
    tree: dict[str, Any] = {
        "student": {"model": str(world / student)},
        "teacher": {"model": str(world / "large")},
        "data": {
            "train": str(world / "train.jsonl"), "eval": str(world / "dev.jsonl"), "template": "short",
            "max_length": 96, "max_prompt_length": 64,
        },
        "method": {"name": method},
        "rollout": rollout,
        "evaluation": {"generate": False},
        "training": {"learning_rate": 1e-2, "max_steps": 5, "logging_steps": 1, "adam_epsilon": 1e-4},
        "output": str(output),
    }  # fmt: skip
    if rollout is None:
        del tree["rollout"]
    output.mkdir(parents=True, exist_ok=True)
    path = output / "recipe.yaml"
    path.write_text(json.dumps(tree))
    return run(parse("distill", [str(path), *more]))


def split(size: int, accumulated: int) -> list[str]:
    return [f"--training.per_device_train_batch_size={size}", f"--training.gradient_accumulation_steps={accumulated}"]


def same(ours: Path, theirs: Path, tolerance: float) -> None:
    for name, value in weights(ours / "last").items():
        torch.testing.assert_close(value, weights(theirs / "last")[name], rtol=0, atol=tolerance)


def seen(monkeypatch: pytest.MonkeyPatch) -> list[list[dict[str, Any]]]:
    """The micro-batches of every step, as they are learnt from."""
    steps: list[list[dict[str, Any]]] = []
    step = OnPolicy.step

    def noted(self: OnPolicy, batches: list[dict[str, Any]], clock: Any) -> list[dict[str, Any]]:
        steps.append(step(self, batches, clock))
        window = self._window
        for batch, rollouts in zip(steps[-1], window.rollouts if window else [], strict=True):
            batch["finished"] = [one.finished for one in rollouts]
        return steps[-1]

    monkeypatch.setattr(OnPolicy, "step", noted)
    return steps


def readable(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No token is drawn that holds a part of a character only, of which random weights write many."""
    tokenizer = AutoTokenizer.from_pretrained(world / "small")
    broken = [token for token in range(len(tokenizer)) if UNREADABLE in tokenizer.decode([token])]
    draw = Drawing.draw

    def drawn(self: Drawing, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores[:, broken] = -torch.inf
        return draw(self, input_ids, scores)

    monkeypatch.setattr(Drawing, "draw", drawn)


def test_what_is_no_text_is_passed_over_and_counted(world: Path, tmp_path: Path):
    folder = train(world, tmp_path, "forward_kl", SOURCES["student"], f"--teacher.model={world / 'foreign'}",
                   "--vocabulary=overlap", *split(4, 1), "--training.max_steps=2")  # fmt: skip
    assert all(0 < line["unreadable"] <= 4 for line in metrics(folder) if "written_tokens" in line)


@pytest.mark.parametrize("packing", [False, True])
def test_the_student_learns_the_tokens_that_it_drew(world: Path, tmp_path: Path, monkeypatch, packing: bool):
    """Prompt and response, the token that ends it, and how likely each was to the student that wrote."""
    steps = seen(monkeypatch)
    train(world, tmp_path, "reverse_kl", SOURCES["student"], *split(4, 2), "--training.max_steps=1",
          f"--data.packing={str(packing).lower()}")  # fmt: skip
    student = AutoModelForCausalLM.from_pretrained(world / "small").eval()
    end = student.config.eos_token_id
    rows = finished = 0
    for batch in steps[0]:
        labels = batch["labels"].flatten()[batch["scored_at"]]
        drawn, place = batch["sampled"], 0
        assert bool(drawn["by_student"].all()) and len(labels) == len(drawn["log_probability"])
        bounds = batch["packed"]["boundaries"].tolist() if packing else None
        for row in range(len(batch["sample"])):
            if bounds is not None:
                part = slice(bounds[row], bounds[row + 1])
                ids, targets = batch["input_ids"][0, part], batch["labels"][0, part]
            else:
                length = int(batch["attention_mask"][row].sum())
                ids, targets = batch["input_ids"][row, :length], batch["labels"][row, :length]
            said = targets[targets >= 0]
            with torch.no_grad():
                logs = torch.log_softmax(student(ids[None]).logits[0, :, :300].float(), -1)
            expected = logs[targets >= 0].gather(-1, said[:, None])[:, 0]
            torch.testing.assert_close(drawn["log_probability"][place : place + len(said)], expected, rtol=0, atol=1e-4)
            assert len(said) <= 9 and end not in said[:-1].tolist()
            assert len(said) == 9 or said[-1] == end
            place, rows, finished = place + len(said), rows + 1, finished + int(said[-1] == end)
    assert rows == 8 and finished


def test_a_dataset_prompt_stands_before_what_is_written(world: Path, tmp_path: Path, monkeypatch):
    steps = seen(monkeypatch)
    train(world, tmp_path, "reverse_kl", SOURCES["student"], *split(8, 1), "--training.max_steps=1")
    tokenizer = AutoTokenizer.from_pretrained(world / "small")
    asked = {row["instruction"] for row in toy.rows(24)}
    for ids, labels in zip(steps[0][0]["input_ids"], steps[0][0]["labels"], strict=True):
        text = tokenizer.decode(ids[: int((labels >= 0).nonzero()[0]) + 1])
        assert text.removeprefix("### Instruction:\n").removesuffix("\n\n### Response:\n") in asked


@pytest.mark.slow
@pytest.mark.parametrize("source", [*SOURCES, *OWN])
def test_a_step_is_the_same_however_it_is_split(world: Path, tmp_path: Path, source: str):
    method, rollout = (source, None) if source in OWN else ("reverse_kl", SOURCES[source])
    own = ["--rollout.max_new_tokens=9", "--rollout.capacity=8", "--rollout.threshold=0.8"]
    known = {"gkd": own[:1], "imitkd": own[:2], "distillm": own, "distillm2": own[:1], "minillm": own[:1]}
    more = ["--training.max_steps=3", *known.get(source, [])]
    whole = train(world, tmp_path / "whole", method, rollout, *split(8, 1), *more)
    assert any(line.get("on_policy") for line in metrics(whole)), "else nobody wrote"
    for line in (line for line in metrics(whole) if "kd" in line):  # by what was written, not by what stood there
        loss = {"minillm": line.get("policy", 0.0) + line["kd"]}.get(source, line["kd"])
        assert line["loss"] == pytest.approx(loss if source in OWN else (line["ce"] + line["kd"]) / 2, rel=1e-5)
    for name, changed in {
        "accumulated, one by one": [*split(2, 4), "--rollout.batch_size=1"],
        "packed, in blocks": [*split(4, 2), "--data.packing=true", "--head.rows=3", "--head.elements=700"],
    }.items():
        same(train(world, tmp_path / name, method, rollout, *changed, *more), whole, 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("source", [*SOURCES, "minillm"])
def test_a_run_that_is_killed_twice_goes_on_to_the_same_weights(world: Path, tmp_path: Path, monkeypatch, source: str):
    """In its second step, and when it has gone on from there, in the fourth."""
    method, rollout = ("minillm", None) if source == "minillm" else ("skew_reverse_kl", SOURCES[source])
    more = [*split(4, 1), "--training.save_steps=1", "--rollout.show_every=2"]
    whole = train(world, tmp_path / "whole", method, rollout, *more)
    for reached in (1, 3):
        with killed_at(reached):
            train(world, tmp_path / "cut", method, rollout, *more)
    again = train(world, tmp_path / "cut", method, rollout, *more)
    theirs = weights(whole / "last")
    assert all(torch.equal(value, theirs[name]) for name, value in weights(again / "last").items())
    assert timeless(again) == timeless(whole)
    assert (again / "samples.jsonl").read_text() == (whole / "samples.jsonl").read_text()


@contextmanager
def killed_at(reached: int) -> Iterator[None]:
    """Whoever trains dies before the optimizer step after so many."""
    step = DistillationTrainer.training_step

    def killing(trainer: DistillationTrainer, *given: Any, **named: Any) -> Tensor:
        if trainer.state.global_step == reached:
            raise Killed
        return step(trainer, *given, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DistillationTrainer, "training_step", killing)
        with pytest.raises(Killed):
            yield


def timeless(folder: Path) -> list[dict[str, float]]:
    fleeting = (
        "tokens_per_second",
        "peak_memory_gib",
        "train_runtime",
        "train_samples_per_second",
        "train_steps_per_second",
    )
    return [{key: value for key, value in line.items() if key not in fleeting} for line in metrics(folder)]


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("forward_kl", ["--alignment=span", "--vocabulary=overlap"]),
        ("cdm", []),
        ("uld", []),
        ("dskd_cma", []),
        ("alm", []),
    ],
)
def test_with_two_tokenizers_both_read_the_students_text(
    world: Path, tmp_path: Path, monkeypatch, method: str, more: list[str]
):
    readable(world, monkeypatch)
    steps = seen(monkeypatch)
    foreign = f"--teacher.model={world / 'foreign'}"
    folder = train(world, tmp_path / "one", method, SOURCES["student"], foreign, *more, *split(4, 1))
    ours, theirs = (AutoTokenizer.from_pretrained(world / name) for name in ("small", "foreign"))
    for batch in (batch for step in steps for batch in step):
        assert batch["sample"].tolist() == batch["teacher"]["sample"].tolist()
        for row in range(len(batch["sample"])):
            said = [
                tokenizer.decode(side["labels"][row][side["labels"][row] >= 0], skip_special_tokens=True)
                for tokenizer, side in ((ours, batch), (theirs, batch["teacher"]))
            ]
            assert said[0] == said[1]
            # A response that was broken off has nothing that ends it, on either side.
            ended = [
                int(side["labels"][row][side["labels"][row] >= 0][-1]) == tokenizer.eos_token_id
                for side, tokenizer in ((batch, ours), (batch["teacher"], theirs))
            ]
            assert ended == [batch["finished"][row]] * 2
    before, after = weights(world / "small"), weights(folder / "last")
    assert all(value.isfinite().all() for value in after.values())
    assert any(not torch.equal(before[name], value) for name, value in after.items())
    assert all(np.isfinite(line["loss"]) for line in metrics(folder) if "loss" in line)
    if method == "forward_kl":
        again = train(world, tmp_path / "two", method, SOURCES["student"], foreign, *more, *split(2, 2))
        same(again, folder, 1e-6)


def test_the_teacher_answers_once(world: Path, tmp_path: Path, monkeypatch):
    more = [*split(8, 1), "--training.save_steps=1"]
    rollout = {"source": "teacher", "max_new_tokens": 7}
    whole = train(world, tmp_path / "whole", "seqkd", rollout, *more)
    written = (whole / "teacher.jsonl").read_text()
    assert all("output" in json.loads(line) for line in written.splitlines())
    monkeypatch.setattr("stillhouse.training.teacher_rows.answer", None)  # what is there is read
    monkeypatch.undo()
    with killed_at(2):
        train(world, tmp_path / "cut", "seqkd", rollout, *more)
    monkeypatch.setattr("stillhouse.training.teacher_rows.answer", None)
    again = train(world, tmp_path / "cut", "seqkd", rollout, *more)
    assert (again / "teacher.jsonl").read_text() == written
    same(again, whole, 0.0)


def test_a_teachers_answers_are_of_this_teacher_these_rows_and_settings(world: Path, tmp_path: Path):
    """A run that is killed before its first checkpoint leaves nothing to compare a recipe with."""
    first = {"source": "teacher", "max_new_tokens": 7}
    with killed_at(0):
        train(world, tmp_path, "seqkd", first, *split(8, 1))
    (written,) = tmp_path.rglob("teacher.jsonl")
    before = written.read_text()
    folder = train(world, tmp_path, "seqkd", {**first, "max_new_tokens": 9}, *split(8, 1))
    assert (folder / "teacher.jsonl") == written and written.read_text() != before


def test_a_dry_run_does_not_have_a_data_set_answered(world: Path, tmp_path: Path, monkeypatch, caplog):
    monkeypatch.setattr("stillhouse.training.teacher_rows.answer", None)
    monkeypatch.setattr("tests.training.test_on_policy.run", rehearse)
    train(world, tmp_path, "seqkd", {"source": "teacher"}, *split(8, 1))


def test_rows_that_json_cannot_say_are_refused_before_they_are_answered(world: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("stillhouse.training.teacher_rows.answer", None)
    made = [{**row, "when": datetime(2020, 1, 1)} for row in toy.rows(3)]
    pq.write_table(pa.Table.from_pylist(made), tmp_path / "rows.parquet")
    with pytest.raises(Mistake, match="cannot be written as JSON"):
        train(world, tmp_path / "out", "seqkd", {"source": "teacher"}, f"--data.train={tmp_path / 'rows.parquet'}")


@pytest.mark.parametrize("source", ["student", "paired"])
def test_a_text_without_a_prompt_is_refused(world: Path, tmp_path: Path, source: str):
    (tmp_path / "train.jsonl").write_text(json.dumps({"text": "What is 1 plus 1"}) + "\n")
    with pytest.raises(Mistake, match=r"train\.jsonl:1.*has no prompt to answer"):
        train(world, tmp_path / "out", "reverse_kl", SOURCES[source], f"--data.train={tmp_path / 'train.jsonl'}")


def test_a_loss_by_responses_is_divided_by_their_number(world: Path, tmp_path: Path, monkeypatch):
    counts: list[tuple[int, float]] = []
    compute = DistillationTrainer.compute_loss

    def noted(self: DistillationTrainer, model: Any, inputs: dict[str, Any], *given: Any, **named: Any) -> Tensor:
        counts.append((len(inputs["sample"]), float(named["num_items_in_batch"])))
        return compute(self, model, inputs, *given, **named)

    monkeypatch.setattr(DistillationTrainer, "compute_loss", noted)
    train(world, tmp_path, "distillm2", None, *split(4, 2), "--training.max_steps=2", "--rollout.max_new_tokens=5")
    assert counts == [(8, 16.0)] * 4  # both responses of four prompts, twice a step


def test_the_first_dev_loss_is_known_before_the_first_step(world: Path, tmp_path: Path):
    """At a learning rate that destroys the student the loss has risen at the first evaluation, and so the threshold."""
    more = ["--training.learning_rate=3", "--training.warmup_steps=0", "--training.save_steps=1", *split(8, 1)]
    folder = train(world, tmp_path / "whole", "distillm", None, *more)
    assert [line["threshold"] for line in metrics(folder) if "threshold" in line][-1] > 0.0
    with killed_at(4):
        train(world, tmp_path / "cut", "distillm", None, *more)
    assert timeless(train(world, tmp_path / "cut", "distillm", None, *more)) == timeless(folder)


WRITES = {"only the end": [END], "never the end": ["a", "b"], "blanks": [" ", END]}


@pytest.mark.parametrize("writes", WRITES)
@pytest.mark.parametrize("method", ["reverse_kl", "minillm", "distillm2"])
def test_a_bad_student_is_counted_and_learns_on(tmp_path: Path, writes: str, method: str):
    toy.write_rows(tmp_path / "train.jsonl", 24)
    toy.write_rows(tmp_path / "dev.jsonl", 4)
    save_model(tmp_path / "small", 1, writes=WRITES[writes])
    save_model(tmp_path / "large", 2)
    rollout = {"source": "paired" if method == "distillm2" else "student", "max_new_tokens": 6}
    folder = train(tmp_path, tmp_path / "out", method, rollout, *split(4, 1), "--training.max_steps=2",
                   "--data.max_length=160", "--data.max_prompt_length=128",
                   *(["--rollout.teacher_mix=0"] if method == "minillm" else []))  # fmt: skip
    lines = [line for line in metrics(folder) if "written_tokens" in line]
    assert lines and all(np.isfinite(line["loss"]) for line in lines)
    first = lines[0]
    if writes == "only the end":
        assert (first["written_tokens"], first["empty"], first["unfinished"]) == (1.0, 1.0, 0.0)
    if writes == "never the end":
        assert (first["written_tokens"], first["empty"], first["unfinished"]) == (6.0, 0.0, 1.0)
    if writes == "blanks":
        assert first["empty"] == 1.0
    assert all(value.isfinite().all() for value in weights(folder / "last").values())


def test_a_prompt_longer_than_the_window_is_cut_and_answered_in_what_is_left(world: Path, tmp_path: Path):
    rows = [*toy.rows(7), {"instruction": "What is " * 40, "output": "x"}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown = ["--rollout.max_new_tokens=null", "--rollout.show_every=1", "--rollout.batch_size=3"]
    folder = train(world, tmp_path / "out", "reverse_kl", SOURCES["student"], *split(4, 2), "--training.max_steps=1",
                   f"--data.train={tmp_path / 'train.jsonl'}", "--data.max_length=50", "--data.max_prompt_length=49",
                   *shown)  # fmt: skip
    assert "1 prompts were longer than 49 tokens and were cut" in (folder / "train.log").read_text()
    assert metrics(folder)[0]["written_tokens"] > 1


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--rollout.source=student", "--data.scored=all"], "data.scored"),
        (["--rollout.source=student", "--data.max_batch_tokens=400"], "data.max_batch_tokens"),
        (["--rollout.source=student", "--training.parity=true"], "training.parity"),
        (["--rollout.source=adaptive", "--data.eval=null"], "data.eval"),
    ],
)
def test_what_does_not_go_together_is_said(world: Path, tmp_path: Path, more: list[str], said: str):
    with pytest.raises(Mistake, match=said):
        train(world, tmp_path, "reverse_kl", None, *more)


def test_minillm_writes_and_learns_at_one_temperature(world: Path, tmp_path: Path):
    with pytest.raises(Mistake, match=r"rollout\.temperature: is 0\.7, but minillm learns at temperature 1"):
        train(world, tmp_path, "minillm", None, "--rollout.temperature=0.7")
    with pytest.raises(Mistake, match=r"rollout\.top_k: cuts what is drawn from, and minillm learns from all of it"):
        train(world, tmp_path, "minillm", None, "--rollout.top_k=5", student="nowhere")  # before a model is looked for


def test_a_teacher_of_other_tokens_has_no_share_in_them(world: Path, tmp_path: Path):
    with pytest.raises(Mistake, match=r"rollout\.teacher_mix"):
        train(world, tmp_path, "reverse_kl", {"source": "student", "teacher_mix": 0.2},
              f"--teacher.model={world / 'foreign'}")  # fmt: skip
