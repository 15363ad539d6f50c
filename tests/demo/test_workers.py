import os

import pytest

from stillhouse.demo.workers import ENVIRONMENT, Task, run_tasks
from stillhouse.mistakes import Mistake

METHODS = ("methods", "--json")
WRONG = ("methods", "--jsn")


def test_tasks_wait_for_what_they_need_and_their_words_are_kept(tmp_path):
    happened = []
    tasks = [
        Task("last", (METHODS,), needs=("first", "second")),
        Task("second", (METHODS, METHODS), needs=("first",), after=lambda: happened.append("after second")),
        Task("first", (METHODS,)),
    ]
    for task in run_tasks(tasks, 2, tmp_path / "logs"):
        happened.append(task.name)
    assert happened == ["first", "after second", "second", "last"]
    assert (tmp_path / "logs" / "second.log").read_text().count("$ stillhouse methods --json") == 2
    assert "todi" in (tmp_path / "logs" / "first.log").read_text()


def test_a_failing_task_stops_the_others_and_shows_the_end_of_its_log(tmp_path, capfd):
    tasks = [Task("wrong", (WRONG, METHODS)), Task("never", (METHODS,), needs=("wrong",))]
    with pytest.raises(Mistake, match=r"wrong\.log: the demo's task 'wrong' ended with code 2; the end of its log"):
        list(run_tasks(tasks, 2, tmp_path))
    shown = capfd.readouterr().err
    assert "did you mean '--json'?" in shown and not (tmp_path / "never.log").exists()
    assert (tmp_path / "wrong.log").read_text().count("$ stillhouse") == 1


def test_needs_that_nobody_meets_are_an_error_and_no_endless_wait(tmp_path):
    with pytest.raises(ValueError, match="wait for what nobody does"):
        list(run_tasks([Task("lonely", (METHODS,), needs=("nobody",))], 1, tmp_path))


def test_the_processes_settings_are_theirs_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    for name in ENVIRONMENT.keys() - {"OMP_NUM_THREADS"}:
        monkeypatch.delenv(name, raising=False)
    before = dict(os.environ)
    tasks = run_tasks([Task("one", (METHODS,))], 1, tmp_path)
    next(tasks)
    assert dict(os.environ) == before
    tasks.close()
