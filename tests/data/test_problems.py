"""Rows of HumanEval's and MBPP's fields: what a model is asked, and the program that its answer stands for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stillhouse.data.problems import read_problems
from stillhouse.mistakes import Mistake
from tests.evaluation.problems import HUMANEVAL, MBPP, write


def test_a_completion_ends_where_codex_was_stopped(tmp_path: Path):
    problem = read_problems(write(tmp_path / "test.jsonl", HUMANEVAL))[0]
    assert problem.prompt("completion") == HUMANEVAL[0]["prompt"]
    for stop in ("\nclass A:", "\ndef other():", "\n# and", "\nif True:", "\nprint(1)"):
        assert problem.candidate(f"    return 1{stop}\n    junk", "completion") == problem.stub + "    return 1"
    assert problem.candidate("    if x:\n        print(1)\n", "completion").endswith("print(1)\n")
    assert problem.solution == HUMANEVAL[0]["prompt"] + "    return sum(numbers)\n"


def test_a_chat_answers_with_a_block_that_is_the_function_or_its_body(tmp_path: Path):
    problem = read_problems(write(tmp_path / "test.jsonl", HUMANEVAL))[0]
    assert HUMANEVAL[0]["prompt"] in problem.prompt("chat")
    whole = problem.candidate("Here:\n```python\ndef total(numbers):\n    return 3\n```\nDone.", "chat")
    assert whole == problem.stub + "\n    pass\n\ndef total(numbers):\n    return 3\n"
    assert problem.candidate("```\n    return 3\n```", "chat") == problem.stub + "    return 3\n"
    assert problem.candidate("```python\ndef total(n):\n    return 4", "chat").endswith("return 4")
    assert problem.candidate("def total(n): return 5", "chat").endswith("def total(n): return 5")


def test_mbpp_shows_the_problems_that_its_paper_shows_and_asks_the_others(tmp_path: Path):
    path = write(tmp_path / "mbpp.jsonl", MBPP)
    problems = read_problems(path, shots=3)
    assert [problem.task for problem in problems] == ["MBPP/1", "MBPP/5", "MBPP/6"]
    asked = problems[0].prompt("completion")
    assert asked.count("[DONE]") == 3
    assert asked.startswith(
        "You are an expert Python programmer, and here is your task: Write a function to add 2. "
        "Your code should pass these tests:\n\nassert add_it(1) == 3\nassert math.isclose(add_it(2), 4)\n"
        "[BEGIN]\nimport math\ndef add_it(n):\n    return math.floor(n) + 2\n[DONE]\n\n"
    )
    assert asked.endswith("assert math.isclose(add_it(2), 3)\n[BEGIN]\n")
    assert problems[0].names == {"add_it": "add_it"}
    assert problems[0].candidate("x = 1\n[DONE]\n\nYou", "completion") == "x = 1\n"
    assert [problem.task for problem in read_problems(path, limit=2)] == ["MBPP/1", "MBPP/2"]


def changed(row: dict[str, Any], **others: Any) -> dict[str, Any]:
    return {key: value for key, value in {**row, **others}.items() if value is not None}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"question": "?"}, "is no problem"),
        (changed(HUMANEVAL[0], test=None), "'test' is missing"),
        (changed(HUMANEVAL[0], prompt=7), "'prompt' is missing or no text"),
        (changed(HUMANEVAL[0], entry_point="a b"), "entry_point 'a b' is no name"),
        (changed(HUMANEVAL[0], test="def check(candidate)"), "are no Python"),
        (changed(HUMANEVAL[0], task_id="Own/2"), "task_id 'Own/2' is that of"),
        (changed(MBPP[0], test_list="assert f()"), "test_list is not a list"),
        (changed(MBPP[0], test_list=["assert f("]), "are no Python"),
        (changed(MBPP[0], test_list=["assert abs(-1) == 1"]), "calls no function"),
        (changed(MBPP[0], text=None), "'prompt' is missing"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, row: dict[str, Any], says: str):
    path = write(tmp_path / "test.jsonl", [HUMANEVAL[2], row])
    with pytest.raises(Mistake) as found:
        read_problems(path)
    assert says in str(found.value)
    assert "test.jsonl:2" in str(found.value)
