"""The command itself: help, exit codes, what a stop and a bug look like, and that a refusal needs no torch."""

from __future__ import annotations

import importlib
import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from stillhouse import __version__, cli
from stillhouse.catalogue import METHODS, NAMED
from stillhouse.cli.command import VERBS
from stillhouse.recipe import OPTIONS
from stillhouse.recipe.names import all_keys


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--help"], ["-h"]):
        assert cli.main(arguments) == 0
        out = capsys.readouterr().out
        assert all(f"\n  {verb}" in out for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_names_every_key_and_fits(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*verb.split(), "--help"]) == 0
    out = capsys.readouterr().out
    for key in all_keys(OPTIONS[verb]):
        inside = key.startswith(("training.", *(f"{section}." for section in NAMED), "student.lora."))
        inside = inside or (verb == "sft" and key.startswith(("teacher", "alignment", "vocabulary", "rollout")))
        assert inside or f"  {key}" in out, key
    assert max(map(len, out.splitlines())) <= 120
    assert len(out.splitlines()) <= 76


@pytest.mark.parametrize("verb", VERBS)
def test_the_example_of_every_verb_is_a_right_command(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    assert cli.main([*verb.split(), *VERBS[verb].EXAMPLE.split(), "--print_config"]) == 0


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"stillhouse {__version__}\n"


def test_methods_lists_the_catalogue(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["methods", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert list(listed) == list(METHODS)
    assert listed["todi"]["settings"]["temperature"]["default"] == 2.0
    assert listed["seqkd"]["needs_teacher"] is False
    assert cli.main(["methods"]) == 0
    out = capsys.readouterr().out
    assert all(f"{entry.name}" in out and entry.paper in out and entry.summary in out for entry in METHODS.values())


def test_methods_is_a_table_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "160")
    assert cli.main(["methods"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in METHODS) and "┃" in out


def test_a_stop_says_how_to_go_on(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(VERBS["demo"], "run", stopped)
    assert cli.main(["demo"]) == 130
    error = capsys.readouterr().err
    assert error.startswith("stillhouse: stopped;") and error.count("\n") == 1


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(options: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(VERBS["demo"], "run", broken)
    with pytest.raises(ZeroDivisionError):
        cli.main(["demo"])


def test_a_long_line_keeps_the_end_of_its_path_and_what_was_wrong(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    recipe = tmp_path / f"{'r' * 150}.yaml"
    recipe.write_text("student: {model: gpt2, dtype: " + "f" * 300 + "}\n")
    assert cli.main(["sft", str(recipe), "--data.train=rows.jsonl"]) == 2
    error = capsys.readouterr().err
    assert len(error.rstrip("\n")) <= 200 and error.count("\n") == 1
    assert error.startswith("stillhouse: ...rrr")
    assert "rrr.yaml:1: student.dtype: unknown dtype 'fff" in error
    assert error.endswith("; known: auto, bfloat16, float16, float32\n")


PROBE = """
import sys
from stillhouse.cli import main
code = main(sys.argv[1:])
heavy = sorted({"torch", "transformers", "datasets", "matplotlib"} & sys.modules.keys())
print(code, heavy)
"""


@pytest.mark.parametrize(("arguments", "code"), [(["sft", "recipe.yaml"], 2), (["--help"], 0), (["sft", "--help"], 0)])
def test_answers_at_once_and_without_torch(arguments: list[str], code: int, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"instruction": "a"}\n')
    (tmp_path / "recipe.yaml").write_text(
        "student: {model: gpt2}\ndata: {train: rows.jsonl}\ntraining: {learning_rate: 1e-4, optim: sgd}\n"
    )
    began = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    # CPU seconds: on a busy machine the clock on the wall says nothing of the program.
    assert ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime < 3
    assert done.stdout.splitlines()[-1] == f"{code} []"
    assert bool(done.stderr) == (code == 2)


def test_python_dash_m(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "stillhouse", "sft"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    mend = "give a model's folder, a run's (its best checkpoint) or a name on the Hub"
    assert done.stderr == f"stillhouse: sft: --student.model: is missing; {mend}\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "function"),
    [
        ("training", "run"),
        ("rollout", "write_responses"),
        ("evaluation", "evaluate"),
        ("report", "write"),
        ("demo", "run"),
    ],
)
def test_what_the_verbs_call_is_there(package: str, function: str) -> None:
    assert callable(getattr(importlib.import_module(f"stillhouse.{package}"), function))


def test_of_several_processes_only_the_first_does_what_one_does(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for rank, says in (("0", True), ("1", False)):
        monkeypatch.setenv("RANK", rank)
        assert cli.main(["methods"]) == 0
        assert bool(capsys.readouterr().out) == says
