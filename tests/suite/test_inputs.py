"""What a run of a suite has read, and what the suite says when that is no more what it was; nothing is trained."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from stillhouse import store
from stillhouse.mistakes import LONGEST_LINE, Mistake
from stillhouse.recipe import dump
from stillhouse.suite import inputs, jobs
from stillhouse.suite.jobs import Line, Scoring, Training
from stillhouse.suite.plan import plan
from tests.suite.small import RECIPE, ROWS, job, options, pretend, write_folder
from tests.toy import write_rows

# What a row names, by which key of its recipe, and the file that is behind it.
NAMED: dict[str, tuple[dict[str, Any], str]] = {
    "data.train": ({}, "train.jsonl"),
    "data.eval": ({"data.eval": "folder"}, "folder/validation.jsonl"),
    "data.corpus": ({"recipe": "bare.yaml", "method": "minillm", "data.corpus": "corpus.jsonl"}, "corpus.jsonl"),
    "rollout.written": (
        {"recipe": "bare.yaml", "method": "distillm2", "rollout.written": "written.jsonl"},
        "written.jsonl",
    ),
    "vocabulary.path": ({"vocabulary": {"name": "file", "path": "map.json"}}, "map.json"),
    "method.projectors": (
        {"method": {"name": "dskd", "projectors": "projectors"}},
        "projectors/method.safetensors",
    ),
    "student.model": ({}, "small/config.json"),
    "teacher.model": ({}, "large/model.safetensors"),
    "teacher.tokenizer": ({"teacher.tokenizer": "tokens"}, "tokens/tokenizer.json"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_folder(folder)
        for name in ("folder", "projectors"):
            (folder / name).mkdir()
        shutil.copytree("small", "tokens")
        (folder / "corpus.jsonl").write_text('{"text": "a cat, 1"}\n')
        for name in ("folder/validation.jsonl", "folder/train.jsonl", "written.jsonl"):
            write_rows(folder / name, 4)
        (folder / "bare.yaml").write_text(yaml.safe_dump({**RECIPE, "method": {"name": "todi"}}))
        (folder / "map.json").write_text('{"a": 1}')
        (folder / "projectors/method.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of all that a suite names."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def training(lines: list[Line], title: str) -> Training:
    found = job(lines, title)
    assert isinstance(found, Training)
    return found


def planned(*arguments: str, **changed: Any) -> list[Line]:
    return plan(options(*arguments, **{"rows": [ROWS[1], ROWS[2]], "seeds": [3], **changed}))


def trained(**changed: Any) -> list[Line]:
    """A suite of which every run is there."""
    lines = planned(**changed)
    for line in lines:
        for seed, one in line.trainings.items():
            pretend(one, loss=seed)
    return lines


def refusal(*arguments: str, **changed: Any) -> str:
    with pytest.raises(Mistake) as caught:
        planned(*arguments, **changed)
    assert len(str(caught.value)) <= LONGEST_LINE
    return str(caught.value)


def undone(lines: list[Line]) -> list[str]:
    return [one.title for line in lines for one in line.trainings.values() if not one.done]


def replace_a_byte(path: str, *, later: bool = True) -> None:
    """The file keeps its size, and, unless it is `later`, its time."""
    time = Path(path).stat().st_mtime_ns
    content = bytearray(Path(path).read_bytes())
    place = max(content.rfind(sign) for sign in b"0123456789") + 1 or len(content)
    content[place - 1] = ord("2" if content[place - 1] == ord("1") else "1")  # JSON stays JSON
    Path(path).write_bytes(content)
    os.utime(path, ns=(time, time + 10**9 * later))


def test_every_file_that_a_recipe_names_is_looked_at(folder: Path) -> None:
    lines = trained(rows=[{"name": key, **changes} for key, (changes, _) in NAMED.items()])
    for line, (key, (_, file)) in zip(lines, NAMED.items(), strict=True):
        run, content = line.trainings[3], Path(file).read_bytes()
        os.utime(file, ns=(0, 0))  # touched, or copied: the content is what counts
        assert run.changed_file is None and run.done
        replace_a_byte(file)
        assert run.changed_file == (key, Path(file)) and not run.done
        Path(file).write_bytes(content)
        assert run.done


def test_a_run_on_other_rows_takes_overwrite(folder: Path) -> None:
    trained()
    write_rows(folder / "train.jsonl", 5)
    assert refusal() == (
        "rows[1], SFT: data.train: train.jsonl is not what out/runs/small/sft/SFT-seed3 was trained with; "
        "put it back, or --overwrite=true to train it anew"
    )
    anew = planned("--overwrite")
    assert undone(anew) == ["SFT, seed 3", "FKL, seed 3"]
    for line in anew:
        assert line.trainings[3].command[-1] == "--overwrite=true"
        pretend(line.trainings[3])
    assert undone(planned()) == []


def test_what_has_its_size_and_time_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained()
    monkeypatch.setattr(inputs, "of_file", lambda path: pytest.fail(f"read {path}"))
    inputs._hash.cache_clear()
    replace_a_byte("train.jsonl", later=False)
    assert undone(planned()) == []


def test_rows_that_come_or_go_are_a_change_and_a_file_that_is_gone_is_none(folder: Path) -> None:
    (folder / "shards").mkdir()
    for number in (0, 1):
        write_rows(folder / f"shards/train-{number}.jsonl", 4)
    row: dict[str, Any] = {"rows": [{"name": "A", "data.train": "shards"}]}
    trained(**row)
    write_rows(folder / "shards/train-2.jsonl", 4)
    assert refusal(**row).startswith("rows[1], A: data.train: shards/train-2.jsonl is not what ")
    for number in (1, 2):
        (folder / f"shards/train-{number}.jsonl").unlink()
    assert refusal(**row).startswith("rows[1], A: data.train: shards/train-1.jsonl is not what ")
    shutil.rmtree(folder / "shards")
    assert undone(planned(**row)) == []


def test_a_run_that_was_stopped_does_not_go_on_with_other_rows(folder: Path) -> None:
    lines = trained()
    for path in lines[0].trainings[3].folder.glob("finished.json*"):
        path.unlink()
    stopped = training(planned(rows=[ROWS[1]]), "SFT, seed 3")
    write_rows(folder / "train.jsonl", 5)
    assert refusal().startswith("rows[1], SFT: data.train: train.jsonl is not what out/runs/small/sft/SFT-seed3 was")
    with pytest.raises(Mistake, match="learnt from what has changed since this suite was started; give the command"):
        stopped.begin()
    assert stopped.begun


def test_nothing_is_said_of_a_run_of_which_nobody_noted_what_it_read(folder: Path) -> None:
    lines = trained()
    shutil.rmtree("out/learnt_from")
    write_rows(folder / "train.jsonl", 5)
    assert undone(planned()) == [] and undone(lines) == []


def test_a_note_of_runs_alone_still_tells_a_teacher_that_was_trained_anew(folder: Path) -> None:
    """Suites noted {title: result} before they looked at files."""
    teacher, student = (line.trainings[3] for line in trained())
    for run in (teacher, student):
        store.write_json(run.note, store.read_json(run.note)["runs"])
    write_rows(folder / "train.jsonl", 5)
    assert undone(planned()) == []  # of files nobody noted anything
    store.write_json(teacher.folder / "finished.json", {**teacher.result, "xxh3": "another"})
    assert refusal().startswith("rows[2], FKL: out/runs/small/forward_kl/FKL-seed3: learnt from another run of SFT, ")


def test_a_run_of_the_suite_is_known_by_what_it_came_to_and_not_by_its_files(folder: Path) -> None:
    first, second = (line.trainings[3] for line in trained())
    noted = store.read_json(second.note)
    assert noted["runs"] == {"SFT, seed 3": store.read_json(first.folder / "finished.json")}
    assert set(noted["files"]) == {"data.train", "teacher.model"}


def test_the_note_of_new_rows_never_stands_beside_a_run_that_learnt_others(folder: Path) -> None:
    """A suite that is killed between the two would else take the old run for one of the new rows."""
    trained()
    write_rows(folder / "train.jsonl", 5)
    anew = training(planned("--overwrite"), "SFT, seed 3")
    anew.begin()
    assert not anew.folder.exists()
    assert undone(planned("--overwrite")) == ["SFT, seed 3", "FKL, seed 3"]


def test_a_run_that_was_stopped_does_not_go_on_under_another_teacher(folder: Path) -> None:
    """What it learns from is noted before it starts: it may never come to its end."""
    teacher, student = (line.trainings[3] for line in planned())
    pretend(teacher, xxh3="one")
    student.begin()
    (student.folder / "last").mkdir(parents=True)
    store.write_text(student.folder / "recipe.yaml", dump(student.recipe.as_dict()))
    assert undone(planned()) == ["FKL, seed 3"]
    pretend(teacher, xxh3="another")
    assert refusal().startswith("rows[2], FKL: out/runs/small/forward_kl/FKL-seed3: learnt from another run of SFT, ")


AGREEMENT = {"agreement": {"data": ["dev.jsonl"], "teacher": "large"}}


def scored(kind: str = "agreement", evaluate: Any = AGREEMENT, *arguments: str) -> Scoring:
    """A model, by a scoring that has just ended; as a rule how near it is to its teacher."""
    found = job(planned(*arguments, rows=ROWS[:1], evaluate=evaluate), f"Base: {kind}")
    assert isinstance(found, Scoring)
    found.begin()
    store.write_json(found.out / kind / "measures.json", [])
    found.stamp()
    assert found.done
    return found


def test_scores_against_a_teacher_are_of_that_teacher(folder: Path) -> None:
    scoring = scored()
    replace_a_byte("large/config.json")
    assert not scoring.done


def test_scores_that_are_being_made_anew_are_not_there(folder: Path) -> None:
    """Killed in the middle, an evaluation leaves the scores of before, or some of each."""
    scoring = scored()
    scoring.begin()
    assert not scoring.done and [path.name for path in scoring.out.iterdir()] == ["agreement"]
    scoring.begin()  # nothing to forget


@pytest.mark.parametrize("temperature", [0, 1, None])
def test_another_size_of_batches_is_no_other_choice_but_where_a_batch_is_drawn_together(
    folder: Path, temperature: int | None
) -> None:
    """Where the suite does not say, a task may sample by itself."""
    asked: dict[str, Any] = {"tasks": ["gsm8k"]} | ({} if temperature is None else {"temperature": temperature})
    scored("tasks", {"tasks": {**asked, "batch_size": 8}})
    smaller: dict[str, Any] = {"rows": ROWS[:1], "evaluate": {"tasks": {**asked, "batch_size": 2}}}
    if temperature != 0:
        assert "evaluate.tasks.batch_size: is 2, but scores in out/scores/Base/tasks were made with 8" in refusal(
            **smaller
        )
    else:
        assert not job(planned(**smaller), "Base: tasks").done  # `evaluate` keeps what it has


def test_scores_are_of_the_evalplus_that_made_them(folder: Path) -> None:
    (folder / "packages/evalplus").mkdir(parents=True)
    Path("packages/evalplus/evaluate.py").write_text("")
    Path("problems.jsonl").write_text(
        '{"task_id": "a/0", "entry_point": "f", "prompt": "def f():\\n", "test": "def check(c):\\n  assert c()\\n"}'
    )
    asked = {"data": ["problems.jsonl"], "scorer": "evalplus", "evalplus": "packages"}
    scoring = scored("code", {"code": asked}, "--run-generated-code")
    Path("packages/evalplus/evaluate.py").write_text("# mended")
    assert not scoring.done
    shutil.rmtree("packages")
    assert scoring.done  # what is gone is not missed


def test_scores_of_tasks_are_of_the_harness_that_made_them(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "lm_eval_version", lambda: "0.4.13")
    scoring = scored("tasks", {"tasks": {"tasks": ["gsm8k"]}})
    monkeypatch.setattr(jobs, "lm_eval_version", lambda: "0.4.14")
    assert not scoring.done
