"""Right solutions pass and forty cheats do not; what a harness in one process would say of them is shown too."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from stillhouse.sandbox import Kind, Limits, Trial, Verdict, choose, count, judge, run, why_not
from tests.sandbox.cheats import CHEATS, CHECKS, NAIVE

LIMITS = Limits(wall_s=8, cpu_s=4, memory_mb=512)
HURRIED = Limits(wall_s=3, cpu_s=3, memory_mb=512)
RIGHT = "def double_all(numbers): return [2 * number for number in numbers]"

needs_a_sandbox = pytest.mark.skipif(
    bool(why_not("namespaces") and why_not("bubblewrap")), reason="no sandbox works on this machine"
)


def verdict(candidate: str, checks: str = CHECKS, limits: Limits = LIMITS) -> Verdict:
    return judge(choose(), Trial(candidate, checks, {"candidate": "double_all"}), limits)


@pytest.fixture(scope="module")
def of_cheats() -> dict[str, Verdict]:
    with ThreadPoolExecutor(4) as pool:
        return dict(zip(CHEATS, pool.map(lambda text: verdict(text, limits=HURRIED), CHEATS.values()), strict=True))


@needs_a_sandbox
@pytest.mark.slow
@pytest.mark.parametrize("name", CHEATS)
def test_a_cheat_does_not_pass(of_cheats: dict[str, Verdict], name: str):
    assert of_cheats[name].verdict not in {"passed", "broken"}, of_cheats[name]


@needs_a_sandbox
@pytest.mark.slow
def test_most_cheats_pass_a_harness_in_one_process():
    kind: Kind = choose()
    with ThreadPoolExecutor(4) as pool:
        ended = list(pool.map(lambda text: run(kind, text + NAIVE, HURRIED), CHEATS.values()))
    fooled = [name for name, one in zip(CHEATS, ended, strict=True) if one.exit == one.signal == 0 and not one.timeout]
    assert len(CHEATS) >= 40
    assert len(fooled) >= 20, fooled


@needs_a_sandbox
@pytest.mark.parametrize(
    ("candidate", "expected", "detail"),
    [
        (RIGHT, "passed", ""),
        ("print('hello')\n" + RIGHT, "passed", ""),
        ("def double_all(numbers): return [n + n for n in numbers] or []", "passed", ""),
        ("def double_all(numbers): return numbers", "failed", "AssertionError"),
        ("def double_all(numbers): return 1 // 0", "error", "ZeroDivisionError"),
        ("def double_all(numbers) return", "error", "SyntaxError"),
        ("import numpy_that_is_not_there", "error", "ModuleNotFoundError"),
        ("def other(numbers): return 1", "error", "NameError"),
        ("def double_all(numbers): return None", "failed", "AssertionError"),
        ("def double_all(numbers): return bytearray(900 << 20)", "memory", ""),
        ("import os\ndef double_all(numbers): os._exit(3)", "ended", "exit code 3"),
        ("import os\ndef double_all(numbers): os.abort()", "ended", ""),
        ("def double_all(numbers): return 'x' * (9 << 20)", "protocol", "bytes"),
        ("import itertools\ndef double_all(numbers): return itertools.repeat(1)", "protocol", "iterator"),
    ],
)
def test_a_verdict_says_what_happened(candidate: str, expected: str, detail: str):
    found = verdict(candidate)
    assert (found.verdict, detail in found.detail) == (expected, True), found


@needs_a_sandbox
@pytest.mark.parametrize(
    "candidate", ["while True: pass", "import time\ndef double_all(n): time.sleep(60)", "x = 10 ** 10 ** 9"]
)
def test_what_takes_too_long_is_killed(candidate: str):
    found = verdict(candidate, limits=Limits(wall_s=0.6, cpu_s=1, memory_mb=512))
    assert found.verdict == "timeout" and found.seconds < 5, found


@needs_a_sandbox
@pytest.mark.parametrize(
    ("checks", "expected"),
    [
        ("pass", "broken"),  # the tests never call the candidate
        ("candidate(lambda x: x)", "broken"),
        ("try:\n    candidate([1])\nexcept Exception:\n    pass\nassert candidate([1]) == [2]", "passed"),
        ("assert candidate((1, 2)) == [2, 4]", "passed"),
        ("assert candidate(numbers=[1]) == [2]", "passed"),
        ("assert candidate([1]) == (2,)", "failed"),
        ("import sys; candidate([1]); sys.exit(0)", "error"),
        ("undefined", "error"),
    ],
)
def test_tests_of_other_shapes(checks: str, expected: str):
    assert verdict(RIGHT, checks).verdict == expected


@needs_a_sandbox
def test_tests_that_expect_an_exception_get_it_and_no_other():
    raising = "def double_all(numbers):\n    if not numbers: raise {}\n    return [2 * n for n in numbers]"
    checks = (
        "try:\n    candidate([])\nexcept ValueError as error:\n    assert str(error) == 'empty'\n"
        "else:\n    assert False\nassert candidate([1]) == [2]"
    )
    assert verdict(raising.format("ValueError('empty')"), checks).verdict == "passed"
    assert verdict(raising.format("TypeError('empty')"), checks).verdict == "error"
    assert verdict(raising.format("SystemExit('empty')"), checks).verdict == "ended"
    assert verdict(RIGHT, checks).verdict == "failed"


@needs_a_sandbox
def test_nothing_caught_by_the_tests_makes_up_for_a_process_that_is_gone():
    checks = "try:\n    candidate([1])\nexcept BaseException:\n    pass"
    assert verdict(RIGHT, checks).verdict == "passed"
    assert verdict("import os\ndef double_all(numbers): os._exit(0)", checks).verdict == "ended"


@needs_a_sandbox
def test_a_candidate_holds_no_line_but_its_questions_and_answers():
    candidate = """
import os
def double_all(numbers):
    held = []
    for file in range(3, 256):
        try: os.fstat(file)
        except OSError: continue
        held.append(file)
    return held
"""
    found = verdict(candidate, "held = candidate([])\nassert len(held) == 2, held")
    assert found.verdict == "passed", found


def test_verdicts_are_counted():
    counted = count([Verdict("passed", "", 0.1), Verdict("passed", "", 0.1), Verdict("timeout", "", 0.1)])
    assert (counted["passed"], counted["timeout"], counted["failed"]) == (2, 1, 0)
