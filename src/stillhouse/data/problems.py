"""Programming problems with tests: rows of HumanEval's and MBPP's fields, as prompts, candidates and checks.

HumanEval (Chen et al. 2021): task_id, prompt, entry_point, test. MBPP (Austin et al. 2021): task_id, text or prompt,
code, test_list, and test_setup_code or test_imports where there are any. EvalPlus (Liu et al. 2023) has the fields of
HumanEval and more; for MBPP, assertion in the place of test_list.
"""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from stillhouse.data.rows import Row, read_rows
from stillhouse.mistakes import Mistake

Style = Literal["completion", "chat"]

# What ends a function that a base model goes on writing, as Codex was stopped; and MBPP's own mark.
HUMANEVAL_STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
MBPP_STOPS = ("[DONE]", "\n[BEGIN]")
MBPP_PLUS_STOPS = ('\n"""', "\nassert", "\nprint", "\nif __name__", "\n# Test")
_EXAMPLES = ("2", "3", "4")  # the problems that MBPP's authors showed first
_BLOCK = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Problem:
    """One problem, and how an answer to it becomes a candidate with checks.

    Attributes:
        task: its name in the data set: "HumanEval/0".
        stub: what a completion goes on from, and every candidate begins with; "" where answers are whole programs.
        asked: the prompt of a base model.
        instructed: the prompt of a model that chats.
        stops: texts that end a completion.
        checks: a program that ends without an exception where the candidate is right.
        names: names that the checks call, and the candidate's function behind each.
        solution: the data set's own, as a candidate; "" where there is none.
    """

    task: str
    stub: str
    asked: str
    instructed: str
    stops: tuple[str, ...]
    checks: str
    names: Mapping[str, str]
    solution: str = ""

    def prompt(self, style: Style) -> str:
        """What a model is asked."""
        return self.asked if style == "completion" else self.instructed

    def candidate(self, answer: str, style: Style) -> str:
        """The program that `answer` stands for: a completion up to its stop, or the first block of code of a chat."""
        if style == "completion":
            return (
                self.stub + answer[: min((at for stop in self.stops if (at := answer.find(stop)) >= 0), default=None)]
            )
        found = _BLOCK.search(answer)
        code = found[1] if found else answer
        if self.stub and not any(re.search(rf"^(async )?def {name}\b", code, re.MULTILINE) for name in self.functions):
            return self.stub + code  # the body alone
        return _closed(self.stub) + code

    @property
    def functions(self) -> set[str]:
        """The functions that the checks ask for."""
        return set(self.names.values())


def read_problems(source: str | Path, *, limit: int | None = None, shots: int = 0) -> list[Problem]:
    """The problems of a file of rows; of MBPP's, `shots` are shown in every prompt and not asked.

    Raises:
        Mistake: a row is of neither data set, lacks a field, or its tests are no Python (at file:line).
    """
    rows = read_rows(source, split="test")
    examples: list[Row] = []
    if shots and "test_list" in rows[0].fields:
        first = [row for row in rows if str(row.fields.get("task_id")) in _EXAMPLES]
        examples = [*first, *(row for row in rows if row not in first)][:shots]
        if len(rows) <= shots:
            raise Mistake(str(source), f"holds {len(rows)} problems, and {shots} are shown", "give fewer --shots")
    asked = [row for row in rows if not any(row is example for example in examples)][:limit]
    problems = [_problem(row, examples) for row in asked]
    seen: dict[str, str] = {}
    for row, problem in zip(asked, problems, strict=True):
        if problem.task in seen:
            raise Mistake(row.origin, f"task_id '{problem.task}' is that of {seen[problem.task]}", "remove one")
        seen[problem.task] = row.origin
    return problems


def _problem(row: Row, examples: Sequence[Row]) -> Problem:
    if "assertion" in row.fields:
        return _mbpp_plus(row)
    if "entry_point" in row.fields:
        return _humaneval(row)
    if "test_list" in row.fields:
        return _mbpp(row, examples)
    mend = "HumanEval has entry_point, prompt and test; MBPP has text, code and test_list"
    raise Mistake(row.origin, "is no problem: neither 'entry_point' nor 'test_list'", mend)


