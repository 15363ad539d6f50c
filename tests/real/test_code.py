"""HumanEval's own solutions pass through the sandbox, all of them, and none without its body."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stillhouse import sandbox
from stillhouse.data.problems import Problem, read_problems

pytestmark = pytest.mark.skipif(
    bool(sandbox.why_not("namespaces") and sandbox.why_not("bubblewrap")), reason="no sandbox works on this machine"
)


def verdicts(problems: list[Problem], candidates: list[str]) -> dict[str, str]:
    kind, limits = sandbox.choose(), sandbox.Limits(wall_s=30, cpu_s=30)

    def judged(problem: Problem, candidate: str) -> tuple[str, str]:
        trial = sandbox.Trial(candidate, problem.checks, problem.names)
        return problem.task, sandbox.judge(kind, trial, limits).verdict

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(pool.map(judged, problems, candidates))


@pytest.mark.slow
def test_all_canonical_solutions_pass(shared: Path):
    problems = read_problems(shared / "data" / "humaneval" / "test.jsonl")
    assert len(problems) == 164
    found = verdicts(problems, [problem.solution for problem in problems])
    assert {task: verdict for task, verdict in found.items() if verdict != "passed"} == {}


@pytest.mark.slow
def test_what_a_model_leaves_empty_does_not_pass(shared: Path):
    problems = read_problems(shared / "data" / "humaneval" / "test.jsonl")[::4]
    found = verdicts(problems, [problem.candidate("", "completion") for problem in problems])
    assert {task: verdict for task, verdict in found.items() if verdict not in {"failed", "error"}} == {}
