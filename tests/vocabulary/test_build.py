from __future__ import annotations

import logging
from pathlib import Path
from typing import get_args

import pytest

from stillhouse.mistakes import Mistake
from stillhouse.recipe import VocabMapOptions
from stillhouse.recipe.section import types_of
from stillhouse.vocabulary import KINDS, build, cache_folder, cached, kind_of
from tests.data.kinds import unigram
from tests.data.small import byte_level, metaspace

TEACHER, STUDENT = byte_level(), metaspace()


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every map in a folder, with what changes when it is written."""
    return {path.name: (path.stat().st_ino, path.read_bytes()) for path in folder.glob("*.json")}


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_call_reads_what_the_first_one_made(kind: str, tmp_path: Path):
    first = cached(kind, TEACHER, STUDENT, tmp_path)
    kept = files(tmp_path)
    second = cached(kind.replace("_", "-"), byte_level(), metaspace(), tmp_path)
    assert files(tmp_path) == kept
    assert len(kept) == 2
    assert first.ids.tolist() == second.ids.tolist() == build(kind, TEACHER, STUDENT).ids.tolist()
    assert (first.counts, first.teacher, first.student) == (second.counts, second.teacher, second.student)


def test_every_pair_and_kind_has_a_file_of_its_own(tmp_path: Path):
    for teacher, student in ((TEACHER, STUDENT), (STUDENT, TEACHER), (TEACHER, unigram(byte_fallback=True))):
        for kind in KINDS:
            assert cached(kind, teacher, student, tmp_path).kind == kind
    plain = cached("exact", TEACHER, STUDENT, tmp_path)
    spaceless = cached("exact", TEACHER, STUDENT, tmp_path, ignore_space=True)
    assert len(files(tmp_path)) == 2 * (3 * 3 + 1)
    assert spaceless.coverage.teacher > plain.coverage.teacher


def test_a_file_of_other_tokenizers_under_the_name_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    cached("exact", TEACHER, STUDENT, tmp_path)
    (path,) = (path for path in tmp_path.glob("*.json") if not path.name.endswith(".about.json"))
    build("exact", STUDENT, TEACHER).save(path)
    with caplog.at_level(logging.WARNING):
        again = cached("exact", TEACHER, STUDENT, tmp_path)
    assert again.ids.tolist() == build("exact", TEACHER, STUDENT).ids.tolist()
    assert caplog.messages[-1].endswith("; it is made again")


@pytest.mark.parametrize("damage", ["map", "account", "hash", "account lost"])
def test_a_damaged_file_is_said_and_made_again(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    good = cached("exact", TEACHER, STUDENT, tmp_path)
    (map_file,) = (path for path in tmp_path.glob("*.json") if not path.name.endswith(".about.json"))
    account = map_file.with_suffix(".about.json")
    victim = {"map": map_file, "account": account, "hash": Path(f"{map_file}.xxh3"), "account lost": account}[damage]
    kept = files(tmp_path)
    victim.unlink() if damage == "account lost" else victim.write_bytes(victim.read_bytes()[:-9] + b"000000000")
    with caplog.at_level(logging.WARNING):
        again = cached("exact", TEACHER, STUDENT, tmp_path)
    assert again.ids.tolist() == good.ids.tolist()
    assert (len(caplog.messages) == 1 and caplog.messages[0].endswith("; it is made again")) or damage == "account lost"
    assert {name: data for name, (_, data) in files(tmp_path).items()} == {
        name: data for name, (_, data) in kept.items()
    }
    caplog.clear()
    cached("exact", TEACHER, STUDENT, tmp_path)
    assert caplog.messages == []


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        found = cached("exact", TEACHER, STUDENT, tmp_path / "file")
    assert found.ids.tolist() == build("exact", TEACHER, STUDENT).ids.tolist()
    assert caplog.messages[-1].endswith("; the map is not kept for the next run")


def test_where_maps_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("STILLHOUSE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    assert cache_folder() == tmp_path / "user/stillhouse/vocabulary"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache/stillhouse/vocabulary"
    monkeypatch.setenv("STILLHOUSE_CACHE", str(tmp_path / "chosen"))
    assert cache_folder() == tmp_path / "chosen/vocabulary"
    cached("exact", TEACHER, STUDENT)
    assert len(files(tmp_path / "chosen/vocabulary")) == 2


def test_wrong_kinds_are_mistakes():
    with pytest.raises(Mistake, match=r"unknown kind of map 'min_edits'; did you mean 'min_edit'\?"):
        build("min_edits", TEACHER, STUDENT)
    with pytest.raises(Mistake, match="ignore_space: is not asked by prefix"):
        build("prefix", TEACHER, STUDENT, ignore_space=True)


def test_the_command_line_names_every_kind():
    named = get_args(types_of(VocabMapOptions)["kind"])
    assert {kind_of(name) for name in named} == set(KINDS)
