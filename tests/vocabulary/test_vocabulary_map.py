from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse import __version__
from stillhouse.data.pieces import fingerprint
from stillhouse.mistakes import LONGEST_LINE, Mistake
from stillhouse.store import Corrupt
from stillhouse.vocabulary import VocabularyMap, about_of, build, load
from tests.data.kinds import characters, unigram
from tests.data.small import byte_level, metaspace

TEACHER, STUDENT = byte_level(), characters()
V_T, V_S = len(TEACHER), len(STUDENT)


def made(*ids: int, size: int = 5) -> VocabularyMap:
    return VocabularyMap(np.array(ids, dtype=np.int32), size)


@given(ids=st.lists(st.integers(-1, 6), min_size=1, max_size=12))
def test_inverse_and_coverage_are_their_twins(ids: list[int]):
    found = made(*ids, size=7)
    teachers = [[at for at, to in enumerate(ids) if to == student] for student in range(7)]
    assert found.inverse().tolist() == [some[0] if some else -1 for some in teachers]
    assert found.inverse(last=True).tolist() == [some[-1] if some else -1 for some in teachers]
    assert found.inverse().dtype == np.int32
    assert found.coverage.teacher == pytest.approx(sum(to >= 0 for to in ids) / len(ids))
    assert found.coverage.student == sum(map(bool, teachers)) / 7


def test_a_saved_map_comes_back_and_says_what_it_is(tmp_path: Path):
    path = tmp_path / "map.json"
    before = build("exact", TEACHER, STUDENT)
    before.save(path)
    after = load(path, TEACHER, STUDENT, require_hash=True)
    assert after.ids.tolist() == before.ids.tolist()
    assert after.ids.dtype == np.int32
    assert (after.kind, after.student_size, after.counts) == ("exact", V_S, before.counts)
    assert (after.teacher, after.student) == (fingerprint(TEACHER), fingerprint(STUDENT))
    content = json.loads(path.read_text())
    assert [*content] == [str(at) for at in range(V_T)]  # as the published files: every id, ascending
    assert [*content.values()] == before.ids.tolist()
    assert json.loads(about_of(path).read_text())["stillhouse"] == __version__
    assert sorted(found.name for found in tmp_path.iterdir()) == [
        "map.about.json", "map.about.json.xxh3", "map.json", "map.json.xxh3",
    ]  # fmt: skip


def written(folder: Path, content: object) -> Path:
    path = folder / "published.json"
    path.write_text(json.dumps(content))
    return path


def test_a_published_file_is_read_without_an_account(tmp_path: Path):
    found = load(written(tmp_path, {"0": 3, "1": 0, "2": -1}), TEACHER, STUDENT)
    assert found.ids.tolist() == [3, 0, -1] + [-1] * (V_T - 3)
    assert (found.kind, found.teacher, found.counts) == ("unknown", None, {})
    zero = load(written(tmp_path, {"0": 3, "1": 0, "2": -1}), TEACHER, STUDENT, zero_is_none=True)
    assert zero.ids.tolist() == [3, -1, -1] + [-1] * (V_T - 3)


def test_a_model_may_have_more_rows_than_its_tokenizer_tokens(tmp_path: Path):
    path = written(tmp_path, {str(at): V_S for at in range(V_T + 1)})
    found = load(path, TEACHER, STUDENT, teacher_rows=V_T + 5, student_rows=V_S + 1)
    assert found.ids.tolist() == [V_S] * (V_T + 1) + [-1] * 4
    assert len(found.inverse()) == V_S + 1


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([1, 2], 'is no vocabulary map; it needs {"0": student id, "1": ...}'),
        ({"0": 1, "2": 1}, "has '2' where teacher id 1 belongs; ids ascend from 0 without a gap"),
        ({"1": 1, "0": 1}, "has '1' where teacher id 0 belongs; ids ascend from 0 without a gap"),
        ({"the": "the"}, "has 'the' where teacher id 0 belongs; ids ascend from 0 without a gap"),
        ({"0": "the"}, "maps 0 to 'the'; student ids are whole numbers"),
        ({"0": True}, "maps 0 to True; student ids are whole numbers"),
        ({"0": 1.0}, "maps 0 to 1.0; student ids are whole numbers"),
        ({"0": V_S}, f"maps 0 to {V_S}, but the student has {V_S} tokens; is it a map of another pair?"),
        ({"0": -2}, f"maps 0 to -2, but the student has {V_S} tokens; is it a map of another pair?"),
        (
            {str(at): 0 for at in range(V_T + 1)},
            f"maps {V_T + 1} teacher tokens, but the teacher has {V_T}; is it a map of another pair?",
        ),
    ],
)
def test_a_malformed_file_is_a_mistake(content: object, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    written(tmp_path, content)
    with pytest.raises(Mistake) as caught:
        load("published.json", TEACHER, STUDENT)
    assert str(caught.value) == f"published.json: {says}"
    assert len(str(caught.value)) <= LONGEST_LINE


def refused(path: Path, **options: bool) -> str:
    with pytest.raises(Mistake) as caught:
        load(path, TEACHER, STUDENT, **options)
    return str(caught.value)


def test_a_map_of_other_tokenizers_is_refused(tmp_path: Path):
    path = tmp_path / "map.json"
    build("exact", metaspace(), STUDENT).save(path)
    assert "was made for another teacher tokenizer than " in refused(path)
    build("exact", TEACHER, unigram(byte_fallback=True)).save(path)
    assert load(path, TEACHER, unigram(byte_fallback=True)).kind == "exact"
    bigger = unigram(byte_fallback=True)
    bigger.add_tokens(["<x>"])
    with pytest.raises(Mistake, match="was made for another student tokenizer than "):
        load(path, TEACHER, bigger)


def test_a_changed_map_is_refused(tmp_path: Path):
    path = tmp_path / "map.json"
    build("exact", TEACHER, STUDENT).save(path)
    path.write_bytes(path.read_bytes().replace(b": -1", b": -2", 1))
    with pytest.raises(Corrupt):
        load(path, TEACHER, STUDENT)


def test_an_account_of_another_map_is_refused(tmp_path: Path):
    path, other = tmp_path / "map.json", tmp_path / "other.json"
    build("exact", TEACHER, STUDENT).save(path)
    build("prefix", TEACHER, STUDENT).save(other)
    for name in ("other.about.json", "other.about.json.xxh3"):
        (tmp_path / name).replace(tmp_path / name.replace("other", "map"))
    assert refused(path).endswith(
        "map.about.json: is of another map than map.json; make the map again, or delete this file"
    )
    about_of(path).unlink()
    assert load(path, TEACHER, STUDENT).kind == "unknown"
    assert refused(path, require_hash=True).endswith("map.about.json: does not exist")


def test_an_account_of_something_else_is_refused(tmp_path: Path):
    path = written(tmp_path, {"0": 1})
    about_of(path).write_text('{"kind": 3}')
    assert refused(path).endswith("does not say what the map was made of; make the map again, or delete this file")