def _humaneval(row: Row) -> Problem:
    prompt, entry, test = (_text(row, key) for key in ("prompt", "entry_point", "test"))
    if not entry.isidentifier():
        raise Mistake(row.origin, f"entry_point '{entry[:40]}' is no name of a function")
    # Helpers that a prompt defines are the data set's own here: a candidate that redefines them changes no test.
    checks = f"{_closed(prompt)}{test}\n{entry} = candidate\ncheck(candidate)\n"
    _parse(row, checks, "prompt and test")
    body = row.fields.get("canonical_solution")
    instructed = (
        "Complete the following Python function. Answer with the whole function in one block of code.\n\n"
        f"```python\n{prompt}```"
    )
    solution = prompt + body if isinstance(body, str) else ""
    task = str(row.fields.get("task_id", row.origin))
    return Problem(task, prompt, prompt, instructed, HUMANEVAL_STOPS, checks, {"candidate": entry}, solution)


def _mbpp(row: Row, examples: Sequence[Row]) -> Problem:
    tests, before = _tests(row), _setup(row)
    checks = "\n".join([*before, *tests]) + "\n"
    names = _asked_for(_parse(row, checks, "test_list"))
    if not names:
        raise Mistake(row.origin, "its test_list calls no function of a candidate")
    shown = "".join(f"{_mbpp_prompt(one)}[BEGIN]\n{_text(one, 'code').strip()}\n[DONE]\n\n" for one in examples)
    asked = _mbpp_prompt(row)
    code = row.fields.get("code")
    return Problem(
        task=f"MBPP/{row.fields.get('task_id', row.origin)}",
        stub="",
        asked=f"{shown}{asked}[BEGIN]\n",
        instructed=f"{asked}Answer with one block of Python code.",
        stops=MBPP_STOPS,
        checks=checks,
        names={name: name for name in names},
        solution=code if isinstance(code, str) else "",
    )


def _mbpp_plus(row: Row) -> Problem:
    """MBPP as EvalPlus keeps it: a docstring to go on from, and assertions."""
    prompt, checks = _text(row, "prompt"), _text(row, "assertion")
    names = _asked_for(_parse(row, checks, "assertion"))
    task, body = str(row.fields.get("task_id", row.origin)), row.fields.get("canonical_solution")
    solution = body if isinstance(body, str) else ""
    instructed = f"{prompt}\nAnswer with one block of Python code."
    return Problem(task, "", prompt, instructed, MBPP_PLUS_STOPS, checks, {name: name for name in names}, solution)


def _mbpp_prompt(row: Row) -> str:
    """As the paper asks (its section 3)."""
    text = _text(row, "text" if "text" in row.fields else "prompt")
    tests = "\n".join(_tests(row))
    return (
        f"You are an expert Python programmer, and here is your task: {text} "
        f"Your code should pass these tests:\n\n{tests}\n"
    )


def _tests(row: Row) -> list[str]:
    tests = row.fields.get("test_list")
    if not isinstance(tests, list) or not tests or not all(isinstance(test, str) for test in tests):
        raise Mistake(row.origin, "test_list is not a list of texts", 'write ["assert f(1) == 2", ...]')
    return tests


def _setup(row: Row) -> list[str]:
    lines = row.fields.get("test_imports") or []
    return [*lines, *filter(None, [row.fields.get("test_setup_code")])] if isinstance(lines, list) else []


def _text(row: Row, key: str) -> str:
    value: Any = row.fields.get(key)
    if not isinstance(value, str) or not value.strip():
        raise Mistake(row.origin, f"'{key}' is missing or no text", f"give the problem its {key}")
    return value


def _parse(row: Row, text: str, what: str) -> ast.Module:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError) as error:
        wrong = error.msg if isinstance(error, SyntaxError) else error
        raise Mistake(row.origin, f"{what} are no Python: {wrong}", "mend or remove the row") from None


def _asked_for(tree: ast.Module) -> list[str]:
    """Names that a program uses and neither binds nor has from Python."""
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    bound = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    bound |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            bound |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            bound.add(node.name)
    return sorted(used - bound - set(dir(builtins)))


def _closed(stub: str) -> str:
    """A stub as a whole program: its last function, which is a signature and a docstring, does nothing."""
    return f"{stub}\n    pass\n\n" if stub else ""
