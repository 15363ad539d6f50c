"""Every mistake that users are known to make, and the one line that they get for it.

A case is: `mistake`, what it is; `command` (default `distill recipe.yaml`); `says`, the whole line without the leading
"stillhouse: ". It runs in a folder that holds a recipe and everything that the recipe names, all right, except for:
`recipe`, another text; `change`, other texts of single sections; `files`, further or other files.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from stillhouse import cli
from stillhouse.cli.command import VERBS
from stillhouse.mistakes import LONGEST_LINE
from stillhouse.recipe import check, parse

HERE = Path(__file__).parent
CASES = [case for file in sorted(HERE.glob("*.yaml")) for case in yaml.safe_load(file.read_text())]

SECTIONS = {
    "student": "student: {model: student}\n",
    "teacher": "teacher: {model: teacher}\n",
    "data": "data: {train: rows.jsonl}\n",
    "method": "method: {name: todi}\n",
    "training": "",
    "evaluation": "",
    "seed": "",
}
GOOD = {
    "student/config.json": '{"model_type": "gpt2"}',
    "student/model.safetensors": "-",
    "teacher/config.json": '{"model_type": "gpt2"}',
    "teacher/model.safetensors": "-",
    "rows.jsonl": '{"instruction": "Add 1 and 1.", "output": "2"}\n',
}


def lay_out(folder: Path, case: dict[str, Any]) -> None:
    """Write the good files, and what is wrong in `case` over them."""
    unknown = case.get("change", {}).keys() - SECTIONS.keys()
    assert not unknown, f"a case changes sections that the recipe lacks: {unknown}"
    recipe = case.get("recipe", "".join({**SECTIONS, **case.get("change", {})}.values()))
    for name, content in {**GOOD, "recipe.yaml": recipe, **case.get("files", {})}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir()
        elif isinstance(content, dict):
            path.write_bytes(bytes.fromhex(content["hex"]))
        else:
            path.write_text(content)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def too_late(options: object) -> None:
        pytest.fail(f"the mistake was not found before the verb ran: {options}")

    monkeypatch.chdir(tmp_path)
    for verb in VERBS.values():
        monkeypatch.setattr(verb, "run", too_late)
    return tmp_path


@pytest.mark.parametrize("case", CASES, ids=[f"{case.get('command', 'recipe')}: {case['mistake']}" for case in CASES])
def test_says_what_is_wrong(case: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lay_out(folder, case)
    assert cli.main(shlex.split(case.get("command", "distill recipe.yaml"))) == 2
    out, error = capsys.readouterr()
    assert error == f"stillhouse: {case['says']}\n"
    assert len(error.strip()) <= LONGEST_LINE
    assert out == ""


def test_nothing_is_wrong_with_what_the_cases_change(folder: Path) -> None:
    lay_out(folder, {})
    for verb, arguments in {
        "distill": ["recipe.yaml"],
        "generate": ["--model=teacher", "--data=rows.jsonl", "--out=out.jsonl"],
        "evaluate": ["--model=student", "--data=rows.jsonl"],
        "evaluate tasks": ["--model=student", "--tasks=gsm8k", "--data=rows.jsonl"],
        "evaluate agreement": ["--model=student", "--teacher=teacher", "--data=rows.jsonl"],
        "report": ["."],
        "inspect": ["--student=student", "--teacher=teacher", "--data=rows.jsonl"],
    }.items():
        check(parse(verb, arguments))


def test_what_looks_like_a_mistake_and_is_none(folder: Path) -> None:
    case = {
        "change": {"student": "student: {model: bare, from_scratch: true}\n", "teacher": "teacher: {model: a/name}\n"},
        "files": {"bare/config.json": '{"model_type": "gpt2"}', "outputs/bare/todi/recipe/finished.json": "{}"},
    }
    lay_out(folder, case)
    check(parse("distill", ["recipe.yaml", "--overwrite", "--data.eval=owner/rows"]))


def test_cases_are_many_and_different() -> None:
    names = [(case.get("command"), case["mistake"]) for case in CASES]
    assert len(set(names)) == len(names) >= 200
