"""EvalPlus's own command in the sandbox, where it is installed; and what is said where it is not."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from stillhouse import sandbox, store
from stillhouse.evaluation import code, evalplus
from stillhouse.mistakes import Mistake
from stillhouse.recipe import CodeOptions, scorers
from stillhouse.rollout import Response
from tests.evaluation.problems import write
from tests.rollout.small import save_model

FOLDER = os.environ.get("STILLHOUSE_EVALPLUS")
needs_evalplus = pytest.mark.skipif(
    FOLDER is None and find_spec("evalplus") is None,
    reason="EvalPlus is not installed; STILLHOUSE_EVALPLUS can name the folder that it is in",
)
PLUS: list[dict[str, Any]] = [
    {
        "task_id": f"HumanEval/{number}", "prompt": f'def add{number}(a, b):\n    """ Add. """\n',
        "entry_point": f"add{number}", "canonical_solution": "    return a + b\n", "contract": "", "atol": 0,
        "base_input": [[1, 2], [0, 0]], "plus_input": [[-5, 6]],
        "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n",
    }
    for number in range(2)
]  # fmt: skip


@needs_evalplus
@pytest.mark.slow
@pytest.mark.skipif(bool(sandbox.why_not("namespaces")), reason="no namespaces on this machine")
def test_its_command_scores_programs_inside_the_sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = write(tmp_path / "plus.jsonl", PLUS)
    answers = ["    return a + b\n", "    return abs(a) + b\n", "    return a - b\n", "    return b + a\n"]
    monkeypatch.setattr(code, "respond", lambda *_, **__: [Response(text, True, False) for text in answers])
    options = CodeOptions(
        model=str(save_model(tmp_path / "model")), data=[str(data)], samples=2, temperature=0.8, workers=1,
        run_generated_code=True, scorer="evalplus", evalplus=FOLDER,
    )  # fmt: skip
    report = code.evaluate_code(options)
    assert report["data"]["plus"]["per_problem"] == {
        "HumanEval/0": {"10": ["passed", "passed"]}, "HumanEval/1": {"10": ["failed", "passed"]},
    }  # fmt: skip
    assert report["data"]["plus+"]["per_problem"] == {
        "HumanEval/0": {"10": ["passed", "failed"]}, "HumanEval/1": {"10": ["failed", "passed"]},
    }  # fmt: skip
    assert report["data"]["plus"]["pass@k"]["1"]["mean"] == 75.0
    assert report["data"]["plus+"]["pass@k"]["1"]["mean"] == 50.0


def test_it_is_said_where_it_is_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(Mistake, match=r"does not hold evalplus/evaluate\.py"):
        scorers.evalplus_folder(str(tmp_path))
    monkeypatch.setattr(scorers, "find_spec", lambda name: None)
    with pytest.raises(Mistake, match="EvalPlus is not installed here; pip install evalplus"):
        scorers.evalplus_folder(None)


@pytest.mark.skipif(bool(sandbox.why_not("namespaces")), reason="no namespaces on this machine")
def test_no_result_is_a_mistake_that_shows_its_last_line(tmp_path: Path):
    tmp_path.chmod(0o755)  # else nobody, who the program is, may not look into it
    (tmp_path / "psutil.py").write_text("raise SystemExit('no such thing')")
    programs = [{"task": "HumanEval/0", "sample": 0, "candidate": ""}]
    with pytest.raises(Mistake, match="came to no result: no such thing"):
        evalplus.score("namespaces", str(tmp_path), PLUS[:1], programs, sandbox.Limits(processes=4))


@pytest.mark.skipif(bool(sandbox.why_not("namespaces")), reason="no namespaces on this machine")
def test_verdicts_are_of_its_data_and_of_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package, asked = tmp_path / "packages", []
    for name in ("evalplus", "evalplus-0.3.1.dist-info"):
        (package / name).mkdir(parents=True)
    (package / "evalplus/evaluate.py").write_text("")
    (package / "evalplus-0.3.1.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: evalplus\nVersion: 0.3.1\n"
    )

    def score(kind: str, package: str, rows: list[Any], programs: list[Any], limits: Any) -> list[dict[str, Any]]:
        asked.append(rows)
        return [
            {"task": one["task"], "sample": one["sample"], "verdict": "passed", "plus": "failed"} for one in programs
        ]

    monkeypatch.setattr(evalplus, "score", score)
    data = write(tmp_path / "plus.jsonl", PLUS)
    options = CodeOptions(
        model=str(save_model(tmp_path / "model")), data=[str(data)], run_generated_code=True, scorer="evalplus",
        evalplus=str(package), max_new_tokens=2, out=str(tmp_path / "out"),
    )  # fmt: skip
    verdicts = tmp_path / "out/code/plus/seed10-verdicts"
    for _ in range(2):
        code.evaluate_code(options)
    assert asked == [PLUS]
    assert store.read_json(verdicts / "settings.json")["found"]["EvalPlus"].startswith("0.3.1, xxh3 ")
    other = [{**row, "plus_input": [[7, 7]]} for row in PLUS]
    write(data, other)
    code.evaluate_code(options)
    assert asked == [PLUS, other]
    (package / "evalplus/evaluate.py").write_text("# mended")
    code.evaluate_code(options)
    assert asked == [PLUS, other, other]
    assert scorers.evalplus_identity(str(tmp_path / "model")).startswith("of no version, xxh3 ")
