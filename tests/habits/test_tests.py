"""A suite to be trusted: every skip says why, nothing is retried, and no test hides where pytest does not look."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import PurePosixPath

import pytest

from tests.habits.tree import Source, dotted, sources

# Each name, the number of positional arguments that comes before its reason, and the word that says it instead.
REASONS = {
    "pytest.skip": 0,
    "pytest.xfail": 0,
    "pytest.mark.skip": 0,
    "pytest.mark.skipif": 1,
    "pytest.mark.xfail": 1,
    "unittest.skip": 0,
}
RETRIES = {"flaky", "rerun", "retry", "repeat"}


def silent_skips(source: Source) -> list[str]:
    """Each skip and expected failure that gives no reason."""
    called = {node.func: node for node in ast.walk(source.tree) if isinstance(node, ast.Call)}
    wrong = []
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.Attribute) or dotted(node) not in REASONS:
            continue
        before = REASONS[dotted(node)]
        call = called.get(node)  # a bare mark, `@pytest.mark.skip`, is called by nobody
        reasons = [*call.args[before:], *(k.value for k in call.keywords if k.arg == "reason")] if call else []
        if not any(not isinstance(reason, ast.Constant) or str(reason.value).strip() for reason in reasons):
            wrong.append(f"{source.place(node)}: {dotted(node)} without a reason")
    return wrong


def retries(source: Source) -> list[str]:
    """Each mark that runs a test again until it passes."""
    return [
        f"{source.place(node)}: {node.attr}"
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Attribute) and dotted(node.value) == "pytest.mark" and node.attr in RETRIES
    ]


def hidden(tree: Iterable[Source]) -> list[str]:
    """Each test that pytest would not run: in a file of another name, or replaced by a second one of its own name."""
    wrong = []
    for source in tree:
        seen = set()
        for node in source.tree.body:
            if not (isinstance(node, ast.FunctionDef) and node.name.startswith("test_")):
                continue
            if not PurePosixPath(source.path).name.startswith("test_"):
                wrong.append(f"{source.place(node)}: {node.name} is in a file not named test_*.py")
            if node.name in seen:
                wrong.append(f"{source.place(node)}: {node.name} replaces another of its name")
            seen.add(node.name)
    return wrong


def test_every_skip_says_why():
    assert [line for source in sources("tests") for line in silent_skips(source)] == []


def test_nothing_is_retried():
    assert [line for source in sources("tests") for line in retries(source)] == []


def test_no_test_is_hidden():
    assert hidden(sources("tests")) == []


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("pytest.skip()", 1),
        ("pytest.skip('')", 1),
        ("@pytest.mark.skip\ndef test_a(): ...", 1),
        ("@pytest.mark.skipif(True)\ndef test_a(): ...", 1),
        ("pytestmark = pytest.mark.xfail", 1),
        ("@pytest.mark.xfail(strict=True)\ndef test_a(): ...", 1),
        ("pytest.skip(f'no {folder}')", 0),
        ("@pytest.mark.skipif(True, reason='needs two devices')\ndef test_a(): ...", 0),
    ],
)
def test_a_planted_silent_skip_is_found(text: str, count: int):
    assert len(silent_skips(Source("tests/test_a.py", text))) == count


def test_a_planted_retry_is_found():
    assert retries(Source("tests/test_a.py", "@pytest.mark.flaky(reruns=2)\ndef test_a(): ..."))
    assert not retries(Source("tests/test_a.py", "@pytest.mark.slow\ndef test_a(): ..."))


def test_a_planted_hidden_test_is_found():
    twice = "def test_a(): ...\ndef test_b(): ...\ndef test_a(): ...\n"
    assert hidden([Source("tests/test_a.py", twice)]) == ["tests/test_a.py:3: test_a replaces another of its name"]
    assert len(hidden([Source("tests/head/cases.py", "def test_a(): ...")])) == 1
