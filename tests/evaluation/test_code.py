"""`evaluate code`: what is written, what is run and only then, what is kept, and what the rates are."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from stillhouse import cli, sandbox, store
from stillhouse.data.problems import read_problems
from stillhouse.evaluation import code, read_measures
from stillhouse.evaluation.pass_at_k import pass_at_k
from stillhouse.mistakes import Mistake
from stillhouse.recipe import CodeOptions, check, parse
from stillhouse.rollout import Response
from tests.evaluation.problems import HUMANEVAL, MBPP, write
from tests.rollout.small import save_model

needs_a_sandbox = pytest.mark.skipif(
    bool(sandbox.why_not("namespaces") and sandbox.why_not("bubblewrap")), reason="no sandbox works on this machine"
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


def options(model: Path, data: Path, **others: Any) -> CodeOptions:
    settings = {"max_new_tokens": 5, "out": str(data.parent / "out"), "workers": 2, **others}
    return CodeOptions(model=str(model), data=[str(data)], **settings)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path / "own" / "test.jsonl", HUMANEVAL)


def test_pass_at_k_is_the_share_of_draws_that_hold_a_pass():
    for samples in range(1, 7):
        for passed, k in itertools.product(range(samples + 1), range(1, samples + 1)):
            draws = list(itertools.combinations([True] * passed + [False] * (samples - passed), k))
            assert pass_at_k(samples, passed, k) == pytest.approx(sum(map(any, draws)) / len(draws))
    with pytest.raises(ValueError, match="pass@3"):
        pass_at_k(2, 1, 3)


def test_nothing_is_run_unless_it_is_said(saved: Path, data: Path, capsys: pytest.CaptureFixture[str], monkeypatch):
    monkeypatch.setattr(sandbox, "judge", lambda *_: pytest.fail("a program was run"))
    for name in ("code.json", "measures.json"):  # of programs that ran once, and are there no more
        store.write_json(data.parent / "out" / "code" / name, {})
    assert code.evaluate_code(options(saved, data)) == {}
    assert [path.name for path in (data.parent / "out" / "code").iterdir()] == ["own"]
    lines = store.read_jsonl(data.parent / "out" / "code" / "own" / "seed10" / "predictions.jsonl")
    assert [line["task"] for line in lines] == ["Own/0", "Own/1", "Own/2"]
    assert all(line["candidate"].startswith(row["prompt"]) for line, row in zip(lines, HUMANEVAL, strict=True))
    assert "were not run: that takes --run-generated-code" in capsys.readouterr().err


@needs_a_sandbox
def test_what_is_written_is_judged_counted_and_kept(saved: Path, data: Path, monkeypatch: pytest.MonkeyPatch):
    answers = ["    return sum(numbers)\n", "    return 0\n", "    import os; os._exit(0)\n"]
    answers += ["    return text[::-1]", "    while True: pass", "    return ''.join(chr(ord(c) - 1) for c in text)\n"]
    answers += ["    return 1 +", "    return (number // 2, number % 2, number / 2)", "    return []"]
    monkeypatch.setattr(code, "respond", lambda *_, **__: [Response(text, True, False) for text in answers])
    chosen = {"samples": 3, "k": [1, 3], "temperature": 0.8, "time_limit": 4.0, "run_generated_code": True}
    report = code.evaluate_code(options(saved, data, **chosen))
    out = data.parent / "out" / "code"
    assert store.read_json(out / "code.json") == report
    entry = report["data"]["own"]
    assert entry["per_problem"] == {
        "Own/0": {"10": ["passed", "failed", "ended"]},
        "Own/1": {"10": ["failed", "timeout", "passed"]},
        "Own/2": {"10": ["error", "passed", "failed"]},
    }
    assert entry["verdicts"] == {
        "passed": 3, "failed": 3, "error": 1, "timeout": 1, "memory": 0, "ended": 1, "protocol": 0, "broken": 0,
    }  # fmt: skip
    assert entry["pass@k"]["1"]["mean"] == pytest.approx(100 / 3)
    assert entry["pass@k"]["3"]["mean"] == 100.0
    assert report["sandbox"]["kind"] in {"namespaces", "bubblewrap"}
    assert report["limits"]["wall_s"] == 4.0
    assert [measure.name for measure in read_measures(out)] == ["own pass@1", "own pass@3"]
    assert read_measures(out)[0].per_item == {10: pytest.approx([100 / 3] * 3)}
    monkeypatch.setattr(code, "respond", lambda *_, **__: pytest.fail("written again"))
    monkeypatch.setattr(sandbox, "judge", lambda *_: pytest.fail("run again"))
    assert code.evaluate_code(options(saved, data, **chosen)) == report
    with pytest.raises(Mistake, match=r"was made with time_limit=4.0, now 3.0"):
        code.evaluate_code(options(saved, data, **{**chosen, "time_limit": 3.0}))


def test_each_sample_and_seed_has_a_stream_of_its_own(saved: Path, data: Path):
    def written(**others: Any) -> list[str]:
        code.evaluate_code(options(saved, data, temperature=1.0, overwrite=True, **others))
        folder = data.parent / "out" / "code" / "own" / f"seed{others['seeds'][0]}"
        return [line["answer"] for line in store.read_jsonl(folder / "predictions.jsonl")]

    alone, several, other = written(seeds=[10]), written(seeds=[10], samples=3), written(seeds=[20])
    assert several[::3] == alone
    assert len(set(several)) > 3
    assert other != alone


@needs_a_sandbox
@pytest.mark.parametrize("rows", [HUMANEVAL, MBPP], ids=["HumanEval", "MBPP"])
def test_the_solutions_of_our_own_problems_pass_and_nothing_does_not(tmp_path: Path, rows: list[dict[str, Any]]):
    kind, limits = sandbox.choose(), sandbox.Limits()
    for problem in read_problems(write(tmp_path / "test.jsonl", rows)):
        assert (
            sandbox.judge(kind, sandbox.Trial(problem.solution, problem.checks, problem.names), limits).verdict
            == "passed"
        )
        assert sandbox.judge(kind, sandbox.Trial("", problem.checks, problem.names), limits).verdict == "error"


@needs_a_sandbox
def test_a_candidate_cannot_redefine_the_helpers_of_its_tests(tmp_path: Path):
    problem = read_problems(write(tmp_path / "test.jsonl", HUMANEVAL))[1]
    cheat = "def shift(text): return text\ndef unshift(text): return text\n"
    assert (
        sandbox.judge(sandbox.choose(), sandbox.Trial(cheat, problem.checks, problem.names), sandbox.Limits()).verdict
        == "failed"
    )


def test_where_no_sandbox_works_nothing_is_run_unless_none_is_asked_for(
    saved: Path, data: Path, monkeypatch: pytest.MonkeyPatch
):
    from stillhouse.sandbox import choosing

    monkeypatch.setattr(choosing, "why_not", lambda kind: f"no {kind} in this container")
    with pytest.raises(Mistake) as found:
        check(options(saved, data, run_generated_code=True))
    said = str(found.value)
    assert "no sandbox works here" in said and "--sandbox=none" in said and len(said) <= 200
    with pytest.raises(Mistake, match="no bubblewrap in this container"):
        check(options(saved, data, run_generated_code=True, sandbox="bubblewrap"))
    report = code.evaluate_code(options(saved, data, run_generated_code=True, sandbox="none", limit=1))
    assert report["sandbox"] == {"kind": "none", "system_calls_filtered": False}


def test_a_file_cannot_allow_what_runs_code(tmp_path: Path, saved: Path, data: Path):
    recipe = tmp_path / "code.yaml"
    for line in ("run_generated_code: true", "sandbox: none"):
        recipe.write_text(f"model: {saved}\ndata: [{data}]\n{line}\n", encoding="utf-8")
        with pytest.raises(Mistake, match="a file cannot allow this"):
            parse("evaluate code", [str(recipe)])
    both = parse("evaluate code", [f"--model={saved}", f"--data={data}", "--run-generated-code", "--sandbox=none"])
    assert (both.run_generated_code, both.sandbox) == (True, "none")


@needs_a_sandbox
def test_the_command_prints_one_line_for_each_data_set(saved: Path, data: Path, capsys: pytest.CaptureFixture[str]):
    line = (
        f"evaluate code --model={saved} --data={data} --max_new_tokens=5 --run-generated-code --out={data.parent / 'o'}"
    )
    assert cli.main(line.split()) == 0
    said = capsys.readouterr().out
    assert said.startswith("own: pass@1 0.00 of 3 problems (")
    assert "run in " in said
