"""The house is small enough to read in a day, and a test says when it stops being so."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping

from tests.habits.tree import Source, sources

FILE_LINES = 400
FUNCTION_LINES = 60  # its docstring not counted: explaining costs nothing

# "path" or "path::function" -> why it may be longer. An entry that is no longer needed must go.
EXCEPTIONS: dict[str, str] = {}


def too_long(tree: Iterable[Source]) -> dict[str, int]:
    """Each file and function past its budget, with its number of lines."""
    found = {}
    for source in tree:
        lines = len(source.text.splitlines())
        if lines > FILE_LINES:
            found[source.path] = lines
        for node in ast.walk(source.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _lines(node) > FUNCTION_LINES:
                found[f"{source.path}::{node.name}"] = _lines(node)
    return found


def complaints(found: Mapping[str, int], exceptions: Mapping[str, str]) -> list[str]:
    """What is too long without a reason, and which exception is stale or gives none."""
    wrong = [f"{place}: {lines} lines" for place, lines in found.items() if not exceptions.get(place)]
    return wrong + [f"{place}: an exception that is not needed" for place in exceptions if place not in found]


def _lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    assert function.end_lineno is not None
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is not None:
        docstring = function.body[0]
        assert docstring.end_lineno is not None
        lines -= docstring.end_lineno - docstring.lineno + 1
    return lines


def test_every_file_and_function_fits_its_budget():
    tree = (*sources("src"), *sources("tests"), *sources("benchmarks"))
    assert complaints(too_long(tree), EXCEPTIONS) == []


def test_a_planted_giant_is_found():
    body = "    x = 1\n"
    fits = "def f():\n" + '    """One\n' + "line\n" * 30 + '    """\n' + body * 59
    assert too_long([Source("src/a.py", fits)]) == {}
    assert too_long([Source("src/a.py", fits + body)]) == {"src/a.py::f": 61}
    assert too_long([Source("src/a.py", "x = 1\n" * 400)]) == {}
    assert too_long([Source("src/a.py", "x = 1\n" * 401)]) == {"src/a.py": 401}


def test_an_exception_needs_a_reason_and_a_cause():
    found = {"src/a.py": 500}
    assert complaints(found, {"src/a.py": "a table of 300 cases"}) == []
    assert complaints(found, {"src/a.py": ""}) == ["src/a.py: 500 lines"]
    assert complaints({}, {"src/b.py": "once long"}) == ["src/b.py: an exception that is not needed"]
