"""`stillhouse vocab-map` from its words to its file."""

from __future__ import annotations

from pathlib import Path

import pytest

from stillhouse import cli
from stillhouse.vocabulary import build, load
from tests.data.small import byte_level, metaspace


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    byte_level().save_pretrained("teacher")
    metaspace().save_pretrained("student")
    return tmp_path


@pytest.mark.parametrize("kind", ["exact", "min-edit", "min_edit", "prefix"])
def test_writes_the_map_and_says_how_much_it_reaches(kind: str, folder: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["vocab-map", kind, "--teacher=teacher", "--student", "student", "--out=maps/map.json"]) == 0
    found = load("maps/map.json", byte_level(), metaspace(), require_hash=True)
    expected = build(kind, byte_level(), metaspace())
    assert found.kind == kind.replace("-", "_")
    assert found.ids.tolist() == expected.ids.tolist()
    first, second, third = capsys.readouterr().out.splitlines()
    sizes = f"{len(byte_level())} teacher tokens to {len(metaspace())} student tokens"
    assert first == f"maps/map.json: {found.kind}, {sizes}"
    assert second == ", ".join(f"{count} {way}" for way, count in expected.counts.items())
    assert third.startswith(f"{expected.coverage.teacher:.1%} of the teacher's tokens have one, ")


def test_the_blank_may_be_left_out_of_account(folder: Path, capsys: pytest.CaptureFixture[str]):
    words = ["vocab-map", "exact", "--teacher=teacher", "--student=student", "--out=map.json", "--ignore_space"]
    assert cli.main(words) == 0
    assert " without blank, " in capsys.readouterr().out


def test_a_map_is_replaced_only_where_that_is_asked(folder: Path, capsys: pytest.CaptureFixture[str]):
    words = ["vocab-map", "--kind=exact", "--teacher=teacher", "--student=student", "--out=map.json"]
    assert cli.main(words) == 0
    capsys.readouterr()
    assert cli.main(words) == 2
    assert (
        capsys.readouterr().err
        == "stillhouse: --out: 'map.json' is there already; give another --out, or --overwrite=true\n"
    )
    assert cli.main([*words[:1], "prefix", *words[2:], "--overwrite"]) == 0
    assert load("map.json", byte_level(), metaspace()).kind == "prefix"
