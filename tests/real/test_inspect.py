"""Real tokenizers in the inspector: Chinese, emoji, line ends, and rows of Dolly."""

from __future__ import annotations

from pathlib import Path

import pytest

from stillhouse import cli
from stillhouse.inspection import look
from stillhouse.recipe import InspectOptions

TEXT = "Hi \u4f60\u597d \U0001f468\u200d\U0001f469 caf\u00e9\r\n\tok"


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLHOUSE_CACHE", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")


def shown(shared: Path, capsys: pytest.CaptureFixture[str], student: str, teacher: str) -> tuple[str, str]:
    """The student's line and the teacher's of a hard text."""
    folder = shared / "tokenizers"
    words = [f"--student={folder / student}", f"--teacher={folder / teacher}", "--template=plain", f"--text={TEXT}"]
    assert cli.main(["inspect", *words]) == 0
    out = capsys.readouterr().out
    assert "  100.0% of the student's scored tokens and 100.0% of the teacher's are aligned" in out
    first, second = (line for line in out.splitlines() if line.startswith(("student  ", "teacher  ")))
    return " ".join(first.split()), " ".join(second.split())


def test_gpt2_under_qwen(shared: Path, capsys: pytest.CaptureFixture[str]):
    student, teacher = shown(shared, capsys, "gpt2-base", "Qwen1.5-1.8B")
    end = "| «<|endoftext|>» |"
    person, joiner = "·<0xF0><0x9F><0x91> | <0xA8> |", "<0xE2><0x80> | <0x8D> |"
    characters = "<0xE4><0xBD> <0xA0> <0xE5><0xA5> <0xBD>"
    woman = "<0xF0><0x9F><0x91> <0xA9>"
    assert student == f"student (↵) | Hi | · | {characters} | {person} {joiner} {woman} | ·café | ␍ ↵ | ⇥ ok {end}"
    assert teacher == f"teacher (↵) | Hi | · | 你好 | {person} {joiner} 👩 | ·café | ␍↵ | ⇥ok {end}"


def test_what_qwen_normalises_is_said(shared: Path, capsys: pytest.CaptureFixture[str]):
    folder = shared / "tokenizers"
    pair = [f"--student={folder / 'gpt2-base'}", f"--teacher={folder / 'Qwen1.5-1.8B'}"]
    assert cli.main(["inspect", *pair, "--template=plain", "--text=cafe\u0301"]) == 0
    assert "\n  1 examples whose text the tokenizer normalises;" in capsys.readouterr().out


def test_tinyllama_under_mistral(shared: Path, capsys: pytest.CaptureFixture[str]):
    student, teacher = shown(shared, capsys, "tinyllama-1.1b-3T", "mistral-7b-v0.1")
    assert "| 你 | 好 |" in student and "| 你 | 好 |" in teacher
    assert "<0xF0> | <0x9F> | <0x91> | <0xA8> | <U+200D>" in student
    assert student.endswith("| ␍ | ↵ | ⇥ | ok | «</s>» |")


def test_what_the_maps_reach_of_dolly(shared: Path):
    folder = shared / "tokenizers"
    options = InspectOptions(
        student=str(folder / "gpt2-base"),
        teacher=str(folder / "Qwen1.5-1.8B"),
        data=str(shared / "data" / "dolly"),
        limit=50,
        rows=1,
        vocabulary={"name": "exact"},
    )
    said = dict(look(options).said)
    assert said["alignment span, all 50 examples"][0].startswith("9")
    assert len(said["vocabulary exact"]) == 3
    assert said["vocabulary exact"][2].startswith("most frequent without a match: ")
    assert said["vocabulary exact"][2].count("(") >= 10
